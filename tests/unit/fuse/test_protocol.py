"""Layouts against the bytes and sizes of linux/fuse.h: what the kernel checks, it checks by size."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from struct import Struct

import pytest

from unionfs.fuse import protocol
from unionfs.fuse.protocol import Opcode

#: sizeof of each struct of linux/fuse.h, counted there.
SIZES: list[tuple[str, Struct, int]] = [
    ("fuse_in_header", protocol.IN_HEADER, 40),
    ("fuse_out_header", protocol.OUT_HEADER, 16),
    ("fuse_attr", protocol.ATTR, 88),
    ("fuse_entry_out without its attr", protocol.ENTRY_HEAD, 128 - 88),
    ("fuse_attr_out without its attr", protocol.ATTR_HEAD, 104 - 88),
    ("fuse_open_out", protocol.OPEN_OUT, 16),
    ("fuse_init_out", protocol.INIT_OUT, 64),
    ("fuse_setattr_in", protocol.SETATTR_IN, 88),
    ("fuse_create_in", protocol.CREATE_IN, 16),
    ("fuse_mknod_in", protocol.MKNOD_IN, 16),
    ("fuse_mkdir_in", protocol.MKDIR_IN, 8),
    ("fuse_rename_in", protocol.RENAME_IN, 8),
    ("fuse_rename2_in", protocol.RENAME2_IN, 16),
    ("fuse_link_in", protocol.LINK_IN, 8),
    ("fuse_open_in", protocol.OPEN_IN, 8),
    ("fuse_release_in", protocol.RELEASE_IN, 24),
    ("fuse_read_in", protocol.READ_IN, 40),
    ("fuse_write_in", protocol.WRITE_IN, 40),
    ("fuse_write_out", protocol.WRITE_OUT, 8),
    ("fuse_fsync_in", protocol.FSYNC_IN, 16),
    ("fuse_setxattr_in", protocol.SETXATTR_IN, 16),
    ("fuse_getxattr_in", protocol.GETXATTR_IN, 8),
    ("fuse_getxattr_out", protocol.GETXATTR_OUT, 8),
    ("fuse_forget_in", protocol.FORGET_IN, 8),
    ("fuse_batch_forget_in", protocol.BATCH_FORGET_IN, 8),
    ("fuse_forget_one", protocol.FORGET_ONE, 16),
    ("fuse_statfs_out", protocol.STATFS_OUT, 80),
    ("fuse_lseek_in", protocol.LSEEK_IN, 24),
    ("fuse_lseek_out", protocol.LSEEK_OUT, 8),
    ("fuse_fallocate_in", protocol.FALLOCATE_IN, 32),
    ("fuse_copy_file_range_in", protocol.COPY_IN, 56),
    ("fuse_ioctl_in", protocol.IOCTL_IN, 32),
    ("fuse_ioctl_out", protocol.IOCTL_OUT, 16),
    ("fuse_statx_out without its statx", protocol.STATX_OUT, 288 - 256),
    ("fuse_statx", protocol.STATX, 256),
    ("fuse_dirent without its name", protocol.DIRENT, 24),
    ("fuse_notify_inval_inode_out", protocol.NOTIFY_INODE, 24),
    ("fuse_notify_inval_entry_out", protocol.NOTIFY_ENTRY, 16),
]

#: What the kernel asks for, by the number in linux/fuse.h.
OPCODES = {
    1: "lookup", 2: "forget", 3: "getattr", 4: "setattr", 5: "readlink", 6: "symlink", 8: "mknod", 9: "mkdir", 10: "unlink", 11: "rmdir",
    12: "rename", 13: "link", 14: "open", 15: "read", 16: "write", 17: "statfs", 18: "release", 20: "fsync", 21: "setxattr",
    22: "getxattr", 23: "listxattr", 24: "removexattr", 25: "flush", 26: "init", 27: "opendir", 28: "readdir", 29: "releasedir",
    30: "fsyncdir", 34: "access", 35: "create", 36: "interrupt", 38: "destroy", 39: "ioctl", 42: "batch_forget", 43: "fallocate",
    44: "readdirplus", 45: "rename2", 46: "lseek", 47: "copy_file_range", 50: "syncfs", 51: "tmpfile", 52: "statx",
    53: "copy_file_range_64",
}  # fmt: skip

LITTLE = pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are written down as little-endian machines have them")


@pytest.mark.parametrize(("layout", "size"), [row[1:] for row in SIZES], ids=[row[0] for row in SIZES])
def test_a_layout_has_the_size_of_the_kernels(layout: Struct, size: int) -> None:
    assert layout.size == size


def test_opcodes_are_the_kernels_and_fit_the_table() -> None:
    assert {opcode.value: opcode.name.lower() for opcode in Opcode} == OPCODES
    assert max(OPCODES) < protocol.OPCODES


@LITTLE
def test_a_header_is_read_field_by_field() -> None:
    raw = bytes.fromhex("2c000000" "01000000" "0200000000000080" "0700000000000000" "e8030000" "e9030000" "39300000" "0000" "0000")
    assert protocol.IN_HEADER.unpack(raw) == (44, Opcode.LOOKUP, 2 | 1 << 63, 7, 1000, 1001, 12345, 0, 0)


@LITTLE
def test_attributes_lie_where_the_kernel_looks_for_them() -> None:
    visible = [stat.S_IFBLK | 0o640, 9001, 9002, 9003, 11, 12, 0x1122334455, 1, 2, 3]
    times = {"st_atime_ns": 5 * 10**9 + 6, "st_mtime_ns": 7 * 10**9 + 8, "st_ctime_ns": 9 * 10**9 + 10}
    st = os.stat_result(visible, {**times, "st_blksize": 4096, "st_blocks": 77, "st_rdev": os.makedev(8, 3)})
    made = protocol.attributes(42, 2, st)
    assert [int.from_bytes(made[at : at + 8], "little") for at in range(0, 48, 8)] == [42, 0x1122334455, 77, 5, 7, 9]
    assert [int.from_bytes(made[at : at + 4], "little") for at in range(48, 88, 4)] == [
        6, 8, 10, stat.S_IFBLK | 0o640, 2, 11, 12, 0x803, 4096, 0]


@pytest.mark.parametrize("ns", [-1, -(10**9), -(10**9) - 1, 0, 1, 10**9 - 1, 4 * 10**18])
def test_times_before_1970_are_packed_and_read_as_signed_seconds(ns: int) -> None:
    times = {"st_atime_ns": ns, "st_mtime_ns": ns, "st_ctime_ns": ns}
    st = os.stat_result([0] * 10, {**times, "st_blksize": 512, "st_blocks": 0, "st_rdev": 0})
    fields = struct.unpack("=24xqqqIII28x", protocol.attributes(1, 1, st))
    assert all(seconds * 10**9 + part == ns and 0 <= part < 10**9 for seconds, part in zip(fields[:3], fields[3:], strict=True))
    asked_for = protocol.SETATTR_IN.pack(0, 0, 0, 0, 0, fields[0] & (1 << 64) - 1, 0, 0, fields[3], 0, 0, 0, 0, 0, 0, 0)
    _, _, _, _, _, seconds, _, _, part, *_ = protocol.SETATTR_IN.unpack(asked_for)
    assert protocol.time_ns(seconds, part) == ns


@pytest.mark.parametrize("ns", [None, 0, -1, 1_700_000_000_123_456_789])
def test_a_time_of_birth_is_told_where_it_is_known(ns: int | None) -> None:
    st = os.stat_result([stat.S_IFREG, 9, 9, 9, 11, 12, 13, 1, 2, 3], {"st_atime_ns": 2, "st_mtime_ns": 4, "st_ctime_ns": 3, "st_rdev": 0,
                                                                     "st_blksize": 512, "st_blocks": 7})  # fmt: skip
    made = protocol.extended(42, 5, st, ns)
    mask, blksize, _, links, uid, gid, mode = struct.unpack_from("=IIQIIIH", made)
    assert (blksize, links, uid, gid, mode) == (512, 5, 11, 12, stat.S_IFREG)
    assert mask == (0x7FF if ns is None else 0xFFF)
    assert struct.unpack_from("=QQQ", made, 32) == (42, 13, 7)
    times = [seconds * 10**9 + part for seconds, part in struct.iter_unpack("=qI4x", made[64:128])]
    assert times == [2, ns or 0, 3, 4], "atime, btime, ctime, mtime"


@pytest.mark.parametrize(
    ("major", "minor", "packed"),
    [(0, 0, 0), (1, 3, 0x103), (8, 255, 0x8FF), (8, 256, 0x100800), (0xFFF, 0xFFFFF, 0xFFFFFFFF), (259, 1, 0x10301)],
)
def test_device_numbers_are_the_kernels_32_bits(major: int, minor: int, packed: int) -> None:
    assert protocol.device(os.makedev(major, minor)) == packed
    assert protocol.device_number(packed) == os.makedev(major, minor)


@pytest.mark.parametrize("length", range(1, 18))
def test_a_directory_entry_is_padded_to_eight_bytes(length: int) -> None:
    name = b"\xff" * length
    made = protocol.dirent(7, 3, name, stat.S_IFLNK)
    assert len(made) % 8 == 0 and len(made) - 24 - length < 8
    assert protocol.DIRENT.unpack_from(made) == (7, 3, length, 10), "DT_LNK"
    assert made[24:] == name + bytes(len(made) - 24 - length)


@pytest.mark.parametrize(("kind", "dt"), [(stat.S_IFDIR, 4), (stat.S_IFREG, 8), (stat.S_IFCHR, 2), (stat.S_IFSOCK, 12), (0, 0)])
def test_the_kind_of_an_entry_is_the_d_type_of_readdir(kind: int, dt: int) -> None:
    assert protocol.DIRENT.unpack_from(protocol.dirent(1, 1, b"x", kind))[3] == dt


@pytest.mark.parametrize(("seconds", "parts"), [(0, (0, 0)), (1.5, (1, 500_000_000)), (0.25, (0, 250_000_000)), (3e7, (30_000_000, 0))])
def test_a_validity_is_told_in_seconds_and_nanoseconds(seconds: float, parts: tuple[int, int]) -> None:
    assert protocol.timeout(seconds) == parts


@pytest.mark.parametrize(("body", "name"), [(b"a\xff\0", b"a\xff"), (b"a\0b\0", b"a"), (b"\0", b""), (b"open end", b"open end")])
def test_a_name_ends_at_its_zero_byte(body: bytes, name: bytes) -> None:
    assert protocol.zero_ended(memoryview(body)) == name


# ---- INIT ----

LOW, HIGH = protocol.MAX_PAGES | protocol.DONT_MASK, protocol.ALLOW_IDMAP


def init(flags: int, *, major: int = 7, minor: int = 45, more: bytes | None = None) -> bytes:
    """What the kernel asks; before 7.36 it sends no flags beyond the 32nd."""
    return struct.pack("=IIII", major, minor, 131072, flags & 0xFFFFFFFF) + (struct.pack("=I44x", flags >> 32) if more is None else more)


def agreed(answer: bytes) -> tuple[int, int, int]:
    """(major, minor, flags) of an answer."""
    major, minor, _, low = struct.unpack_from("=IIII", answer)
    (high,) = struct.unpack_from("=I", answer, 32)
    return major, minor, low | high << 32


def test_what_is_wanted_and_offered_is_agreed_upon() -> None:
    answer, flags = protocol.init_answer(init(LOW | HIGH | protocol.INIT_EXT | protocol.POSIX_ACL), LOW | HIGH | protocol.INIT_EXT, 1 << 20)
    assert flags == LOW | HIGH | protocol.INIT_EXT
    assert agreed(answer) == (7, 45, flags)
    readahead, _, background, congested, max_write, gran, pages = struct.unpack_from("=IIHHIIH", answer, 8)
    assert (readahead, max_write, gran, pages) == (131072, 1 << 20, 1, 256)
    assert 0 < congested <= background


def test_flags_beyond_the_32nd_are_never_asked_of_who_does_not_send_them() -> None:
    for more in (b"", struct.pack("=I", 0xFFFFFFFF)):  # without INIT_EXT the bytes there mean nothing
        _, flags = protocol.init_answer(init(LOW, minor=31, more=more), LOW | HIGH | protocol.INIT_EXT, 1 << 20)
        assert flags == LOW


def test_the_extension_is_agreed_upon_with_every_flag_beyond_the_32nd() -> None:
    """Else the kernel looks at none of them (process_init_reply)."""
    answer, flags = protocol.init_answer(init(HIGH | protocol.INIT_EXT), HIGH, 1 << 20)
    assert flags == HIGH | protocol.INIT_EXT
    assert agreed(answer)[2] & protocol.INIT_EXT


def test_a_newer_kernel_is_told_our_version_and_an_older_one_refused() -> None:
    assert agreed(protocol.init_answer(init(0, major=8, minor=1), LOW, 1 << 20)[0])[:2] == (7, 45)
    with pytest.raises(OSError) as caught:
        protocol.init_answer(init(0, major=6, minor=99), LOW, 1 << 20)
    assert caught.value.errno == errno.EPROTO


@pytest.mark.parametrize("offered", [False, True])
def test_truncation_goes_with_the_open_only_where_opens_are_asked_for(offered: bool) -> None:
    wanted = protocol.ATOMIC_O_TRUNC | protocol.PASSTHROUGH
    offer = protocol.ATOMIC_O_TRUNC | protocol.INIT_EXT | (protocol.PASSTHROUGH if offered else 0)
    answer, flags = protocol.init_answer(init(offer), wanted, 1 << 20, 2)
    assert bool(flags & protocol.ATOMIC_O_TRUNC) is offered
    assert struct.unpack_from("=I", answer, 36) == (2 if offered else 0,), "how deep filesystems may stand"
