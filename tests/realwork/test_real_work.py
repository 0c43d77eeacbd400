"""Real programs on a real Debian, in `unionfs run` and on the kernel's overlayfs: they must leave the same tree.

Compared are types, modes, owners, sizes, link counts, contents, symlinks, devices, extended attributes and the
modification times that are not "just now" (see tests/support/tree.py), of the whole root filesystem. What is known
to differ between any two runs is listed with each work, with its reason.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest

from tests.realwork.rootfs import CannotMake, Debian, debian
from tests.realwork.sides import Sides, Unequal
from tests.support import requirements
from tests.support.mounts import Mounts

pytestmark = [
    *(pytest.mark.root, pytest.mark.fuse, pytest.mark.overlayfs, pytest.mark.realwork, pytest.mark.slow),
    pytest.mark.network,
    pytest.mark.timeout(900),  # the first one may have to make the root filesystem,
]

FILES = 5000
_LONG_AGO = 1_500_000_000


@dataclass(frozen=True)
class Work:
    """A script, the files it finds in /input (in a lower layer), and what two runs of it cannot have in common."""

    script: str
    prepare: Callable[[Path, Debian], None]
    expected: str
    unequal: tuple[Unequal, ...] = field(default=())


def content_of(*paths: str, why: str, fields: tuple[str, ...] = ("content",)) -> tuple[Unequal, ...]:
    return tuple(Unequal(path, frozenset(fields), why) for path in paths)


# ---- the inputs ----

def no_input(work: Path, system: Debian) -> None:
    pass


def package(work: Path, system: Debian) -> None:
    shutil.copy(system.package, work / "package.deb")


_CONTROL = "Package: moving\nVersion: {version}\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: moves\n"
#: What debhelper writes for a directory that becomes a symlink; the last line is a rename that must not fail.
_MOVER = (
    "#!/bin/sh\nset -e\n"
    "dpkg-maintscript-helper dir_to_symlink /usr/share/moving/old new 2~ moving -- \"$@\"\n"
)
_RENAMER = (
    "perl -e 'for ([@ARGV], [reverse @ARGV], [@ARGV]) { rename($$_[0], $$_[1]) or die \"rename: $!\" }'"
    " /usr/share/zoneinfo /usr/share/moved\n"
)


def moving_package(work: Path, system: Debian) -> None:
    """Version 1 is installed in the lower layer, beside Debian's own packages; version 2 moves directories of both."""
    for version, directory in (("1", "old"), ("2", "new")):
        root = work / f"root{version}"
        files = root / "usr" / "share" / "moving" / directory
        files.mkdir(parents=True)
        for number in range(30):
            (files / f"file{number}").write_text(f"{number} of {version}\n")
            os.utime(files / f"file{number}", (_LONG_AGO, _LONG_AGO))
        (root / "DEBIAN").mkdir(mode=0o755)
        (root / "DEBIAN" / "control").write_text(_CONTROL.format(version=version))
        for name in ("preinst", "postinst", "postrm") if version == "2" else ():
            (root / "DEBIAN" / name).write_text(_MOVER + (_RENAMER if name == "postinst" else ""))
            (root / "DEBIAN" / name).chmod(0o755)
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, work / f"moving{version}.deb"], check=True, timeout=60,
                       stdout=subprocess.DEVNULL)
    layer = work.parent
    shutil.copytree(work / "root1" / "usr", layer / "usr")
    registry = layer / "var" / "lib" / "dpkg"
    (registry / "info").mkdir(parents=True)
    known = (system.root / "var" / "lib" / "dpkg" / "status").read_text()
    stanza = _CONTROL.format(version="1").replace("\nVersion", "\nStatus: install ok installed\nVersion")
    (registry / "status").write_text(f"{known}\n{stanza}")
    paths = ["/.", *(f"/{path.relative_to(layer)}" for path in sorted((layer / "usr").rglob("*"))), "/usr", "/usr/share"]
    (registry / "info" / "moving.list").write_text("".join(f"{path}\n" for path in sorted(set(paths))))


def archive_and_tree(work: Path, system: Debian) -> None:
    """An archive of 5,000 files, and the same already unpacked in the lower layer."""
    numbers = random.Random(5000)
    with tarfile.open(work / "tree.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(FILES):
            entry = tarfile.TarInfo(f"tree/{number % 71:02}/{number % 7}/file{number}")
            entry.mtime = _LONG_AGO + number
            entry.mode = numbers.choice((0o644, 0o600, 0o755, 0o4755, 0o2711, 0o444))
            entry.uid, entry.gid = numbers.choice(((0, 0), (1000, 1000), (33, 42)))
            if number % 50 == 49:
                entry.type, entry.linkname = tarfile.SYMTYPE, f"file{number - 1}"
                archive.addfile(entry)
            else:
                data = numbers.randbytes(numbers.choice((0, 10, 1000, 5000)))
                entry.size = len(data)
                archive.addfile(entry, BytesIO(data))
    subprocess.run(["tar", "-xpf", work / "tree.tar", "-C", work], check=True, timeout=60)


def repository(work: Path, system: Debian) -> None:
    """A git repository of 300 files and 20 commits."""
    place = work / "repository"
    place.mkdir()
    identity = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "A",
                "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=place, env={**os.environ, **identity}, check=True, timeout=60)

    git("init", "--quiet", "--initial-branch=main")
    for commit in range(20):
        for number in range(commit * 15, commit * 15 + 15):
            file = place / f"directory{number % 10}" / f"file{number}.txt"
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"line of {number}\n" * (number + 1))
        git("add", ".")
        git("commit", "--quiet", "--message", f"Commit {commit}")


