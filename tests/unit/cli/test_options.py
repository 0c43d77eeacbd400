"""Mount options: what each text means."""

from __future__ import annotations

import re

import pytest

from unionfs import options
from unionfs.errors import UsageError
from unionfs.options import MountOptions, check_layers, parse


def read(*texts: bytes) -> MountOptions:
    """The options of texts that must raise no doubt."""
    parsed = parse(texts)
    assert parsed.unknown == () and parsed.warnings == ()
    return parsed.options


@pytest.mark.parametrize(
    ("text", "lowers"),
    [
        (b"lowerdir=/top:/base", (b"/top", b"/base")),
        (b"lowerdir=one", (b"one",)),
        (b"lowerdir=a\\:b:c", (b"a:b", b"c")),
        (b"lowerdir=a\\,b:c", (b"a,b", b"c")),
        (b"lowerdir=a\\\\b:c", (b"a\\b", b"c")),
        (b"lowerdir=a\\\\:b", (b"a\\", b"b")),
        (b"lowerdir=a\\b", (b"ab",)),  # as the kernel: a backslash makes any byte literal
        (b"lowerdir=a\\", (b"a\\",)),  # nothing behind it
        (b'lowerdir="a,b:c"', (b"a,b", b"c")),
        (b'lowerdir="a,b":c', (b"a,b", b"c")),
        (b'lowerdir=c:"a,b"', (b"c", b"a,b")),
        (b'lowerdir=c:"a,b",ro', (b"c", b"a,b")),
        (b'lowerdir=a"b:c', (b'a"b', b"c")),  # quotes inside a name are part of it
        (b'lowerdir=a"b"c', (b'a"b"c',)),
        (b'lowerdir="a', (b'"a',)),  # nothing closes it
        (b'lowerdir="a"b,c"', (b'a"b,c',)),
        (b'lowerdir=\\"a', (b'"a',)),
        (b'lowerdir="a\\",b"', (b'a",b',)),
        (b"lowerdir=a=b", (b"a=b",)),
        (b"lowerdir=\xff\xfe:\n", (b"\xff\xfe", b"\n")),
        (b"lowerdir=a,lowerdir=b:c", (b"b", b"c")),
        (b"lowerdir=a,lowerdir+=b:c,lowerdir+=d\\,e", (b"a", b"b:c", b"d,e")),
    ],
)
def test_lowerdir_splits_at_colons_and_a_backslash_or_quotes_protect(text: bytes, lowers: tuple[bytes, ...]) -> None:
    assert read(text).lowers == lowers


def test_data_only_layers_follow_a_double_colon_or_come_by_datadir() -> None:
    assert read(b"lowerdir=a:b::c::d,datadir+=e") == MountOptions(lowers=(b"a", b"b"), data_lowers=(b"c", b"d", b"e"))


@pytest.mark.parametrize(
    "text",
    [b"lowerdir=", b"lowerdir=a:", b"lowerdir=:a", b"lowerdir=a::", b"lowerdir=a:::b", b"lowerdir=::a",
     b"lowerdir=a::b:c", b"lowerdir=a::b,lowerdir+=c", b"lowerdir+=", b"datadir+=", b"upperdir=", b"workdir="],
)  # fmt: skip
def test_an_empty_or_misplaced_layer_is_an_error(text: bytes) -> None:
    with pytest.raises(UsageError):
        parse([text])


def test_upper_and_work_take_the_same_escapes() -> None:
    got = read(b'upperdir=a\\,b,workdir="c,d:e"')
    assert (got.upper, got.work) == (b"a,b", b"c,d:e")


def test_empty_options_and_trailing_commas_are_nothing() -> None:
    assert read(b",,lowerdir=a,,volatile,,", b"", b",") == MountOptions(lowers=(b"a",), fsync="volatile")


def test_o_given_twice_adds_up_and_the_last_word_wins() -> None:
    got = read(b"lowerdir=a,ro,noatime", b"upperdir=u,rw", b"strictatime")
    assert got.lowers == (b"a",) and got.upper == b"u"
    assert not got.read_only and got.vfs_flags == {"strictatime"}


