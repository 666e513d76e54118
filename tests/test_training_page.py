"""Each recipe of docs/*/training.md trains, on a tiny model and real rows of the kind that its task wants."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tuneloop import pipeline
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.yaml import loads
from tuneloop.selftest import subject
from tuneloop.selftest.training import kind_for

DOCS = Path(__file__).parents[1] / "docs"
ROWS = 12


def recipes() -> list[Any]:
    """(the recipe as it stands, or the Python id of it) for each block of both pages.

    A block of the Chinese page that asks for the very training of an English one, whatever its rows are called, trains
    in the slow tests.
    """
    found: list[Any] = []
    trains: list[Any] = []
    for tongue in ("en", "zh"):
        text = (DOCS / tongue / "training.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for n, block in enumerate(blocks, 1):
            raw = loads(block, tongue)
            asked = {key: value for key, value in raw.items() if key not in {"name", "model", "data"}}
            found.append(pytest.param(raw, id=f"{tongue}-{n}", marks=[pytest.mark.slow] if asked in trains else []))
            trains += [asked] if tongue == "en" else []
    return found


def rows_for(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Rows that fit the recipe, in the place of its data: with its columns and its labels, where it names some."""
    train, data = raw.get("train", {}), raw["data"]
    kind = kind_for(train.get("task", "chat"))
    columns = data.get("columns", {}) if isinstance(data, dict) else {}
    labels = sorted(train.get("classify", {}).get("words", {})) or ["no", "yes"]
    file = folder / "rows.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for n, row in enumerate(subject.rows(kind, ROWS, longest=400)):
            if kind == "label":
                row["label"] = labels[n % 2]
            out.write(json.dumps({columns.get(key, key): value for key, value in row.items()}) + "\n")
    return {"path": str(file), "columns": columns}


@pytest.mark.parametrize("raw", recipes())
def test_a_recipe_of_the_page_trains(raw: dict[str, Any], tiny_model: Path, tiny_run: Path, tmp_path: Path) -> None:
    train = dict(raw["train"])
    train |= {key: str(tiny_run) for key in ("adapter",) if key in train}
    train |= {key: [str(tiny_run)] for key in ("merge",) if key in train}
    if train.get("method") == "qlora":
        pytest.importorskip("bitsandbytes")
    small = {"max_steps": 2, "batch_size": 2, "eval_steps": 1, "sample_answers": min(1, train.get("sample_answers", 0))}
    recipe, _ = make_recipe({
        **raw, "name": "page", "model": str(tiny_model), "data": rows_for(raw, tmp_path),
        "prepare": {**raw.get("prepare", {}), "validation": 3}, "train": {**train, **small},
    })  # fmt: skip
    dataset = pipeline.prepare(recipe, workspace=tmp_path)
    run = pipeline.train(recipe, dataset, workspace=tmp_path)
    assert run.trained_folder() is not None
    losses = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in losses if "loss" in line] == [1, 2]
    assert all(line.get("loss", line.get("eval_loss")) > 0 for line in losses)


def test_the_pages_have_recipes_for_every_task_and_most_methods() -> None:
    for tongue in ("en", "zh"):
        text = (DOCS / tongue / "training.md").read_text(encoding="utf-8")
        assert {"classify", "classify_prompt", "reward", "prefer", "text"} <= set(re.findall(r"task: (\w+)", text))