def c_program(work: Path, system: Debian) -> None:
    (work / "main.c").write_text(
        "#include <stdio.h>\n#include <math.h>\nint twice(int);\n"
        'int main(int argc, char **argv) { printf("%d %.3f\\n", twice(argc * 20 + 1), sqrt(2.0 * argc)); return 0; }\n'
    )
    (work / "twice.c").write_text("int twice(int number) { return 2 * number; }\n")


def database_writer(work: Path, system: Debian) -> None:
    (work / "writer.py").write_text(
        "import os, sqlite3, sys, time\n"
        "me, other = sys.argv[1:]\n"
        "database = sqlite3.connect('/srv/data.db', timeout=60, isolation_level=None)\n"
        "assert database.execute('PRAGMA journal_mode').fetchone() == ('wal',)\n"
        "open(f'/srv/started{me}', 'w').close()\n"
        "deadline = time.monotonic() + 60\n"
        "while not os.path.exists(f'/srv/started{other}'):\n"
        "    assert time.monotonic() < deadline, 'the other writer did not start'\n"
        "    time.sleep(0.001)\n"
        "for number in range(400):\n"
        "    database.execute('BEGIN IMMEDIATE')\n"
        "    database.execute(f'INSERT INTO t{me} VALUES (?, ?)', (number, f'{me}-{number} ' * 20))\n"
        "    if number % 10 == 9:\n"
        "        database.execute(f'DELETE FROM t{me} WHERE number = ?', (number - 5,))\n"
        "    database.execute('COMMIT')\n"
        "assert database.execute(f'SELECT count(*) FROM t{me}').fetchone() == (360,)\n"
        "database.close()\n"
    )


# ---- the works ----

WORKS = {
    "installing a package": Work(
        "dpkg -i /input/package.deb\ndpkg --verify less\n"
        "less --version | head -n 1 | cut -d' ' -f1\nreadlink /etc/alternatives/pager\n",
        package,
        "less\n/usr/bin/less\n",
        content_of("var/log/dpkg.log", "var/log/alternatives.log", why="its lines begin with the time"),
    ),
    "upgrading a package that moves directories": Work(
        "apt-get install -q -y -o APT::Sandbox::User=root -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Dpkg::Use-Pty=0"
        " /input/moving2.deb 2>&1 | grep -v '^(Reading'\n"
        "dpkg --verify moving\nreadlink /usr/share/moving/old\ncat /usr/share/moving/old/file7\n"
        "ls /usr/share/moving/new | wc -l\ntest ! -e /usr/share/zoneinfo; ls /usr/share/moved/Europe/Berlin\n",
        moving_package,
        "new\n7 of 2\n30\n/usr/share/moved/Europe/Berlin\n",
        (*content_of("var/log/dpkg.log", "var/log/apt/*.log", "var/log/apt/eipp.log.xz", why="its lines begin with the time"),
         *content_of("tmp", why="apt makes a file there that has a name where O_TMPFILE is not supported", fields=("mtime",))),
    ),
    "compiling Python modules": Work(
        "python3 -m compileall -q -f -j 1 /usr/lib/python3.11\n"
        "python3 -I -c 'import json, email.message; print(json.dumps([json.__cached__]))'\n",
        no_input,
        '["/usr/lib/python3.11/json/__pycache__/__init__.cpython-311.pyc"]\n',
    ),
    "unpacking and removing 5,000 files": Work(
        "mkdir /srv/kept /srv/removed\n"
        "tar -xpf /input/tree.tar -C /srv/kept\ntar -xpf /input/tree.tar -C /srv/removed\n"
        "rm -rf /srv/removed/tree /input/tree\n"
        "tar -xpf /input/tree.tar -C /input tree/03\n"
        "find /srv/kept ! -type d | wc -l\nfind /srv/removed /input/tree ! -type d | wc -l\n"
        "cd /srv/kept && tar -df /input/tree.tar && echo same\n",
        archive_and_tree,
        f"{FILES}\n{len(range(3, FILES, 71))}\nsame\n",
    ),
    "cloning, committing and packing with git": Work(
        "export GIT_AUTHOR_DATE='1600000000 +0000' GIT_COMMITTER_DATE='1600000000 +0000'\n"
        "git config --global user.name A; git config --global user.email a@example.org\n"
        "git config --global pack.threads 1\n"
        "git clone --quiet /input/repository /srv/clone; cd /srv/clone\n"
        "for i in 1 2 3 4 5; do echo $i >>directory$i/file$i.txt; git commit --quiet --all --message $i; done\n"
        "git rm --quiet -r directory7; git mv directory8 moved; git commit --quiet --message moved\n"
        "git checkout --quiet -b side HEAD~3; echo side >side.txt; git add .; git commit --quiet --message side\n"
        "git merge --quiet --no-edit main\n"
        "git gc --quiet --prune=now; git fsck --strict 2>&1 | grep -v ^notice || true\n"
        "git status --short | wc -l; git log --oneline | wc -l\n"
        "cd /input/repository; echo x >>directory0/file0.txt; git commit --quiet --all --message lower; git gc --quiet\n"
        "git status --short | wc -l\n",
        repository,
        "0\n28\n0\n",
        content_of("srv/clone/.git/index", "input/repository/.git/index", why="it holds inode numbers and change times"),
    ),
    "compiling and running a C program": Work(
        "cd /srv; gcc -O2 -c /input/main.c /input/twice.c; ar rcsD libtwice.a twice.o\n"
        "gcc -o program main.o -L. -ltwice -lm; ./program; ./program a b; cp program /usr/local/bin/; program a\n",
        c_program,
        "42 1.414\n122 2.449\n82 2.000\n",
    ),
    "two writers of one database": Work(
        # Two processes that switch to WAL at once refuse each other without waiting, so that is done before.
        "sqlite3 /srv/data.db 'PRAGMA journal_mode=WAL; CREATE TABLE t1 (number INTEGER PRIMARY KEY, text TEXT);"
        " CREATE TABLE t2 (number INTEGER PRIMARY KEY, text TEXT)' >/srv/mode; rm /srv/mode\n"
        "python3 /input/writer.py 1 2 & first=$!\npython3 /input/writer.py 2 1 & second=$!\nwait $first; wait $second\n"
        "sqlite3 /srv/data.db 'PRAGMA journal_mode; PRAGMA integrity_check'\n"
        "sqlite3 /srv/data.db 'SELECT count(*) FROM t1; SELECT sum(number) FROM t2'\n"
        "sqlite3 /srv/data.db .dump | sort >/srv/dump.sql\nls /srv\n",
        database_writer,
        "wal\nok\n360\n71840\ndata.db\ndump.sql\nstarted1\nstarted2\n",
        content_of(
            "srv/data.db",
            why="which page holds what depends on who came first; dump.sql is compared",
            fields=("content", "size"),
        ),
    ),
}


