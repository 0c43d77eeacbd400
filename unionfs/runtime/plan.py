"""What a run does, as data: ``make_plan`` turns options into steps, one tuple for each process that executes them.

Pure: no system call, so that ``--dry-run`` shows exactly what a run would do and tests need no privilege.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from unionfs.errors import UsageError, printable
from unionfs.options import ENGINES

PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOSTNAME = b"unionfs"
NETWORKS = ("none", "host")

#: Where throw-away uppers live. /var/lib is disk everywhere, while /tmp and /run often are memory; and a directory that
#: only its owner may enter keeps other users from set-uid files that a container made.
SCRATCH = b"/var/lib/unionfs/run"

#: Directories the container needs for its own mounts; a bottom layer provides them, so that they are never made in a
#: lower or a kept upper.
MOUNT_POINTS = (b"dev", b"proc", b"sys")


@dataclass(frozen=True)
class RunOptions:
    """What was asked for. Paths are absolute; *name* is this run's own directory in *scratch*."""

    lowers: tuple[bytes, ...]
    command: tuple[bytes, ...]
    name: bytes
    upper: bytes | None = None
    work: bytes | None = None
    network: str = "none"
    scratch: bytes = SCRATCH
    term: bytes = b"dumb"
    terminal: bool = False
    engine: str = "channel"


@dataclass(frozen=True)
class RemoveStale:
    """Remove the throw-away directories below *directory* whose server died before it could."""

    directory: bytes


@dataclass(frozen=True)
class MakeScratch:
    """Make and lock this run's own directory, removed when the run is over, with these directories in it."""

    directory: bytes
    subdirectories: tuple[bytes, ...]


@dataclass(frozen=True)
class CopyOwnerAndMode:
    """Give the fresh *target* the owner and mode of *source*: the union's root shows the upper's."""

    source: bytes
    target: bytes


@dataclass(frozen=True)
class MakeWork:
    """Make the work directory beside a kept upper where it is missing."""

    directory: bytes


@dataclass(frozen=True)
class Serve:
    """Make the union's mount, attached nowhere, hand it to the container and serve it until it is gone.

    *engine*: one of options.ENGINES; the kernel's mount needs no serving. With *remove_work* the work directory goes then too.
    """

    lowers: tuple[bytes, ...]
    upper: bytes
    work: bytes
    volatile: bool = False
    remove_work: bool = False
    engine: str = "channel"


@dataclass(frozen=True)
class Unshare:
    """Enter new namespaces."""

    kinds: tuple[str, ...]


@dataclass(frozen=True)
class SetHostname:
    name: bytes


@dataclass(frozen=True)
class RaiseLoopback:
    """Bring ``lo`` up."""


@dataclass(frozen=True)
class AttachUnion:
    """Receive the union's mount and put it on top of the root directory of the new mount namespace."""


@dataclass(frozen=True)
class Mount:
    """Mount a new filesystem at *target*, a path in the union."""

    fstype: str
    target: bytes
    attrs: tuple[str, ...]
    parameters: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class MakeDirectory:
    path: bytes


@dataclass(frozen=True)
class MakeDevice:
    """A character device every user may read and write."""

    path: bytes
    major: int
    minor: int


@dataclass(frozen=True)
class MakeSymlink:
    path: bytes
    target: bytes


@dataclass(frozen=True)
class SwitchRoot:
    """Make the union the root directory; nothing of the old one can be reached any more."""


@dataclass(frozen=True)
class Execute:
    """Start the command, as a child of pid 1, on a new terminal or on the runner's descriptors 0 to 2."""

    command: tuple[bytes, ...]
    environment: tuple[tuple[bytes, bytes], ...]
    directory: bytes
    terminal: bool


ServerStep = RemoveStale | MakeScratch | CopyOwnerAndMode | MakeWork | Serve
ContainerStep = (
    Unshare
    | SetHostname
    | RaiseLoopback
    | AttachUnion
    | Mount
    | MakeDirectory
    | MakeDevice
    | MakeSymlink
    | SwitchRoot
    | Execute
)


@dataclass(frozen=True)
class Plan:
    """The steps of each process, in order. The runner starts the server, does its own, then starts the container."""

    server: tuple[ServerStep, ...]
    runner: tuple[Unshare, ...]
    container: tuple[ContainerStep, ...]

    def lines(self) -> list[str]:
        """The plan for a reader, a line each step."""
        processes = (("server", self.server), ("runner", self.runner), ("container", self.container))
        return [f"{process:<10}{describe(step)}" for process, steps in processes for step in steps]


def make_plan(options: RunOptions) -> Plan:
    """The plan for *options*; raises UsageError where they contradict each other."""
    _check(options)
    return Plan(_server_steps(options), (Unshare(("pid",)),), _container_steps(options))


