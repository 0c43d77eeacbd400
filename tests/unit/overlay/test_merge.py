"""The merge of directory listings, against tables and against a model that asks each name of each layer in turn."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.overlay.merge import Entry, merge

DIR, FILE, LINK, GONE = stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, 0


def facts(entry: Entry[int] | None) -> tuple[int, int, tuple[int, ...], bool] | None:
    return None if entry is None else (entry.source, entry.kind, entry.more, entry.below)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        # what layers 0, 1, 2 (topmost first) have under one name; None: nothing
        pytest.param((FILE, None, None), (0, FILE, (), False), id="a name only on top needs no whiteout to go"),
        pytest.param((None, None, FILE), (2, FILE, (), False), id="the lowest layer shows through"),
        pytest.param((FILE, FILE, FILE), (0, FILE, (), True), id="the topmost file hides the others"),
        pytest.param((FILE, DIR, DIR), (0, FILE, (), True), id="a file hides directories"),
        pytest.param((DIR, DIR, DIR), (0, DIR, (1, 2), True), id="directories merge"),
        pytest.param((DIR, None, DIR), (0, DIR, (2,), True), id="directories merge over a layer without the name"),
        pytest.param((DIR, FILE, DIR), (0, DIR, (), True), id="a file between directories parts them"),
        pytest.param((DIR, LINK, DIR), (0, DIR, (), True), id="a symlink between directories parts them"),
        pytest.param((DIR, DIR, FILE), (0, DIR, (1,), True), id="a file below merged directories stays hidden"),
        pytest.param((GONE, FILE, FILE), None, id="a whiteout hides the name in every layer below"),
        pytest.param((GONE, DIR, DIR), None, id="a whiteout hides directories"),
        pytest.param((FILE, GONE, FILE), (0, FILE, (), False), id="below a whiteout nothing would come back"),
        pytest.param((DIR, GONE, DIR), (0, DIR, (), False), id="a whiteout between directories parts them"),
        pytest.param((DIR, DIR, GONE), (0, DIR, (1,), True), id="a whiteout at the bottom hides nothing"),
        pytest.param((FILE, FILE, GONE), (0, FILE, (), True), id="a file covers a file over a whiteout"),
        pytest.param((None, GONE, FILE), None, id="a whiteout in the middle hides what is below"),
        pytest.param((LINK, FILE, None), (0, LINK, (), True), id="a symlink covers a file"),
    ],
)
def test_a_name_is_what_the_layers_together_say(
    kinds: tuple[int | None, ...], expected: tuple[int, int, tuple[int, ...], bool] | None
) -> None:
    listings = [(layer, [] if kind is None else [(b"name", kind)]) for layer, kind in enumerate(kinds)]
    assert facts(merge(listings).get(b"name")) == expected


def test_nothing_merged_is_nothing() -> None:
    assert merge([(0, []), (1, [])]) == {}
    assert merge([]) == {}


def test_cookies_count_from_one_in_the_order_of_the_layers() -> None:
    merged = merge([(0, [(b"b", FILE), (b"a", FILE)]), (1, [(b"a", FILE), (b"c", FILE)])])
    assert [(name, entry.cookie) for name, entry in merged.items()] == [(b"b", 1), (b"a", 2), (b"c", 3)]


def model(layers: list[dict[bytes, int]], name: bytes) -> tuple[int, int, tuple[int, ...], bool] | None:
    """One name, layer by layer, as overlayfs.rst tells it."""
    having = [(layer, kinds[name]) for layer, kinds in enumerate(layers) if name in kinds]
    visible = having[: next((at for at, (_, kind) in enumerate(having) if kind == GONE), len(having))]
    if not visible:
        return None
    source, kind = visible[0]
    merging = []
    if kind == DIR:
        for layer, other in visible[1:]:
            if other != DIR:
                break
            merging.append(layer)
    return source, kind, tuple(merging), len(visible) > 1


_LAYER = st.dictionaries(st.sampled_from([b"a", b"b", b"c", b"d"]), st.sampled_from([DIR, FILE, LINK, GONE]))


@given(st.lists(_LAYER, max_size=6))
def test_a_merge_is_what_asking_name_by_name_gives(layers: list[dict[bytes, int]]) -> None:
    merged = merge((number, kinds.items()) for number, kinds in enumerate(layers))
    names = {name for kinds in layers for name in kinds}
    assert {name: facts(entry) for name, entry in merged.items()} == {
        name: wanted for name in names if (wanted := model(layers, name)) is not None
    }
    cookies = [entry.cookie for entry in merged.values()]
    assert cookies == list(range(1, len(cookies) + 1))
