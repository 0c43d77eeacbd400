"""Listing offsets of a directory index, and the table of live nodes."""

from __future__ import annotations

import os
import stat
from itertools import islice
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from unionfs.overlay.layer import Layer
from unionfs.overlay.merge import Entry
from unionfs.overlay.node import ROOT_INO, Directory, Index, Node, NodeTable

FILE = stat.S_IFREG
NOWHERE = cast(Any, "a layer")  # the index and the table only hand it back


def an_index(*names: bytes) -> Index:
    return Index({name: Entry[Layer](NOWHERE, FILE, place) for place, name in enumerate(names, 1)}, set())


def names_after(index: Index, after: int) -> list[bytes]:
    return [name for name, _ in index.listing(after)]


# ---- the index ----

def test_a_listing_gives_names_in_the_order_they_came() -> None:
    index = an_index(b"b", b"a")
    index.add(b"c", NOWHERE, FILE)
    assert [(name, entry.cookie) for name, entry in index.listing(0)] == [(b"b", 1), (b"a", 2), (b"c", 3)]


def test_a_listing_goes_on_behind_the_last_cookie() -> None:
    assert names_after(an_index(b"a", b"b", b"c"), 2) == [b"c"]
    assert names_after(an_index(b"a", b"b", b"c"), 3) == []


def test_a_cookie_whose_name_is_gone_still_marks_its_place() -> None:
    index = an_index(b"a", b"b", b"c")
    assert names_after(index, 0) == [b"a", b"b", b"c"]
    index.remove(b"b")
    assert names_after(index, 1) == [b"c"]
    assert names_after(index, 2) == [b"c"]


def test_a_name_that_comes_back_stands_at_the_end() -> None:
    index = an_index(b"a", b"b")
    assert names_after(index, 0) == [b"a", b"b"]
    index.remove(b"a")
    assert index.add(b"a", NOWHERE, FILE).cookie == 3
    assert names_after(index, 0) == [b"b", b"a"]
    assert names_after(index, 2) == [b"a"]


def test_a_name_made_while_listing_is_met_by_whoever_goes_on() -> None:
    index = an_index(b"a")
    assert names_after(index, 0) == [b"a"]
    index.add(b"b", NOWHERE, FILE)
    assert names_after(index, 1) == [b"b"]


def test_removing_everything_while_listing_ends_it() -> None:
    """rm -rf: list some, remove them, go on."""
    index = an_index(*(b"%d" % number for number in range(100)))
    after = 0
    seen = 0
    while batch := list(islice(index.listing(after), 7)):
        for name, entry in batch:
            after = entry.cookie
            index.remove(name)
            seen += 1
    assert (seen, index.entries) == (100, {})


def test_holes_do_not_pile_up_and_offsets_survive_the_compaction() -> None:
    index = an_index(b"first", b"last")
    assert names_after(index, 0) == [b"first", b"last"]
    for number in range(5000):
        index.add(b"%d" % number, NOWHERE, FILE)
        if number % 2:
            index.remove(b"%d" % number)
    place = index.entries[b"2498"].cookie
    for number in range(0, 5000, 2):
        if number != 2498:
            index.remove(b"%d" % number)
    assert names_after(index, 0) == [b"first", b"last", b"2498"]
    assert index._names is not None and len(index._names) == 3
    assert index.entries[b"2498"].cookie == place
    assert names_after(index, place) == []
    assert names_after(index, place - 1) == [b"2498"]


class Listings(RuleBasedStateMachine):
    """An index against a plain list of (cookie, name), with readers that stop anywhere and go on later."""

    readers = Bundle("readers")

    def __init__(self) -> None:
        super().__init__()
        self.index = an_index(*(b"%d" % number for number in range(5)))
        self.model = [(number + 1, b"%d" % number) for number in range(5)]
        self.highest = 5

    @rule(name=st.integers(0, 30))
    def add_or_remove(self, name: int) -> None:
        text = b"%d" % name
        if text in self.index.entries:
            self.index.remove(text)
            self.model = [pair for pair in self.model if pair[1] != text]
            return
        cookie = self.index.add(text, NOWHERE, FILE).cookie
        assert cookie > self.highest
        self.highest = cookie
        self.model.append((cookie, text))

    @rule()
    def churn(self) -> None:
        """Enough comings and goings for a compaction."""
        for number in range(1200):
            self.highest = self.index.add(b"churn%d" % number, NOWHERE, FILE).cookie
            self.index.remove(b"churn%d" % number)

    @rule(target=readers)
    def start_reading(self) -> tuple[int, frozenset[bytes], tuple[bytes, ...]]:
        """(offset, names there from the start, names seen)."""
        return 0, frozenset(self.index.entries), ()

    @rule(target=readers, reader=consumes(readers), count=st.integers(0, 4))
    def read_on(
        self, reader: tuple[int, frozenset[bytes], tuple[bytes, ...]], count: int
    ) -> tuple[int, frozenset[bytes], tuple[bytes, ...]]:
        offset, there, seen = reader
        wanted = [pair for pair in self.model if pair[0] > offset][:count]
        got = [(entry.cookie, name) for name, entry in islice(self.index.listing(offset), count)]
        assert got == wanted
        return (got[-1][0] if got else offset), there, seen + tuple(name for _, name in got)

    @invariant()
    def a_full_listing_is_the_model(self) -> None:
        assert [(entry.cookie, name) for name, entry in self.index.listing(0)] == self.model


