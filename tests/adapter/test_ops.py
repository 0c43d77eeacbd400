"""The handlers on a fake core: arguments unwrapped, answers wrapped, errors turned into errnos."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3
import pytest
import trio
from pyfuse3 import FileHandleT, FUSEError, InodeT, ModeT

from tests.adapter.fake import ROOT, TIMEOUT, USER, FakeDraft, FakeUnion, attributes, fields, operations
from unionfs.fuse.ops import Operations
from unionfs.overlay.make import Caller
from unionfs.overlay.union import Change

TOP, FILE = InodeT(1), InodeT(7)
FH = FileHandleT(7)


@pytest.fixture
def union() -> FakeUnion:
    made = FakeUnion()
    made.names[1, b"file"] = 7
    return made


@pytest.fixture
def ops(union: FakeUnion) -> Operations:
    return operations(union)


def asked(union: FakeUnion) -> tuple[Any, ...]:
    """The last call, without the Caller's way to ask for groups, which equals nothing."""
    return tuple((what.uid, what.gid) if isinstance(what, Caller) else what for what in union.asked[-1])


def assert_describes(entry: pyfuse3.EntryAttributes, ino: int, union: FakeUnion) -> None:
    st = union.st
    assert (entry.st_ino, entry.st_nlink) == (ino, 42), "number and links are the union's, not the backing object's"
    for name in ("st_mode", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks", "st_atime_ns",
                 "st_mtime_ns", "st_ctime_ns"):
        assert getattr(entry, name) == getattr(st, name), name
    assert (entry.entry_timeout, entry.attr_timeout) == (TIMEOUT, TIMEOUT)


# ---- one verb after the other ----

async def test_lookup_describes_what_it_finds(ops: Operations, union: FakeUnion) -> None:
    assert_describes(await ops.lookup(TOP, b"file", ROOT), 7, union)
    assert asked(union) == ("lookup", 1, b"file")


async def test_lookup_of_nothing_is_an_answer_the_kernel_may_remember(ops: Operations) -> None:
    entry = await ops.lookup(TOP, b"nothing", ROOT)
    assert (entry.st_ino, entry.entry_timeout) == (0, TIMEOUT)


async def test_getattr_describes(ops: Operations, union: FakeUnion) -> None:
    assert_describes(await ops.getattr(FILE, ROOT), 7, union)


async def test_forget_passes_every_number_on(ops: Operations, union: FakeUnion) -> None:
    await ops.forget([(FILE, 3), (InodeT(8), 1)])
    assert union.asked == [("forget", 7, 3), ("forget", 8, 1)]


async def test_readlink_is_bytes(ops: Operations) -> None:
    assert await ops.readlink(FILE, ROOT) == b"tar\xffget"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda ops: ops.mkdir(TOP, b"n\xff", ModeT(0o1750), USER), ("make_directory", 1, b"n\xff", 0o1750, (1000, 1001))),
        (lambda ops: ops.mknod(TOP, b"n", ModeT(stat.S_IFCHR | 0o600), 259, USER),
         ("make_special", 1, b"n", stat.S_IFCHR | 0o600, 259, (1000, 1001))),
        (lambda ops: ops.symlink(TOP, b"n", b"/to", USER), ("make_symlink", 1, b"n", b"/to", (1000, 1001))),
        (lambda ops: ops.link(FILE, TOP, b"n", USER), ("link", 7, 1, b"n")),
    ],
    ids=["mkdir", "mknod", "symlink", "link"],
)
async def test_what_is_made_is_described(
    ops: Operations, union: FakeUnion, make: Callable[[Operations], Awaitable[pyfuse3.EntryAttributes]], expected: tuple[Any, ...]
) -> None:
    entry = await make(ops)
    assert asked(union) == expected
    assert_describes(entry, entry.st_ino, union)
    assert union.nodes[entry.st_ino].lookups == 1


