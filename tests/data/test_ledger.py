"""Entries, counts, the file, and the sum that must come out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import tuneloop.data
from tuneloop.base.errors import DataError
from tuneloop.base.records import LedgerEntry
from tuneloop.data.ledger import Ledger, entries, steps, words


def entry(action: str, step: str, reason: str, line: int = 1, detail: str = "") -> LedgerEntry:
    return LedgerEntry(action, step, reason, "数据.json", line, "", detail)  # type: ignore[arg-type]


def test_counts_by_step_and_reason() -> None:
    ledger = Ledger()
    ledger.add(entry("dropped", "a", "x"), entry("changed", "b", "y"), entry("marked", "b", "y"))
    ledger.add(entry("dropped", "a", "x", 2), entry("dropped", "a", "z", 3), entry("added", "a", "z", 3))
    assert ledger.counts() == [
        {"step": "a", "reason": "x", "dropped": 2, "changed": 0, "marked": 0, "added": 0},
        {"step": "b", "reason": "y", "dropped": 0, "changed": 1, "marked": 1, "added": 0},
        {"step": "a", "reason": "z", "dropped": 1, "changed": 0, "marked": 0, "added": 1},
    ]
    assert [ledger.total(a) for a in ("dropped", "changed", "marked", "added")] == [3, 1, 1, 1]


def test_written_and_read_back(tmp_path: Path) -> None:
    told = [entry("dropped", "a", "x", 3, 'quote " newline \n 中文 \u2028 \x85'), entry("changed", "b", "y")]
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.add(*told)
    assert list(entries(tmp_path / "ledger.jsonl")) == told
    text = (tmp_path / "ledger.jsonl").read_bytes()
    assert "数据.json".encode() in text
    assert text.count(b"\n") == 2


def test_a_lone_surrogate_does_not_stop_the_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        ledger.add(entry("dropped", "a", "x", detail="\udcff"))
    assert [e.detail for e in entries(tmp_path / "l")] == ["\udcff"]


def test_an_error_inside_is_not_hidden_by_closing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Ledger(tmp_path / "l") as ledger:
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="closed file"):
        ledger.add(entry("dropped", "a", "x"))


def test_balance() -> None:
    ledger = Ledger()
    ledger.add(entry("dropped", "a", "x"), entry("changed", "b", "y"), entry("marked", "b", "y"))
    ledger.balance(5, 4)
    for rows_in, rows_out in ((5, 5), (5, 3), (4, 4)):
        with pytest.raises(DataError) as caught:
            ledger.balance(rows_in, rows_out)
        assert caught.value.code == "TL-DATA-BALANCE"
    ledger.add(entry("added", "c", "z"))
    ledger.balance(5, 5)
    with pytest.raises(DataError) as caught:
        ledger.balance(5, 4)
    assert all(number in caught.value.what for number in ("5", "4", "1"))


@pytest.mark.parametrize(
    "content", ["{}\n", "[]\n", "not json\n", '{"action": "dropped", "surprise": 1}\n', "3\n", "\xff"]
)
def test_a_file_that_is_no_ledger(tmp_path: Path, content: str) -> None:
    (tmp_path / "l").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        list(entries(tmp_path / "l"))
    assert caught.value.code == "TL-DATA-DAMAGED"


def test_a_ledger_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(entries(tmp_path / "l"))
    assert caught.value.code == "TL-DATA-DAMAGED"


ROOM = [(path.stem, path.read_text("utf-8")) for path in Path(str(tuneloop.data.__file__)).parent.rglob("*.py")]
CODE = "".join(text for name, text in ROOM if name != "ledger")
CALLS = {
    "LedgerEntry": (1, 2), "dropped": (1, 2), "marked": (1, 2), "changed": (2, 3), "judged": (2, 3),
    "BadRow": (None, 0), "Flaw": (None, 0), "_as_list": (None, 1), "_ledger_entry": (None, 1), "ledger_entry": (2, 3),
}  # fmt: skip
"""Function -> which of its arguments are a step and a reason."""


def said() -> tuple[set[str], set[str]]:
    """The steps and the reasons that stand in the code where rows are dropped, changed, marked or added."""
    out: tuple[set[str], set[str]] = set(), set()
    for module, text in ROOM:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                places = CALLS.get(f"{module}.{node.func.id}", CALLS.get(node.func.id, (None, None)))
                for at, found in zip(places, out, strict=True):
                    one = node.args[at] if at is not None and at < len(node.args) else None
                    found |= {one.value} if isinstance(one, ast.Constant) else set()
    return out


def test_every_step_and_reason_in_the_code_has_words() -> None:
    given_steps, reasons = said()
    assert {"dedupe", "split", "system", "read", "pii"} <= given_steps
    assert {"too long", "held out elsewhere", "repeated", "unfilled template", "unknown role", "broken CSV"} <= reasons
    assert not sorted(given_steps - steps().keys())
    assert not sorted(reasons - words().keys())


def test_no_words_are_left_over() -> None:
    sides = {f"cut on the {side}" for side in ("left", "right")}  # put together in lengths.py
    assert 'f"cut on the {how[4:]}"' in CODE
    assert not [reason for reason in words() if f'"{reason}"' not in CODE and reason not in sides]
    assert not [step for step in steps() if f'"{step}"' not in CODE]
