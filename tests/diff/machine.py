"""One run of the comparison: a stack of layers, a sequence of steps, two mounts that must agree after each."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.diff import operations
from tests.diff.layers import OLD, Stack, build
from tests.diff.operations import Answer, Side
from tests.diff.settings import Setting
from tests.diff.steps import Step
from tests.support import acl, tree
from tests.support.mounts import Layers, Mount, MountFailed, Mounts

# How many of a verb's first arguments are paths that it may change.
_TOUCHES = {
    "mkdir": 1, "mknod": 1, "symlink": 1, "link": 2, "unlink": 1, "rmdir": 1, "rename": 2, "chmod": 1, "chown": 1,
    "utimens": 1, "touch": 1, "setxattr": 1, "removexattr": 1, "open_file": 1, "write": 1, "write_mapped": 1,
    "truncate": 1, "allocate": 1, "copy_range": 2,
}
_KEEPS_INODE = {
    "chmod", "chown", "utimens", "touch", "setxattr", "removexattr", "write", "write_mapped", "truncate", "open_file", "allocate"}
#: What the engine pyfuse3 has no words for.
_BEYOND_PYFUSE3 = {"allocate", "extents", "unnamed"}


@dataclass
class Counters:
    """What was done over all runs."""

    examples: int = 0
    operations: int = 0
    by_verb: dict[str, list[int]] = field(default_factory=dict)  # verb: [tried, succeeded]

    def add(self, verb: str, answer: Answer) -> None:
        self.operations += 1
        tally = self.by_verb.setdefault(verb, [0, 0])
        tally[0] += 1
        tally[1] += not _is_error(answer)

    def __str__(self) -> str:
        succeeded = sum(tally[1] for tally in self.by_verb.values())
        verbs = ", ".join(f"{verb} {tally[1]}/{tally[0]}" for verb, tally in sorted(self.by_verb.items()))
        return f"{self.operations} operations, {succeeded} of them successful, in {self.examples} runs\n{verbs}"


def _is_error(answer: Answer) -> bool:
    return isinstance(answer, str) and answer in errno.errorcode.values()


REDIRECT_MAX = 256
_KEPT_COPY_UP = {"kept_chmod", "kept_setxattr"}
_DROPS_SETGID = {"open_file", "write", "truncate", "chown", "kept_write", "kept_append", "kept_truncate", "copy_range"}


class Disagreement(AssertionError):
    """The subject and the kernel differ."""


def _answer(side: Side, step: Step) -> Answer:
    try:
        with operations.acting_as(step.who, step.umask):
            return getattr(operations, step.verb)(side, *step.arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _prepare(stack: Stack, setting: Setting, scratch: Path) -> tuple[Layers, Layers]:
    """The layers twice: built once, then copied. The mount points lie deep: a symlink may lead out by `..`."""
    first, second = scratch / "subject", scratch / "kernel"
    first.mkdir()
    for number, lower in enumerate(stack.lowers):
        build(lower, first / f"lower{number}", setting.marked)
    build(stack.upper, first / "upper", setting.marked)
    (first / "work").mkdir()
    (first / "nested").mkdir()
    (first / "out" / "mnt").mkdir(parents=True)
    subprocess.run(["cp", "-a", "--preserve=all", first, second], check=True, timeout=30)
    return _layers_in(first, len(stack.lowers)), _layers_in(second, len(stack.lowers))


def _layers_in(side: Path, lowers: int) -> Layers:
    return Layers(tuple(side / f"lower{number}" for number in range(lowers)), side / "upper", side / "work")


class Comparison:
    """The two mounts of one run. `subject` names the filesystem that is held against the kernel's."""

    def __init__(self, subject: str, setting: Setting, stack: Stack, directory: Path, counters: Counters) -> None:
        self.subject = subject
        self.setting = setting
        self.counters = counters
        self.targets = tuple(directory / name / "out" / "mnt" for name in ("subject", "kernel"))
        self.layers = _prepare(stack, setting, directory)
        self.prints = {lower: tree.fingerprint(lower) for layers in self.layers for lower in layers.lowers}
        self.xattr_whiteouts = any(node.kind == "xattr whiteout" for layer in stack.lowers for _, node in layer)
        self.inner = Mounts(directory)
        if setting.nested and len(stack.lowers) > 1:
            self.layers = self._nested(self.layers[0]), self._nested(self.layers[1])
        self.mounts = Mounts(directory / "logs")  # not the directory of those that stay
        self.mounts.scratch.mkdir()
        self.sides: tuple[Side, ...] = ()
        self._mount()

    def _nested(self, layers: Layers) -> Layers:
        first, *others = layers.lowers
        inner = self.inner.kernel(Layers(tuple(others)), target=first.parent / "nested")
        return replace(layers, lowers=(first, inner.target))

    def _mount(self) -> None:
        makers = self.mounts.by_kind(self.subject), self.mounts.kernel
        self.live = tuple(_when_free(maker, self._as_set(layers), target=target, options=self.setting.options)
                          for maker, layers, target in zip(makers, self.layers, self.targets, strict=True))
        self.sides = (self._side(self.live[0], self.subject), self._side(self.live[1], "kernel"))

    def _as_set(self, layers: Layers) -> Layers:
        """With the bottom lower as a data-only one, where that is set and it is not the only one."""
        *lowers, bottom = layers.lowers
        return replace(layers, lowers=tuple(lowers), data=(bottom,)) if self.setting.data and lowers else layers

    def _side(self, mount: Mount, name: str) -> Side:
        upper = os.fsencode(mount.layers.upper or b"")
        return Side(name, mount.path, upper, hide_ghosts=mount.kind == "kernel", metacopy=self.setting.metacopy == "on")

    # ---- one step ----

    def do(self, step: Step) -> None:
        """Raises Disagreement when the answers, or the touched objects and their directories, are not the same."""
        if step.verb == "remount":
            self._remount(step, *step.arguments)
        elif step.verb == "remove_tree":
            for victim in self._below(step.arguments[0]):
                self.do(Step(self._remover(victim), (victim,)))
        elif not self._incomparable(step):
            self._do_one(self._comparable(step))

    def _remount(self, step: Step, setting: Setting, swap: bool, rotate: bool) -> None:
        """Unmount both and mount again. What both show stays the same, but for what another setting refuses to follow."""
        _, before = self._look()
        numbers = _numbers(self.sides[0].root, before)
        self._unmount()
        if rotate:
            self.layers = _rotated(self.layers[0]), _rotated(self.layers[1])
            self.prints |= {layers.lowers[0]: tree.fingerprint(layers.lowers[0]) for layers in self.layers}
        if swap:
            self.layers = self.layers[1], self.layers[0]
        same, self.setting = setting == self.setting, setting
        self._make_mountable()
        self._mount()
        ours, kernels = self._look()
        _same(ours, kernels, (f"{self.subject} after {step}", "the kernel's"))
        if same and not rotate:  # a rotated upper no longer decides the root's attributes
            _same(kernels, before, (f"the kernel's after {step}", "before it"))
            if not swap and not setting.nested and self.subject in ("ours", "pyfuse3"):  # an overlay in a lower does not keep its own
                _kept_numbers(numbers, _numbers(self.sides[0].root, before), step)

    def _make_mountable(self) -> None:
        """Remove the mark of a volatile mount, which says that a crash may have lost something."""
        for layers in self.layers:
            shutil.rmtree(str(layers.work) + "/work/incompat", ignore_errors=True)

    def _comparable(self, step: Step) -> Step:
        """The step in the words of the setting, without what the kernel's FUSE is known to do in its own way."""
        words = (self.setting.marked(argument) if isinstance(argument, str) else argument for argument in step.arguments)
        step = replace(step, arguments=tuple(words))
        if step.who and self.subject == "pyfuse3" and self._has_odd_setgid(step):
            step = replace(step, who=0)
        if step.umask and self.subject == "pyfuse3" and self._inherits_acl(step):
            step = replace(step, umask=0)
        return step

    def _inherits_acl(self, step: Step) -> bool:
        """Whether something is made below a default ACL. The umask does not count there, but the kernel's FUSE applies it
        unless FUSE_DONT_MASK is negotiated."""
        if step.verb not in ("mkdir", "mknod", "open_file"):
            return False
        directory = os.path.dirname(os.path.realpath(self.sides[1].at(step.arguments[0])))
        with contextlib.suppress(OSError):
            return acl.DEFAULT in os.listxattr(directory)
        return False

    def _has_odd_setgid(self, step: Step) -> bool:
        """Whether a user is about to change a file with setgid but no group execution. Local filesystems take the bit
        away from it, too, when the user is not of the group; the kernel's FUSE never does (fuse_setattr), nor tells."""
        if step.verb not in _DROPS_SETGID:
            return False
        side, subject = self.sides[1], step.arguments[0]
        if isinstance(subject, int) and subject not in side.kept:
            return False
        with contextlib.suppress(OSError):
            mode = os.stat(side.kept[subject].fd if isinstance(subject, int) else side.at(subject)).st_mode
            return stat.S_ISREG(mode) and mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID
        return False

    def _do_one(self, step: Step) -> None:
        touched = step.arguments[:_TOUCHES.get(step.verb, 0)]
        before = self._inode(touched[0]) if step.verb in _KEEPS_INODE else None
        ours, kernels = (_answer(side, step) for side in self.sides)
        self.counters.add(step.verb, kernels)
        if ours != kernels:
            raise Disagreement(f"{step}\n  {self.subject}: {ours}\n  kernel: {kernels}")
        for path in {*touched, *(os.path.dirname(path) or b"." for path in touched)}:
            self._compare_object(path, step)
        if before is not None and (after := self._inode(touched[0])) != before:
            raise Disagreement(f"{step}\n  the inode number of {touched[0]!r} was {before}, is {after}")

    def _inode(self, path: bytes) -> int | None:
        """The subject's number for an object of one name."""
        with contextlib.suppress(OSError):
            found = os.lstat(self.sides[0].at(path))
            if found.st_nlink == 1 or stat.S_ISDIR(found.st_mode):
                return found.st_ino
        return None

    def _compare_object(self, path: bytes, step: Step) -> None:
        one, other = (_object(side, path) for side in self.sides)
        if one == other:
            return
        if isinstance(one, tree.Entry) and isinstance(other, tree.Entry):
            text = tree.difference({path: one}, {path: other}, (self.subject, "kernel"))
        else:
            text = f"{path!r} is {one} in {self.subject}, {other} in kernel"
        raise Disagreement(f"after {step}\n  {text}")

    def _incomparable(self, step: Step) -> bool:
        """Whether the kernel does here what we need not: it goes on reading the lower file through what was opened before the copy-up;
        a lower object that was removed since comes back to its name when it is copied up, as the next mount shows; and a directory
        in which it lists whiteouts that stat cannot find, or could have whiteouts by attribute in a lower part, is not empty to it.
        It touches the directory of a full one that a redirected one should replace, and fails after that. A metacopy for which the
        redirect would be too long is not renamed or linked by it, where we copy its data."""
        kernel = self.sides[1]
        if self.subject == "pyfuse3" and step.verb in _BEYOND_PYFUSE3:
            return True
        if step.verb.startswith("kept_"):
            kept = kernel.kept.get(step.arguments[0])
            if kept is None or kept.coherent:
                return False
            return step.verb == "kept_read" or (step.verb in _KEPT_COPY_UP and _is_deleted(kept.fd))
        if step.verb in ("rename", "link") and self.setting.metacopy == "on" and len(step.arguments[0]) >= REDIRECT_MAX:
            return True
        if step.verb in ("rmdir", "rename"):
            with contextlib.suppress(OSError):
                place = kernel.at(step.arguments[-1 if step.verb == "rmdir" else 1])
                if step.verb == "rename" and self.setting.redirect_dir == "on" and tree.names_in(place) and not step.arguments[2]:
                    return True
                return tree.names_in(place, hide_ghosts=True) == () and (self.xattr_whiteouts or tree.names_in(place) != ())
        return False

    def _below(self, path: bytes) -> list[bytes]:
        """The path and all below it on the kernel's side, deepest first; nothing when it does not exist."""
        place = self.sides[1].at(path)
        if not os.path.lexists(place):
            return []
        if not stat.S_ISDIR(os.lstat(place).st_mode):
            return [path]
        children = [os.path.join(path, name) for name in tree.names_in(place, hide_ghosts=True)]
        return [victim for child in children for victim in self._below(child)] + [path]

    def _remover(self, path: bytes) -> str:
        """The verb that removes it, and fails alike where a symlink on the way was removed before."""
        try:
            return "rmdir" if stat.S_ISDIR(os.lstat(self.sides[1].at(path)).st_mode) else "unlink"
        except FileNotFoundError:
            return "unlink"

    # ---- the end of a run ----

    def finish(self) -> None:
        """Compare the live trees, then each upper under the other filesystem; no lower may have been written."""
        ours, kernels = self._look()
        _same(ours, kernels, (self.subject, "kernel"))
        _same_numbers(self.sides[0].root, self.sides[1].root, ours, self.setting)
        self._unmount()
        self.layers = self.layers[1], self.layers[0]
        self._make_mountable()
        self._mount()
        ours, on_kernel = self._look()
        _same(ours, kernels, (f"the kernel's upper on {self.subject}", "the same on the kernel"))
        _same(on_kernel, kernels, (f"the upper of {self.subject} on the kernel", "the kernel's own"))
        self._unmount()
        if any(tree.fingerprint(lower) != before for lower, before in self.prints.items()):
            raise Disagreement("a lower was written")

    def _look(self) -> tuple[tree.Snapshot, ...]:
        return tuple(tree.snapshot(side.root, hide_ghosts=side.hide_ghosts, hide_broken=True) for side in self.sides)

    def _unmount(self) -> None:
        if complaints := self._end():
            raise Disagreement("\n".join(complaints))

    def _end(self) -> list[str]:
        for side in self.sides:
            side.close()
        return self.mounts.close()

    def close(self) -> list[str]:
        return [*self._end(), *self.inner.close()]


