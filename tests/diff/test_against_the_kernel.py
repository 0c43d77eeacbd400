"""Our mount and the kernel's overlayfs must answer alike.

A failure prints the seed that leads to it at once: UNIONFS_DIFF_SEED=N UNIONFS_DIFF_ROUNDS=1. More rounds make a
longer run. UNIONFS_DIFF_SETTING keeps the runs to those settings that have all of its words, as "redirect_dir=on volatile nested";
settings.py says which there are. UNIONFS_DIFF_SUBJECT names the one filesystem to hold against the kernel's: ours, pyfuse3 (our reference
engine), kernel (which agrees with itself) or fuse-overlayfs (which shows what the comparison can find); without it every third round is
the reference engine's.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.diff import machine, operations
from tests.diff.layers import Node, Stack, stacks
from tests.diff.settings import Setting, settings_of
from tests.diff.steps import Step, sequences
from tests.support.mounts import Layers, Mount, Mounts

SUBJECT = os.environ.get("UNIONFS_DIFF_SUBJECT")
SEED = int(os.environ.get("UNIONFS_DIFF_SEED") or secrets.randbits(32))
WORDS = frozenset(os.environ.get("UNIONFS_DIFF_SETTING", "").replace(",", " ").split())
ROUNDS = int(os.environ.get("UNIONFS_DIFF_ROUNDS", "48"))
STEPS = 50
FEWEST_OPERATIONS = ROUNDS * 42  # with 48 rounds 2,000


def subject_of(number: int) -> str:
    """Whom the round with this seed holds against the kernel's overlayfs."""
    return SUBJECT or ("pyfuse3" if number % 3 == 0 else "ours")


def one_round(number: int, mounts: Mounts, counters: machine.Counters) -> None:
    """One random run: hypothesis's first example is always empty, its later ones mostly vary the second."""

    @seed(number)
    @settings(max_examples=2, deadline=None, database=None, print_blob=False, report_multiple_bugs=False,
              suppress_health_check=list(HealthCheck))
    @given(st.data())
    def compare(data: st.DataObject) -> None:
        setting = data.draw(settings_of(WORDS), label="setting")
        stack = data.draw(stacks(setting), label="layers")
        steps = data.draw(sequences(setting, stack, STEPS), label="steps")
        if steps:
            machine.run(subject_of(number), setting, stack, steps, mounts.scratch, counters)

    try:
        compare()
    except BaseException as error:
        error.add_note(f"repeat with UNIONFS_DIFF_SEED={number} UNIONFS_DIFF_ROUNDS=1 UNIONFS_DIFF_SUBJECT={subject_of(number)}")
        raise


@pytest.mark.timeout(900)  # a failure takes minutes to shrink; a run that agrees takes less than three
def test_random_operations_on_random_layers_have_the_same_effect_as_on_the_kernels_overlayfs(mounts: Mounts) -> None:
    counters = machine.Counters()
    print(f"first seed {SEED}, {ROUNDS} rounds")
    for number in range(SEED, SEED + ROUNDS):
        one_round(number, mounts, counters)
    print(counters)
    assert counters.operations >= FEWEST_OPERATIONS


# ---- the comparison itself ----

TWO_LAYERS = Stack(([(b"a", Node("file", data=b"top"))], [(b"a", Node("file", data=b"base")), (b"b", Node("file"))]), [])


def test_the_comparison_notices_layers_in_the_wrong_order(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    def reversed_lowers(self: Mounts, kind: str) -> Callable[..., Mount]:
        def mount(layers: Layers, *, options: str, target: Path | None = None) -> Mount:
            return self.kernel(replace(layers, lowers=layers.lowers[::-1]), target=target, options=options)
        return mount

    monkeypatch.setattr(Mounts, "by_kind", reversed_lowers)
    with pytest.raises(machine.Disagreement, match="b'base'"):
        machine.run("kernel", Setting(), TWO_LAYERS, [Step("read", (b"a",))], mounts.scratch, machine.Counters())
    with pytest.raises(machine.Disagreement, match="content"):
        machine.run("kernel", Setting(), TWO_LAYERS, [], mounts.scratch, machine.Counters())


@pytest.mark.parametrize("step", [Step("chmod", (b"a", 0o600)), Step("unlink", (b"b",)), Step("mkdir", (b"c", 0o755)),
                                  Step("setxattr", (b"a", "user.one", b"x", 0, True)), Step("truncate", (b"a", 1))])
def test_the_comparison_notices_a_verb_that_does_nothing(
        mounts: Mounts, monkeypatch: pytest.MonkeyPatch, step: Step) -> None:
    real = getattr(operations, step.verb)

    def only_on_the_kernel(side: operations.Side, *arguments: object) -> object:
        return real(side, *arguments) if b"/kernel/" in side.root else None

    monkeypatch.setattr(operations, step.verb, only_on_the_kernel)
    with pytest.raises(machine.Disagreement):
        machine.run("kernel", Setting(), TWO_LAYERS, [step], mounts.scratch, machine.Counters())


def test_the_comparison_notices_that_a_lower_was_written(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_below(side: operations.Side, path: bytes) -> None:
        Path(os.fsdecode(side.upper)).parent.joinpath("lower1", "new").write_text("x")

    monkeypatch.setattr(operations, "touch", write_below)
    with pytest.raises(machine.Disagreement):
        machine.run("kernel", Setting(), TWO_LAYERS, [Step("touch", (b"a",))], mounts.scratch, machine.Counters())