def _check(options: RunOptions) -> None:
    if not options.lowers:
        raise UsageError("at least one --lower is needed")
    if not options.command:
        raise UsageError("no command to run")
    if options.work is not None and options.upper is None:
        raise UsageError("--work needs --upper")
    if options.engine not in ENGINES:
        raise UsageError(f"unknown engine {options.engine!r}: one of {', '.join(ENGINES)}")
    if options.network not in NETWORKS:
        raise UsageError(f"unknown network {options.network!r}: one of {', '.join(NETWORKS)}")


def _server_steps(options: RunOptions) -> tuple[ServerStep, ...]:
    scratch = options.scratch + b"/" + options.name
    skeleton = tuple(b"skeleton/" + name for name in MOUNT_POINTS)
    lowers = (*options.lowers, scratch + b"/skeleton")
    if options.upper is None:
        upper = scratch + b"/upper"
        return (
            RemoveStale(options.scratch),
            MakeScratch(scratch, (b"skeleton", *skeleton, b"upper", b"work")),
            CopyOwnerAndMode(options.lowers[0], upper),
            Serve(lowers, upper, scratch + b"/work", volatile=True, engine=options.engine),
        )
    work = options.work or options.upper.rstrip(b"/") + b".work"
    return (
        RemoveStale(options.scratch),
        MakeScratch(scratch, (b"skeleton", *skeleton)),
        *(() if options.work else (MakeWork(work),)),
        Serve(lowers, options.upper, work, remove_work=not options.work, engine=options.engine),
    )


def _container_steps(options: RunOptions) -> tuple[ContainerStep, ...]:
    private_network = options.network == "none"
    return (
        Unshare(("mount", "uts", "ipc", *(("net",) if private_network else ()))),
        SetHostname(HOSTNAME),
        *((RaiseLoopback(),) if private_network else ()),
        AttachUnion(),
        Mount("proc", b"/proc", ("nosuid", "nodev", "noexec")),
        Mount("sysfs", b"/sys", ("ro", "nosuid", "nodev", "noexec")),
        *_device_steps(),
        SwitchRoot(),
        Execute(options.command, _environment(options), b"/", options.terminal),
    )


def _device_steps() -> tuple[ContainerStep, ...]:
    """A /dev of its own with what programs take for granted; the numbers are those of the kernel's devices.txt."""
    devices = {b"null": (1, 3), b"zero": (1, 5), b"full": (1, 7), b"random": (1, 8), b"urandom": (1, 9), b"tty": (5, 0)}
    links = {
        b"ptmx": b"pts/ptmx",
        b"fd": b"/proc/self/fd",
        b"stdin": b"/proc/self/fd/0",
        b"stdout": b"/proc/self/fd/1",
        b"stderr": b"/proc/self/fd/2",
    }
    hardened = ("nosuid", "nodev", "noexec")
    return (
        Mount("tmpfs", b"/dev", ("nosuid", "noexec"), (("mode", b"755"), ("size", b"64m"))),
        *(MakeDevice(b"/dev/" + name, major, minor) for name, (major, minor) in devices.items()),
        *(MakeSymlink(b"/dev/" + name, target) for name, target in links.items()),
        *(MakeDirectory(b"/dev/" + name) for name in (b"pts", b"shm", b"mqueue")),
        Mount("devpts", b"/dev/pts", ("nosuid", "noexec"), (("mode", b"620"), ("gid", b"5"), ("ptmxmode", b"666"))),
        Mount("tmpfs", b"/dev/shm", hardened, (("mode", b"1777"), ("size", b"64m"))),
        Mount("mqueue", b"/dev/mqueue", hardened),
    )


def _environment(options: RunOptions) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"PATH", PATH), (b"HOME", b"/root"), (b"HOSTNAME", HOSTNAME), (b"TERM", options.term))


def describe(step: ServerStep | ContainerStep) -> str:
    """*step* on one line: its name, then its fields."""
    name = "".join("-" + c.lower() if c.isupper() else c for c in type(step).__name__).lstrip("-")
    fields = (f"{field.name}={_show(getattr(step, field.name))}" for field in dataclasses.fields(step))
    return " ".join((name, *fields))


def _show(value: object) -> str:
    match value:
        case bytes():
            return printable(value)
        case bool():
            return "yes" if value else "no"
        case tuple() if value and all(isinstance(item, tuple) and len(item) == 2 for item in value):
            return ",".join(f"{_show(key)}={_show(item)}" for key, item in value)
        case tuple():
            return "[" + " ".join(_show(item) for item in value) + "]"
    return str(value)