async def test_unlink_rmdir_and_rename_pass_on_what_they_got(ops: Operations, union: FakeUnion) -> None:
    await ops.unlink(TOP, b"a", ROOT)
    await ops.rmdir(TOP, b"b", ROOT)
    await ops.rename(TOP, b"a", InodeT(2), b"b", pyfuse3.RENAME_EXCHANGE, ROOT)
    assert union.asked == [("unlink", 1, b"a"), ("rmdir", 1, b"b"), ("rename", 1, b"a", 2, b"b", 2)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), Change()),
        (("size",), Change(size=5)),
        (("mode",), Change(mode=0o100600)),
        (("uid", "gid"), Change(uid=3, gid=4)),
        (("atime",), Change(atime_ns=10)),
        (("mtime", "ctime"), Change(mtime_ns=20)),
        (("size", "mode", "uid", "gid", "atime", "mtime"),
         Change(size=5, mode=0o100600, uid=3, gid=4, atime_ns=10, mtime_ns=20)),
    ],
    ids=["nothing", "size", "mode", "owner", "atime", "mtime", "everything"],
)
async def test_setattr_changes_the_fields_it_was_told(
    ops: Operations, union: FakeUnion, names: tuple[str, ...], expected: Change
) -> None:
    wanted = attributes(st_size=5, st_mode=0o100600, st_uid=3, st_gid=4, st_atime_ns=10, st_mtime_ns=20)
    entry = await ops.setattr(FILE, wanted, fields(*names), None, ROOT)
    assert_describes(entry, 7, union)
    assert union.asked[-1][:3] == ("setattr", 7, expected)


async def test_xattrs_pass_through(ops: Operations, union: FakeUnion) -> None:
    assert await ops.getxattr(FILE, b"user.a", ROOT) == b"value"
    await ops.setxattr(FILE, b"user.a", b"1", ROOT)
    assert asked(union) == ("setxattr", 7, b"user.a", b"1")
    await ops.removexattr(FILE, b"user.a", ROOT)
    assert asked(union) == ("removexattr", 7, b"user.a")


async def test_removing_an_attribute_that_is_not_there_copies_nothing_up(ops: Operations, union: FakeUnion) -> None:
    union.drafts[7] = FakeDraft()
    union.errors["require_xattr"] = OSError(errno.ENODATA, "none")
    with pytest.raises(FUSEError) as caught:
        await ops.removexattr(FILE, b"user.a", ROOT)
    assert caught.value.errno == errno.ENODATA
    assert union.count("begin_copy_up") == 0


@pytest.mark.parametrize(("ctx", "expected"), [(ROOT, [b"trusted.x", b"user.y"]), (USER, [b"user.y"])])
async def test_trusted_attributes_are_listed_to_root_only(
    ops: Operations, union: FakeUnion, ctx: pyfuse3.RequestContext, expected: list[bytes]
) -> None:
    union.shown_xattrs = [b"trusted.x", b"user.y"]
    assert await ops.listxattr(FILE, ctx) == expected


async def test_statfs_keeps_every_field(ops: Operations) -> None:
    st = await ops.statfs(ROOT)
    assert (st.f_bsize, st.f_frsize, st.f_blocks, st.f_bfree, st.f_bavail) == (4096, 512, 1000, 900, 800)
    assert (st.f_files, st.f_ffree, st.f_favail, st.f_namemax) == (700, 600, 500, 255)


async def test_data_goes_by_number(ops: Operations, union: FakeUnion) -> None:
    info = await ops.open(FILE, os.O_RDONLY, ROOT)
    assert (info.fh, info.keep_cache) == (7, True)
    assert await ops.read(info.fh, 1, 2) == b"at"
    assert await ops.write(info.fh, 3, b"xyz") == 3
    assert union.asked[-1] == ("write", 7, 3, b"xyz")
    await ops.release(info.fh)


async def test_opening_for_reading_copies_nothing_up(ops: Operations, union: FakeUnion) -> None:
    await ops.open(FILE, os.O_RDONLY, ROOT)
    assert union.count("begin_copy_up") == 0


@pytest.mark.parametrize(("flags", "size"), [(os.O_WRONLY, None), (os.O_RDWR, None), (os.O_WRONLY | os.O_TRUNC, 0),
                                             (os.O_RDONLY | os.O_TRUNC, 0)])
