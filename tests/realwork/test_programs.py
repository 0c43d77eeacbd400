"""Programs that move, copy and rewrite what lies in a lower layer, on a mount of ours and on one of the kernel's overlayfs.

Each program runs in a subdirectory of the mount, on this machine rather than in a root filesystem. Afterwards, mounted anew, what it made
is checked by itself, and the two sides and our layers under the kernel's overlayfs must show one tree.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import lmdb
import pytest

from tests.realwork.sides import Sides
from tests.support import acl, requirements, tree
from tests.support.mounts import Mounts

pytestmark = [
    *(pytest.mark.root, pytest.mark.fuse, pytest.mark.overlayfs, pytest.mark.realwork, pytest.mark.slow), pytest.mark.timeout(180),
]

_OLD = 1_500_000_000
_SECONDS = 100


@dataclass(frozen=True)
class Places:
    """`top`: what the program works on, in the mount or, in prepare, in the lower. `given` is outside and the same for both sides;
    `own` is outside and a side's own."""

    top: Path
    given: Path
    own: Path


@dataclass(frozen=True)
class Program:
    """prepare(places) fills the lower and what is given; work(places) runs the program; check(places) looks at it after a remount."""

    prepare: Callable[[Places], None]
    work: Callable[[Places], None]
    check: Callable[[Places], None]


