"""Owners through real mounts, beside idmapped mounts of the kernel and fuse-overlayfs with the same options."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import acl
from tests.support.idmapped import Ranges, idmapped
from tests.support.mounts import Layers, Mount, Mounts
from tests.support.users import as_user

#: What podman --userns=keep-id passes for user 1001: his files are root's on disk, and root's are 1's.
KEEP_ID: Ranges = ((0, 1, 1001), (1001, 0, 1), (1002, 1002, 64535))
#: A mapping of few ids.
FEW: Ranges = ((0, 1000, 100), (500, 0, 1))

Owned = dict[str, tuple[str, int, int]]


def text(ranges: Ranges) -> str:
    return "".join(f":{stored}:{shown}:{count}" for stored, shown, count in ranges)


def mapping(ranges: Ranges) -> str:
    return f"uidmapping={text(ranges)},gidmapping={text(ranges)}"


def fill(lower: Path) -> None:
    """Files of several owners, one of whom FEW does not know."""
    for name, uid, mode in (("roots", 0, 0o644), ("fives", 5, 0o600), ("setuid", 7, 0o4755), ("strangers", 400, 0o664)):
        (lower / name).write_text(name)
        os.chown(lower / name, uid, uid + 1)
        (lower / name).chmod(mode)
    for name, uid, mode in (("shared", 3, 0o2777), ("private", 5, 0o700), ("open", 0, 0o777)):
        (lower / name).mkdir()
        os.chown(lower / name, uid, uid + 1)
        (lower / name).chmod(mode)
    (lower / "private" / "inside").write_text("inside")
    (lower / "link").symlink_to("roots")
    os.chown(lower / "link", 5, 6, follow_symlinks=False)
    os.setxattr(lower / "fives", acl.ACCESS, acl.encode(6, 0, 0, users={9: 4}, groups={11: 6}, mask=6))


def make(room: Path) -> Layers:
    room.mkdir()
    for name in ("lower", "upper", "work"):
        (room / name).mkdir()
        (room / name).chmod(0o777)
    fill(room / "lower")
    return Layers((room / "lower",), room / "upper", room / "work")


def owners_of(top: Path) -> Owned:
    """Type, mode and owner of everything below, but of the marks that fuse-overlayfs leaves."""
    found: Owned = {}
    for directory, names, files in os.walk(top):
        for name in (name for name in (*names, *files) if not name.startswith(".wh.")):
            path = Path(directory) / name
            st = path.lstat()
            found[str(path.relative_to(top))] = (stat.filemode(st.st_mode), st.st_uid, st.st_gid)
    return found


Step = tuple[int, Callable[[Path], object]]


def write(path: Path) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        return os.write(fd, b"more")
    finally:
        os.close(fd)


def create(path: Path, mode: int = 0o644) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))


#: (who, as a user of the mount; what), for KEEP_ID.
STEPS: tuple[Step, ...] = (
    (0, lambda at: create(at / "of_zero")),
    (6, lambda at: create(at / "open" / "of_six", 0o600)),
    (6, lambda at: os.mkdir(at / "open" / "directory", 0o750)),
    (6, lambda at: os.symlink("x", at / "open" / "link")),
    (6, lambda at: os.mkfifo(at / "open" / "pipe", 0o640)),
    (2000, lambda at: create(at / "shared" / "of_2000")),
    (2000, lambda at: os.mkdir(at / "shared" / "inner")),
    (2000, lambda at: create(at / "shared" / "inner" / "deep")),
    (2000, lambda at: create(at / "shared" / "setgid", 0o2755)),
    (2000, lambda at: os.listdir(at / "private")),  # not his
    (6, lambda at: os.listdir(at / "private")),
    (6, lambda at: write(at / "private" / "inside")),  # copies a directory and a file up
    (2000, lambda at: write(at / "open" / "of_six")),
    (6, lambda at: write(at / "open" / "of_six")),
    (10, lambda at: (at / "fives").read_text()),  # named by the ACL: 9 on disk
    (9, lambda at: (at / "fives").read_text()),
    (6, lambda at: os.getxattr(at / "fives", acl.ACCESS)),
    (6, lambda at: os.setxattr(at / "fives", acl.ACCESS, acl.encode(6, 0, 0, users={0: 6, 2000: 4}))),
    (2000, lambda at: (at / "fives").read_text()),
    (10, lambda at: (at / "fives").read_text()),
    (0, lambda at: os.chown(at / "roots", 6, 7)),
    (6, lambda at: os.chmod(at / "roots", 0o4755)),
    (6, lambda at: os.chown(at / "roots", 0, -1)),  # not his to give away
    (0, lambda at: os.chown(at / "roots", 1001, 0)),  # takes suid away
    (0, lambda at: os.chown(at / "link", 2000, 2001, follow_symlinks=False)),
    (0, lambda at: os.chown(at / "shared", -1, 2002)),
    (2000, lambda at: create(at / "shared" / "later")),
    (8, lambda at: os.chmod(at / "setuid", 0o4777)),
    (2000, lambda at: write(at / "setuid")),  # takes suid away
    (0, lambda at: os.setxattr(at / "open", acl.DEFAULT, acl.encode(7, 5, 5, users={2000: 7}))),
    (6, lambda at: create(at / "open" / "inherits", 0o666)),
    (2000, lambda at: write(at / "open" / "inherits")),
    (6, lambda at: os.getxattr(at / "open" / "inherits", acl.ACCESS)),
    (6, lambda at: os.link(at / "open" / "of_six", at / "open" / "second")),
    (6, lambda at: os.rename(at / "open" / "second", at / "open" / "third")),
    (6, lambda at: os.unlink(at / "open" / "pipe")),
    (6, lambda at: create(at / "open" / "pipe")),
    (0, lambda at: os.unlink(at / "strangers")),
    (2000, lambda at: create(at / "strangers")),
    (0, lambda at: create(at / "strangers")),  # over a whiteout
)


def outcome(at: Path, uid: int, step: Callable[[Path], object]) -> str:
    """What a step returns or the name of its error, when user *uid* does it."""

    def run() -> str:
        os.umask(0)
        try:
            return repr(step(at))
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]

    return as_user(run, uid)


def play(at: Path, steps: Sequence[Step]) -> list[tuple[str, Owned]]:
    """After each step what it gave, and everything's owner."""
    return [(outcome(at, uid, step), owners_of(at)) for uid, step in steps]


