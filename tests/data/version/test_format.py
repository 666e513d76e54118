"""What preparing makes of a fixed corpus, and PREPARE_FORMAT, change together or not at all.

A version is found again by a key that holds PREPARE_FORMAT. If what is made changes and the constant does not, old versions
are taken for new ones. Where a change is meant: raise PREPARE_FORMAT in data/version/builder.py, then write the new
digests with `python -m tests.data.version.test_format`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import byte_tokenizer
from tests.made import build, recipe
from tuneloop.base.records import Record
from tuneloop.data.ledger import entries
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.tokens.templates import CHATML
from tuneloop.data.version.builder import PREPARE_FORMAT
from tuneloop.data.version.dataset import Dataset

CASES = Path(__file__).parents[2] / "cases" / "data"
PACKAGED = Path(__file__).parents[3] / "tuneloop" / "recipes" / "data"
RECORDED = Path(__file__).with_name("format.json")
CHATS = ("braces.jsonl", "dedupe_case.jsonl", "formfeed.jsonl", "gbk_as_latin1.jsonl", "int_answer.jsonl", "list_answer.jsonl",
         "long_dialogues.jsonl", "merge_weight.jsonl", "toolcall.jsonl")  # fmt: skip
CORPUS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "chat": ([CASES / name for name in CHATS], {"validation": 0.2}),
    "cut": ([CASES / "long_dialogues.jsonl"], {"max_length": 300, "too_long": "turns", "validation": 0.25}),
    "split": ([CASES / "code.txt"], {"max_length": 64, "overlap": 16, "too_long": "split", "validation": 0}),
    "label": ([CASES / "headerless_zh.csv", CASES / "sep.csv", CASES / "open_quote_small.csv"], {"validation": 0.1, "test": 0.1}),
    "pairs": ([CASES / "pair.tsv"], {"validation": 0.2}),
    "packaged": ([PACKAGED / "persona_zh.jsonl", PACKAGED / "general_en.csv", PACKAGED / "general_zh.json"],
                 {"validation": 0.1, "system": "Be brief."}),
}  # fmt: skip
"""Name -> files and settings; together every kind of row but preferences, and each step of preparing."""


def encode(records: Any) -> Any:
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>")
    return tokenize(tokenizer, records)


def digest(dataset: Dataset) -> str:
    """Of all records with their sides, tokens and masks, and the ledger without the places of files."""
    whole = hashlib.sha256()

    def add(value: Any) -> None:
        whole.update(
            json.dumps(value, ensure_ascii=False, sort_keys=True, default=str).encode("utf-8", "backslashreplace")
        )

    def facts(record: Record) -> list[Any]:
        return [record.id, [asdict(m) for m in record.messages], record.label, record.line]

    for record, side, repeat in dataset.rows():
        add([*facts(record), side, repeat])
    for side in ("train", "validation", "test"):
        samples = dataset.samples(side, "bytes", encode)
        for column in (samples.ids, samples.starts, samples.row, samples.labels):
            whole.update(column.tobytes())
    for entry in entries(dataset.path / "ledger.jsonl"):
        add([Path(str(entry.file)).name, entry.line, entry.action, entry.step, entry.reason])
    return whole.hexdigest()[:16]


def made(name: str, workspace: Path) -> str:
    files, settings = CORPUS[name]
    return digest(build(recipe(*files, name=name, **settings), workspace, encode, "bytes"))


@pytest.mark.parametrize("name", CORPUS)
def test_what_is_made_changes_with_the_format_only(name: str, tmp_path: Path) -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert recorded["format"] == PREPARE_FORMAT, (
        "write the digests of the new format: python -m tests.data.version.test_format"
    )
    assert made(name, tmp_path) == recorded["digests"][name], (
        "what is made has changed: raise PREPARE_FORMAT, see above"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        digests = {name: made(name, Path(place)) for name in CORPUS}
    RECORDED.write_text(json.dumps({"format": PREPARE_FORMAT, "digests": digests}, indent=1) + "\n", encoding="utf-8")
