"""What each engine makes of the mount options: one text, the same meaning. Pure.

``channel`` and ``pyfuse3`` are our own server: its options become Features. ``kernel`` is the kernel's overlayfs: its options become
parameters of a filesystem context. Every default that the two might see differently is stated to the kernel, whose own defaults depend on
how it was built. Which options exclude each other was measured on Linux 6.18 (ovl_fs_params_verify).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unionfs.errors import UsageError
from unionfs.options import SERVED, MountOptions

if TYPE_CHECKING:  # who only asks whether options go together shall not pay for the overlay
    from unionfs.overlay.features import Features
    from unionfs.overlay.owners import Owners

#: What of MountOptions the kernel has too, or what asks for what is so there anyway.
_KERNEL_FIELDS = frozenset(
    "lowers data_lowers upper work read_only fsync acl userxattr private allow_other vfs_flags fsname debug engine extra io".split()
)
_WRITTEN = {"uid_ranges": "uidmapping", "gid_ranges": "gidmapping", "live": "lowers=live"}
_KERNEL_CHOICES = frozenset("redirect_dir index metacopy nfs_export verity xino uuid context fscontext defcontext rootcontext".split())

#: How much a directory that cannot be redirected may hold to be copied up when it is renamed: seconds on a slow disk.
RENAME_COPY_LIMIT = 64 << 20


def check(options: MountOptions) -> None:
    """UsageError for options that exclude each other, in the kernel and here alike."""
    given = options.extra
    redirect = given.get("redirect_dir")
    if options.userxattr and redirect in ("on", "follow"):
        raise _conflict("userxattr", f"redirect_dir={redirect}", "who may write user.* attributes could redirect to any directory")
    if options.userxattr and given.get("metacopy") == "on":
        raise _conflict("userxattr", "metacopy=on", "who may write user.* attributes could show any file's data")
    if given.get("metacopy") == "on" and redirect not in (None, "on"):
        raise _conflict("metacopy=on", f"redirect_dir={redirect}", "a renamed file without data is found by its redirect")
    if given.get("nfs_export") == "on" and given.get("metacopy") == "on":
        raise _conflict("nfs_export=on", "metacopy=on", "")
    if given.get("nfs_export") == "on" and given.get("index") == "off":
        raise _conflict("nfs_export=on", "index=off", "file handles are found by the index")


def _conflict(one: str, other: str, why: str) -> UsageError:
    return UsageError(f"options {one} and {other} exclude each other" + (f": {why}" if why else ""))


def redirect_dir(options: MountOptions) -> str:
    """What ``redirect_dir`` comes to: on, follow or nofollow.

    ``off`` follows, as in a kernel that is built to follow always, which is the default there.
    """
    given = options.extra.get("redirect_dir", "on")
    if options.userxattr:
        return "nofollow"
    return "follow" if given == "off" else given


def check_served(options: MountOptions) -> None:
    """UsageError for what our own server cannot do."""
    check(options)
    for name in ("nfs_export", "verity"):
        if options.extra.get(name, "off") != "off":
            raise UsageError(f"option {name}={options.extra[name]} is not supported by our own server; --engine=kernel has it")


def features(options: MountOptions, overflow: tuple[int, int] = (65534, 65534)) -> Features:
    """What the options ask of the union that our server shows. *overflow*: (uid, gid) the kernel uses where an id means nothing.

    Preconditions: check_served.
    """
    from unionfs.overlay.features import Features, Redirect, Sync
    from unionfs.overlay.owners import CONTAINERS_STAT, PRIVILEGED_STAT

    sync = {"auto": Sync.AUTO, "strict": Sync.STRICT, "volatile": Sync.NEVER, "never": Sync.NEVER}
    return Features(
        userxattr=options.userxattr,
        redirect=Redirect(redirect_dir(options)),
        index=options.extra.get("index") == "on",
        metacopy=options.extra.get("metacopy") == "on",
        whfiles=bool(options.whfiles),
        volatile=options.volatile,
        sync=sync[options.fsync],
        copy_limit=_copy_limit(options),
        owners=_owners(options, overflow),
        stat_attribute={1: PRIVILEGED_STAT, 2: CONTAINERS_STAT}.get(options.xattr_permissions),
    )


def _owners(options: MountOptions, overflow: tuple[int, int]) -> Owners | None:
    """Which ids are shown for those stored; None: the same."""
    from unionfs.overlay.owners import Ids, Owners

    root = 0 if options.squash_to_root else None
    uid, gid = (root if squash is None else squash for squash in (options.squash_to_uid, options.squash_to_gid))
    owners = Owners(Ids(options.uid_ranges, uid, overflow[0]), Ids(options.gid_ranges, gid, overflow[1]))
    return owners if options.uid_ranges or options.gid_ranges or owners.squashed else None


def _copy_limit(options: MountOptions) -> int:
    """Only where no redirect can be written; who says redirect_dir=off or nofollow there wants the kernel's EXDEV."""
    if not options.userxattr:
        return 0
    if options.rename_copy_limit is not None:
        return options.rename_copy_limit
    return 0 if "redirect_dir" in options.extra else RENAME_COPY_LIMIT


def check_engine(options: MountOptions, engine: str) -> None:
    """UsageError for options that *engine*, one of options.ENGINES, cannot do."""
    lacking = not_in_kernel(options)
    if engine == "kernel" and lacking:
        raise UsageError(f"the kernel's overlayfs has no {', '.join(lacking)}; our own server has")
    if engine in SERVED or lacking:
        check_served(options)
    check(options)


def not_in_kernel(options: MountOptions) -> list[str]:
    """The options, as they are written, that ask for what the kernel's overlayfs cannot do."""
    lacking = [] if options.fsync != "never" else ["fsync=0"]
    lacking += [] if options.acl else ["noacl"]
    lacking += [] if options.allow_other is not False else ["allow_root"]
    for name, value in options._asdict().items():
        if name not in _KERNEL_FIELDS and value != options._field_defaults[name] and value is not False:
            lacking.append(_WRITTEN.get(name, name))
    lacking += [
        f"{name}={value}" for name, value in options.extra.items() if name not in _KERNEL_CHOICES and value not in ("", "0", "off")
    ]
    return lacking


def kernel_parameters(options: MountOptions) -> list[tuple[str, bytes | None]]:
    """The parameters of an overlayfs context but for the layers. Preconditions: not_in_kernel says nothing.

    xino=on: the numbers of all files are told apart under one device, as our own server always does.
    """
    given = options.extra
    index = "on" if given.get("nfs_export") == "on" else "off"
    chosen = {
        "redirect_dir": redirect_dir(options),
        "index": given.get("index", index),
        "metacopy": given.get("metacopy", "off"),
        "nfs_export": given.get("nfs_export", "off"),
        "xino": given.get("xino", "on"),
        **{name: given[name] for name in ("verity", "uuid", "context", "fscontext", "defcontext", "rootcontext") if name in given},
    }
    parameters: list[tuple[str, bytes | None]] = [("source", options.fsname or b"unionfs")]
    parameters += [(name, text.encode()) for name, text in chosen.items()]
    parameters += [("userxattr", None)] if options.userxattr else []
    parameters += [("volatile", None)] if options.volatile else []  # kernels before fsync=volatile know the word
    parameters += [("fsync", b"strict")] if options.fsync == "strict" else []
    parameters += [("ro", None)] if options.read_only else []
    return parameters
