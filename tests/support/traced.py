"""What strace saw of a server, and whether all of it stayed in the layers.

After the layers are open a server reaches everything by one name in a directory it holds, following no symlink; the only absolute paths are
/proc/self/fd/N and one name below it. ``violations`` reads a trace made with OPTIONS.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

OPTIONS = ("-f", "-y", "-qq", "-s", "1200", "-e", "trace=%file,openat2,name_to_handle_at,open_by_handle_at")
#: Telling where to look: what a traced program does between a stat of BEGIN and one of END.
BEGIN, END = "/trace-begin", "/trace-end"

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\)\s+= (-?\d+|\?)(?:<(.*)>)?")
#: A descriptor with its path, in which < and > are escaped but quotes are not; or a string.
_ARGUMENT = re.compile(r'(?:\d+|AT_FDCWD)<[^<>]*>|"((?:[^"\\]|\\.)*)"')
_OWN = re.compile(r"^/proc/self/fd/\d+(?:/([^/]*))?$")
#: What the server reads about itself and about who asks, and libfuse about pipes.
_NEEDED = re.compile(r"^(/proc/self/statm|/proc/\d+/status|/proc/sys/fs/pipe-max-size)$")
#: Calls that follow a symlink in the last name whatever they are told; chmod is one that Linux has no other form of for long.
_FOLLOW = {"getxattr", "setxattr", "listxattr", "removexattr", "chown", "stat", "truncate", "open", "creat", "access", "chdir"}
#: Calls that follow one unless told not to.
_TOLD = dict.fromkeys(("newfstatat", "statx", "fchownat", "utimensat"), "AT_SYMLINK_NOFOLLOW") | {"openat": "O_NOFOLLOW"}


def between_marks(lines: Iterable[str]) -> list[str]:
    """The calls from BEGIN to END."""
    found: list[str] = []
    inside = False
    for line in lines:
        if f'"{END}"' in line:
            inside = False
        if inside:
            found.append(line)
        if f'"{BEGIN}"' in line:
            inside = True
    return found


def violations(lines: Iterable[str], *, inside: str | None, outside: str) -> list[str]:
    """The lines that show an access outside the layers.

    *inside*: where every opened object must lie, None where the paths of descriptors begin at the root of a private mount. *outside*: a
    word that is in the path of what nobody may come to.
    """
    found = []
    for line in lines:
        call = _CALL.match(line)
        if call is None or not _is_harmless(call[1], call[2], call[4] or "", inside, outside):
            found.append(line.rstrip()[:400])
    return found


def _is_harmless(name: str, arguments: str, opened: str, inside: str | None, outside: str) -> bool:
    if outside in opened or (inside is not None and opened.startswith("/") and not opened.startswith((inside, "/proc/"))):
        return False
    strings = [match[1] for match in _ARGUMENT.finditer(arguments) if match[1] is not None]
    if name.startswith("symlink"):
        strings = strings[1:]  # the first is what it says, not where it is
    elif "xattr" in name or name.startswith("readlink"):
        strings = strings[:1]
    return all(_is_harmless_path(name, arguments, path) for path in strings)


def _is_harmless_path(name: str, arguments: str, path: str) -> bool:
    if name == "openat2" and "RESOLVE_NO_SYMLINKS" in arguments and "RESOLVE_IN_ROOT" in arguments:
        return not path.startswith("/")
    own = _OWN.match(path)
    if path.startswith("/"):
        if own is None:
            return _NEEDED.match(path) is not None
        path = own[1] or "."
    if "/" in path or path == "..":
        return False
    if path in ("", "."):
        return True
    if name == "openat2":
        return "RESOLVE_BENEATH" in arguments and "O_NOFOLLOW" in arguments
    if name == "openat" and "O_CREAT|O_EXCL" in arguments:  # follows none (open(2))
        return True
    return name not in _FOLLOW and _TOLD.get(name, "") in arguments
