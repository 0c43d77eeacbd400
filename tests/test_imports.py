"""Who may import whom: the arrows between the packages point down only.

The modules are parsed, not imported, so that an import inside a function counts like any other.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each part of the package and the parts it may import besides itself; a part not named here may not exist.
# "unionfs" is the package's own __init__, which holds the version.
ARROWS: dict[str, set[str]] = {
    "unionfs": set(),
    "errors": set(),
    "options": {"errors"},
    "linux": {"errors"},
    "state": {"errors", "options", "linux"},
    "overlay": {"errors", "linux"},
    "engines": {"errors", "options", "overlay"},
    "kernel": {"errors", "options", "engines", "linux", "overlay"},
    "fuse": {"errors", "linux", "overlay"},
    "oci": {"errors"},
    "registry": {"errors", "oci"},
    "layer": {"errors", "linux", "overlay", "oci"},
    "store": {"errors", "linux", "overlay", "oci", "layer"},
    "runtime": {"unionfs", "errors", "options", "engines", "kernel", "state", "linux", "overlay", "fuse", "oci", "layer", "store"},
    "cli": {
        "unionfs", "errors", "options", "engines", "kernel", "state", "linux", "overlay", "fuse", "oci", "registry", "layer",
        "store", "runtime",
    },
    "__main__": {"cli"},
}

# Modules of other projects, and of the standard library where it matters, and the only parts that may import them.
ONLY_IN: dict[str, set[str]] = {
    "pyfuse3": {"fuse"},
    "ctypes": {"linux"},
    "trio": {"fuse", "registry", "runtime"},
    "click": {"cli"},
    "xattr": {"cli"},
}

# Pure: no system call, so that they can be tested with values alone. A name ending in a dot is a whole part.
PURE = (
    "errors", "options", "engines", "overlay.acl", "overlay.whiteout", "overlay.features", "overlay.merge", "overlay.node",
    "overlay.owners", "overlay.protection", "fuse.protocol", "oci.", "runtime.plan",
)
IMPURE_MODULES = {
    "asyncio", "ctypes", "fcntl", "io", "logging", "mmap", "multiprocessing", "pathlib", "pyfuse3", "resource",
    "select", "shutil", "signal", "socket", "subprocess", "syslog", "tempfile", "threading", "time", "trio", "xattr",
}
# What of os only computes.
PURE_OS = {
    "fsencode", "fsdecode", "fspath", "strerror", "makedev", "major", "minor", "path", "stat_result", "sep", "PathLike",
}
PURE_OS_PATH = {"join", "split", "basename", "dirname", "normpath", "isabs", "commonpath", "commonprefix"}

TOP_LEVEL = {
    ".ci", ".gitignore", "LICENSE", "Makefile", "README.md", "bench", "docs", "pyproject.toml", "requirements",
    "scripts", "setup.cfg", "tests", "unionfs",
}


@dataclass(frozen=True)
class Module:
    """A module of the package; its name is relative to the package: "overlay.merge", "errors"."""

    name: str
    tree: ast.Module
    is_package: bool = False

    @property
    def part(self) -> str:
        return self.name.split(".")[0]

    @property
    def is_pure(self) -> bool:
        return any(self.name == pure or (pure.endswith(".") and f"{self.name}.".startswith(pure)) for pure in PURE)


def modules() -> Iterator[Module]:
    package = ROOT / "unionfs"
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts) or "unionfs"
        yield Module(name, ast.parse(path.read_bytes(), str(path)), is_package)


def imported(module: Module, *, for_types: bool = True) -> Iterator[str]:
    """The absolute name of everything a module imports; `from a import b` gives "a.b".

    Without `for_types`, what is imported under `if TYPE_CHECKING:` is left out.
    """
    left_out: set[ast.AST] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            left_out.update(node.body)
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                own = ["unionfs", *module.name.split(".")] if module.name != "unionfs" else ["unionfs"]
                package = own if module.is_package else own[:-1]
                kept = package[: len(package) - node.level + 1]
                base = ".".join([*kept, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def ours(name: str) -> str | None:
    """The part of the package that an absolute name belongs to; None for another project's."""
    first, *rest = name.split(".")
    if first != "unionfs":
        return None
    return rest[0] if rest and rest[0] in ARROWS else "unionfs"


def wrong_arrows(module: Module) -> list[str]:
    wrong = []
    for name in imported(module):
        part, outside = ours(name), name.split(".")[0]
        if part is not None and part != module.part and part not in ARROWS[module.part]:
            wrong.append(f"{module.name} imports {name}")
        if part is None and module.part not in ONLY_IN.get(outside, {module.part}):
            wrong.append(f"{module.name} imports {name}")
    return wrong


