"""Bounded caches of backing descriptors: the server may have any number of nodes, but only so many descriptors."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class FdCache(Generic[K]):
    """Least recently used descriptors by key; what falls out, or is dropped, is closed.

    A descriptor is good until half of ``limit`` others were asked for: long enough for one verb, too short to be kept or handed to a
    thread.
    """

    __slots__ = ("_fds", "_limit", "_plenty")

    def __init__(self, limit: int) -> None:
        self._fds: dict[K, int] = {}
        self._limit = limit
        #: As long as there are no more, the order in which they were used is of no interest.
        self._plenty = limit // 2

    def __len__(self) -> int:
        return len(self._fds)

    def get(self, key: K) -> int | None:
        """The cached descriptor, now the most recently used."""
        fds = self._fds
        fd = fds.get(key)
        if fd is not None and len(fds) > self._plenty:
            del fds[key]
            fds[key] = fd
        return fd

    def open(self, key: K, opener: Callable[[], int]) -> int:
        """The cached descriptor, or a new one from *opener*."""
        fd = self.get(key)
        if fd is None:
            fd = opener()
            self.put(key, fd)
        return fd

    def put(self, key: K, fd: int) -> None:
        """Cache *fd*; one that was there for *key* is closed."""
        self.drop(key)
        while len(self._fds) >= self._limit:
            os.close(self._fds.pop(next(iter(self._fds))))
        self._fds[key] = fd

    def drop(self, key: K) -> None:
        """Close and forget what is cached for *key*."""
        fd = self._fds.pop(key, None)
        if fd is not None:
            os.close(fd)

    def take(self, key: K) -> int | None:
        """What is cached for *key*, from now on the caller's to close."""
        return self._fds.pop(key, None)

    def clear(self) -> None:
        """Close everything."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def share_of_descriptors(used: int) -> int:
    """For each of the four kinds held a sixth of the descriptors this process may have besides *used*, within reason."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = (1 << 20 if soft == resource.RLIM_INFINITY else soft) - used
    return max(16, min(free // 6, 4096))
