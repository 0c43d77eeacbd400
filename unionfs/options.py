"""Mount options: the text of ``-o`` to a frozen MountOptions. Pure.

The vocabulary is the union of what callers write: the kernel's overlayfs, fuse-overlayfs, mount(8) and libfuse.
An option is one of

* acted on,
* taken without effect, because what it asks for is so anyway or means nothing here,
* taken with a warning, because it asks for something that is not done, but harmlessly so,
* refused by name, because mounting without it would break what the caller relies on,
* unheard of: handed back to the caller, who decides.

Rules of the text (measured on the kernel's ovl_next_opt and ovl_unescape; quotes are util-linux's): options are
split at commas, layers at colons; a backslash takes the next byte literally; double quotes around a value or a layer
protect commas; an empty option is nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from unionfs.errors import UsageError, printable

#: What mounts: our server, by itself or on pyfuse3, the kernel's overlayfs, or the latter where it can.
ENGINES = ("channel", "pyfuse3", "kernel", "auto")
#: Those of them that are our own server.
SERVED = ENGINES[:2]
#: How our server has the kernel keep files' data.
IO_MODES = ("cached", "writeback", "passthrough")


class MountOptions(NamedTuple):
    """What a mount is asked to be.

    ``lowers``: topmost first, as typed. ``data_lowers``: data-only layers, below all lowers. ``live``: others change the lowers meanwhile,
    and that is to show. ``vfs_flags``: of nosuid,
    nodev, noexec, noatime, nodiratime, strictatime and nosymfollow those that are on. ``private``: mounts below it do not
    propagate (buildah asks for that). ``whfiles``: ``.wh.`` files are whiteouts. ``fsync``: auto,
    strict, volatile (nobody waits for the disk, and a mark in work says so) or never (no mark). ``rename_copy_limit``: bytes.
    None, of any of these, is the default of the place. ``extra``: options of _CHOICES and _CONTEXTS, by name, as written.

    ``uid_ranges``, ``gid_ranges``: (first stored id, first shown id, how many) each; none: ids are shown as stored. ``squash_to_*``: what
    every owner is shown as, ``squash_to_root`` where no number is given. ``xattr_permissions``: 1, owners are kept in
    security.fuseoverlayfs.override_stat, 2, in user.containers.override_stat, 0, as the layers have it.
    """

    lowers: tuple[bytes, ...] = ()
    data_lowers: tuple[bytes, ...] = ()
    upper: bytes | None = None
    work: bytes | None = None
    read_only: bool = False
    fsync: str = "auto"
    acl: bool = True
    userxattr: bool = False
    whfiles: bool | None = None
    static_nlink: bool = False
    live: bool = False
    private: bool = False
    io: str | None = None
    timeout: float | None = None
    allow_other: bool | None = None
    vfs_flags: frozenset[str] = frozenset()
    fsname: bytes | None = None
    subtype: str | None = None
    uid_ranges: tuple[tuple[int, int, int], ...] = ()
    gid_ranges: tuple[tuple[int, int, int], ...] = ()
    squash_to_root: bool = False
    squash_to_uid: int | None = None
    squash_to_gid: int | None = None
    xattr_permissions: int = 0
    remount: bool = False
    debug: bool = False
    engine: str | None = None
    rename_copy_limit: int | None = None
    extra: Mapping[str, str] = {}

    @property
    def volatile(self) -> bool:
        """Whether the upper is lost with the machine, and marked so."""
        return self.fsync == "volatile"


class Parsed(NamedTuple):
    """``unknown``: options nobody has heard of, as written. ``warnings``: one line each, for the user."""

    options: MountOptions
    unknown: tuple[bytes, ...] = ()
    warnings: tuple[str, ...] = ()


def parse(texts: Iterable[bytes], base: MountOptions | None = None) -> Parsed:
    """Read the texts of all ``-o``, in order, on top of *base*; the last word on a matter wins. Raises UsageError."""
    draft = _Draft(base or MountOptions())
    for text in texts:
        for name, value in split(text):
            draft.take(name, value)
    return Parsed(draft.options, tuple(draft.unknown), tuple(draft.warnings))


def check_layers(options: MountOptions) -> None:
    """UsageError unless lowers, upper and work are given in a combination that can be mounted."""
    if not options.lowers:
        raise UsageError("no lower directory is given: use --lower DIR or -o lowerdir=DIR")
    if options.upper is not None and options.work is None:
        raise UsageError("an upper directory needs a work directory beside it: use --work DIR or -o workdir=DIR")
    if options.work is not None and options.upper is None:
        raise UsageError("a work directory is of no use without an upper directory")


def split(text: bytes) -> list[tuple[bytes, bytes | None]]:
    """(name, value) of each option; the value (None without ``=``) keeps its backslashes, not its quotes."""
    found: list[tuple[bytes, bytes | None]] = []
    option = bytearray()
    equals = -1  # where the first '=' of this option is
    position = 0
    while position < len(text):
        byte = text[position : position + 1]
        if byte == b",":
            found.append(_named(option, equals))
            option, equals = bytearray(), -1
        elif byte == b"\\":
            option += text[position : position + 2]
            position += 1
        elif byte == b'"' and equals >= 0 and text[position - 1 : position] in (b"=", b":"):
            end = _closing_quote(text, position)
            option += text[position + 1 : end] if end else byte
            position = end or position
        else:
            if byte == b"=" and equals < 0:
                equals = len(option)
            option += byte
        position += 1
    found.append(_named(option, equals))
    return [(name, value) for name, value in found if name or value]


def _named(option: bytearray, equals: int) -> tuple[bytes, bytes | None]:
    return (bytes(option), None) if equals < 0 else (bytes(option[:equals]), bytes(option[equals + 1 :]))


def _closing_quote(text: bytes, start: int) -> int:
    """Where the quotes opened at *start* close: at one that ends the value or the layer.

    0 when nothing closes them: the first was a plain byte then.
    """
    position = start + 1
    while position < len(text):
        if text[position] == ord("\\"):
            position += 1
        elif text[position] == ord('"') and text[position + 1 : position + 2] in (b"", b",", b":"):
            return position
        position += 1
    return 0


def unescape(text: bytes) -> bytes:
    """*text* without its backslashes, each of which made the byte behind it literal."""
    result = bytearray()
    position = 0
    while position < len(text):
        if text[position] == ord("\\") and position + 1 < len(text):
            position += 1
        result.append(text[position])
        position += 1
    return bytes(result)


def split_layers(text: bytes) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The layers of ``lowerdir=TOP:BASE::DATA``: those that merge and the data-only ones."""
    parts = [unescape(part) for part in _at_colons(text)]
    lowers: list[bytes] = []
    data: list[bytes] = []
    position = 0
    while position < len(parts):
        if lowers and not parts[position]:  # the gap of a double colon
            position += 1
            if position == len(parts) or not parts[position]:
                raise _empty_layer()
            data.append(parts[position])
        elif not parts[position]:
            raise _empty_layer()
        elif data:
            raise UsageError("lowerdir=: a layer that merges cannot follow a data-only one")
        else:
            lowers.append(parts[position])
        position += 1
    return tuple(lowers), tuple(data)


