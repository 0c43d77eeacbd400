"""One run of the comparison: a stack of layers, a sequence of steps, two mounts that must agree after each."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.diff import operations
from tests.diff.layers import Stack, build
from tests.diff.operations import Answer, Side
from tests.diff.steps import Step
from tests.support import acl, tree
from tests.support.mounts import Layers, Mount, Mounts

# How many of a verb's first arguments are paths that it may change.
_TOUCHES = {
    "mkdir": 1, "mknod": 1, "symlink": 1, "link": 2, "unlink": 1, "rmdir": 1, "rename": 2, "chmod": 1, "chown": 1,
    "utimens": 1, "touch": 1, "setxattr": 1, "removexattr": 1, "open_file": 1, "write": 1, "write_mapped": 1,
    "truncate": 1,
}
_KEEPS_INODE = {
    "chmod", "chown", "utimens", "touch", "setxattr", "removexattr", "write", "write_mapped", "truncate", "open_file"}


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


_DROPS_SETGID = {"open_file", "write", "truncate", "chown", "kept_write", "kept_append", "kept_truncate"}


class Disagreement(AssertionError):
    """The subject and the kernel differ."""


def _answer(side: Side, step: Step) -> Answer:
    try:
        with operations.acting_as(step.who, step.umask):
            return getattr(operations, step.verb)(side, *step.arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _prepare(stack: Stack, scratch: Path) -> tuple[Layers, Layers]:
    """The layers twice: built once, then copied. The mount points lie deep: a symlink may lead out by `..`."""
    first, second = scratch / "subject", scratch / "kernel"
    first.mkdir()
    for number, lower in enumerate(stack.lowers):
        build(lower, first / f"lower{number}")
    build(stack.upper, first / "upper")
    (first / "work").mkdir()
    (first / "out" / "mnt").mkdir(parents=True)
    subprocess.run(["cp", "-a", "--preserve=all", first, second], check=True, timeout=30)
    return _layers_in(first, len(stack.lowers)), _layers_in(second, len(stack.lowers))


def _layers_in(side: Path, lowers: int) -> Layers:
    return Layers(tuple(side / f"lower{number}" for number in range(lowers)), side / "upper", side / "work")


class Comparison:
    """The two mounts of one run. `subject` names the filesystem that is held against the kernel's."""

    def __init__(self, subject: str, stack: Stack, directory: Path, counters: Counters) -> None:
        self.subject = subject
        self.counters = counters
        self.mounts = Mounts(directory)
        self.layers = _prepare(stack, directory)
        self.prints = self._fingerprints()
        self.live = (
            self.mounts.by_kind(subject)(self.layers[0], target=directory / "subject" / "out" / "mnt"),
            self.mounts.kernel(self.layers[1], target=directory / "kernel" / "out" / "mnt"),
        )
        self.sides = (self._side(self.live[0], subject), self._side(self.live[1], "kernel"))

    @staticmethod
    def _side(mount: Mount, name: str) -> Side:
        return Side(name, mount.path, os.fsencode(mount.layers.upper or b""), hide_ghosts=mount.kind == "kernel")

    def _fingerprints(self) -> list[list[str]]:
        return [[tree.fingerprint(lower) for lower in layers.lowers] for layers in self.layers]

    # ---- one step ----

    def do(self, step: Step) -> None:
        """Raises Disagreement when the answers, or the touched objects and their directories, are not the same."""
        if step.verb == "remove_tree":
            for victim in self._below(step.arguments[0]):
                self._do_one(Step(self._remover(victim), (victim,)))
        elif step.verb != "kept_read" or self._coherent(step.arguments[0]):
            self._do_one(self._comparable(step))

    def _comparable(self, step: Step) -> Step:
        """The step without what the kernel's FUSE is known to do in its own way."""
        if step.who and self._has_odd_setgid(step):
            step = replace(step, who=0)
        if step.umask and self._inherits_acl(step):
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

    def _coherent(self, slot: int) -> bool:
        """The kernel goes on reading the lower file through what was opened before the copy-up; we need not."""
        kept = self.sides[1].kept.get(slot)
        return kept is None or kept.coherent

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
        return "rmdir" if stat.S_ISDIR(os.lstat(self.sides[1].at(path)).st_mode) else "unlink"

    # ---- the end of a run ----

    def finish(self) -> None:
        """Compare the live trees, then each upper under the other filesystem; no lower may have been written."""
        ours, kernels = self._snapshots(self.live)
        _same(ours, kernels, (self.subject, "kernel"))
        _same_numbers(self.sides[0].root, self.sides[1].root, ours)
        self._unmount()
        crossed = (self.mounts.by_kind(self.subject)(self.layers[1]), self.mounts.kernel(self.layers[0]))
        ours, on_kernel = self._snapshots(crossed)
        _same(ours, kernels, (f"the kernel's upper on {self.subject}", "the same on the kernel"))
        _same(on_kernel, kernels, (f"the upper of {self.subject} on the kernel", "the kernel's own"))
        self._unmount()
        if self._fingerprints() != self.prints:
            raise Disagreement("a lower was written")

    @staticmethod
    def _snapshots(pair: tuple[Mount, Mount]) -> tuple[tree.Snapshot, tree.Snapshot]:
        one, other = (tree.snapshot(mount.path, hide_ghosts=mount.kind == "kernel") for mount in pair)
        return one, other

    def _unmount(self) -> None:
        complaints = self.close()
        if complaints:
            raise Disagreement("\n".join(complaints))

    def close(self) -> list[str]:
        for side in self.sides:
            side.close()
        return self.mounts.close()


def _object(side: Side, path: bytes) -> Any:
    try:
        return tree.entry_at(side.at(path), side.hide_ghosts)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _same(left: tree.Snapshot, right: tree.Snapshot, names: tuple[str, str]) -> None:
    if found := tree.difference(left, right, names):
        raise Disagreement(f"the trees differ:\n{found}")


def _same_numbers(subject: bytes, kernel: bytes, everything: Iterable[bytes]) -> None:
    """Two names show one inode number exactly where they do so on the kernel; a directory's is its own."""
    paths = list(everything)
    ours, kernels = (_by_number(root, paths) for root in (subject, kernel))
    if ours != kernels:
        raise Disagreement(f"of one inode number are {sorted(ours - kernels)}, in kernel {sorted(kernels - ours)}")
    directories = [path for path in paths if stat.S_ISDIR(os.lstat(os.path.join(subject, path)).st_mode)]
    taken = {os.lstat(os.path.join(subject, path)).st_ino for path in paths if path not in directories}
    numbers = [os.lstat(os.path.join(subject, path)).st_ino for path in directories]
    if len({*numbers}) < len(numbers) or taken & {*numbers}:
        raise Disagreement("a directory shows the inode number of something else")


def _by_number(root: bytes, paths: list[bytes]) -> set[tuple[bytes, ...]]:
    """The names of more than one non-directory that show one number, as sets of names."""
    users: dict[tuple[int, int], list[bytes]] = {}
    for path in sorted(paths):
        found = os.lstat(os.path.join(root, path))
        if not stat.S_ISDIR(found.st_mode):
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


def run(subject: str, stack: Stack, steps: Iterable[Step], scratch: Path, counters: Counters) -> None:
    """Mount, do the steps, compare the end; whatever happens, nothing stays mounted."""
    counters.examples += 1
    with _example_directory(scratch, counters.examples) as directory:
        comparison = Comparison(subject, stack, directory, counters)
        try:
            for step in steps:
                comparison.do(step)
            comparison.finish()
        finally:
            complaints = comparison.close()
        assert not complaints, "\n".join(complaints)
