"""Pid 1 of a run: builds the container around itself, starts the command, reaps what is orphaned, passes signals on.

Runs in a child forked by ``run.py``. After the root directory has changed nothing can be imported any more, so
everything used here is imported at the top.
"""

from __future__ import annotations

import contextlib
import encodings.unicode_escape  # noqa: F401  (errors.printable asks for it by name)
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import termios
from collections.abc import Iterable, Iterator

from unionfs.errors import UnionfsError, printable
from unionfs.linux import files, mounts, namespaces, process
from unionfs.runtime.messages import Channel, close_all
from unionfs.runtime.plan import (
    AttachUnion,
    ContainerStep,
    Execute,
    MakeDevice,
    MakeDirectory,
    MakeSymlink,
    Mount,
    RaiseLoopback,
    SetHostname,
    SwitchRoot,
    Unshare,
)

NOT_FOUND = 127
NOT_EXECUTABLE = 126
SETUP_FAILED = 125
KILLED = 128 + signal.SIGKILL


class CommandError(UnionfsError):
    """The command could not be started: ``exit_code`` says why, as in a shell."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(steps: Iterable[ContainerStep], channel: Channel) -> int:
    """Execute *steps*; the last starts the command, whose exit code is returned. Raises UnionfsError and OSError."""
    process.die_with_parent()
    os.setsid()
    process.close_from(3, keep=(channel.fileno(),))
    process.replace_title(b"unionfs-init")
    process.reset_signals()
    os.umask(0)
    root = -1
    for step in steps:
        match step:
            case AttachUnion():
                root = _attach_union(channel)
            case SwitchRoot():
                os.fchdir(root)
                namespaces.make_here_the_root()
                os.chdir("/")
                os.close(root)
            case Execute():
                return _run(step, channel)
            case _:
                _build(step, root)
    raise AssertionError("a plan ends with the command")


def _attach_union(channel: Channel) -> int:
    """Put the union on top of our root directory; return a descriptor of its root."""
    message = channel.receive()
    if message is None:  # the runner is gone, and die_with_parent may have come too late to notice
        os._exit(KILLED)
    (mount_fd,) = message.fds
    namespaces.make_mounts_private()
    mounts.move_mount(mount_fd, b"/")
    return mount_fd


def _build(step: ContainerStep, root: int) -> None:
    match step:
        case Unshare(kinds):
            namespaces.unshare(kinds)
        case SetHostname(name):
            socket.sethostname(os.fsdecode(name))
        case RaiseLoopback():
            namespaces.raise_loopback()
        case Mount():
            _mount(root, step)
        case MakeDirectory(path):
            os.close(_open_directory(root, path))
        case MakeDevice(path, major, minor):
            with _parent(root, path) as (parent, name):
                os.mknod(name, 0o666 | stat.S_IFCHR, os.makedev(major, minor), dir_fd=parent)
        case MakeSymlink(path, target):
            with _parent(root, path) as (parent, name):
                os.symlink(target, name, dir_fd=parent)


def _mount(root: int, step: Mount) -> None:
    parameters = {"source": step.fstype.encode(), **dict(step.parameters)}
    mount_fd = mounts.fs_mount(step.fstype, parameters, (), step.attrs)
    target = _open_directory(root, step.target)
    try:
        mounts.move_mount(mount_fd, b".", target)
    finally:
        close_all((mount_fd, target))


@contextlib.contextmanager
def _parent(root: int, path: bytes) -> Iterator[tuple[int, bytes]]:
    directory, _, name = path.rpartition(b"/")
    fd = _open_directory(root, directory)
    try:
        yield fd, name
    finally:
        os.close(fd)


def _open_directory(root: int, path: bytes) -> int:
    """O_PATH descriptor of the directory *path* in the union, made where it is missing.

    No symbolic link is followed: an image whose /dev leads elsewhere would have us mount there.
    """
    resolve = files.RESOLVE_IN_ROOT | files.RESOLVE_NO_SYMLINKS | files.RESOLVE_NO_MAGICLINKS
    fd = os.dup(root)
    for name in path.strip(b"/").split(b"/"):
        parent = fd
        try:
            fd = _enter(parent, name, resolve)
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENOTDIR):
                raise UnionfsError(f"{printable(path)} must be a directory in the union to mount on it") from None
            raise
        finally:
            os.close(parent)
    return fd


def _enter(parent: int, name: bytes, resolve: int) -> int:
    try:
        return files.openat2(parent, name, os.O_PATH | os.O_DIRECTORY, resolve)
    except FileNotFoundError:
        os.mkdir(name, 0o755, dir_fd=parent)
        return files.openat2(parent, name, os.O_PATH | os.O_DIRECTORY, resolve)


def _run(step: Execute, channel: Channel) -> int:
    """Start the command and be its init until it ends; the rest of the container dies with us."""
    sigchld = process.signal_fd([signal.SIGCHLD])
    master, slave = _open_terminal() if step.terminal else (-1, -1)
    channel.send("running", fds=() if master < 0 else (master,))  # before the command can have said anything
    command = _start(step, slave)
    _leave_standard_streams()
    close_all([fd for fd in (master, slave) if fd >= 0])
    poll = select.poll()
    poll.register(sigchld, select.POLLIN)
    poll.register(channel, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if channel.fileno() in ready:
            _pass_on_signal(channel, command)
        if sigchld in ready:
            while process.read_signal(sigchld):
                pass
            status = _reap(command)
            if status is not None:
                return exit_code(status)


def _leave_standard_streams() -> None:
    """Hold the user's pipes no longer than the command does; the container's own null device pins nothing outside."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _pass_on_signal(channel: Channel, command: int) -> None:
    message = channel.receive()
    if message is None:
        os._exit(KILLED)
    with contextlib.suppress(ProcessLookupError):
        os.kill(-command if message.text == "group" else command, message.number)