@pytest.fixture
def kernel_mapped(mounts: Mounts, scratch: Path) -> Iterator[Callable[[Layers, Ranges], Mount]]:
    """Mounts the kernel's overlayfs over layers whose owners an idmapped mount maps."""
    with ExitStack() as held:

        def mount(layers: Layers, ranges: Ranges) -> Mount:
            assert layers.upper is not None and layers.work is not None
            room = layers.upper.parent
            (scratch / "mapped").mkdir()
            shown = held.enter_context(idmapped(room, scratch / "mapped", ranges, ranges))
            upper, work = shown / layers.upper.name, shown / layers.work.name
            made = mounts.kernel(Layers(tuple(shown / lower.name for lower in layers.lowers), upper, work))
            held.callback(made.unmount)
            return made

        yield mount


def test_a_mapping_shows_allows_and_stores_what_an_idmapped_mount_of_the_kernel_does(
    mounts: Mounts, scratch: Path, kernel_mapped: Callable[[Layers, Ranges], Mount]
) -> None:
    mine, its = make(scratch / "mine"), make(scratch / "its")
    ours, kernel = mounts.ours(mine, "-o", mapping(KEEP_ID)), kernel_mapped(its, KEEP_ID)
    assert owners_of(ours.target) == owners_of(kernel.target)
    for number, ((got, here), (wanted, there)) in enumerate(zip(play(ours.target, STEPS), play(kernel.target, STEPS), strict=True)):
        assert (number, got, here) == (number, wanted, there)
    assert mine.upper is not None and its.upper is not None
    assert owners_of(mine.upper) == owners_of(its.upper)
    for name in ("fives", "open/inherits"):
        assert os.getxattr(mine.upper / name, acl.ACCESS) == os.getxattr(its.upper / name, acl.ACCESS)
    for mount in (ours, kernel):
        assert mount.unmount() == []
    assert owners_of(mounts.ours(mine).target) == owners_of(mounts.kernel(mine).target), "without the mapping, as stored"


def capability(root: int) -> bytes:
    """cap_net_raw, where user *root* is root (struct vfs_ns_cap_data)."""
    return struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, root)


