"""--engine: one command line and one set of directories, whoever mounts them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commands.namespace import namespace
from tests.commands.program import Done, Place, environment, flags, listed, make_layers, named, place, run, texts
from tests.support import requirements, system
from tests.support.mounts import Layers, our_program
from tests.support.tree import difference, fingerprint, snapshot

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(requirements.missing_for_fuse() is not None, reason=str(requirements.missing_for_fuse())),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting the kernel's overlayfs needs root"),
]


@pytest.fixture
def layers(scratch: Path) -> Layers:
    return make_layers(scratch, lowers=2)


def mount(engine: str, layers: Layers, mnt: Place, *more: str) -> Done:
    return run("mount", f"--engine={engine}", *flags(layers), *more, mnt.path)


def fstype(mnt: Place) -> str:
    point = system.mounted_at(mnt.path)
    assert point is not None
    return point.fstype


def refused(done: Done, *parts: str, status: int = 1) -> None:
    assert (done.status, done.out, len(done.lines)) == (status, "", 1), done.err
    for part in parts:
        assert part in done.err


# ---- the commands ----

def test_a_mount_of_the_kernel_is_listed_with_its_layers_and_engine(layers: Layers, mnt: Place) -> None:
    done = mount("kernel", layers, mnt)
    assert (done.status, done.out, done.err) == (0, "", "")
    assert fstype(mnt) == "overlay"
    found = listed(mnt.path)
    assert (found["engine"], found["state"], found["pid"]) == ("kernel", "live", 0)
    assert found["lowers"] == [str(path) for path in layers.lowers]
    assert (found["upper"], found["work"]) == (str(layers.upper), str(layers.work))
    lines = run("list").out.splitlines()
    assert f"{mnt.path} (live, engine kernel, rw)" in lines
    for command in ("stats", "refresh"):
        refused(run(command, mnt.path), str(mnt.path), "kernel", "no server")
    (mnt.path / "new").write_text("x")
    (mnt.path / "file").unlink()
    assert run("diff", mnt.path).out.splitlines() == ["D /file", "A /new"]
    assert run("umount", mnt.path).status == 0
    assert not mnt.is_mounted() and listed(mnt.path) == {}


@pytest.mark.parametrize("engine", ["channel", "pyfuse3"])
def test_our_own_mount_says_which_engine_it_has(layers: Layers, mnt: Place, engine: str) -> None:
    assert mount(engine, layers, mnt).status == 0
    assert listed(mnt.path)["engine"] == engine
    assert any(line.startswith(f"{mnt.path} (live, engine {engine}, rw, process ") for line in run("list").out.splitlines())


def test_every_default_that_could_differ_is_stated_to_the_kernel(layers: Layers, mnt: Place) -> None:
    parameters = Path("/sys/module/overlay/parameters")
    switched = ("index", "metacopy", "redirect_dir")
    before = {name: (parameters / name).read_text() for name in switched}
    try:
        (parameters / "redirect_dir").write_text("N")
        for name in ("index", "metacopy"):
            (parameters / name).write_text("Y")
        assert mount("kernel", layers, mnt).status == 0
        (words,) = (line.split()[3].split(",") for line in Path("/proc/mounts").read_text().splitlines() if f" {mnt.path} " in line)
        assert {word for word in words if word.startswith(("redirect_dir", "index", "metacopy"))} == {
            "redirect_dir=on", "index=off", "metacopy=off"}  # fmt: skip
    finally:
        for name, text in before.items():
            (parameters / name).write_text(text)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("redirect_dir=off", set()),  # follow, which this kernel shows as nothing
        ("redirect_dir=nofollow", {"redirect_dir=nofollow"}),
        ("userxattr", {"userxattr", "redirect_dir=nofollow"}),
        ("metacopy=on,index=on", {"redirect_dir=on", "metacopy=on", "index=on"}),
        ("nfs_export=on", {"redirect_dir=on", "index=on", "nfs_export=on"}),
        ("volatile", {"redirect_dir=on", "volatile"}),
        ("ro,noexec,nosuid", {"redirect_dir=on", "ro", "noexec", "nosuid"}),
        ("writeback=1", {"redirect_dir=on"}),
        ("uuid=null,allow_other,writeback=0,noxattrs=0,context=x", {"redirect_dir=on", "uuid=null"}),
    ],
)
def test_what_the_kernel_knows_is_passed_on(layers: Layers, mnt: Place, options: str, shown: set[str]) -> None:
    done = mount("kernel", layers, mnt, "-o", options)
    assert (done.status, done.err) == (0, "")
    (words,) = (line.split()[3].split(",") for line in Path("/proc/mounts").read_text().splitlines() if f" {mnt.path} " in line)
    seen = {word.removeprefix("fsync=") for word in words if not word.startswith(("lowerdir", "upperdir", "workdir"))}
    assert seen - {"rw", "relatime", "uuid=on"} == shown


@pytest.mark.parametrize(
    ("options", "named_in_the_line"),
    [
        ("timeout=1", ("timeout",)),
        ("noacl,static_nlink", ("noacl", "static_nlink")),
        ("fsync=0", ("fsync=0",)),
        ("subtype=x", ("subtype",)),
        ("rename_copy_limit=1M", ("rename_copy_limit",)),
        ("uidmapping=0:0:5,gidmapping=0:0:5,squash_to_root", ("uidmapping", "gidmapping", "squash_to_root")),
        ("squash_to_uid=0,squash_to_gid=5,xattr_permissions=2", ("squash_to_uid", "squash_to_gid", "xattr_permissions")),
    ],
)
def test_what_the_kernel_lacks_is_refused_by_name_and_left_to_our_server_by_auto(
    layers: Layers, mnt: Place, options: str, named_in_the_line: tuple[str, ...]
) -> None:
    refused(mount("kernel", layers, mnt, "-o", options), "kernel", *named_in_the_line, status=2)
    assert not mnt.is_mounted()
    done = mount("auto", layers, mnt, "-o", options)
    assert (done.status, len(done.lines)) == (0, 1)
    assert done.err.startswith("unionfs: engine channel: ")
    for name in named_in_the_line:
        assert name in done.err
    assert fstype(mnt).startswith("fuse.")


def test_auto_takes_the_kernel_where_it_can_and_says_so(layers: Layers, mnt: Place) -> None:
    done = mount("auto", layers, mnt)
    assert (done.status, done.err) == (0, "unionfs: engine kernel\n")
    assert fstype(mnt) == "overlay"


def test_auto_serves_itself_what_the_kernel_refuses_also_when_that_came_late(scratch: Path, layers: Layers, mnt: Place) -> None:
    """A lower in a lower: the kernel finds out when it has already marked the work directory as volatile."""
    twisted = Layers((scratch, *layers.lowers), layers.upper, layers.work)
    refused(mount("kernel", twisted, mnt, "-o", "volatile"), "kernel's overlayfs refuses", "in, another of them")
    done = mount("auto", twisted, mnt, "-o", "volatile")
    assert (done.status, len(done.lines)) == (0, 1)
    assert done.err.startswith("unionfs: engine channel: the kernel's overlayfs refuses: ")
    assert fstype(mnt) == "fuse.unionfs"


@pytest.mark.parametrize("layer", ["lower", "upper"])
def test_a_layer_that_keeps_owners_in_attributes_is_not_for_the_kernel(layers: Layers, mnt: Place, layer: str) -> None:
    root = layers.lowers[1] if layer == "lower" else layers.upper
    assert root is not None
    os.setxattr(root, "user.containers.override_stat", b"0:0:555")
    os.setxattr(layers.lowers[1] / "only-lower1", "user.containers.override_stat", b"7:8:600")
    refused(mount("kernel", layers, mnt), f"{layer} directory {root} keeps owners and modes in user.containers.override_stat")
    assert mount("auto", layers, mnt).status == 0 and fstype(mnt) == "fuse.unionfs"
    assert (mnt.path / "only-lower1").stat().st_uid == (7 if layer == "lower" else 0)


@pytest.mark.parametrize(
    ("engine", "expected"),
    [("kernel", "overlay"), ("auto,nowhfiles", "overlay"), ("auto", "fuse.unionfs"), ("pyfuse3", "fuse.unionfs")],
)
def test_the_mount_program_takes_the_engine_as_an_option(
    scratch: Path, layers: Layers, mnt: Place, engine: str, expected: str
) -> None:
    """.wh. files are whiteouts to a mount program unless told otherwise, which the kernel cannot do."""
    done = run("-o", f"{texts(layers)},engine={engine}", mnt.path, command=named(scratch, "fuse-overlayfs"))
    assert done.status == 0
    assert fstype(mnt) == expected
    assert done.err.startswith("unionfs: engine ") == engine.startswith("auto")
    assert run("umount", mnt.path).status == 0
    done = run("src", mnt.path, "-o", f"{texts(layers)},engine={engine}", command=named(scratch, "mount.fuse.unionfs"))
    assert done.status == 0
    assert f"src {mnt.path} {expected} " in Path("/proc/mounts").read_text()
    assert run("umount", mnt.path).status == 0, "also where the source is not ours"


@pytest.mark.parametrize("flag", ["-f", "-d"])
def test_the_kernel_has_no_foreground(layers: Layers, mnt: Place, flag: str) -> None:
    done = mount("kernel", layers, mnt, flag)
    assert done.status == 2 and done.lines[-1].startswith("unionfs: ") and "foreground" in done.lines[-1]
    assert not mnt.is_mounted()


def test_the_engine_is_given_once(layers: Layers, mnt: Place) -> None:
    refused(mount("kernel", layers, mnt, "-o", "engine=auto"), "--engine", "engine=", status=2)


@pytest.mark.parametrize("engine", ["kernel", "auto"])
def test_a_missing_layer_is_told_as_by_our_server(scratch: Path, layers: Layers, mnt: Place, engine: str) -> None:
    absent = Layers((scratch / "absent",), layers.upper, layers.work)
    refused(mount(engine, absent, mnt), "lower directory", "absent", "No such file")


def test_the_kernel_s_own_reason_is_shown(scratch: Path, layers: Layers, mnt: Place) -> None:
    (scratch / "upper on memory").mkdir()
    with_memory = Layers(layers.lowers, scratch / "upper on memory", layers.work)
    refused(mount("kernel", with_memory, mnt, "-o", "xino=on,uuid=on,fsname=" + "x" * 300), "Invalid argument", "source")


# ---- layers ----

def test_five_hundred_layers(scratch: Path, mnt: Place) -> None:
    stack = make_layers(scratch, lowers=500)
    assert mount("kernel", stack, mnt).status == 0
    assert (mnt.path / "file").read_text() == "in lower0\n"
    assert len(list(mnt.path.glob("only-*"))) == 500
    assert listed(mnt.path)["lowers"] == [str(path) for path in stack.lowers]


@pytest.mark.parametrize("name", [b"a:b,c\\d e", b"line\nbreak", b"\xff\xfe", b'q"=#', b"n" * 250])
def test_layers_may_have_any_name_of_any_length(scratch: Path, mnt: Place, name: bytes) -> None:
    top = scratch / os.fsdecode(name)
    top.mkdir()
    stack = make_layers(top)
    assert mount("kernel", stack, mnt).status == 0
    (mnt.path / "file").write_text("changed\n")
    assert stack.upper is not None
    assert (stack.upper / "file").read_text() == "changed\n"
    assert listed(mnt.path)["lowers"] == [os.fsencode(path).decode("utf-8", "surrogateescape") for path in stack.lowers]


def test_relative_layers_are_listed_by_where_they_are(scratch: Path, layers: Layers, mnt: Place) -> None:
    assert run("mount", "--engine=kernel", "--lower", "lower1", "--lower", "./lower0", mnt.path, cwd=scratch).status == 0
    assert listed(mnt.path)["lowers"] == [str(layers.lowers[1]), str(layers.lowers[0])]
    assert listed(mnt.path)["options"] == "ro"


def test_one_lower_without_an_upper_is_a_union_too(layers: Layers, mnt: Place) -> None:
    lone = Layers(layers.lowers[:1])
    assert mount("kernel", lone, mnt).status == 0
    assert sorted(os.listdir(mnt.path)) == ["file", "only-lower0"]
    with pytest.raises(OSError) as caught:
        (mnt.path / "new").touch()
    assert caught.value.errno == errno.EROFS
    assert listed(mnt.path)["lowers"] == [str(layers.lowers[0])]


def test_layers_before_descriptors_were_taken_are_named_by_path(scratch: Path, layers: Layers, mnt: Place) -> None:
    """Linux before 6.13, which answers EINVAL to a descriptor."""
    script = """