TestListings = Listings.TestCase
TestListings.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# ---- nodes ----

def a_node(ino: int, parent: Node | None = None, name: bytes = b"name") -> Node:
    return Node(ino, parent, name, NOWHERE, Directory(()))


def a_table() -> tuple[NodeTable, Node]:
    table = NodeTable()
    root = a_node(ROOT_INO, None, b"")
    table.add(root)
    return table, root


def test_a_path_is_the_names_of_the_parents() -> None:
    root = a_node(ROOT_INO, None, b"")
    below = a_node(3, a_node(2, root, b"a"), b"b\xff")
    assert (root.path(), below.path()) == (b"", b"a/b\xff")


def test_the_first_device_keeps_its_numbers_and_others_are_moved_up() -> None:
    table = NodeTable()
    assert table.natural(10, 77) == 77
    assert table.natural(20, 77) == 77 | 1 << 48
    assert table.natural(30, 77) == 77 | 2 << 48
    assert table.natural(10, 78) == 78


@pytest.mark.parametrize("ino", [0, 1])
def test_an_object_never_gets_the_number_of_the_root(ino: int) -> None:
    assert NodeTable().natural(10, ino) == 0


def test_a_number_that_does_not_fit_is_not_natural() -> None:
    table = NodeTable()
    assert table.natural(10, 1 << 50) == 1 << 50  # the first device may use more bits
    assert table.natural(10, 1 << 63) == 0
    assert table.natural(20, 1 << 50) == 0


def test_a_taken_number_is_replaced_by_one_of_ours() -> None:
    table, root = a_table()
    nodes = [a_node(ino, root) for ino in (7, 7, 0)]
    for node in nodes:
        table.add(node)
    assert nodes[0].ino == 7
    assert len({node.ino for node in nodes}) == 3
    assert all(table[node.ino] is node for node in nodes)


def test_a_file_goes_on_showing_the_number_another_name_of_it_has_taken() -> None:
    table, root = a_table()
    files = [Node(ino, root, b"name", NOWHERE, None) for ino in (7, 7, 0)]
    directory = a_node(7, root)
    for node in (*files, directory):
        table.add(node)
    assert [node.shown for node in files] == [7, 7, files[2].ino]
    assert directory.shown == directory.ino != 7


def test_our_own_numbers_are_not_reused() -> None:
    table, root = a_table()
    first = a_node(0, root)
    table.add(first)
    assert table.reap(first) == [first]
    second = a_node(0, root)
    table.add(second)
    assert second.ino != first.ino


def test_a_node_dies_when_the_kernel_forgets_it() -> None:
    table, root = a_table()
    node = a_node(5, root)
    table.add(node)
    node.lookups = 3
    assert table.forget(5, 2) == []
    assert table.forget(5, 1) == [node]
    assert table.get(5) is None and root.children == 0


def test_a_forgotten_directory_stays_while_it_has_children_and_goes_with_the_last() -> None:
    table, root = a_table()
    parent = a_node(5, root)
    table.add(parent)
    child = a_node(6, parent)
    table.add(child)
    parent.lookups = child.lookups = 1
    assert table.forget(5, 1) == []
    assert table.forget(6, 1) == [child, parent]
    assert list(table) == [root]


def test_the_root_is_never_forgotten() -> None:
    table, root = a_table()
    root.lookups = 1
    assert table.forget(ROOT_INO, 5) == []
    assert table[ROOT_INO] is root


def test_forgetting_a_number_nobody_has_is_nothing() -> None:
    table, _ = a_table()
    assert table.forget(99, 1) == []


def test_forgetting_too_much_does_not_go_below_nothing() -> None:
    table, root = a_table()
    node = a_node(5, root)
    table.add(node)
    node.lookups = 1
    node.children = 1
    table.forget(5, 10)
    assert node.lookups == 0


def test_a_node_that_moves_lets_its_old_parent_die() -> None:
    table, root = a_table()
    old, new = a_node(5, root, b"old"), a_node(6, root, b"new")
    table.add(old)
    table.add(new)
    node = a_node(7, old)
    table.add(node)
    node.lookups = 1
    assert table.reparent(node, new, b"moved") == [old]
    assert (node.path(), new.children, root.children) == (b"new/moved", 1, 1)


def test_a_node_without_a_name_holds_no_parent() -> None:
    table, root = a_table()
    node = a_node(5, root)
    table.add(node)
    node.lookups = 1
    assert table.reparent(node, None, b"") == []
    assert root.children == 0
    assert table.forget(5, 1) == [node]


def test_numbers_of_ours_are_above_every_backing_number() -> None:
    table, root = a_table()
    ours = a_node(0, root)
    table.add(ours)
    assert ours.ino > table.natural(10, (1 << 62) - 1)
    assert ours.ino < 1 << 64
    assert os.stat_result([0, ours.ino, *[0] * 8]).st_ino == ours.ino
