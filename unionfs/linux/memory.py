"""Looking into an object of this process: for fields that an extension module has and does not give access to."""

from __future__ import annotations

import ctypes


def words_equal(thing: object, value: int) -> tuple[int, ...]:
    """Addresses, as offsets in *thing*'s own memory, of the aligned 64-bit words that hold *value*."""
    size = ctypes.sizeof(ctypes.c_uint64)
    words = (ctypes.c_uint64 * (type(thing).__basicsize__ // size)).from_address(id(thing))
    return tuple(place * size for place, word in enumerate(words) if word == value)


def put_word(thing: object, offset: int, value: int) -> None:
    """Store a 64-bit *value* at an *offset* that ``words_equal`` gave for an object of the same type."""
    ctypes.c_uint64.from_address(id(thing) + offset).value = value