def capability_of(path: Path) -> bytes | str:
    try:
        return os.getxattr(path, "security.capability")
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


def test_capabilities_count_for_the_same_root_as_on_an_idmapped_mount_of_the_kernel(
    mounts: Mounts, scratch: Path, kernel_mapped: Callable[[Layers, Ranges], Mount]
) -> None:
    mine, its = make(scratch / "mine"), make(scratch / "its")
    roots = {"roots": 0, "fives": 5, "setuid": 1001, "strangers": 90_000}
    for layers in (mine, its):
        for name, root in roots.items():
            os.setxattr(layers.lowers[0] / name, "security.capability", capability(root))
    ours, kernel = mounts.ours(mine, "-o", mapping(KEEP_ID)).target, kernel_mapped(its, KEEP_ID).target
    shown = [capability_of(kernel / name) for name in roots]
    assert shown[:2] == [capability(1), capability(6)] and shown[3] == "EOVERFLOW"
    assert [capability_of(ours / name) for name in roots] == [*shown[:3], "ENODATA"], "an error would forbid to run it"
    assert "security.capability" not in os.listxattr(ours / "strangers")
    assert mine.upper is not None and its.upper is not None
    for value in (capability(7), capability(0), struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)):
        for at in (ours, kernel):
            os.setxattr(at / "roots", "security.capability", value)
        assert capability_of(mine.upper / "roots") == capability_of(its.upper / "roots")
        assert capability_of(ours / "roots") == capability_of(kernel / "roots")
    for at in (ours, kernel):
        with pytest.raises(OSError) as caught:
            os.setxattr(at / "roots", "security.capability", capability(90_000))
        assert caught.value.errno == errno.EINVAL


#: Steps of users that FEW knows and does not know, root among the strangers to the kernel.
STRANGERS: tuple[Step, ...] = (
    (0, lambda at: create(at / "open" / "of_500")),
    (1005, lambda at: write(at / "fives")),
    (1005, lambda at: os.chmod(at / "fives", 0o640)),
    (0, lambda at: os.chown(at / "roots", 1000, 1099)),
    (4, lambda at: create(at / "open" / "of_nobody")),
    (0, lambda at: os.chown(at / "roots", 1100, -1)),
    (0, lambda at: os.chown(at / "setuid", -1, 5)),
    (0, lambda at: os.chmod(at / "strangers", 0o600)),
)


def test_an_unmapped_owner_is_the_overflow_user_as_in_fuse_overlayfs_shown_and_stored(mounts: Mounts, scratch: Path) -> None:
    mine, its = make(scratch / "mine"), make(scratch / "its")
    for layers in (mine, its):
        os.removexattr(layers.lowers[0] / "fives", acl.ACCESS)  # whose entries fuse-overlayfs does not map
    ours, other = mounts.ours(mine, "-o", mapping(FEW)), mounts.fuse_overlayfs(its, mapping(FEW))
    assert owners_of(ours.target)["strangers"][1:] == (65534, 65534)
    assert owners_of(ours.target) == owners_of(other.target)
    assert play(ours.target, STRANGERS) == play(other.target, STRANGERS)
    assert mine.upper is not None and its.upper is not None
    stored = owners_of(mine.upper)
    assert stored["open/of_nobody"][1:] == (65534, 65534) and stored["roots"][1:] == (65534, 99) and stored["strangers"][1:] == (400, 401)
    assert stored == owners_of(its.upper)


def test_where_we_store_the_overflow_user_the_kernel_refuses(
    mounts: Mounts, scratch: Path, kernel_mapped: Callable[[Layers, Ranges], Mount]
) -> None:
    """The known difference of the two models: a mapping of the mount program's against a mapping of the kernel's."""
    at = kernel_mapped(make(scratch / "its"), FEW).target
    assert owners_of(at)["strangers"][1:] == (65534, 65534)
    assert [outcome(at, uid, step) for uid, step in STRANGERS[4:7]] == ["EOVERFLOW"] * 3


SQUASHED: tuple[Step, ...] = (
    (0, lambda at: create(at / "of_root")),
    (2000, lambda at: create(at / "open" / "of_2000")),
    (2000, lambda at: os.mkdir(at / "open" / "inner")),
    (0, lambda at: os.chown(at / "roots", 77, 78)),
    (0, lambda at: os.chown(at / "link", 77, 78, follow_symlinks=False)),
    (0, lambda at: write(at / "private" / "inside")),
)


