"""``io=passthrough``: what is open, so that the kernel reads and writes the files of the layers itself.

The kernel keeps one backing object for each number it knows a file by, from the first open to the last release, and refuses (EIO) to open
it on another (fs/fuse/iomode.c). So there is one backing id for a number, counted. A file that is brought up while it is open needs another
backing object, and gets another number: OPEN is answered ESTALE, upon which the VFS looks the name up again (do_filp_open) and is told the
new one. It is one node all the same. The old number means it too, so what is asked about it or changed of it by an old descriptor is asked
and changed of what the file is now; only the data that the kernel reads for that descriptor stay the old ones.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable

from unionfs.errors import error
from unionfs.fuse import protocol
from unionfs.overlay.union import Union

log = logging.getLogger("unionfs.passthrough")

#: Numbers from here on are none of a node: those are below, whoever gave them.
_FIRST = 3 << 61
#: What registering a file says where it can never be.
_NEVER = frozenset({errno.EPERM, errno.ELOOP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY})


class _Opening:
    """The file behind one number while it is open. ``backing``: its id, 0 when the server has to read and write it itself."""

    __slots__ = ("backing", "count", "source", "writers")

    def __init__(self, source: tuple[int, int], backing: int) -> None:
        self.source = source
        self.backing = backing
        self.count = 0
        self.writers = 0


class Passthrough:
    """What is open of *union*.

    *register*, *unregister*: as linux/passthrough.py. *forget_attributes*: has the kernel ask again for those of a number.

    Reads and writes do not come to the server, so it must not answer from memory what they change: attributes of ``open`` files it does
    not remember, and those in ``changing`` nobody else may either, as stores into a mapping change times and nobody says so.
    """

    def __init__(
        self,
        union: Union,
        register: Callable[[int], int],
        unregister: Callable[[int], None],
        forget_attributes: Callable[[int], None],
    ) -> None:
        self._union = union
        self._register = register
        self._unregister = unregister
        self._forget_attributes = forget_attributes
        self._openings: dict[int, _Opening] = {}
        self._numbers = itertools.count(_FIRST)
        #: Devices whose files cannot be registered.
        self._refused: set[int] = set()
        #: The number of a file that the kernel is to be told, where that is not the node's own.
        self.told: dict[int, int] = {}
        #: The node's number behind each number that is not its own.
        self.meant: dict[int, int] = {}
        #: How often files are open, by their nodes' numbers.
        self.open: dict[int, int] = {}
        #: Files that somebody may be writing to, or that are known by several numbers; by their nodes' numbers.
        self.changing: set[int] = set()

    def __len__(self) -> int:
        return len(self._openings)

    def numbers(self, ino: int) -> list[int]:
        """All numbers that the kernel may know the node *ino* by."""
        return [ino, *(number for number, node in self.meant.items() if node == ino)] if ino in self.told else [ino]

    def opened(self, number: int, flags: int, *, direct: bool = False) -> bytes:
        """The answer to an open of *number* with *flags*, of a file that is in upper by now if it is to be written to.

        *direct*: what is written shall come to the server. ESTALE: it needs another number, and will have it when it is looked up again.
        """
        ino = self.meant.get(number, number)
        fd = self._union.data_fd(ino)
        st = os.fstat(fd)
        source = st.st_dev, st.st_ino
        opening = self._openings.get(number)
        if opening is None:
            opening = self._openings[number] = _Opening(source, self._registered(fd, st.st_dev))
        elif opening.backing and opening.source != source:
            self._renumber(ino, number)
            raise error(errno.ESTALE)
        opening.count += 1
        self.open[ino] = self.open.get(ino, 0) + 1
        if flags & os.O_ACCMODE != os.O_RDONLY:
            opening.writers += 1
            if ino not in self.changing:
                self.changing.add(ino)
                self._forget_attributes(number)
        if not opening.backing:
            return protocol.OPEN_OUT.pack(0, protocol.FOPEN_KEEP_CACHE, 0)
        how = protocol.FOPEN_PASSTHROUGH | protocol.FOPEN_DIRECT_IO if direct else protocol.FOPEN_PASSTHROUGH
        return protocol.OPEN_OUT.pack(0, how, opening.backing)

    def _registered(self, fd: int, device: int) -> int:
        if device in self._refused:
            return 0
        try:
            return self._register(fd)
        except OSError as exc:
            if exc.errno not in _NEVER:
                raise
            self._refused.add(device)
            log.warning("io=passthrough: the kernel refuses files of a layer (%s); the server reads and writes them", exc.strerror)
            return 0

    def _renumber(self, ino: int, number: int) -> None:
        """The node *ino* gets a number of its own for what is opened from now on, unless *number* is not its last one."""
        if self.told.get(ino, ino) != number:
            return
        for known in self.numbers(ino):
            self._forget_attributes(known)
        fresh = next(self._numbers)
        self.told[ino] = fresh
        self.meant[fresh] = ino
        self.changing.add(ino)

    def released(self, number: int, flags: int) -> None:
        """One that was opened with *flags* is closed."""
        opening = self._openings.get(number)
        if opening is None:
            return
        ino = self.meant.get(number, number)
        opening.count -= 1
        if flags & os.O_ACCMODE != os.O_RDONLY:
            opening.writers -= 1
            if not opening.writers and ino not in self.told:
                self.changing.discard(ino)
        if not opening.count:
            del self._openings[number]
            if opening.backing:
                self._unregister(opening.backing)
        left = self.open[ino] - 1
        if left:
            self.open[ino] = left
        else:
            del self.open[ino]

    def forgotten(self, ino: int) -> None:
        """The node *ino* is dead: nobody knows any of its numbers."""
        if ino in self.told:
            for number in self.numbers(ino)[1:]:
                del self.meant[number]
            del self.told[ino]
            self.changing.discard(ino)
