"""A recipe that compares, run by the command line: its variants one after the other, and what came out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.test_report import Page
from tuneloop.base.errors import RecipeError
from tuneloop.cli.variants import one_variant
from tuneloop.recipe.recipe import make_recipe
from tuneloop.runs.run import run_recipe

RECIPE = """name: both
model: {model}
data: {data}
prepare: {{validation: 12}}
train: {{epochs: 1, batch_size: 4}}
evaluate: {{rows: 2, max_new_tokens: 6}}
compare:
  variants:
    lora: {{method: lora, learning_rate: 1e-2}}
    full: {{method: full, learning_rate: 1e-3}}
  claims:
    - {{variant: lora, against: full, cost: 0.15, loss: 0.03}}
"""


def test_a_variant_that_is_not_there_is_refused() -> None:
    recipe = make_recipe({"compare": {"variants": {"lora": {}}}})[0]
    assert one_variant(recipe, "lora").train.method == "lora"
    with pytest.raises(RecipeError, match="one of lora"):
        one_variant(recipe, "full")
    with pytest.raises(RecipeError, match=r"compare\.variants"):
        one_variant(make_recipe({})[0], "full")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_variants_of_a_recipe_are_run_and_compared(tiny_model: Path, talk_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "both.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=talk_file), encoding="utf-8")

    def tuneloop(*words: str) -> str:
        command = [sys.executable, "-m", "tuneloop", "--lang", "en", *words, "--workspace", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    out = tuneloop("run", str(file))
    runs = [tmp_path / "runs" / f"both-{n}" for n in (1, 2)]
    assert [run_recipe(run).train.method for run in runs] == ["lora", "full"]
    hashes = {json.loads((run / "dataset.json").read_text(encoding="utf-8"))["hash"] for run in runs}
    assert len(hashes) == 1, "one dataset version"
    assert "The claim about lora against full" in out
    for run in runs:
        content = json.loads((run / "comparison.json").read_text(encoding="utf-8"))
        (claim,) = content["claims"]
        assert {line["what"] for line in claim["lines"]} >= {"time", "memory", "trained", "loss"}
        page = Page((run / "report.html").read_text(encoding="utf-8"))
        assert "What was claimed, and what came out" in page.text
        assert "at most 15 %" in page.text
    told = json.loads(tuneloop("compare", "both-1", "both-2", "both-1", "--json"))
    assert len(told["runs"]) == 3
    assert told["answers"] == []
    assert "Checkpoints of both-1" in tuneloop("compare", "both-1", "--checkpoints")
    told = json.loads(tuneloop("run", str(file), "--json"))
    assert [run["method"] for run in told["runs"]] == ["lora", "full"]
    assert told["claims"][0]["ruling"] in ("held", "not held", "not separable", "not defined")