@pytest.mark.parametrize(
    "options",
    ["squash_to_root", "squash_to_uid=42", "squash_to_gid=43", "squash_to_uid=42,squash_to_gid=43", "squash_to_root,squash_to_gid=43",
     f"squash_to_uid=42,{mapping(KEEP_ID)}"],
)  # fmt: skip
def test_squashed_owners_are_shown_and_stored_as_fuse_overlayfs_does(mounts: Mounts, scratch: Path, options: str) -> None:
    mine, its = make(scratch / "mine"), make(scratch / "its")
    ours, other = mounts.ours(mine, "-o", options), mounts.fuse_overlayfs(its, options)
    assert owners_of(ours.target) == owners_of(other.target)
    assert play(ours.target, SQUASHED) == play(other.target, SQUASHED)
    assert mine.upper is not None and its.upper is not None
    assert owners_of(mine.upper) == owners_of(its.upper)


def test_who_squashed_owners_make_everything_belong_to_may_use_it(mounts: Mounts, scratch: Path) -> None:
    at = mounts.ours(make(scratch / "mine"), "-o", "squash_to_uid=42,squash_to_gid=43").target
    assert [outcome(at, uid, lambda at: write(at / "private" / "inside")) for uid in (42, 5)] == ["4", "EACCES"]


# ---- owners in attributes ----

KEPT: tuple[Step, ...] = (
    (0, lambda at: create(at / "of_root", 0o600)),
    (2000, lambda at: create(at / "open" / "of_2000", 0o640)),
    (2000, lambda at: os.mkdir(at / "open" / "directory", 0o700)),
    (0, lambda at: os.chown(at / "roots", 77, 78)),
    (77, lambda at: os.chmod(at / "roots", 0o4711)),
    (2000, lambda at: os.chmod(at / "roots", 0o777)),
    (0, lambda at: write(at / "private" / "inside")),
    (5, lambda at: (at / "private" / "inside").read_text()),
    (2000, lambda at: (at / "private" / "inside").read_text()),
)


@pytest.mark.parametrize(("value", "attribute"), [(1, "security.fuseoverlayfs.override_stat"), (2, "user.fuseoverlayfs.override_stat")])
def test_what_fuse_overlayfs_keeps_in_attributes_shows_as_it_showed_it(mounts: Mounts, scratch: Path, value: int, attribute: str) -> None:
    layers = make(scratch / "its")
    other = mounts.fuse_overlayfs(layers, f"xattr_permissions={value}")
    play(other.target, KEPT)
    shown = owners_of(other.target)
    assert other.unmount() == []
    assert layers.upper is not None and attribute in os.listxattr(layers.upper / "of_root")
    assert shown["open/of_2000"][1:] == (2000, 2000)
    assert owners_of(mounts.ours(layers).target) == shown, "the root of the layer says where"
    lowers = Layers((layers.upper, *layers.lowers))
    assert owners_of(mounts.ours(lowers).target) == shown, "of a lower too"


@pytest.mark.parametrize(("value", "attribute"), [(1, "security.fuseoverlayfs.override_stat"), (2, "user.containers.override_stat")])
def test_what_we_keep_in_attributes_fuse_overlayfs_shows_alike(mounts: Mounts, scratch: Path, value: int, attribute: str) -> None:
    layers = make(scratch / "mine")
    (layers.lowers[0] / "link").unlink()  # whose owner it reads from the inode
    ours = mounts.ours(layers, "-o", f"xattr_permissions={value}")
    results = [result for result, _ in play(ours.target, KEPT)]
    assert results == ["None"] * 5 + ["EPERM", "4", "'insidemore'", "EACCES"]
    shown = owners_of(ours.target)
    assert shown["roots"] == ("-rws--x--x", 77, 78) and shown["private/inside"] == ("-rw-r--r--", 0, 0)
    assert ours.unmount() == []
    assert layers.upper is not None
    assert os.getxattr(layers.upper / "roots", attribute) == b"77:78:4711"
    assert {entry[1:] for entry in owners_of(layers.upper).values()} == {(0, 0)}
    assert owners_of(mounts.fuse_overlayfs(Layers((layers.upper, *layers.lowers))).target) == shown