def _empty_layer() -> UsageError:
    return UsageError("lowerdir= names an empty path")


def _at_colons(text: bytes) -> list[bytes]:
    parts = [bytearray()]
    position = 0
    while position < len(text):
        if text[position] == ord("\\"):
            parts[-1] += text[position : position + 2]
            position += 1
        elif text[position] == ord(":"):
            parts.append(bytearray())
        else:
            parts[-1].append(text[position])
        position += 1
    return [bytes(part) for part in parts]


# The vocabulary.

#: Options without a value that set one field.
_FIELDS: dict[str, tuple[str, Any]] = {
    "volatile": ("fsync", "volatile"),
    "acl": ("acl", True),
    "noacl": ("acl", False),
    "userxattr": ("userxattr", True),
    "whfiles": ("whfiles", True),
    "nowhfiles": ("whfiles", False),
    "static_nlink": ("static_nlink", True),
    "private": ("private", True),
    "rprivate": ("private", True),
    "allow_other": ("allow_other", True),
    "squash_to_root": ("squash_to_root", True),
    "remount": ("remount", True),
    "debug": ("debug", True),
    "ro": ("read_only", True),
    "rw": ("read_only", False),
}

#: Flags of a mount: what each adds to and takes from vfs_flags.
_VFS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    name: (frozenset(adds.split()), frozenset(takes.split()))
    for name, adds, takes in (
        ("nosuid", "nosuid", ""),
        ("suid", "", "nosuid"),
        ("nodev", "nodev", ""),
        ("dev", "", "nodev"),
        ("noexec", "noexec", ""),
        ("exec", "", "noexec"),
        ("nosymfollow", "nosymfollow", ""),
        ("symfollow", "", "nosymfollow"),
        ("noatime", "noatime", "strictatime"),
        ("atime", "", "noatime"),
        ("nodiratime", "nodiratime", ""),
        ("diratime", "", "nodiratime"),
        ("strictatime", "strictatime", "noatime"),
        ("nostrictatime", "", "strictatime"),
        ("relatime", "", "noatime strictatime"),
        ("norelatime", "", ""),
    )
}

