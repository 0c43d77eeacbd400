"""The server process of a run: makes the throw-away directory and the mount, serves it until it is gone, removes the directory.

Runs in a child forked by ``run.py``. Whatever is heavy (trio, pyfuse3) is imported here and late, so that the container
sets itself up meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from unionfs.errors import MountError
from unionfs.linux import process
from unionfs.options import SERVED, MountOptions
from unionfs.runtime import scratch
from unionfs.runtime.messages import Channel, close_all
from unionfs.runtime.plan import CopyOwnerAndMode, MakeScratch, MakeWork, RemoveStale, Serve, ServerStep

if TYPE_CHECKING:
    from unionfs.overlay.stack import Stack


def main(steps: Iterable[ServerStep], channel: Channel, start_log: Callable[[], None]) -> int:
    """Execute *steps*; undo on the way out, whether they succeed or not. Raises UnionfsError and OSError."""
    os.setsid()  # the terminal's signals are for the container; this process must live to clean up
    os.chdir("/")
    _leave_standard_streams()
    process.close_from(3, keep=(channel.fileno(),))
    process.reset_signals()
    os.umask(0o022)
    start_log()
    with contextlib.ExitStack() as cleanup:
        for step in steps:
            _execute(step, channel, cleanup)
    return 0


def _leave_standard_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _execute(step: ServerStep, channel: Channel, cleanup: contextlib.ExitStack) -> None:
    match step:
        case RemoveStale(directory):
            scratch.remove_stale(directory)
        case MakeScratch(directory, subdirectories):
            cleanup.callback(scratch.remove_tree, directory)
            scratch.make(directory, subdirectories)  # the descriptor with the lock lives as long as the process
        case CopyOwnerAndMode(source, target):
            _copy_owner_and_mode(source, target)
        case MakeWork(directory):
            cleanup.callback(_remove_if_empty, directory)
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
        case Serve():
            _serve(step, channel)


def _copy_owner_and_mode(source: bytes, target: bytes) -> None:
    with contextlib.suppress(OSError):  # a missing source is the union's to complain about
        facts = os.stat(source)
        os.chown(target, facts.st_uid, facts.st_gid)
        os.chmod(target, facts.st_mode & 0o7777)


def _remove_if_empty(directory: bytes) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def _serve(step: Serve, channel: Channel) -> None:
    from unionfs import engines
    from unionfs.linux.overlays import refuse_if_kernel_has
    from unionfs.overlay.stack import open_stack

    options = MountOptions(lowers=step.lowers, upper=step.upper, work=step.work, fsync="volatile" if step.volatile else "auto")
    refuse_if_kernel_has(step.upper, step.work)
    try:
        if step.engine in SERVED or not _mount_by_kernel(options, step.engine, channel):
            stack = open_stack(step.lowers, step.upper, step.work, engines.features(options))
            _serve_stack(stack, "pyfuse3" if step.engine == "pyfuse3" else "channel", channel)
    finally:
        if step.remove_work:
            scratch.remove_unused(step.work)


def _mount_by_kernel(options: MountOptions, engine: str, channel: Channel) -> bool:
    """Hand the container a mount of the kernel's and wait for the container's end; False when *engine* leaves a choice and it cannot be."""
    from unionfs import kernel

    with contextlib.ExitStack() as held:
        kernel.hold_upper(options, held)
        try:
            mount_fd = kernel.create_mount(options)
        except MountError as exc:
            if engine == "kernel":
                raise
            channel.send("note", text=f"engine channel: {exc}")
            return False
        if engine == "auto":
            channel.send("note", text="engine kernel")
        wanted = channel.send("mounted", fds=(mount_fd,))
        os.close(mount_fd)
        if wanted:
            _await_container(channel)
            channel.send("unmounted")
    return True


def _await_container(channel: Channel) -> None:
    """Return when pid 1 of the container, and so all in it, is gone: nobody else tells that a mount of the kernel's has ended."""
    message = channel.receive()
    if message is not None and message.fds:
        select.select(message.fds, [], [])
        close_all(message.fds)


def _serve_stack(stack: Stack, engine: str, channel: Channel) -> None:
    from unionfs.fuse import mounting, session
    from unionfs.overlay.union import Union

    settings = mounting.Settings(fsname="unionfs", allow_other=True, engine=engine)
    fuse_fd, mount_fd = mounting.create_mount(settings)
    wanted = channel.send("mounted", fds=(mount_fd,))
    os.close(mount_fd)  # from here on the mount lives by the container alone
    if not wanted:
        os.close(fuse_fd)
        return

    def told_to_stop() -> None:
        """Said before the mount goes: what the container makes of losing its root is not its result."""
        channel.send("failed", text="the filesystem server was told to stop")

    session.serve(Union(stack), fuse_fd, settings, detach=told_to_stop)
    channel.send("unmounted")