@pytest.mark.parametrize("value", [1, 2])
def test_owners_in_attributes_allow_and_show_what_owners_in_inodes_do(mounts: Mounts, scratch: Path, value: int) -> None:
    mine, its = make(scratch / "mine"), make(scratch / "its")
    ours, kernel = mounts.ours(mine, "-o", f"xattr_permissions={value}"), mounts.kernel(its)
    steps = [(uid, step) for uid, step in STEPS]
    for number, ((got, here), (wanted, there)) in enumerate(zip(play(ours.target, steps), play(kernel.target, steps), strict=True)):
        assert (number, got, here) == (number, wanted, there)


def test_a_device_of_an_upper_with_owners_in_attributes_works(mounts: Mounts, scratch: Path) -> None:
    layers = make(scratch / "mine")
    mount = mounts.ours(layers, "-o", "xattr_permissions=2")
    os.mknod(mount.target / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(mount.target / "pipe")
    assert write(mount.target / "null") == 4 and (mount.target / "null").read_bytes() == b""
    reader = os.open(mount.target / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert write(mount.target / "pipe") == 4 and os.read(reader, 8) == b"more"
    finally:
        os.close(reader)
    assert layers.upper is not None and owners_of(layers.upper)["null"][0] == "-rwxr-xr-x"


def test_a_lower_that_is_idmapped_already_is_not_mapped_again(mounts: Mounts, scratch: Path) -> None:
    layers = make(scratch / "room")
    os.setxattr(layers.lowers[0] / "private" / "inside", acl.ACCESS, acl.encode(6, 4, 4, users={9: 4, 4000: 4}))
    os.setxattr(layers.lowers[0] / "strangers", "security.capability", capability(4000))
    expected = mounts.ours(layers, "-o", mapping(FEW))
    wanted, wanted_acl = owners_of(expected.target), os.getxattr(expected.target / "fives", acl.ACCESS)
    assert os.getxattr(expected.target / "private" / "inside", acl.ACCESS) == acl.encode(6, 4, 4, users={1009: 4})
    assert expected.unmount() == []
    (scratch / "mapped").mkdir()
    with idmapped(layers.lowers[0], scratch / "mapped", FEW, FEW) as shown:
        mount = mounts.ours(Layers((shown,), layers.upper, layers.work), "-o", mapping(FEW))
        for _ in range(2):  # below, then copied up
            found = owners_of(mount.target)
            assert found.pop("strangers")[1:] == wanted["strangers"][1:]
            assert found == {name: facts for name, facts in wanted.items() if name != "strangers"}
            assert os.getxattr(mount.target / "fives", acl.ACCESS) == wanted_acl
            assert os.getxattr(mount.target / "private" / "inside", acl.ACCESS) == acl.encode(6, 4, 4, users={1009: 4})
            assert capability_of(mount.target / "strangers") == "ENODATA"
            for name in ("fives", "private/inside"):
                os.utime(mount.target / name)
        assert layers.upper is not None and (layers.upper / "fives").stat().st_uid == 5
        assert mount.unmount() == []


def test_an_idmapped_bind_of_the_union_is_as_one_of_a_plain_directory(mounts: Mounts, scratch: Path) -> None:
    """What Kubernetes does for pods with user namespaces; the kernel's overlayfs does not allow it (Linux 6.18)."""
    mine = make(scratch / "mine")
    ours = mounts.ours(mine)
    (scratch / "plain").mkdir()
    (scratch / "plain").chmod(0o777)
    fill(scratch / "plain")
    (scratch / "ours mapped").mkdir()
    (scratch / "plain mapped").mkdir()
    with (
        idmapped(ours.target, scratch / "ours mapped", KEEP_ID, KEEP_ID) as here,
        idmapped(scratch / "plain", scratch / "plain mapped", KEEP_ID, KEEP_ID) as there,
    ):
        assert owners_of(here) == owners_of(there)
        for number, (got, wanted) in enumerate(zip(play(here, STEPS), play(there, STEPS), strict=True)):
            assert (number, *got) == (number, *wanted)
        assert as_user(lambda: os.listxattr(here / "roots"), 1) == as_user(lambda: os.listxattr(there / "roots"), 1)
    assert owners_of(ours.target) == owners_of(scratch / "plain")
