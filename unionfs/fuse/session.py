"""A mount's life: make it, serve it until it is unmounted or we are told to stop.

Order matters to callers: open the layers (overlay.stack), ``create_mount``, ``prepare`` (imports all that serving needs), ``serve``, and
attach the mount when that says it is ready. From then on the server must not touch a path that may lie in the mount: nothing is
imported or opened any more.
"""

from __future__ import annotations

import array
import contextlib
import errno
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unionfs.errors import MountError, printable
from unionfs.linux import mounts

if TYPE_CHECKING:
    import trio

    from unionfs.fuse.ops import Operations
    from unionfs.fuse.refresh import Refresher
    from unionfs.overlay.union import Union

log = logging.getLogger("unionfs.session")

#: "For ever": attributes and names change only through us.
FOREVER = 365 * 86400.0
_REQUEST_LIMIT = 64 * 1024
_FORGETTING_SECONDS = 1.0


@dataclass(frozen=True)
class Settings:
    """What decides how a union is mounted and served.

    ``mount_attrs``: names of linux.mounts.MOUNT_ATTRS. ``timeout``: seconds for which the kernel may believe names and attributes.
    """

    fsname: str = "unionfs"
    subtype: str = "unionfs"
    allow_other: bool = True
    read_only: bool = False
    mount_attrs: frozenset[str] = field(default_factory=frozenset)
    acl: bool = True
    timeout: float = FOREVER
    debug: bool = False
    writeback: bool = False


def create_mount(settings: Settings) -> tuple[int, int]:
    """(fuse descriptor, detached mount): for the privileged. Attach the mount with linux.mounts.move_mount. Raises MountError."""
    fuse_fd = _open_fuse()
    strings = {
        "source": os.fsencode(settings.fsname),
        "subtype": settings.subtype.encode(),
        "fd": b"%d" % fuse_fd,
        "rootmode": b"40000",
        "user_id": b"%d" % os.geteuid(),
        "group_id": b"%d" % os.getegid(),
    }
    flags = ["default_permissions"]
    if settings.allow_other:
        flags.append("allow_other")
    if settings.read_only:
        flags.append("ro")
    try:
        return fuse_fd, mounts.fs_mount("fuse", strings, flags, settings.mount_attrs)
    except OSError as exc:
        os.close(fuse_fd)
        raise MountError(f"cannot mount: {exc.strerror} ({exc.filename})") from exc


def _open_fuse() -> int:
    try:
        # non-blocking: a request may be withdrawn between poll and read
        return os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise MountError(f"cannot open /dev/fuse: {exc.strerror}") from exc


def mount_with_fusermount(settings: Settings, target: bytes) -> int:
    """The fuse descriptor of a mount that fusermount3 made at *target*: for ordinary users. Raises MountError."""
    options = ["default_permissions", f"subtype={settings.subtype}", "fsname=" + _escaped(settings.fsname)]
    if settings.allow_other:
        options.append("allow_other")
    options.append("ro" if settings.read_only else "rw")
    options.extend(sorted(settings.mount_attrs - {"ro"}))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            done = subprocess.run(
                ["fusermount3", "-o", ",".join(options), "--", target],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        except OSError as exc:
            raise MountError(f"cannot run fusermount3: {exc.strerror}") from exc
        if done.returncode:
            reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise MountError(reason[-1] if reason else f"fusermount3 failed on {printable(target)}")
        theirs.close()  # else the end of what fusermount3 sent would never be seen
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[:4])
    if not fds:
        raise MountError("fusermount3 passed no descriptor")
    os.set_inheritable(fds[0], False)
    os.set_blocking(fds[0], False)
    return fds[0]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,")


def prepare() -> None:
    """Import all that serving will ever need; call before the mount is attached."""
    import encodings.idna
    import traceback

    import pyfuse3
    import trio

    from unionfs.fuse import ops, reader, refresh

    _ = (encodings.idna, traceback, pyfuse3, trio, ops, reader, refresh)


def serve(
    union: Union,
    fuse_fd: int,
    settings: Settings,
    *,
    on_ready: Callable[[], None] = lambda: None,
    control: socket.socket | None = None,
    detach: Callable[[], None] | None = None,
) -> None:
    """Serve *union* on *fuse_fd* until it is unmounted, or until SIGTERM, SIGINT or SIGHUP (then ``detach`` should unmount it).

    Owns the descriptor and the union and closes both. *control* is a listening Unix socket that answers one JSON line per line.
    """
    import pyfuse3
    import trio

    from unionfs.fuse.ops import Operations
    from unionfs.fuse.reader import Reader

    os.umask(0)
    logging.getLogger("pyfuse3").addFilter(_is_news)
    reader = Reader()
    operations = Operations(
        union, reader, timeout=settings.timeout, acl=settings.acl, writeback=settings.writeback, on_ready=on_ready
    )
    pyfuse3.trio = reader  # type: ignore[attr-defined]
    pyfuse3.init(operations, f"/dev/fd/{fuse_fd}", {"debug"} if settings.debug else set())
    # every node is an object: the default thresholds would walk all of them over and over
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    try:
        trio.run(_serve, operations, union, control, detach)
    finally:
        pyfuse3.close(unmount=False)
        union.close()