import errno, os, sys
from unionfs import kernel
from unionfs.linux import mounts
from unionfs.options import MountOptions
real = mounts.fs_create
def older(fstype, parameters, attrs):
    for key, value in parameters:
        if fstype == "overlay" and isinstance(value, int):
            raise OSError(errno.EINVAL, "Invalid argument", key)
    return real(fstype, parameters, attrs)
mounts.fs_create = older
one, other, upper, work, target = (os.fsencode(path) for path in sys.argv[1:])
kernel.mount(MountOptions((one, other), (), upper, work), target)
"""
    odd = make_layers_in(scratch / "back\\slash")
    arguments = [*map(str, odd.lowers), str(odd.upper), str(odd.work), str(mnt.path)]
    done = subprocess.run(
        [*_python(), "-c", script, *arguments], env=environment(), capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (mnt.path / "file").read_text() == "in lower0\n"
    (mnt.path / "file").write_text("up\n")
    assert odd.upper is not None and (odd.upper / "file").read_text() == "up\n"


def make_layers_in(directory: Path) -> Layers:
    directory.mkdir()
    return make_layers(directory, lowers=2)


def _python() -> list[str]:
    interpreter = Path(our_program()[0]).parent / "python"
    return [str(interpreter)] if interpreter.exists() else our_program()[:1]


# ---- who has the upper ----

@pytest.mark.parametrize("first", ["kernel", "pyfuse3"])
@pytest.mark.parametrize("second", ["kernel", "pyfuse3", "auto"])
def test_an_upper_belongs_to_one_mount_whatever_the_engines(
    scratch: Path, layers: Layers, mnt: Place, first: str, second: str
) -> None:
    assert mount(first, layers, mnt).status == 0
    with place(scratch, "second") as other:
        refused(mount(second, layers, other), "in use by another mount")
        assert not other.is_mounted()
        assert run("umount", mnt.path).status == 0
        assert mount(second, layers, other).status == 0


def test_an_upper_that_mountinfo_names_by_a_relative_path_is_known_to_the_kernel(scratch: Path, layers: Layers, mnt: Place) -> None:
    command = ["mount", "-t", "overlay", "-o", "lowerdir=lower0,upperdir=upper,workdir=work", "none", str(mnt.path)]
    assert run(command=command, cwd=scratch).status == 0
    with place(scratch, "second") as other:
        for engine in ("pyfuse3", "kernel", "auto"):
            refused(mount(engine, layers, other), "in use by another mount of the kernel's")
        for part in ("upper", "work"):
            refused(run("convert", scratch / part, "--lower", layers.lowers[0], "--to", "oci"), "in use by another mount of the kernel's")
        refused(run("fsck", "--repair", *flags(layers)), "in use by another mount", status=8)
        system.unmount(mnt.path)
        assert mount("pyfuse3", layers, other).status == 0


def test_what_is_refused_is_not_warned_of_as_well(layers: Layers, mnt: Place) -> None:
    for option in ("noxattrs=1", "allow_root"):
        assert "has no effect" in mount("pyfuse3", layers, mnt, "-o", option).err
        assert run("umount", mnt.path).status == 0
        refused(mount("kernel", layers, mnt, "-o", option), f"the kernel's overlayfs has no {option}", status=2)


def test_what_a_volatile_mount_left_is_named_by_either_engine(layers: Layers, mnt: Place) -> None:
    assert mount("kernel", layers, mnt, "-o", "volatile").status == 0
    assert run("umount", mnt.path).status == 0
    assert layers.work is not None
    for engine in ("pyfuse3", "kernel", "auto"):
        for more in ([], ["-o", "volatile"]):
            refused(mount(engine, layers, mnt, *more), f"delete {layers.work}/work/incompat/volatile")
    shutil.rmtree(layers.work / "work/incompat")
    assert mount("kernel", layers, mnt).status == 0


def test_data_only_layers_are_listed(scratch: Path, layers: Layers, mnt: Place) -> None:
    (scratch / "data").mkdir()
    for engine in ("pyfuse3", "kernel"):
        assert mount(engine, layers, mnt, "-o", f"datadir+={scratch}/data").status == 0
        assert listed(mnt.path)["data_lowers"] == [str(scratch / "data")]
        assert f"    data  {scratch}/data" in run("list").out.splitlines()
        assert run("umount", mnt.path).status == 0


# ---- in a user namespace ----

def test_in_a_user_namespace_the_kernel_mounts_with_userxattr(scratch: Path, layers: Layers, mnt: Place) -> None:
    program = " ".join(our_program())
    arguments = " ".join(f"'{word}'" for word in flags(layers))
    script = f"""
{program} mount --engine=kernel {arguments} -o redirect_dir=on {mnt.path} && exit 9
{program} mount --engine=kernel {arguments} {mnt.path} || exit 1
echo new >{mnt.path}/file
{program} list
{program} umount {mnt.path}
"""
    done = run("-Urm", "sh", "-c", script, command=["unshare"])
    assert done.status == 0
    assert len(done.lines) == 1 and "userxattr" in done.err
    assert f"{mnt.path} (live, engine kernel, rw,userxattr)" in done.out
    assert layers.upper is not None
    assert (layers.upper / "file").read_text() == "new\n"


def test_a_user_without_privileges_is_served_by_auto_and_told_why(scratch: Path, layers: Layers, mnt: Place) -> None:
    for path in (mnt.path, layers.upper, layers.work):
        assert path is not None
        os.chown(path, 1000, 1000)
    with namespace() as ns:
        ns.let_users_run_the_program(scratch)
        ns.let_users_use_fuse(scratch)
        arguments = ["-o", "userxattr", *flags(layers), str(mnt.path)]
        done = ns.run(*our_program(), "mount", "--engine=kernel", *arguments, user=1000)
        refused(done, "kernel's overlayfs refuses", "not permitted")
        done = ns.run(*our_program(), "mount", "--engine=auto", *arguments, user=1000)
        assert done.status == 0
        assert done.err.startswith("unionfs: engine channel: the kernel's overlayfs refuses: ")
        assert ns.mounted_at(mnt.path) == ["fuse.unionfs"]
        ns.must(*our_program(), "umount", mnt.path, user=1000)
        single = ["--lower", str(layers.lowers[0]), str(mnt.path)]
        refused(ns.run(*our_program(), "mount", "--engine=kernel", *single, user=1000), "kernel's overlayfs refuses", "not permitted")
        assert ns.run(*our_program(), "mount", "--engine=auto", *single, user=1000).status == 0
        ns.must(*our_program(), "umount", mnt.path, user=1000)


def test_an_ordinary_user_s_own_namespace_has_the_kernel_s_engine_too(scratch: Path, layers: Layers, mnt: Place) -> None:
    for path in (mnt.path, layers.upper, layers.work):
        assert path is not None
        os.chown(path, 1000, 1000)
    program = " ".join(our_program())
    arguments = " ".join(f"'{word}'" for word in flags(layers))
    script = f"""
{program} mount --engine=auto -o userxattr {arguments} {mnt.path} || exit 1
echo new >{mnt.path}/new && rm {mnt.path}/file || exit 2
{program} diff {mnt.path} && {program} umount {mnt.path}
"""
    with namespace() as ns:
        ns.let_users_run_the_program(scratch)
        done = ns.run("unshare", "-Urm", "sh", "-c", script, user=1000)
    assert (done.status, done.out, done.err) == (0, "D /file\nA /new\n", "unionfs: engine kernel\n")
    assert layers.upper is not None
    assert (layers.upper / "new").stat().st_uid == 1000


# ---- there and back ----

def plant(lower: Path) -> None:
    """Something for every kind of change."""
    for name in ("keep", "move", "replace", "remove", "deep/er"):
        (lower / name).mkdir(parents=True)
        for number in range(3):
            (lower / name / f"f{number}").write_text(f"{name} {number}\n")
    os.link(lower / "keep" / "f0", lower / "keep" / "link")
    (lower / "symlink").symlink_to("keep/f0")
    os.setxattr(lower / "keep" / "f1", "user.color", b"green")
    os.utime(lower / "keep" / "f2", ns=(10**18, 10**18 + 1))


def turn(number: int, root: Path) -> None:
    """Change *root* in a way that depends on what turn it is; each undoes and covers some of what was before."""
    (root / f"new{number}").mkdir()
    (root / f"new{number}" / "file").write_text(f"{number}\n")
    with open(root / "keep" / f"f{number % 3}", "a") as file:
        file.write(f"turn {number}\n")
    os.chmod(root / "deep" / "er" / f"f{number % 3}", 0o600 + number)
    shutil.rmtree(root / "replace")
    (root / "replace").mkdir()
    (root / "replace" / f"after{number}").write_text("x")
    moved = next(root.glob("move*"))
    shutil.move(moved, root / f"move{number}")  # a rename where that can be, else a copy
    (root / f"move{number}" / f"in{number}").write_text("y")
    if number == 1:
        shutil.rmtree(root / "remove")
        (root / "remove").write_text("a file now")
    if number == 2:
        (root / "remove").unlink()
        os.link(root / "keep" / "f0", root / "deep" / "link")
    if number == 3:
        (root / "remove").mkdir()
        os.setxattr(root / "keep" / "f1", "user.color", b"red")
        shutil.move(root / "deep", root / f"move{number}" / "deep")
        (root / "deep" / "er").mkdir(parents=True)
        for name in range(3):
            (root / "deep" / "er" / f"f{name}").write_text("anew")
    (root / "symlink").unlink()
    (root / "symlink").symlink_to(f"turn{number}")


@pytest.mark.parametrize("options", ["", "userxattr", "redirect_dir=off", "index=on", "metacopy=on", "index=on,metacopy=on"])
@pytest.mark.parametrize("first", [0, 1])
def test_the_engine_may_change_at_every_mount(layers: Layers, mnt: Place, options: str, first: int) -> None:
    """What one showed when it was unmounted is what the other shows, and then changes; the lowers stay as they are."""
    plant(layers.lowers[1])
    before = [fingerprint(lower) for lower in layers.lowers]
    seen = None
    for number in range(6):
        engine = ("kernel", "pyfuse3")[(number + first) % 2]
        done = mount(engine, layers, mnt, *(["-o", options] if options else []))
        assert (done.status, done.err) == (0, "")
        if seen is not None:
            assert difference(seen, snapshot(mnt.path), ("the engine before", engine)) == ""
        turn(number, mnt.path)
        seen = snapshot(mnt.path)
        assert run("umount", mnt.path).status == 0
    assert [fingerprint(lower) for lower in layers.lowers] == before
