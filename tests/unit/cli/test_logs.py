"""The server's log: what a line looks like, and that writing one touches nothing."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from unionfs.cli import logs

ROOT = Path(__file__).resolve().parents[3]


def failure() -> BaseException:
    """An exception with a cause and a group in it."""
    try:
        try:
            raise ValueError("first")
        except ValueError as exc:
            raise ExceptionGroup("several", [OSError(5, "five"), KeyError("k")]) from exc
    except ExceptionGroup as exc:
        return exc


def test_a_traceback_shows_where_and_what_but_no_source_line() -> None:
    text = "\n".join(logs.traceback_lines(failure()))
    assert f'File "{__file__}", line ' in text and "in failure" in text
    assert "ValueError: first" in text and "which led to:" in text
    assert "  | OSError: [Errno 5] five" in text
    assert "raise ValueError" not in text


def test_an_exception_that_causes_itself_ends_nevertheless() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__context__, two.__context__ = two, one
    assert len(logs.traceback_lines(one)) < 20


def test_a_line_carries_utc_level_and_name() -> None:
    record = logging.LogRecord("unionfs.fuse", logging.WARNING, "x", 1, "said %s", ("this",), None)
    record.created, record.msecs = 0.25, 250.0
    assert logs.Formatter(stamped=True).format(record) == "1970-01-01T00:00:00.250Z WARNING unionfs.fuse: said this"
    assert logs.Formatter(stamped=False).format(record) == "WARNING: said this"


def test_syslog_gets_a_datagram_and_a_full_or_dead_one_loses_it_without_waiting(tmp_path: Path) -> None:
    address = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system_log:
        system_log.bind(address)
        handler = logs.SyslogHandler(address)
        handler.setFormatter(logs.Formatter(stamped=False))
        record = logging.LogRecord("unionfs", logging.ERROR, "x", 1, "no %s", ("luck",), None)
        handler.emit(record)
        assert system_log.recv(1000) == b"<27>unionfs[%d]: ERROR: no luck" % os.getpid()
        for _ in range(5000):
            handler.emit(record)
    handler.emit(record)
    handler.close()


def test_no_syslog_is_an_error_for_the_caller(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        logs.SyslogHandler(str(tmp_path / "absent"))


SPEAK = """
import logging, os, sys, threading, warnings
from unionfs.cli import logs
logs.start(os.environb.get(b"FILE"), debug=False, foreground=False)
logging.getLogger("unionfs").info("hello")
logging.getLogger("unionfs").debug("too much")
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
class Bad:
    def __del__(self): raise OSError(5, "in del")
Bad()
warnings.warn("careful", RuntimeWarning)
def fail(): raise ValueError("in thread")
thread = threading.Thread(target=fail); thread.start(); thread.join()
try: fail()
except ValueError: logging.getLogger("unionfs").exception("it failed")
logging.getLogger("unionfs").error("bad %d", "format")
assert opened == [], opened
raise SystemError("the end")
"""


def speak(tmp_path: Path, **more: str) -> str:
    done = subprocess.run([sys.executable, "-c", SPEAK], cwd=ROOT, env={**os.environ, **more}, capture_output=True, timeout=60, check=False)
    assert done.stderr == b"" and done.returncode == 1
    return (tmp_path / "log").read_text()


def test_whatever_python_says_by_itself_ends_in_the_log_and_opens_no_file(tmp_path: Path) -> None:
    text = speak(tmp_path, FILE=str(tmp_path / "log"))
    for said in ("INFO unionfs: hello", "OSError: [Errno 5] in del", "RuntimeWarning: careful", "ValueError: in thread", "it failed",
                 "CRITICAL unionfs: uncaught exception", "SystemError: the end"):  # fmt: skip
        assert said in text
    assert "too much" not in text
    known = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z |ERROR unionfs: 'bad %d'|Traceback|  File |\w+: |which led to:")
    assert [line for line in text.splitlines() if not known.match(line)] == []


def test_unionfs_log_names_the_file_where_no_option_does(tmp_path: Path) -> None:
    assert "hello" in speak(tmp_path, UNIONFS_LOG=str(tmp_path / "log"))