#: mount(8)'s and the security modules' words that mean nothing to the filesystem.
_GENERIC = frozenset(
    "defaults auto noauto user nouser users nousers owner noowner group nogroup _netdev nofail async silent loud"
    " lazytime nolazytime nomand noiversion iversion seclabel comment uhelper helper".split()
)

#: The security modules' words, which have a value.
_CONTEXTS = frozenset("context fscontext defcontext rootcontext".split())

#: libfuse's words: what they ask for is so anyway, or is decided here.
_LIBFUSE = frozenset(
    "default_permissions nonempty auto_unmount big_writes large_read kernel_cache auto_cache noauto_cache hard_remove"
    " use_ino readdir_ino intr intr_signal atomic_o_trunc async_read sync_read async_dio sync_dio clone_fd noforget"
    " remember no_remote_lock no_remote_flock no_remote_posix_lock splice_read splice_write splice_move no_splice_read"
    " no_splice_write no_splice_move max_read max_write max_readahead max_background congestion_threshold max_threads"
    " max_idle_threads blksize attr_timeout entry_timeout negative_timeout ac_attr_timeout fd rootmode user_id"
    " group_id".split()
)

#: fuse-overlayfs's and the kernel's words about how, not what.
_OVERLAY = frozenset("threaded fast_ino override_creds".split())

#: Taken, but the user is told that nothing comes of it.
_WITHOUT_EFFECT = {
    "sync": "writes are not synchronous",
    "dirsync": "changes of directories are not synchronous",
    "mand": "there is no mandatory locking",
    "allow_root": "only the user who mounts may enter",
}

#: Overlay options with a fixed set of values; a text beside a value is a warning. What cannot go together, and which engine has what, is
#: decided in unionfs.engines.
_CHOICES: dict[str, dict[str, str]] = {
    "redirect_dir": {"on": "", "off": "", "follow": "", "nofollow": ""},
    "index": {"on": "", "off": ""},
    "metacopy": {"on": "", "off": ""},
    "nfs_export": {"on": "", "off": ""},
    "verity": {"on": "", "off": "", "require": ""},
    "xino": {"on": "", "off": "", "auto": ""},
    "uuid": {"on": "", "off": "", "auto": "", "null": ""},
    "noxattrs": {"0": "", "1": "extended attributes stay on"},
}

#: Refused by name, with these values or any.
_REFUSED: dict[str, frozenset[str] | None] = {
    "plugins": None,
}

_YES = {"1": True, "on": True, "yes": True, "true": True, "0": False, "off": False, "no": False, "false": False}


