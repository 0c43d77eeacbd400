"""Layers that other programs wrote, layers on top of layers, and what is written where the kernel's marks cannot be."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.commands.program import flags, place, run
from tests.support import system, tree
from tests.support.mounts import KERNEL_OPTIONS, Layers, Mounts
from unionfs.linux import files

_LOWER = """
mkdir -p a/b/c d e f/g h
for name in one two three a/one a/two a/b/one a/b/c/one d/one d/two e/one f/g/one h/one; do echo "$name" > "$name"; done
ln -s one link
"""

#: Every way of taking away and bringing back, by the shell in a mount or a plain copy.
_CHANGES = """
rm one a/one                        # of a lower, at the top and below
rm -r a/b                           # a whole tree
rm -r d && mkdir d && echo new > d/new
rm two && mkdir two && echo new > two/one
rm -r e && echo file > e            # a file where a directory was
mv three moved
mv h/one a/one                      # over a deleted name
mkdir fresh && echo 1 > fresh/1 && rm -r f/g && mv fresh f/g
echo new > one && rm one && echo again > one
mkdir h/new && rmdir h/new
rm link && ln -s two link
mkdir a/b && mkdir a/b/c            # deleted trees made anew, one inside the other
"""

_MOUNT = 'fuse-overlayfs -o "lowerdir=$LOWERS,upperdir=$UPPER,workdir=$WORK" "$MNT"'


def directories(scratch: Path, *names: str) -> tuple[Path, ...]:
    paths = tuple(scratch / name for name in names)
    for path in paths:
        path.mkdir(parents=True)
    return paths


def shell(script: str, cwd: Path, *, prefix: tuple[str, ...] = (), **environment: str) -> None:
    subprocess.run([*prefix, "sh", "-eu", "-c", script], cwd=cwd, env={**os.environ, **environment}, check=True, timeout=50)


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def without_times(snapshot: tree.Snapshot) -> tree.Snapshot:
    """Names, kinds, modes, owners, contents. The root is nobody's doing."""
    return {path: replace(entry, mtime="", nlink=None) for path, entry in snapshot.items() if path != b"."}


def shown(path: Path) -> tree.Snapshot:
    return without_times(tree.snapshot(path))


_WAYS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "as root": ((), {}),
    "without devices": ((), {"FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT": "1"}),
    "in a user namespace": (("unshare", "-Urm"), {}),
    "in a user namespace without devices": (("unshare", "-Urm"), {"FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT": "1"}),
}


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("rotated", [False, True], ids=["its upper as ours", "its upper as a lower"])
def test_what_fuse_overlayfs_wrote_reads_the_same(mounts: Mounts, scratch: Path, way: str, rotated: bool) -> None:
    lower, plain, upper, work, upper2, work2, target = directories(scratch, "lower", "plain", "upper", "work", "upper2", "work2", "mnt")
    shell(_LOWER, lower)
    shutil.copytree(lower, plain, symlinks=True, dirs_exist_ok=True)
    shell(_CHANGES, plain)
    prefix, environment = _WAYS[way]
    shell(
        f'{_MOUNT}; cd "$MNT"; {_CHANGES}\ncd /; umount "$MNT"', scratch, prefix=prefix, **environment,
        LOWERS=str(lower), UPPER=str(upper), WORK=str(work), MNT=str(target),
    )  # fmt: skip
    layers = Layers((upper, lower), upper2, work2) if rotated else Layers((lower,), upper, work)
    mount = mounts.ours(layers, "-o", "whfiles")
    assert not tree.difference(shown(mount.target), shown(plain), ("ours", "a plain directory"))
    # and it goes on from there
    shell("rm a/one moved; rm -r d f; mkdir d; echo more > d/one; mv two f", mount.target)
    shell("rm a/one moved; rm -r d f; mkdir d; echo more > d/one; mv two f", plain)
    assert not tree.difference(shown(mount.target), shown(plain), ("ours", "a plain directory"))
    assert not mount.unmount()
    again = mounts.ours(layers, "-o", "whfiles")
    assert not tree.difference(shown(again.target), shown(plain), ("ours, mounted again", "a plain directory"))