_WITHDRAWN = frozenset(os.strerror(code) for code in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED))


def _is_news(record: logging.LogRecord) -> bool:
    """Filter of pyfuse3's log: the kernel not wanting an answer any more (its asker was killed, the mount has gone) is no error."""
    return "fuse_reply_* failed with" not in str(record.msg) or not _WITHDRAWN.intersection(record.args or ())


async def _serve(
    operations: Operations, union: Union, control: socket.socket | None, detach: Callable[[], None] | None
) -> None:
    import pyfuse3
    import trio

    from unionfs.fuse.refresh import Refresher

    refresher = Refresher(operations, union)
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_on_signal, detach, refresher)
        nursery.start_soon(_give_back_memory, operations, union)
        nursery.start_soon(refresher.tell_what_was_met)
        nursery.start_soon(refresher.watch)
        if control is not None:
            nursery.start_soon(_answer_control, control, _Facts(operations, union), refresher)
        # one worker to begin with and never one more by pyfuse3's own count: the Reader starts those that are needed
        await pyfuse3.main(min_tasks=1 << 20, max_tasks=1)
        nursery.cancel_scope.cancel()


async def _give_back_memory(operations: Operations, union: Union) -> None:
    """After the kernel forgot many nodes, and some time to forget more, return their memory to the system."""
    import trio

    while True:
        await operations.memory_freed.wait()
        await trio.sleep(_FORGETTING_SECONDS)
        operations.memory_freed = trio.Event()
        union.give_back_memory()


async def _stop_on_signal(
    detach: Callable[[], None] | None, refresher: Refresher, task_status: trio.TaskStatus[None]
) -> None:
    import pyfuse3
    import trio

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
        task_status.started()
        async for number in received:
            log.info("stopping on signal %d", number)
            if detach is not None:
                with contextlib.suppress(OSError):
                    # in a thread: the kernel may ask us something on the way
                    await trio.to_thread.run_sync(detach)
            async with refresher.nothing_under_way():
                pyfuse3.terminate()
            return


class _Facts:
    """What ``unionfs stats`` shows."""

    def __init__(self, operations: Operations, union: Union) -> None:
        self._operations = operations
        self._union = union
        self._started = time.monotonic()

    def answer(self, request: Any) -> dict[str, Any]:
        """The reply to one control request."""
        if not isinstance(request, dict) or request.get("cmd") != "stats":
            return {"error": "unknown request"}
        tree = self._union.tree
        return {
            "requests": dict(self._operations.requests.most_common()),
            "nodes": len(tree.nodes),
            "open_fds": tree.open_descriptors,
            "rss": _resident_bytes(),
            "uptime": time.monotonic() - self._started,
        }


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _answer(request: Any, facts: _Facts, refresher: Refresher) -> dict[str, Any]:
    """The reply to one control request."""
    if not isinstance(request, dict) or request.get("cmd") != "refresh":
        return facts.answer(request)
    path = request.get("path", "")
    if not isinstance(path, str):
        return {"error": "the path is no text"}
    try:
        await refresher.refresh(path.encode("utf-8", "surrogateescape"))
    except Exception as exc:  # a defect of ours, and nothing to end the mount for
        log.error("refresh failed unexpectedly", exc_info=exc)
        return {"error": f"the refresh failed: {exc}"}
    return {"refreshed": path}


async def _answer_control(control: socket.socket, facts: _Facts, refresher: Refresher) -> None:
    import trio

    async def talk(stream: trio.SocketStream) -> None:
        buffer = b""
        async with stream:
            async for chunk in stream:
                buffer += chunk
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    try:
                        request = json.loads(line)
                    except ValueError:
                        reply = {"error": "not JSON"}
                    else:
                        reply = await _answer(request, facts, refresher)
                    await stream.send_all(json.dumps(reply).encode() + b"\n")
                if len(buffer) > _REQUEST_LIMIT:
                    return

    async def shielded(stream: trio.SocketStream) -> None:
        try:
            await talk(stream)
        except (OSError, trio.BrokenResourceError):  # the asker went away
            pass

    await trio.serve_listeners(shielded, [trio.SocketListener(trio.socket.from_stdlib_socket(control))])
