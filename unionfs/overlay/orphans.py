"""Objects without a name: how what is deleted while somebody has it open lives on, until it is forgotten, and what has no name yet.

The tree owns the only ``Orphans`` and tells it when nodes die; the verbs that take names away (union.py, rename.py) ask beforehand, and
bring_up.py for what lost its name while it was copied up.
"""

from __future__ import annotations

import errno
import os

from unionfs.errors import error
from unionfs.linux import files
from unionfs.overlay.copy_up import Work
from unionfs.overlay.descriptors import Descriptors
from unionfs.overlay.node import Node, Orphan
from unionfs.overlay.stack import Stack


def _link_unnamed(fd: int, dir_fd: int, name: bytes) -> None:
    os.link(files.path_at(fd, b""), name, dst_dir_fd=dir_fd)  # by linkat, which follows the magic link; without dst_dir_fd it is by link


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

    def prepare_unborn(self, fd: int) -> Orphan:
        """How the file *fd*, made without a name, lives on: as ``prepare`` says."""
        return Orphan(fd=files.reopen(fd, os.O_PATH), unborn=True) if self.held < self.limit else self._named(fd)

    def _named(self, fd: int) -> Orphan:
        kept = self._work.name()
        _link_unnamed(fd, self._work.fd, kept)
        return Orphan(work_name=kept, links=1, unborn=True)

    def link(self, node: Node, dir_fd: int, name: bytes) -> None:
        """Give *node*, an orphan, the *name* in the directory *dir_fd* of upper or work; ENOENT for one that had its time (vfs_link)."""
        orphan = node.orphan
        if orphan is None or not orphan.unborn:
            raise error(errno.ENOENT)
        if orphan.work_name is None:
            if dir_fd != self._work.fd:
                _link_unnamed(orphan.fd, dir_fd, name)
                return
            # a name in work may be taken back, and who has lost his first never gets another (I_LINKABLE): so one for us, to stay
            named = self._named(orphan.fd)
            self.drop(node)
            self.keep(node, named)
            orphan = named
        assert orphan.work_name is not None
        os.link(orphan.work_name, name, src_dir_fd=self._work.fd, dst_dir_fd=dir_fd, follow_symlinks=False)

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
