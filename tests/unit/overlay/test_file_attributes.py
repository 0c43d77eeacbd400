"""File attributes, as lsattr and chattr ask for them, and the time of birth: what the kernel's overlayfs says and does."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.posix.rooms import fails_with
from tests.support import chattr, requirements, system
from tests.unit.overlay.world import View, World, marked, put
from unionfs.linux import files
from unionfs.overlay.protection import APPEND, IMMUTABLE

FLAGS, FSXATTR = files.FLAGS, files.FSXATTR
NAMES = ("lower file", "upper file", "lower directory", "upper directory", "directory of both")
EXTENTS = 0x80000
#: Flag words, one after the other: no dump, immutable with no time of access, both protections, synchronous; none; unknown ones.
WORDS = (0x40, 0x80 | 0x10, 0x20 | 0x10, 0x08, 0x20, 0, 0x2000000, 0x1 | 0x10, 0)
#: (xflags, extent size, extents, project, copy-on-write extent size)
STRUCTURES = ((0x10, 0, 0, 0, 0), (0x08 | 0x40, 0, 0, 0, 0), (0x08, 0, 0, 5, 0), (0x80, 0, 0, 0, 0), (0, 8, 0, 0, 0), (0, 0, 0, 0, 0))
pytestmark = pytest.mark.usefixtures("root")


def furnish(lower: Path, upper: Path) -> None:
    for layer, name in ((lower, "lower"), (upper, "upper")):
        put(layer / f"{name} file", b"text")
        (layer / f"{name} directory").mkdir()
        (layer / "directory of both").mkdir()


def outcome(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


def on_path(path: Path, call: Callable[[int], object]) -> object:
    fd = os.open(path, os.O_RDONLY)
    try:
        return outcome(lambda: call(fd))
    finally:
        os.close(fd)


@dataclass
class Sides:
    view: View
    upper: Path
    kernel: Path
    kernels_upper: Path

    def ours(self, name: str) -> tuple[object, object]:
        ino = self.view.ino(name.encode())
        union = self.view.union
        return outcome(lambda: union.file_attributes(ino)), outcome(lambda: union.extended_file_attributes(ino))

    def kernels(self, name: str) -> tuple[object, object]:
        path = self.kernel / name
        word = on_path(path, lambda fd: struct.unpack("=I", files.file_attributes(fd, FLAGS)[:4])[0])
        return word, on_path(path, lambda fd: files.file_attributes(fd, FSXATTR))


def left_in(upper: Path, name: str) -> tuple[object, bytes | None] | None:
    """The attributes on disk, and the mark; None when nothing was copied up."""
    path = upper / name
    return (on_path(path, lambda fd: files.file_attributes(fd, FSXATTR)), marked(path, "protattr")) if path.exists() else None


@pytest.fixture
def sides(world: World, scratch: Path) -> Iterator[Sides]:
    if requirements.missing_for_overlayfs() is not None:
        pytest.skip(str(requirements.missing_for_overlayfs()))
    if not chattr.are_possible(scratch):
        pytest.skip("the filesystem of the scratch directory has no file attributes")
    furnish(world.lowers[0], world.upper)
    where = scratch / "kernel"
    for name in ("lower", "upper", "work", "mnt"):
        (where / name).mkdir(parents=True)
    furnish(where / "lower", where / "upper")
    options = f"lowerdir={where}/lower,upperdir={where}/upper,workdir={where}/work,redirect_dir=off,index=off,metacopy=off,xino=off"
    with chattr.cleared_at_the_end(world.root):
        system.mount("overlay", where / "mnt", "overlay", data=options)
        try:
            yield Sides(world.open(), world.upper, where / "mnt", where / "upper")
        finally:
            system.unmount(where / "mnt", system.MNT_DETACH)


@pytest.mark.parametrize("name", NAMES)
def test_flags_are_shown_and_set_as_on_the_kernels_overlayfs(sides: Sides, name: str) -> None:
    assert sides.ours(name) == sides.kernels(name)
    ino, done = sides.view.ino(name.encode()), []
    for wanted in WORDS:
        value = wanted | (EXTENTS if name.endswith("file") else 0)
        ours = outcome(lambda value=value: sides.view.union.set_file_attributes(ino, value))  # type: ignore[misc]
        word = struct.pack("=I", value)
        theirs = on_path(sides.kernel / name, lambda fd, word=word: files.set_file_attributes(fd, FLAGS, word))  # type: ignore[misc]
        assert (ours, sides.ours(name)) == (theirs, sides.kernels(name)), hex(value)
        assert left_in(sides.upper, name) == left_in(sides.kernels_upper, name), hex(value)
        done.append(sides.ours(name)[0])
    assert len(set(done)) > 5


@pytest.mark.parametrize("name", NAMES)
def test_the_structure_is_shown_and_set_as_on_the_kernels_overlayfs(sides: Sides, name: str) -> None:
    ino = sides.view.ino(name.encode())
    for fields in STRUCTURES:
        value = struct.pack("=IIIII8x", *fields)
        ours = outcome(lambda value=value: sides.view.union.set_extended_file_attributes(ino, value))  # type: ignore[misc]
        theirs = on_path(sides.kernel / name, lambda fd, value=value: files.set_file_attributes(fd, FSXATTR, value))  # type: ignore[misc]
        assert (ours, sides.ours(name)) == (theirs, sides.kernels(name)), fields
        assert left_in(sides.upper, name) == left_in(sides.kernels_upper, name), fields


def test_what_is_set_is_what_protects(sides: Sides) -> None:
    view = sides.view
    for name in (b"lower file", b"upper file"):
        ino = view.ino(name)
        view.union.write(ino, 0, b"TEXT")
        view.union.set_file_attributes(ino, EXTENTS | chattr.APPEND)
        assert view.node(name).protection == APPEND
        with fails_with(errno.EPERM):
            view.union.write(ino, 0, b"more")
        assert view.union.write(ino, 4, b"more") == 4
        view.union.set_file_attributes(ino, EXTENTS | chattr.IMMUTABLE)
        assert view.node(name).protection == IMMUTABLE
        with fails_with(errno.EPERM):
            view.union.write(ino, 8, b"more")
        with fails_with(errno.EPERM):
            view.union.begin_copy_up(ino)
        view.union.set_file_attributes(ino, EXTENTS)
        assert view.union.write(ino, 0, b"text") == 4


def test_a_protected_lower_file_is_copied_up_to_be_unprotected(world: World, sides: Sides) -> None:
    path = put(world.lowers[0] / "it", b"text")
    chattr.set_flags(path, IMMUTABLE_AND_APPEND)
    view = world.open_lowers([world.lowers[0]])
    ino = view.ino(b"it")
    assert view.union.file_attributes(ino) == EXTENTS | IMMUTABLE_AND_APPEND
    with fails_with(errno.EROFS):
        view.union.set_file_attributes(ino, EXTENTS)
    ino = sides.view.ino(b"it")
    with fails_with(errno.EPERM):
        sides.view.union.begin_copy_up(ino, data=False)
    draft = sides.view.union.begin_copy_up(ino, data=False, unless=APPEND | IMMUTABLE)
    assert draft is not None
    draft.build()
    sides.view.union.publish(ino, draft)
    assert sides.view.union.file_attributes(ino) == EXTENTS | IMMUTABLE_AND_APPEND
    sides.view.union.set_file_attributes(ino, EXTENTS)
    assert (sides.view.union.file_attributes(ino), chattr.flags(path)) == (EXTENTS, IMMUTABLE_AND_APPEND)
    assert sides.view.union.write(ino, 0, b"TEXT") == 4


IMMUTABLE_AND_APPEND = chattr.IMMUTABLE | chattr.APPEND


def test_a_metacopy_has_its_own(sides: Sides, world: World) -> None:
    put(world.lowers[0] / "it", b"text" * 1000)
    world.close(sides.view)
    view = world.open(metacopy=True)
    view.union.set_file_attributes(view.ino(b"it"), EXTENTS | 0x40)
    assert view.union.tree.descriptors.is_metacopy(view.node(b"it"))
    assert view.union.file_attributes(view.ino(b"it")) & 0x40
    with (world.lowers[0] / "it").open("rb") as lower:
        assert not files.file_attributes(lower.fileno(), FLAGS)[0] & 0x40


@pytest.mark.parametrize("kind", ["symlink", "pipe"])
def test_what_is_no_file_and_no_directory_has_none(world: World, kind: str) -> None:
    path = world.upper / "it"
    path.symlink_to("x") if kind == "symlink" else os.mkfifo(path)
    view = world.open()
    ino = view.ino(b"it")
    for ask in (view.union.file_attributes, view.union.extended_file_attributes):
        with fails_with(errno.ENOTTY):
            ask(ino)
    with fails_with(errno.ENOTTY):
        view.union.set_file_attributes(ino, 0)


def test_where_the_filesystem_has_none_nothing_is_copied_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    put(world.lowers[0] / "file")
    view = world.open()

    def none(*_: object) -> bytes:
        raise OSError(errno.ENOTTY, "none here")

    monkeypatch.setattr(files, "file_attributes", none)
    with fails_with(errno.ENOTTY):
        view.union.file_attributes(view.ino(b"file"))
    with fails_with(errno.ENOTTY):
        view.union.set_file_attributes(view.ino(b"file"), chattr.IMMUTABLE)
    assert os.listdir(world.upper) == []


def test_the_time_of_birth_is_the_topmost_copys(world: World, overlayfs: Callable[[], Path]) -> None:
    put(world.lowers[0] / "file", b"text")
    (world.upper / "dir").mkdir()
    (world.upper / "link").symlink_to("x")
    view = world.open()
    for path, name in ((world.lowers[0] / "file", b"file"), (world.upper / "dir", b"dir"), (world.upper / "link", b"link")):
        assert view.union.birth(view.ino(name)) == files.birth(os.fsencode(path)), name
    view.chmod(b"file", 0o600)
    assert view.union.birth(view.ino(b"file")) == files.birth(os.fsencode(world.upper / "file"))
    kernels = overlayfs()
    put(kernels / "file")
    assert files.birth(os.fsencode(kernels / "file")) == files.birth(os.fsencode(kernels.parent / "upper" / "file"))