def _when_free(maker: Callable[..., Mount], layers: Layers, **how: Any) -> Mount:
    """Mount. A mount namespace that somebody makes between two mounts holds the first for as long as it lives, and with it the upper."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return maker(layers, **how)
        except MountFailed as failure:
            if failure.status != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _is_deleted(fd: int) -> bool:
    return os.readlink(f"/proc/self/fd/{fd}").endswith(" (deleted)")


def _rotated(layers: Layers) -> Layers:
    """The upper become the top lower, under an empty one. Its work directory is gone: nobody else needs it."""
    assert layers.upper is not None and layers.work is not None
    shutil.rmtree(layers.work)
    layers.work.mkdir()
    upper = layers.upper.with_name(f"upper{len(layers.lowers)}")
    upper.mkdir(mode=0o755)
    os.utime(upper, (OLD, OLD))
    return replace(layers, lowers=(layers.upper, *layers.lowers), upper=upper)


def _numbers(root: bytes, paths: Iterable[bytes]) -> dict[bytes, int]:
    """The inode number of every file of one name and of every directory; others cannot hold an origin in a user's attributes."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.lstat(os.path.join(root, path))
            if stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1):
                found[path] = status.st_ino
    return found


def _kept_numbers(before: dict[bytes, int], after: dict[bytes, int], step: Step) -> None:
    changed = [f"{path!r} was {number}, is {after.get(path)}" for path, number in before.items() if after.get(path) != number]
    if changed:
        raise Disagreement("\n".join([f"inode numbers changed by {step}", *changed]))


