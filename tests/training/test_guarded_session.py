"""Early stopping, the best state and answers during training, in whole runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.assembled import assembled
from tests.training.test_session import RECORDS, Sessions, lines, steps
from tuneloop.base.errors import RunError
from tuneloop.model import checkpoint
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import Run
from tuneloop.tasks.task import TaskContext
from tuneloop.training.session import Outcome, session

LATE = {"epochs": 12, "learning_rate": 0.05, "schedule": "constant", "eval_strategy": "steps", "eval_steps": 2,
        "keep_best": True, "early_stopping": 3, "save_strategy": "steps", "save_steps": 7, "save_total_limit": 1}  # fmt: skip
"""A rate at which twenty dialogues are soon known by heart, and the held-out ones lost."""


@pytest.fixture
def sessions(tiny_model: Path, tmp_path: Path) -> Sessions:
    return Sessions(tiny_model, tmp_path)


def measured(run: Run) -> dict[int, float]:
    return {m["step"]: m["eval_loss"] for m in lines(run.metrics) if "eval_loss" in m}


def test_a_run_stops_early_and_gives_its_best_state(sessions: Sessions) -> None:
    run, recipe = sessions.begin(**LATE)
    outcome = sessions.go(run, recipe)
    losses = measured(run)
    best = min(losses, key=lambda step: losses[step])
    assert outcome.finished
    assert outcome.step == max(losses) == best + 6 < outcome.total
    events = [(e["event"], e["step"]) for e in lines(run.events)]
    assert events[-3:] == [("checkpoint", outcome.step), ("best", best), ("finished", outcome.step)]
    assert ("early_stop", outcome.step) in events
    assert steps(run, "checkpoint") == [best, outcome.step]
    kept = load_file(run.checkpoints / f"step-{best}" / "trained.safetensors")
    result = load_file(run.path / "adapter" / "adapter_model.safetensors")
    assert sorted(v.sum().item() for v in kept.values()) == sorted(v.sum().item() for v in result.values())


@pytest.mark.parametrize("cut", [3, 5, 7])
def test_a_guarded_run_that_was_killed_ends_as_it_would_have(
    sessions: Sessions, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, recipe = sessions.begin(**LATE)
    expected = sessions.go(whole, recipe)
    cut_run, again = sessions.begin(**LATE)
    real = checkpoint.save

    def save(folder: Path, state: checkpoint.State, *rest: object, **options: object) -> Path:
        if state.step > cut:
            raise KeyboardInterrupt  # as if the machine had died before this one was written
        return real(folder, state, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        sessions.go(cut_run, again)
    monkeypatch.setattr(checkpoint, "save", real)
    outcome = sessions.go(cut_run, again, resume=True)
    assert outcome == expected
    assert measured(cut_run) == measured(whole)
    ours, theirs = (load_file(r.path / "adapter" / "adapter_model.safetensors") for r in (cut_run, whole))
    assert all(torch.equal(ours[k], v) for k, v in theirs.items())


def test_killed_between_the_last_checkpoint_and_the_result(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    run, recipe = sessions.begin(**LATE)
    module = sys.modules["tuneloop.training.result"]

    real = module.save_result

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_result", dies)
    with pytest.raises(KeyboardInterrupt):
        sessions.go(run, recipe)
    before = measured(run)
    monkeypatch.setattr(module, "save_result", real)
    outcome = sessions.go(run, recipe, resume=True)
    assert outcome.finished
    assert measured(run) == before, "not a step more"
    assert (run.path / "adapter").is_dir()


def test_a_guard_without_held_out_rows_is_refused_before_the_first_step(sessions: Sessions) -> None:
    sessions.held = sessions.held[:0]
    run, recipe = sessions.begin(keep_best=True)
    with pytest.raises(RunError) as caught:
        sessions.go(run, recipe)
    assert caught.value.code == "TL-RUN-NO-HELD-OUT"


def with_questions(sessions: Sessions, run: Run, recipe: Recipe) -> Outcome:
    setting = TaskContext(recipe.train, sessions.tokenizer)
    given = assembled(recipe, sessions.folder, sessions.samples, sessions.held, context=setting, questions=RECORDS[20:])
    return session(run, given)


@pytest.mark.parametrize(
    "train", [{"lora": {"rank": 2, "dropout": 0.2}}, {"method": "freeze", "freeze": {"layers": 1}}], ids=str
)
def test_answers_do_not_change_the_run(sessions: Sessions, train: dict[str, object]) -> None:
    common = {"epochs": 2, "eval_strategy": "steps", "eval_steps": 3, **train}
    plain = sessions.run(**common)
    run, recipe = sessions.begin(**common, sample_answers=2)
    assert with_questions(sessions, run, recipe).finished
    numbers = [{k: v for k, v in m.items() if k != "clock"} for m in lines(run.metrics)]
    assert numbers == [{k: v for k, v in m.items() if k != "clock"} for m in lines(plain.metrics)]
    assert [a["step"] for a in lines(run.path / "samples.jsonl")] == [3, 3, 6, 6, 9, 9, 10, 10]