def do(*command: str | Path, cwd: Path | None = None) -> str:
    """Run to a good end; what it printed."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace", timeout=_SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout[-3000:]}"
    return done.stdout


def same(one: Path, other: Path) -> None:
    """One and the same tree; the link counts show which names are one file."""
    assert tree.difference(tree.snapshot(one), tree.snapshot(other), (str(one), str(other))) == ""


# ---- a tree with everything that a copy may lose ----

def furnish(top: Path, seed: int = 1) -> None:
    """200 files in 20 directories, with hard links across them, ACLs, attributes, holes, owners, devices and old times."""
    numbers = random.Random(seed)
    top.mkdir()
    for number in range(20):
        (top / f"directory{number}").mkdir()
    for number in range(200):
        file = top / f"directory{number % 20}" / f"file {number}"
        file.write_bytes(numbers.randbytes(numbers.choice((0, 100, 5000, 40_000))))
        os.chown(file, *numbers.choice(((0, 0), (1000, 1000), (33, 42))))
        file.chmod(numbers.choice((0o644, 0o600, 0o755, 0o4755, 0o2711, 0o444)))
        if number % 7 == 0:
            os.setxattr(file, "user.comment", b"value %d" % number)
        if number % 11 == 0:
            os.setxattr(file, acl.ACCESS, acl.encode(6, 4, 4, users={1000: 7}, mask=7))
        if number % 13 == 0:
            os.link(file, top / f"directory{(number + 3) % 20}" / f"link {number}")
    _oddities(top)
    for parent, directories, files in os.walk(os.fsencode(top), topdown=False):
        for name in (*directories, *files):
            os.utime(os.path.join(parent, name), (_OLD, _OLD + seed), follow_symlinks=False)
    os.utime(top, (_OLD, _OLD))


def _oddities(top: Path) -> None:
    with (top / "sparse").open("wb") as file:
        for offset in (0, 3_000_000, 7_999_000):
            file.seek(offset)
            file.write(b"data" * 100)
    os.symlink("directory1/file 1", top / "symlink")
    os.symlink("nowhere", top / "dangling")
    os.mkfifo(top / "fifo")
    os.mknod(top / "device", 0o020_660, os.makedev(1, 3))
    os.setxattr(top / "directory2", acl.DEFAULT, acl.encode(7, 5, 5, users={1000: 7}, mask=7))
    os.setxattr(top / "directory3", "trusted.mine", b"x")
    (top / os.fsdecode(b"\xff\xfe\nname")).write_text("odd")
    (top / "empty directory").mkdir(mode=0o1777)


def furnish_twice(places: Places) -> None:
    furnish(places.top / "tree")
    furnish(places.given / "tree", seed=2)
    shutil.rmtree(places.given / "tree" / "directory5")


def rsync(places: Places) -> None:
    """Out of the mount, then another tree into it, over what the lower has."""
    do("rsync", "-aHAX", f"{places.top}/tree/", f"{places.own}/out/")
    same(places.own / "out", places.top / "tree")
    do("rsync", "-aHAX", "--delete", f"{places.given}/tree/", f"{places.top}/tree/")


def copy(places: Places) -> None:
    for target in (places.top / "copy", places.own / "copy"):
        do("cp", "-a", "--reflink=auto", "--sparse=always", places.top / "tree", target)
        assert (target / "sparse").stat().st_blocks * 512 < 1_000_000, "no holes were made"


def _unpacked(places: Places) -> tuple[Path, Path]:
    return places.top / "unpacked", places.own / "unpacked"


def tar_check(places: Places) -> None:
    for target in _unpacked(places):
        same(target / "tree", places.top / "tree")


_TAR = ("tar", "--acls", "--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner")


def tar(places: Places) -> None:
    do(*_TAR, "-cf", places.own / "made.tar", "-C", places.top, "tree")
    for target in _unpacked(places):
        target.mkdir()
        do(*_TAR, "-xpf", places.own / "made.tar", "-C", target)
        assert (target / "tree" / "sparse").stat().st_blocks * 512 < 1_000_000, "no holes were made"


# ---- package managers that move what they replace ----

def npm_install(top: Path, given: Path, *packages: str) -> None:
    """Into `top`; what was downloaded once is kept in `given`."""
    do("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-update-notifier", "--prefer-offline",
       "--cache", given / "npm", *packages, cwd=top)


def npm_prepare(places: Places) -> None:
    for number, version in enumerate(("7.6.0", "7.5.1")):
        project = places.given / f"try{number}" if number == 0 else places.top
        project.mkdir(exist_ok=True)
        (project / "package.json").write_text('{"name": "project", "version": "1.0.0", "private": true}\n')
        npm_install(project, places.given, f"semver@{version}")


def npm_work(places: Places) -> None:
    npm_install(places.top, places.given, "semver@7.6.0")
    do("mv", "-T", places.top / "node_modules" / "yallist", places.top / "node_modules" / "aside")
    os.rename(places.top / "node_modules" / "aside", places.top / "node_modules" / "yallist")


def npm_check(places: Places) -> None:
    assert do("node", "-e", "console.log(require('semver/package.json').version, require('semver').gt('1.2.4', '1.2.3'))",
              cwd=places.top) == "7.6.0 true\n"


def pip_install(top: Path, given: Path, *packages: str) -> None:
    do(top / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--only-binary=:all:",
       "--cache-dir", given / "pip", *packages)


def pip_prepare(places: Places) -> None:
    do(sys.executable, "-m", "venv", "--symlinks", places.top / "venv")
    pip_install(places.top, places.given, "idna==3.6", "packaging==23.2")


def pip_work(places: Places) -> None:
    """Put newer ones in place of what the lower has."""
    pip_install(places.top, places.given, "idna==3.7", "packaging==24.0")


def pip_check(places: Places) -> None:
    script = "import idna, packaging; print(idna.__version__, packaging.__version__, idna.encode('ö.example').decode())"
    assert do(places.top / "venv" / "bin" / "python", "-c", script) == "3.7 24.0 xn--nda.example\n"


# ---- databases of more than 90 MB, rewritten at random ----

_ROWS, _CHANGES = 25_000, 3_000
Rows = dict[int, bytes]


@functools.cache
def _first_rows() -> Rows:
    numbers = random.Random(1)
    return {key: numbers.randbytes(3900) for key in range(_ROWS)}


def _changes() -> Iterator[list[tuple[int, bytes | None]]]:
    """60 transactions of changes: (key, new value, None to delete it)."""
    numbers = random.Random(2)
    for _ in range(60):
        yield [(numbers.randrange(_ROWS + 1000), None if numbers.random() < 0.1 else numbers.randbytes(numbers.randrange(1, 9000)))
               for _ in range(_CHANGES // 60)]


@functools.cache
def _last_digest() -> str:
    rows = dict(_first_rows())
    for transaction in _changes():
        for key, value in transaction:
            rows.pop(key, None)
            if value is not None:
                rows[key] = value
    return _digest(sorted(rows.items()))


def _digest(rows: list[tuple[int, bytes]]) -> str:
    digest = hashlib.sha256()
    for key, value in rows:
        digest.update(b"%d %d " % (key, len(value)) + value)
    return digest.hexdigest()


def sqlite_prepare(places: Places) -> None:
    database = sqlite3.connect(places.top / "data.db", isolation_level=None)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("CREATE TABLE rows (key INTEGER PRIMARY KEY, value BLOB)")
    database.execute("BEGIN")
    database.executemany("INSERT INTO rows VALUES (?, ?)", _first_rows().items())
    database.execute("COMMIT")
    database.close()
    assert (places.top / "data.db").stat().st_size > 90 * 10**6


def sqlite_work(places: Places) -> None:
    """Half with a rollback journal, half with a write-ahead log, reading through a mapping."""
    database = sqlite3.connect(places.top / "data.db", isolation_level=None)
    database.execute("PRAGMA mmap_size = 268435456")
    for number, transaction in enumerate(_changes()):
        if number in (0, 30):
            database.execute(f"PRAGMA journal_mode = {'WAL' if number else 'DELETE'}")
        database.execute("BEGIN IMMEDIATE")
        for key, value in transaction:
            if value is None:
                database.execute("DELETE FROM rows WHERE key = ?", (key,))
            else:
                database.execute("INSERT OR REPLACE INTO rows VALUES (?, ?)", (key, value))
        database.execute("COMMIT")
    database.close()


def sqlite_check(places: Places) -> None:
    database = sqlite3.connect(places.top / "data.db")
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert _digest(database.execute("SELECT key, value FROM rows ORDER BY key").fetchall()) == _last_digest()
    database.close()


def _lmdb(places: Places, **how: bool) -> lmdb.Environment:
    return lmdb.open(str(places.top / "lmdb"), map_size=400 << 20, **how)


def lmdb_prepare(places: Places) -> None:
    with _lmdb(places, sync=False) as environment, environment.begin(write=True) as transaction:
        for key, value in _first_rows().items():
            transaction.put(b"%08d" % key, value, append=True)
        environment.sync(True)
    assert (places.top / "lmdb" / "data.mdb").stat().st_size > 90 * 10**6


def lmdb_work(places: Places) -> None:
    """Half by writes to the file, half through a writable mapping of it."""
    transactions = list(_changes())
    for writable, some in ((False, transactions[:30]), (True, transactions[30:])):
        with _lmdb(places, writemap=writable, metasync=False) as environment:
            for changes in some:
                with environment.begin(write=True) as transaction:
                    for key, value in changes:
                        name = b"%08d" % key
                        if value is None:
                            transaction.delete(name)
                        else:
                            transaction.put(name, value)


def lmdb_check(places: Places) -> None:
    with _lmdb(places, readonly=True, lock=False) as environment, environment.begin() as transaction:
        rows = [(int(key), bytes(value)) for key, value in transaction.cursor()]
    assert _digest(rows) == _last_digest()


# ---- the programs ----

PROGRAMS = {
    "rsync": Program(furnish_twice, rsync, lambda places: same(places.top / "tree", places.given / "tree")),
    "cp": Program(lambda places: furnish(places.top / "tree"), copy, lambda places: same(places.top / "copy", places.own / "copy")),
    "tar": Program(lambda places: furnish(places.top / "tree"), tar, tar_check),
    "npm": Program(npm_prepare, npm_work, npm_check),
    "pip": Program(pip_prepare, pip_work, pip_check),
    "sqlite": Program(sqlite_prepare, sqlite_work, sqlite_check),
    "lmdb": Program(lmdb_prepare, lmdb_work, lmdb_check),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.network] if name in ("npm", "pip") else []) for name in PROGRAMS])
def test_a_program_leaves_what_it_should_and_the_same_as_on_the_kernels_overlayfs(name: str, scratch: Path, mounts: Mounts) -> None:
    reason = requirements.missing_for_fuse() or requirements.missing_for_overlayfs()
    if reason:
        pytest.skip(reason)
    program = PROGRAMS[name]
    lower, given = scratch / "lower", scratch / "given"
    (lower / "top").mkdir(parents=True)
    given.mkdir()
    program.prepare(Places(lower / "top", given, scratch))
    before = tree.fingerprint(lower)
    sides = Sides(scratch, mounts, (lower,))
    for kind in ("kernel", "ours"):
        (scratch / f"own-{kind}").mkdir()
        for step in (program.work, program.check):
            mount = sides.mount(kind)
            step(Places(mount.target / "top", given, scratch / f"own-{kind}"))
            assert mount.unmount() == []
    assert sides.differences(()) == ""
    assert tree.fingerprint(lower) == before
    sides.discard()