async def test_opening_for_writing_copies_up_as_much_as_is_needed(
    ops: Operations, union: FakeUnion, flags: int, size: int | None
) -> None:
    union.drafts[7] = FakeDraft()
    await ops.open(FILE, flags, ROOT)
    assert union.asked[:2] == [("begin_copy_up", 7, size), ("publish", 7)]
    assert union.asked[2][:3] == ("open", 7, flags)


@pytest.mark.parametrize(("ctx", "expected"), [(ROOT, False), (USER, True)])
async def test_an_ordinary_user_who_truncates_takes_suid_away(
    ops: Operations, union: FakeUnion, ctx: pyfuse3.RequestContext, expected: bool
) -> None:
    await ops.open(FILE, os.O_WRONLY | os.O_TRUNC, ctx)
    caller = union.asked[-1][3]["drop_suid"]
    assert (caller is not None and caller.uid == USER.uid) is expected


async def test_create_makes_and_opens(ops: Operations, union: FakeUnion) -> None:
    info, entry = await ops.create(TOP, b"new", ModeT(0o640), os.O_RDWR | os.O_CREAT, USER)
    assert info.fh == entry.st_ino == union.names[1, b"new"]
    assert asked(union) == ("make_file", 1, b"new", 0o640, (1000, 1001))
    assert union.nodes[entry.st_ino].lookups == 1


async def test_create_of_what_somebody_else_made_meanwhile_opens_it(ops: Operations, union: FakeUnion) -> None:
    info, entry = await ops.create(TOP, b"file", ModeT(0o640), os.O_RDWR | os.O_CREAT | os.O_TRUNC, ROOT)
    assert (info.fh, entry.st_ino) == (7, 7)
    assert union.count("make_file") == 0
    assert ("begin_copy_up", 7, 0) in union.asked
    assert union.nodes[7].lookups == 1


async def test_create_that_fails_leaves_no_look_up_behind(ops: Operations, union: FakeUnion) -> None:
    """The kernel was not told of the number and will never forget it."""
    union.errors["open"] = OSError(errno.ENOSPC, "full")
    with pytest.raises(FUSEError):
        await ops.create(TOP, b"file", ModeT(0o640), os.O_RDWR | os.O_CREAT | os.O_TRUNC, ROOT)
    assert union.nodes[7].lookups == 0


async def test_exclusive_create_of_what_is_there_asks_the_union(ops: Operations, union: FakeUnion) -> None:
    union.errors["make_file"] = FileExistsError(errno.EEXIST, "there")
    with pytest.raises(FUSEError) as caught:
        await ops.create(TOP, b"file", ModeT(0o640), os.O_RDWR | os.O_CREAT | os.O_EXCL, ROOT)
    assert caught.value.errno == errno.EEXIST
    assert union.count("lookup") == 0


@pytest.mark.parametrize(("datasync", "expected"), [(True, "fdatasync"), (False, "fsync")])
async def test_fsync_syncs_in_a_thread_and_closes(
    ops: Operations, union: FakeUnion, monkeypatch: pytest.MonkeyPatch, datasync: bool, expected: str
) -> None:
    done: list[tuple[str, int]] = []
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd, name=name: done.append((name, fd)))
    union.fd = os.open("/dev/null", os.O_RDONLY)
    await ops.fsync(FH, datasync)
    assert done == [(expected, union.fd)]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(union.fd)


async def test_a_failed_fsync_is_told_and_closes(
    ops: Operations, union: FakeUnion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "disk")

    monkeypatch.setattr(os, "fsync", fail)
    union.fd = os.open("/dev/null", os.O_RDONLY)
    for sync in (ops.fsync, ops.fsyncdir):
        with pytest.raises(FUSEError) as caught:
            await sync(FH, False)
        assert caught.value.errno == errno.EIO
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(union.fd)
        union.fd = os.open("/dev/null", os.O_RDONLY)
    os.close(union.fd)


