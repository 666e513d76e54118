"""The rows that every way is trained on, from the sample data: always the same, in the same order."""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def data() -> Path:
    """The sample data: TUNELOOP_BENCH_DATA, by default ../shared/data."""
    return Path(os.environ.get("TUNELOOP_BENCH_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def _shuffled(name: str) -> list[Row]:
    rows: list[Row] = json.loads((data() / "llamafactory" / name).read_text(encoding="utf-8"))
    random.Random(0).shuffle(rows)
    return rows


def alpaca(count: int, held: int = 50) -> tuple[list[Row], list[Row]]:
    """Questions and answers as {"prompt", "completion"}: the first `count` to train, the last `held` to measure."""
    raw = _shuffled("alpaca_en_demo.json")
    if count > len(raw) - held:
        raise ValueError(f"{count} rows are asked for, {len(raw) - held} are there")
    every = [
        {"prompt": "\n".join(filter(None, (r["instruction"], r["input"]))), "completion": r["output"]} for r in raw
    ]
    return every[:count], every[-held:]


def pairs(count: int, held: int = 10, longest: int = 3000) -> tuple[list[Row], list[Row]]:
    """Preferences as {"prompt": messages, "chosen", "rejected"}, short enough that no tool cuts them.

    `longest` counts characters of the prompt with either answer: in English that stays below 1,024 tokens.
    """
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    every = []
    for row in _shuffled("dpo_en_demo.json"):
        prompt = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        answers = row["chosen"]["value"], row["rejected"]["value"]
        if sum(len(m["content"]) for m in prompt) + max(map(len, answers)) <= longest:
            every.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    if count > len(every) - held:
        raise ValueError(f"{count} pairs are asked for, {len(every) - held} are there")
    return every[:count], every[-held:]


def reviews(count: int, held: int = 100) -> tuple[list[Row], list[Row]]:
    """Film reviews as {"text", "label"}: of the training file to train, of the test file to measure."""

    def read(name: str, most: int) -> list[Row]:
        with (data() / "imdb" / name).open(encoding="utf-8", newline="") as file:
            rows = [{"text": r["review"], "label": r["sentiment"]} for r in csv.DictReader(file)]
        random.Random(0).shuffle(rows)
        return rows[:most]

    return read("train.csv", count), read("test.csv", held)
