"""What a union is asked to do beyond merging and copying up: pure values, the same for every layer of one stack.

The names and defaults are those of the kernel's mount options (Documentation/filesystems/overlayfs.rst); what a user wrote is turned into
these in one place, and nothing below looks at mount options.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from unionfs.overlay.owners import Owners


class Redirect(Enum):
    """``redirect_dir``: what happens to a directory that a lower has a part in when it is renamed.

    ON: it moves, and a redirect says where its lower part is. FOLLOW: EXDEV, but redirects found in layers count. NOFOLLOW: EXDEV, and they
    do not count. (The kernel's ``off`` means FOLLOW where it was built to follow always, the default.)
    """

    ON = "on"
    FOLLOW = "follow"
    NOFOLLOW = "nofollow"

    @property
    def follow(self) -> bool:
        """Whether redirects found in layers count."""
        return self is not Redirect.NOFOLLOW


class Sync(Enum):
    """When changes are on disk.

    AUTO: data that was copied up is before it becomes visible, and fsync does what it says. STRICT: so is whatever else is copied up, and
    the names. NEVER: nobody waits for the disk.
    """

    AUTO = "auto"
    STRICT = "strict"
    NEVER = "never"


class Features(NamedTuple):
    """``userxattr``: marks are ``user.overlay.*``; then no redirect or metacopy is ever written, as the kernel refuses both there.

    ``index``: lower hard links stay one file when they are copied up. ``metacopy``: a change of attributes copies no data up.
    ``whfiles``: ``.wh.NAME`` files are whiteouts. ``volatile``: nothing is synced and a mark in work says so (with ``sync`` NEVER).
    ``copy_limit``: how many bytes a directory that cannot be redirected may have to be copied up whole when it is renamed; 0: EXDEV.
    ``owners``: the ids that are shown for those stored; None: the same. ``stat_attribute``: where upper keeps owners, modes and types;
    None: in its inodes, unless its root has such an attribute.
    """

    userxattr: bool = False
    redirect: Redirect = Redirect.ON
    index: bool = False  # type: ignore[assignment]  # hides tuple.index, which nobody asks for
    metacopy: bool = False
    whfiles: bool = False
    volatile: bool = False
    sync: Sync = Sync.AUTO
    copy_limit: int = 0
    owners: Owners | None = None
    stat_attribute: bytes | None = None


DEFAULTS = Features()
