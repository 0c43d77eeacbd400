"""The runner: starts server and container, watches both, passes signals and keystrokes on, returns the exit code.

It must not have threads, since it forks without exec. Nothing that matters is its alone to undo: it may be killed at any
moment (see the package's docstring).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from unionfs.errors import UnionfsError, reason
from unionfs.linux import namespaces, process
from unionfs.runtime import container, messages, scratch, server
from unionfs.runtime.messages import Channel, Message
from unionfs.runtime.plan import MakeScratch, Plan, Serve
from unionfs.runtime.terminal import Terminal

SETUP_FAILED = container.SETUP_FAILED

#: How long the server may take to notice that its mount is gone before it is killed. Removing the directory afterwards
#: may take longer.
_PATIENCE = 10.0

#: How much later than its server's orderly end a container's may be seen.
_GRACE = 1.0

#: Signals that mean "give up" while the container is still being built.
_ABORTING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})

#: Never passed on: about the runner's own faults and children, or handled apart, or not to be caught at all.
_OWN = frozenset(
    {
        *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG),
        *(signal.SIGTTIN, signal.SIGTTOU),
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS),
    }
)


class RunError(UnionfsError):
    """The run failed before, or without, the command's own exit code."""

    def __init__(self, message: str, exit_code: int = SETUP_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class _Child:
    """A process forked by the runner; *open*: its channel may still bring something; *mounted*: the server said so."""

    pid: int
    pidfd: int
    channel: Channel
    open: bool = True
    mounted: bool = False
    status: int | None = None

    def receive(self) -> Message | None:
        message = self.channel.receive()
        self.open = message is not None
        self.mounted |= message is not None and message.kind == "mounted"
        return message

    def kill(self) -> None:
        if self.status is None:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for its end; False when it still lives after *timeout* seconds."""
        if self.status is None and select.select([self.pidfd], [], [], timeout)[0]:
            self.status = os.waitpid(self.pid, 0)[1]
        return self.status is not None


def execute(plan: Plan, start_log: Callable[[], None], tell: Callable[[str], None]) -> int:
    """Do what *plan* says; return the command's exit code. Raises RunError.

    *start_log* is called in the server, *tell* with a line the user should see.
    """
    if os.geteuid() != 0:
        raise RunError("this needs root")
    if not process.may_use_trusted_xattrs():
        raise RunError("this needs root with CAP_SYS_ADMIN, and not that of a user namespace: upper holds trusted.* attributes")
    signals = process.signal_fd([number for number in signal.valid_signals() - _OWN if _is_wanted(number)])
    served = _fork(lambda channel: server.main(plan.server, channel, start_log))
    contained = None
    try:
        for step in plan.runner:
            namespaces.unshare(step.kinds)
        contained = _fork(lambda channel: container.main(plan.container, channel))
        served.channel.send("container", fds=(contained.pidfd,))
        return _Supervisor(served, contained, signals, tell).loop()
    except OSError as exc:
        raise RunError(reason(exc)) from exc
    finally:
        _end(contained, served, plan)


def _is_wanted(number: int) -> bool:
    """Signals ignored from the start (nohup) stay so."""
    return signal.getsignal(number) is not signal.SIG_IGN


def _fork(main: Callable[[Channel], int]) -> _Child:
    """Run *main* in a child with one end of a channel; what it raises comes back as a ``failed`` message."""
    ours, theirs = messages.pair()
    pid = os.fork()
    if pid == 0:
        code = SETUP_FAILED
        try:
            ours.close()
            code = main(theirs)
        except UnionfsError as exc:
            own_code = exc.exit_code if isinstance(exc, container.CommandError) else SETUP_FAILED
            theirs.send("failed", own_code, str(exc))
        except BaseException as exc:
            theirs.send("failed", SETUP_FAILED, reason(exc))
        finally:
            os._exit(code)
    theirs.close()
    return _Child(pid, os.pidfd_open(pid), ours)


def _end(contained: _Child | None, served: _Child, plan: Plan) -> None:
    """Wait until both children are gone and have cleaned up; make up for a server that could not."""
    if contained is None:
        served.channel.send("container")
    else:
        contained.kill()
        contained.channel.close()
    _await_unmounted(served)
    served.wait()
    if contained is not None:
        contained.wait()
    if served.status != 0:
        _clean_up_for_server(served, plan)


def _clean_up_for_server(served: _Child, plan: Plan) -> None:
    for step in plan.server:
        match step:
            case MakeScratch(directory, _):
                with contextlib.suppress(PermissionError):  # in a user namespace the directory it would be in may be closed to us
                    scratch.remove_tree(directory)
            case Serve(work=work, remove_work=True) if served.mounted:
                scratch.remove_unused(work)


def _await_unmounted(served: _Child) -> None:
    """Return when the server has left its mount, by itself or killed: the dead of a container wait for a hung one."""
    deadline = time.monotonic() + _PATIENCE
    with contextlib.suppress(OSError):
        while served.open and select.select([served.channel], [], [], max(0.0, deadline - time.monotonic()))[0]:
            message = served.receive()
            if message is not None:
                messages.close_all(message.fds)
                if message.kind == "unmounted":
                    return
    if not served.wait(max(0.0, deadline - time.monotonic())):
        served.kill()


@dataclass
class _Supervisor:
    """The runner's loop, from the fork of both children to the end of the container."""

    served: _Child
    contained: _Child
    signals: int
    tell: Callable[[str], None]
    terminal: Terminal | None = None
    running: bool = False
    failure: RunError | None = None
    early_signals: list[int] = field(default_factory=list)

    def loop(self) -> int:
        """Return the container's exit code; raise RunError when it failed to start or lost its server."""
        try:
            while not self.failure and not self._container_ended():
                self._turn()
        finally:
            if self.terminal:
                self.contained.kill()
                self.contained.wait(_PATIENCE)
                self.terminal.close()
        if self.failure:
            raise self.failure
        assert self.contained.status is not None
        return container.exit_code(self.contained.status)

    def _container_ended(self) -> bool:
        if not self.contained.wait(0):
            return False
        while self.contained.open and select.select([self.contained.channel], [], [], 0)[0]:
            self._hear_container()
        return True

    def _turn(self) -> None:
        """Wait for something to happen and handle it."""
        poll = select.poll()
        for child in (self.contained, self.served):
            poll.register(child.pidfd, select.POLLIN)
            if child.open:
                poll.register(child.channel, select.POLLIN)
        poll.register(self.signals, select.POLLIN)
        for fd, events in self.terminal.interests() if self.terminal else ():
            poll.register(fd, events)
        for fd, events in poll.poll():
            if fd == self.signals:
                self._hear_signals()
            elif fd == self.contained.channel.fileno():
                self._hear_container()
            elif fd == self.served.channel.fileno():
                self._hear_server()
            elif fd == self.served.pidfd:
                self._server_ended()
            elif self.terminal:
                self.terminal.handle(fd, events)

    def _hear_server(self) -> None:
        message = self.served.receive()
        if message is None:
            return
        if message.kind == "mounted":
            self.contained.channel.send("union", fds=message.fds)
            messages.close_all(message.fds)
        elif message.kind == "note":
            self.tell(message.text)
        elif message.kind == "failed":
            self.failure = RunError(message.text)

    def _hear_container(self) -> None:
        message = self.contained.receive()
        if message is None:
            return
        if message.kind == "failed":
            self.failure = RunError(message.text, message.number)
        elif message.kind == "running":
            self.running = True
            if message.fds:
                self.terminal = Terminal(message.fds[0])
                self.terminal.enter()
            for number in self.early_signals:
                self.contained.channel.send("signal", number)

    def _server_ended(self) -> None:
        """The container's end takes the mount down, so the server may be seen to end first; its status tells which it was."""
        while self.served.open and not self.failure:
            self._hear_server()
        self.served.wait()
        if not self.failure and not (self.served.status == 0 and self.contained.wait(_GRACE)):
            self.failure = RunError("the filesystem server ended unexpectedly")

    def _hear_signals(self) -> None:
        while received := process.read_signal(self.signals):
            if received.number == signal.SIGWINCH:
                if self.terminal:
                    self.terminal.copy_size()
            elif received.number == signal.SIGTSTP:
                self._suspend()
            elif received.number == signal.SIGCONT:
                self._resume()
            elif self.running:
                self._pass_on(received.number, group=received.from_kernel)
            elif received.number in _ABORTING:
                self.failure = RunError(signal.strsignal(received.number) or "interrupted", 128 + received.number)
            else:
                self.early_signals.append(received.number)

    def _pass_on(self, number: int, *, group: bool) -> None:
        """A key's signal goes to the whole foreground group, as it would without us; kill(1)'s to the command alone."""
        self.contained.channel.send("signal", number, "group" if group else "")

    def _suspend(self) -> None:
        """Stop the command, then ourselves. SIGTSTP itself would not stop it: its group has no shell to wake it (is orphaned)."""
        if self.running:
            self._pass_on(signal.SIGSTOP, group=True)
        if self.terminal:
            self.terminal.leave()
        os.kill(os.getpid(), signal.SIGSTOP)

    def _resume(self) -> None:
        if self.terminal:
            self.terminal.enter()
        if self.running:
            self._pass_on(signal.SIGCONT, group=True)
