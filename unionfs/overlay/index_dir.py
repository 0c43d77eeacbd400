"""``WORKDIR/index``: what keeps hard links of a lower one file over copy-up, on disk as the kernel has it (fs/overlayfs/namei.c, super.c).

Such a file is copied up once, to an entry named by the origin mark in hexadecimal; each of its names in upper is a link of that. How many
names the union shows is in the mark nlink on it: ``U+N``, N more than the copy has links, or ``L+N``, N more than the lower.

An index belongs to one upper, and that to one topmost lower: marks on both say so. ``hard_links.py`` is what uses it.
"""

from __future__ import annotations

import os
import re
import stat
import sys

from unionfs.errors import LayerError, printable
from unionfs.linux import files, xattrs
from unionfs.linux.process import may_follow_handles
from unionfs.overlay.copy_up import decode_origin, encode_origin, remove_tree
from unionfs.overlay.layer import Layer
from unionfs.overlay.whiteout import XattrNames, is_whiteout_device

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Positions in an origin mark, and what may be there (struct ovl_fb).
_VERSION, _MAGIC, _LENGTH, _FLAGS, _HEADER = 0, 1, 2, 3, 21
_MAGIC_BYTE = 0xFB
_BIG_ENDIAN, _ANY_ENDIAN, _OF_UPPER = 1, 2, 4
_NLINK = re.compile(rb"([UL])([+-][0-9]+)")


class IndexDirectory:
    """The open index. ``entries``: names of the files in it."""

    def __init__(self, fd: int, entries: set[bytes], names: XattrNames) -> None:
        self.fd = fd
        self.entries = entries
        self._nlink = names.nlink

    def stat(self, entry: bytes) -> os.stat_result:
        """lstat of one entry."""
        return os.stat(entry, dir_fd=self.fd, follow_symlinks=False)

    def read_nlink(self, entry: bytes, lower: int | None) -> int:
        """How many links more than its copy has the union shows; *lower*: how many its origin has, None where that is not to be had.

        0 where no number makes sense, as in ovl_get_nlink.
        """
        return read_nlink(files.path_at(self.fd, entry), self._nlink, self.stat(entry).st_nlink, lower) or 0

    def write_nlink(self, entry: bytes, relative_to: bytes, difference: int) -> None:
        """*relative_to*: U the copy, L the lower."""
        xattrs.put(files.path_at(self.fd, entry), self._nlink, b"%s%+d" % (relative_to, difference))

    def remove(self, entry: bytes) -> None:
        """Take an entry out."""
        os.unlink(entry, dir_fd=self.fd)
        self.entries.discard(entry)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


def entry_name(origin: bytes) -> bytes:
    """Of the file that was copied up from *origin*."""
    return origin.hex().encode()


def read_nlink(path: bytes, mark: bytes, upper: int, lower: int | None) -> int | None:
    """What the nlink *mark* says on the copy at *path*, as a difference to its *upper* links; None when that is no sensible number."""
    if lower == 1:
        return None
    found = _NLINK.fullmatch(xattrs.find(path, mark) or b"")
    if found is None:
        return None
    base = upper if found[1] == b"U" else lower
    if base is None or base + int(found[2]) <= 0:
        return None
    return base + int(found[2]) - upper


