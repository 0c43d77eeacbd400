"""Extended attributes: whether the machine has SELinux."""

from __future__ import annotations

import builtins
import io
from typing import Any

import pytest

from unionfs.linux import xattrs


@pytest.mark.parametrize(
    ("filesystems", "found"),
    [(b"\text4\n", False), (b"nodev\tsysfs\nnodev\tselinuxfs\n\text4\n", True), (b"nodev\tnoselinuxfs\n", False), (None, True)],
)
def test_selinux_is_there_when_its_file_system_is_or_nobody_can_tell(
    monkeypatch: pytest.MonkeyPatch, filesystems: bytes | None, found: bool
) -> None:
    def opened(path: str, *_: Any) -> io.BytesIO:
        assert path == "/proc/filesystems"
        if filesystems is None:
            raise FileNotFoundError(path)
        return io.BytesIO(filesystems)

    monkeypatch.setattr(builtins, "open", opened)
    assert xattrs.selinux_is_on() is found