def _object(side: Side, path: bytes) -> Any:
    try:
        return tree.entry_at(side.at(path), side.hide_ghosts, hide_broken=True)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _same(left: tree.Snapshot, right: tree.Snapshot, names: tuple[str, str]) -> None:
    if found := tree.difference(left, right, names):
        raise Disagreement(f"the trees differ:\n{found}")


def _same_numbers(subject: bytes, kernel: bytes, everything: Iterable[bytes], setting: Setting) -> None:
    """Two names show one inode number exactly where they do so on the kernel; a directory's is its own.

    Among files only where marks are a user's: a copied-up symlink can carry no origin then, and the kernel shows a new link of it under
    another number for as long as it remembers what it was copied from.
    """
    paths = list(everything)
    ours, kernels = (_by_number(root, paths, files_only=setting.userxattr) for root in (subject, kernel))
    if ours != kernels:
        raise Disagreement(f"of one inode number are {sorted(ours - kernels)}, in kernel {sorted(kernels - ours)}")
    directories = [path for path in paths if stat.S_ISDIR(os.lstat(os.path.join(subject, path)).st_mode)]
    taken = {os.lstat(os.path.join(subject, path)).st_ino for path in paths if path not in directories}
    numbers = [os.lstat(os.path.join(subject, path)).st_ino for path in directories]
    if len({*numbers}) < len(numbers) or taken & {*numbers}:
        raise Disagreement("a directory shows the inode number of something else")


def _by_number(root: bytes, paths: list[bytes], *, files_only: bool) -> set[tuple[bytes, ...]]:
    """The names of more than one non-directory that show one number, as sets of names."""
    users: dict[tuple[int, int], list[bytes]] = {}
    for path in sorted(paths):
        found = os.lstat(os.path.join(root, path))
        if stat.S_ISREG(found.st_mode) or not (files_only or stat.S_ISDIR(found.st_mode)):
            users.setdefault((found.st_dev, found.st_ino), []).append(path)
    return {tuple(names) for names in users.values() if len(names) > 1}


@contextlib.contextmanager
def _example_directory(scratch: Path, number: int) -> Iterator[Path]:
    directory = scratch / f"example{number}"
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(subject: str, setting: Setting, stack: Stack, steps: Iterable[Step], scratch: Path, counters: Counters) -> None:
    """Mount, do the steps, compare the end; whatever happens, nothing stays mounted."""
    counters.examples += 1
    with _example_directory(scratch, counters.examples) as directory:
        comparison = Comparison(subject, setting, stack, directory, counters)
        try:
            for step in steps:
                comparison.do(step)
            comparison.finish()
        finally:
            complaints = comparison.close()
        assert not complaints, "\n".join(complaints)
