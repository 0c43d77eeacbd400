"""Which program a call means, how failures are told, and that nothing heavy is imported for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unionfs.cli import entry, mount_program
from unionfs.cli.mount_program import take_apart
from unionfs.errors import LayerError, UsageError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("name", "arguments", "is_mount_program"),
    [
        ("mount.fuse.unionfs", [], True),
        ("mount.fuse.other", ["list"], True),
        ("fuse-overlayfs", ["--version"], True),
        ("unionfs", [], False),
        ("unionfs", ["list"], False),
        ("unionfs", ["mount", "-o", "ro", "/mnt"], False),
        ("unionfs", ["-o", "ro", "/mnt"], True),
        ("unionfs", ["-oro", "/mnt"], True),
        ("unionfs", ["/source", "/mnt", "-o", "ro"], True),
        ("unionfs", ["--version"], False),
        ("unionfs", ["nonsense"], False),
        ("anything", ["-f", "-o", "ro", "/mnt"], True),
    ],
)
def test_the_name_or_an_o_without_a_command_selects_the_mount_program(name: str, arguments: list[str], is_mount_program: bool) -> None:
    assert entry.is_mount_program(name, arguments) == is_mount_program


def test_the_mount_program_takes_its_arguments_in_any_order() -> None:
    call = take_apart([b"src", b"-sfn", b"-o", b"a,b", b"-ovolatile", b"dst", b"-t", b"fuse.x", b"--options=c", b"--log", b"l", b"-v"])
    assert call.operands == [b"src", b"dst"]
    assert call.texts == [b"a,b", b"volatile", b"c"]
    assert call.flags == {"s", "f", "n", "v"}
    assert call.log == b"l"


def test_after_two_dashes_everything_is_an_operand() -> None:
    assert take_apart([b"--", b"-o", b"-x"]).operands == [b"-o", b"-x"]


@pytest.mark.parametrize("arguments", [[b"-o"], [b"--log"], [b"-x"], [b"--nonsense"], [b"-fx"], [b"--version=1"]])
def test_a_flag_nobody_knows_or_without_its_value_is_a_usage_error(arguments: list[bytes]) -> None:
    with pytest.raises(UsageError):
        take_apart(arguments)


@pytest.mark.parametrize("arguments", [[], [b"a", b"b", b"c"], [b"-o"], [b"target"], [b"src", b"dst", b"-o", b"verity=on"]])
def test_a_usage_error_of_the_mount_program_is_one_line_and_exit_1(arguments: list[bytes], capsys: pytest.CaptureFixture[str]) -> None:
    assert mount_program.main("fuse-overlayfs", arguments) == mount_program.USAGE
    told = capsys.readouterr().err
    assert told.startswith("unionfs: ") and told.count("\n") == 1


@pytest.mark.parametrize("flag", [b"-V", b"--version"])
@pytest.mark.parametrize("name", ["fuse-overlayfs", "mount.fuse.unionfs"])
def test_the_version_carries_the_name_it_was_asked_under(flag: bytes, name: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert mount_program.main(name, [flag]) == 0
    told = capfdbinary.readouterr().out.decode()
    assert told.startswith(f"{name}: version ") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("exc", "line", "status"),
    [
        (LayerError("lower x: gone"), "unionfs: lower x: gone\n", 1),
        (UsageError("two\nlines"), "unionfs: two lines\n", 2),
        (FileNotFoundError(2, "No such file or directory", b"/a\n\xff"), "unionfs: /a\\n\\xff: No such file or directory\n", 1),
        (OSError(5, "Input/output error", 7), "unionfs: 7: Input/output error\n", 1),
        (ZeroDivisionError("oh"), "unionfs: ZeroDivisionError: oh\n", 1),
    ],
)
def test_a_failure_is_one_line(exc: Exception, line: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.tell(exc) == status
    assert capsys.readouterr().err == line


def modules_of(*statements: str) -> set[str]:
    """What a new interpreter has imported after *statements*."""
    code = ";".join([*statements, "import sys", "print(*sys.modules)"])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, timeout=60, text=True)
    return {name for name in done.stdout.split() if "." not in name or name.startswith("unionfs")}


HEAVY = {"trio", "pyfuse3", "xattr", "logging", "subprocess", "unionfs.runtime", "unionfs.cli.run", "unionfs.fuse", "unionfs.overlay"}


@pytest.mark.parametrize("module", ["mount", "umount", "listing", "stats", "top", "diff", "fsck", "convert"])
def test_a_command_imports_nothing_that_only_others_need(module: str) -> None:
    found = modules_of(f"import unionfs.cli.{module}", "import unionfs.cli.group")
    assert "click" in found
    assert not found & HEAVY


#: What no mount may wait for: each takes milliseconds; dataclasses, with the inspect, ast and dis it needs, 5, and .6 for each class.
SLOW = {"click", "trio", "pyfuse3", "dataclasses", "inspect", "ast", "platform", "pathlib", "tempfile", "subprocess", "asyncio"}

MOUNT = ["unionfs", "mount", "--lower", "/", "/no/such/directory"]
MOUNT_PROGRAM = ["unionfs", "-o", "lowerdir=/", "/no/such/directory"]


@pytest.mark.parametrize("call", [MOUNT, MOUNT_PROGRAM])
def test_whoever_mounts_waits_for_no_slow_import(call: list[str]) -> None:
    found = modules_of(f"import sys; sys.argv = {call!r}", "from unionfs.cli.entry import main; main()")
    assert "unionfs.cli.attach" in found
    assert not found & (HEAVY | SLOW)


def test_the_server_answers_before_anything_slow_is_imported() -> None:
    found = modules_of("import unionfs.cli.server", "import unionfs.fuse.direct")
    assert not found & SLOW


def test_closed_standard_descriptors_are_filled_so_that_no_layer_becomes_the_output() -> None:
    code = "import os; from unionfs.cli.entry import keep_standard_descriptors as f; [os.close(n) for n in (0, 1, 2)]; f(); " \
           "os._exit(0 if [os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)] == ['/dev/null'] * 3 else 1)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=60).returncode == 0


def test_every_command_named_is_there_and_explains_itself() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in entry.COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "unionfs", name, "--help"], capture_output=True, check=False, timeout=60, env=environment, cwd=ROOT
        )
        assert done.returncode == 0 and b"Usage: unionfs " + name.encode() in done.stdout, name


@pytest.mark.parametrize("output", ["full", "closed"])
def test_an_output_that_cannot_be_written_is_a_failure_in_one_line_or_none(output: str) -> None:
    program = [sys.executable, "-m", "unionfs", "diff", "--json", "--lower", "unionfs", "unionfs"]
    redirect = {"full": ">/dev/full", "closed": ">&-"}[output]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", *program], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == {
        "full": (1, "unionfs: cannot write the output: No space left on device\n"),
        "closed": (0, ""),
    }[output]


def test_a_failure_does_not_go_to_the_output_when_there_is_no_place_for_errors() -> None:
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-m", "unionfs", "diff", "/no/such/place"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