def test_fuse_overlayfs_reads_what_was_changed_in_its_upper(mounts: Mounts, scratch: Path) -> None:
    lower, plain, upper, work, target = directories(scratch, "lower", "plain", "upper", "work", "mnt")
    shell(_LOWER, lower)
    shutil.copytree(lower, plain, symlinks=True, dirs_exist_ok=True)
    prefix, environment = _WAYS["without devices"]
    shell(
        f'{_MOUNT}; cd "$MNT"; rm one two a/one; rm -r d e f; cd /; umount "$MNT"', scratch, prefix=prefix, **environment,
        LOWERS=str(lower), UPPER=str(upper), WORK=str(work), MNT=str(target),
    )  # fmt: skip
    ours = mounts.ours(Layers((lower,), upper, work), "-o", "whfiles")
    made = "echo again > one; mkdir d; echo new > d/new; mv three two; mv h/one a/one; rm moved link; mkdir f; echo x > f/x"
    shell(made.replace("rm moved link", "rm link"), ours.target)
    shell("rm one two a/one; rm -r d e f;" + made.replace("rm moved link", "rm link"), plain)
    assert not ours.unmount()
    theirs = mounts.fuse_overlayfs(Layers((lower,), upper, work))
    assert not tree.difference(shown(theirs.target), shown(plain), ("fuse-overlayfs", "a plain directory"))


def test_names_with_the_prefix_are_refused_as_by_fuse_overlayfs(mounts: Mounts, scratch: Path) -> None:
    def answers(path: Path) -> list[int | None]:
        (path / "file").touch()
        attempts: list[Callable[[], object]] = [
            lambda: os.mkdir(path / ".wh.x"), lambda: os.symlink("x", path / ".wh.x"), lambda: os.mkfifo(path / ".wh.x"),
            lambda: os.close(os.open(path / ".wh.x", os.O_CREAT | os.O_WRONLY)), lambda: os.link(path / "file", path / ".wh.x"),
            lambda: os.rename(path / "file", path / ".wh.x"),
        ]
        return [_errno_of(attempt) for attempt in attempts]

    lower, *rest = directories(scratch, "lower", "u1", "w1", "u2", "w2")
    ours = mounts.ours(Layers((lower,), rest[0], rest[1]), "-o", "whfiles")
    theirs = mounts.fuse_overlayfs(Layers((lower,), rest[2], rest[3]))
    assert answers(ours.target) == [errno.EINVAL] * 6
    assert os.listdir(rest[0]) == ["file"]
    assert answers(theirs.target)[3] == errno.EINVAL  # version 1.10 checks it at open alone: mkdir makes a whiteout


def _errno_of(attempt: Callable[[], object]) -> int | None:
    try:
        attempt()
    except OSError as error:
        return error.errno
    return None


def _overlayfs(mounts: Mounts, scratch: Path, name: str) -> Path:
    lower, upper, work = directories(scratch, f"{name}.lower", f"{name}.upper", f"{name}.work")
    return mounts.kernel(Layers((lower,), upper, work)).target


def _union(mounts: Mounts, scratch: Path, name: str) -> Path:
    lower, upper, work = directories(scratch, f"{name}.lower", f"{name}.upper", f"{name}.work")
    return mounts.ours(Layers((lower,), upper, work)).target


def _mount_program(mounts: Mounts, scratch: Path, name: str) -> Path:
    lower, upper, work = directories(scratch, f"{name}.lower", f"{name}.upper", f"{name}.work")
    return mounts.ours(Layers((lower,), upper, work), "-o", "whfiles").target


_BACKINGS = {"the kernel's overlayfs": _overlayfs, "our own mount": _union}


@pytest.mark.parametrize("backing", [*_BACKINGS, "our own mount with whfiles"])
@pytest.mark.parametrize("option", ["", "userxattr"])
def test_an_upper_on_another_overlay_keeps_its_deletions(mounts: Mounts, scratch: Path, backing: str, option: str) -> None:
    lower, plain = directories(scratch, "lower", "plain")
    shell(_LOWER, lower)
    shutil.copytree(lower, plain, symlinks=True, dirs_exist_ok=True)
    shell(_CHANGES, plain)
    disk = _BACKINGS.get(backing, _mount_program)(mounts, scratch, "disk")
    upper, work = directories(disk, "upper", "work")
    options = ("-o", option) if option else ()
    mount = mounts.ours(Layers((lower,), upper, work), *options)
    shell(_CHANGES, mount.target)
    assert not tree.difference(shown(mount.target), shown(plain), ("ours", "a plain directory"))
    assert not mount.unmount()
    again = mounts.ours(Layers((lower,), upper, work), *options)
    assert not tree.difference(shown(again.target), shown(plain), ("ours, mounted again", "a plain directory"))
    assert not again.unmount()
    if backing in _BACKINGS:
        assert (upper / ".wh.three").is_file()
    else:
        assert os.getxattr(upper / "three", f"{option[:4] or 'trusted'}.overlay.whiteout") == b"y"
        layers = Layers((upper, lower), *directories(scratch, "upper2", "work2"))
        rotated = mounts.kernel(layers, options=",".join(("index=off,metacopy=off,xino=off", option)).rstrip(","))
        assert not tree.difference(shown(rotated.target), shown(plain), ("the kernel's", "a plain directory"))
    assert os.listdir(work / "work") == []


