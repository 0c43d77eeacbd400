"""Looking into objects."""

from __future__ import annotations

from unionfs.linux import memory


class _Numbers:
    __slots__ = ("one", "other")

    def __init__(self, one: object, other: object) -> None:
        self.one, self.other = one, other


def test_words_are_found_where_they_are() -> None:
    held, other = object(), object()
    thing = _Numbers(held, held)
    places = memory.words_equal(thing, id(held))
    assert len(places) == 2 and places[0] < places[1]
    assert memory.words_equal(thing, id(other)) == ()


def test_a_word_is_put_where_it_was_found() -> None:
    held, other = object(), object()
    thing = _Numbers(held, held)
    first, second = memory.words_equal(thing, id(held))
    memory.put_word(thing, second, id(other))
    assert (memory.words_equal(thing, id(held)), memory.words_equal(thing, id(other))) == ((first,), (second,))
    assert {id(thing.one), id(thing.other)} == {id(held), id(other)}
    memory.put_word(thing, second, id(held))  # nobody counted the reference
