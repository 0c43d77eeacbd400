"""What the engines make of mount options."""

from __future__ import annotations

import pytest

from unionfs import engines, options
from unionfs.errors import UsageError
from unionfs.overlay.features import Features, Redirect, Sync
from unionfs.overlay.owners import CONTAINERS_STAT, PRIVILEGED_STAT, Ids, Owners


def features(text: bytes = b"") -> Features:
    """What our own server is asked for by *text*."""
    check(text)
    return engines.features(options.parse([text]).options)


def check(text: bytes) -> None:
    """UsageError unless our own server can do what *text* says."""
    engines.check_served(options.parse([text]).options)


def test_without_a_word_directories_are_redirected_and_nothing_else_is_on() -> None:
    assert features() == Features(redirect=Redirect.ON, index=False, metacopy=False, volatile=False, sync=Sync.AUTO, copy_limit=0)


@pytest.mark.parametrize(
    ("text", "redirect"),
    [
        (b"redirect_dir=on", Redirect.ON),
        (b"redirect_dir=off", Redirect.FOLLOW),
        (b"redirect_dir=follow", Redirect.FOLLOW),
        (b"redirect_dir=nofollow", Redirect.NOFOLLOW),
        (b"userxattr", Redirect.NOFOLLOW),
        (b"userxattr,redirect_dir=off", Redirect.NOFOLLOW),
        (b"userxattr,redirect_dir=nofollow", Redirect.NOFOLLOW),
        (b"metacopy=on", Redirect.ON),
    ],
)
def test_redirect_dir_means_what_it_means_to_the_kernel(text: bytes, redirect: Redirect) -> None:
    assert features(text).redirect is redirect


@pytest.mark.parametrize(
    ("text", "sync", "volatile"),
    [
        (b"fsync=1", Sync.AUTO, False),
        (b"fsync=strict", Sync.STRICT, False),
        (b"volatile", Sync.NEVER, True),
        (b"fsync=volatile", Sync.NEVER, True),
        (b"fsync=0", Sync.NEVER, False),
        (b"volatile,fsync=0", Sync.NEVER, False),
    ],
)
def test_only_volatile_leaves_a_mark(text: bytes, sync: Sync, volatile: bool) -> None:
    assert (features(text).sync, features(text).volatile) == (sync, volatile)


def test_what_is_on_is_asked_for() -> None:
    assert features(b"index=on,metacopy=on") == Features(index=True, metacopy=True)
    assert features(b"index=on,metacopy=on,index=off,metacopy=off") == Features()
    assert features(b"userxattr,index=on").index


@pytest.mark.parametrize(
    ("text", "owners"),
    [
        (b"", None),
        (b"uidmapping=,gidmapping=", None),
        (b"uidmapping=0:5:1", Owners(Ids(((0, 5, 1),)))),
        (b"gidmapping=0:5:1", Owners(groups=Ids(((0, 5, 1),)))),
        (b"squash_to_root", Owners(Ids(squash=0), Ids(squash=0))),
        (b"squash_to_uid=5,squash_to_root", Owners(Ids(squash=5), Ids(squash=0))),
        (b"squash_to_root,squash_to_gid=5", Owners(Ids(squash=0), Ids(squash=5))),
        (b"squash_to_gid=0", Owners(groups=Ids(squash=0))),
    ],
)
def test_a_number_to_squash_to_goes_before_root_and_nothing_costs_nothing(text: bytes, owners: Owners | None) -> None:
    assert features(text).owners == owners


def test_the_overflow_ids_are_the_kernels() -> None:
    parsed = options.parse([b"uidmapping=0:5:1"]).options
    assert engines.features(parsed, (7, 8)).owners == Owners(Ids(((0, 5, 1),), None, 7), Ids((), None, 8))


def test_xattr_permissions_names_the_attribute() -> None:
    found = [features(b"xattr_permissions=" + value).stat_attribute for value in (b"0", b"1", b"2")]
    assert found == [None, PRIVILEGED_STAT, CONTAINERS_STAT]


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (b"rename_copy_limit=1M", 0),  # a redirect costs nothing
        (b"userxattr", engines.RENAME_COPY_LIMIT),
        (b"userxattr,redirect_dir=nofollow", 0),
        (b"userxattr,redirect_dir=off", 0),
        (b"userxattr,redirect_dir=off,rename_copy_limit=5", 5),
        (b"userxattr,rename_copy_limit=0", 0),
        (b"userxattr,rename_copy_limit=1M", 1 << 20),
    ],
)
def test_directories_are_copied_for_a_rename_only_where_no_redirect_can_be_written(text: bytes, limit: int) -> None:
    assert features(text).copy_limit == limit


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("userxattr", "redirect_dir=on"),
        ("userxattr", "redirect_dir=follow"),
        ("userxattr", "metacopy=on"),
        ("metacopy=on", "redirect_dir=off"),
        ("metacopy=on", "redirect_dir=follow"),
        ("metacopy=on", "redirect_dir=nofollow"),
        ("nfs_export=on", "metacopy=on"),
        ("nfs_export=on", "index=off"),
    ],
)
def test_options_that_exclude_each_other_are_both_named(one: str, other: str) -> None:
    for text in (f"{one},{other}", f"{other},{one}"):
        with pytest.raises(UsageError, match=f"^options {one} and {other} exclude each other"):
            check(text.encode())