def test_the_warning_says_that_the_kernel_will_not_read_them(mounts: Mounts, scratch: Path) -> None:
    lower, = directories(scratch, "lower")
    upper, work = directories(_overlayfs(mounts, scratch, "disk"), "upper", "work")
    with place(scratch) as mnt:
        done = run("mount", *flags(Layers((lower,), upper, work)), mnt.path)
        assert done.status == 0 and len(done.lines) == 1
        assert done.err.startswith("unionfs: warning: ") and ".wh. files, which the kernel's overlayfs does not read" in done.err
    upper, work = directories(scratch, "upper", "work")
    with place(scratch, "mnt2") as mnt:
        assert run("mount", *flags(Layers((lower,), upper, work)), mnt.path).err == ""


def _layers_with_xattr_whiteouts(disk: Path, prefix: str) -> tuple[Path, Path]:
    """Two lowers made through a mount, as a container engine inside a container makes them."""
    top, base = directories(disk, "top", "base")
    for directory in ("dir", "opaque", "unmarked"):
        (base / directory).mkdir()
        (top / directory).mkdir()
        for name in ("gone", "kept"):
            (base / directory / name).write_text(f"base {name}")
        (top / directory / "own").write_text("own")
        (top / directory / "empty").touch()
    for path in (top / "dir" / "gone", top / "unmarked" / "gone"):
        path.touch()
        os.setxattr(path, f"{prefix}.overlay.whiteout", b"y")
    os.setxattr(top / "dir", f"{prefix}.overlay.opaque", b"x")
    os.setxattr(top / "opaque", f"{prefix}.overlay.opaque", b"y")
    os.setxattr(top / "dir" / "own", f"{prefix}.overlay.foo", b"bar")
    return top, base


@pytest.mark.parametrize("backing", _BACKINGS)
@pytest.mark.parametrize("namespace", ["trusted", "user"])
def test_layers_made_through_a_mount_are_layers_again(mounts: Mounts, scratch: Path, backing: str, namespace: str) -> None:
    """The disk of a container in a container: the marks of the inner overlay pass through the outer one."""
    disk = _BACKINGS[backing](mounts, scratch, "disk")
    layers = Layers(_layers_with_xattr_whiteouts(disk, namespace), *directories(scratch, "upper", "work"))
    ours_layers = Layers(layers.lowers, *directories(scratch, "upper2", "work2"))
    extra = ",userxattr" if namespace == "user" else ""
    kernel = mounts.kernel(layers, options="index=off,metacopy=off,xino=off" + (extra or ",redirect_dir=off"))
    ours = mounts.ours(ours_layers, *(("-o", "userxattr") if extra else ()))
    assert sorted(os.listdir(ours.target / "dir")) == ["empty", "kept", "own"]
    assert sorted(os.listdir(ours.target / "opaque")) == ["empty", "own"]
    expected = tree.snapshot(kernel.target, hide_ghosts=True)
    assert b"unmarked/gone" not in expected
    for path in ("unmarked/gone", "dir/gone"):
        assert _errno_of(lambda path=path: os.stat(ours.target / path)) == errno.ENOENT  # type: ignore[misc]
    assert not tree.difference(tree.snapshot(ours.target, hide_ghosts=True), expected, ("ours", "the kernel's"))