class _Draft:
    """Options while they are being read."""

    def __init__(self, options: MountOptions) -> None:
        self.options = options
        self.unknown: list[bytes] = []
        self.warnings: list[str] = []

    def set(self, **fields: Any) -> None:
        self.options = self.options._replace(**fields)

    def take(self, raw_name: bytes, value: bytes | None) -> None:
        """One option; what is refused with one value may be taken with another."""
        name = raw_name.decode("ascii", "backslashreplace")
        text = "" if value is None else unescape(value).decode("utf-8", "backslashreplace")
        if name in _REFUSED and (_REFUSED[name] is None or text in (_REFUSED[name] or ())):
            raise UsageError(f"option {_shown(raw_name, value)} is not supported")
        if name in _VALUED and not (value is None and name in _FIELDS):
            if value is None:
                raise UsageError(f"option {name} needs a value: {name}=...")
            _VALUED[name](self, value)
        elif name in _CHOICES:
            self.choose(name, text, raw_name, value)
        elif value is None and name in _FIELDS:
            key, setting = _FIELDS[name]
            self.set(**{key: setting})
        elif value is None and name in _VFS:
            adds, takes = _VFS[name]
            self.set(vfs_flags=(self.options.vfs_flags - takes) | adds)
        elif value is None and name in _WITHOUT_EFFECT:
            self.warnings.append(f"option {name} has no effect: {_WITHOUT_EFFECT[name]}")
            if name == "allow_root":
                self.set(allow_other=False)
        elif name in _CONTEXTS:
            self.set(extra={**self.options.extra, name: text})
        elif not (name in _GENERIC or name in _LIBFUSE or name in _OVERLAY or name.lower().startswith("x-")):
            self.unknown.append(raw_name if value is None else raw_name + b"=" + value)

    def choose(self, name: str, text: str, raw_name: bytes, value: bytes | None) -> None:
        allowed = _CHOICES[name]
        if text not in allowed:
            raise UsageError(f"option {_shown(raw_name, value)}: the value must be one of {', '.join(sorted(allowed))}")
        self.set(extra={**self.options.extra, name: text})
        if allowed[text]:
            self.warnings.append(f"option {name}={text} has no effect: {allowed[text]}")


def _shown(name: bytes, value: bytes | None) -> str:
    return printable(name if value is None else name + b"=" + value)


def _truth(name: str, value: bytes) -> bool:
    text = value.decode("ascii", "backslashreplace").lower()
    if text not in _YES:
        raise UsageError(f"option {_shown(name.encode(), value)}: the value must be 0 or 1")
    return _YES[text]


def _lowerdir(draft: _Draft, value: bytes) -> None:
    lowers, data = split_layers(value)
    draft.set(lowers=lowers, data_lowers=data)


def _add_lower(draft: _Draft, value: bytes) -> None:
    if draft.options.data_lowers:
        raise UsageError("lowerdir+=: a layer that merges cannot follow a data-only one")
    draft.set(lowers=(*draft.options.lowers, _path("lowerdir+", value)))


def _path(name: str, value: bytes) -> bytes:
    if not value:
        raise UsageError(f"{name}= names an empty path")
    return unescape(value)


def _fsync(draft: _Draft, value: bytes) -> None:
    text = value.decode("ascii", "backslashreplace")
    if text.lower() in _YES:  # fuse-overlayfs's; the words are the kernel's
        text = "auto" if _YES[text.lower()] else "never"
    elif text not in ("auto", "strict", "volatile"):
        raise UsageError(f"option {_shown(b'fsync', value)}: the value must be auto, strict, volatile, 0 or 1")
    draft.set(fsync=text)


def _lowers(draft: _Draft, value: bytes) -> None:
    if value not in (b"static", b"live"):
        raise UsageError(f"option {_shown(b'lowers', value)}: the value must be static or live")
    draft.set(live=value == b"live")


_UNITS = {b"": 1, b"K": 1 << 10, b"M": 1 << 20, b"G": 1 << 30, b"T": 1 << 40}


def _size(name: str, value: bytes) -> int:
    """Bytes: a number, with a binary unit behind it or none."""
    digits = value.rstrip(b"KMGTkmgt")
    unit = value[len(digits) :].upper()
    if not digits.isdigit() or unit not in _UNITS:
        raise UsageError(f"option {_shown(name.encode(), value)}: the value must be a number of bytes, as 1000000 or 64M")
    return int(digits) * _UNITS[unit]


def _engine(draft: _Draft, value: bytes) -> None:
    text = value.decode("ascii", "backslashreplace")
    if text not in ENGINES:
        raise UsageError(f"option {_shown(b'engine', value)}: the value must be one of {', '.join(ENGINES)}")
    draft.set(engine=text)


def _io(draft: _Draft, value: bytes) -> None:
    text = value.decode("ascii", "backslashreplace")
    if text not in IO_MODES:
        raise UsageError(f"option {_shown(b'io', value)}: the value must be one of {', '.join(IO_MODES)}")
    draft.set(io=text)


def _timeout(draft: _Draft, value: bytes) -> None:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"option {_shown(b'timeout', value)}: the value must be a number of seconds")
    draft.set(timeout=seconds)


