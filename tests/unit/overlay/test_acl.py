"""What a new object inherits from a default ACL."""

from __future__ import annotations

import struct

import pytest

from tests.support import acl
from unionfs.overlay.acl import inherit


def test_a_default_of_three_entries_only_limits_the_mode() -> None:
    assert inherit(acl.encode(7, 5, 0), 0o100666) == (0o100640, None)


def test_named_users_are_inherited_and_the_mask_takes_the_group_bits() -> None:
    default = acl.encode(7, 5, 5, users={1000: 7}, mask=7)
    mode, access = inherit(default, 0o100640)
    assert mode == 0o100640  # the group bits show the mask
    assert access == acl.encode(6, 5, 0, users={1000: 7}, mask=4)


def test_a_wide_mode_is_limited_by_the_default() -> None:
    mode, access = inherit(acl.encode(6, 4, 0, groups={50: 6}, mask=6), 0o40777)
    assert mode == 0o40660
    assert access == acl.encode(6, 4, 0, groups={50: 6}, mask=6)


def test_type_and_special_bits_of_the_mode_stay() -> None:
    mode, _ = inherit(acl.encode(7, 7, 7), 0o42755)
    assert mode == 0o42755


def test_with_a_mask_the_owning_group_keeps_its_own_entry() -> None:
    _, access = inherit(acl.encode(7, 7, 7, users={1: 7}, mask=7), 0o100600)
    assert access == acl.encode(6, 7, 0, users={1: 7}, mask=0)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x02\0\0",
        struct.pack("<I", 1) + acl.encode(7, 7, 7)[4:],
        acl.encode(7, 7, 7)[:-1],
        acl.encode(7, 7, 7)[:-8],  # no entry for others
        struct.pack("<I", 2),
    ],
    ids=["empty", "short", "another version", "cut", "an entry missing", "no entries"],
)
def test_what_is_no_acl_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="not a POSIX ACL"):
        inherit(value, 0o644)
