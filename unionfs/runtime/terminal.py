"""The user's terminal joined to the container's: raw mode, both directions, window size. Used by the runner's loop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import termios
import tty
from typing import Any

_INPUT = 0
_OUTPUT = 1
_CHUNK = 65536


class Terminal:
    """Descriptors 0 and 1 are the user's terminal, *master* is the container's. The terminal is raw between ``enter`` and ``leave``.

    Keys such as Ctrl-C reach the container's terminal as bytes, and that one makes the signal, for the job in its foreground.
    """

    def __init__(self, master: int) -> None:
        self._master = master
        self._saved: list[Any] | None = None
        self._typed = b""  # what the container's terminal has not taken yet; the master never blocks the runner
        self._input_open = True
        self._output_open = True
        os.set_blocking(master, False)

    def enter(self) -> None:
        """Make the user's terminal raw and pass on its size."""
        with contextlib.suppress(termios.error):  # hung up
            saved = termios.tcgetattr(_INPUT)
            tty.setraw(_INPUT, termios.TCSADRAIN)
            self._saved = saved
        self.copy_size()

    def leave(self) -> None:
        """Put the user's terminal back as it was."""
        saved, self._saved = self._saved, None
        if saved is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(_INPUT, termios.TCSADRAIN, saved)

    def copy_size(self) -> None:
        """Give the container's terminal the size of the user's; the kernel tells its foreground job (SIGWINCH)."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, fcntl.ioctl(_INPUT, termios.TIOCGWINSZ, bytes(8)))

    def interests(self) -> list[tuple[int, int]]:
        """What to poll for: (descriptor, events)."""
        wanted = []
        if self._input_open and not self._typed:
            wanted.append((_INPUT, select.POLLIN))
        if self._output_open:
            wanted.append((self._master, select.POLLIN | (select.POLLOUT if self._typed else 0)))
        return wanted

    def handle(self, fd: int, events: int) -> None:
        """Move what ``poll`` found on one of ``interests``."""
        if fd == _INPUT:
            self._typed = self._read(_INPUT)
            self._input_open = bool(self._typed)
        elif fd == self._master:
            if events & select.POLLOUT:
                self._write_typed()
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self._copy_output()

    def close(self) -> None:
        """Show what is left in the container's terminal after its last process has gone, and restore the user's."""
        while self._output_open and select.select([self._master], [], [], 0)[0]:
            self._copy_output()
        self.leave()
        os.close(self._master)

    def _copy_output(self) -> None:
        data = self._read(self._master)
        self._output_open = bool(data)
        try:
            while data:
                data = data[os.write(_OUTPUT, data) :]
        except OSError:  # the user's terminal is gone; the container goes on
            pass

    def _write_typed(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._typed = self._typed[os.write(self._master, self._typed) :]

    @staticmethod
    def _read(fd: int) -> bytes:
        """Up to a chunk; empty at the end, which a terminal reports as EIO."""
        try:
            return os.read(fd, _CHUNK)
        except OSError:
            return b""