#: (uid_t)-1 means "no user".
_ID_MAX = (1 << 32) - 2


def _ranges(name: str, value: bytes) -> tuple[tuple[int, int, int], ...]:
    """``[:]C:H:N[:C:H:N...]``, as container engines write it: N ids, stored from C on, shown from H on."""

    def bad(why: str) -> UsageError:
        return UsageError(f"option {_shown(name.encode(), value)}: {why}")

    words = [word for word in value.split(b":") if word]
    if not all(word.isdigit() and len(word) <= 10 for word in words) or len(words) % 3:
        raise bad("the value must be STORED:SHOWN:COUNT, each a number, once or more, with colons between")
    numbers = [int(word) for word in words]
    ranges = tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
    for side in (0, 1):
        end = 0
        for found in sorted(ranges, key=lambda found: found[side]):
            if not found[2] or found[side] + found[2] - 1 > _ID_MAX:
                raise bad(f"{':'.join(map(str, found))} is not a range of ids")
            if found[side] < end:
                raise bad(f"{('stored', 'shown')[side]} id {found[side]} is in two ranges")
            end = found[side] + found[2]
    return ranges


def _id(name: str, value: bytes) -> int:
    if not value.isdigit() or len(value) > 10 or int(value) > _ID_MAX:
        raise UsageError(f"option {_shown(name.encode(), value)}: the value must be the number of a user or group")
    return int(value)


def _xattr_permissions(draft: _Draft, value: bytes) -> None:
    if value not in (b"0", b"1", b"2"):
        raise UsageError(f"option {_shown(b'xattr_permissions', value)}: the value must be 0, 1 or 2")
    draft.set(xattr_permissions=int(value))


_VALUED: dict[str, Callable[[_Draft, bytes], None]] = {
    "lowerdir": _lowerdir,
    "lowerdir+": _add_lower,
    "datadir+": lambda draft, value: draft.set(data_lowers=(*draft.options.data_lowers, _path("datadir+", value))),
    "upperdir": lambda draft, value: draft.set(upper=_path("upperdir", value)),
    "workdir": lambda draft, value: draft.set(work=_path("workdir", value)),
    "fsync": _fsync,
    "lowers": _lowers,
    "engine": _engine,
    "rename_copy_limit": lambda draft, value: draft.set(rename_copy_limit=_size("rename_copy_limit", value)),
    "timeout": _timeout,
    "uidmapping": lambda draft, value: draft.set(uid_ranges=_ranges("uidmapping", value)),
    "gidmapping": lambda draft, value: draft.set(gid_ranges=_ranges("gidmapping", value)),
    "squash_to_uid": lambda draft, value: draft.set(squash_to_uid=_id("squash_to_uid", value)),
    "squash_to_gid": lambda draft, value: draft.set(squash_to_gid=_id("squash_to_gid", value)),
    "xattr_permissions": _xattr_permissions,
    "whfiles": lambda draft, value: draft.set(whfiles=_truth("whfiles", value)),
    "writeback": lambda draft, value: draft.set(io="writeback" if _truth("writeback", value) else "cached"),
    "io": _io,
    "fsname": lambda draft, value: draft.set(fsname=unescape(value)),
    "subtype": lambda draft, value: draft.set(subtype=unescape(value).decode("utf-8", "backslashreplace")),
}


