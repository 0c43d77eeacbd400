"""Objects without a name: how what is deleted while somebody has it open lives on, until it is forgotten.

The tree owns the only ``Orphans`` and tells it when nodes die; the verbs that take names away (union.py, rename.py) ask beforehand, and
bring_up.py for what lost its name while it was copied up.
"""

from __future__ import annotations

import os

from unionfs.overlay.copy_up import Work
from unionfs.overlay.descriptors import Descriptors
from unionfs.overlay.node import Node, Orphan
from unionfs.overlay.stack import Stack


class Orphans:
    """The objects without a name in *stack*; *limit*: so many of them may be kept by a descriptor."""

    def __init__(self, stack: Stack, descriptors: Descriptors, limit: int) -> None:
        self._stack = stack
        self._descriptors = descriptors
        self.limit = limit
        #: How many descriptors are held.
        self.held = 0

    @property
    def _work(self) -> Work:
        """The work directory, which every upper has."""
        assert self._stack.work is not None
        return self._stack.work

    def prepare(self, node: Node, parent: Node, name: bytes, *, replaced: bool = False) -> Orphan:
        """How *node* will live on once *name* in *parent* is gone.

        A lower object needs nothing but its path; an upper one a descriptor, or beyond a bound a place in work: then ``work_name`` is set.
        A file has that name at once, besides its own; a directory is to be moved there instead of being removed (one that is *replaced* by
        another, which is rare, gets its descriptor all the same).
        """
        upper = self._stack.upper
        if node.layer is not upper or upper is None:
            above = self._descriptors.directory_path(parent, node.layer)
            return Orphan(path=above + b"/" + name if above else name)
        if self.held >= self.limit and not (replaced and node.directory is not None):
            kept = self._work.name()
            if node.directory is None:
                fd = self._descriptors.directory_fd(parent, upper)
                os.link(name, kept, src_dir_fd=fd, dst_dir_fd=self._work.fd, follow_symlinks=False)
            return Orphan(work_name=kept, links=1)
        return Orphan(fd=upper.open_file(self._descriptors.directory_fd(parent, upper), name, os.O_PATH))

    def abandon(self, orphan: Orphan) -> None:
        """Undo ``prepare``: the name stays after all."""
        if orphan.fd >= 0:
            os.close(orphan.fd)
        if orphan.work_name is not None:
            self._work.discard(orphan.work_name)

    def keep(self, node: Node, orphan: Orphan) -> None:
        """*node* lives on as *orphan* says; what that holds is given back by ``drop``."""
        node.orphan = orphan
        self.held += orphan.fd >= 0

    def drop(self, node: Node) -> None:
        """Give back what an orphan holds: it is dead, or has a name again."""
        orphan = node.orphan
        if orphan is None:
            return
        node.orphan = None
        if orphan.fd >= 0:
            os.close(orphan.fd)
            self.held -= 1
        if orphan.work_name is not None:
            self._work.discard(orphan.work_name)
