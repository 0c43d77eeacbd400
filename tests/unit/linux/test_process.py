"""What a process may do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.users import as_user, in_child
from unionfs.linux import namespaces
from unionfs.linux.process import may_use_trusted_xattrs


@pytest.mark.root
@pytest.mark.skipif(not may_use_trusted_xattrs(), reason="needs root: it is asked of root as well as of others")
def test_trusted_attributes_are_for_root_outside_of_user_namespaces(scratch: Path) -> None:
    os.setxattr(scratch, "trusted.x", b"")
    assert not as_user(may_use_trusted_xattrs)

    def in_namespace() -> bool:
        namespaces.unshare(["user"])
        return may_use_trusted_xattrs()

    assert not in_child(in_namespace)
