"""The registry of live mounts, so that commands can find a mount's server without touching the mount.

A directory that only its owner can enter holds for each mount ``MAJOR:MINOR.json`` (its device, as mountinfo shows it)
and beside it ``MAJOR:MINOR.sock``, the server's control socket. The server keeps an flock on the first for as long as
it lives: a record whose lock can be taken belongs to a dead server. Whoever reads or changes the directory holds an
flock on the directory itself, so nobody meets half a record, and a number the kernel gives out again cannot be removed
by its former owner.

A server may be mounted over the path of this directory. It therefore opens the directory before its mount is attached
and uses only that descriptor afterwards.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from unionfs.errors import MountError, printable
from unionfs.linux import mounts
from unionfs.linux.mounts import MountInfo

FSTYPE = "fuse.unionfs"
#: A mount of the engine "kernel": it has no server and no record, everything is in mountinfo.
KERNEL_FSTYPE = "overlay"
#: The source of a mount unless fsname= says otherwise.
SOURCE = b"unionfs"
_CONTROL_SECONDS = 5.0
_POLL = 0.003


class Record(NamedTuple):
    """What is known of a mount. ``started``: seconds since 1970. ``claims``: (st_dev, st_ino) of upper and work.

    Of the kernel's own mounts there is no process (0), no start (0) and no claim.
    """

    device: str
    pid: int
    target: bytes
    lowers: tuple[bytes, ...]
    upper: bytes | None
    work: bytes | None
    options: str
    started: float
    claims: tuple[tuple[int, int], ...] = ()
    engine: str = "channel"
    data_lowers: tuple[bytes, ...] = ()


class Mount(NamedTuple):
    """A mount as a user sees it: ``state`` is live, dead (its server is gone), elsewhere (in another mount namespace,
    or detached and still busy) or unknown (nobody recorded it, or another user did)."""

    device: str
    target: bytes
    state: str
    record: Record | None


# Where records are.


def directories() -> list[bytes]:
    """The places a record of ours may be in, best first."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        uid = uid_outside(os.geteuid(), file.read())
    places = [b"/run/unionfs"] if os.geteuid() == 0 else []
    runtime = os.environb.get(b"XDG_RUNTIME_DIR", b"")
    if runtime.startswith(b"/"):
        places.append(runtime + b"/unionfs")
    return [*places, b"/run/user/%d/unionfs" % uid, b"/tmp/unionfs-%d" % uid]


def uid_outside(uid: int, uid_map: str) -> int:
    """Who the user *uid* is in the namespace around his own: everybody is 0 in a namespace he made himself, and /tmp is one for all."""
    ranges = (map(int, line.split()) for line in uid_map.splitlines())
    return next((outer + uid - inner for inner, outer, count in ranges if inner <= uid < inner + count), uid)


def open_directory(path: bytes, *, create: bool = False) -> int:
    """A descriptor of the registry at *path*; OSError when there is none or others could have written to it."""
    if create:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    st = os.fstat(fd)
    if st.st_uid != os.geteuid() or stat.S_IMODE(st.st_mode) & 0o022:
        os.close(fd)
        raise PermissionError(1, "the registry of mounts belongs to somebody else", path)
    return fd


def _open_all() -> Iterator[int]:
    """A descriptor of each registry there is; each is closed when the next is asked for."""
    seen = set()
    for path in directories():
        try:
            fd = open_directory(path)
        except OSError:
            continue
        try:
            st = os.fstat(fd)
            if (st.st_dev, st.st_ino) not in seen:
                seen.add((st.st_dev, st.st_ino))
                yield fd
        finally:
            os.close(fd)


