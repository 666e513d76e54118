"""The suite of a run asked of an endpoint: the figures of the same answers are those in process, and an error loses none."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.endpoint_server import Server, running
from tests.serving.scripted import serving
from tuneloop import pipeline
from tuneloop.base.errors import MachineError
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.serve import ServePart
from tuneloop.runs.run import Run
from tuneloop.serving.worker.torch_engine import TorchEngine

ANSWERED = ("bleu", "rouge1", "rouge2", "rougeL")


@pytest.fixture(scope="module")
def run(tiny_model: Path, talk_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose answers are written one at a time, as the server writes them."""
    workspace = tmp_path_factory.mktemp("served")
    recipe, _ = make_recipe(
        {
            "name": "served", "model": str(tiny_model), "data": str(talk_file), "prepare": {"validation": 12, "system": "Be brief."},
            "train": {"max_steps": 3, "learning_rate": 0.01},
            "evaluate": {"rows": 6, "max_new_tokens": 6, "batch_size": 1, "general": "off", "show": ["Who are you?"], "files": [str(talk_file)],
                         "probes": [{"name": "any", "prompts": ["Hi."], "expect": ".", "at_least": 0}]},
        }
    )  # fmt: skip
    made = pipeline.train(recipe, pipeline.prepare(recipe, workspace=workspace), workspace=workspace)
    pipeline.measure(made)
    return made


@contextmanager
def served(run: Run) -> Iterator[str]:
    with serving(TorchEngine(run.path, ServePart())) as server:
        yield f"{server.url}/v1"


def written(run: Run) -> dict[str, Any]:
    [path] = (run.path / "evaluations").glob("*.json")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.fixture
def fresh(run: Run) -> Iterator[Run]:
    shutil.rmtree(run.path / "evaluations", ignore_errors=True)
    yield run
    shutil.rmtree(run.path / "evaluations", ignore_errors=True)


def test_the_figures_are_those_in_process_and_the_runs_own_evaluation_stays(fresh: Run) -> None:
    before = (fresh.path / "evaluation.json").read_bytes()
    with served(fresh) as url:
        evaluation, path = pipeline.measure_at(fresh, url)
    own = Evaluation.read(fresh.path)
    assert own is not None
    assert {name: evaluation.after[name] for name in ANSWERED} == {name: own.after[name] for name in ANSWERED}
    assert evaluation.after["loss"] is None
    for mine, theirs in (
        (own.answers, evaluation.answers),
        (own.show, evaluation.show),
        (own.section_answers, evaluation.section_answers),
    ):
        assert len(mine)
        assert [(a.prompt, a.after, a.reference) for a in mine] == [(a.prompt, a.after, a.reference) for a in theirs]
    assert [probe.after for probe in own.probes] == [probe.after for probe in evaluation.probes]
    assert evaluation.findings == ()
    assert (fresh.path / "evaluation.json").read_bytes() == before
    content = written(fresh)
    assert (content["endpoint"], Evaluation.from_dict(content)) == (url, evaluation)
    assert path.is_file()