def _reap(command: int) -> int | None:
    """Collect every child that has ended; the wait status of *command* when it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == command:
                found = status
    return found


def exit_code(status: int) -> int:
    """The exit code a shell would give for a wait status."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _open_terminal() -> tuple[int, int]:
    """A terminal of the container's own devpts, set like the user's on descriptor 0: (master, slave)."""
    master, slave = os.openpty()
    termios.tcsetattr(slave, termios.TCSANOW, termios.tcgetattr(0))
    fcntl.ioctl(slave, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
    return master, slave


def _start(step: Execute, slave: int) -> int:
    """Fork and exec the command; return its pid once it runs. Raises CommandError."""
    failure, report = os.pipe()
    pid = os.fork()
    if pid == 0:
        code, text = SETUP_FAILED, ""
        try:
            _become_command(step, slave)
        except CommandError as exc:
            code, text = exc.exit_code, str(exc)
        except OSError as exc:
            text = str(exc)
        finally:
            os.write(report, f"{code} {text}".encode("utf-8", "surrogateescape"))
            os._exit(code)
    os.close(report)
    with open(failure, "rb") as stream:
        told = stream.read().decode("utf-8", "surrogateescape")
    if told:
        code_text, _, text = told.partition(" ")
        raise CommandError(int(code_text), text)
    return pid


def _become_command(step: Execute, slave: int) -> None:
    """In the child: a session of its own, the terminal, and exec. Returns only by raising."""
    os.setsid()
    if slave >= 0:
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for fd in (0, 1, 2):
            if os.isatty(fd):
                os.dup2(slave, fd)
    for fd in (0, 1, 2):
        os.set_inheritable(fd, True)
    os.chdir(step.directory)
    os.umask(0o022)
    process.reset_signals()
    process.close_on_exec_from(3)
    environment = dict(step.environment)
    name = step.command[0]
    directories = [b""] if b"/" in name else environment.get(b"PATH", b"").split(b":")
    found: OSError | None = None
    for directory in directories:
        path = os.path.join(directory, name)
        try:
            os.execve(path, step.command, environment)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            found = found or exc
    if found is None:
        why = os.strerror(errno.ENOENT) if b"/" in name else "command not found"
        raise CommandError(NOT_FOUND, f"{printable(name)}: {why}")
    raise CommandError(NOT_EXECUTABLE, f"{printable(name)}: {os.strerror(found.errno or 0)}")
