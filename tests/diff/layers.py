"""Random layers: strategies that describe them, and the function that puts one on disk.

Names come from a small universe, so that layers and operations meet often. A layer is a list of (path, Node) pairs;
parents are made as they are needed, and what contradicts an earlier pair (a child of a file, a path twice) is left
out, so that every list means something and shrinks well.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xattr
from hypothesis import strategies as st

from tests.diff.settings import Setting
from tests.support import acl


class Data(bytes):
    """Bytes whose repr stays readable."""

    def __repr__(self) -> str:
        return super().__repr__() if len(self) <= 40 else f"<{len(self)} bytes {bytes(self[:12])!r}...>"


LONG = Data(b"n" * 255)
UNIVERSE: tuple[bytes, ...] = (
    b"a", b"b", b"c", b"d",
    b"d/a", b"d/b", b"a/a", b"a/b", b"a/c", b"b/a", b"b/b", b"b/c", b"c/a", b"c/b",
    b"a/a/a", b"a/a/b", b"a/b/a", b"b/a/a", b"b/b/a", b"c/a/a",
    LONG, Data(b"a/" + LONG), b"new\nline", b"b/\xff\xfe", b"\xff", b".wh.a", b"a/.wh..wh..opq", b"b/#0",
)
OPAQUE = "trusted.overlay.opaque"
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service? any valid v2 value
WHITEOUT = "trusted.overlay.whiteout"
OLD = 1_000_000_000  # 2001: layers are older than the test

paths = st.sampled_from(UNIVERSE)
small_data = st.sampled_from([Data(data) for data in (
    b"", b"x", b"some text\n", b"0123456789" * 50, b"z" * 5000, b"\0" * 4096 + b"end", b"big " * 50_000)])
file_modes = st.sampled_from([0o644, 0o600, 0o755, 0o666, 0o444, 0o000, 0o4755, 0o2755, 0o2644, 0o6777, 0o1777])
directory_modes = st.sampled_from([0o755, 0o777, 0o700, 0o1777, 0o2775, 0o2777, 0o555, 0o3777, 0o000])
owners = st.sampled_from([(0, 0), (1000, 1000), (1001, 1001), (0, 1000), (1000, 1002)])
targets = st.sampled_from([b"a", b"b", b"../a", b"a/b", b"missing", b".", b"..", b"c", Data(b"x" * 200), b"\xff\xfe"])
devices = st.sampled_from([(1, 3), (250, 7)])
_moments = st.sampled_from([OLD * 10**9, (OLD + 86_400) * 10**9 + 123_456_789, OLD * 10**9 + 1])
acls = st.sampled_from([
    acl.encode(7, 5, 5),
    acl.encode(6, 4, 0),
    acl.encode(7, 7, 5, users={1000: 0}),
    acl.encode(7, 0, 0, users={1000: 7}),
    acl.encode(6, 4, 4, groups={1002: 6}, mask=4),
    acl.encode(7, 5, 0, users={1000: 7, 1001: 5}, mask=5),
])
_user_xattrs = st.dictionaries(
    st.sampled_from(["user.one", "user.two", "user.overlay.opaque", "trusted.mine", "trusted.overlay.overlay.opaque"]),
    st.sampled_from([b"", b"y", b"value", b"v" * 300]), max_size=2)


@dataclass(frozen=True)
class Node:
    """One object of a layer. `data` is the content, the symlink's target, or for "hardlink" the path it shares."""

    kind: str
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[str, bytes], ...] = ()
    mtime_ns: int = OLD * 10**9


def _escaped(name: str) -> str:
    """As an overlay stores an attribute that is a mark for the overlay above it."""
    return name.replace(".overlay.", ".overlay.overlay.", 1)


def _frozen(values: dict[str, bytes]) -> tuple[tuple[str, bytes], ...]:
    return tuple(sorted(values.items()))


