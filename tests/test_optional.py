from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tuneloop.errors import MachineError
from tuneloop.optional import need


def test_what_is_there_is_imported() -> None:
    import json.decoder

    assert need("json.decoder", extra="serve") is json.decoder


def test_what_is_missing_names_the_extra() -> None:
    with pytest.raises(MachineError) as caught:
        need("no_such_package", extra="qlora")
    assert caught.value.code == "TL-MACHINE-EXTRA"
    assert "no_such_package" in str(caught.value)
    assert "tuneloop[qlora]" in caught.value.do


def test_a_package_that_is_there_and_breaks_is_told_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_there.py").write_text("import no_such_package\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MachineError) as caught:
        need("half_there", extra="serve")
    assert "no_such_package" in str(caught.value.facts["error"])
    assert "half_there" not in sys.modules
