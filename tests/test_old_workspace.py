"""A workspace that an earlier commit wrote (tests/old_workspace) is read, resumed, measured, exported and served by this
one. Only what users have is touched: the command line, and the names in `tuneloop.__all__`."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tuneloop
from benchmarks.tiny import processor

OLD = Path(__file__).parent / "old_workspace"
EXPECTED: dict[str, Any] = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
DATASETS: dict[str, Any] = EXPECTED["datasets"]
RUNS: dict[str, Any] = EXPECTED["runs"]
STOPPED = {told["stopped"]: name for name, told in RUNS.items() if told["stopped"]}
SAVED = 2
"""The step of the stopped runs' checkpoints."""
QUESTION, TEXT = "Who are you?", "the good film was fine"
WITHIN = 0.0 if processor() == EXPECTED["processor"] else 1e-5
"""How far numbers may be from those that were written, as a share: not at all on the same processor with the same
torch. Others add up in another order: with torch held to AVX2 or to SSE4 the largest difference was 6.2e-7."""
ADDED = {"chrf", "exact_match", "token_f1", "length", "repeats", "refused"}
"""Metrics that are measured since that commit."""
Tuneloop = Callable[..., str]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A copy, which the test may write into."""
    return Path(shutil.copytree(OLD / "workspace", tmp_path / "moved" / "workspace"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tuneloop:
    """What `python -m tuneloop WORDS` prints; it must end well."""
    monkeypatch.setenv("TUNELOOP_LANG", "en")
    monkeypatch.setenv("TUNELOOP_OFFLINE", "1")

    def run(*words: str | Path) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["tuneloop", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("tuneloop", run_name="__main__")
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        return out

    return run


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def near(got: float, wanted: float | str) -> bool:
    wanted = float.fromhex(wanted) if isinstance(wanted, str) else wanted
    return abs(got - wanted) <= WITHIN * abs(wanted)


@pytest.mark.parametrize("version", DATASETS)
def test_a_dataset_version_has_the_rows_that_it_had(
    version: str, workspace: Path, tmp_path: Path, run: Tuneloop
) -> None:
    wanted = DATASETS[version]
    told = json.loads(run("data", "inspect", version, "--workspace", workspace, "--json"))
    assert {key: told[key] for key in wanted["inspect"]} == wanted["inspect"]
    for side in ("train", "validation"):
        file = tmp_path / f"{side}.jsonl"
        run("data", "export", version, file, "--side", side, "--workspace", workspace)
        assert lines(file) == wanted[side]


def test_a_row_that_was_dropped_is_still_told(workspace: Path) -> None:
    folder = next(workspace / "datasets" / name for name in DATASETS if name.startswith("chat/"))
    dropped = [(one["reason"], one["line"]) for one in lines(folder / "ledger.jsonl") if one["action"] == "dropped"]
    assert dropped == [("repeated", 25), ("no answer", 26)]


@pytest.mark.parametrize("name", RUNS)
def test_the_recipe_of_a_run_is_read_without_a_remark(name: str, workspace: Path) -> None:
    recipe, notes = tuneloop.read_recipe(workspace / "runs" / name / "recipe.yaml")
    assert recipe.name == name.rpartition("-")[0]
    assert notes == []


def test_the_registry_lists_what_was_registered(workspace: Path, run: Tuneloop) -> None:
    listed = json.loads(run("model", "versions", "--workspace", workspace, "--json"))
    assert {one["ref"]: one["run"] for one in listed} == {told["version"]: f"runs/{n}" for n, told in RUNS.items()}
    assert {one["ref"]: one["aliases"] for one in listed if one["aliases"]} == {"whole:v1": ["production"]}
    for one in listed:
        assert one["metrics"]["after"] == RUNS[one["run"].removeprefix("runs/")]["after"]


def test_a_version_answers_by_its_alias(workspace: Path) -> None:
    model = tuneloop.load("whole:production", workspace=workspace)
    (reply,) = model.answer([[{"role": "user", "content": QUESTION}]], max_new_tokens=8)
    assert reply.text == RUNS["whole-1"]["answer"]
    adapter = tuneloop.load("chat:v1", workspace=workspace)  # its base lies in the workspace, which has moved
    (reply,) = adapter.answer([[{"role": "user", "content": QUESTION}]], max_new_tokens=8)
    assert reply.text == RUNS["chat-1"]["answer"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_measured_as_it_was(name: str, workspace: Path, run: Tuneloop) -> None:
    told = json.loads(run("evaluate", name, "--workspace", workspace, "--json"))
    for when in ("before", "after"):
        assert told[when].keys() - ADDED == RUNS[name][when].keys()
        for metric, wanted in RUNS[name][when].items():
            assert near(told[when][metric], wanted), metric
    listed = json.loads(run("model", "versions", "--workspace", workspace, "--json"))
    assert [one["ref"] for one in listed if one["run"] == f"runs/{name}"] == [RUNS[name]["version"]]


@pytest.mark.parametrize("name", STOPPED)
def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(name: str, workspace: Path, run: Tuneloop) -> None:
    told = json.loads(run("train", "--resume", name, "--workspace", workspace, "--json"))
    assert Path(told["result"], "adapter_model.safetensors").is_file()
    events = lines(workspace / "runs" / name / "events.jsonl")
    assert [event["step"] for event in events if event["event"] == "resumed"] == [SAVED]
    written, whole = lines(workspace / "runs" / name / "metrics.jsonl"), RUNS[STOPPED[name]]
    for column in ("loss", "grad_norm", "batch", "eval_loss"):
        got = [line[column] for line in written if column in line]
        assert len(got) == len(whole[column]) > 0
        if column == "batch":
            assert got == whole[column]
        else:
            assert all(map(near, got, whole[column])), (column, [float(x).hex() for x in got], whole[column])


@pytest.mark.parametrize("name", ["chat-1", "pairs-1"])
def test_a_run_is_exported(name: str, workspace: Path, tmp_path: Path, run: Tuneloop) -> None:
    told = json.loads(run("export", name, "--to", tmp_path / "model", "--workspace", workspace, "--json"))
    assert told["passed"]
    model = tuneloop.load(tmp_path / "model")
    (reply,) = model.answer([[{"role": "user", "content": QUESTION}]], max_new_tokens=8)
    assert reply.text == RUNS[name]["answer"]


@pytest.mark.parametrize("ref", ["runs/chat-1", "runs/whole-1", "runs/pairs-1", "exports/chat-1"])
def test_what_was_trained_or_exported_is_served(ref: str, workspace: Path) -> None:
    from fastapi.testclient import TestClient

    asked = {
        "model": Path(ref).name,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 8,
        "temperature": 0,
    }
    with TestClient(tuneloop.serve(workspace / ref, workspace=workspace, api_key="k")) as client:
        reply = client.post("/v1/chat/completions", json=asked, headers={"Authorization": "Bearer k"})
    assert reply.status_code == 200, reply.text
    said = reply.json()["choices"][0]["message"]["content"]
    assert said == RUNS[Path(ref).name]["answer"]


def test_a_classifier_names_the_labels_that_it_named(workspace: Path, run: Tuneloop) -> None:
    wanted = RUNS["labels-1"]["answer"]
    said = run("chat", workspace / "runs" / "labels-1", "--once", TEXT).split()
    assert said[0::3] == sorted(wanted, key=wanted.__getitem__, reverse=True)
    assert [float(x) for x in said[1::3]] == pytest.approx(
        sorted((100 * p for p in wanted.values()), reverse=True), abs=0.06
    )