@pytest.mark.parametrize("upper_kind", ["ours", "kernel"])
def test_a_union_with_marks_of_every_kind_is_a_lower_of_either(mounts: Mounts, scratch: Path, upper_kind: str) -> None:
    lower, upper, work, upper2, work2 = directories(scratch, "lower", "upper", "work", "upper2", "work2")
    shell(_LOWER, lower)
    inner = mounts.ours(Layers((lower,), upper, work))
    shell(_CHANGES, inner.target)
    before = shown(inner.target)
    outer = mounts.by_kind(upper_kind)(Layers((inner.target,), upper2, work2))
    assert not tree.difference(shown(outer.target), before, ("outer", "inner"))
    shell("rm moved; rm -r d; mkdir d; mv f/g/1 d/1; echo more >> a/one", outer.target)
    assert sorted(os.listdir(outer.target / "d")) == ["1"]
    assert not tree.difference(shown(inner.target), before, ("inner afterwards", "inner"))


def test_marks_cannot_be_made_through_a_mount(mounts: Mounts, scratch: Path) -> None:
    """As through the kernel's: a device 0:0 is refused, and so is a rename that would leave one."""
    def answers(path: Path) -> list[int | None]:
        (path / "file").touch()
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return [
                _errno_of(lambda: os.mknod(path / "device", stat.S_IFCHR | 0o600, 0)),
                _errno_of(lambda: os.mknod(path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))),
                _errno_of(lambda: os.mknod(path / "block", stat.S_IFBLK | 0o600, 0)),
                _errno_of(lambda: files.renameat2(fd, b"file", fd, b"new", files.RENAME_WHITEOUT)),
            ]
        finally:
            os.close(fd)

    lower, u1, w1, u2, w2 = directories(scratch, "lower", "u1", "w1", "u2", "w2")
    ours, kernel = mounts.ours(Layers((lower,), u1, w1)), mounts.kernel(Layers((lower,), u2, w2))
    assert answers(ours.target) == answers(kernel.target) == [errno.EPERM, None, None, errno.EINVAL]


_ATTRIBUTES = [
    "trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.whiteout", "trusted.overlay.overlay.opaque",
    "trusted.overlay.x", "trusted.overlay.", "trusted.overlay", "trusted.overlayfoo", "trusted.x",
    "user.overlay.opaque", "user.overlay.whiteout", "user.overlay.", "user.overlay.overlay.x", "user.x",
]  # fmt: skip


@pytest.mark.parametrize("userxattr", [False, True])
def test_attributes_that_look_like_marks_as_the_kernel_keeps_them(mounts: Mounts, scratch: Path, userxattr: bool) -> None:
    """Set, get, list, remove, copy up, and what is on disk for it; of both namespaces, in both."""

    def answers(target: Path, upper: Path) -> list[object]:
        found: list[object] = []
        for path in (target / "made", target / "lower"):
            if path.name == "made":
                path.touch()
            for name in _ATTRIBUTES:
                found.append((name, _errno_of(lambda path=path, name=name: os.setxattr(path, name, name.encode()))))  # type: ignore[misc]
            found += [(name, _errno_of(lambda path=path, name=name: os.getxattr(path, name))) for name in _ATTRIBUTES]  # type: ignore[misc]
            found.append(tree.xattrs_of(os.fsencode(path)))
            for name in _ATTRIBUTES[::2]:
                found.append((name, _errno_of(lambda path=path, name=name: os.removexattr(path, name))))  # type: ignore[misc]
            found.append(tree.xattrs_of(os.fsencode(path)))
            found.append([name for name, _ in tree.xattrs_of(os.fsencode(upper / path.name)) if not name.endswith("overlay.origin")])
        return found

    lower, u1, w1, u2, w2 = directories(scratch, "lower", "u1", "w1", "u2", "w2")
    (lower / "lower").write_text("x")
    for name in ("trusted.overlay.overlay.foo", "trusted.overlay.foo", "user.overlay.overlay.foo", "user.overlay.foo", "user.plain"):
        os.setxattr(lower / "lower", name, b"found")
    ours = mounts.ours(Layers((lower,), u1, w1), *(("-o", "userxattr") if userxattr else ()))
    options = "index=off,metacopy=off,xino=off,userxattr" if userxattr else KERNEL_OPTIONS
    kernel = mounts.kernel(Layers((lower,), u2, w2), options=options)
    assert answers(ours.target, u1) == answers(kernel.target, u2)


