"""A tenth of the labels is wrong: the rows that a run lists are most of them, and hardly any other."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.made import jsonl
from tests.real import pulled, shared
from tuneloop import pipeline
from tuneloop.recipe.recipe import make_recipe
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run

MINILM = "all-minilm-l6-v2"
SUBJECTS = {
    "general": ("alpaca_cot_en/strategyqa_train.json", "instruction"),
    "maths": ("alpaca_cot_en/aqua_train.json", "instruction"),
    "medicine": ("huatuo_o1/sft_en.json", "Question"),
    "task": ("llamafactory/alpaca_en_demo.json", "instruction"),
}
"""Label -> the file and column of its questions: which collection a question is from."""
ROWS, WRONG = 400, 40


def questions(seed: int, wrong: int) -> tuple[list[dict[str, str]], set[int]]:
    """ROWS questions with their subjects, and the lines (from 1) of those that got another one's."""
    rng = random.Random(seed)
    every = [
        (row[column], subject)
        for subject, (name, column) in SUBJECTS.items()
        for row in json.loads(shared(name).read_text(encoding="utf-8"))
    ]
    chosen = rng.sample(every, ROWS)
    changed = set(rng.sample(range(ROWS), wrong))
    rows = [
        {"text": text, "label": rng.choice([s for s in SUBJECTS if s != subject]) if n in changed else subject}
        for n, (text, subject) in enumerate(chosen)
    ]
    return rows, {n + 1 for n in changed}


def trained(
    workspace: Path, rows: Sequence[dict[str, str]], seed: int, method: str, rate: float
) -> tuple[Run, set[int]]:
    """A run of three epochs, and the lines of the rows that it trained on."""
    recipe, _ = make_recipe({
        "name": method, "seed": seed, "model": MINILM, "data": {"path": str(jsonl(workspace / "rows.jsonl", rows))},
        "prepare": {"max_length": 64, "too_long": "cut_left", "validation": 0.1},
        "train": {"task": "classify", "method": method, "epochs": 3, "batch_size": 16, "learning_rate": rate,
                  "token_budget": 4096, "save_strategy": "no"},
    })  # fmt: skip
    dataset = pipeline.prepare(recipe, workspace=workspace)
    run = pipeline.train(recipe, dataset, workspace=workspace)
    return run, {record.line for record in dataset.records("train")}


def alerts(run: Run) -> list[str]:
    """The levels of the alerts about rows, in order."""
    events = Journal(run.events).lines()
    return [line["level"] for line in events if line["event"] == "alert" and line["rule"] == "labels"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("seed", "method", "rate"), [(1, "full", 1e-4), (2, "full", 1e-4), (3, "full", 1e-4)])
def test_most_wrong_labels_are_listed_and_most_of_the_list_is_wrong(
    tmp_path: Path, seed: int, method: str, rate: float
) -> None:
    pulled(MINILM)
    rows, changed = questions(seed, WRONG)
    run, lines = trained(tmp_path, rows, seed, method, rate)
    listed = {line["line"] for line in Journal(run.path / "suspicious_rows.jsonl").lines()}
    wrong = changed & lines
    print(f"{method} {seed}: {len(listed & wrong)} of {len(wrong)} wrong rows among {len(listed)} listed")
    assert alerts(run)[-1] == "watch"
    assert len(listed & wrong) >= 0.8 * len(wrong)
    assert len(listed & wrong) >= 0.7 * len(listed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_right_labels_raise_no_alert_above_a_note(tmp_path: Path) -> None:
    pulled(MINILM)
    run, _ = trained(tmp_path, questions(1, 0)[0], 1, "full", 1e-4)
    assert set(alerts(run)) <= {"note"}
