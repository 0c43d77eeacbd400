"""Strategies for the operations: which verb, on which path, with what, by whom.

Most paths are picked among those that the layers hold as the kind of object the verb wants, so that most operations
get past the first check; the rest come from the whole universe of names, so that every error is met too.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.diff.layers import (
    CAPABILITY,
    OLD,
    UNIVERSE,
    Stack,
    acls,
    devices,
    directory_modes,
    file_modes,
    small_data,
    targets,
    visible,
)
from tests.diff.operations import EXCHANGE, KEEP_SIZE, NOREPLACE, PUNCH_HOLE, ZERO_RANGE
from tests.diff.settings import Setting, later
from tests.support import acl


@dataclass(frozen=True)
class Step:
    """One operation: the name of a function in operations.py, its arguments, and who calls it."""

    verb: str
    arguments: tuple[Any, ...]
    who: int = 0
    umask: int = 0o022


_callers = st.sampled_from([0, 0, 0, 1000])
_umasks = st.sampled_from([0o022, 0o022, 0o000, 0o077])
_slots = st.integers(0, 1)
_offsets = st.sampled_from([0, 3, 4095, 6000])
_sizes = st.sampled_from([0, 1, 4096, 10_000])
_lengths = st.sampled_from([1, 4096, 10_000])
_allocations = st.sampled_from([0, KEEP_SIZE, KEEP_SIZE | PUNCH_HOLE, ZERO_RANGE])
_new_names = st.sampled_from(sorted({os.path.basename(path) for path in UNIVERSE}))
_ids = st.sampled_from([-1, 0, 1000, 1001, 1002])
_moments = st.sampled_from([OLD * 10**9 + 987_654_321, (OLD - 5) * 10**9, 0, 10**9 - 1])
_follow = st.booleans()
_xattr_names = st.sampled_from(["user.one", "trusted.mine", acl.ACCESS] * 5 + [
    "user.one", "user.two", "trusted.mine", "user.overlay.opaque", "trusted.overlay.opaque",
    "trusted.overlay.whiteout", "trusted.overlay.foo", "trusted.overlay.overlay.foo", "trusted.overlay.redirect",
    "trusted.overlay.", "security.capability", acl.ACCESS, acl.DEFAULT, "nonsense", "system.other",
])
_xattr_values = st.sampled_from([b"", b"y", b"value", b"v" * 300, CAPABILITY])
_xattr_flags = st.sampled_from([0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])
_access = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
_creation = st.sampled_from([0, 0, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL])
_open_extras = st.sampled_from([0, 0, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_TRUNC | os.O_APPEND])
_open_flags = st.builds(lambda *parts: sum(parts), _access, _creation, _open_extras)
_kinds = st.sampled_from([stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
_modes = st.one_of(file_modes, directory_modes)
_rename_flags = st.sampled_from([0, 0, 0, NOREPLACE, EXCHANGE, EXCHANGE, NOREPLACE | EXCHANGE])

Paths = st.SearchStrategy[bytes]


def _mostly(wanted: list[bytes]) -> Paths:
    """Three of four from the wanted ones."""
    everywhere = st.sampled_from(UNIVERSE)
    if not wanted:
        return everywhere
    picked = st.sampled_from(sorted(wanted))
    return st.one_of(picked, picked, picked, everywhere)


def steps_on(seen: dict[bytes, str]) -> st.SearchStrategy[Step | None]:
    """Single steps that fit what is there (see layers.visible); None, the simplest, is no step at all."""
    things = _mostly(list(seen))
    directories = _mostly([path for path, kind in seen.items() if kind == "directory"])
    files = _mostly([path for path, kind in seen.items() if kind == "file"])
    links = _mostly([path for path, kind in seen.items() if kind == "symlink"])
    new = _mostly([path for path in UNIVERSE if path not in seen
                   and seen.get(os.path.dirname(path), "directory") == "directory"
                   and (b"/" not in path or os.path.dirname(path) in seen)])

    def verb(name: str, *arguments: st.SearchStrategy[Any], as_root: bool = False) -> st.SearchStrategy[Step]:
        who = st.just(0) if as_root else _callers
        return st.builds(Step, st.just(name), st.tuples(*arguments), who, _umasks)

    choices: list[st.SearchStrategy[Step | None]] = [
        st.none(),
        verb("mkdir", new, _modes), verb("mkdir", new, _modes),
        verb("mknod", new, _kinds, file_modes, st.one_of(devices, st.just((0, 0)))),
        verb("symlink", new, targets),
        verb("link", st.one_of(files, things), new),
        verb("unlink", things), verb("unlink", things),
        verb("rmdir", directories), verb("remove_tree", directories, as_root=True),
        verb("rename", files, new, st.sampled_from([0, NOREPLACE])), verb("rename", directories, new, _rename_flags),
        verb("rename", directories, new, st.just(0), as_root=True),
        verb("rename", directories, directories, st.just(EXCHANGE), as_root=True),
        verb("rename", things, things, _rename_flags),
        verb("readdir", directories), verb("readdir", directories), verb("lstat", things), verb("follow", things),
        verb("readlink", links), verb("statfs", things), verb("access", things, st.integers(0, 7)),
        verb("chmod", things, _modes), verb("chown", things, _ids, _ids, _follow),
        verb("utimens", things, _moments, _moments, _follow), verb("touch", things),
        verb("setxattr", things, _xattr_names, _xattr_values, _xattr_flags, _follow),
        verb("setxattr", directories, st.sampled_from([acl.ACCESS, acl.DEFAULT]), acls, st.just(0), st.just(True)),
        verb("setxattr", files, st.just(acl.ACCESS), acls, st.just(0), st.just(True)),
        verb("getxattr", things, _xattr_names, _follow), verb("listxattr", things, _follow),
        verb("removexattr", things, _xattr_names, _follow),
        verb("open_file", files, _open_flags, file_modes, small_data),
        verb("open_file", new, st.just(os.O_CREAT | os.O_EXCL | os.O_RDWR), file_modes, small_data),
        verb("open_file", new, st.just(os.O_CREAT | os.O_WRONLY | os.O_APPEND), file_modes, small_data),
        verb("read", files), verb("write", files, _offsets, small_data, as_root=True),
        verb("write", files, _offsets, small_data), verb("write_mapped", files, small_data, as_root=True),
        verb("truncate", files, _sizes), verb("fsync", things),
        verb("allocate", files, _allocations, _offsets, _lengths), verb("extents", files),
        verb("copy_range", files, files, _offsets, _offsets, _lengths), verb("unnamed", directories, _new_names, file_modes, small_data),
        verb("keep", _slots, files, st.just(os.O_RDWR), as_root=True), verb("keep", _slots, files, st.just(os.O_RDWR)),
        verb("keep", _slots, files, st.just(os.O_WRONLY | os.O_APPEND), as_root=True),
        verb("keep", _slots, things, _access), verb("keep", _slots, directories, st.just(os.O_RDONLY)),
        verb("kept_write", _slots, _offsets, small_data), verb("kept_append", _slots, small_data),
        verb("kept_read", _slots), verb("kept_stat", _slots), verb("kept_list", _slots),
        verb("kept_truncate", _slots, _sizes), verb("kept_chmod", _slots, _modes),
        verb("kept_setxattr", _slots, _xattr_names, _xattr_values), verb("kept_listxattr", _slots),
        verb("close", _slots),
    ]
    return st.one_of(choices)


def _after(step: Step, seen: dict[bytes, str]) -> dict[bytes, str]:
    """What is there after the step, as far as later steps aim better for it: renamed directories take along what is in them."""
    if step.verb != "rename" or seen.get(step.arguments[0]) != "directory":
        return seen
    old, new, flags = step.arguments
    if old == new or (new + b"/").startswith(old + b"/") or (old + b"/").startswith(new + b"/") or flags & NOREPLACE and new in seen:
        return seen

    def moved(path: bytes) -> bytes:
        for place, other in ((old, new), (new, old) if flags & EXCHANGE else (old, new)):
            if path == place or path.startswith(place + b"/"):
                return bytes(other + path[len(place):])
        return path

    return {moved(path): kind for path, kind in seen.items()}


_MOST_REMOUNTS = 3


@st.composite
def _remounts(draw: st.DrawFn, setting: Setting) -> Step:
    """Mount again, in the same or another setting. `swap`: each side gets the other's layers; `rotate`: the upper becomes the
    top lower, and a fresh one is put on it. Not so with an index, without which its hard links are not whole."""
    return Step("remount", (draw(later(setting)), draw(st.booleans()), setting.index == "off" and draw(st.booleans())))


@st.composite
def sequences(draw: st.DrawFn, setting: Setting, stack: Stack, most: int) -> list[Step]:
    """Nearly always `most` steps, where st.lists would make few. A failure shrinks step by step to nothing."""
    remounts = {draw(st.integers(1, most - 1)): draw(_remounts(setting)) for _ in range(draw(st.integers(0, _MOST_REMOUNTS)))}
    seen = visible(stack)
    step = steps_on(seen)
    found: list[Step] = []
    for number in range(most):
        if number in remounts:
            found.append(remounts[number])
        if (drawn := draw(step)) is None:
            continue
        found.append(drawn)
        if (after := _after(drawn, seen)) is not seen:
            seen, step = after, steps_on(after)
    return found
