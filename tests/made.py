"""Small datasets for tests: files of numbered questions, a recipe for them, and a tokenizer of one token a character."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuneloop.base.records import Record
from tuneloop.data.tokens.samples import Sample, Sequences
from tuneloop.data.version import builder
from tuneloop.data.version.dataset import Dataset
from tuneloop.data.version.lengths import Encode
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import Recipe


def characters(records: Sequence[Record]) -> Sequences:
    """One token a character: the code points of all turns."""
    texts = [np.array([ord(c) for m in r.messages for c in m.content], np.int32) for r in records]
    return Sequences.of([Sample(x, np.ones(len(x), bool), r.id, True) for x, r in zip(texts, records, strict=True)])


def build(recipe: Recipe, workspace: Path, encode: Encode = characters, key: str = "characters") -> Dataset:
    return builder.build(recipe, workspace, encode, key)


def lines(folder: Path, count: int, name: str = "chats.jsonl", word: str = "question") -> Path:
    return jsonl(folder / name, ({"question": f"{word} {n}", "answer": f"answer {n}"} for n in range(count)))


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(*data: Path | dict[str, Any], name: str = "demo", seed: int = 42, **prepare: Any) -> Recipe:
    files = [{"path": str(d)} if isinstance(d, Path) else {**d, "path": str(d["path"])} for d in data]
    raw = {"name": name, "seed": seed, "data": files, "prepare": prepare, "train": {"token_budget": 100_000}}
    return make_recipe(raw)[0]