def _with_acls(strategy: st.SearchStrategy[dict[str, bytes]], *names: str) -> st.SearchStrategy[dict[str, bytes]]:
    """Some of the dictionaries, with an ACL added to a few."""
    extra = st.dictionaries(st.sampled_from(names), acls, max_size=1)
    return st.builds(lambda one, other: {**one, **other}, strategy, st.one_of(st.just({}), st.just({}), extra))


_files = st.builds(
    Node, st.just("file"), file_modes, owners, small_data,
    xattrs=_with_acls(_user_xattrs, acl.ACCESS).map(_frozen), mtime_ns=_moments)
_opaque = st.sampled_from([{}, {}, {OPAQUE: b"y"}])
_directories = st.builds(
    Node, st.just("directory"), directory_modes, owners, mtime_ns=_moments,
    xattrs=_with_acls(st.builds(lambda one, other: {**one, **other}, _user_xattrs, _opaque),
                      acl.ACCESS, acl.DEFAULT).map(_frozen))
_symlinks = st.builds(Node, st.just("symlink"), st.just(0o777), owners, targets, mtime_ns=_moments)
_whiteouts = st.just(Node("whiteout", 0o000))
# An empty file that is a whiteout by an attribute, in a lower whose directory says so; in the lower of an overlay's lower.
_xattr_whiteouts = st.sampled_from([Node("xattr whiteout", xattrs=((name, b""),)) for name in (WHITEOUT, WHITEOUT, _escaped(WHITEOUT))])
_hard_links = st.builds(Node, st.just("hardlink"), data=paths)
_specials = st.builds(
    Node, st.sampled_from(["fifo", "socket", "character device", "block device"]), file_modes, owners, rdev=devices,
    mtime_ns=_moments)
_nodes = st.one_of(_files, _directories, _files, _directories, _files, _files, _whiteouts, _symlinks, _hard_links, _specials)

Layer = list[tuple[bytes, Node]]
_MOST_NODES = 12


@st.composite
def _layers(draw: st.DrawFn, nodes: st.SearchStrategy[Node]) -> Layer:
    """Nearly always _MOST_NODES pairs, where st.lists would make few; None shrinks a pair away."""
    pair = st.one_of(st.none(), *[st.tuples(paths, nodes)] * 5)
    return [found for _ in range(_MOST_NODES) if (found := draw(pair)) is not None]


@dataclass(frozen=True)
class Stack:
    """`lowers` is topmost first. The upper may hold something already, as after an earlier mount."""

    lowers: tuple[Layer, ...]
    upper: Layer


def _valid_stack(lowers: tuple[Layer, ...], upper: Layer) -> Stack:
    """Without the whiteouts of upper that hide nothing: the kernel never makes one in a directory it does not merge,
    and cannot remove a directory that holds one; we hide and remove them. Whiteouts by attribute are for
    lowers alone, and not for the bottom, where the kernel does not look for them."""
    bottom = [(path, node) for path, node in lowers[-1] if node.kind != "xattr whiteout"]
    lowers = (*lowers[:-1], bottom)
    below = visible(Stack(lowers, []))
    opaque = [path for path, node in upper if (OPAQUE, b"y") in node.xattrs]

    def merged(path: bytes) -> bool:
        parent = os.path.dirname(path)
        hidden = any((parent + b"/").startswith(place + b"/") for place in opaque)
        return not parent or (below.get(parent) == "directory" and not hidden)

    kept = [(path, node) for path, node in upper
            if node.kind != "xattr whiteout" and (node.kind != "whiteout" or merged(path))]
    return Stack(lowers, kept)


def stacks(setting: Setting) -> st.SearchStrategy[Stack]:
    """Stacks for a mount of this setting. Whiteouts by attribute are what overlays in lowers are for."""
    made = _layers(st.one_of(_nodes, _nodes, _nodes, _xattr_whiteouts) if setting.nested else _nodes)
    return st.builds(_valid_stack, st.lists(made, min_size=1, max_size=4).map(tuple), st.one_of(st.just([]), st.just([]), made))


