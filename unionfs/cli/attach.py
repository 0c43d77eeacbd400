"""Mounting, as the caller sees it: check, fork the server, wait for its word.

The server is forked before anything heavy is imported, so the caller stays small. It inherits the caller's directory and
descriptors until the layers are open (their paths may depend on either) and has given up all of them when the mount answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple, NoReturn, Protocol, TypeVar

from unionfs import engines, state
from unionfs.cli.detach import detach
from unionfs.cli.entry import complain, warn
from unionfs.errors import InUseError, MountError, UsageError, printable, reason
from unionfs.linux import mounts
from unionfs.linux.overlays import refuse_if_kernel_has
from unionfs.linux.process import may_use_trusted_xattrs
from unionfs.options import MountOptions

T = TypeVar("T")

#: How long a server that has lost its mount may take to give up its upper.
_LOCK_SECONDS = 5.0
_LOCK_POLL = 0.01

FUSE_CONF = b"/etc/fuse.conf"


class Request(NamedTuple):
    """A mount to be made. ``target`` is absolute and without symlinks."""

    options: MountOptions
    target: bytes
    log: bytes | None = None
    foreground: bool = False
    debug: bool = False
    engine: str = "channel"


class Reporter(Protocol):
    """How the server tells its caller."""

    def warning(self, line: str) -> None:
        """Something the user should know."""

    def ready(self) -> None:
        """The mount answers."""


def mount(request: Request) -> int:
    """Make the mount; in the foreground returns when it is gone, else when it answers. The exit code; raises UnionfsError."""
    request = request._replace(options=within_rights(request.options))
    if request.engine == "kernel":
        _mount_by_kernel(request)
        return 0
    if request.engine == "auto":
        why = _why_not_kernel(request)
        complain("engine kernel" if why is None else f"engine channel: {why}")
        if why is None:
            return 0
        engines.check_served(request.options)
        request = request._replace(engine="channel")
    if request.foreground:
        from unionfs.cli import server

        server.run(request, _Foreground())
        return 0
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _become_server(request, writer)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            return _listen(pipe, pid)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        raise


def within_rights(options: MountOptions) -> MountOptions:
    """*options* as a mount takes them: with userxattr for who may not use trusted.* attributes. UsageError when they exclude that."""
    if options.userxattr or may_use_trusted_xattrs():
        return options
    options = options._replace(userxattr=True)
    try:
        engines.check(options)
    except UsageError as exc:
        raise UsageError(f"{exc} (trusted.* attributes, which need CAP_SYS_ADMIN, cannot be used)") from None
    return options


def _mount_by_kernel(request: Request) -> None:
    from unionfs import kernel

    if request.foreground:
        raise UsageError("the engine kernel has no server that could stay in the foreground or tell what it does")
    wait_for_upper(request.options, lambda: kernel.mount(request.options, request.target))


def _why_not_kernel(request: Request) -> str | None:
    """None when the kernel has mounted it, else why it did not. Raises what would stop the other engine as well."""
    lacking = engines.not_in_kernel(request.options)
    if request.foreground:
        lacking.append("server to stay in the foreground")
    if lacking:
        return f"the kernel's overlayfs has no {', '.join(lacking)}"
    try:
        _mount_by_kernel(request)
    except MountError as exc:
        return str(exc)
    return None


def wait_for_upper(options: MountOptions, attempt: Callable[[], T]) -> T:
    """What *attempt* returns. An upper whose holder has lost its mount is about to be free: it is waited for."""
    refuse_if_kernel_has(options.upper, options.work)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return attempt()
        except InUseError:
            if time.monotonic() > deadline or state.is_mounted(claims(options)):
                raise
        time.sleep(_LOCK_POLL)


def claims(options: MountOptions) -> tuple[tuple[int, int], ...]:
    """(st_dev, st_ino) of upper and work."""
    found = []
    for path in (options.upper, options.work):
        if path is not None:
            st = os.stat(path)
            found.append((st.st_dev, st.st_ino))
    return tuple(found)


def prepare_target(path: bytes) -> bytes:
    """The absolute path of the directory to mount on. What a dead server of ours left mounted there is taken away, with a warning."""
    target = state.locate(path)
    if target == b"/":
        raise MountError("/: what is mounted over the root directory is seen by nobody")
    if target == b"/proc" or target.startswith(b"/proc/"):
        raise MountError(f"{printable(path)}: the server itself needs /proc and cannot be mounted over it")
    replaced = False
    while (info := mounts.mount_at(target)) is not None and state.is_ours(info) and state.is_dead(info):
        detach(target, lazy=True)
        replaced = True
    if replaced:
        warn(f"{printable(target)}: replacing a mount whose server has died")
    try:
        mode = os.stat(target).st_mode
    except OSError as exc:
        raise MountError(f"cannot mount on {printable(path)}: {exc.strerror}") from exc
    if not stat.S_ISDIR(mode):
        raise MountError(f"cannot mount on {printable(path)}: it is not a directory")
    return target


def may_allow_other(asked: bool | None) -> tuple[bool, str | None]:
    """Whether other users may enter, and the warning that is due: root decides for itself, others need /etc/fuse.conf's leave."""
    if os.geteuid() == 0:
        return asked is not False, None
    if asked is False:
        return False, None
    try:
        with open(FUSE_CONF, "rb") as conf:
            if any(line.strip() == b"user_allow_other" for line in conf):
                return True, None
    except OSError:
        pass
    return False, "only you can enter the mount: user_allow_other is not set in /etc/fuse.conf"


class _Foreground:
    """The caller is the server."""

    def warning(self, line: str) -> None:
        warn(line)

    def ready(self) -> None:
        pass


class _Background:
    """The caller waits at the other end of a pipe, until ready or the pipe's end."""

    def __init__(self, pipe: int, inherited: Sequence[int]) -> None:
        self._pipe: int | None = pipe
        self._inherited = inherited

    def warning(self, line: str) -> None:
        self._send("warning", line)

    def ready(self) -> None:
        # whoever holds the other end of one of these may be waiting for its end: podman does
        for fd in self._inherited:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._send("ready", "")
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def failed(self, exc: BaseException) -> None:
        """Why there will be no mount."""
        self._send("failed", reason(exc))

    def _send(self, kind: str, text: str) -> None:
        if self._pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # the caller was killed; the mount stays
                os.write(self._pipe, json.dumps([kind, text]).encode("ascii") + b"\n")


def _become_server(request: Request, pipe: int) -> NoReturn:
    """The forked child: serve, and never return."""
    status = 1
    reporter = _Background(pipe, [])
    try:
        os.setsid()
        reporter = _Background(pipe, [fd for fd in _open_descriptors() if fd > 2 and fd != pipe])
        _leave_standard_streams()
        from unionfs.cli import server

        server.run(request, reporter)
        status = 0
    except BaseException as exc:
        reporter.failed(exc)
    finally:
        os._exit(status)


def _open_descriptors() -> list[int]:
    """All descriptors of this process."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one the list was read through is closed again
            os.fstat(int(name))
            found.append(int(name))
    return found


def _leave_standard_streams() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _listen(pipe: BinaryIO, pid: int) -> int:
    """Pass on what the server says until it is ready or gone; the exit code."""
    for line in pipe:
        kind, text = json.loads(line)
        if kind == "warning":
            warn(text)
        elif kind == "ready":
            return 0
        elif kind == "failed":
            os.waitpid(pid, 0)
            raise MountError(text)
    _, status = os.waitpid(pid, 0)
    how = f"by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"with status {os.WEXITSTATUS(status)}"
    raise MountError(f"the server ended {how} before the mount answered")

