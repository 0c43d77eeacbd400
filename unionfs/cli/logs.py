"""Where a server's log goes.

A server must not touch its own mount, and it may be mounted over /usr, /etc or /dev. So the place is opened before the
mount, and nothing is looked up when a line is written: no source lines for tracebacks, no time zone, no second attempt
to reach syslog.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import warnings
from contextlib import suppress
from types import TracebackType
from typing import Any

from unionfs.errors import UnionfsError, printable

_FACILITY_DAEMON = 3 << 3
_SEVERITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class Formatter(logging.Formatter):
    """``2026-01-31T12:00:00.000Z WARNING name: message``, and tracebacks by file, line and function only."""

    def __init__(self, *, stamped: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s" if stamped else "%(levelname)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        t = time.gmtime(record.created)
        return (
            f"{t.tm_year:04}-{t.tm_mon:02}-{t.tm_mday:02}T{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}.{record.msecs:03.0f}Z"
        )

    def formatException(self, ei: Any) -> str:
        return "\n".join(traceback_lines(ei[1])) if ei[1] is not None else ""


def traceback_lines(exc: BaseException, seen: frozenset[int] = frozenset()) -> list[str]:
    """What ``traceback`` would print, without the source lines, which it reads from the disk."""
    seen |= {id(exc)}
    lines: list[str] = []
    earlier = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
    if earlier is not None and id(earlier) not in seen:
        lines += [*traceback_lines(earlier, seen), "which led to:"]
    lines.append("Traceback (most recent call last):")
    trace: TracebackType | None = exc.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append(f'  File "{code.co_filename}", line {trace.tb_lineno}, in {code.co_qualname}')
        trace = trace.tb_next
    lines.append(f"{type(exc).__qualname__}: {exc}")
    if isinstance(exc, BaseExceptionGroup):
        for member in exc.exceptions:
            lines += ["  | " + line for line in traceback_lines(member, seen)]
    return lines


class _Handler(logging.Handler):
    """A handler that never fails whoever logs."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception as exc:  # arguments that do not fit the message
            text = f"{record.levelname} {record.name}: {record.msg!r}: {exc}"
        with suppress(OSError):  # a full disk must not stop the filesystem
            self.write(record.levelno, text.encode("utf-8", "backslashreplace"))

    def write(self, level: int, text: bytes) -> None:
        """Deliver one record. May raise OSError."""
        raise NotImplementedError


class DescriptorHandler(_Handler):
    """Each record is one write to a descriptor that is already open."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def write(self, level: int, text: bytes) -> None:
        os.write(self._fd, text + b"\n")


class SyslogHandler(_Handler):
    """Each record is one datagram to the system's log, lost when the log has no room: it may itself wait for us."""

    def __init__(self, socket_path: str = "/dev/log") -> None:
        """Raises OSError when nothing listens there."""
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(socket_path)
        except OSError:
            self._socket.close()
            raise

    def write(self, level: int, text: bytes) -> None:
        priority = _FACILITY_DAEMON | _SEVERITY.get(level, 5)
        self._socket.send(b"<%d>unionfs[%d]: %s" % (priority, os.getpid(), text[:8000]))

    def close(self) -> None:
        self._socket.close()
        super().close()


def start(path: bytes | None, *, debug: bool, foreground: bool) -> None:
    """Send all log records to *path*, else UNIONFS_LOG, else stderr in the foreground, else syslog.

    Raises UnionfsError when the file cannot be written.
    """
    path = path or os.environb.get(b"UNIONFS_LOG") or None
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    root.handlers[:] = [_handler(path, foreground)]
    logging.raiseExceptions = False  # what logging would print itself it prints with source lines
    _speak_through_the_log()
    os.environ["TZ"] = "UTC0"  # without it the C library looks at /etc/localtime each time it is asked for the time
    time.tzset()
    time.gmtime()


def _handler(path: bytes | None, foreground: bool) -> logging.Handler:
    handler: logging.Handler
    if path is not None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as exc:
            raise UnionfsError(f"log file {printable(path)}: {exc.strerror}") from exc
        handler = DescriptorHandler(fd)
        handler.setFormatter(Formatter(stamped=True))
    elif foreground:
        handler = DescriptorHandler(2)
        handler.setFormatter(Formatter(stamped=True))
    else:
        try:
            handler = SyslogHandler()
        except OSError:  # no syslog here
            return logging.NullHandler()
        handler.setFormatter(Formatter(stamped=False))
    return handler


def _speak_through_the_log() -> None:
    """What Python would write to stderr by itself, with source lines, becomes log records."""
    log = logging.getLogger("unionfs")

    def uncaught(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
        log.critical("uncaught exception", exc_info=exc)

    def unraisable(args: Any) -> None:
        log.error("exception nobody could take, in %r", args.object, exc_info=args.exc_value)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        log.error("a thread ended by an exception", exc_info=args.exc_value)

    def warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        log.warning("%s:%d: %s: %s", filename, lineno, category.__name__, message)

    sys.excepthook = uncaught
    sys.unraisablehook = unraisable
    threading.excepthook = in_thread
    warnings.showwarning = warning
