"""Making, finding and removing names."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from tests.posix.rooms import CONTENT, Room, fails_with

LONGEST = "n" * 255


def names(room: Room, directory: str = ".") -> set[str]:
    return set(os.listdir(room / directory))


def test_a_new_file_is_found_listed_and_empty(room: Room) -> None:
    os.close(os.open(room / "new", os.O_CREAT | os.O_WRONLY, 0o640))
    found = os.stat(room / "new")
    assert stat.S_IMODE(found.st_mode) == 0o640 and found.st_size == 0 and found.st_nlink == 1
    assert "new" in names(room)


def test_a_new_directory_is_found_listed_and_empty(room: Room) -> None:
    os.mkdir(room / "new", 0o750)
    assert stat.S_IMODE(os.stat(room / "new").st_mode) == 0o750
    assert "new" in names(room) and names(room, "new") == set()


def test_a_file_can_be_made_in_an_old_directory(room: Room) -> None:
    (room / "directory" / "new").write_bytes(b"new")
    assert names(room, "directory") == {"one", "two", "three", "four", "sub", "new"}


def test_a_tree_can_be_made_below_an_old_directory(room: Room) -> None:
    os.makedirs(room / "directory" / "sub" / "a" / "b")
    (room / "directory" / "sub" / "a" / "b" / "file").write_bytes(b"deep")
    assert (room / "directory" / "sub" / "a" / "b" / "file").read_bytes() == b"deep"


def test_mkdir_on_any_existing_name_fails_with_eexist(room: Room) -> None:
    for name in ("file", "directory", "link", "dangling", "fifo"):
        with fails_with(errno.EEXIST):
            os.mkdir(room / name)


def test_mkdir_below_a_missing_directory_fails_with_enoent(room: Room) -> None:
    with fails_with(errno.ENOENT):
        os.mkdir(room / "missing" / "new")


def test_mkdir_below_a_file_fails_with_enotdir(room: Room) -> None:
    with fails_with(errno.ENOTDIR):
        os.mkdir(room / "file" / "new")


@pytest.mark.root
def test_a_fifo_a_socket_and_devices_can_be_made(room: Room) -> None:
    for name, kind, rdev in (("a", stat.S_IFIFO, 0), ("b", stat.S_IFSOCK, 0), ("c", stat.S_IFCHR, os.makedev(1, 7)),
                             ("d", stat.S_IFBLK, os.makedev(250, 3)), ("e", stat.S_IFREG, 0)):
        os.mknod(room / name, kind | 0o600, rdev)
        found = os.lstat(room / name)
        assert (stat.S_IFMT(found.st_mode), found.st_rdev) == (kind, rdev)


@pytest.mark.root
def test_a_new_device_node_works(room: Room) -> None:
    os.mknod(room / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with open(room / "zero", "rb") as file:
        assert file.read(10) == b"\0" * 10


@pytest.mark.root
def test_an_old_device_node_and_fifo_work(room: Room) -> None:
    with open(room / "null", "wb") as file:
        file.write(b"gone")
    reader = os.open(room / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(room / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    os.close(writer)


def test_mknod_on_an_existing_name_fails_with_eexist(room: Room) -> None:
    for name in ("file", "directory", "dangling"):
        with fails_with(errno.EEXIST):
            os.mknod(room / name, stat.S_IFIFO | 0o600)


def test_a_symlink_keeps_its_target_byte_for_byte(room: Room) -> None:
    target = b"\xff/with\nnewline/" + b"x" * 200
    os.symlink(target, os.fsencode(room / "new"))
    assert os.readlink(os.fsencode(room / "new")) == target
    assert os.lstat(room / "new").st_size == len(target)


def test_the_longest_symlink_has_4095_bytes(room: Room) -> None:
    longest = "x/" * 2047 + "x"
    os.symlink(longest, room / "new")
    assert os.readlink(room / "new") == longest
    with fails_with(errno.ENAMETOOLONG):
        os.symlink(longest + "y", room / "newer")


def test_symlinks_lead_where_they_point(room: Room) -> None:
    assert (room / "link").read_bytes() == CONTENT
    assert (room / "link_to_directory" / "one").read_bytes() == b"one"
    with fails_with(errno.ENOENT):
        os.stat(room / "dangling")
    with fails_with(errno.ELOOP):
        os.stat(room / "loop")


def test_readlink_of_what_is_no_symlink_fails_with_einval(room: Room) -> None:
    for name in ("file", "directory", "fifo"):
        with fails_with(errno.EINVAL):
            os.readlink(room / name)


def test_symlink_on_an_existing_name_fails_with_eexist(room: Room) -> None:
    for name in ("file", "directory", "link", "dangling"):
        with fails_with(errno.EEXIST):
            os.symlink("file", room / name)


def test_unlink_removes_each_kind_of_file_but_no_directory(room: Room) -> None:
    for name in ("file", "link", "dangling", "loop", "fifo", "null", "shared"):
        os.unlink(room / name)
        assert not os.path.lexists(room / name) and name not in names(room)
    with fails_with(errno.EISDIR):
        os.unlink(room / "directory")


def test_unlink_of_a_missing_name_fails_with_enoent(room: Room) -> None:
    with fails_with(errno.ENOENT):
        os.unlink(room / "missing")
    os.unlink(room / "file")
    with fails_with(errno.ENOENT):
        os.unlink(room / "file")


def test_rmdir_removes_an_empty_directory_only(room: Room) -> None:
    os.rmdir(room / "hollow")
    assert "hollow" not in names(room)
    with fails_with(errno.ENOTEMPTY):
        os.rmdir(room / "directory")
    with fails_with(errno.ENOTDIR):
        os.rmdir(room / "file")
    with fails_with(errno.ENOTDIR):
        os.rmdir(room / "link_to_directory")
    with fails_with(errno.ENOENT):
        os.rmdir(room / "missing")


def test_a_directory_can_be_removed_once_it_has_been_emptied(room: Room) -> None:
    for name in ("one", "two", "three", "four"):
        os.unlink(room / "directory" / name)
    with fails_with(errno.ENOTEMPTY):
        os.rmdir(room / "directory")
    os.rmdir(room / "directory" / "sub")
    os.rmdir(room / "directory")
    assert not (room / "directory").exists()


def test_a_directory_made_again_is_empty_and_stays_so(room: Room) -> None:
    for name in ("one", "two", "three", "four"):
        os.unlink(room / "directory" / name)
    os.rmdir(room / "directory" / "sub")
    os.rmdir(room / "directory")
    os.mkdir(room / "directory")
    assert names(room, "directory") == set()
    os.mkdir(room / "directory" / "sub")
    (room / "directory" / "one").write_bytes(b"new")
    assert names(room, "directory") == {"sub", "one"} and names(room, "directory/sub") == set()
    assert (room / "directory" / "one").read_bytes() == b"new"


def test_a_file_made_again_has_nothing_of_the_old_one(room: Room) -> None:
    os.setxattr(room / "file", "user.old", b"old")
    os.unlink(room / "file")
    os.close(os.open(room / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    assert (room / "file").read_bytes() == b"" and os.listxattr(room / "file") == []
    assert stat.S_IMODE(os.stat(room / "file").st_mode) == 0o600


def test_a_file_can_become_a_directory_and_a_directory_a_file(room: Room) -> None:
    os.unlink(room / "file")
    os.mkdir(room / "file")
    (room / "file" / "inside").write_bytes(b"x")
    os.rmdir(room / "hollow")
    (room / "hollow").write_bytes(b"y")
    assert names(room, "file") == {"inside"} and (room / "hollow").read_bytes() == b"y"


def test_a_name_may_have_255_bytes_and_not_one_more(room: Room) -> None:
    (room / LONGEST).write_bytes(b"x")
    os.mkdir(room / ("d" + LONGEST[1:]))
    os.symlink("file", room / ("s" + LONGEST[1:]))
    os.link(room / LONGEST, room / ("l" + LONGEST[1:]))
    os.rename(room / LONGEST, room / ("r" + LONGEST[1:]))
    assert len([name for name in names(room) if len(name) == 255]) == 4
    too_long = room / (LONGEST + "n")
    for operation in (os.stat, os.mkdir, os.unlink, os.rmdir, os.listdir, os.mkfifo):
        with fails_with(errno.ENAMETOOLONG):
            operation(too_long)
    for two_names in (os.rename, os.link):
        with fails_with(errno.ENAMETOOLONG):
            two_names(room / "file", too_long)
    with fails_with(errno.ENAMETOOLONG):
        os.symlink("file", too_long)
    with fails_with(errno.ENAMETOOLONG):
        os.open(too_long, os.O_CREAT | os.O_WRONLY)


def test_the_longest_names_can_be_removed_and_made_again(room: Room) -> None:
    (room / LONGEST).write_bytes(b"x")
    os.unlink(room / LONGEST)
    os.mkdir(room / LONGEST)
    os.rmdir(room / LONGEST)
    assert LONGEST not in names(room)


def test_a_name_may_hold_any_byte_but_slash_and_nul(room: Room) -> None:
    odd = [b"new\nline", b"\xff\xfe", b" ", b"*?[", b"\x01\x7f", b"-rf", b"..hidden", b"\\", b"a:b,c=d", b"\xc3\xa9"]
    for name in odd:
        (room / name).write_bytes(name)
    listed = os.listdir(os.fsencode(room.path))
    for name in odd:
        assert name in listed and (room / name).read_bytes() == name
        os.unlink(room / name)
    assert not set(odd) & set(os.listdir(os.fsencode(room.path)))


def test_names_that_other_unions_reserve_are_ordinary_here(room: Room) -> None:
    for name in (".wh.file", ".wh..wh..opq", ".wh.directory"):
        (room / name).write_bytes(b"x")
    assert {".wh.file", ".wh..wh..opq", ".wh.directory", "file", "directory"} <= names(room)
    assert (room / "file").read_bytes() == CONTENT
    for name in (".wh.file", ".wh..wh..opq", ".wh.directory"):
        os.unlink(room / name)


def test_a_hard_link_is_the_same_file(room: Room) -> None:
    os.link(room / "file", room / "new")
    (room / "new").write_bytes(b"changed through the new name")
    assert (room / "file").read_bytes() == b"changed through the new name"
    one, other = os.stat(room / "file"), os.stat(room / "new")
    assert one.st_nlink == other.st_nlink == 2
    assert one.st_ino == other.st_ino or room.of_users_kernel


def test_unlinking_one_of_two_links_leaves_the_other(room: Room) -> None:
    os.link(room / "file", room / "new")
    os.unlink(room / "file")
    assert (room / "new").read_bytes() == CONTENT and os.stat(room / "new").st_nlink == 1


def test_a_file_can_be_linked_into_another_directory(room: Room) -> None:
    os.link(room / "file", room / "directory" / "new")
    assert (room / "directory" / "new").read_bytes() == CONTENT
    assert os.stat(room / "file").st_nlink == 2


def test_a_symlink_can_be_hard_linked(room: Room) -> None:
    os.link(room / "link", room / "new", follow_symlinks=False)
    assert os.readlink(room / "new") == "file" and os.lstat(room / "new").st_nlink == 2


def test_link_fails_on_directories_and_existing_names(room: Room) -> None:
    with fails_with(errno.EPERM):
        os.link(room / "directory", room / "new")
    with fails_with(errno.EEXIST):
        os.link(room / "file", room / "other")
    with fails_with(errno.ENOENT):
        os.link(room / "missing", room / "new")


def test_files_linked_before_the_mount_show_two_links(room: Room) -> None:
    assert os.stat(room / "shared").st_nlink == os.stat(room / "shared_too").st_nlink == 2
    assert (room / "shared").read_bytes() == (room / "shared_too").read_bytes() == b"shared\n"


def test_dot_and_dot_dot_cannot_be_made_or_removed(room: Room) -> None:
    with fails_with(errno.EEXIST):
        os.mkdir(room.path / "hollow/.")
    with fails_with(errno.EINVAL):
        os.rmdir(os.fsencode(room.path) + b"/hollow/.")
    with fails_with(errno.ENOTEMPTY):
        os.rmdir(os.fsencode(room.path) + b"/directory/sub/..")


def test_a_path_through_a_file_fails_with_enotdir(room: Room) -> None:
    for operation in (os.stat, os.unlink, os.rmdir, os.listdir):
        with fails_with(errno.ENOTDIR):
            operation(room / "file" / "below")


def test_inode_numbers_are_unique_in_a_room(room: Room) -> None:
    seen: dict[int, str] = {}
    for parent, directories, files in os.walk(room.path):
        for name in (*directories, *files):
            found = os.lstat(os.path.join(parent, name))
            if found.st_nlink == 1 or stat.S_ISDIR(found.st_mode):
                assert found.st_ino not in seen, f"{name} and {seen[found.st_ino]} share {found.st_ino}"
                seen[found.st_ino] = name


def test_listed_inode_numbers_are_those_of_stat(room: Room) -> None:
    with os.scandir(room.path) as entries:
        for entry in entries:
            found = entry.stat(follow_symlinks=False)
            if room.kind == "kernel" and entry.is_dir(follow_symlinks=False):
                continue  # the kernel lists the number of one layer's directory and shows that of another
            if found.st_nlink == 1:
                assert entry.inode() == found.st_ino, entry.name