def open_index(work_fd: int, work: bytes, upper: Layer, lowers: tuple[Layer, ...], names: XattrNames) -> IndexDirectory | None:
    """The index in the work directory *work*, made if need be, without what is stale in it; None where there are no file handles.

    LayerError when upper, lower or index belong to others, or the index holds what it cannot (ovl_get_indexdir).
    """
    of_lower = encode_origin(lowers[0], lowers[0].root_fd, b".")
    of_upper = encode_origin(upper, upper.root_fd, b".")
    if not of_upper or not all(encode_origin(layer, layer.root_fd, b".") for layer in lowers):
        return None
    of_upper = of_upper[:_FLAGS] + bytes([of_upper[_FLAGS] | _OF_UPPER]) + of_upper[_FLAGS + 1 :]
    where = printable(upper.where)
    _claim(files.path_at(upper.root_fd, b""), names.origin, of_lower, f"upper directory {where} was used with another lower directory")
    try:
        os.mkdir(b"index", 0o700, dir_fd=work_fd)
    except FileExistsError:
        pass
    fd = os.open(b"index", _DIRECTORY, dir_fd=work_fd)
    try:
        used = f"the index in work directory {printable(work)} was used with another upper directory than {where}"
        _claim(files.path_at(fd, b""), names.upper, of_upper, used)
        return IndexDirectory(fd, _clean(fd, os.path.join(work, b"index"), lowers, names), names)
    except BaseException:
        os.close(fd)
        raise


def _claim(path: bytes, mark: bytes, value: bytes, complaint: str) -> None:
    """Set *mark* on who has none; LayerError when it has another value (ovl_verify_set_fh: ESTALE)."""
    found = xattrs.find(path, mark)
    if found is None:
        xattrs.put(path, mark, value)
    elif found != value:
        raise LayerError(f"{complaint}: with index=on they belong together")


def _clean(fd: int, where: bytes, lowers: tuple[Layer, ...], names: XattrNames) -> set[bytes]:
    """Remove what is left over or stale (ovl_indexdir_cleanup); returns the entries that are files."""
    listed = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        entries = [os.fsencode(name) for name in os.listdir(listed)]
    finally:
        os.close(listed)
    good: set[bytes] = set()
    for entry in entries:
        if entry.startswith(b"#"):
            remove_tree(fd, entry)
            continue
        origin = origin_of(entry)
        st = os.stat(entry, dir_fd=fd, follow_symlinks=False)
        if origin is None:
            raise LayerError(f"{printable(os.path.join(where, entry))} is no entry of an index: delete it or mount with index=off")
        if is_whiteout_device(st) or stat.S_ISDIR(st.st_mode):  # from a mount with nfs_export
            continue
        mark = xattrs.find(files.path_at(fd, entry), names.origin)
        if not mark:
            raise LayerError(f"{printable(os.path.join(where, entry))} has lost its origin: delete it or mount with index=off")
        if mark != origin or _is_stale(files.path_at(fd, entry), origin, st, lowers, names):
            remove_tree(fd, entry)
        else:
            good.add(entry)
    return good


def origin_of(entry: bytes) -> bytes | None:
    """The mark that an entry's name spells, None when it is none that we know (ovl_check_fb_len)."""
    if not re.fullmatch(rb"(?:[0-9a-fA-F]{2}){%d,}" % _HEADER, entry):
        return None
    origin = bytes.fromhex(entry.decode())
    flags = origin[_FLAGS]
    ours = _BIG_ENDIAN if sys.byteorder == "big" else 0
    known = origin[_VERSION] == 0 and origin[_MAGIC] == _MAGIC_BYTE and origin[_LENGTH] <= len(origin)
    understood = flags <= _BIG_ENDIAN | _ANY_ENDIAN | _OF_UPPER and (flags & _ANY_ENDIAN or flags & _BIG_ENDIAN == ours)
    return origin if known and understood else None


def _is_stale(path: bytes, origin: bytes, st: os.stat_result, lowers: tuple[Layer, ...], names: XattrNames) -> bool:
    """Whether the copy of *origin* at *path* has no name any more that could be shown (ovl_verify_index)."""
    if st.st_nlink > 1:
        return False
    lower = decode_origin(origin, lowers)
    if lower is None:
        if may_follow_handles():
            return True
        if (xattrs.find(path, names.nlink) or b"").startswith(b"L"):  # nor can others look for the lower
            return False
    return read_nlink(path, names.nlink, st.st_nlink, None if lower is None else lower.st_nlink) is None