def visible(stack: Stack) -> dict[bytes, str]:
    """What a union of the stack shows: each path with its kind. Only a model to aim operations with, not an oracle."""
    shown: dict[bytes, str] = {}
    for layer in (*reversed(stack.lowers), stack.upper):
        own: dict[bytes, str] = {}
        for path, node in layer:
            parents = [path[:place] for place, byte in enumerate(path) if byte == ord("/")]
            if path in own or any(own.get(parent, "directory") != "directory" for parent in parents):
                continue
            for parent in parents:
                _show(shown, own, parent, "directory", opaque=False)
            _show(shown, own, path, node.kind, opaque=(OPAQUE, b"y") in node.xattrs)
    return {path: kind for path, kind in shown.items() if "whiteout" not in kind}


def _show(shown: dict[bytes, str], own: dict[bytes, str], path: bytes, kind: str, opaque: bool) -> None:
    own[path] = kind
    if kind != "directory" or opaque or shown.get(path, "directory") != "directory":
        for hidden in [other for other in shown if other.startswith(path + b"/") and other not in own]:
            del shown[hidden]
    shown[path] = "file" if kind == "hardlink" else kind


# ---- on disk ----

_TYPES = {"file": stat.S_IFREG, "xattr whiteout": stat.S_IFREG, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "whiteout": stat.S_IFCHR,
          "character device": stat.S_IFCHR, "block device": stat.S_IFBLK}


def build(layer: Layer, top: Path, marked: Callable[[str], str] = str) -> None:
    """Make the directory `top` and in it the layer. marked() turns the names of attributes into those that are on disk."""
    top.mkdir(mode=0o755)
    root = os.fsencode(top)
    made: list[tuple[bytes, Node]] = []
    for relative, node in layer:
        path = os.path.join(root, relative)
        if _make_parents(root, relative) and not os.path.lexists(path) and _make(root, path, node, marked):
            made.append((path, node))
    for path, node in reversed(made):  # times last: making children changes them
        os.utime(path, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)
    os.utime(top, (OLD, OLD))


def _make_parents(root: bytes, relative: bytes) -> bool:
    path = root
    for part in relative.split(b"/")[:-1]:
        path = os.path.join(path, part)
        if not os.path.lexists(path):
            os.mkdir(path, 0o755)
        elif not stat.S_ISDIR(os.lstat(path).st_mode):
            return False
    return True


def _make(root: bytes, path: bytes, node: Node, marked: Callable[[str], str]) -> bool:
    """False when the node cannot be made here: a hard link to nothing or to a directory or whiteout."""
    if node.kind == "hardlink":
        return _make_link(os.path.join(root, node.data), path)
    if node.kind == "symlink":
        os.symlink(node.data, path)
    elif node.kind == "directory":
        os.mkdir(path)
    else:
        os.mknod(path, _TYPES[node.kind] | 0o600, os.makedev(*node.rdev) if "device" in node.kind else 0)
    if node.kind == "file":
        Path(os.fsdecode(path)).write_bytes(node.data)
    os.lchown(path, *node.owner)
    if node.kind != "symlink":
        os.chmod(path, node.mode)
    for name, value in node.xattrs:
        xattr.setxattr(path, marked(name), value, symlink=True)
    if node.kind == "xattr whiteout":
        _say_that_whiteouts_are_here(os.path.dirname(path), marked(node.xattrs[0][0].replace("whiteout", "opaque")))
    return True


def _say_that_whiteouts_are_here(directory: bytes, opaque: str) -> None:
    """Without this mark the kernel does not look whether files are whiteouts; an opaque directory has nothing to white out."""
    with contextlib.suppress(FileExistsError):
        os.setxattr(directory, opaque, b"x", os.XATTR_CREATE)


def _make_link(source: bytes, path: bytes) -> bool:
    try:
        found = os.lstat(source)
        if stat.S_ISDIR(found.st_mode) or (stat.S_ISCHR(found.st_mode) and found.st_rdev == 0):
            return False
        os.link(source, path, follow_symlinks=False)
    except OSError:
        return False
    os.utime(path, ns=(OLD * 10**9, OLD * 10**9), follow_symlinks=False)
    return False  # the times of its inode are someone else's
