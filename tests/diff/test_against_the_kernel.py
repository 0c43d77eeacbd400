"""Our mount and the kernel's overlayfs must answer alike.

UNIONFS_DIFF_SUBJECT names another filesystem to compare with the kernel's (kernel, fuse-overlayfs);
UNIONFS_DIFF_SEED repeats a run; UNIONFS_DIFF_EXAMPLES makes it longer.
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
EXAMPLES = int(os.environ.get("UNIONFS_DIFF_EXAMPLES", "60"))
STEPS = 50
FEWEST_OPERATIONS = 2000


@pytest.mark.timeout(900)  # a failure takes minutes to shrink; a run that agrees takes less than three
def test_random_operations_on_random_layers_have_the_same_effect_as_on_the_kernels_overlayfs(
        mounts: Mounts) -> None:
    counters = machine.Counters()

    @seed(SEED)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, print_blob=True, report_multiple_bugs=False,
              suppress_health_check=list(HealthCheck))
    @given(st.data())
    def compare(data: st.DataObject) -> None:
        stack = data.draw(stacks, label="layers")
        steps = data.draw(sequences(stack, STEPS), label="steps")
        machine.run(SUBJECT, stack, steps, mounts.scratch, counters)

    print(f"repeat with UNIONFS_DIFF_SEED={SEED}")
    compare()
    print(counters)
    assert counters.operations >= FEWEST_OPERATIONS
