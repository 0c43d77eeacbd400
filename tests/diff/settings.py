"""What both sides of a comparison are mounted with, and how a run draws it.

Every feature is stated to both in the same words, so that neither the kernel's build nor our defaults decide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from hypothesis import strategies as st

TRUSTED, USER = "trusted.overlay.", "user.overlay."


@dataclass(frozen=True)
class Setting:
    """The first six are the kernel's options. `nested`: all lowers but the first are shown by an overlay of the kernel's own,
    whose mount is the one lower below the first. `data`: the bottom lower is a data-only one."""

    redirect_dir: str = "off"
    index: str = "off"
    metacopy: str = "off"
    xino: str = "off"
    userxattr: bool = False
    volatile: bool = False
    nested: bool = False
    data: bool = False

    @property
    def options(self) -> str:
        """The text of ``-o``."""
        said = [f"{name}={getattr(self, name)}" for name in ("redirect_dir", "index", "metacopy", "xino")]
        return ",".join([*said, *(name for name in ("userxattr", "volatile") if getattr(self, name))])

    @property
    def words(self) -> frozenset[str]:
        """The options, and what else is set."""
        return frozenset(self.options.split(",")) | {name for name in ("nested", "data") if getattr(self, name)}

    def marked(self, name: str) -> str:
        """An attribute's name with the two namespaces of marks exchanged when marks are the user's."""
        if not self.userxattr:
            return name
        for one, other in ((TRUSTED, USER), (USER, TRUSTED)):
            if name.startswith(one):
                return other + name.removeprefix(one)
        return name


#: Where marks may be trusted.
_TRUSTED = [
    Setting("off"), Setting("nofollow"), Setting("on"), Setting("on"), Setting("on", metacopy="on"), Setting("on", metacopy="on"),
    Setting("follow"), Setting("on", index="on"), Setting("on", index="on", metacopy="on"),
]
#: The kernel takes neither redirects nor metacopy with userxattr.
_USER = [Setting("nofollow", userxattr=True)]
_ALL = [replace(setting, index=index, xino=xino, volatile=volatile, nested=nested)
        for setting, index, xino, volatile, nested in product(
            [*_TRUSTED, *_USER], ("off", "off", "on"), ("off", "on", "auto"), (False, True), (False, False, False, True))
        if index == "off" or not nested]  # an overlay has no file handles, and so no index


def settings_of(words: frozenset[str]) -> st.SearchStrategy[Setting]:
    """The settings that have all the words."""
    return st.sampled_from([setting for setting in _ALL if words <= setting.words])


def later(setting: Setting) -> st.SearchStrategy[Setting]:
    """What the same layers may be mounted with another time: mostly the same, else with other renames or with the bottom for data only.

    Nothing that refuses to follow what an earlier setting wrote: the kernel then lists some directories and fails to list others.
    """
    others = [setting]
    if setting.metacopy == "on":
        others += [replace(setting, data=not setting.data and not setting.nested)]
    elif not setting.userxattr and setting.redirect_dir != "nofollow":
        others += [replace(setting, redirect_dir=word) for word in ("on", "off", "follow")]
    return st.one_of(st.just(setting), st.just(setting), st.sampled_from(others))