def lacking(text: bytes) -> list[str]:
    """What the kernel cannot do of *text*."""
    return engines.not_in_kernel(options.parse([text]).options)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"", []),
        (b"lowerdir=a::b,upperdir=u,workdir=w,ro,volatile,userxattr,private,noatime,fsname=x,debug,engine=kernel", []),
        (b"redirect_dir=off,index=on,metacopy=off,nfs_export=on,verity=require,xino=auto,uuid=null,context=c", []),
        (b"allow_other,writeback=0,noxattrs=0,acl,fsync=1,fsync=strict,nowhfiles,xattr_permissions=0", []),
        (b"fsync=0", ["fsync=0"]),
        (b"noacl", ["noacl"]),
        (b"allow_root", ["allow_root"]),
        (b"noxattrs=1", ["noxattrs=1"]),
        (b"timeout=0", ["timeout"]),
        (b"static_nlink,io=writeback,subtype=s,rename_copy_limit=0", ["rename_copy_limit", "static_nlink", "subtype"]),
        (b"uidmapping=0:1:1,gidmapping=0:1:1,squash_to_uid=0", ["gidmapping", "squash_to_uid", "uidmapping"]),
        (b"squash_to_root,squash_to_gid=0", ["squash_to_gid", "squash_to_root"]),
        (b"lowers=live", ["lowers=live"]),
        (b"lowers=live,lowers=static", []),
        (b"xattr_permissions=2,whfiles", ["whfiles", "xattr_permissions"]),
    ],
)
def test_what_the_kernel_lacks_is_known_by_the_names_users_write(text: bytes, names: list[str]) -> None:
    assert sorted(lacking(text)) == names


def parameters(text: bytes) -> dict[str, bytes | None]:
    return dict(engines.kernel_parameters(options.parse([text]).options))


def test_the_kernel_is_told_every_default_it_may_have_otherwise() -> None:
    assert parameters(b"") == {
        "source": b"unionfs", "redirect_dir": b"on", "index": b"off", "metacopy": b"off", "nfs_export": b"off", "xino": b"on"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"redirect_dir=off", {"redirect_dir": b"follow"}),
        (b"userxattr,redirect_dir=off", {"redirect_dir": b"nofollow", "userxattr": None}),
        (b"nfs_export=on", {"nfs_export": b"on", "index": b"on"}),
        (b"metacopy=on,index=on,xino=off", {"metacopy": b"on", "index": b"on", "xino": b"off"}),
        (b"verity=on,uuid=null", {"verity": b"on", "uuid": b"null"}),
        (b"volatile", {"volatile": None}),
        (b"fsync=strict", {"fsync": b"strict"}),
        (b"ro,fsname=a", {"ro": None, "source": b"a"}),
    ],
)
def test_the_kernel_is_told_what_was_asked_for(text: bytes, expected: dict[str, bytes | None]) -> None:
    assert parameters(text) == {**parameters(b""), **expected}


@pytest.mark.parametrize(
    ("engine", "text", "message"),
    [
        ("kernel", b"timeout=1,noacl", "^the kernel's overlayfs has no noacl, timeout; our own server has"),
        ("kernel", b"metacopy=on,userxattr", "exclude each other"),
        ("auto", b"metacopy=on,userxattr", "exclude each other"),
        ("auto", b"verity=on,timeout=1", "verity=on is not supported by our own server"),
        ("pyfuse3", b"verity=on", "verity=on is not supported by our own server"),
    ],
)
def test_an_engine_refuses_what_it_cannot_do(engine: str, text: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        engines.check_engine(options.parse([text]).options, engine)


@pytest.mark.parametrize(
    ("engine", "text"), [("kernel", b"verity=on"), ("auto", b"verity=on"), ("auto", b"timeout=1"), ("pyfuse3", b"timeout=1")]
)
def test_an_engine_takes_what_it_can_do(engine: str, text: bytes) -> None:
    engines.check_engine(options.parse([text]).options, engine)


@pytest.mark.parametrize("text", ["nfs_export=on", "verity=on", "verity=require"])
def test_what_our_server_cannot_do_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match=f"option {text} is not supported by our own server"):
        check(text.encode())
    check(text.partition("=")[0].encode() + b"=off")