@pytest.mark.parametrize("userxattr", [False, True])
def test_only_the_marks_of_one_namespace_count(mounts: Mounts, scratch: Path, userxattr: bool) -> None:
    top, base, u1, w1, u2, w2 = directories(scratch, "top", "base", "u1", "w1", "u2", "w2")
    for namespace in ("trusted", "user"):
        for name in ("opaque", "marked"):
            (base / f"{namespace}.{name}").mkdir()
            (base / f"{namespace}.{name}" / "below").touch()
            (top / f"{namespace}.{name}").mkdir()
            (top / f"{namespace}.{name}" / "below2").touch()
            os.setxattr(top / f"{namespace}.{name}", f"{namespace}.overlay.opaque", b"y" if name == "opaque" else b"x")
        os.setxattr(top / f"{namespace}.marked" / "below2", f"{namespace}.overlay.whiteout", b"")
    ours = mounts.ours(Layers((top, base), u1, w1), *(("-o", "userxattr") if userxattr else ()))
    options = "index=off,metacopy=off,xino=off,userxattr" if userxattr else KERNEL_OPTIONS
    kernel = mounts.kernel(Layers((top, base), u2, w2), options=options)
    left, right = tree.snapshot(ours.target), tree.snapshot(kernel.target)
    assert not tree.difference(left, right, ("ours", "the kernel's"))
    assert left[b"user.opaque"].listing == ((b"below2",) if userxattr else (b"below", b"below2"))


def test_whiteouts_in_directories_that_are_not_merged_are_not_there(mounts: Mounts, scratch: Path) -> None:
    """The kernel lists them, fails to find them and cannot remove the directory."""
    top, base, upper, work = directories(scratch, "top", "base", "upper", "work")
    for where in (upper / "pure", top / "single", top / "opaque"):
        where.mkdir()
        whiteout(where / "gone")
    (base / "opaque").mkdir()
    (base / "opaque" / "gone").touch()
    os.setxattr(top / "opaque", "trusted.overlay.opaque", b"y")
    mount = mounts.ours(Layers((top, base), upper, work))
    for name in ("pure", "single", "opaque"):
        assert os.listdir(mount.target / name) == []
        assert not (mount.target / name / "gone").exists()
    (mount.target / "pure" / "gone").write_text("new")
    (mount.target / "single" / "gone").mkdir()
    assert (mount.target / "pure" / "gone").read_text() == "new"
    os.unlink(mount.target / "pure" / "gone")
    os.rmdir(mount.target / "single" / "gone")
    for name in ("pure", "single", "opaque"):
        os.rmdir(mount.target / name)
    assert os.listdir(mount.target) == []


def test_an_xattr_whiteout_in_upper_can_be_removed(mounts: Mounts, scratch: Path) -> None:
    """Nobody writes one there; to the kernel it is listed, not found, and holds its directory."""
    lower, upper, work = directories(scratch, "lower", "upper", "work")
    (lower / "dir").mkdir()
    (lower / "dir" / "file").touch()
    (upper / "dir").mkdir()
    (upper / "dir" / "file").touch()
    os.setxattr(upper / "dir" / "file", "trusted.overlay.whiteout", b"y")
    mount = mounts.ours(Layers((lower,), upper, work))
    subprocess.run(["rm", "-r", mount.target / "dir"], check=True, timeout=20)
    assert os.listdir(mount.target) == []
    assert stat.S_ISCHR(os.lstat(upper / "dir").st_mode)


def test_a_mark_of_xattr_whiteouts_leaves_a_directory_merged(mounts: Mounts, scratch: Path) -> None:
    top, base, u1, w1, u2, w2 = directories(scratch, "top", "base", "u1", "w1", "u2", "w2")
    for layer in (top, base):
        (layer / "dir").mkdir()
        (layer / "dir" / layer.name).touch()
    os.setxattr(top / "dir", "trusted.overlay.opaque", b"x")
    ours, kernel = mounts.ours(Layers((top, base), u1, w1)), mounts.kernel(Layers((top, base), u2, w2))
    for target in (ours.target, kernel.target):
        os.chmod(target / "dir", 0o700)  # copied up: the mark must not come along
        (target / "dir" / "new").touch()
    assert sorted(os.listdir(ours.target / "dir")) == sorted(os.listdir(kernel.target / "dir")) == ["base", "new", "top"]
    for upper in (u1, u2):
        assert "trusted.overlay.opaque" not in os.listxattr(upper / "dir")
    assert system.mounted_at(ours.target)
