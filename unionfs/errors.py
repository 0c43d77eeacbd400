"""The exceptions a user can meet; each prints as one line.

    UnionfsError             anything that ends a command
    ├── UsageError           the command line or an option is wrong
    ├── LayerError           a layer, upper or work directory cannot be used
    ├── InUseError           the upper or work belongs to a live mount
    └── MountError           the kernel or fusermount3 refused the mount

Inside the filesystem itself errors are OSError with an errno, as ``error`` makes them; these are for the edge where a person reads them.
"""

from __future__ import annotations

import os


def error(code: int, what: bytes | None = None) -> OSError:
    """The OSError (of the right subclass) for the errno *code*."""
    return OSError(code, os.strerror(code), what)


class UnionfsError(Exception):
    """A failure with a one-line message for the user; ``exit_code`` is what the command returns."""

    exit_code = 1


class UsageError(UnionfsError):
    """The command line, or a mount option, is wrong."""

    exit_code = 2


class LayerError(UnionfsError):
    """A lower, upper or work directory is missing, is no directory, or cannot hold what is asked of it."""


class InUseError(LayerError):
    """The upper or work directory belongs to another mount that still holds its lock."""


class MountError(UnionfsError):
    """The mount itself failed: no /dev/fuse, no permission, a bad target."""


def reason(exc: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(exc, UnionfsError):
        return str(exc)
    if isinstance(exc, OSError) and exc.strerror:
        name = exc.filename
        shown = printable(os.fsencode(name)) if isinstance(name, bytes | str) else name
        return exc.strerror if name is None else f"{shown}: {exc.strerror}"
    return f"{type(exc).__name__}: {exc}"


def printable(path: bytes) -> str:
    """*path* for a message: readable, one line, whatever bytes it holds."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