async def test_where_nobody_cares_fsync_does_nothing(ops: Operations) -> None:
    await ops.fsync(FH, False)
    await ops.fsyncdir(FH, True)


async def test_opendir_needs_nothing(ops: Operations, union: FakeUnion) -> None:
    assert await ops.opendir(InodeT(1), ROOT) == 1
    await ops.releasedir(FileHandleT(1))
    assert union.asked == []


def test_the_mount_is_ready_when_the_kernel_says_hello(union: FakeUnion) -> None:
    said = []
    ops = operations(union, on_ready=lambda: said.append("ready"))
    assert said == []
    ops.init()
    assert said == ["ready"]


def test_settings_reach_pyfuse3(union: FakeUnion) -> None:
    ops = operations(union, acl=False, writeback=True)
    assert (ops.enable_acl, ops.enable_writeback_cache, ops.supports_dot_lookup) == (False, True, False)
    assert operations(union).enable_acl is True


async def test_a_caller_who_is_gone_is_in_no_group(
    ops: Operations, union: FakeUnion, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {5, 6}

    def of(pid: int) -> set[int]:
        if not groups:
            raise FileNotFoundError
        return groups

    monkeypatch.setattr(pyfuse3, "get_sup_groups", of)
    await ops.mkdir(TOP, b"n", ModeT(0o755), USER)
    caller = union.asked[-1][-1]
    assert isinstance(caller, Caller)
    assert (caller.in_group(5), caller.in_group(7)) == (True, False)
    groups.clear()
    assert caller.in_group(5) is False


# ---- errors ----

VERBS: dict[str, Callable[[Operations], Awaitable[object]]] = {
    "lookup": lambda ops: ops.lookup(TOP, b"file", ROOT),
    "getattr": lambda ops: ops.getattr(FILE, ROOT),
    "readlink": lambda ops: ops.readlink(FILE, ROOT),
    "make_directory": lambda ops: ops.mkdir(TOP, b"n", ModeT(0o755), ROOT),
    "make_special": lambda ops: ops.mknod(TOP, b"n", ModeT(0o755), 0, ROOT),
    "make_symlink": lambda ops: ops.symlink(TOP, b"n", b"t", ROOT),
    "make_file": lambda ops: ops.create(TOP, b"n", ModeT(0o644), os.O_CREAT, ROOT),
    "link": lambda ops: ops.link(FILE, TOP, b"n", ROOT),
    "unlink": lambda ops: ops.unlink(TOP, b"n", ROOT),
    "rmdir": lambda ops: ops.rmdir(TOP, b"n", ROOT),
    "rename": lambda ops: ops.rename(TOP, b"n", TOP, b"m", 0, ROOT),
    "setattr": lambda ops: ops.setattr(FILE, attributes(), fields("mode"), None, ROOT),
    "getxattr": lambda ops: ops.getxattr(FILE, b"user.a", ROOT),
    "listxattr": lambda ops: ops.listxattr(FILE, ROOT),
    "setxattr": lambda ops: ops.setxattr(FILE, b"user.a", b"", ROOT),
    "removexattr": lambda ops: ops.removexattr(FILE, b"user.a", ROOT),
    "open": lambda ops: ops.open(FILE, os.O_RDWR, ROOT),
    "read": lambda ops: ops.read(FH, 0, 1),
    "write": lambda ops: ops.write(FH, 0, b"x"),
    "begin_copy_up": lambda ops: ops.write(FH, 0, b"x"),
    "sync_fd": lambda ops: ops.fsync(FH, False),
    "entries": lambda ops: ops.readdir(FH, 0, pyfuse3.ReaddirToken()),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_an_oserror_is_answered_with_its_errno(
    ops: Operations, union: FakeUnion, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    union.errors[verb] = OSError(errno.EDQUOT, "too much")
    with pytest.raises(FUSEError) as caught:
        await VERBS[verb](ops)
    assert caught.value.errno == errno.EDQUOT
    assert caplog.records == []


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("error", [KeyError("defect"), OSError("without errno")], ids=["KeyError", "OSError without errno"])
async def test_any_other_exception_is_eio_with_one_logged_error_and_the_next_request_works(
    ops: Operations, union: FakeUnion, verb: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    union.errors[verb] = error
    with pytest.raises(FUSEError) as caught:
        await VERBS[verb](ops)
    assert caught.value.errno == errno.EIO
    [record] = caplog.records
    assert (record.levelno, record.name) == (logging.ERROR, "unionfs.fuse")
    assert record.exc_info is not None and record.exc_info[1] is error
    del union.errors[verb]
    await VERBS[verb](ops)


async def test_the_end_of_the_server_is_no_error_of_a_request(
    ops: Operations, union: FakeUnion, caplog: pytest.LogCaptureFixture
) -> None:
    union.drafts[7] = FakeDraft(sync=True)
    with trio.CancelScope() as scope:
        scope.cancel()
        await ops.write(FH, 0, b"x")
    assert scope.cancelled_caught
    assert caplog.records == []


async def test_requests_are_counted_by_kind_failed_ones_too(ops: Operations, union: FakeUnion) -> None:
    await ops.lookup(TOP, b"file", ROOT)
    union.errors["lookup"] = OSError(errno.EIO, "disk")
    with pytest.raises(FUSEError):
        await ops.lookup(TOP, b"file", ROOT)
    await ops.write(FH, 0, b"x")
    await ops.mkdir(TOP, b"n", ModeT(0o755), ROOT)
    assert ops.requests == {"lookup": 2, "write": 1, "mkdir": 1}


# ---- attributes that are remembered ----

@pytest.mark.parametrize("verb", ["make_directory", "make_special", "make_symlink", "make_file", "link", "unlink", "rmdir",
                                  "rename", "setattr", "setxattr", "removexattr", "open", "write"])
@pytest.mark.parametrize("fails", [False, True], ids=["", "failing"])
async def test_after_any_change_attributes_are_asked_for_anew(
    ops: Operations, union: FakeUnion, verb: str, fails: bool
) -> None:
    await ops.getattr(FILE, ROOT)
    if fails and verb != "open":
        union.errors[verb] = OSError(errno.EIO, "half way")
        with pytest.raises(FUSEError):
            await VERBS[verb](ops)
    else:
        await VERBS[verb](ops)
    before = union.count("getattr")
    await ops.getattr(FILE, ROOT)
    assert union.count("getattr") == before + 1


async def test_a_read_changes_the_time_of_last_access(ops: Operations, union: FakeUnion) -> None:
    await ops.getattr(FILE, ROOT)
    await ops.read(FH, 0, 1)
    await ops.getattr(FILE, ROOT)
    assert union.count("getattr") == 2


async def test_a_forgotten_number_may_be_given_to_another_object(ops: Operations, union: FakeUnion) -> None:
    await ops.lookup(TOP, b"file", ROOT)
    await ops.forget([(FILE, 1)])
    await ops.getattr(FILE, ROOT)
    assert union.count("getattr") == 1


# ---- layers that others change ----

async def test_what_is_remembered_can_be_forgotten(ops: Operations, union: FakeUnion) -> None:
    await ops.lookup(TOP, b"file", ROOT)
    union.asked.clear()
    await ops.getattr(FILE, ROOT)
    assert union.asked == []
    ops.forget_known()
    await ops.getattr(FILE, ROOT)
    assert asked(union) == ("getattr", 7)


async def test_a_limited_trust_holds_for_every_answer_and_for_our_own_memory(ops: Operations, union: FakeUnion) -> None:
    await ops.lookup(TOP, b"file", ROOT)
    ops.limit_trust(1.0)
    for _ in range(2):
        union.asked.clear()
        entry = await ops.getattr(FILE, ROOT)
        assert asked(union) == ("getattr", 7) and (entry.entry_timeout, entry.attr_timeout) == (1.0, 1.0)
    assert (await ops.lookup(TOP, b"nothing", ROOT)).entry_timeout == 1.0
    ops.limit_trust(5.0)
    assert (await ops.getattr(FILE, ROOT)).attr_timeout == 1.0