def test_flags_of_the_mount_collect_and_their_opposites_take_them_back() -> None:
    assert read(b"nosuid,nodev,noexec,suid,dev,nosymfollow,nodiratime").vfs_flags == {
        "noexec", "nosymfollow", "nodiratime"}  # fmt: skip
    assert read(b"noatime,relatime").vfs_flags == frozenset()


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        (b"ro", "read_only", True),
        (b"volatile", "volatile", True),
        (b"fsync=0", "fsync", "never"),
        (b"fsync=1", "fsync", "auto"),
        (b"fsync=off", "fsync", "never"),
        (b"fsync=auto", "fsync", "auto"),
        (b"fsync=strict", "fsync", "strict"),
        (b"fsync=volatile", "fsync", "volatile"),
        (b"fsync=volatile", "volatile", True),
        (b"fsync=0", "volatile", False),
        (b"volatile,fsync=auto", "fsync", "auto"),  # the last word, as in the kernel
        (b"rename_copy_limit=0", "rename_copy_limit", 0),
        (b"rename_copy_limit=12345", "rename_copy_limit", 12345),
        (b"rename_copy_limit=2k", "rename_copy_limit", 2048),
        (b"rename_copy_limit=1G", "rename_copy_limit", 1 << 30),
        (b"engine=auto", "engine", "auto"),
        (b"context=a\\,b,fscontext=c", "extra", {"context": "a,b", "fscontext": "c"}),
        (b"metacopy=on,index=on,redirect_dir=follow", "extra", {"metacopy": "on", "index": "on", "redirect_dir": "follow"}),
        (b"nfs_export=on,verity=require,uuid=null", "extra", {"nfs_export": "on", "verity": "require", "uuid": "null"}),
        (b"noacl", "acl", False),
        (b"noacl,acl", "acl", True),
        (b"userxattr", "userxattr", True),
        (b"static_nlink", "static_nlink", True),
        (b"ro", "whfiles", None),
        (b"whfiles", "whfiles", True),
        (b"whfiles=1", "whfiles", True),
        (b"whfiles,whfiles=0", "whfiles", False),
        (b"whfiles,nowhfiles", "whfiles", False),
        (b"private", "private", True),
        (b"writeback=0", "io", "cached"),
        (b"writeback=on", "io", "writeback"),
        (b"io=passthrough", "io", "passthrough"),
        (b"timeout=1.5", "timeout", 1.5),
        (b"allow_other", "allow_other", True),
        (b"fsname=a\\,b", "fsname", b"a,b"),
        (b"subtype=foo", "subtype", "foo"),
        (b"uidmapping=0:100:5", "uid_ranges", ((0, 100, 5),)),
        (b"uidmapping=", "uid_ranges", ()),
        (b"gidmapping=:0:1:1001:1001:0:1:1002:1002:64535", "gid_ranges", ((0, 1, 1001), (1001, 0, 1), (1002, 1002, 64535))),
        (b"uidmapping=0:0:4294967295", "uid_ranges", ((0, 0, 4294967295),)),
        (b"uidmapping=0:1:1,uidmapping=5:6:7", "uid_ranges", ((5, 6, 7),)),
        (b"squash_to_root", "squash_to_root", True),
        (b"squash_to_uid=0", "squash_to_uid", 0),
        (b"squash_to_gid=4294967294", "squash_to_gid", 4294967294),
        (b"xattr_permissions=0", "xattr_permissions", 0),
        (b"xattr_permissions=2", "xattr_permissions", 2),
        (b"remount", "remount", True),
        (b"debug", "debug", True),
        (b"xino=auto,redirect_dir=off,index=off", "extra", {"xino": "auto", "redirect_dir": "off", "index": "off"}),
    ],
)
def test_each_option_that_is_acted_on_sets_its_field(text: bytes, field: str, value: object) -> None:
    assert getattr(read(text), field) == value


def test_what_mount_and_podman_add_changes_nothing() -> None:
    fstab = b"rw,user,_netdev,nofail,auto,noauto,defaults,comment=bla,x-systemd.automount,X-mount.mkdir=0755,relatime"
    libfuse = b"user_id=0,group_id=0,default_permissions,max_read=131072,big_writes,nonempty,fd=3,rootmode=40000"
    podman = b'context="system_u:object_r:container_file_t:s0:c1,c2",threaded=1,fast_ino=1,noxattrs=0'
    assert read(fstab, libfuse, podman) == MountOptions(
        extra={"noxattrs": "0", "context": "system_u:object_r:container_file_t:s0:c1,c2"}
    )


@pytest.mark.parametrize(
    "text",
    [b"plugins=/x.so", b"plugins"],
)
def test_what_would_break_a_promise_is_refused_by_name(text: bytes) -> None:
    with pytest.raises(UsageError, match=f"option {text.decode()} is not supported"):
        parse([text])


