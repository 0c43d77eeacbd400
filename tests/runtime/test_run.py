"""What a command sees and does in `unionfs run`."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runtime.sandbox import Sandbox, children, init_of, wait_for
from tests.support.mounts import our_program
from tests.support.tree import fingerprint
from tests.support.users import USER

pytestmark = [pytest.mark.root, pytest.mark.fuse]


# ---- exit codes ----

@pytest.mark.parametrize("code", [0, 1, 3, 124, 125, 255])
def test_the_exit_code_is_the_commands(sandbox: Sandbox, code: int) -> None:
    assert sandbox.shell(f"exit {code}").code == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_command_killed_by_a_signal_gives_128_and_its_number(sandbox: Sandbox, number: int) -> None:
    assert sandbox.shell(f"kill -{int(number)} $$").code == 128 + number


@pytest.mark.parametrize("command", ["no-such-command", "/bin/no-such-command", "/no/such/directory/command"])
def test_a_command_that_is_not_there_gives_127_and_one_line(sandbox: Sandbox, command: str) -> None:
    done = sandbox.run(command)
    assert (done.code, done.err.count("\n")) == (127, 1)
    assert command in done.err


@pytest.mark.parametrize("command", ["/etc/motd", "/etc"])
def test_a_command_that_cannot_be_executed_gives_126_and_one_line(sandbox: Sandbox, command: str) -> None:
    done = sandbox.run(command)
    assert (done.code, done.err.count("\n")) == (126, 1)
    assert command in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--upper", "/no/such/upper"], "/no/such/upper"),
        (["--work", "/tmp"], "--work needs --upper"),
        (["--network", "bridge"], "bridge"),
        (["--engine", "none"], "none"),
        (["--engine", "kernel", "--lower", "/no/such/lower"], "/no/such/lower"),
        (["--engine", "auto", "--upper", "/no/such/upper"], "/no/such/upper"),
        (["--no-such-option"], "--no-such-option"),
        (["--lower", "/no/such/lower"], "/no/such/lower"),
        (["--lower", "/etc/passwd"], "/etc/passwd"),
        (["--lower", ""], "empty"),
        (["--scratch", "/proc/none"], "/proc/none"),
    ],
)
def test_our_own_failures_give_125_and_one_line(sandbox: Sandbox, options: list[str], message: str) -> None:
    done = sandbox.run("true", options=options)
    assert (done.code, done.err.count("\n"), done.out) == (125, 1, "")
    assert message in done.err


def test_the_root_of_a_user_namespace_is_told_that_it_is_not_enough(sandbox: Sandbox) -> None:
    """Also where the directory for scratch is closed to it, as that of the machine is to a user's."""
    shut = sandbox.scratch / "shut"
    shut.mkdir(mode=0o700)
    os.chown(shut, USER, USER)
    for options in ([], ["--scratch", str(shut / "runs")]):
        words = ["unshare", "-Ur", *sandbox.command_line(["true"], options)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
        assert "needs root" in done.stderr and "user namespace" in done.stderr
    assert os.listdir(shut) == []


def test_a_missing_command_is_our_own_failure(sandbox: Sandbox) -> None:
    assert sandbox.run().code == 125


def test_options_end_at_the_command(sandbox: Sandbox) -> None:
    done = sandbox.run("echo", "--lower", "-x", "--", "--help")
    assert (done.code, done.out) == (0, "--lower -x -- --help\n")


def test_two_dashes_may_come_before_the_command(sandbox: Sandbox) -> None:
    assert sandbox.run("--", "echo", "--", "a").out == "-- a\n"


def test_an_argument_may_hold_any_bytes(sandbox: Sandbox) -> None:
    command = sandbox.command_line(["printf", "%s", os.fsdecode(b"a\xff\n\x01 b")])
    done = subprocess.run(command, cwd="/", env=_with_module_path(sandbox), capture_output=True, timeout=30, check=True)
    assert done.stdout == b"a\xff\n\x01 b"


def _with_module_path(sandbox: Sandbox) -> dict[str, str]:
    """For a call from another directory; the installed program ignores it."""
    return {**sandbox.environment(), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def test_a_dry_run_prints_the_plan_and_does_nothing(sandbox: Sandbox) -> None:
    done = sandbox.run("true", options=["--dry-run"])
    assert done.code == 0
    assert "container switch-root" in done.out.splitlines()
    assert not sandbox.runs.exists()


# ---- layers ----

def test_the_union_is_the_root_and_lowers_stay_as_they_were(sandbox: Sandbox, busybox_root: Path) -> None:
    before = fingerprint(busybox_root)
    done = sandbox.shell("cat /etc/motd; echo new >/etc/motd; cat /etc/motd; rm -r /etc; mkdir /etc; ls -A /etc; touch /x")
    assert (done.code, done.out) == (0, "from the lower\nnew\n")
    assert fingerprint(busybox_root) == before


def test_the_first_lower_is_on_top(sandbox: Sandbox) -> None:
    top = sandbox.scratch / "top"
    (top / "etc").mkdir(parents=True)
    (top / "etc" / "motd").write_text("from the top\n")
    above = replace(sandbox, lowers=(top, *sandbox.lowers))
    assert above.shell("cat /etc/motd; ls /bin/busybox").out == "from the top\n/bin/busybox\n"


def test_the_root_directory_looks_like_the_top_lowers(sandbox: Sandbox) -> None:
    top = sandbox.scratch / "top"
    top.mkdir(mode=0o751)
    os.chown(top, 3, 4)
    above = replace(sandbox, lowers=(top, *sandbox.lowers))
    assert above.shell("stat -c '%a %u %g' /").out == "751 3 4\n"


def test_changes_are_thrown_away_without_an_upper(sandbox: Sandbox) -> None:
    assert sandbox.shell("echo x >/kept").code == 0
    assert sandbox.shell("ls /kept").code != 0


def test_a_kept_upper_holds_the_changes_and_nothing_else(sandbox: Sandbox) -> None:
    upper = sandbox.scratch / "upper"
    upper.mkdir()
    assert sandbox.shell("echo x >/kept; rm /etc/motd", "--upper", str(upper)).code == 0
    assert sorted(os.listdir(upper)) == ["etc", "kept"]  # the mount points come from a layer of the run's own
    assert sorted(os.listdir(sandbox.scratch)) == ["runs", "server.log", "upper"]
    assert sandbox.shell("cat /kept; ls /etc", "--upper", str(upper)).out == "x\npasswd\n"


def test_a_work_directory_that_was_given_stays(sandbox: Sandbox) -> None:
    upper, work = sandbox.scratch / "upper", sandbox.scratch / "work"
    upper.mkdir()
    work.mkdir()
    assert sandbox.shell("touch /kept", "--upper", str(upper), "--work", str(work)).code == 0
    assert work.is_dir()


def test_an_upper_in_use_is_refused_and_its_owner_goes_on(sandbox: Sandbox) -> None:
    upper = sandbox.scratch / "upper"
    upper.mkdir()
    first = sandbox.start_and_wait("echo ready; exec sleep 1000", "--upper", str(upper))
    second = sandbox.shell("true", "--upper", str(upper))
    assert (second.code, second.err.count("\n")) == (125, 1)
    assert (sandbox.scratch / "upper.work").is_dir()
    first.kill()
    first.wait()


def test_a_wrong_lower_leaves_no_work_directory_beside_the_upper(sandbox: Sandbox) -> None:
    upper = sandbox.scratch / "upper"
    upper.mkdir()
    assert sandbox.run("true", options=["--lower", "/no/such/lower", "--upper", str(upper)]).code == 125
    assert not (sandbox.scratch / "upper.work").exists()


def test_the_running_system_itself_can_be_the_lower(sandbox: Sandbox) -> None:
    marker = sandbox.scratch / "marker"
    marker.write_text("old\n")
    whole = replace(sandbox, lowers=(Path("/"),))
    done = whole.shell(f"cat {marker}; echo new >{marker}; cat {marker}; rm -rf /etc; ls /etc")
    assert done.out == "old\nnew\n"
    assert marker.read_text() == "old\n"
    assert os.listdir("/etc")


def test_relative_layers_are_found_from_where_the_user_is(sandbox: Sandbox, busybox_root: Path) -> None:
    command = [*our_program(), "run", "--scratch", str(sandbox.runs), "--lower", busybox_root.name, "cat", "/etc/motd"]
    environment = _with_module_path(sandbox)
    done = subprocess.run(command, cwd=busybox_root.parent, env=environment, capture_output=True, timeout=30, check=True)
    assert done.stdout == b"from the lower\n"


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
def test_an_image_that_leads_a_mount_point_elsewhere_is_refused(sandbox: Sandbox, name: str) -> None:
    top = sandbox.scratch / "top"
    top.mkdir()
    (top / name).symlink_to("/etc")
    done = replace(sandbox, lowers=(top, *sandbox.lowers)).shell("true")
    assert (done.code, done.err.count("\n")) == (125, 1)
    assert f"/{name}" in done.err


# ---- what is around the command ----

def test_nothing_is_mounted_but_the_union_and_what_the_container_needs(sandbox: Sandbox) -> None:
    out = sandbox.shell("while read -r id parent dev root target rest; do echo $root $target; done </proc/self/mountinfo").out
    assert sorted(out.splitlines()) == [
        "/ /", "/ /dev", "/ /dev/mqueue", "/ /dev/pts", "/ /dev/shm", "/ /proc", "/ /sys",
    ]


def test_the_old_root_cannot_be_reached(sandbox: Sandbox) -> None:
    done = sandbox.shell("ls -A /proc/1/root/ /proc/1/cwd/ /../ | sort -u; ls -l /proc/1/fd /proc/self/fd")
    assert str(sandbox.scratch.parent) not in done.out
    assert {"bin", "dev", "etc", "proc", "sys"} <= set(done.out.split())


def test_only_the_containers_processes_are_seen(sandbox: Sandbox) -> None:
    out = sandbox.shell("echo $$; cat /proc/1/comm; exec ls -d /proc/[0-9]*").out
    assert out == "2\nunionfs-init\n/proc/1\n/proc/2\n"


def test_pid_1_shows_nothing_of_the_callers_environment_and_command_line(sandbox: Sandbox) -> None:
    environment = {**sandbox.environment(), "SECRET": "of the host"}
    out = sandbox.shell("cat /proc/1/environ /proc/1/cmdline | tr -d '\\0'", env=environment).out
    assert out == "unionfs-init"


def test_the_environment_is_the_containers_own(sandbox: Sandbox) -> None:
    environment = {**sandbox.environment(), "SECRET": "of the host", "TERM": "vt100"}
    out = sandbox.run("env", env=environment).out
    assert sorted(out.splitlines()) == [
        "HOME=/root",
        "HOSTNAME=unionfs",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TERM=vt100",
    ]


def test_the_host_name_is_the_containers_own(sandbox: Sandbox) -> None:
    before = os.uname().nodename
    assert sandbox.shell("hostname; hostname other; hostname").out == "unionfs\nother\n"
    assert os.uname().nodename == before


def test_without_a_network_there_is_loopback_alone_and_it_is_up(sandbox: Sandbox) -> None:
    out = sandbox.shell("ls /sys/class/net; ping -c 1 -W 2 127.0.0.1 >/dev/null && echo answered").out
    assert out == "lo\nanswered\n"


def test_the_hosts_network_can_be_shared(sandbox: Sandbox) -> None:
    done = sandbox.shell("readlink /proc/self/ns/net; ls /sys/class/net", "--network", "host")
    assert done.out.splitlines() == [os.readlink("/proc/self/ns/net"), *sorted(os.listdir("/sys/class/net"))]


def test_sys_is_read_only(sandbox: Sandbox) -> None:
    done = sandbox.shell("echo 1 >/sys/kernel/profiling; mkdir /sys/x")
    assert done.code != 0
    assert done.err.count("Read-only file system") == 2


def test_dev_holds_what_programs_need_and_no_more(sandbox: Sandbox) -> None:
    out = sandbox.shell("ls -A /dev | sort").out
    assert out.split() == sorted(
        ["fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"]
    )


def test_the_devices_work(sandbox: Sandbox) -> None:
    script = """
        echo gone >/dev/null && head -c 3 /dev/zero | od -An -tx1
        head -c 8 /dev/urandom | wc -c; head -c 8 /dev/random | wc -c
        echo x >/dev/full || echo full
        echo out >/dev/stdout; echo err >/dev/stderr; echo in | cat /dev/stdin
        echo shared >/dev/shm/x; stat -c %a /dev/shm
    """
    done = sandbox.shell(script)
    assert done.out.split() == ["00", "00", "00", "8", "8", "full", "out", "in", "1777"]
    assert "err" in done.err


def test_no_descriptor_of_the_host_reaches_the_command_or_pid_1(sandbox: Sandbox) -> None:
    kept = os.open("/etc/passwd", os.O_RDONLY)
    directory = os.open("/", os.O_RDONLY)
    try:
        script = "exec ls /proc/self/fd"
        done = sandbox.shell(script, pass_fds=(kept, directory))
        listing = sandbox.shell("ls -l /proc/1/fd", pass_fds=(kept, directory)).out
    finally:
        os.close(kept)
        os.close(directory)
    assert done.out.split() == ["0", "1", "2", "3"]  # 3 is the listing itself
    links = [line.split(" -> ")[1] for line in listing.splitlines() if " -> " in line]
    assert all(link == "/dev/null" or link.startswith(("socket:", "anon_inode:")) for link in links), links


def test_standard_streams_that_are_closed_are_the_null_device(sandbox: Sandbox) -> None:
    command = sandbox.command_line(["sh", "-c", "readlink /proc/self/fd/0"])
    script = 'exec "$@" <&-'
    environment = _with_module_path(sandbox)
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command], env=environment, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "/dev/null\n"


def test_input_and_output_are_passed_through(sandbox: Sandbox) -> None:
    process = sandbox.start("tr", "a-z", "A-Z", stdin=subprocess.PIPE)
    out, _ = process.communicate("some text\n" * 20_000, timeout=30)
    assert out == "SOME TEXT\n" * 20_000


def test_a_reader_of_the_output_sees_its_end_when_the_command_closes_it(sandbox: Sandbox) -> None:
    process = sandbox.start("sh", "-c", "echo last; exec >/dev/null 2>&1 sleep 60")
    assert process.stdout is not None
    # "sleep" lives on with other streams, yet neither runner nor pid 1 may keep ours open
    os.set_blocking(process.stdout.fileno(), True)
    init = wait_for(lambda: init_of(process.pid))
    assert process.stdout.readline() == "last\n"
    wait_for(lambda: all("pipe:" not in link for link in _links(init)))
    process.kill()


def _links(pid: int) -> list[str]:
    return [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]


def test_broken_pipes_kill_the_command_as_usual(sandbox: Sandbox) -> None:
    assert sandbox.shell("(yes; echo $? >/code) | head -n 1 >/dev/null; cat /code").out == "141\n"


def test_new_files_have_the_usual_mode(sandbox: Sandbox) -> None:
    assert sandbox.shell("umask; touch /x; mkdir /d; stat -c %a /x /d").out == "0022\n644\n755\n"


def test_ordinary_users_of_the_image_can_work(sandbox: Sandbox) -> None:
    # without allow_other the kernel would let nobody but root in
    script = "adduser -D -H -u 1234 someone 2>/dev/null || echo 'someone:x:1234:1234::/tmp:/bin/sh' >>/etc/passwd; chmod 1777 /tmp;" \
        " su someone -c 'id -u; cat /etc/motd; touch /tmp/mine && stat -c %u /tmp/mine; touch /etc/not || echo refused'"
    done = sandbox.shell(script)
    assert done.out == "1234\nfrom the lower\n1234\nrefused\n"


# ---- processes and signals ----

def test_pid_1_reaps_what_is_orphaned(sandbox: Sandbox) -> None:
    script = "for i in 1 2 3 4 5; do (sleep 0.1 & exec true) & done; wait; sleep 0.5; cat /proc/[0-9]*/stat | grep -c ') Z ' || true"
    assert sandbox.shell(script).out == "0\n"


def test_when_the_command_ends_the_rest_of_the_container_does_too(sandbox: Sandbox) -> None:
    assert sandbox.shell("sleep 1000 & setsid sleep 1000 & exit 5").code == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGRTMIN + 3])
