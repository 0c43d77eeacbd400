"""Run a piece of a test as an ordinary user, in a forked child."""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

USER = 1000
OTHER_USER = 1001
GROUP = 1000
Result = TypeVar("Result")


def in_child(function: Callable[[], Result]) -> Result:
    """What function() returns or raises, when it runs in a forked child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _run_and_exit(function, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not data:
        raise ChildProcessError(f"the child ended without an answer, wait status {status:#x}")
    outcome, value = pickle.loads(data)
    if outcome == "raised":
        raise value
    result: Result = value
    return result


def as_user(function: Callable[[], Result], uid: int = USER, gid: int | None = None,
            groups: Sequence[int] = ()) -> Result:
    """What function() returns or raises, run with this uid, gid (the same number unless given) and extra groups."""

    def drop_and_run() -> Result:
        own = uid if gid is None else gid
        os.setgroups(list(groups))
        os.setresgid(own, own, own)
        os.setresuid(uid, uid, uid)
        return function()

    return in_child(drop_and_run)


def _run_and_exit(function: Callable[[], Any], writer: int) -> None:
    """Never returns into pytest: whatever happens in the child ends in os._exit."""
    try:
        try:
            answer = pickle.dumps(("returned", function()))
        except BaseException as error:  # it is raised again in the parent
            answer = _pickled_error(error)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer)
    finally:
        os._exit(0)


def _pickled_error(error: BaseException) -> bytes:
    try:
        data = pickle.dumps(("raised", error))
        pickle.loads(data)
        return data
    except Exception:  # such an error cannot travel: send its text
        return pickle.dumps(("raised", AssertionError("".join(traceback.format_exception(error)))))