@pytest.mark.parametrize("text", [b"sync", b"dirsync", b"mand", b"noxattrs=1", b"allow_root"])
def test_what_has_no_effect_is_taken_with_one_warning(text: bytes) -> None:
    parsed = parse([text])
    assert parsed.unknown == ()
    assert [text.decode() in warning and "no effect" in warning for warning in parsed.warnings] == [True]


@pytest.mark.parametrize(
    "text",
    [b"fsync=maybe", b"writeback=2", b"timeout=-1", b"timeout=nan", b"timeout=inf", b"timeout=soon",
     b"metacopy=perhaps", b"redirect_dir", b"lowerdir", b"upperdir", b"fsync", b"index=", b"xino=maybe",
     b"uuid=1", b"verity", b"engine=fast", b"engine", b"rename_copy_limit=", b"rename_copy_limit=-1", b"rename_copy_limit=1X",
     b"rename_copy_limit=1KM", b"rename_copy_limit=K",
     b"uidmapping", b"uidmapping=0:1", b"uidmapping=0:1:1:2", b"gidmapping=a:b:c", b"gidmapping=-1:0:1", b"uidmapping=0:0:0",
     b"uidmapping=0:4294967295:1", b"uidmapping=0:0:4294967296", b"gidmapping=99999999999:0:1", b"uidmapping=0: 1:1",
     b"squash_to_uid", b"squash_to_uid=", b"squash_to_uid=-1", b"squash_to_gid=root", b"squash_to_uid=4294967295",
     b"xattr_permissions", b"xattr_permissions=3", b"xattr_permissions=on"],
)  # fmt: skip
def test_a_value_that_means_nothing_is_an_error(text: bytes) -> None:
    with pytest.raises(UsageError, match=text.split(b"=")[0].decode()):
        parse([text])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"uidmapping=0:10:5:4:20:1", "option uidmapping=0:10:5:4:20:1: stored id 4 is in two ranges"),
        (b"uidmapping=0:10:5:9:14:1", "option uidmapping=0:10:5:9:14:1: shown id 14 is in two ranges"),
        (b"gidmapping=1:2", "option gidmapping=1:2: the value must be STORED:SHOWN:COUNT"),
    ],
)
def test_a_mapping_that_is_none_is_named_with_what_is_wrong_with_it(text: bytes, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse([text])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (b"fsync=maybe", "auto, strict, volatile, 0 or 1"),
        (b"writeback=maybe", "0 or 1"),
        (b"lowers=maybe", "static or live"),
        (b"xattr_permissions=maybe", "0, 1 or 2"),
    ],
)
def test_a_wrong_value_is_answered_with_all_right_ones(text: bytes, values: str) -> None:
    with pytest.raises(UsageError, match=f"^option {text.decode()}: the value must be {values}$"):
        parse([text])


@pytest.mark.parametrize("text", [b"nonsense", b"nonsense=1", b"volatile=1", b"ro=0", b"\xff\xff", b"=x"])
def test_what_nobody_has_heard_of_is_handed_back_as_written(text: bytes) -> None:
    assert parse([b"ro," + text]).unknown == (text,)


def test_parsing_goes_on_from_the_options_given_on_the_command_line() -> None:
    base = MountOptions(lowers=(b"a",), upper=b"u")
    assert parse([b"workdir=w"], base).options == MountOptions(lowers=(b"a",), upper=b"u", work=b"w")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (MountOptions(), "no lower"),
        (MountOptions(upper=b"u", work=b"w"), "no lower"),
        (MountOptions(lowers=(b"a",), upper=b"u"), "needs a work"),
        (MountOptions(lowers=(b"a",), work=b"w"), "without an upper"),
    ],
)
def test_layers_that_cannot_be_mounted_together_are_named(given: MountOptions, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        check_layers(given)


def test_the_help_names_every_option_there_is() -> None:
    text = options.describe()
    words = set(re.findall(r"[a-z_]+\+?", text))
    tables = (options._FIELDS, options._GENERIC, options._LIBFUSE, options._OVERLAY, options._WITHOUT_EFFECT,
              options._CHOICES, options._CONTEXTS, options._REFUSED, options._VALUED)  # fmt: skip
    missing = {name for table in tables for name in table} - words - {"remount"}  # remount is no option of a new mount
    assert missing == set()
    assert max(len(line) for line in text.splitlines()) <= 100
