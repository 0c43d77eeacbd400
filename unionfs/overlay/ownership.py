"""How a layer keeps who owns an object, and its mode: in the inode, or in an attribute that says so instead (see owners.py)."""

from __future__ import annotations

import errno
import os
import stat

from unionfs.linux import files, xattrs
from unionfs.overlay.acl import ACCESS, DEFAULT, mode_of
from unionfs.overlay.owners import CAPABILITY, Owners, changed, declaration, declared, shown_name, stored_name, without_suid

#: What chown says to who may not, or where the id means nothing (a user namespace of few ids).
_NOT_OURS = (errno.EPERM, errno.EINVAL)
#: Mode of every inode whose mode is in the attribute: what fuse-overlayfs gives them, so that its lowers can be shared.
_BACKING_MODE = 0o755


class Ownership:
    """*attribute*: its name, None where the inode has it. *squashed*: owners are of no interest, so what cannot be had is no error."""

    __slots__ = ("attribute", "squashed")

    def __init__(self, attribute: bytes | None = None, *, squashed: bool = False) -> None:
        self.attribute = attribute
        self.squashed = squashed

    def read(self, st: os.stat_result, place: files.Place) -> os.stat_result:
        """*st* of the object at *place*, as the layer means it."""
        if self.attribute is None:
            return st
        try:
            value = xattrs.find(place, self.attribute)
        except PermissionError:  # we may not know, so nobody may
            value = b""
        return st if value is None else declared(value, st)

    def value(self, _name: bytes, value: bytes) -> bytes:
        """An extended attribute's *value* as the layer means it."""
        return value

    def backing(self, mode: int) -> int:
        """*mode* (with its type) of the inode to make for an object of this mode: pipes, sockets and devices are files, as only those and
        directories have such attributes, and not everybody may make devices."""
        if self.attribute is None or stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            return mode
        return stat.S_IFREG | 0o600

    def own(self, place: files.Place, uid: int, gid: int) -> None:
        """First step of endowing a new object; before its attributes, as chown takes some away."""
        if self.attribute is None:
            self._chown(place, uid, gid)
        elif not stat.S_ISLNK(_lstat(place).st_mode):
            os.chmod(place, _BACKING_MODE)

    def complete(self, place: files.Place, uid: int, gid: int, mode: int, rdev: int = 0) -> None:
        """Last step: its *mode*, with type; what ``own`` was told, again."""
        if self.attribute is not None:
            self._declare(place, uid, gid, mode, rdev)
        elif not stat.S_ISLNK(mode):
            os.chmod(place, stat.S_IMODE(mode))

    def change(self, place: files.Place, uid: int | None, gid: int | None, mode: int | None) -> None:
        """chown, then chmod; None leaves something as it is."""
        if self.attribute is not None:
            self._change_declared(place, uid, gid, mode)
            return
        if uid is not None or gid is not None:
            self._chown(place, -1 if uid is None else uid, -1 if gid is None else gid)
        if mode is not None:
            os.chmod(place, stat.S_IMODE(mode))

    def follow_acl(self, place: files.Place, acl: bytes) -> None:
        """The object got this access ACL: its mode says the same (the filesystem saw to that where the inode has it)."""
        if self.attribute is not None:
            st = self.read(_lstat(place), place)
            self._declare(place, st.st_uid, st.st_gid, mode_of(acl, st.st_mode), st.st_rdev)

    def stored(self, name: bytes) -> bytes:
        """The name on disk of the attribute *name*."""
        return name if self.attribute is None else stored_name(self.attribute, name)

    def shown(self, name: bytes) -> bytes | None:
        """The name of what is *name* on disk; None when it is not for users."""
        return name if self.attribute is None else shown_name(self.attribute, name)

    def _chown(self, place: files.Place, uid: int, gid: int) -> None:
        try:
            os.chown(place, uid, gid, follow_symlinks=files.is_descriptor(place))
        except OSError as exc:
            if exc.errno not in _NOT_OURS or not self.squashed:
                raise

    def _change_declared(self, place: files.Place, uid: int | None, gid: int | None, mode: int | None) -> None:
        if uid is None and gid is None and mode is None:
            return
        st = self.read(_lstat(place), place)
        new_mode = st.st_mode if stat.S_ISDIR(st.st_mode) else without_suid(st.st_mode)
        if mode is not None:
            new_mode = stat.S_IFMT(st.st_mode) | stat.S_IMODE(mode)
            if xattrs.find(place, ACCESS) is not None:  # whose entries have to follow
                os.chmod(place, mode & 0o777)
        self._declare(place, st.st_uid if uid is None else uid, st.st_gid if gid is None else gid, new_mode, st.st_rdev)

    def _declare(self, place: files.Place, uid: int, gid: int, mode: int, rdev: int) -> None:
        assert self.attribute is not None
        backing = _lstat(place).st_mode
        try:
            xattrs.put(place, self.attribute, declaration(uid, gid, mode, rdev, backing))
        except OSError as exc:
            # user.* is for files and directories only (xattr(7)): others have the owner they can have, and their own mode
            if exc.errno != errno.EPERM or stat.S_IFMT(backing) in (stat.S_IFREG, stat.S_IFDIR):
                raise
            _ANYBODYS.change(place, uid, gid, None if stat.S_ISLNK(backing) else mode)


class AlreadyMapped(Ownership):
    """Of a lower on an idmapped mount whose mapping is the union's own, as container engines make them: the kernel shows ids as the union
    would, so what it says is turned back before that happens once more."""

    __slots__ = ("_owners",)

    def __init__(self, owners: Owners) -> None:
        super().__init__()
        self._owners = owners

    def read(self, st: os.stat_result, place: files.Place) -> os.stat_result:
        return changed(st, st_uid=self._owners.users.stored(st.st_uid), st_gid=self._owners.groups.stored(st.st_gid))

    def value(self, name: bytes, value: bytes) -> bytes:
        if name in (ACCESS, DEFAULT):
            return self._owners.stored_acl(value, strict=False)  # who has no id here has none as the kernel shows it
        return self._owners.stored_capability(value) if name == CAPABILITY else value


def _lstat(place: files.Place) -> os.stat_result:
    return os.stat(place, follow_symlinks=files.is_descriptor(place))


PLAIN = Ownership()
_ANYBODYS = Ownership(squashed=True)
