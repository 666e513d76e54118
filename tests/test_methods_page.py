"""docs/*/methods.md is made from benchmarks/methods.json and is never older than it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import method_runs, methods
from benchmarks.method_words import COLUMNS, METHODS, PAGE
from tuneloop.cli.target import packaged
from tuneloop.recipe.recipe import read_recipe
from tuneloop.recipe.variants import variants

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_what_its_source_says(language: str) -> None:
    """Not one word of it is written by hand, and it names the digest of what it was made from."""
    text = (ROOT / "docs" / language / "methods.md").read_text(encoding="utf-8")
    assert f"methods.json sha256 {methods.digest()}" in text
    assert text == methods.pages()[language], "python -m benchmarks methods"


def test_every_figure_stands_beside_a_command_that_is_a_run() -> None:
    known = {(run.section, run.model, run.method): run for run in method_runs.RUNS}
    for one in method_runs.read()["runs"]:
        run = known[one["section"], one["model"], one["method"]]
        assert one["command"] == method_runs.command(run)
        recipe, _ = read_recipe(packaged()[run.words[0]])
        if run.section == "sentiment":
            assert recipe.train.method == run.method
        else:
            assert "lora" in variants(recipe)


def test_the_pages_change_with_their_source() -> None:
    def run(method: str, right: int, cpu: float) -> dict[str, Any]:
        rows = [[str(k), 1.0, {"accuracy": float(k < right)}] for k in range(100)]
        cost = {"seconds": 9.0, "epochs": 1.0, "tokens": 9, "memory_gb": 1.0, "trained": 5, "parameters": 10}
        return {"section": "sentiment", "model": "M", "method": method, "command": "tuneloop run x", "cpu": cpu,
                "wall": 1.0, "cost": cost, "rows": rows, "probes": [], "forgetting": None}  # fmt: skip

    runs = [run("full", 90, 9.0), run("lora", 89, 5.0), run("freeze", 50, 1.0)]
    content = {"date": "2026-01-01", "machine": {"cpu": "C", "cores": 2, "memory_gb": 8.0}, "runs": runs}
    text = methods.MethodsPage(content, "0", "en").text()
    assert "the best is M full tuning; not separable from it: M LoRA." in text
    assert "least processor time has M LoRA" in text, "of those that are not separable from the best alone"
    assert "| M full tuning | 0.900 [0.8" in text
    assert "| M full tuning → M last two blocks | −0.400 [" in text
    assert "nan" not in text.lower()
    json.dumps(content, allow_nan=False)


def test_all_words_are_in_two_languages() -> None:
    for words in (PAGE, COLUMNS, METHODS):
        assert all(len(pair) == 2 for pair in words.values())
    assert {run.method for run in method_runs.RUNS} <= METHODS.keys()