def test_a_signal_to_the_runner_reaches_the_command(sandbox: Sandbox, number: int) -> None:
    process = sandbox.start_and_wait(
        f"trap 'echo caught; exit 9' {int(number)}; echo ready; while :; do sleep 0.05; done"
    )
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (9, "caught\n")


def test_a_signal_to_the_runner_ends_a_command_that_does_not_catch_it(sandbox: Sandbox) -> None:
    process = sandbox.start_and_wait("echo ready; exec sleep 1000")
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM


def test_an_ignored_hangup_stays_ignored(sandbox: Sandbox) -> None:
    command = sandbox.command_line(["sh", "-c", "echo ready; sleep 0.5; echo still here"])
    nohup = subprocess.Popen(
        ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *command], env=_with_module_path(sandbox), stdout=subprocess.PIPE, text=True
    )
    sandbox.started.append(nohup)
    assert nohup.stdout is not None
    assert nohup.stdout.readline() == "ready\n"
    nohup.send_signal(signal.SIGHUP)
    assert nohup.communicate(timeout=30)[0] == "still here\n"


def test_a_stopped_runner_stops_its_command_and_both_go_on_together(sandbox: Sandbox) -> None:
    process = sandbox.start_and_wait("echo ready; i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.01; done")
    init = wait_for(lambda: init_of(process.pid))
    command = wait_for(lambda: children(init))[0]

    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    process.send_signal(signal.SIGTSTP)
    wait_for(lambda: state(process.pid) == "T" and state(command) == "T")
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: state(process.pid) != "T" and state(command) != "T")
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
