"""Runs that go on from the adapter of another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import encoders
from tests.conftest import TALK
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.base.errors import ModelError
from tuneloop.recipe.recipe import make_recipe
from tuneloop.runs.run import Run

CHATS = [{"prompt": f"{q} {n}", "completion": a} for n in range(4) for q, a in TALK]


def trained(folder: Path, model: Path, rows: list[dict[str, Any]], **train: Any) -> Run:
    settings = {"max_steps": 4, "batch_size": 4, "learning_rate": 5e-3, "lora": {"rank": 2}, **train}
    recipe, _ = make_recipe({
        "name": "on", "model": str(model), "data": str(jsonl(folder / "rows.jsonl", rows)), "train": settings,
        "prepare": {"validation": 4, "max_length": 60}, "evaluate": {"rows": 2, "max_new_tokens": 4},
    })  # fmt: skip
    return pipeline.train(recipe, pipeline.prepare(recipe, workspace=folder), workspace=folder)


def texts(labels: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"text": " ".join([*encoders.WORDS[k % 9 : k % 9 + 4], ["dull", "fine"][k % 2]]), "label": labels[k % 2]}
            for k in range(24)]  # fmt: skip


def test_before_is_what_the_run_began_with(tmp_path: Path, tiny_model: Path) -> None:
    """Else the second run would be praised for what the first one learned."""
    first = trained(tmp_path / "a", tiny_model, CHATS)
    one = pipeline.evaluate(first)
    second = trained(tmp_path / "b", tiny_model, CHATS, adapter=str(first.path / "adapter"), learning_rate=1e-6)
    two = pipeline.evaluate(second)
    assert one["after"]["loss"] < one["before"]["loss"] - 0.01
    assert two["before"]["loss"] == pytest.approx(one["after"]["loss"], abs=1e-4)


def test_an_adapter_of_another_task_or_of_other_labels_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    chat = trained(tmp_path / "a", tiny_model, CHATS)
    labels = trained(tmp_path / "b", encoders.folder(tmp_path / "bert", "bert"), texts(("neg", "pos")), task="classify")
    wrong = [
        (tiny_model, texts(("neg", "pos")), {"task": "classify", "adapter": str(chat.path / "adapter")}),
        (tmp_path / "bert", texts(("pos", "so-so")), {"task": "classify", "adapter": str(labels.path / "adapter")}),
    ]
    for k, (model, rows, train) in enumerate(wrong):
        with pytest.raises(ModelError) as caught:
            trained(tmp_path / f"x{k}", model, rows, **train)
        assert (caught.value.code, caught.value.where) == ("TL-MODEL-METHOD", "train.adapter")
    again = trained(tmp_path / "c", tmp_path / "bert", texts(("neg", "pos")), task="classify",
                    adapter=str(labels.path / "adapter"))  # fmt: skip
    assert again.trained_folder() is not None
