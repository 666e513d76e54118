"""Entries, counts, the file, and the sum that must come out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tuneloop.data
from tuneloop.data.ledger import Ledger, words
from tuneloop.errors import DataError
from tuneloop.records import LedgerEntry


def entry(action: str, step: str, reason: str, line: int = 1, detail: str = "") -> LedgerEntry:
    return LedgerEntry(action, step, reason, "数据.json", line, "", detail)  # type: ignore[arg-type]


def test_counts_by_step_and_reason() -> None:
    ledger = Ledger([entry("dropped", "a", "x"), entry("changed", "b", "y")])
    ledger.add(entry("dropped", "a", "x", 2), entry("dropped", "a", "z", 3))
    assert ledger.counts() == [
        {"step": "a", "reason": "x", "dropped": 2, "changed": 0},
        {"step": "b", "reason": "y", "dropped": 0, "changed": 1},
        {"step": "a", "reason": "z", "dropped": 1, "changed": 0},
    ]
    assert (ledger.dropped, ledger.changed) == (3, 1)


def test_written_and_read_back(tmp_path: Path) -> None:
    ledger = Ledger([entry("dropped", "a", "x", 3, 'quote " newline \n 中文 \u2028'), entry("changed", "b", "y")])
    ledger.write(tmp_path / "ledger.jsonl")
    assert Ledger.read(tmp_path / "ledger.jsonl").entries == ledger.entries
    assert "数据.json" in (tmp_path / "ledger.jsonl").read_text(encoding="utf-8")


def test_a_lone_surrogate_does_not_stop_the_ledger(tmp_path: Path) -> None:
    Ledger([entry("dropped", "a", "x", detail="\udcff")]).write(tmp_path / "l")
    assert Ledger.read(tmp_path / "l").entries[0].detail == "\udcff"


def test_balance() -> None:
    ledger = Ledger([entry("dropped", "a", "x"), entry("changed", "b", "y")])
    ledger.balance(5, 4)
    for rows_in, rows_out in ((5, 5), (5, 3), (4, 4)):
        with pytest.raises(DataError) as caught:
            ledger.balance(rows_in, rows_out)
        assert caught.value.code == "TL-DATA-BALANCE"


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"action": "dropped", "surprise": 1}'])
def test_a_file_that_is_no_ledger(tmp_path: Path, content: str) -> None:
    (tmp_path / "l").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        Ledger.read(tmp_path / "l")
    assert caught.value.code == "TL-DATA-DAMAGED"


def test_every_reason_in_the_code_has_words() -> None:
    """The phrases stand where rows are dropped or changed; each must be in `words()`, and none there be left over."""
    folder = Path(str(tuneloop.data.__file__)).parent
    code = "".join((folder / f"{n}.py").read_text("utf-8") for n in ("shapes", "formats", "clean", "dedupe", "dataset"))
    given = re.findall(r'(?:BadRow|Flaw|_as_list|_decoded)\((?:[^"\n]*, )?"([^"]+)"', code)
    given += re.findall(r'"(?:dropped|changed)", "\w+", "([^"]+)"', code)
    given += re.findall(
        r'_(?:dropped|changed)\(record, (?:\w+(?:\(\w+\))?, |record\.messages\[[^]]*\], )?"\w+", "([^"]+)"', code
    )
    for reason in given:
        assert reason in words(), reason
    for reason in words():
        assert f'"{reason}"' in code, reason
