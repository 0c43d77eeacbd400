"""What append-only and immutable forbid, as values; tests/mount/test_protection.py has the verbs."""

from __future__ import annotations

import errno
import os

import pytest

from tests.posix.rooms import fails_with
from unionfs.overlay.protection import APPEND, IMMUTABLE, decode, encode, refuse, refuse_opening


@pytest.mark.parametrize(("value", "protection"), [(b"", 0), (b"a", APPEND), (b"i", IMMUTABLE), (b"ai", APPEND | IMMUTABLE)])
def test_a_mark_is_read_as_it_is_written(value: bytes, protection: int) -> None:
    assert decode(value) == protection
    assert encode(protection) == value


@pytest.mark.parametrize(("value", "protection"), [(b"ia", APPEND | IMMUTABLE), (b"ax", APPEND), (b"xa", 0), (b"a\0i", APPEND)])
def test_a_mark_counts_up_to_what_means_nothing(value: bytes, protection: int) -> None:
    assert decode(value) == protection


def test_only_what_is_not_excepted_is_refused() -> None:
    refuse(0)
    refuse(APPEND, APPEND)
    for protection, unless in ((APPEND, 0), (IMMUTABLE, APPEND), (APPEND | IMMUTABLE, APPEND)):
        with fails_with(errno.EPERM):
            refuse(protection, unless)


@pytest.mark.parametrize(
    ("flags", "refused_of"),
    [
        (os.O_RDONLY, set()),
        (os.O_RDONLY | os.O_APPEND, set()),
        (os.O_WRONLY | os.O_APPEND, {IMMUTABLE}),
        (os.O_RDWR | os.O_APPEND, {IMMUTABLE}),
        (os.O_WRONLY, {APPEND, IMMUTABLE}),
        (os.O_RDWR, {APPEND, IMMUTABLE}),
        (os.O_RDONLY | os.O_TRUNC, {APPEND, IMMUTABLE}),
        (os.O_WRONLY | os.O_APPEND | os.O_TRUNC, {APPEND, IMMUTABLE}),
    ],
)
def test_opening_is_refused_as_the_kernel_does(flags: int, refused_of: set[int]) -> None:
    refuse_opening(0, flags)
    for protection in (APPEND, IMMUTABLE):
        if protection in refused_of:
            with fails_with(errno.EPERM):
                refuse_opening(protection, flags)
        else:
            refuse_opening(protection, flags)
