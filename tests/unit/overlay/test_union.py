"""The verbs on layers of every shape: what shows, what is written to upper, which error."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import acl
from tests.support.tree import snapshot
from tests.unit.overlay.world import ME, View, World, is_whiteout, mark, marked, no_descriptor_left, put, whiteout
from unionfs.linux import files, xattrs
from unionfs.overlay import tree
from unionfs.overlay.layer import Layer
from unionfs.overlay.make import Caller
from unionfs.overlay.node import Node
from unionfs.overlay.union import Change

NAME_MAX = 255


@pytest.fixture
def top(world: World) -> Path:
    return world.lowers[0]


@pytest.fixture
def base(world: World) -> Path:
    return world.lowers[1]


def code_of(action: Callable[[], object]) -> int:
    """The errno that *action* fails with."""
    with pytest.raises(OSError) as caught:
        action()
    assert caught.value.errno is not None
    return caught.value.errno


# ---- merging ----

def test_the_topmost_layer_wins_and_directories_merge(world: World, top: Path, base: Path) -> None:
    put(world.upper / "dir" / "a", b"upper")
    put(top / "dir" / "a", b"top")
    put(top / "dir" / "b", b"top")
    put(base / "dir" / "b", b"base")
    put(base / "dir" / "c", b"base")
    view = world.open()
    assert view.names(b"dir") == [b"a", b"b", b"c"]
    assert [view.read(b"dir/" + name) for name in (b"a", b"b", b"c")] == [b"upper", b"top", b"base"]


def test_a_file_hides_a_directory_and_a_directory_a_file(world: World, top: Path, base: Path) -> None:
    put(top / "one", b"file")
    put(base / "one" / "below")
    put(top / "two" / "file")
    put(base / "two", b"hidden")
    view = world.open()
    assert view.read(b"one") == b"file"
    assert view.names(b"two") == [b"file"]


@pytest.mark.parametrize("layer", ["upper", "top"])
def test_a_whiteout_hides_what_is_below_it(world: World, top: Path, base: Path, layer: str) -> None:
    put(base / "file")
    put(base / "dir" / "file")
    put(base / "kept")
    for name in ("file", "dir"):
        whiteout((world.upper if layer == "upper" else top) / name)
    view = world.open()
    assert view.names() == [b"kept"]
    assert view.find(b"file") is None and view.find(b"dir") is None


@pytest.mark.parametrize("layer", ["upper", "top"])
def test_an_opaque_directory_hides_the_contents_below_it(world: World, top: Path, base: Path, layer: str) -> None:
    put(base / "dir" / "hidden")
    where = world.upper if layer == "upper" else top
    put(where / "dir" / "shown")
    mark(where / "dir", "opaque")
    view = world.open()
    assert view.names(b"dir") == [b"shown"]
    assert view.find(b"dir/hidden") is None


def test_an_opaque_directory_in_the_middle_cuts_the_stack(world: World, top: Path, base: Path) -> None:
    put(world.upper / "dir" / "a")
    put(top / "dir" / "b")
    mark(top / "dir", "opaque")
    put(base / "dir" / "c")
    assert world.open().names(b"dir") == [b"a", b"b"]


def test_below_an_opaque_directory_nothing_comes_back(world: World, top: Path, base: Path) -> None:
    put(top / "dir" / "sub" / "new")
    mark(top / "dir", "opaque")
    put(base / "dir" / "sub" / "old")
    assert world.open().names(b"dir/sub") == [b"new"]


def test_opaque_x_lets_the_lower_show_through(world: World, top: Path, base: Path) -> None:
    put(top / "dir" / "a")
    mark(top / "dir", "opaque", b"x")
    put(base / "dir" / "b")
    mark(put(top / "dir" / "gone"), "whiteout", b"")
    put(base / "dir" / "gone")
    assert world.open().names(b"dir") == [b"a", b"b"]


def test_the_mode_of_a_symlink_cannot_be_changed(world: World, top: Path, base: Path) -> None:
    """chmod would change what it points to, which may be anywhere."""
    outside = put(world.root / "outside", mode=0o600)
    os.symlink(outside, top / "lower")
    os.symlink(outside, world.upper / "upper")
    view = world.open()
    for name in (b"lower", b"upper"):
        with pytest.raises(OSError) as caught:
            view.chmod(name, 0o777)
        assert caught.value.errno == errno.EOPNOTSUPP
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600
    assert not (world.upper / "lower").is_symlink()


def test_an_xattr_whiteout_in_an_unmarked_directory_is_listed_until_somebody_looks(world: World, top: Path, base: Path) -> None:
    mark(put(top / "file"), "whiteout", b"")
    put(base / "file", b"below")
    view = world.open()
    assert view.names() == [b"file"]
    assert view.find(b"file") is None
    assert view.names() == []


def test_whiteouts_in_a_directory_that_is_not_merged_are_hidden(world: World, top: Path) -> None:
    put(top / "dir" / "file")
    whiteout(top / "dir" / "gone")
    whiteout(world.upper / "pure" / "gone")
    view = world.open()
    assert view.names(b"dir") == [b"file"]
    assert view.names(b"pure") == []
    assert view.find(b"dir/gone") is None
    view.rmdir(b"pure")
    assert view.names() == [b"dir"]


def test_a_name_whited_out_in_the_middle_and_made_above_is_that_above(world: World, top: Path, base: Path) -> None:
    put(world.upper / "dir" / "new")
    whiteout(top / "dir")
    put(base / "dir" / "old")
    assert world.open().names(b"dir") == [b"new"]


def test_merged_directories_have_one_link_and_others_their_own(world: World, top: Path, base: Path) -> None:
    for layer in (top, base):
        (layer / "merged" / "sub").mkdir(parents=True)
    (base / "single" / "sub").mkdir(parents=True)
    view = world.open()
    assert (view.nlink(b"merged"), view.nlink(b"single")) == (1, (base / "single").stat().st_nlink)
    view.chmod(b"single", 0o700)
    assert view.nlink(b"single") == 1


def test_with_static_links_every_directory_has_one(world: World, base: Path) -> None:
    (base / "single" / "sub").mkdir(parents=True)
    put(base / "file")
    os.link(base / "file", base / "link")
    view = world.open(static_links=True)
    assert [view.nlink(path) for path in (b"", b"single", b"single/sub", b"file")] == [1, 1, 1, 2]


def test_names_and_targets_are_any_bytes(world: World, top: Path) -> None:
    odd = bytes(byte for byte in range(1, 256) if byte != ord("/"))[:NAME_MAX]
    assert len(odd) == 254
    view = world.open()
    view.make_file(odd, b"x")
    view.symlink(odd, b"link")
    view.mkdir(b"\xff" * NAME_MAX)
    assert view.names() == sorted([odd, b"link", b"\xff" * NAME_MAX])
    assert view.readlink(b"link") == odd
    view = world.reopen(view)
    assert view.read(odd) == b"x"


# ---- listing while things change ----

def listing(view: View, ino: int, after: int, count: int) -> list[tuple[bytes, int]]:
    return [(name, offset) for name, offset, _ in islice(view.union.entries(ino, after), count)]


def test_a_listing_may_stop_anywhere_and_go_on(world: World, top: Path) -> None:
    for number in range(20):
        put(top / "dir" / str(number))
    view = world.open()
    ino = view.ino(b"dir")
    got: list[bytes] = []
    after = 0
    while part := listing(view, ino, after, 3):
        got += [name for name, _ in part]
        after = part[-1][1]
    assert got[:2] == [b".", b".."]
    assert sorted(got[2:]) == sorted(b"%d" % number for number in range(20))


def test_dots_are_the_directory_and_its_parent(world: World, top: Path) -> None:
    (top / "a" / "b").mkdir(parents=True)
    view = world.open()

    def dots(path: bytes) -> list[int]:
        found = [what for _, _, what in islice(view.union.entries(view.ino(path), 0), 2)]
        assert all(isinstance(what, Node) for what in found)
        return [what.ino for what in found if isinstance(what, Node)]

    assert dots(b"a/b") == [view.ino(b"a/b"), view.ino(b"a")]
    assert dots(b"") == [1, 1]


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 24), st.sampled_from(["make", "remove", "rename", "read"])), max_size=60))
def test_what_is_there_throughout_is_listed_exactly_once(session_scratch: Path, steps: list[tuple[int, str]]) -> None:
    """A reader goes on by offsets while names come and go."""
    with tempfile.TemporaryDirectory(prefix="listing-", dir=session_scratch) as directory:
        world = World(Path(directory))
        for number in range(0, 25, 2):
            put(world.lowers[number % 4 // 2] / "dir" / str(number))
        try:
            _read_while_changing(world.open(), steps)
        finally:
            world.close_all()


def _read_while_changing(view: View, steps: list[tuple[int, str]]) -> None:
    ino = view.ino(b"dir")
    throughout = set(view.names(b"dir"))
    seen: list[bytes] = []
    after = 0
    for number, step in [*steps, *[(0, "read")] * 30]:
        path = b"dir/%d" % number
        there = view.find(path) is not None
        if step == "make" and not there:
            view.make_file(path)
        elif step == "remove" and there:
            view.unlink(path)
            throughout.discard(b"%d" % number)
        elif step == "rename" and there:
            view.rename(path, b"dir/renamed%d" % number)
            throughout.discard(b"%d" % number)
        elif step == "read":
            for name, offset in listing(view, ino, after, 2):
                assert offset > after
                seen.append(name)
                after = offset
    counted = {name: seen.count(name) for name in throughout}
    assert counted == dict.fromkeys(throughout, 1)


# ---- making ----

@pytest.mark.parametrize("where", ["merged", "lower only", "upper only"])
def test_what_is_made_shows_and_lands_in_upper(
    world: World, top: Path, where: str, lowers_untouched: Callable[[], None]
) -> None:
    if where != "upper only":
        put(top / "dir" / "old")
    if where != "lower only":
        put(world.upper / "dir" / "older")
    lowers_untouched()
    view = world.open()
    view.make_file(b"dir/file", b"x", 0o640)
    view.mkdir(b"dir/sub", 0o750)
    view.symlink(b"target", b"dir/link")
    view.mknod(b"dir/fifo", stat.S_IFIFO | 0o600)
    for name in (b"dir/file", b"dir/sub", b"dir/link", b"dir/fifo"):
        assert view.entry(name).mode == f"{stat.S_IMODE((world.upper / os.fsdecode(name)).lstat().st_mode):04o}"
    assert view.entry(b"dir/file").mode == "0640"
    before = view.snapshot()
    assert world.reopen(view).snapshot() == before


@pytest.mark.parametrize("existing", ["upper", "top"])
@pytest.mark.parametrize("kind", ["file", "dir", "link"])
def test_making_what_is_there_is_eexist(world: World, top: Path, existing: str, kind: str) -> None:
    where = world.upper if existing == "upper" else top
    {"file": lambda p: p.touch(), "dir": lambda p: p.mkdir(), "link": lambda p: p.symlink_to("x")}[kind](where / "it")
    put(top / "other")
    view = world.open()
    actions: list[Callable[[], object]] = [
        lambda: view.make_file(b"it"), lambda: view.mkdir(b"it"), lambda: view.symlink(b"x", b"it"),
        lambda: view.mknod(b"it", stat.S_IFIFO | 0o600), lambda: view.link(b"other", b"it"),
    ]
    assert [code_of(action) for action in actions] == [errno.EEXIST] * 5


def test_a_name_of_256_bytes_is_too_long_for_everything(world: World, top: Path) -> None:
    put(top / "file")
    view = world.open()
    long = b"x" * (NAME_MAX + 1)
    actions: list[Callable[[], object]] = [
        lambda: view.find(long), lambda: view.make_file(long), lambda: view.mkdir(long), lambda: view.symlink(b"x", long),
        lambda: view.link(b"file", long), lambda: view.unlink(long), lambda: view.rmdir(long),
        lambda: view.rename(b"file", long), lambda: view.rename(long, b"file"),
    ]
    assert [code_of(action) for action in actions] == [errno.ENAMETOOLONG] * len(actions)


def test_verbs_for_directories_refuse_files(world: World, top: Path) -> None:
    put(top / "file")
    view = world.open()
    ino = view.ino(b"file")
    actions: list[Callable[[], object]] = [
        lambda: view.union.lookup(ino, b"x"), lambda: view.union.make_file(ino, b"x", 0o644, ME),
        lambda: list(view.union.entries(ino, 0)), lambda: view.union.unlink(ino, b"x"), lambda: view.rmdir(b"file"),
    ]
    assert [code_of(action) for action in actions] == [errno.ENOTDIR] * len(actions)


def test_a_number_nobody_was_told_is_stale(world: World) -> None:
    view = world.open()
    actions: list[Callable[[], object]] = [
        lambda: view.union.getattr(99), lambda: view.union.read(99, 0, 1), lambda: view.union.write(99, 0, b"x"),
        lambda: view.union.lookup(99, b"x"), lambda: view.union.readlink(99), lambda: view.union.setattr(99, Change()),
        lambda: view.union.open(99, os.O_RDONLY),
    ]
    assert [code_of(action) for action in actions] == [errno.ESTALE] * len(actions)


def test_a_new_object_belongs_to_its_maker(world: World, root: None) -> None:
    view = world.open()
    user = Caller(1000, 1001)
    view.mkdir(b"dir", 0o755, user)
    view.make_file(b"file", b"x", 0o4755, user)
    view.symlink(b"x", b"link", user)
    view.mknod(b"fifo", stat.S_IFIFO | 0o640, caller=user)
    for name, mode in ((b"dir", 0o755), (b"file", 0o4755), (b"link", 0o777), (b"fifo", 0o640)):
        st = view.stat(name)
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (1000, 1001, mode)
    assert os.listdir(world.building) == []


@pytest.mark.parametrize("caller", [ME, Caller(1000, 1001)], ids=["the server itself", "another user"])
@pytest.mark.parametrize("fresh", [True, False], ids=["a free name", "over a whiteout"])
class TestInheritance:
    """Made in place or in work, the result is the same."""

    @pytest.fixture
    def view(self, world: World, top: Path, root: None, fresh: bool) -> View:
        (top / "dir").mkdir()
        for name in ("file", "sub", "link"):
            if not fresh:
                put(top / "dir" / name)
        view = world.open()
        if not fresh:
            for covered in (b"file", b"sub", b"link"):
                view.unlink(b"dir/" + covered)
        return view

    def test_of_the_group_of_a_setgid_directory(self, view: View, caller: Caller, fresh: bool) -> None:
        view.change(b"dir", Change(gid=777))
        view.chmod(b"dir", 0o2775)
        view.make_file(b"dir/file", b"", 0o644, caller)
        view.mkdir(b"dir/sub", 0o755, caller)
        view.symlink(b"x", b"dir/link", caller)
        assert [view.stat(b"dir/" + name).st_gid for name in (b"file", b"sub", b"link")] == [777] * 3
        assert view.entry(b"dir/sub").mode == "2755"
        assert view.entry(b"dir/file").mode == "0644"

    def test_of_a_default_acl(self, view: View, caller: Caller, fresh: bool) -> None:
        default = acl.encode(7, 5, 0, users={1234: 7}, mask=7)
        view.union.setxattr(view.ino(b"dir"), acl.DEFAULT.encode(), default)
        view.make_file(b"dir/file", b"", 0o664, caller)
        view.mkdir(b"dir/sub", 0o775, caller)
        view.symlink(b"x", b"dir/link", caller)
        assert view.xattrs(b"dir/file") == {acl.ACCESS.encode(): acl.encode(6, 5, 0, users={1234: 7}, mask=6)}
        assert view.xattrs(b"dir/sub") == {
            acl.ACCESS.encode(): acl.encode(7, 5, 0, users={1234: 7}, mask=7), acl.DEFAULT.encode(): default
        }
        assert view.xattrs(b"dir/link") == {}
        assert (view.entry(b"dir/file").mode, view.entry(b"dir/sub").mode) == ("0660", "0770")


@pytest.mark.parametrize(
    ("caller", "expected"),
    [(Caller(1000, 777), "2775"), (Caller(1000, 5, lambda gid: gid == 777), "2775"), (Caller(1000, 5), "0775")],
    ids=["owning group", "a further group", "no member"],
)
def test_a_setgid_file_is_made_by_members_of_the_group_only(
    world: World, root: None, caller: Caller, expected: str
) -> None:
    view = world.open()
    view.mkdir(b"dir")
    view.change(b"dir", Change(gid=777))
    view.chmod(b"dir", 0o2777)
    view.make_file(b"dir/file", b"", 0o2775, caller)
    assert view.entry(b"dir/file").mode == expected


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFCHR | 0o666])
def test_nobody_makes_a_whiteout_by_mknod(world: World, kind: int) -> None:
    view = world.open()
    assert code_of(lambda: view.mknod(b"device", kind, 0)) == errno.EPERM
    assert view.names() == []


def test_devices_are_made(world: World, root: None) -> None:
    view = world.open()
    view.mknod(b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    view.mknod(b"block", stat.S_IFBLK | 0o660, 0)
    assert view.entry(b"null").rdev == (1, 3)
    assert view.entry(b"block").kind == "block device"


def test_a_failed_make_leaves_nothing(world: World, top: Path) -> None:
    put(top / "dir" / "file")
    view = world.open()
    view.unlink(b"dir/file")

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    for make in (lambda: view.make_file(b"dir/file"), lambda: view.mkdir(b"dir/file"), lambda: view.symlink(b"x", b"dir/file"),
                 lambda: view.mknod(b"dir/file", stat.S_IFIFO), lambda: view.link(b"dir/other", b"dir/file")):
        view.find(b"dir/other") or view.make_file(b"dir/other")
        with pytest.MonkeyPatch.context() as patch, no_descriptor_left():
            patch.setattr(files, "renameat2", fail)
            assert code_of(make) == errno.ENOSPC
        assert os.listdir(world.building) == []
        assert view.names(b"dir") == [b"other"]
    view.make_file(b"dir/file", b"now")
    assert view.read(b"dir/file") == b"now"


# ---- removing ----

def test_removing_a_lower_file_leaves_a_whiteout(
    world: World, top: Path, lowers_untouched: Callable[[], None]
) -> None:
    put(top / "dir" / "file")
    lowers_untouched()
    view = world.open()
    view.unlink(b"dir/file")
    assert is_whiteout(world.upper / "dir" / "file")
    assert view.names(b"dir") == []
    assert world.reopen(view).names(b"dir") == []


def test_removing_an_upper_file_with_nothing_below_leaves_nothing(world: World, top: Path) -> None:
    put(top / "dir" / "other")
    view = world.open()
    view.make_file(b"dir/file")
    view.unlink(b"dir/file")
    assert os.listdir(world.upper / "dir") == []


def test_removing_a_copied_file_leaves_a_whiteout_in_one_step(world: World, top: Path) -> None:
    put(top / "file")
    view = world.open()
    view.write(b"file", b"x")
    view.unlink(b"file")
    assert is_whiteout(world.upper / "file")
    assert os.listdir(world.building) == []


@pytest.mark.parametrize("kind", ["lower", "merged", "copied", "upper over file"])
def test_removing_a_directory_over_something_leaves_a_whiteout(world: World, top: Path, base: Path, kind: str) -> None:
    if kind == "upper over file":
        put(base / "dir", b"file below")
        (world.upper / "dir").mkdir()
    else:
        (top / "dir").mkdir()
        (base / "dir").mkdir()
        if kind == "merged":
            (world.upper / "dir").mkdir()
    view = world.open()
    if kind == "copied":
        view.chmod(b"dir", 0o700)
    view.rmdir(b"dir")
    assert is_whiteout(world.upper / "dir")
    assert view.names() == []
    assert world.reopen(view).names() == []


@pytest.mark.parametrize("where", ["upper", "top", "both"])
def test_a_directory_with_something_in_it_is_not_removed(world: World, top: Path, where: str) -> None:
    for layer in {"upper": [world.upper], "top": [top], "both": [world.upper, top]}[where]:
        put(layer / "dir" / layer.name)
    view = world.open()
    assert code_of(lambda: view.rmdir(b"dir")) == errno.ENOTEMPTY


def test_a_directory_emptied_by_whiteouts_is_removed_with_them(world: World, top: Path) -> None:
    put(top / "dir" / "one")
    put(top / "dir" / "two")
    view = world.open()
    view.unlink(b"dir/one")
    view.unlink(b"dir/two")
    view.rmdir(b"dir")
    assert is_whiteout(world.upper / "dir")
    assert os.listdir(world.building) == []


def test_the_wrong_verb_for_the_kind_is_refused(world: World, top: Path) -> None:
    (top / "dir").mkdir()
    put(top / "file")
    view = world.open()
    assert code_of(lambda: view.unlink(b"dir")) == errno.EISDIR
    assert code_of(lambda: view.rmdir(b"file")) == errno.ENOTDIR
    assert code_of(lambda: view.unlink(b"nothing")) == errno.ENOENT
    assert code_of(lambda: view.rmdir(b"nothing")) == errno.ENOENT


@pytest.mark.parametrize("old", ["file", "dir", "merged dir"])
@pytest.mark.parametrize("new", ["file", "dir", "link", "fifo"])
def test_what_is_made_over_a_whiteout_takes_its_place(world: World, top: Path, base: Path, old: str, new: str) -> None:
    if old == "file":
        put(top / "it")
    else:
        (top / "it").mkdir()
        if old == "merged dir":
            put(base / "it" / "below")
    view = world.open()
    if old == "file":
        view.unlink(b"it")
    else:
        if old == "merged dir":
            view.unlink(b"it/below")
        view.rmdir(b"it")
    {"file": lambda: view.make_file(b"it", b"new"), "dir": lambda: view.mkdir(b"it"),
     "link": lambda: view.symlink(b"x", b"it"), "fifo": lambda: view.mknod(b"it", stat.S_IFIFO | 0o600)}[new]()
    if new == "dir":
        assert view.names(b"it") == []
        assert marked(world.upper / "it", "opaque") == b"y"
    before = view.snapshot()
    assert os.listdir(world.building) == []
    view = world.reopen(view)
    assert view.snapshot() == before
    (view.rmdir if new == "dir" else view.unlink)(b"it")
    assert is_whiteout(world.upper / "it")


def test_in_a_recreated_directory_lower_entries_do_not_come_back(world: World, top: Path) -> None:
    put(top / "dir" / "sub" / "old")
    view = world.open()
    view.unlink(b"dir/sub/old")
    view.rmdir(b"dir/sub")
    view.rmdir(b"dir")
    view.mkdir(b"dir")
    view.mkdir(b"dir/sub")
    view.make_file(b"dir/sub/new")
    assert view.names(b"dir/sub") == [b"new"]
    assert marked(world.upper / "dir" / "sub", "opaque") is None, "below an opaque directory no mark is needed"
    view = world.reopen(view)
    assert view.names(b"dir/sub") == [b"new"]
    view.unlink(b"dir/sub/new")
    assert os.listdir(world.upper / "dir" / "sub") == [], "and no whiteout either"


def test_a_directory_made_where_only_a_file_was_is_still_opaque_enough(world: World, top: Path, base: Path) -> None:
    put(top / "it")
    put(base / "it" / "old")
    view = world.open()
    view.unlink(b"it")
    view.mkdir(b"it")
    assert view.names(b"it") == []
    assert world.reopen(view).names(b"it") == []


def test_whiteouts_are_not_made_in_directories_that_are_not_merged(world: World) -> None:
    view = world.open()
    view.mkdir(b"dir")
    view.make_file(b"dir/file")
    view.unlink(b"dir/file")
    view.mkdir(b"dir/sub")
    view.rmdir(b"dir/sub")
    assert os.listdir(world.upper / "dir") == []


# ---- data ----

def test_a_file_is_read_from_where_it_is_and_written_in_upper(
    world: World, top: Path, lowers_untouched: Callable[[], None]
) -> None:
    put(top / "file", b"0123456789")
    lowers_untouched()
    view = world.open()
    ino = view.ino(b"file")
    assert view.union.read(ino, 2, 3) == b"234"
    assert view.union.read(ino, 10, 5) == b""
    assert view.union.write(ino, 8, b"abcd") == 4
    assert view.union.read(ino, 0, 100) == b"01234567abcd"
    assert view.union.write(ino, 20, b"z") == 1
    assert view.union.read(ino, 12, 100) == bytes(8) + b"z"
    assert (top / "file").read_bytes() == b"0123456789"


@pytest.mark.parametrize(
    ("flags", "copied", "size"),
    [(os.O_RDONLY, False, 3), (os.O_RDONLY | os.O_TRUNC, True, 0), (os.O_WRONLY, True, 3), (os.O_RDWR, True, 3),
     (os.O_RDWR | os.O_TRUNC, True, 0), (os.O_WRONLY | os.O_APPEND, True, 3)],
)
def test_opening_copies_up_what_will_be_written(world: World, top: Path, flags: int, copied: bool, size: int) -> None:
    put(top / "file", b"old")
    view = world.open()
    view.union.open(view.ino(b"file"), flags)
    assert (world.upper / "file").exists() is copied
    assert view.stat(b"file").st_size == size


@pytest.mark.parametrize(("mode", "left"), [(0o6755, "0755"), (0o4644, "0644"), (0o2644, "2644"), (0o2610, "0610")])
def test_opening_to_truncate_takes_suid_away_where_it_is_told_to(
    world: World, top: Path, root: None, mode: int, left: str
) -> None:
    """sgid of what the group may not execute is a mark of mandatory locking and stays."""
    for name in ("told", "not told"):
        put(top / name, b"old", mode)
    view = world.open()
    view.union.open(view.ino(b"told"), os.O_WRONLY | os.O_TRUNC, drop_suid=Caller(1000, os.getegid()))
    view.union.open(view.ino(b"not told"), os.O_WRONLY | os.O_TRUNC)
    assert (view.entry(b"told").mode, view.entry(b"not told").mode) == (left, f"{mode:04o}")


def test_readers_of_a_lower_file_see_what_is_written_to_its_copy(world: World, top: Path) -> None:
    put(top / "file", b"old")
    view = world.open()
    ino = view.ino(b"file")
    assert view.union.read(ino, 0, 10) == b"old"
    view.union.write(ino, 0, b"NEW")
    assert view.union.read(ino, 0, 10) == b"NEW"


def test_sync_is_for_what_is_in_upper(world: World, top: Path) -> None:
    put(top / "file", b"old")
    put(top / "dir" / "file")
    view = world.open(volatile=False)
    assert view.union.sync_fd(view.ino(b"file")) is None
    view.write(b"file", b"x")
    view.chmod(b"dir", 0o700)
    for path in (b"file", b"dir"):
        fd = view.union.sync_fd(view.ino(path))
        assert fd is not None
        os.fsync(fd)
        os.close(fd)
    world.close(view)
    view = world.open(volatile=True)
    view.write(b"file", b"y")
    assert view.union.sync_fd(view.ino(b"file")) is None


# ---- attributes ----

def test_attributes_change_on_the_copy_only(
    world: World, top: Path, root: None, lowers_untouched: Callable[[], None]
) -> None:
    put(top / "file", b"0123456789")
    lowers_untouched()
    view = world.open()
    st = view.change(b"file", Change(size=5, mode=0o4755, uid=1, gid=2, atime_ns=10**9 + 1, mtime_ns=2 * 10**9 + 2))
    assert (st.st_size, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (5, 0o4755, 1, 2)
    assert (st.st_atime_ns, st.st_mtime_ns) == (10**9 + 1, 2 * 10**9 + 2)
    st = view.change(b"file", Change(uid=5))
    assert (st.st_uid, st.st_gid) == (5, 2)
    assert stat.S_IMODE(st.st_mode) == 0o755, "a change of owner takes suid away"
    st = view.change(b"file", Change(atime_ns=7))
    assert (st.st_atime_ns, st.st_mtime_ns) == (7, 2 * 10**9 + 2)


def test_a_change_of_nothing_is_a_stat(world: World, top: Path) -> None:
    put(top / "file", b"x", 0o640)
    view = world.open()
    st = view.change(b"file", Change())
    assert (st.st_size, stat.S_IMODE(st.st_mode)) == (1, 0o640)


def test_the_root_of_the_union_is_changed_like_any_directory(world: World, root: None) -> None:
    view = world.open()
    view.change(b"", Change(mode=0o1777, uid=3, gid=4, mtime_ns=5))
    view.union.setxattr(1, b"user.root", b"1")
    st = world.upper.stat()
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns) == (0o1777, 3, 4, 5)
    assert view.xattrs(b"") == {b"user.root": b"1"}
    view.union.removexattr(1, b"user.root")
    assert view.xattrs(b"") == {}


# ---- xattrs ----

def test_marks_are_hidden_and_what_looks_like_one_is_escaped(world: World, top: Path, root: None) -> None:
    put(top / "dir" / "file", b"x")
    view = world.open()
    ino = view.ino(b"dir/file")
    view.union.setxattr(ino, b"trusted.overlay.foo", b"1")
    assert os.getxattr(world.upper / "dir" / "file", "trusted.overlay.overlay.foo") == b"1"
    assert view.xattrs(b"dir/file") == {b"trusted.overlay.foo": b"1"}
    assert view.xattrs(b"dir") == {}
    assert code_of(lambda: view.union.getxattr(view.ino(b"dir"), b"trusted.overlay.impure")) == errno.ENODATA
    view.union.setxattr(view.ino(b"dir"), b"trusted.overlay.opaque", b"y")
    assert view.names(b"dir") == [b"file"]
    view = world.reopen(view)
    assert view.names(b"dir") == [b"file"], "a user's own opaque is data"
    view.union.removexattr(view.ino(b"dir/file"), b"trusted.overlay.foo")
    assert view.xattrs(b"dir/file") == {}


def test_a_nested_overlay_finds_its_escaped_marks(world: World, top: Path, root: None) -> None:
    """A layer that was itself written through an overlay: one prefix is taken off per level."""
    put(top / "file", b"x")
    os.setxattr(top / "file", "trusted.overlay.overlay.origin", b"inner")
    view = world.open()
    assert view.xattrs(b"file") == {b"trusted.overlay.origin": b"inner"}
    view.chmod(b"file", 0o600)
    assert view.xattrs(b"file") == {b"trusted.overlay.origin": b"inner"}


def test_our_prefix_alone_names_no_attribute(world: World, top: Path, root: None) -> None:
    put(top / "file")
    view = world.open()
    ino = view.ino(b"file")
    for action in (lambda: view.union.getxattr(ino, b"trusted.overlay."),
                   lambda: view.union.setxattr(ino, b"trusted.overlay.", b"")):
        assert code_of(action) == errno.EINVAL


def test_create_and_replace_are_honoured(world: World, top: Path) -> None:
    put(top / "file")
    view = world.open()
    ino = view.ino(b"file")
    assert code_of(lambda: view.union.setxattr(ino, b"user.a", b"1", os.XATTR_REPLACE)) == errno.ENODATA
    view.union.setxattr(ino, b"user.a", b"1", os.XATTR_CREATE)
    assert code_of(lambda: view.union.setxattr(ino, b"user.a", b"2", os.XATTR_CREATE)) == errno.EEXIST
    view.union.setxattr(ino, b"user.a", b"2", os.XATTR_REPLACE)
    assert view.union.getxattr(ino, b"user.a") == b"2"


def test_removing_what_is_not_there_copies_nothing_up(world: World, top: Path) -> None:
    put(top / "file")
    view = world.open()
    assert code_of(lambda: view.union.removexattr(view.ino(b"file"), b"user.a")) == errno.ENODATA
    assert os.listdir(world.upper) == []


@pytest.mark.parametrize(("selinux", "code"), [(False, errno.EOPNOTSUPP), (True, errno.ENODATA)])
def test_labels_are_not_known_where_there_is_no_selinux(
    world: World, top: Path, monkeypatch: pytest.MonkeyPatch, selinux: bool, code: int
) -> None:
    """So that ls, which looks for one on every object, gives up at the first; who removes one is told what is true."""
    put(top / "file")
    monkeypatch.setattr(xattrs, "selinux_is_on", lambda: selinux)
    view = world.open()
    ino = view.ino(b"file")
    assert code_of(lambda: view.union.getxattr(ino, b"security.selinux")) == code
    assert code_of(lambda: view.union.require_xattr(ino, b"security.selinux")) == errno.ENODATA
    assert code_of(lambda: view.union.removexattr(ino, b"security.selinux")) == errno.ENODATA
    assert code_of(lambda: view.union.getxattr(ino, b"user.a")) == errno.ENODATA
    assert os.listdir(world.upper) == []


def test_a_label_that_is_there_is_shown_without_selinux_too(world: World, top: Path, root: None) -> None:
    os.setxattr(put(top / "file"), "security.selinux", b"system_u:object_r:etc_t:s0")
    view = world.open()
    assert view.union.getxattr(view.ino(b"file"), b"security.selinux") == b"system_u:object_r:etc_t:s0"


def test_a_lower_attribute_is_removed_from_the_copy(world: World, top: Path) -> None:
    os.setxattr(put(top / "file"), "user.a", b"1")
    view = world.open()
    view.union.removexattr(view.ino(b"file"), b"user.a")
    assert view.xattrs(b"file") == {}
    assert os.getxattr(top / "file", "user.a") == b"1"


def test_that_a_file_has_no_capabilities_is_remembered_as_long_as_it_is_true(world: World, top: Path, root: None) -> None:
    name, value = b"security.capability", bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(put(top / "has"), name, value)
    put(top / "lacks")
    view = world.open()
    lower = [view.ino(b"has"), view.ino(b"lacks")]
    assert [view.union.lacks_capability(ino) for ino in lower] == [False, False]  # nobody has looked
    assert view.union.getxattr(lower[0], name) == value
    assert code_of(lambda: view.union.getxattr(lower[1], name)) == errno.ENODATA
    made = view.make_file(b"made").ino
    assert [view.union.lacks_capability(ino) for ino in (*lower, made)] == [False, True, True]
    for ino in (lower[1], made):
        view.union.setxattr(ino, name, value)
        assert view.union.getxattr(ino, name) == value and not view.union.lacks_capability(ino)
        view.union.removexattr(ino, name)
        assert code_of(lambda ino=ino: view.union.getxattr(ino, name)) == errno.ENODATA  # type: ignore[misc]
        assert view.union.lacks_capability(ino)
    assert not view.union.lacks_capability(999_999)


def test_a_directory_that_was_just_made_is_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    view = world.open()
    view.names()
    monkeypatch.setattr(Layer, "scan", lambda *_: pytest.fail("read"))
    view.mkdir(b"one")
    view.mkdir(b"one/two")
    view.make_file(b"one/two/file")
    assert (view.names(b"one"), view.names(b"one/two")) == ([b"two"], [b"file"])


def test_the_attributes_of_an_open_file_are_changed_where_it_is_now(world: World) -> None:
    view = world.open()
    ino = view.make_file(b"file", b"data").ino
    view.rename(b"file", b"moved")
    view.make_file(b"file", b"other")
    view.union.unlink(*view.split(b"moved"))
    _, st = view.union.setattr(ino, Change(mode=0o600, atime_ns=5, mtime_ns=7))
    view.union.setxattr(ino, b"user.a", b"1")
    assert (st.st_mode & 0o777, st.st_atime_ns, st.st_mtime_ns, st.st_size) == (0o600, 5, 7, 4)
    assert view.union.getattr(ino)[1] == st
    other = view.stat(b"file")
    assert other.st_mode & 0o777 == 0o644 and other.st_mtime_ns != 7 and view.xattrs(b"file") == {}


def test_without_acl_support_acls_are_refused_and_not_shown(world: World, top: Path) -> None:
    put(top / "file")
    os.setxattr(top / "file", acl.ACCESS, acl.encode(6, 4, 4, users={5: 4}))
    view = world.open(acl=False)
    ino = view.ino(b"file")
    name = acl.ACCESS.encode()
    assert view.union.listxattr(ino) == []
    for action in (lambda: view.union.getxattr(ino, name), lambda: view.union.setxattr(ino, name, b""),
                   lambda: view.union.removexattr(ino, name)):
        assert code_of(action) == errno.EOPNOTSUPP


# ---- hard links ----

def test_a_hard_link_to_a_lower_file_links_its_copy(world: World, top: Path) -> None:
    put(top / "file", b"x")
    view = world.open()
    view.link(b"file", b"link")
    assert view.ino(b"file") == view.ino(b"link")
    assert view.nlink(b"file") == 2
    view.write(b"link", b"y")
    assert view.read(b"file") == b"y"
    assert (world.upper / "file").stat().st_ino == (world.upper / "link").stat().st_ino


def test_a_hard_link_takes_the_place_of_a_whiteout(world: World, top: Path) -> None:
    put(top / "gone")
    put(top / "file", b"x")
    view = world.open()
    view.unlink(b"gone")
    view.link(b"file", b"gone")
    assert view.read(b"gone") == b"x"
    view.unlink(b"gone")
    assert is_whiteout(world.upper / "gone")
    assert world.reopen(view).names() == [b"file"]


@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_what_is_no_regular_file_is_linked_itself(world: World, top: Path, kind: str) -> None:
    (top / "it").symlink_to("/etc") if kind == "symlink" else os.mkfifo(top / "it")
    view = world.open()
    view.link(b"it", b"link")
    assert view.entry(b"link").kind == kind
    assert view.nlink(b"it") == 2
    before = view.snapshot()
    assert world.reopen(view).snapshot() == before


def test_a_directory_is_not_linked(world: World, top: Path) -> None:
    (top / "dir").mkdir()
    view = world.open()
    assert code_of(lambda: view.link(b"dir", b"link")) == errno.EPERM


# ---- without an upper ----

def test_without_an_upper_every_change_is_erofs(world: World, top: Path) -> None:
    put(top / "dir" / "file", b"x")
    os.setxattr(top / "dir" / "file", "user.a", b"1")
    view = world.open(writable=False)
    ino = view.ino(b"dir/file")
    actions: list[Callable[[], object]] = [
        lambda: view.write(b"dir/file", b"y"), lambda: view.chmod(b"dir/file", 0o600), lambda: view.chmod(b"dir", 0o700),
        lambda: view.make_file(b"dir/new"), lambda: view.mkdir(b"dir/new"), lambda: view.symlink(b"x", b"dir/new"),
        lambda: view.mknod(b"dir/new", stat.S_IFIFO), lambda: view.link(b"dir/file", b"dir/new"),
        lambda: view.unlink(b"dir/file"), lambda: view.rename(b"dir/file", b"dir/new"),
        lambda: view.union.setxattr(ino, b"user.b", b"1"), lambda: view.union.removexattr(ino, b"user.a"),
        lambda: view.union.open(ino, os.O_RDWR), lambda: view.union.open(ino, os.O_TRUNC),
    ]
    assert [code_of(action) for action in actions] == [errno.EROFS] * len(actions)
    assert view.read(b"dir/file") == b"x"
    assert view.union.sync_fd(ino) is None


def test_a_whole_tree_reads_as_it_is_on_disk(world: World, top: Path) -> None:
    put(top / "dir" / "file", b"x" * 100, 0o600)
    (top / "dir" / "link").symlink_to("file")
    os.mkfifo(top / "fifo")
    whiteout(top / "gone")
    world.lowers = [top]
    view = world.open(writable=False)
    wanted = snapshot(top)
    del wanted[b"gone"]
    shown = view.snapshot()
    assert shown.keys() == wanted.keys()
    assert {path: entry for path, entry in shown.items() if path != b"."} == {
        path: entry for path, entry in wanted.items() if path != b"."}


# ---- descriptors and memory ----

def test_however_many_are_looked_at_descriptors_stay_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "share_of_descriptors", lambda used: 16)
    for number in range(60):
        put(world.lowers[number % 2] / f"dir{number}" / "file", b"%d" % number)
    view = world.open()
    for number in range(60):
        assert view.read(b"dir%d/file" % number) == b"%d" % number
        view.write(b"dir%d/file" % number, b"x")
        assert view.union.tree.open_descriptors <= 32
    assert [view.read(b"dir%d/file" % number)[:1] for number in range(60)] == [b"x"] * 60


def test_forgetting_everything_leaves_the_root_alone(world: World, top: Path) -> None:
    for number in range(20):
        put(top / f"dir{number}" / "sub" / "file", b"x")
    view = world.open()
    for number in range(20):
        view.read(b"dir%d/sub/file" % number)
    assert len(view.union.tree.nodes) == 61
    view.forget()
    assert len(view.union.tree.nodes) == 1
    assert view.union.tree.root.children == 0
    assert view.read(b"dir7/sub/file") == b"x"


def test_an_object_that_vanished_below_is_enoent_and_not_more(world: World, top: Path) -> None:
    """The layers belong to us, but a broken one must not break the mount."""
    put(top / "dir" / "file", b"x")
    put(top / "dir" / "other", b"x")
    view = world.open()
    assert view.names(b"dir") == [b"file", b"other"]
    (top / "dir" / "file").unlink()
    assert view.find(b"dir/file") is None
    assert view.read(b"dir/other") == b"x"
