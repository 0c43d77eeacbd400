"""``WORKDIR/index`` with index=on: what ours and the kernel's overlayfs accept, remove and refuse at a mount is the same."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.test_identity import FEATURES, Pair, one_lower
from tests.support.mounts import Layers, Mount, MountFailed, Mounts

ON = FEATURES.format("on")
NLINK, ORIGIN = "trusted.overlay.nlink", "trusted.overlay.origin"


def index_of(layers: Layers) -> Path:
    assert layers.work is not None
    return layers.work / "index"


def entries(layers: Layers) -> list[Path]:
    return sorted(path for path in index_of(layers).iterdir() if not path.name.startswith("#"))


def kind(path: Path) -> str:
    return {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFCHR: "whiteout"}[stat.S_IFMT(path.lstat().st_mode)]


def counts(layers: Layers) -> list[int]:
    """For each entry, how many names its mark says the file has in the union."""
    return sorted(
        path.stat().st_nlink + int(os.getxattr(path, NLINK)[1:])
        for path in entries(layers) if os.getxattr(path, NLINK).startswith(b"U"))


def attempt(mount: Callable[[], Mount]) -> str:
    """Mount and unmount; whether that was possible."""
    try:
        made = mount()
    except MountFailed:
        return "refused"
    assert made.unmount() == []
    return "mounted"


@pytest.fixture
def pair(mounts: Mounts, scratch: Path) -> Pair:
    """Layers of which one file with three names is in the index, and linked to one name; `a` of them is gone."""
    made = Pair(mounts, scratch, one_lower, ON)
    made.mount()
    for step in (("unlink", "a"), ("write", "b")):
        made.do(step)
    made.unmount()
    return made


def another(path: Path, end: str = "aa") -> Path:
    """An entry that might be there as well."""
    return path.with_name(path.name[:-2] + end)


def without_mark(name: str) -> Callable[[Path], None]:
    return lambda path: os.removexattr(path, name)


def with_mark(name: str, value: bytes, *, unlinked: bool = False) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        os.setxattr(path, name, value)
        if unlinked:
            upper_links(path)
    return spoil


def upper_links(path: Path) -> None:
    """Take away the names in upper."""
    upper = path.parent.parent.parent / "upper"
    for name in upper.iterdir():
        if name.is_file() and name.samefile(path):
            name.unlink()


def alone(path: Path) -> None:
    upper_links(path)
    os.removexattr(path, NLINK)


def origin_gone(path: Path) -> None:
    upper_links(path)
    lower = path.parent.parent.parent / "lower"
    for name in ("a", "b", "d/c"):
        (lower / name).unlink()


SPOILED: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "left over file": lambda path: (path.parent / "#5").touch(),
    "left over directory": lambda path: (path.parent / "#5" / "x").mkdir(parents=True),
    "short name": lambda path: (path.parent / "abcd").touch(),
    "odd name": lambda path: (path.parent / "readme.txt").touch(),
    "name of no mark": lambda path: (path.parent / ("00" * 30)).touch(),
    "newer version": lambda path: path.rename(path.with_name("01" + path.name[2:])),
    "unknown flags": lambda path: path.rename(path.with_name(path.name[:6] + "80" + path.name[8:])),
    "other endianness": lambda path: path.rename(path.with_name(path.name[:6] + "01" + path.name[8:])),
    "longer than there is": lambda path: path.rename(path.with_name(path.name[:4] + "7f" + path.name[6:])),
    "upper case": lambda path: path.rename(path.with_name(path.name.upper())),
    "whiteout": lambda path: os.mknod(another(path), stat.S_IFCHR, 0),
    "directory": lambda path: another(path).mkdir(),
    "no origin": without_mark(ORIGIN),
    "empty origin": with_mark(ORIGIN, b""),
    "another origin": lambda path: path.rename(another(path)),
    "alone without a count": alone,
    "alone with a count": with_mark(NLINK, b"U+1", unlinked=True),
    "alone with a count of the lower": with_mark(NLINK, b"L-1", unlinked=True),
    "alone and down to none": with_mark(NLINK, b"U-1", unlinked=True),
    "alone with nonsense": with_mark(NLINK, b"many", unlinked=True),
    "origin gone": origin_gone,
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_index_is_taken_as_the_kernel_takes_it(mounts: Mounts, pair: Pair, case: str) -> None:
    before = []
    for layers in pair.layers:
        (entry,) = entries(layers)
        before.append(entry.name)
        SPOILED[case](entry)
    ours, kernels = pair.layers
    outcomes = [attempt(lambda: mounts.ours(ours, "-o", ON)), attempt(lambda: mounts.kernel(kernels, options=ON))]
    assert outcomes[0] == outcomes[1]
    if outcomes == ["mounted", "mounted"]:
        assert not any((index_of(layers) / "#5").exists() for layers in pair.layers)
        left = [
            sorted((path.name == name, kind(path)) for path in entries(layers))
            for layers, name in zip(pair.layers, before, strict=True)]
        assert left[0] == left[1]


def test_the_index_says_of_as_many_names_as_the_kernels(pair: Pair) -> None:
    assert counts(pair.layers[0]) == counts(pair.layers[1]) == [2]
    pair.mount(crossed=True)
    for step in (("rename", "d/c", "moved"), ("link", "b", "new"), ("write", "d/e"), ("unlink", "f")):
        pair.do(step)
        assert counts(pair.layers[0]) == counts(pair.layers[1]), step
    pair.assert_same("after all")
    for name in ("b", "moved", "new", "d/e"):
        pair.do(("unlink", name))
        assert counts(pair.layers[0]) == counts(pair.layers[1]), name
    assert entries(pair.layers[0]) == []
    pair.unmount()


@pytest.mark.parametrize("change", ["other lower", "lower on top", "lower below", "other upper", "other work"])
def test_layers_that_an_index_ties_together_stay_together(mounts: Mounts, pair: Pair, change: str) -> None:
    outcomes = []
    for kind, layers in zip(("ours", "kernel"), pair.layers, strict=True):
        assert layers.upper is not None
        side = layers.upper.parent
        for name in ("lower2", "upper2", "work2"):
            (side / name).mkdir()
        lowers, upper, work = layers.lowers, layers.upper, layers.work
        if change == "other lower":
            lowers = (side / "lower2",)
        elif change == "lower on top":
            lowers = (side / "lower2", *lowers)
        elif change == "lower below":
            lowers = (*lowers, side / "lower2")
        elif change == "other upper":
            upper = side / "upper2"
        else:
            work = side / "work2"
        changed = Layers(lowers, upper, work)
        outcomes.append(attempt(lambda: mounts.ours(changed, "-o", ON) if kind == "ours" else mounts.kernel(changed, options=ON)))  # noqa: B023
        outcomes.append(attempt(lambda: mounts.ours(changed, "-o", FEATURES.format("off")) if kind == "ours"  # noqa: B023
                                else mounts.kernel(changed, options=FEATURES.format("off"))))  # noqa: B023
    assert outcomes[:2] == outcomes[2:]


def test_a_mount_without_an_index_leaves_it_as_it_is(mounts: Mounts, pair: Pair) -> None:
    """And counts the link in it, as the kernel does."""
    off = FEATURES.format("off")
    for layers, mount in zip(
        pair.layers, (mounts.ours(pair.layers[0], "-o", off), mounts.kernel(pair.layers[1], options=off)), strict=True
    ):
        assert (mount.target / "b").stat().st_nlink == 2
        (mount.target / "b").unlink()
        with contextlib.suppress(FileNotFoundError):
            assert (mount.target / "d" / "c").read_bytes() == b"a\n"
        assert mount.unmount() == []
        assert len(entries(layers)) == 1
    pair.mount()
    left = pair.assert_same("with the index again")
    assert left["d/c"].content == b"a\nmore\n"
    pair.unmount()


def test_where_there_are_no_file_handles_links_break_and_a_warning_says_so(mounts: Mounts, scratch: Path) -> None:
    """An overlayfs has none unless it is exported."""
    (one := Pair(mounts, scratch, one_lower, FEATURES.format("off"))).mount()
    below = one.live[1].target
    (scratch / "u").mkdir()
    (scratch / "w").mkdir()
    mount = mounts.ours(Layers((below,), scratch / "u", scratch / "w"), "-o", ON)
    mount.expect_log("no file handles")
    (mount.target / "a").write_bytes(b"written")
    assert (mount.target / "b").read_bytes() == b"a\n" and not (scratch / "w" / "index").exists()
    assert mount.unmount() == []
    one.unmount()
