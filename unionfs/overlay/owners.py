"""Who owns what: the ids a mount shows for those that are stored, and the other way. Pure.

Rules as fuse-overlayfs (main.c find_mapping), which container engines rely on: what no range covers is shown, and stored, as the overflow
id; *squashing* replaces what is shown and leaves what is stored alone. What names ids elsewhere - ACLs, and the user who is root where a
security.capability counts - goes by the ranges as on an idmapped mount of the kernel: fuse-overlayfs shows those unmapped, so that a user
would be granted what was meant for another.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from unionfs.overlay.acl import entries, packed

CAPABILITY = b"security.capability"

#: (first stored id, first shown id, how many) each; no two overlap on either side.
Ranges = tuple[tuple[int, int, int], ...]

#: What os.stat_result takes by position, and what by name.
_PLACES = {"st_mode": 0, "st_ino": 1, "st_dev": 2, "st_nlink": 3, "st_uid": 4, "st_gid": 5, "st_size": 6}
_NAMED = ("st_atime", "st_mtime", "st_ctime", "st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blksize", "st_blocks", "st_rdev")
_USER, _GROUP = 0x02, 0x08
#: struct vfs_ns_cap_data: magic and flags, two pairs of masks, the user who is root where the capabilities count.
_CAPABILITY = struct.Struct("<IIIIII")
_REVISION_MASK, _REVISION_2, _REVISION_3 = 0xFF000000, 0x02000000, 0x03000000


def changed(st: os.stat_result, **fields: int) -> os.stat_result:
    """*st* with other values in *fields*, which are no times."""
    sequence = list(st)
    named = {name: getattr(st, name) for name in _NAMED}
    for name, value in fields.items():
        if name in named:
            named[name] = value
        else:
            sequence[_PLACES[name]] = value
    return os.stat_result(sequence, named)


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))


class Ids(NamedTuple):
    """One kind of ids, users or groups. No ``ranges``: what is stored is shown. ``squash``: every owner is shown as this."""

    ranges: Ranges = ()
    squash: int | None = None
    overflow: int = 65534

    def find_shown(self, stored: int) -> int | None:
        """The id that *stored* is for a user of the mount; None where no range covers it."""
        if not self.ranges:
            return stored
        for first, shown, count in self.ranges:
            if 0 <= stored - first < count:
                return shown + stored - first
        return None

    def find_stored(self, shown: int) -> int | None:
        """The id on disk of what a user of the mount calls *shown*; None where no range covers it."""
        if not self.ranges:
            return shown
        for first, start, count in self.ranges:
            if 0 <= shown - start < count:
                return first + shown - start
        return None

    def shown(self, stored: int) -> int:
        """The owner to show."""
        if self.squash is not None:
            return self.squash
        found = self.find_shown(stored)
        return self.overflow if found is None else found

    def stored(self, shown: int) -> int:
        """The owner to store."""
        found = self.find_stored(shown)
        return self.overflow if found is None else found


class Owners(NamedTuple):
    """How a mount shows and stores ids. A mount that changes none has no Owners at all."""

    users: Ids = Ids()
    groups: Ids = Ids()

    @property
    def squashed(self) -> bool:
        """Whether who owns what is of no interest: a chown that is not allowed is no error then (fuse-overlayfs do_fchown)."""
        return self.users.squash is not None or self.groups.squash is not None

    def shown(self, st: os.stat_result) -> os.stat_result:
        """Attributes of a backing object as they are shown."""
        return changed(st, st_uid=self.users.shown(st.st_uid), st_gid=self.groups.shown(st.st_gid))

    def shown_acl(self, value: bytes) -> bytes:
        """A stored ACL as it is shown. Entries for whom no range covers are left out: nobody in the mount is that user or group."""
        return packed(self._mapped(value, stored=False, strict=False))

    def stored_acl(self, value: bytes, *, strict: bool = True) -> bytes:
        """An ACL as it is to be stored; OSError(EINVAL) when it names an id that no range covers (kernel posix_acl_from_xattr).

        Not *strict*: such entries are left out.
        """
        return packed(self._mapped(value, stored=True, strict=strict))

    def _mapped(self, value: bytes, *, stored: bool, strict: bool) -> Iterator[tuple[int, int, int]]:
        try:
            found = entries(value)
        except ValueError:
            raise _invalid() from None
        for tag, permissions, ident in found:
            kind = self.users if tag == _USER else self.groups if tag == _GROUP else None
            find = None if kind is None else kind.find_stored if stored else kind.find_shown
            other = ident if find is None else find(ident)
            if other is not None:
                yield tag, permissions, other
            elif strict:
                raise _invalid()

    def shown_capability(self, value: bytes) -> bytes | None:
        """A stored security.capability as it is shown; None where it counts for a root that no range covers: it gives nobody anything."""
        return self._with_root(value, self.users.find_shown)

    def stored_capability(self, value: bytes) -> bytes:
        """A security.capability as it is to be stored; OSError(EINVAL) as ``stored_acl`` (kernel cap_convert_nscap)."""
        found = self._with_root(value, self.users.find_stored)
        if found is None:
            raise _invalid()
        return found

    @staticmethod
    def _with_root(value: bytes, find: Callable[[int], int | None]) -> bytes | None:
        """*value* for the root that *find* gives; version 2 is that of user 0 (kernel cap_inode_getsecurity)."""
        if len(value) not in (_CAPABILITY.size, _CAPABILITY.size - 4):
            return value
        magic, *masks, root = _CAPABILITY.unpack(value.ljust(_CAPABILITY.size, b"\0"))
        if magic & _REVISION_MASK != (_REVISION_3 if len(value) == _CAPABILITY.size else _REVISION_2):
            return value
        other = find(root)
        if other is None or other == root:
            return None if other is None else value
        return _CAPABILITY.pack(magic & ~_REVISION_MASK | _REVISION_3, *masks, other)


# Owner, mode and type kept in an attribute: "uid:gid:mode[:type]", mode in octal (fuse-overlayfs utils.c override_mode; what container
# engines write with force_mask). For layers whose filesystem or whose user cannot have the owners: homes on NFS, user namespaces of one id.

#: In the order in which the root of a layer is asked for them, as fuse-overlayfs does.
PRIVILEGED_STAT = b"security.fuseoverlayfs.override_stat"
CONTAINERS_STAT = b"user.containers.override_stat"
USER_STAT = b"user.fuseoverlayfs.override_stat"
STAT_NAMES = (PRIVILEGED_STAT, CONTAINERS_STAT, USER_STAT)

#: Before the name of an attribute that must not be mistaken for the layer's own, or that nobody unprivileged may set.
_APART = b"user.containers.override_"
_DECLARED = re.compile(rb"(\d{1,10}):(\d{1,10}):([0-7]{1,7})(?::([a-z]+)(?:-(\d{1,10})-(\d{1,10}))?)?")
_TYPES = {
    b"file": stat.S_IFREG,
    b"dir": stat.S_IFDIR,
    b"symlink": stat.S_IFLNK,
    b"pipe": stat.S_IFIFO,
    b"socket": stat.S_IFSOCK,
    b"block": stat.S_IFBLK,
    b"char": stat.S_IFCHR,
}
_WORDS = {kind: word for word, kind in _TYPES.items()}
_DEVICES = (stat.S_IFBLK, stat.S_IFCHR)
_ID_MAX = (1 << 32) - 2
_NOBODY = 65534


def without_suid(mode: int, member: bool = True) -> int:
    """*mode* as a write by an ordinary user, *member* of the group or not, leaves it (kernel setattr_should_drop_suidgid)."""
    return mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP or not member else 0))


def declared(value: bytes, st: os.stat_result) -> os.stat_result:
    """*st* with what *value* says instead of the inode.

    Only a regular file can stand for another type. A value without a meaning lets nobody in: no permission bits, no owner.
    """
    found = _DECLARED.fullmatch(value)
    if found is None:
        return _closed(st)
    uid, gid, mode = int(found[1]), int(found[2]), int(found[3], 8)
    kind = _TYPES.get(found[4]) if found[4] else stat.S_IFMT(st.st_mode)
    if kind is None or max(uid, gid) > _ID_MAX or (kind in _DEVICES) != (found[5] is not None) and found[4]:
        return _closed(st)
    if kind != stat.S_IFMT(st.st_mode) and (not stat.S_ISREG(st.st_mode) or kind in (stat.S_IFDIR, stat.S_IFLNK)):
        return _closed(st)
    rdev = st.st_rdev
    if found[5] is not None:
        try:
            rdev = os.makedev(int(found[5]), int(found[6]))
        except OverflowError:
            return _closed(st)
        if kind == stat.S_IFCHR and rdev == 0:  # it would be a whiteout to some and not to others
            return _closed(st)
    return changed(st, st_mode=kind | stat.S_IMODE(mode), st_uid=uid, st_gid=gid, st_rdev=rdev)


def _closed(st: os.stat_result) -> os.stat_result:
    return changed(st, st_mode=stat.S_IFMT(st.st_mode), st_uid=_NOBODY, st_gid=_NOBODY)


def declaration(uid: int, gid: int, mode: int, rdev: int, backing: int) -> bytes:
    """What says that an object has this owner, mode (with its type) and device; the type only where the *backing* mode has another."""
    text = b"%d:%d:%o" % (uid, gid, stat.S_IMODE(mode))
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFMT(backing):
        return text
    text += b":" + _WORDS[kind]
    return text + b"-%d-%d" % (os.major(rdev), os.minor(rdev)) if kind in _DEVICES else text


def stored_name(attribute: bytes, name: bytes) -> bytes:
    """The name on disk of what a user of the mount calls *name*, in a layer that keeps owners in *attribute*."""
    return _APART + name if _is_apart(attribute, name) else name


def shown_name(attribute: bytes, name: bytes) -> bytes | None:
    """The name for users of what is *name* on disk, None when it is the layer's own."""
    if not _is_apart(attribute, name):
        return name
    inner = name[len(_APART) :]
    return inner if name.startswith(_APART) and _is_apart(attribute, inner) else None


def _is_apart(attribute: bytes, name: bytes) -> bool:
    """As fuse-overlayfs (encoded_xattr_name); besides, what looks so already, else a user could forge what is behind the prefix."""
    while name.startswith(_APART) and name != attribute:
        name = name[len(_APART) :]
    return name == attribute or attribute == CONTAINERS_STAT and name.startswith(b"security.")
