"""Fixtures of the tests of the commands; a module whose tests want more overrides them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.program import Place, make_layers, place
from tests.support.mounts import Layers


@pytest.fixture
def layers(scratch: Path) -> Layers:
    """One lower, an upper and its work directory."""
    return make_layers(scratch)


@pytest.fixture
def mnt(scratch: Path) -> Iterator[Place]:
    """A directory to mount on."""
    with place(scratch) as found:
        yield found
