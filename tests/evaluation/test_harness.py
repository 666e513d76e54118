"""Tasks of lm-evaluation-harness: what is missing is told before anything else; a local task is measured without a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.made import jsonl
from tuneloop.base.errors import MachineError, RecipeError, RunError
from tuneloop.evaluation import harness
from tuneloop.evaluation.whole_suite import require_measurable
from tuneloop.recipe.recipe import make_recipe

ROOT = Path(__file__).parents[2]
TASK = """
task: capitals
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""
MEASURED = """
import json, sys
from pathlib import Path
from tuneloop import pipeline
from tuneloop.base.errors import RunError
from tuneloop.evaluation import harness
from tuneloop.runs.run import Run
try:
    harness.require(["arc_easy", "no_such_task"])
except RunError as error:
    missing = error.code
evaluation = pipeline.measure(Run(Path(sys.argv[1])))
assert "lm_eval" not in sys.modules and "evaluate" not in sys.modules
print(json.dumps({"missing": missing, "tasks": [score.as_dict() for score in evaluation.tasks]}))
"""


def test_without_the_extra_it_is_said_before_training() -> None:
    if harness.find_spec("lm_eval"):
        pytest.skip("the extra is here")
    recipe, _ = make_recipe({"data": [], "evaluate": {"tasks": "arc_easy"}})
    with pytest.raises(MachineError) as caught:
        require_measurable(recipe)
    assert caught.value.code == "TL-MACHINE-EXTRA"
    assert "eval" in caught.value.facts["command"]


def test_a_classifier_has_no_tasks() -> None:
    recipe, _ = make_recipe({"data": [], "train": {"task": "classify"}, "evaluate": {"tasks": ["arc_easy"]}})
    with pytest.raises(RecipeError) as caught:
        require_measurable(recipe)
    assert caught.value.where == "evaluate.tasks"


def test_a_child_that_ends_with_an_error_is_told_by_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child.py"
    child.write_text("import sys; sys.exit('no room on the disk')", encoding="utf-8")
    monkeypatch.setattr(harness, "CHILD", child)
    with pytest.raises(RunError, match="no room on the disk") as caught:
        harness._child({"tasks": []})
    assert caught.value.code == "TL-RUN-TASK"


def test_the_child_is_offline_and_what_it_cannot_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text(
        "import json, os, sys\n"
        "assert os.environ['HF_HUB_OFFLINE'] == '1'\n"
        "json.dump({'missing': {'arc_easy': 'OfflineModeIsEnabled'}}, open(sys.argv[2], 'w'))",
        encoding="utf-8",
    )
    monkeypatch.setattr(harness, "CHILD", child)
    monkeypatch.setattr(harness, "find_spec", lambda name: object())
    with pytest.raises(RunError) as caught:
        harness.require(["arc_easy"])
    assert (caught.value.code, caught.value.facts["error"]) == ("TL-RUN-TASK-DATA", "OfflineModeIsEnabled")


@pytest.mark.slow
def test_a_local_task_is_measured_with_both_models(tiny_run: Path, tmp_path: Path) -> None:
    """LM_EVAL_PYTHON is a Python that has lm-evaluation-harness beside what tuneloop needs."""
    python = os.environ.get("LM_EVAL_PYTHON") or (sys.executable if harness.find_spec("lm_eval") else "")
    if not python:
        pytest.skip("LM_EVAL_PYTHON names no Python with lm_eval")
    rows = [{"question": f"Capital {n}?", "choices": ["Paris", "Rome", "Oslo"], "answer": n % 3} for n in range(12)]
    data = jsonl(tmp_path / "capitals.jsonl", rows)
    task = tmp_path / "capitals.yaml"
    task.write_text(TASK.format(data=data), encoding="utf-8")
    recipe = tiny_run / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("tasks: []", f"tasks: [{task}]"), encoding="utf-8")
    try:
        done = subprocess.run(
            [python, "-c", MEASURED, str(tiny_run)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        recipe.write_text(text, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["missing"] == "TL-RUN-TASK-DATA"
    [score] = [one for one in told["tasks"] if one["metric"] == "acc"]
    assert (score["task"], score["rows"], score["higher_is_better"]) == ("capitals", 12, True)
    assert score["before"] is not None
    assert score["after"] is not None