@contextmanager
def _locked(dir_fd: int) -> Iterator[None]:
    fcntl.flock(dir_fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(dir_fd, fcntl.LOCK_UN)


# The server's side.


class Registration:
    """A server's entry: made before its mount is attached, published once the device is known, removed at the end."""

    def __init__(self, directory: bytes) -> None:
        """Raises OSError when *directory* cannot hold it."""
        self._dir_fd = open_directory(directory, create=True)
        self._fd = -1
        self._device = ""
        #: Listening; ask() is the other end.
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket_name = b"%d-%d.sock" % (os.getpid(), time.monotonic_ns())
        try:
            with _locked(self._dir_fd):  # whoever looks meanwhile would take a socket that does not listen yet for a dead one
                self.control.bind(_at(self._dir_fd, self._socket_name))
                self.control.listen()
        except OSError:
            self.control.close()
            os.close(self._dir_fd)
            raise

    @classmethod
    def somewhere(cls) -> Registration | None:
        """A registration in the best place that can hold one, or None."""
        for directory in directories():
            try:
                return cls(directory)
            except OSError:
                continue
        return None

    def publish(self, record: Record) -> None:
        """Show *record* to everybody, in place of any an earlier mount with this device left."""
        name = b"%s.json" % record.device.encode()
        with _locked(self._dir_fd):
            self._forget(name)
            self._fd = os.open(
                name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._dir_fd
            )
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            os.write(self._fd, _to_json(record))
            socket_name = b"%s.sock" % record.device.encode()
            os.rename(self._socket_name, socket_name, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
        self._device, self._socket_name = record.device, socket_name

    def remove(self) -> None:
        """Take the entry back, unless a newer mount has replaced it, and give up the lock. Once is enough."""
        if self._dir_fd < 0:
            return
        with _locked(self._dir_fd):
            if self._fd < 0:
                self._forget(self._socket_name)
            elif os.fstat(self._fd).st_nlink:
                self._forget(self._socket_name)
                self._forget(b"%s.json" % self._device.encode())
        self.control.close()
        if self._fd >= 0:
            os.close(self._fd)
        os.close(self._dir_fd)
        self._dir_fd = self._fd = -1

    def _forget(self, name: bytes) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._dir_fd)


def _at(dir_fd: int, name: bytes) -> bytes:
    """An address for *name* in *dir_fd*: the path itself may be longer than the 108 bytes of a socket address."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)


def _text(path: bytes | None) -> str | None:
    return None if path is None else path.decode("utf-8", "surrogateescape")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8", "surrogateescape")


def as_json(record: Record) -> dict[str, Any]:
    """*record* for JSON; bytes that are no UTF-8 become lone surrogates (\\udc80 to \\udcff), as Python shows paths."""
    return {
        "pid": record.pid,
        "target": _text(record.target),
        "lowers": [_text(path) for path in record.lowers],
        "upper": _text(record.upper),
        "work": _text(record.work),
        "options": record.options,
        "started": record.started,
        "claims": record.claims,
        "engine": record.engine,
        "data_lowers": [_text(path) for path in record.data_lowers],
    }


def _to_json(record: Record) -> bytes:
    return json.dumps(as_json(record)).encode("ascii") + b"\n"


def _from_json(device: str, data: bytes) -> Record:
    got = json.loads(data)
    return Record(
        device=device,
        pid=got["pid"],
        target=got["target"].encode("utf-8", "surrogateescape"),
        lowers=tuple(path.encode("utf-8", "surrogateescape") for path in got["lowers"]),
        upper=_bytes(got["upper"]),
        work=_bytes(got["work"]),
        options=got["options"],
        started=got["started"],
        claims=tuple((device_number, ino) for device_number, ino in got["claims"]),
        data_lowers=tuple(path.encode("utf-8", "surrogateescape") for path in got.get("data_lowers", ())),
        engine=got.get("engine", "pyfuse3"),  # servers that write none have no other
    )


# The commands' side.


class Found(NamedTuple):
    """A record, and whether its server lives. ``fd`` is open on it and belongs to the caller."""

    record: Record
    alive: bool
    fd: int

    def wait_until_gone(self, seconds: float) -> bool:
        """Wait for the server to end, at most so long; whether it did."""
        deadline = time.monotonic() + seconds
        while not _can_lock(self.fd):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        return True

    def close(self) -> None:
        os.close(self.fd)


def _can_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def _find(dir_fd: int, device: str) -> Found | None:
    """The record of *device* in one registry. The caller holds its lock."""
    try:
        fd = os.open(f"{device}.json", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        record = _from_json(device, os.read(fd, 1 << 24))
    except (ValueError, KeyError, TypeError, AttributeError, OSError):  # a server was killed while it wrote this
        os.close(fd)
        return None
    return Found(record, not _can_lock(fd), fd)


def _belongs(record: Record, alive: bool, info: MountInfo) -> bool:
    """Whether *info* is the mount *record* tells of: the kernel gives a number again, and a dead server cannot object."""
    return record.device == info.device and info.fstype.startswith("fuse") and (alive or record.target == info.target)


def find(info: MountInfo) -> Found | None:
    """The record of the mount *info*."""
    for dir_fd in _open_all():
        with _locked(dir_fd):
            found = _find(dir_fd, info.device)
        if found and _belongs(found.record, found.alive, info):
            return found
        if found:
            found.close()
    return None


def records() -> list[tuple[Record, bool]]:
    """All records and whether their servers live. What dead servers left whose mounts are gone too is removed."""
    result = []
    for dir_fd in _open_all():
        with _locked(dir_fd):
            mounted = mounts.mountinfo()
            names = sorted(os.listdir(dir_fd))
            for device in (name.removesuffix(".json") for name in names if name.endswith(".json")):
                found = _find(dir_fd, device)
                if found and (found.alive or any(_belongs(found.record, False, info) for info in mounted)):
                    result.append((found.record, found.alive))
                else:
                    _unlink(dir_fd, f"{device}.json")
                if found:
                    found.close()
            for name in names:
                if name.endswith(".sock") and not _has_record(dir_fd, name) and not _listens(dir_fd, name):
                    _unlink(dir_fd, name)
    return result


def _has_record(dir_fd: int, socket_name: str) -> bool:
    return os.access(f"{socket_name.removesuffix('.sock')}.json", os.F_OK, dir_fd=dir_fd)


def _listens(dir_fd: int, socket_name: str) -> bool:
    """Whether somebody is at the other end: a server that has not published its record yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(_CONTROL_SECONDS)
        try:
            control.connect(_at(dir_fd, os.fsencode(socket_name)))
        except ConnectionRefusedError:
            return False
        except OSError:
            pass
    return True


def _unlink(dir_fd: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=dir_fd)


def record_of(info: MountInfo) -> Record | None:
    """What is known of the mount *info*, whichever engine it has."""
    found = find(info)
    if found:
        found.close()
        return found.record
    return kernel_record(info)


# Unions that the kernel mounts.


def kernel_record(info: MountInfo) -> Record | None:
    """What mountinfo tells of an overlay of the kernel's, None for another mount."""
    if info.fstype != KERNEL_FSTYPE:
        return None
    lowers: list[bytes] = []
    data: list[bytes] = []
    upper = work = None
    words = []
    for option in info.super_options:
        name, _, value = option.partition("=")
        path = mounts.unescape(value.encode("utf-8", "surrogateescape"))
        if name == "lowerdir+":
            lowers.append(path)
        elif name == "datadir+" and path != b"/":  # that is what kernel.py adds to a single layer
            data.append(path)
        elif name == "lowerdir":
            merged, *behind = path.split(b"::")
            lowers += merged.split(b":")
            data += behind
        elif name == "upperdir":
            upper = path
        elif name == "workdir":
            work = path
        elif name in ("ro", "rw", "userxattr") or option in ("fsync=volatile", "index=on"):
            words.append(option.removeprefix("fsync="))
    return Record(
        device=info.device, pid=0, target=info.target, lowers=tuple(lowers), upper=upper, work=work,
        options=",".join(words), started=0.0, engine="kernel", data_lowers=tuple(data),
    )  # fmt: skip


def is_ours(info: MountInfo) -> bool:
    """Whether *info* is a union of this program, or of the kernel's, whoever mounted that."""
    if info.fstype in (FSTYPE, KERNEL_FSTYPE):
        return True
    found = find(info)
    if found:
        found.close()
    return found is not None


def all_mounts() -> list[Mount]:
    """Every union there is to see, by target; of the kernel's those that say they are ours.

    No mount is touched: this works when a server hangs.
    """
    known = {record.device: (record, alive) for record, alive in records()}
    seen = set()
    result = []
    for info in mounts.mountinfo():
        record, alive = known.get(info.device, (None, False))
        if record is not None and _belongs(record, alive, info):
            seen.add(info.device)
            result.append(Mount(info.device, info.target, "live" if alive else "dead", record))
        elif info.fstype == FSTYPE:
            result.append(Mount(info.device, info.target, "unknown", None))
        elif info.fstype == KERNEL_FSTYPE and info.source == SOURCE:
            result.append(Mount(info.device, info.target, "live", kernel_record(info)))
    result += [
        Mount(device, record.target, "elsewhere", record)
        for device, (record, alive) in known.items()
        if alive and device not in seen
    ]
    return sorted(result, key=lambda mount: (mount.target, mount.device))


def locate(path: bytes) -> bytes:
    """The absolute path of *path*, without symlinks, as mountinfo shows it - found without a stat of what is there.

    readlink(2) of a mount's root is answered by the kernel alone, so a mount whose server hangs or is dead is no
    obstacle. Only what leads to it is looked up as usual.
    """
    for _ in range(40):  # as many symlinks as the kernel follows
        parent, name = os.path.split(path.rstrip(b"/"))
        if name in (b"", b".", b".."):
            return os.path.realpath(path)
        parent = os.path.realpath(parent or (b"/" if path.startswith(b"/") else b"."))
        try:
            path = os.path.join(parent, os.readlink(os.path.join(parent, name)))
        except OSError:
            break
    return os.path.join(parent, name)


def mount_of(path: bytes) -> tuple[MountInfo, bytes]:
    """The union mounted at *path* and its absolute path; MountError when there is none. *path* is not touched."""
    target = locate(path)
    info = mounts.mount_at(target)
    if info is None:
        raise MountError(f"{printable(path)}: nothing is mounted here")
    if not is_ours(info):
        raise MountError(f"{printable(path)}: what is mounted here is {info.fstype}, not a union")
    return info, target


def served_mount(path: bytes) -> tuple[MountInfo, bytes]:
    """As mount_of, for what is asked of a server: MountError for a mount of the kernel's."""
    info, target = mount_of(path)
    if info.fstype == KERNEL_FSTYPE:
        raise MountError(f"{printable(path)} is mounted by the kernel's overlayfs: there is no server to ask")
    return info, target


def is_dead(info: MountInfo) -> bool:
    """Whether the server of the union *info* is gone. Touches the mount only when no record says so."""
    if info.fstype == KERNEL_FSTYPE:
        return False
    found = find(info)
    if found:
        found.close()
        return not found.alive
    try:
        os.statvfs(info.target)  # the one question the kernel never answers from what it remembers
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


def is_mounted(claims: Collection[tuple[int, int]]) -> bool:
    """Whether a live server that claims one of these directories still has its mount, in our mount namespace or its own."""
    return any(
        _belongs(record, alive, info)
        for record, alive in records()
        if alive and not set(claims).isdisjoint(record.claims)
        for pid in ("self", record.pid)
        for info in _mountinfo_of(pid)
    )


def _mountinfo_of(pid: int | str) -> Sequence[MountInfo]:
    try:
        return mounts.mountinfo(pid)
    except OSError:  # it ended meanwhile, or lives in another pid namespace
        return ()


def ask(device: str, request: dict[str, Any], *, seconds: float = _CONTROL_SECONDS) -> dict[str, Any]:
    """The server's answer to one request over its control socket, waited for so long. Raises MountError."""
    for dir_fd in _open_all():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(seconds)
            try:
                control.connect(_at(dir_fd, b"%s.sock" % device.encode()))
            except FileNotFoundError:
                continue
            except ConnectionRefusedError as exc:
                raise MountError("the server of this mount is dead: mounting over it, or unionfs umount, takes it away") from exc
            except OSError as exc:
                raise MountError(f"the server does not answer: {exc.strerror or exc}") from exc
            return _exchange(control, request)
    raise MountError("the server of this mount has no control socket here")


def _exchange(control: socket.socket, request: dict[str, Any]) -> dict[str, Any]:
    try:
        control.sendall(json.dumps(request).encode() + b"\n")
        with control.makefile("rb") as stream:
            answer = json.loads(stream.readline())
    except (OSError, ValueError) as exc:
        raise MountError(f"the server does not answer: {exc}") from exc
    if not isinstance(answer, dict):
        raise MountError("the server does not answer in its own language")
    return answer
