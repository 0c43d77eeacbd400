"""The server's side of a mount: open the layers, attach, serve, clean up.

Imports what is heavy; imported only by the process that serves, before the mount is attached. From then on nothing may be
looked up by a path that could lead into the mount itself: no import, no time zone, no registry by its name.
"""

from __future__ import annotations

import codecs
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

from unionfs import state
from unionfs.cli import logs
from unionfs.cli.attach import Reporter, Request, may_allow_other
from unionfs.cli.detach import detach
from unionfs.errors import InUseError, MountError, printable
from unionfs.fuse import session
from unionfs.linux import mounts
from unionfs.options import MountOptions
from unionfs.overlay.stack import Stack, open_stack
from unionfs.overlay.union import Union

#: How long a server that has lost its mount may take to give up its upper.
_LOCK_SECONDS = 5.0
_LOCK_POLL = 0.01


def run(request: Request, reporter: Reporter) -> None:
    """Mount and serve until the mount is gone. Until ready() failures are raised, UnionfsError or OSError."""
    logs.start(request.log, debug=request.debug, foreground=request.foreground)
    _take_all_descriptors()
    with ExitStack() as cleanup:
        stack = open_layers(request.options)
        owned = cleanup.enter_context(ExitStack())
        owned.callback(stack.close)
        record = _describe(request, stack)
        os.chdir("/")
        registration = state.Registration.somewhere()
        if registration is None:
            reporter.warning("there is no place to record the mount in: unionfs list and stats will know little of it")
        else:
            cleanup.callback(registration.remove)
        settings, warning = _settings(request.options, stack, debug=request.debug)
        if warning:
            reporter.warning(warning)
        union = Union(stack, acl=request.options.acl)
        session.prepare()
        cleanup.enter_context(_no_more_imports())
        fuse_fd, device = _attach(settings, request.target, private=request.options.private)
        if registration is not None and device:
            registration.publish(replace(record, device=device))
        owned.pop_all()  # the session closes the union, and that its layers
        session.serve(
            union,
            fuse_fd,
            settings,
            on_ready=reporter.ready,
            control=None if registration is None else registration.control,
            detach=lambda: _leave(request.target, device),
        )


def open_layers(options: MountOptions) -> Stack:
    """The opened layers. An upper whose holder has lost its mount is about to be free: it is waited for."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return open_stack(
                options.lowers, options.upper, options.work,
                userxattr=options.userxattr, volatile=options.volatile or not options.fsync,
            )  # fmt: skip
        except InUseError:
            if time.monotonic() > deadline or state.is_mounted(_claims(options)):
                raise
        time.sleep(_LOCK_POLL)


def _claims(options: MountOptions) -> tuple[tuple[int, int], ...]:
    """(st_dev, st_ino) of upper and work."""
    found = []
    for path in (options.upper, options.work):
        if path is not None:
            st = os.stat(path)
            found.append((st.st_dev, st.st_ino))
    return tuple(found)


def _describe(request: Request, stack: Stack) -> state.Record:
    """The record of the mount, still without its device. Paths are made absolute here, before the directory changes."""
    options = request.options
    words = ("ro" if options.read_only or stack.upper is None else "rw", *sorted(options.vfs_flags))
    words += tuple(word for word in ("volatile", "userxattr") if getattr(options, word))
    return state.Record(
        device="",
        pid=os.getpid(),
        target=request.target,
        lowers=tuple(os.path.realpath(path) for path in options.lowers),
        upper=None if options.upper is None else os.path.realpath(options.upper),
        work=None if options.work is None else os.path.realpath(options.work),
        options=",".join(words),
        started=time.time(),
        claims=_claims(options),
    )


def _settings(options: MountOptions, stack: Stack, *, debug: bool) -> tuple[session.Settings, str | None]:
    """The session's settings, and a warning for the user."""
    allow_other, warning = may_allow_other(options.allow_other)
    settings = session.Settings(
        fsname=os.fsdecode(options.fsname or b"unionfs"),
        subtype=options.subtype or "unionfs",
        allow_other=allow_other,
        read_only=options.read_only or stack.upper is None,
        mount_attrs=options.vfs_flags,
        acl=options.acl,
        debug=debug,
        writeback=bool(options.writeback),
    )
    return settings if options.timeout is None else replace(settings, timeout=options.timeout), warning


def _attach(settings: session.Settings, target: bytes, *, private: bool) -> tuple[int, str]:
    """Make the mount and attach it. The descriptor its requests come from, and its device."""
    if os.geteuid() != 0:
        fuse_fd = session.mount_with_fusermount(settings, target)
    else:
        fuse_fd, mount_fd = session.create_mount(settings)
        try:
            mounts.move_mount(mount_fd, target)
        except OSError as exc:
            os.close(fuse_fd)
            raise MountError(f"cannot mount on {printable(target)}: {exc.strerror}") from exc
        finally:
            os.close(mount_fd)
    if private:
        with suppress(OSError):  # a user's mounts are made private by the mount namespace they are in, or not at all
            mounts.mount(b"none", target, None, mounts.MS_PRIVATE)
    info = mounts.mount_at(target)
    return fuse_fd, info.device if info is not None else ""


def _leave(target: bytes, device: str) -> None:
    """Unmount, because we were told to stop; not what somebody may have mounted over us meanwhile."""
    info = mounts.mount_at(target)
    if info is not None and info.device == device:
        detach(target, lazy=True)


def _take_all_descriptors() -> None:
    """Layers and cached files each need one; the limit on them is often a quarter of what may be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Refusal:
    """Finds no module: a file of the standard library may lie behind our own mount, and reading it would wait for ourselves."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        raise ImportError(f"{name} was not imported before the mount")


@contextmanager
def _no_more_imports() -> Iterator[None]:
    for codec in ("ascii", "latin-1", "utf-8", "unicode_escape"):
        codecs.lookup(codec)
    refusal = _Refusal()
    sys.meta_path.insert(0, refusal)
    try:
        yield
    finally:
        sys.meta_path.remove(refusal)
