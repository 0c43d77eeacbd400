"""The bounded caches of descriptors."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator

import pytest

from tests.unit.overlay.world import no_descriptor_left
from unionfs.overlay.backing import FdCache, share_of_descriptors


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError as exc:
        assert exc.errno == errno.EBADF
        return False
    return True


def opened() -> int:
    return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)


@pytest.fixture
def cache() -> Iterator[FdCache[str]]:
    made = FdCache[str](3)
    with no_descriptor_left():
        yield made
        made.clear()


def test_a_descriptor_is_opened_once(cache: FdCache[str]) -> None:
    fd = cache.open("a", opened)
    assert cache.open("a", lambda: pytest.fail("opened again")) == fd
    assert cache.get("a") == fd
    assert cache.get("b") is None


def test_the_least_recently_used_falls_out_and_is_closed(cache: FdCache[str]) -> None:
    a, b, c = (cache.open(key, opened) for key in "abc")
    cache.get("a")
    cache.put("d", opened())
    assert [is_open(fd) for fd in (a, b, c)] == [True, False, True]
    assert cache.get("b") is None
    assert len(cache) == 3


@pytest.mark.parametrize("held", range(1, 9))
def test_a_descriptor_is_good_until_half_of_the_limit_others_were_asked_for(held: int) -> None:
    cache = FdCache[int](8)
    for key in range(held):
        cache.open(key, opened)
    fd = cache.get(0)
    assert fd is not None
    for key in range(100, 104):
        cache.open(key, opened)
    assert is_open(fd)
    cache.clear()


def test_it_never_holds_more_than_its_limit(cache: FdCache[str]) -> None:
    for number in range(50):
        cache.open(str(number), opened)
        assert len(cache) <= 3


def test_a_replaced_or_dropped_descriptor_is_closed(cache: FdCache[str]) -> None:
    first, second = cache.open("a", opened), opened()
    cache.put("a", second)
    assert (is_open(first), cache.get("a")) == (False, second)
    cache.drop("a")
    assert (is_open(second), cache.get("a")) == (False, None)
    cache.drop("a")


def test_a_failed_open_leaves_nothing(cache: FdCache[str]) -> None:
    def fail() -> int:
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        cache.open("a", fail)
    assert len(cache) == 0


@pytest.mark.parametrize(
    ("soft", "used", "expected"),
    [(1024, 124, 150), (64, 60, 16), (resource.RLIM_INFINITY, 0, 4096), (1 << 19, 0, 4096)],
)
def test_the_share_is_a_sixth_of_what_is_free_within_reason(
    soft: int, used: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert share_of_descriptors(used) == expected
