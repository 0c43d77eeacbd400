"""Steps on disk that fail at any place: what is remembered of the layers afterwards is what they say to who looks anew."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.support import tree
from tests.support.chaos import fill, stir
from tests.unit.overlay.world import View, World
from unionfs.linux import files, xattrs
from unionfs.overlay import stack
from unionfs.overlay.features import Redirect

#: What changes a layer and may meet a full disk.
STEPS: tuple[tuple[Any, str], ...] = (
    (files, "renameat2"), (files, "copy_data"), (xattrs, "put"), (os, "mknod"), (os, "link"), (os, "mkdir"), (os, "symlink"), (os, "open"),
)
ROUNDS = 40


class Fault:
    """Fails one of the ``STEPS``: the one after so many others. None: no one."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.after: int | None = None
        self.hits: list[str] = []
        for module, name in STEPS:
            patch.setattr(module, name, self._failing(name, getattr(module, name)))

    def _failing(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            only_looks = name == "open" and not args[1] & os.O_CREAT
            if self.after is not None and not only_looks:
                self.after -= 1
                if self.after < 0:
                    self.after = None
                    self.hits.append(name)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return step(*args, **kwargs)

        return run


def shown(view: View) -> tree.Snapshot:
    """Without what a change that failed may leave: a newer time, and a link count after a copy-up (it breaks the link)."""
    return {path: replace(entry, mtime="", nlink=None) for path, entry in view.snapshot().items()}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("features", "devices"), [
    ({"metacopy": True, "index": True}, True),
    ({"redirect": Redirect.FOLLOW}, True),
    ({"userxattr": True, "copy_limit": 1 << 20}, True),
    ({"whfiles": True}, False),
], ids=["all", "no redirects", "copied whole", "whiteout files"])
def test_what_is_remembered_after_a_failure_is_what_is_there(
        root: None, world: World, monkeypatch: pytest.MonkeyPatch, features: dict[str, Any], devices: bool, seed: int) -> None:
    rng = random.Random(seed)
    for lower in world.lowers:
        fill(lower, rng)
    monkeypatch.setattr(stack, "can_make_devices", lambda fd: devices)
    view = world.open(**features)
    fault = Fault(monkeypatch)
    for number in range(ROUNDS):
        fault.after = rng.randrange(7)
        stir(view, rng, steps=4)
        fault.after = None
        live = shown(view)
        view.forget()
        world.close(view)
        assert os.listdir(world.building) == []
        view = world.open(**features)
        assert tree.difference(live, shown(view), ("remembered", "there")) == "", f"round {number}, failed: {fault.hits[-1:]}"
    assert fault.hits
