"""No layer, whatever it holds, makes the union crash, leak, write a lower or leave its layers. $UNIONFS_FUZZ_SEEDS: how many are tried."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.support.hostile import Explorer, fill
from tests.support.tree import fingerprint
from tests.unit.overlay.world import World, no_descriptor_left
from unionfs.errors import LayerError
from unionfs.overlay import stack
from unionfs.overlay.features import Redirect

SEEDS = int(os.environ.get("UNIONFS_FUZZ_SEEDS", "24"))


def some_features(rng: random.Random) -> dict[str, object]:
    """Any that go together."""
    userxattr = rng.random() < 0.3
    redirect = rng.choice((Redirect.ON, Redirect.ON, Redirect.FOLLOW, Redirect.NOFOLLOW))
    return {
        "userxattr": userxattr,
        "redirect": Redirect.NOFOLLOW if userxattr else redirect,
        "metacopy": not userxattr and redirect is Redirect.ON and rng.random() < 0.6,
        "index": rng.random() < 0.3,
        "whfiles": rng.random() < 0.5,
        "copy_limit": rng.choice((0, 1 << 20)) if userxattr else 0,
    }


def run_seed(world: World, seed: int) -> dict[int, int]:
    """Fill, look, change, look, open again, look. How often each error was answered."""
    rng = random.Random(seed)
    outside = world.root / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    for layer in (*world.lowers, world.upper):
        fill(layer, rng, os.fsencode(outside))
    before = [fingerprint(path) for path in (*world.lowers, outside)]
    features = some_features(rng)
    data = [world.lowers[-1]] if rng.random() < 0.2 and features["redirect"] is Redirect.ON else []
    answers: dict[int, int] = {}
    for _ in range(2):
        with no_descriptor_left():
            try:
                view = world.open(data=data, **features)  # type: ignore[arg-type]
            except LayerError:  # a root may say that this upper is not to be used
                break
            explorer = Explorer(view, rng)
            explorer.look()
            explorer.change(60)
            explorer.look()
            world.close(view)
            for code, count in explorer.answers.items():
                answers[code] = answers.get(code, 0) + count
    assert [fingerprint(path) for path in (*world.lowers, outside)] == before
    return answers


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("private", [True, False], ids=["clones", "no clones"])
def test_random_marks_and_names(scratch: Path, root: None, block: int, private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not private:
        monkeypatch.setattr(stack, "_clone", lambda _fd, _attrs: None)
    unexpected = {errno.EFAULT, errno.EBADF, errno.ESTALE}
    for seed in range(block, SEEDS, 4):
        where = scratch / f"seed{seed}"
        where.mkdir()
        world = World(where, lowers=1 + seed % 3)
        try:
            answers = run_seed(world, seed)
        except BaseException:
            print(f"seed {seed}")
            raise
        finally:
            world.close_all()
        assert not unexpected & answers.keys(), (seed, answers)
        shutil.rmtree(where)


def test_the_material_reaches_what_it_is_for(scratch: Path, root: None) -> None:
    """A fuzz test whose layers are all refused at the door would test nothing."""
    seen: dict[int, int] = {}
    names: set[bytes] = set()
    for seed in range(20):
        where = scratch / f"seed{seed}"
        where.mkdir()
        world = World(where)
        rng = random.Random(seed)
        for layer in (*world.lowers, world.upper):
            fill(layer, rng, b"/outside")
        view = world.open(whfiles=bool(seed % 2), metacopy=True)
        explorer = Explorer(view, rng)
        explorer.look()
        explorer.change(60)
        explorer.look()
        names.update(explorer.paths)
        for code, count in explorer.answers.items():
            seen[code] = seen.get(code, 0) + count
        world.close_all()
    assert len(names) > 200
    assert {errno.EINVAL, errno.EIO, errno.ENOENT} <= seen.keys()  # redirects and metacopies that are none, whiteouts that are listed