def test_after_an_error_only_the_missing_answers_are_asked(fresh: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneloop.inference.endpoint import EndpointAnswerer

    count, real = [0], EndpointAnswerer._reply

    def failing(self: Any, *more: Any) -> Any:
        count[0] += 1
        if count[0] == 4:
            raise MachineError("TL-MACHINE-ENDPOINT", where=self.url, error="HTTP 500")
        return real(self, *more)

    monkeypatch.setattr(EndpointAnswerer, "_reply", failing)
    with served(fresh) as url:
        with pytest.raises(MachineError, match="TL-MACHINE-ENDPOINT"):
            pipeline.measure_at(fresh, url)
        [journal] = (fresh.path / "evaluations").glob("*.answers.jsonl")
        there = len(journal.read_text(encoding="utf-8").splitlines())
        assert there >= 3
        count[0] = 100
        evaluation, _ = pipeline.measure_at(fresh, url)
        asked = count[0] - 100
        assert asked + there == len(journal.read_text(encoding="utf-8").splitlines())
        pipeline.measure_at(fresh, url)
        assert count[0] == 100 + asked  # all is known
    own = Evaluation.read(fresh.path)
    assert own is not None
    assert evaluation.after["bleu"] == own.after["bleu"]


def test_an_address_that_nobody_is_at(fresh: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the tries
    with pytest.raises(MachineError) as caught:
        pipeline.measure_at(fresh, "http://127.0.0.1:9/v1", "big")
    assert caught.value.code == "TL-MACHINE-ENDPOINT"


def test_a_server_that_answers_nothing_is_named(fresh: Run, tmp_path: Path) -> None:
    own = Run(tmp_path / "runs" / "other-1")
    shutil.copytree(fresh.path, own.path)
    shutil.copytree(fresh.workspace / "datasets", tmp_path / "datasets")
    (own.path / "evaluation.json").unlink()  # the tiny model writes nothing either
    with running(Server()) as server:
        empty = {"choices": [{"message": {"content": " "}, "finish_reason": "stop"}]}
        server.plan = [(200, {}, json.dumps(empty).encode())] * 99
        evaluation, _ = pipeline.measure_at(own, f"{server.url}/v1", "big")
    assert [finding.code for finding in evaluation.findings][:1] == ["TL-RUN-ENDPOINT-EMPTY"]
    assert "answers of the endpoint" in evaluation.findings[0].what


def test_two_servers_with_one_model_have_two_files(fresh: Run) -> None:
    paths = set()
    for _ in range(2):
        with running(Server()) as server:
            paths.add(pipeline.measure_at(fresh, f"{server.url}/v1", "big")[1])
    assert len(paths) == 2
    assert all(path.is_file() for path in paths)


def test_a_server_with_another_template_is_named(fresh: Run, tmp_path: Path) -> None:
    other = tmp_path / "runs" / "other-1"
    shutil.copytree(fresh.path, other)
    shutil.copytree(fresh.workspace / "datasets", tmp_path / "datasets")
    template = other / "adapter" / "chat_template.jinja"
    template.write_text(
        template.read_text(encoding="utf-8").replace("<|im_start|>", "Now: <|im_start|>"), encoding="utf-8"
    )
    with served(Run(other)) as url:
        evaluation, _ = pipeline.measure_at(fresh, url)
    [finding] = evaluation.findings
    assert finding.code == "TL-RUN-ENDPOINT-TEMPLATE"
    assert finding.facts["n"] == finding.facts["of"]


@contextmanager
def process(run: Run) -> Iterator[str]:
    """`tuneloop serve` as a process of its own, on a free port."""
    command = [sys.executable, "-m", "tuneloop", "serve", str(run.path), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TUNELOOP_LANG": "en"}
    ) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                if address := re.search(r"at (http://\S+/v1)", line):
                    yield address[1]
                    break
        finally:
            server.terminate()


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(3600)
def test_a_hundred_rows_served_and_in_process_give_every_figure_to_the_last_digit(tmp_path: Path) -> None:
    data = Path(__file__).parents[2] / "tuneloop" / "recipes" / "data"
    recipe, _ = make_recipe(
        {
            "name": "hundred", "model": "smollm2-135m-instruct",
            "data": [{"path": str(data / name)} for name in ("persona_en.json", "persona_zh.jsonl")],
            "prepare": {"validation": 100},
            "train": {"max_steps": 2, "batch_size": 2, "learning_rate": 2e-3, "eval_strategy": "no"},
            "evaluate": {"rows": 100, "max_new_tokens": 8, "batch_size": 1, "general": "off"},
        }
    )  # fmt: skip
    run = pipeline.train(recipe, pipeline.prepare(recipe, workspace=tmp_path), workspace=tmp_path)
    own = pipeline.measure(run)
    with process(run) as url:
        far, _ = pipeline.measure_at(run, url)
    assert len(far.answers) == 100
    different = [(a.after, b.after) for a, b in zip(own.answers, far.answers, strict=True) if a.after != b.after]
    assert different == []
    assert {name: far.after[name] for name in ANSWERED} == {name: own.after[name] for name in ANSWERED}
