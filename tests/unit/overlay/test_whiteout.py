"""The rules of overlay marks that need no filesystem."""

from __future__ import annotations

import os
import stat

import pytest

from unionfs.overlay.whiteout import XattrNames, is_whiteout_device


def _stat(mode: int, device: int) -> os.stat_result:
    # 19 fields: the tenth is the visible last, st_rdev is number 18 of stat_result
    fields = [mode, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4096, 0, device]
    return os.stat_result(fields[:19])


@pytest.mark.parametrize(
    ("mode", "device", "expected"),
    [
        (stat.S_IFCHR, 0, True),
        (stat.S_IFCHR | 0o644, 0, True),
        (stat.S_IFCHR, os.makedev(1, 3), False),
        (stat.S_IFBLK, 0, False),
        (stat.S_IFREG, 0, False),
        (stat.S_IFDIR, 0, False),
    ],
)
def test_only_a_character_device_0_0_is_a_whiteout(mode: int, device: int, expected: bool) -> None:
    assert is_whiteout_device(_stat(mode, device)) is expected


@pytest.mark.parametrize(("userxattr", "own", "foreign"), [(False, b"trusted.", b"user."), (True, b"user.", b"trusted.")])
class TestNames:
    def test_the_marks_live_in_one_namespace(self, userxattr: bool, own: bytes, foreign: bytes) -> None:
        names = XattrNames(userxattr)
        assert [names.opaque, names.whiteout, names.origin, names.impure] == [
            own + b"overlay." + name for name in (b"opaque", b"whiteout", b"origin", b"impure")
        ]

    def test_what_a_user_sets_in_it_is_stored_with_one_more_prefix(
        self, userxattr: bool, own: bytes, foreign: bytes
    ) -> None:
        names = XattrNames(userxattr)
        assert names.stored(own + b"overlay.foo") == own + b"overlay.overlay.foo"
        assert names.stored(own + b"overlay.overlay.foo") == own + b"overlay.overlay.overlay.foo"

    def test_one_prefix_is_taken_off_again(self, userxattr: bool, own: bytes, foreign: bytes) -> None:
        names = XattrNames(userxattr)
        for name in (own + b"overlay.foo", own + b"overlay.overlay.foo", own + b"other", b"security.capability"):
            assert names.shown(names.stored(name)) == name

    def test_our_own_marks_are_not_shown(self, userxattr: bool, own: bytes, foreign: bytes) -> None:
        names = XattrNames(userxattr)
        for name in (names.opaque, names.origin, names.impure, own + b"overlay.redirect", own + b"overlay.unheard-of"):
            assert names.shown(name) is None

    def test_the_other_namespace_is_ordinary_data(self, userxattr: bool, own: bytes, foreign: bytes) -> None:
        names = XattrNames(userxattr)
        name = foreign + b"overlay.opaque"
        assert (names.stored(name), names.shown(name), names.is_private(name)) == (name, name, False)

    def test_copy_up_carries_escaped_names_and_leaves_marks(self, userxattr: bool, own: bytes, foreign: bytes) -> None:
        names = XattrNames(userxattr)
        assert names.is_private(own + b"overlay.opaque")
        assert not names.is_private(own + b"overlay.overlay.opaque")
        assert not names.is_private(b"user.mime_type")
        assert not names.is_private(own + b"overlayish")
