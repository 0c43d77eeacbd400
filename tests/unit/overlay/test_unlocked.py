"""A server that is an ordinary user does what one of root does, whatever the modes of the files that both own.

Each scenario runs twice over the same layers: as root, who needs no permission, and as their owner. Same union, same upper.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.posix.rooms import fails_with
from tests.support import tree
from tests.support.users import GROUP, USER, as_user, in_child
from tests.unit.overlay.world import View, World, no_descriptor_left, put
from unionfs.linux import files
from unionfs.overlay.copy_up import DataDraft, Draft
from unionfs.overlay.make import Caller
from unionfs.overlay.union import Change

pytestmark = pytest.mark.usefixtures("root")

OWNER = Caller(USER, GROUP)
Scenario = Callable[[View, World], object]
Shown = dict[bytes, tuple[str, str, int]]


def furnish(world: World) -> None:
    """Directories ``low`` (in a lower), ``up`` (in upper) and ``both``, with something in each and shut to their owner below."""
    for layer, names in ((world.lowers[0], ("low", "both")), (world.upper, ("up", "both"))):
        for name in names:
            put(layer / name / f"file-{layer.name}", b"text\n", 0o444)
            put(layer / name / "sub" / "inner", b"inner\n")
            (layer / name / "empty").mkdir()
            for path in (layer / name / "sub", layer / name / "empty", layer / name):
                path.chmod(0o555)
    for layer in (*world.lowers, world.upper, world.work):
        for found in (layer, *layer.rglob("*")):
            os.chown(found, USER, GROUP)
            os.utime(found, (1_000_000_000, 1_000_000_000))


def shown(view: View) -> Shown:
    """What a user of the mount sees of names and modes."""
    return {
        path: (entry.kind, entry.mode, entry.size or 0)
        for path, entry in ((path, view.entry(b"" if path == b"." else path)) for path in _paths(view))
    }


def _paths(view: View) -> Iterator[bytes]:
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        yield path or b"."
        if stat.S_ISDIR(view.stat(path).st_mode):
            waiting.extend(path + b"/" + name if path else name for name in view.names(path))


def on_disk(upper: Path) -> tree.Snapshot:
    """Upper as it is, but for who made a whiteout, and for the handles in origins, which name other inodes in each world."""

    def comparable(entry: tree.Entry) -> tree.Entry:
        if entry.rdev == (0, 0):
            return replace(entry, uid=0, gid=0)
        return replace(entry, xattrs=tuple((name, b"" if name.endswith(".origin") else value) for name, value in entry.xattrs))

    return {path: comparable(entry) for path, entry in tree.snapshot(upper).items()}


def played(scratch: Path, scenario: Scenario, run: Callable[[Callable[[], Shown]], Shown]) -> tuple[Shown, tree.Snapshot]:
    """What *scenario* leaves, shown and on disk, when it runs in a child made by *run*."""
    scratch.mkdir()
    scratch.chmod(0o777)
    world = World(scratch)
    furnish(world)
    before = [tree.fingerprint(lower) for lower in world.lowers]

    def play() -> Shown:
        os.umask(0)
        with no_descriptor_left():
            view = world.open(userxattr=True, copy_limit=1 << 20)
            scenario(view, world)
            found = shown(view)
            view.forget()
            assert shown(view) == found  # what the kernel would be told afresh
            world.close(view)
        return found

    found = run(play)
    assert [tree.fingerprint(lower) for lower in world.lowers] == before
    assert os.listdir(world.building) == []
    return found, on_disk(world.upper)


def make(view: View, path: bytes) -> None:
    view.make_file(path, b"new\n", caller=OWNER)


def in_shut_directories(change: Callable[[View, bytes], object]) -> Scenario:
    """*change* in a directory of the lower, of upper and of both."""

    def scenario(view: View, world: World) -> None:
        for directory in (b"low", b"up", b"both"):
            change(view, directory)

    return scenario


def _remove_twofold(view: View, world: World) -> None:
    view.unlink(b"both/sub/inner")
    view.rmdir(b"both/sub")


def _swap(view: View, d: bytes) -> None:
    view.rename(d + b"/file-" + (b"upper" if d == b"up" else b"lower0"), d + b"/sub", files.RENAME_EXCHANGE)


def _recreate(view: View, d: bytes) -> None:
    view.rmdir(d + b"/empty")
    view.mkdir(d + b"/empty", 0o555, OWNER)
    view.mkdir(d + b"/empty/deep", 0o111, OWNER)
    view.rmdir(d + b"/empty/deep")


def _take_own_rights(view: View, d: bytes) -> None:
    """All modes 0, as a user may make them while he has something open."""
    make(view, d + b"/new")
    ino, directory = view.ino(d + b"/new"), view.ino(d)
    view.chmod(d + b"/new", 0)
    view.chmod(d, 0)
    assert stat.S_IMODE(view.union.getattr(ino)[1].st_mode) == 0
    view.union.write(ino, 4, b"more\n")
    assert view.union.read(ino, 0, 100) == b"new\nmore\n"
    node, st = view.union.setattr(ino, Change(size=2))
    assert stat.S_IMODE(st.st_mode) == 0 and st.st_size == 2
    view.union.setxattr(ino, b"user.x", b"1")
    assert view.union.getxattr(ino, b"user.x") == b"1"
    view.union.setattr(ino, Change(mode=0o600))
    view.union.setattr(directory, Change(mode=0o700))


def _forgotten_rights(view: View, d: bytes) -> None:
    """The same, with nothing cached of the object: everything is opened anew through directories that are shut."""
    make(view, d + b"/sub/new")
    view.chmod(d + b"/sub/new", 0o200)
    view.chmod(d + b"/sub", 0o300)
    view.chmod(d, 0o100)
    view.forget()
    assert view.read(d + b"/sub/new") == b"new\n"
    assert b"new" in view.names(d + b"/sub")
    assert stat.S_IMODE(view.stat(d + b"/sub").st_mode) == 0o300
    view.union.lookup(view.ino(d), b"sub")
    view.chmod(d, 0o555)


def _deleted(limit: int | None) -> Scenario:
    """Shut files and directories that are deleted while they are open; *limit*: how many of them are kept by a descriptor."""

    def scenario(view: View, world: World) -> None:
        if limit is not None:
            view.union.tree.orphans.limit = limit
        for d in (b"low", b"up", b"both"):
            make(view, d + b"/new")
            ino, lower, empty = (view.ino(d + name) for name in (b"/new", b"/sub/inner", b"/empty"))
            view.chmod(d + b"/new", 0)
            view.chmod(d + b"/sub/inner", 0o400)
            view.chmod(d + b"/empty", 0)
            view.unlink(d + b"/new")
            view.unlink(d + b"/sub/inner")
            view.rmdir(d + b"/empty")
            view.union.write(ino, 4, b"more\n")
            view.union.write(lower, 0, b"IN")
            assert view.union.read(ino, 0, 100) == b"new\nmore\n"
            assert view.union.read(lower, 0, 2) == b"IN"
            modes = [stat.S_IMODE(view.union.getattr(number)[1].st_mode) for number in (ino, lower, empty)]
            assert modes == [0, 0o400, 0]
            assert [name for name, _, _ in view.union.entries(empty, 0)] == [b".", b".."]
            for number in (ino, lower, empty):
                view.forget_one(number)

    return scenario


def _make_where_nobody_enters(view: View, d: bytes) -> None:
    """Over a whiteout the new object comes from work: it is looked at in a directory that has been shut again."""
    for name in (b"/sub", b"/empty"):
        if name == b"/sub":
            view.unlink(d + b"/sub/inner")
        view.rmdir(d + name)
    view.chmod(d, 0o600)
    view.make_file(d + b"/sub", b"new\n", 0o700, OWNER)
    view.mkdir(d + b"/empty", 0o500, OWNER)
    view.chmod(d, 0o555)


SCENARIOS: dict[str, Scenario] = {
    "make a file": in_shut_directories(lambda view, d: make(view, d + b"/new")),
    "make a directory": in_shut_directories(lambda view, d: view.mkdir(d + b"/new", 0o555, OWNER)),
    "make a symlink": in_shut_directories(lambda view, d: view.symlink(b"x", d + b"/new", OWNER)),
    "make a pipe": in_shut_directories(lambda view, d: view.mknod(d + b"/new", stat.S_IFIFO | 0o400, 0, OWNER)),
    "link": in_shut_directories(lambda view, d: view.link(d + b"/sub/inner", d + b"/new")),
    "remove a directory": in_shut_directories(lambda view, d: view.rmdir(d + b"/empty")),
    "remove a file": in_shut_directories(lambda view, d: view.unlink(d + b"/sub/inner")),
    "remove what is there twice": _remove_twofold,
    "remove and make anew": in_shut_directories(_recreate),
    "make in a directory nobody enters": in_shut_directories(_make_where_nobody_enters),
    "copy up a file": in_shut_directories(lambda view, d: view.write(d + b"/sub/inner", b"I")),
    "copy up a directory": in_shut_directories(lambda view, d: view.chmod(d + b"/sub", 0o500)),
    "move a file": in_shut_directories(lambda view, d: view.rename(d + b"/sub/inner", d + b"/new")),
    "move a directory": in_shut_directories(lambda view, d: view.rename(d + b"/sub", b"moved-" + d)),
    "move a directory onto another": in_shut_directories(lambda view, d: view.rename(d + b"/sub", d + b"/empty")),
    "swap": in_shut_directories(_swap),
    "attributes of a directory": in_shut_directories(lambda view, d: view.union.setxattr(view.ino(d), b"user.x", b"1")),
    "attributes of a file": in_shut_directories(lambda view, d: view.union.setxattr(view.ino(d + b"/sub/inner"), b"user.x", b"1")),
    "truncate": in_shut_directories(lambda view, d: view.change(d + b"/sub/inner", Change(size=1))),
    "open to truncate": in_shut_directories(lambda view, d: view.union.open(view.ino(d + b"/sub/inner"), os.O_WRONLY | os.O_TRUNC)),
    "deleted while open": _deleted(None),
    "deleted while many are open": _deleted(0),
    "all rights taken away": in_shut_directories(_take_own_rights),
    "all rights taken away and forgotten": in_shut_directories(_forgotten_rights),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_server_without_privileges_does_as_root_would(scratch: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    for_root = played(scratch / "root", scenario, in_child)
    for_user = played(scratch / "user", scenario, as_user)
    assert for_user[0] == for_root[0]
    assert tree.difference(for_user[1], for_root[1], ("the user's upper", "root's upper")) == ""


PATHS = [directory + below for directory in (b"low", b"up", b"both") for below in (b"", b"/sub", b"/sub/inner", b"/empty", b"/new")]
MODES = (0, 0o100, 0o200, 0o300, 0o400, 0o444, 0o555, 0o644, 0o700, 0o1755)


def _random_step(view: View, random: Random) -> object:
    """One verb with arguments that mean nothing; what it answers."""
    path, other, mode = random.choice(PATHS), random.choice(PATHS), random.choice(MODES)
    within = path.startswith(other + b"/") or other.startswith(path + b"/")  # the kernel refuses to move such by itself
    steps: list[Callable[[], object]] = [
        lambda: view.chmod(path, mode),
        lambda: view.mkdir(path, mode, OWNER) and None,
        lambda: view.make_file(path, b"new\n", mode, OWNER) and None,
        lambda: view.symlink(b"target", path, OWNER) and None,
        lambda: view.unlink(path),
        lambda: view.rmdir(path),
        lambda: view.link(path, other) and None,
        lambda: None if within else view.rename(path, other),
        lambda: None if within else view.rename(path, other, files.RENAME_EXCHANGE),
        lambda: view.write(path, b"written") if _is_file(view, path) else None,
        lambda: view.read(path) if _is_file(view, path) else None,
        lambda: view.change(path, Change(size=3)).st_mode if _is_file(view, path) else None,
        lambda: view.union.setxattr(view.ino(path), b"user.x", b"%d" % mode),
        lambda: view.names(path),
        view.forget,
    ]
    try:
        return random.choice(steps)()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


def _is_file(view: View, path: bytes) -> bool:
    return stat.S_ISREG(view.stat(path).st_mode)


@pytest.mark.parametrize("seed", range(12))
def test_a_long_sequence_of_verbs_does_as_root_would(scratch: Path, seed: int) -> None:
    def scenario(view: View, world: World) -> None:
        random = Random(seed)
        (world.root / "answers").write_text("".join(f"{_random_step(view, random)!r}\n" for _ in range(60)))

    for_root = played(scratch / "root", scenario, in_child)
    for_user = played(scratch / "user", scenario, as_user)
    assert (scratch / "user" / "answers").read_text() == (scratch / "root" / "answers").read_text()
    assert for_user[0] == for_root[0]
    assert tree.difference(for_user[1], for_root[1], ("the user's upper", "root's upper")) == ""


@pytest.fixture
def owned(world: World) -> World:
    furnish(world)
    return world


def test_bits_are_taken_back_when_the_step_fails_for_another_reason(owned: World) -> None:
    def play() -> None:
        view = owned.open(userxattr=True)
        with fails_with(errno.ENOSPC):
            view.union.tree.lender.retry(
                PermissionError(errno.EACCES, ""), lambda: _fail_seeing_them_lent(owned), [view.node(b"up")], lambda: ()
            )
        assert stat.S_IMODE((owned.upper / "up").stat().st_mode) == 0o555

    as_user(play)


def _fail_seeing_them_lent(world: World) -> None:
    assert stat.S_IMODE((world.upper / "up").stat().st_mode) == 0o755
    raise OSError(errno.ENOSPC, "")


def test_what_belongs_to_another_stays_forbidden(owned: World) -> None:
    os.chown(owned.upper / "up", USER + 1, GROUP)

    def play() -> None:
        view = owned.open(userxattr=True)
        with fails_with(errno.EACCES):
            make(view, b"up/new")

    as_user(play)


def test_a_setgid_directory_of_a_group_we_are_not_in_keeps_that_bit(owned: World) -> None:
    """chmod would take it away for good, so such a directory is lent nothing."""
    os.chown(owned.upper / "up", USER, GROUP + 1)
    (owned.upper / "up").chmod(0o2555)

    def play() -> None:
        view = owned.open(userxattr=True)
        with fails_with(errno.EACCES):
            make(view, b"up/new")

    as_user(play)
    assert stat.S_IMODE((owned.upper / "up").stat().st_mode) == 0o2555
    as_user(lambda: make(owned.open(userxattr=True), b"up/new"), groups=(GROUP + 1,))
    assert stat.S_IMODE((owned.upper / "up").stat().st_mode) == 0o2555


def test_lowers_are_lent_nothing(owned: World) -> None:
    secret = put(owned.lowers[0] / "secret", b"x", 0)
    os.chown(secret, USER, GROUP)
    before = secret.stat()

    def play() -> None:
        view = owned.open(userxattr=True)
        with fails_with(errno.EACCES):
            view.chmod(b"secret", 0o600)

    as_user(play)
    assert secret.stat() == before


def test_a_draft_built_meanwhile_is_published_in_a_shut_directory(owned: World) -> None:
    def play() -> None:
        view = owned.open(userxattr=True)
        ino = view.ino(b"low/file-lower0")
        draft = view.union.begin_copy_up(ino)
        assert isinstance(draft, Draft) and not isinstance(draft, DataDraft)
        draft.build()
        view.union.publish(ino, draft)
        assert view.union.is_up(ino)

    as_user(play)
    assert stat.S_IMODE((owned.upper / "low").stat().st_mode) == 0o555
    assert stat.S_IMODE((owned.upper / "low" / "file-lower0").stat().st_mode) == 0o444