# ---- the tests ----

@pytest.fixture(scope="module")
def system() -> Debian:
    reason = requirements.missing_for_fuse() or requirements.missing_for_overlayfs()
    if reason:
        pytest.skip(reason)
    try:
        return debian()
    except CannotMake as missing:
        pytest.skip(f"no Debian root filesystem: {missing}")


@pytest.fixture
def sides(scratch: Path, mounts: Mounts, system: Debian, request: pytest.FixtureRequest) -> Iterator[Sides]:
    """Both sides, with the script and the input of the test's work in a layer above Debian."""
    layer = scratch / "input"
    (layer / "input").mkdir(parents=True)
    work: Work = WORKS[request.node.callspec.params["name"]]
    work.prepare(layer / "input", system)
    (layer / "input" / "script").write_text(work.script)
    made = Sides(scratch, mounts, (layer, system.root))
    yield made
    made.discard()


@pytest.mark.parametrize("name", WORKS)
def test_real_work_leaves_the_same_tree_as_on_the_kernels_overlayfs(sides: Sides, name: str) -> None:
    work = WORKS[name]
    ours = sides.work_in_ours()
    assert ours.code == 0, ours.output
    assert ours.output.endswith(work.expected), ours.output
    assert ours == sides.work_in_the_kernels()
    assert sides.differences(work.unequal) == ""


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda file: file.write_text("other"), "content is"),
        (lambda file: file.chmod(0o600), "mode is"),
        (lambda file: os.chown(file, 1, 0), "uid is"),
        (lambda file: os.setxattr(file, "user.name", b"value"), "xattrs is"),
        (lambda file: os.link(file, f"{file}2"), "nlink is"),
        (lambda file: os.utime(file, (0, _LONG_AGO)), "mtime is"),
        (lambda file: file.unlink(), "missing in ours"),
    ],
)
def test_the_comparison_finds_each_kind_of_difference(
    scratch: Path, mounts: Mounts, change: Callable[[Path], None], told: str
) -> None:
    lower = scratch / "lower"
    lower.mkdir()
    (lower / "common").write_text("same")
    sides = Sides(scratch, mounts, (lower,))
    for upper in (sides.ours.upper, sides.kernel.upper):
        assert upper is not None
        (upper / "file").write_text("text")
    assert sides.differences(()) == ""
    assert sides.ours.upper is not None
    change(sides.ours.upper / "file")
    assert told in sides.differences(())