#: What ``unionfs mount --help`` says of the options that are acted on.
_HELP = (
    ("lowerdir=TOP:BASE", "read-only layers, topmost first; \\: \\, and \\\\ are a colon, a comma, a backslash"),
    ("lowerdir+=DIR", "one more layer below those named so far"),
    ("lowerdir=A::DATA, datadir+=DIR", "data-only layers, below all others"),
    ("upperdir=DIR, workdir=DIR", "where changes go, and the work directory on the same mount"),
    ("ro, rw", "read-only, or not"),
    ("volatile, fsync=volatile", "never wait for the disk; a mark in the work directory has the next mount refuse the upper"),
    ("fsync=auto, fsync=1", "copied-up data is on disk before it is seen, and fsync waits for it (default)"),
    ("fsync=strict", "so are attributes, directories and names that are copied up"),
    ("fsync=0", "never wait for the disk, and leave no mark"),
    (
        "redirect_dir=on|off|follow|nofollow",
        "on: renaming a directory of a lower writes a redirect; else it answers EXDEV. off, follow:\n"
        "      redirects found in layers count; nofollow: they do not (default on; with userxattr nofollow)",
    ),
    (
        "rename_copy_limit=SIZE",
        "with userxattr: a directory of a lower that is renamed is copied up if it holds no more\n"
        "      (default 64M; 0, the default where redirect_dir is given: EXDEV)",
    ),
    ("index=on|off", "lower hard links stay one file when they are copied up (default off)"),
    ("metacopy=on|off", "a change of owner, mode or times copies no data up (default off)"),
    ("xino=on|off|auto", "kernel: how numbers of several filesystems are told apart (default on, as our server)"),
    ("nfs_export=on|off, verity=off|on|require", "for the kernel; our server takes off alone"),
    ("uuid=on|off|auto|null", "for the kernel; nothing to our server"),
    ("context=C", "and fscontext, defcontext, rootcontext: security labels for the kernel; nothing to our server"),
    ("engine=channel|pyfuse3|kernel|auto", "what mounts, as --engine"),
    ("acl, noacl", "whether POSIX ACLs are honoured (default acl)"),
    ("userxattr", "marks are user.overlay.* instead of trusted.overlay.* (implied for who may not write those)"),
    ("uidmapping=C:H:N, gidmapping=C:H:N", "N ids stored from C on are shown from H on; more ranges follow after a colon"),
    ("squash_to_root, squash_to_uid=N, squash_to_gid=N", "every owner is shown as root or as N"),
    ("xattr_permissions=0|1|2", "1, 2: owners and modes are kept in attributes (security.*, user.*) of the upper's files"),
    ("whfiles=0|1, whfiles, nowhfiles", "whether .wh. files are whiteouts (default: only as a mount program)"),
    (
        "lowers=static|live",
        "live: others may change the lower layers while they are mounted, which is noticed in 2 seconds\n"
        "      at most (default static: only `unionfs refresh` makes changes show)",
    ),
    ("static_nlink", "every directory has one link"),
    ("private, rprivate", "what is mounted in it is not seen in other mount namespaces"),
    (
        "io=cached|writeback|passthrough",
        "cached: opening and closing files asks the server nothing (default); writeback\n"
        "      (also writeback=1): the kernel collects writes; passthrough: it reads and writes\n"
        "      the layers' files itself",
    ),
    ("timeout=SECONDS", "how long the kernel may trust names and attributes"),
    ("allow_other", "other users may enter (default for root)"),
    ("suid, dev, exec, atime, symfollow, strictatime, nodiratime", "and their opposites: flags of the mount"),
    ("fsname=NAME, subtype=NAME", "how the mount is shown"),
    ("debug", "as -d"),
)


def vocabulary() -> frozenset[str]:
    """The names of all options that have a meaning or are refused by name."""
    tables = (_FIELDS, _VFS, _GENERIC, _CONTEXTS, _LIBFUSE, _OVERLAY, _WITHOUT_EFFECT, _CHOICES, _REFUSED, _VALUED)
    return frozenset(name for table in tables for name in table)


def describe() -> str:
    """The vocabulary as a text for a terminal, a line of which is at most 100 columns wide."""
    lines = [f"  {name}\n      {meaning}" for name, meaning in _HELP]
    told = {name for names, _ in _HELP for name in re.findall(r"[a-z_]+", names)}
    choices = [f"{name}={'|'.join(values)}" for name, values in sorted(_CHOICES.items()) if name not in told]
    plain = sorted({*_GENERIC, *_LIBFUSE, *_OVERLAY, *_WITHOUT_EFFECT})
    lines.append(_folded("taken for compatibility", [*choices, "x-*", *plain]))
    refused = [f"{name}={'|'.join(sorted(v))}" if v else name for name, v in sorted(_REFUSED.items())]
    lines.append(_folded("refused", refused))
    return "\n".join(lines)


def _folded(title: str, words: Iterable[str]) -> str:
    lines = [f"  {title}:"]
    for word in words:
        if len(lines) == 1 or len(lines[-1]) + len(word) > 98:
            lines.append("     ")
        lines[-1] += " " + word
    return "\n".join(lines)
