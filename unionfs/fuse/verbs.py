"""The FUSE verbs on the channel: unpack the kernel's message, call the Union, pack the answer; nothing else.

One method for each opcode, (number of the object, body) to the body of the answer; the table at the end of ``Verbs.__init__`` says which.
No open file has a handle: OPENDIR, FLUSH and, but for ``io=passthrough``, OPEN are answered ENOSYS once, and never sent again. Data goes by
number.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from unionfs.fuse import protocol
from unionfs.fuse.channel import MAX_WRITE, Answer, Channel, Job, Later
from unionfs.fuse.protocol import Opcode, zero_ended
from unionfs.linux import process
from unionfs.overlay.copy_up import is_quick
from unionfs.overlay.make import Caller
from unionfs.overlay.node import Node
from unionfs.overlay.owners import CAPABILITY
from unionfs.overlay.protection import APPEND, IMMUTABLE
from unionfs.overlay.union import Change, Union

if TYPE_CHECKING:
    from unionfs.fuse.passthrough import Passthrough
    from unionfs.overlay.copy_up import DataDraft, Draft

#: Attributes remembered at most: about 200 bytes each.
_KNOWN_LIMIT = 16_384
_FICKLE_HEAD = protocol.ATTR_HEAD.pack(0, 0, 0)
_OPEN_CREATED = protocol.OPEN_OUT.pack(0, protocol.FOPEN_KEEP_CACHE, 0)
_IOCTL_DONE = protocol.IOCTL_OUT.pack(0, 0, 0, 0)
#: So much is copied at a time: who copies files asks for the rest, and others are served in between.
_COPY_TURN = 8 << 20
#: No number is known: getdents must not show 0, which readers take for a hole.
_NO_NUMBER = 1

#: What is asked of the kernel whatever the mode: see docs/design.md.
FLAGS = (
    protocol.ASYNC_READ | protocol.BIG_WRITES | protocol.DONT_MASK | protocol.HAS_IOCTL_DIR | protocol.DO_READDIRPLUS | protocol.ASYNC_DIO
    | protocol.PARALLEL_DIROPS | protocol.MAX_PAGES | protocol.CACHE_SYMLINKS | protocol.EXPLICIT_INVAL_DATA
    | protocol.HANDLE_KILLPRIV_V2 | protocol.SETXATTR_EXT | protocol.INIT_EXT | protocol.ALLOW_IDMAP
)  # fmt: skip


class Verbs:
    """The handlers over *union*, entered in the table of *channel*. ``timeout``: seconds for which the kernel may believe an answer."""

    def __init__(self, union: Union, channel: Channel, *, timeout: float) -> None:
        self._union = union
        self._channel = channel
        #: Attributes as the kernel was last told, for as long as nothing changes anywhere: a second listing asks for all again.
        self._known: dict[int, bytes] = {}
        self._known_limit = _KNOWN_LIMIT
        self._building: dict[int, Job] = {}
        self._data = memoryview(bytearray(MAX_WRITE))
        self._passthrough: Passthrough | None = None
        #: Three that belong to it: numbers to tell instead of nodes' own, nodes not to be remembered, and not to be believed for any time.
        self._told: Mapping[int, int] = {}
        self._open: Container[int] = ()
        self._fickle: Container[int] = ()
        self._trust(timeout)
        for opcode, handler in (
            (Opcode.LOOKUP, self.lookup),
            (Opcode.FORGET, self.forget),
            (Opcode.BATCH_FORGET, self.batch_forget),
            (Opcode.GETATTR, self.getattr),
            (Opcode.SETATTR, self._changing(self.setattr)),
            (Opcode.READLINK, self.readlink),
            (Opcode.SYMLINK, self._changing(self.symlink)),
            (Opcode.MKNOD, self._changing(self.mknod)),
            (Opcode.MKDIR, self._changing(self.mkdir)),
            (Opcode.UNLINK, self._changing(self.unlink)),
            (Opcode.RMDIR, self._changing(self.rmdir)),
            (Opcode.RENAME, self._changing(self.rename)),
            (Opcode.RENAME2, self._changing(self.rename2)),
            (Opcode.LINK, self._changing(self.link)),
            (Opcode.CREATE, self._changing(self.create)),
            (Opcode.READ, self.read),
            (Opcode.WRITE, self._changing(self.write)),
            (Opcode.RELEASE, self.release),
            (Opcode.STATFS, self.statfs),
            (Opcode.FSYNC, self.fsync),
            (Opcode.FSYNCDIR, self.fsyncdir),
            (Opcode.GETXATTR, self.getxattr),
            (Opcode.LISTXATTR, self.listxattr),
            (Opcode.SETXATTR, self._changing(self.setxattr)),
            (Opcode.REMOVEXATTR, self._changing(self.removexattr)),
            (Opcode.LSEEK, self.lseek),
            (Opcode.FALLOCATE, self._changing(self.fallocate)),
            (Opcode.COPY_FILE_RANGE, self._changing(self.copy_file_range)),
            (Opcode.COPY_FILE_RANGE_64, self._changing(self.copy_file_range_64)),
            (Opcode.TMPFILE, self._changing(self.tmpfile)),
            (Opcode.IOCTL, self.ioctl),
            (Opcode.STATX, self.statx),
            (Opcode.READDIRPLUS, self.readdirplus),
            (Opcode.INTERRUPT, self.interrupt),
            (Opcode.DESTROY, self.destroy),
        ):
            channel.handle(opcode, handler)

    def pass_through(self, passthrough: Passthrough) -> None:
        """From now on opens are asked for, and the kernel reads and writes by itself."""
        self._passthrough = passthrough
        self._told, self._open, self._fickle = passthrough.told, passthrough.open, passthrough.changing
        self._open_for_writing = self._changing(self.open_for_writing)
        self._channel.translate(Opcode, passthrough.meant)
        self._channel.handle(Opcode.OPEN, self.open)
        self._channel.handle(Opcode.RELEASE, self.release)

    # -- what the kernel may believe -------------------------------------------------------------------------------------

    def _trust(self, seconds: float) -> None:
        valid, ns = protocol.timeout(seconds)
        self._timeout = seconds
        self._entry_valid = valid, valid, ns, ns
        self._attr_head = protocol.ATTR_HEAD.pack(valid, ns, 0)
        self._absent = protocol.ENTRY_HEAD.pack(0, 0, *self._entry_valid) + bytes(protocol.ATTR.size)
        self._fickle_entry_valid = valid, 0, ns, 0

    def limit_trust(self, seconds: float) -> None:
        """From now on the kernel may believe an answer for *seconds* at most, and nothing is answered from memory here."""
        self._trust(min(self._timeout, seconds))
        self._known_limit = 0
        self._known.clear()
        for node in self._union.tree.nodes:  # it goes by a directory's times whether it may show the listing that it has
            if node.directory is not None:
                self.forget_attributes(node.ino)

    def forget_known(self) -> None:
        """The layers have changed: ask anew."""
        self._known.clear()

    def _attributes(self, found: tuple[Node, os.stat_result]) -> bytes:
        node, st = found
        made = protocol.attributes(node.shown, self._union.links(node, st), st)
        known = self._known
        if len(known) >= self._known_limit:
            known.clear()
        if self._known_limit and node.ino not in self._open:
            known[node.ino] = made
        return made

    def _entry(self, found: tuple[Node, os.stat_result]) -> bytes:
        return self._entry_head(found[0].ino) + self._attributes(found)

    def _entry_head(self, ino: int) -> bytes:
        valid = self._fickle_entry_valid if ino in self._fickle else self._entry_valid
        return protocol.ENTRY_HEAD.pack(self._told.get(ino, ino), 0, *valid)

    def _about(self, ino: int) -> bytes:
        """What stands before attributes of *ino* that are no entry."""
        return _FICKLE_HEAD if ino in self._fickle else self._attr_head

    def _changing(self, handler: Callable[[int, memoryview], Answer]) -> Callable[[int, memoryview], Answer]:
        """*handler*, which changes the tree: attributes remembered until now are forgotten, whatever came of it."""

        def changing(ino: int, body: memoryview) -> Answer:
            self._known.clear()
            try:
                answer = handler(ino, body)
            finally:
                for restamped in self._union.take_restamped():
                    self._known.clear()
                    self.forget_attributes(restamped)
            if isinstance(answer, bytes) and (renumbered := self._union.take_renumbered()):
                # in a thread: who reads a listing holds its page, and may wait for us with it
                raise Later(Job(partial(self._forget_listings, renumbered), lambda _: None, answer=answer))
            return answer

        return changing

    def _forget_listings(self, directories: list[int]) -> None:
        for ino in directories:
            with suppress(OSError):  # the kernel does not know it
                self._channel.forget_object(ino)

    def forget_attributes(self, ino: int) -> None:
        """Have the kernel ask for the attributes of *ino* again."""
        with suppress(OSError):  # it does not know the object
            self._channel.forget_attributes(ino)

    def _caller(self, umask: int) -> Caller:
        """Who makes something."""
        channel = self._channel
        return Caller(channel.uid, channel.gid, partial(process.is_in_group, channel.pid), umask)

    def _writer(self, drops: bool | int) -> Caller | None:
        """Who changes something, if that *drops* suid and sgid. The kernel tells the ids only of those who make something (ALLOW_IDMAP)."""
        pid = self._channel.pid
        return Caller(protocol.NO_ID, protocol.NO_ID, partial(process.may_keep_sgid, pid)) if drops else None

    # -- copying up ------------------------------------------------------------------------------------------------------

    def _bring_up(
        self, ino: int, size: int | None = None, *, offset: int | None = None, data: bool = True, unless: int = 0
    ) -> None:
        """Have *ino* in upper, or wait for that while others are served, if it takes long."""
        job = self._building.get(ino)
        if job is not None:
            raise Later(job)
        draft = self._union.begin_copy_up(ino, size, offset=offset, data=data, unless=unless)
        if draft is None:
            return
        if is_quick(draft):
            draft.build()
            self._union.publish(ino, draft)
            return
        job = self._building[ino] = Job(draft.build, partial(self._built, ino, draft))
        raise Later(job)

    def _built(self, ino: int, draft: Draft | DataDraft, failure: BaseException | None) -> None:
        del self._building[ino]
        if failure is None:
            self._union.publish(ino, draft)

    # -- names -----------------------------------------------------------------------------------------------------------

    def lookup(self, ino: int, body: memoryview) -> Answer:
        """name -> entry; one of number 0 tells the kernel to remember that there is none."""
        found = self._union.lookup(ino, bytes(body[:-1]))
        return self._absent if found is None else self._entry(found)

    def forget(self, ino: int, body: memoryview) -> Answer:
        """count"""
        self._forget(ino, protocol.FORGET_IN.unpack_from(body)[0])
        return None

    def batch_forget(self, _: int, body: memoryview) -> Answer:
        """count, then (number, count) each"""
        count, _ = protocol.BATCH_FORGET_IN.unpack_from(body)
        start = protocol.BATCH_FORGET_IN.size
        for ino, lookups in protocol.FORGET_ONE.iter_unpack(body[start : start + count * protocol.FORGET_ONE.size]):
            self._forget(ino, lookups)
        return None

    def _forget(self, ino: int, count: int) -> None:
        ino = self._meant(ino)
        self._union.forget(ino, count)
        self._known.pop(ino, None)
        if self._passthrough is not None and not self._union.is_live(ino):
            self._passthrough.forgotten(ino)

    def _meant(self, number: int) -> int:
        """The node's number behind one that the kernel was told."""
        return number if self._passthrough is None else self._passthrough.meant.get(number, number)

    def readlink(self, ino: int, _: memoryview) -> Answer:
        """-> target"""
        return self._union.readlink(ino)

    def symlink(self, ino: int, body: memoryview) -> Answer:
        """name, target -> entry"""
        name, target, _ = bytes(body).split(b"\0")
        return self._entry(self._union.make_symlink(ino, name, target, self._caller(0)))

    def mknod(self, ino: int, body: memoryview) -> Answer:
        """mode, device, umask, name -> entry"""
        mode, device, umask, _ = protocol.MKNOD_IN.unpack_from(body)
        name = zero_ended(body[protocol.MKNOD_IN.size :])
        return self._entry(self._union.make_special(ino, name, mode, protocol.device_number(device), self._caller(umask)))

    def mkdir(self, ino: int, body: memoryview) -> Answer:
        """mode, umask, name -> entry"""
        mode, umask = protocol.MKDIR_IN.unpack_from(body)
        name = zero_ended(body[protocol.MKDIR_IN.size :])
        return self._entry(self._union.make_directory(ino, name, mode, self._caller(umask)))

    def create(self, ino: int, body: memoryview) -> Answer:
        """flags, mode, umask, flags of ours, name -> entry, handle"""
        flags, mode, umask, open_flags = protocol.CREATE_IN.unpack_from(body)
        name = zero_ended(body[protocol.CREATE_IN.size :])
        found = None if flags & os.O_EXCL else self._union.lookup(ino, name)
        if found is None:
            return self._made_file(self._union.make_file(ino, name, mode, self._caller(umask)), flags)
        number = found[0].ino  # somebody made it between the kernel's look-up and now
        try:
            self._union.refuse_opening(number, flags)
            self._bring_up(number, 0 if flags & os.O_TRUNC else None)
            drop_suid = self._caller(0) if open_flags & protocol.OPEN_KILL_SUIDGID else None
            self._union.open(number, flags, drop_suid=drop_suid)
            found = self._union.getattr(number)
        except BaseException:
            self._union.forget(number, 1)  # the kernel is told nothing of it
            raise
        return self._made_file(found, flags)

    def _made_file(self, found: tuple[Node, os.stat_result], flags: int) -> bytes:
        """The answer that *found*, which counts already, is open with *flags*."""
        if self._passthrough is None:
            return self._entry(found) + _OPEN_CREATED
        ino = found[0].ino
        try:
            opened = self._passthrough.opened(self._told.get(ino, ino), flags, direct=self._union.is_append_only(ino))
        except BaseException:
            self._union.forget(ino, 1)
            raise
        return self._entry(found) + opened

    def tmpfile(self, ino: int, body: memoryview) -> Answer:
        """flags, mode, umask, flags of ours, a name that means nothing -> entry, handle"""
        flags, mode, umask, _ = protocol.CREATE_IN.unpack_from(body)
        return self._made_file(self._union.make_unnamed(ino, mode, self._caller(umask)), flags)

    def link(self, ino: int, body: memoryview) -> Answer:
        """the object's number, name -> entry"""
        number = self._meant(protocol.LINK_IN.unpack_from(body)[0])
        self._bring_up(number, data=False)
        return self._entry(self._union.link(number, ino, zero_ended(body[protocol.LINK_IN.size :])))

    def unlink(self, ino: int, body: memoryview) -> Answer:
        """name"""
        name = bytes(body[:-1])
        for number in self._union.to_bring_up_first(ino, name):
            self._bring_up(number, data=False)
        self._union.unlink(ino, name)
        return b""

    def rmdir(self, ino: int, body: memoryview) -> Answer:
        """name"""
        self._union.rmdir(ino, bytes(body[:-1]))
        return b""

    def rename(self, ino: int, body: memoryview) -> Answer:
        """new directory, name, new name"""
        (target,) = protocol.RENAME_IN.unpack_from(body)
        return self._rename(ino, target, body[protocol.RENAME_IN.size :], 0)

    def rename2(self, ino: int, body: memoryview) -> Answer:
        """new directory, flags, name, new name"""
        target, flags, _ = protocol.RENAME2_IN.unpack_from(body)
        return self._rename(ino, target, body[protocol.RENAME2_IN.size :], flags)

    def _rename(self, ino: int, target: int, names: memoryview, flags: int) -> Answer:
        old, new, _ = bytes(names).split(b"\0")
        moved = self._union.to_bring_up(ino, old, target, new, flags)
        for number in (*moved, *self._union.to_bring_up_first(target, new)):
            self._bring_up(number, data=False)
        self._union.rename(ino, old, target, new, flags)
        return b""

    # -- attributes ------------------------------------------------------------------------------------------------------

    def getattr(self, ino: int, _: memoryview) -> Answer:
        """-> attributes"""
        return self._about(ino) + (self._known.get(ino) or self._attributes(self._union.getattr(ino)))

    def setattr(self, ino: int, body: memoryview) -> Answer:
        """what is to change -> attributes"""
        (valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = protocol.SETATTR_IN.unpack_from(body)
        change = Change(
            size=size if valid & protocol.FATTR_SIZE else None,
            mode=mode if valid & protocol.FATTR_MODE else None,
            uid=uid if valid & protocol.FATTR_UID else None,
            gid=gid if valid & protocol.FATTR_GID else None,
            atime_ns=protocol.time_ns(atime, atime_ns) if valid & protocol.FATTR_ATIME else None,
            mtime_ns=protocol.time_ns(mtime, mtime_ns) if valid & protocol.FATTR_MTIME else None,
            now=valid & protocol.FATTR_NOW == protocol.FATTR_NOW,
        )
        if valid & protocol.FATTR_CTIME and self._is_so(ino, change):
            return self._about(ino) + self._attributes(self._union.getattr(ino))
        self._bring_up(ino, change.size, data=change.size is not None, unless=change.unless)
        drops = valid & protocol.FATTR_KILL_SUIDGID
        if not valid & ~protocol.FATTR_FH:
            # from file_remove_privs: before fallocate, and a write that will not come here; for a file's capabilities from root's as well
            drops = not process.may_keep_suid(self._channel.pid)
        found = self._union.setattr(ino, change, drop_suid=self._writer(drops))
        return self._about(ino) + self._attributes(found)

    def _is_so(self, ino: int, change: Change) -> bool:
        """Whether *change* is what the kernel sends with io=writeback after *ino* was unlinked or renamed: times that it has already.

        Its time of last change, which is meant, cannot be set; and to copy up what is about to be forgotten is most of a deletion. Likewise
        after writes to an append-only file, whose times nobody may set: they are those of the writes.
        """
        if change != Change(mtime_ns=change.mtime_ns):
            return False
        if self._union.is_append_only(ino):
            return True
        if self._union.is_up(ino):
            return False
        return self._union.getattr(ino)[1].st_mtime_ns == change.mtime_ns

    def statx(self, ino: int, _: memoryview) -> Answer:
        """-> attributes with the time of birth, which only who wants that asks for"""
        _name, valid, _name_ns, ns = self._fickle_entry_valid if ino in self._fickle else self._entry_valid
        node, st = self._union.getattr(ino)
        made = protocol.extended(node.shown, self._union.links(node, st), st, self._union.birth(ino))
        return protocol.STATX_OUT.pack(valid, ns, 0, 0, 0) + made

    def ioctl(self, ino: int, body: memoryview) -> Answer:
        """handle, flags, command, address, size of what comes and of what is wanted, what comes -> result, what is wanted

        Those of lsattr and chattr. Of any other the answer is ENOTTY: that, too, is how programs find out that a file is no terminal.
        """
        _, _, command, _, _, room = protocol.IOCTL_IN.unpack_from(body)
        given = bytes(body[protocol.IOCTL_IN.size :])
        if command in protocol.FS_IOC_GETFLAGS:
            return _IOCTL_DONE + self._union.file_attributes(ino).to_bytes(room, sys.byteorder)
        if command == protocol.FS_IOC_FSGETXATTR:
            return _IOCTL_DONE + self._union.extended_file_attributes(ino)
        if command in protocol.FS_IOC_SETFLAGS:
            return self._change_file_attributes(ino, lambda: self._union.set_file_attributes(ino, int.from_bytes(given[:4], sys.byteorder)))
        if command == protocol.FS_IOC_FSSETXATTR:
            return self._change_file_attributes(ino, lambda: self._union.set_extended_file_attributes(ino, given))
        return errno.ENOTTY

    def _change_file_attributes(self, ino: int, change: Callable[[], None]) -> Answer:
        self._known.clear()
        self._bring_up(ino, data=False, unless=APPEND | IMMUTABLE)
        change()
        return _IOCTL_DONE

    def statfs(self, _: int, body: memoryview) -> Answer:
        """-> what is free"""
        st = self._union.statfs()
        return protocol.STATFS_OUT.pack(
            st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, st.f_bsize, st.f_namemax, st.f_frsize, 0
        )

    # -- extended attributes ---------------------------------------------------------------------------------------------

    def getxattr(self, ino: int, body: memoryview) -> Answer:
        """room, name -> value, or its size when there is no room at all"""
        room, _ = protocol.GETXATTR_IN.unpack_from(body)
        name = bytes(body[protocol.GETXATTR_IN.size : -1])
        if name == CAPABILITY and self._union.lacks_capability(ino):  # asked for before nearly every change
            return errno.ENODATA
        return _fitting(self._union.getxattr(ino, name), room)

    def listxattr(self, ino: int, body: memoryview) -> Answer:
        """room -> names, or their size when there is no room at all"""
        room, _ = protocol.GETXATTR_IN.unpack_from(body)
        names = self._union.listxattr(ino)
        if any(name.startswith(b"trusted.") for name in names) and not process.is_privileged(self._channel.pid):
            names = [name for name in names if not name.startswith(b"trusted.")]  # as ovl_can_list
        return _fitting(b"".join(name + b"\0" for name in names), room)

    def setxattr(self, ino: int, body: memoryview) -> Answer:
        """size, flags, flags of ours, name, value"""
        size, flags, more, _ = protocol.SETXATTR_IN.unpack_from(body)
        name = zero_ended(body[protocol.SETXATTR_IN.size :])
        start = protocol.SETXATTR_IN.size + len(name) + 1
        self._bring_up(ino, data=False)
        value = bytes(body[start : start + size])
        self._union.setxattr(ino, name, value, flags, kill_sgid=bool(more & protocol.SETXATTR_ACL_KILL_SGID))
        return b""

    def removexattr(self, ino: int, body: memoryview) -> Answer:
        """name"""
        name = bytes(body[:-1])
        if not self._union.is_up(ino):
            self._union.require_xattr(ino, name)
        self._bring_up(ino, data=False)
        self._union.removexattr(ino, name)
        return b""

    # -- data ------------------------------------------------------------------------------------------------------------

    def open(self, number: int, body: memoryview) -> Answer:
        """flags, flags of ours -> handle, how it is open. Only with ``io=passthrough``."""
        assert self._passthrough is not None
        flags, _ = protocol.OPEN_IN.unpack_from(body)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            return self._open_for_writing(number, body)
        self._known.pop(self._meant(number), None)
        return self._passthrough.opened(number, flags)

    def open_for_writing(self, number: int, body: memoryview) -> Answer:
        """The part of ``open`` that copies up and truncates. What is written to an append-only file comes here to be judged."""
        assert self._passthrough is not None
        flags, open_flags = protocol.OPEN_IN.unpack_from(body)
        ino = self._meant(number)
        self._union.refuse_opening(ino, flags)
        self._bring_up(ino, 0 if flags & os.O_TRUNC else None)
        self._union.open(ino, flags, drop_suid=self._writer(open_flags & protocol.OPEN_KILL_SUIDGID))
        return self._passthrough.opened(number, flags, direct=self._union.is_append_only(ino))

    def read(self, ino: int, body: memoryview) -> Answer:
        """handle, offset, size -> data"""
        _, offset, size, _, _, _, _ = protocol.READ_IN.unpack_from(body)
        self._known.pop(ino, None)  # the time of last access
        return self._data[: self._union.read_into(ino, offset, self._data[:size])]

    def write(self, ino: int, body: memoryview) -> Answer:
        """handle, offset, size, flags, data -> how much was written"""
        _, offset, size, flags, _, _, _ = protocol.WRITE_IN.unpack_from(body)
        data, there = body[protocol.WRITE_IN.size :][:size], 0
        if flags & protocol.WRITE_CACHE and self._union.is_append_only(ino):
            there = self._union.appended(ino, offset, data)
        self._bring_up(ino, offset=offset + there)
        writer = self._writer(flags & protocol.WRITE_KILL_SUIDGID)
        return protocol.WRITE_OUT.pack(there + self._union.write(ino, offset + there, data[there:], drop_suid=writer), 0)

    def lseek(self, ino: int, body: memoryview) -> Answer:
        """handle, offset, whence -> offset of the next data or hole"""
        _, offset, whence, _ = protocol.LSEEK_IN.unpack_from(body)
        return protocol.LSEEK_OUT.pack(self._union.seek(ino, offset, whence))

    def fallocate(self, ino: int, body: memoryview) -> Answer:
        """handle, offset, length, mode; suid and sgid the kernel has seen to (file_modified)"""
        _, offset, length, mode, _ = protocol.FALLOCATE_IN.unpack_from(body)
        self._bring_up(ino)
        self._union.allocate(ino, mode, offset, length)
        return b""

    def copy_file_range(self, ino: int, body: memoryview) -> Answer:
        """handle, offset, number of the target, its handle, offset, length, flags -> how much was copied"""
        return protocol.WRITE_OUT.pack(self._copy_range(ino, body), 0)

    def copy_file_range_64(self, ino: int, body: memoryview) -> Answer:
        """The same, with room for a larger answer."""
        return protocol.LSEEK_OUT.pack(self._copy_range(ino, body))

    def _copy_range(self, ino: int, body: memoryview) -> int:
        _, offset, number, _, target_offset, length, _ = protocol.COPY_IN.unpack_from(body)
        target = self._meant(number)
        self._bring_up(target)
        return self._union.copy_range(ino, offset, target, target_offset, min(length, _COPY_TURN))

    def release(self, number: int, body: memoryview) -> Answer:
        """handle, flags. Without ``io=passthrough`` for files from CREATE only: by some kernels, by all before an OPEN was answered."""
        if self._passthrough is not None:
            _, flags, _, _ = protocol.RELEASE_IN.unpack_from(body)
            self._passthrough.released(number, flags)
        return b""

    def fsync(self, ino: int, body: memoryview) -> Answer:
        """handle, flags"""
        _, flags, _ = protocol.FSYNC_IN.unpack_from(body)
        return self._sync(ino, os.fdatasync if flags & protocol.FSYNC_FDATASYNC else os.fsync)

    def fsyncdir(self, ino: int, _: memoryview) -> Answer:
        """handle, flags"""
        return self._sync(ino, os.fsync)

    def _sync(self, ino: int, sync: Callable[[int], None]) -> Answer:
        fd = self._union.sync_fd(ino)
        if fd is None:
            return b""
        raise Later(Job(partial(sync, fd), lambda _: os.close(fd), answer=b""))

    # -- directories -----------------------------------------------------------------------------------------------------

    def readdirplus(self, ino: int, body: memoryview) -> Answer:
        """handle, offset, room -> entries with their attributes; the empty answer is the end"""
        _, offset, room, _, _, _, _ = protocol.READ_IN.unpack_from(body)
        union, known_of, parts = self._union, self._known.get, list[bytes]()
        for name, cookie, what in union.entries(ino, offset):
            room -= protocol.DIRENT_AT + (len(name) + 7 & ~7)
            if room < 0:
                break
            if isinstance(what, Node):  # "." and "..": the kernel neither links nor counts them
                parts += (self._absent, protocol.dirent(what.shown, cookie, name, what.kind))
                continue
            node = union.live_node(what)
            known = None if node is None else known_of(node.ino)
            if node is None or known is None:
                try:
                    found = union.entry_node(ino, name, what)
                except FileNotFoundError:  # taken away below us
                    room += protocol.DIRENT_AT + (len(name) + 7 & ~7)
                    continue
                except OSError:  # a redirect that is none, a metacopy without data: its own matter, and asked for again
                    parts += (self._absent, protocol.dirent(_NO_NUMBER, cookie, name, what.kind))
                    continue
                node, known = found[0], self._attributes(found)
            node.lookups += 1
            parts += (self._entry_head(node.ino), known, protocol.dirent(node.shown, cookie, name, node.kind))
        return b"".join(parts)

    # -- the connection --------------------------------------------------------------------------------------------------

    def interrupt(self, _: int, body: memoryview) -> Answer:
        """What takes long cannot be stopped half-way; the request it is about is answered in its time."""
        return None

    def destroy(self, _: int, body: memoryview) -> Answer:
        """The mount is gone."""
        return b""


def _fitting(value: bytes, room: int) -> Answer:
    """*value* as the answer to who has *room* for it: its size when that is 0, ERANGE when it is too little."""
    if not room:
        return protocol.GETXATTR_OUT.pack(len(value), 0)
    return value if len(value) <= room else errno.ERANGE
