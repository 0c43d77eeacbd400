"""Our mount and the kernel's overlayfs must answer alike.

A failure prints the seed that leads to it at once: UNIONFS_DIFF_SEED=N UNIONFS_DIFF_ROUNDS=1. More rounds make a
longer run. UNIONFS_DIFF_SUBJECT names another filesystem to hold against the kernel's: kernel (which agrees with
itself) or fuse-overlayfs (which shows what the comparison can find).
"""

from __future__ import annotations

import os
import secrets

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.diff import machine
from tests.diff.layers import stacks
from tests.diff.steps import sequences
from tests.support.mounts import Mounts

SUBJECT = os.environ.get("UNIONFS_DIFF_SUBJECT", "ours")
SEED = int(os.environ.get("UNIONFS_DIFF_SEED") or secrets.randbits(32))
ROUNDS = int(os.environ.get("UNIONFS_DIFF_ROUNDS", "48"))
STEPS = 50
FEWEST_OPERATIONS = ROUNDS * 42  # with 48 rounds 2,000


def one_round(number: int, mounts: Mounts, counters: machine.Counters) -> None:
    """One random run: hypothesis's first example is always empty, its later ones mostly vary the second."""

    @seed(number)
    @settings(max_examples=2, deadline=None, database=None, print_blob=False, report_multiple_bugs=False,
              suppress_health_check=list(HealthCheck))
    @given(st.data())
    def compare(data: st.DataObject) -> None:
        stack = data.draw(stacks, label="layers")
        steps = data.draw(sequences(stack, STEPS), label="steps")
        if steps:
            machine.run(SUBJECT, stack, steps, mounts.scratch, counters)

    try:
        compare()
    except BaseException as error:
        error.add_note(f"repeat with UNIONFS_DIFF_SEED={number} UNIONFS_DIFF_ROUNDS=1")
        raise


@pytest.mark.timeout(900)  # a failure takes minutes to shrink; a run that agrees takes less than three
def test_random_operations_on_random_layers_have_the_same_effect_as_on_the_kernels_overlayfs(mounts: Mounts) -> None:
    counters = machine.Counters()
    print(f"first seed {SEED}, {ROUNDS} rounds")
    for number in range(SEED, SEED + ROUNDS):
        one_round(number, mounts, counters)
    print(counters)
    assert counters.operations >= FEWEST_OPERATIONS
