from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tuneloop.base.errors import MachineError
from tuneloop.base.files import format_bytes
from tuneloop.base.refusals import require_space


def test_enough_room_is_silent_for_a_folder_that_is_yet_to_be(tmp_path: Path) -> None:
    require_space(tmp_path / "a" / "b" / "c", 1)
    assert not (tmp_path / "a").exists()


def test_too_little_room_says_how_much(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught:
        require_space(tmp_path / "new", 10**18)
    assert caught.value.code == "TL-MACHINE-DISK"
    assert caught.value.where == str(tmp_path)
    assert caught.value.facts["needed"] == "1000000000 GB"
    assert "1000000000 GB" in caught.value.what


def test_some_room_is_left_for_the_system(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(MachineError):
        require_space(tmp_path, free)


def test_sizes_are_words() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 999_400, 1_500_000_000, 999_999_999)] == [
        "0 B",
        "999 B",
        "1 kB",
        "999 kB",
        "1.5 GB",
        "1000 MB",
    ]
