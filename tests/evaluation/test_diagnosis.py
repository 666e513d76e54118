"""Planted faults of a run are named with their cause; a healthy run has none, and neither has one of earlier versions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.evaluations import evaluation as an_evaluation
from tuneloop import pipeline
from tuneloop.base.errors import TuneloopError
from tuneloop.data.version.find import dataset_of
from tuneloop.evaluation.diagnosis import diagnose
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.findings import RunFinding
from tuneloop.evaluation.gate import better
from tuneloop.inference.trained import load_trained
from tuneloop.runs.run import Run

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def measured(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of the tiny run, evaluated without the general set."""
    path = tmp_path_factory.mktemp("sound") / "runs" / "tiny-1"
    shutil.copytree(tiny_run, path)
    for side in ("datasets",):
        shutil.copytree(tiny_run.parents[1] / side, path.parents[1] / side)
    recipe = path / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("general: loss", "general: 'off'"), encoding="utf-8")
    pipeline.measure(Run(path))
    return Run(path)


@pytest.fixture
def run(measured: Run, tmp_path: Path) -> Run:
    shutil.copytree(measured.path.parents[1], tmp_path / "w")
    return Run(tmp_path / "w" / "runs" / "tiny-1")


def codes(run: Run) -> list[str]:
    known = Evaluation.read(run.path)
    assert known is not None
    held = dataset_of(run).records("validation")
    return [finding.code for finding in diagnose(run, load_trained(run.path), held, known)]


def edit(run: Run, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    file = run.path / WEIGHTS
    save_file({name: change(name, tensor) for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def test_a_healthy_run_has_no_fault(run: Run) -> None:
    finished = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
    ended = next(event for event in finished if event["event"] == "finished")
    assert all(len(ended[name]) == 12 for name in ("weights", "template", "held"))
    assert codes(run) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda name, tensor: torch.full_like(tensor, float("nan")), ["TL-RUN-WEIGHTS-NAN"]),
        (lambda name, tensor: torch.zeros_like(tensor), ["TL-RUN-WEIGHTS-ZERO"]),
        (lambda name, tensor: torch.zeros_like(tensor) if "lora_B" in name else tensor, ["TL-RUN-WEIGHTS-ZERO"]),
        (lambda name, tensor: tensor * 30, ["TL-RUN-WEIGHTS-CHANGED"]),
        (lambda name, tensor: tensor + 1e-4, ["TL-RUN-WEIGHTS-CHANGED"]),
    ],
)
def test_a_broken_adapter(run: Run, change: Callable[[str, torch.Tensor], torch.Tensor], code: list[str]) -> None:
    edit(run, change)
    assert codes(run) == code


def test_the_adapter_of_another_run_is_named(run: Run) -> None:
    other = run.path.with_name("other-1")
    shutil.copytree(run.path, other)
    edit(Run(other), lambda name, tensor: tensor * 2)
    from tuneloop.training.digests import weights_digest

    events = other / "events.jsonl"
    mine, theirs = (weights_digest(path / "adapter") for path in (run.path, other))
    events.write_text(events.read_text(encoding="utf-8").replace(mine, theirs), encoding="utf-8")
    shutil.copyfile(other / WEIGHTS, run.path / WEIGHTS)
    held = dataset_of(run).records("validation")
    known = Evaluation.read(run.path)
    assert known is not None
    [finding] = diagnose(run, load_trained(run.path), held, known)
    assert (finding.code, finding.facts["other"]) == ("TL-RUN-WEIGHTS-OTHER", "other-1")
    assert "other-1" in finding.what


def test_a_truncated_adapter_is_an_error_that_says_so(run: Run) -> None:
    file = run.path / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TuneloopError) as caught:
        pipeline.measure(run)
    assert caught.value.code == "TL-MODEL-TRUNCATED"


def _template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("<|im_start|>", "<|im_start|> "), encoding="utf-8")


def test_a_changed_template_of_the_run(run: Run) -> None:
    _template(run.path / "adapter")
    assert codes(run) == ["TL-RUN-TEMPLATE"]


def test_a_changed_template_of_the_base(run: Run, tmp_path: Path) -> None:
    recipe = run.recipe.read_text(encoding="utf-8")
    base = Path(next(line.split("name: ")[1] for line in recipe.splitlines() if line.strip().startswith("name: /")))
    copy = shutil.copytree(base, tmp_path / "base")
    run.recipe.write_text(recipe.replace(str(base), str(copy)), encoding="utf-8")
    assert codes(run) == []
    _template(copy)
    assert codes(run) == ["TL-RUN-TEMPLATE-BASE"]


def test_a_changed_tokenizer_under_the_same_template(run: Run) -> None:
    file = run.path / "adapter" / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    merges = content["model"]["merges"]
    content["model"]["merges"] = merges[: len(merges) // 2]
    file.write_text(json.dumps(content), encoding="utf-8")
    assert codes(run) == ["TL-RUN-TOKENS"]


def _raised(run: Run) -> None:
    """As if training had measured another loss."""
    measured = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    for line in measured:
        if "eval_loss" in line:
            line["eval_loss"] += 0.5
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in measured), encoding="utf-8")


def test_a_loss_that_differs_without_a_known_cause(run: Run) -> None:
    _raised(run)
    assert codes(run) == ["TL-RUN-LOSS"]


def test_a_run_of_an_earlier_version_recorded_no_digest(run: Run) -> None:
    lines = [json.loads(line) for line in run.events.read_text(encoding="utf-8").splitlines()]
    old = [{k: v for k, v in line.items() if k not in {"weights", "template", "held"}} for line in lines]
    run.events.write_text("".join(json.dumps(line) + "\n" for line in old), encoding="utf-8")
    assert codes(run) == []
    edit(run, lambda name, tensor: tensor * 2)
    assert codes(run) == []  # nothing tells, while its loss is what it was
    _raised(run)
    assert codes(run) == ["TL-RUN-LOSS"]
    _template(run.path / "adapter")
    assert codes(run) == ["TL-RUN-TEMPLATE"]  # it is not that of its base


def test_a_fault_is_written_down_and_the_gate_refuses_it(run: Run) -> None:
    edit(run, lambda name, tensor: torch.full_like(tensor, float("nan")))
    measured = pipeline.measure(run)
    assert [finding.code for finding in measured.findings] == ["TL-RUN-WEIGHTS-NAN"]
    back = Evaluation.read(run.path)
    assert back is not None
    assert back.findings == measured.findings
    assert "TL-RUN-WEIGHTS-NAN" in (run.path / "report.html").read_text(encoding="utf-8")
    assert "NaN" not in (run.path / "evaluation.json").read_text(encoding="utf-8").replace("WEIGHTS-NAN", "")
    good, bad = an_evaluation(2.0, 1.0), an_evaluation(2.0, 0.5, findings=(RunFinding("TL-RUN-TEMPLATE"),))
    assert not better(good, bad).better
    assert better(good, an_evaluation(2.0, 0.5)).better