def impurities(module: Module) -> list[str]:
    """What a pure module does that is not pure; of ours it may import only pure ones, but may name any type."""
    found = []
    for name in imported(module, for_types=False):
        if name.split(".")[0] in IMPURE_MODULES:
            found.append(f"{module.name} imports {name}")
        if name.startswith("os.") and name.split(".")[1] not in PURE_OS:
            found.append(f"{module.name} imports {name}")
        if ours(name) is not None and not is_pure_name(name.removeprefix("unionfs.")):
            found.append(f"{module.name} imports {name}")
    for node in ast.walk(module.tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=attribute):
                if attribute not in PURE_OS and not attribute.startswith(("O_", "SEEK_")):
                    found.append(f"{module.name} uses os.{attribute}")
            case ast.Attribute(value=ast.Attribute(value=ast.Name(id="os"), attr="path"), attr=attribute):
                if attribute not in PURE_OS_PATH:
                    found.append(f"{module.name} uses os.path.{attribute}")
            case ast.Call(func=ast.Name(id="open")):
                found.append(f"{module.name} calls open()")
    return found


def is_pure_name(name: str) -> bool:
    """`name` is a pure module or something in one: "errors", "errors.LayerError", "overlay.merge.Entry"."""
    return any(name == pure.rstrip(".") or name.startswith(pure.rstrip(".") + ".") for pure in PURE)


def module_of(name: str, source: str) -> Module:
    return Module(name, ast.parse(source))


def test_every_part_of_the_package_has_its_place_in_the_arrows() -> None:
    assert {module.part for module in modules()} <= set(ARROWS)


@pytest.mark.parametrize("part", ARROWS)
def test_the_arrows_themselves_make_no_circle(part: str) -> None:
    seen: set[str] = set()
    todo = set(ARROWS[part])
    while todo:
        seen |= todo
        todo = set().union(*(ARROWS[below] for below in todo)) - seen
    assert part not in seen


def test_imports_point_down_only() -> None:
    assert [wrong for module in modules() for wrong in wrong_arrows(module)] == []


def test_pure_modules_make_no_system_call() -> None:
    assert [wrong for module in modules() if module.is_pure for wrong in impurities(module)] == []


def test_the_repository_has_no_stray_entries_at_its_top() -> None:
    # safe.directory: the checkout may belong to another user than the one who runs the tests.
    command = ["git", "-c", "safe.directory=*", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    top = {name.split("/")[0] for name in listed.decode().split("\0") if name}
    assert "setup.cfg" in top
    assert top <= TOP_LEVEL


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("errors", "from unionfs.linux import libc"),
        ("linux.files", "import unionfs.overlay.layer"),
        ("overlay.layer", "from unionfs import options"),
        ("overlay.layer", "def f():\n    from unionfs.fuse import attrs"),
        ("overlay.layer", "from ..fuse import attrs"),
        ("overlay.layer", "from .. import fuse"),
        ("overlay.union", "import pyfuse3"),
        ("overlay.union", "import trio.lowlevel"),
        ("overlay.union", "from ctypes import CDLL"),
        ("overlay.layer", "if TYPE_CHECKING:\n    from unionfs.fuse import attrs"),
        ("fuse.session", "from unionfs.state import register"),
        ("state", "import click"),
    ],
)
def test_an_arrow_that_points_up_is_found(name: str, source: str) -> None:
    assert len(wrong_arrows(module_of(name, source))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("overlay.layer", "from unionfs.linux import files"),
        ("overlay.layer", "from . import merge"),
        ("overlay.layer", "from .merge import Entry"),
        ("fuse.ops", "import pyfuse3"),
        ("cli.mount", "from unionfs import __version__"),
    ],
)
def test_an_arrow_that_points_down_is_allowed(name: str, source: str) -> None:
    assert wrong_arrows(module_of(name, source)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import socket",
        "from os import stat",
        "import os\nos.stat('x')",
        "import os\nos.path.exists('x')",
        "open('x')",
        "from unionfs.overlay.layer import Layer",
        "from unionfs.linux import files",
    ],
)
def test_a_system_call_in_a_pure_module_is_found(source: str) -> None:
    assert len(impurities(module_of("overlay.merge", source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.fsdecode(b'x')",
        "import os\nx: os.stat_result",
        "import os\nos.path.join('a', 'b')",
        "import errno, stat, struct",
        "from unionfs.errors import UnionfsError",
        "if TYPE_CHECKING:\n    from unionfs.overlay.layer import Layer",
        "from unionfs.overlay.whiteout import OPAQUE",
    ],
)
def test_computing_in_a_pure_module_is_allowed(source: str) -> None:
    assert impurities(module_of("overlay.merge", source)) == []
