"""Remedies in real sessions of the tiny model: the fault is planted where it arises, the rest is the run's own."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.robots import listening
from tests.training.test_session import Sessions, assembled, lines, steps
from tuneloop.base.errors import RunError
from tuneloop.data.batches.pack import Batch
from tuneloop.monitor.alerts import Alert
from tuneloop.monitor.remedies import Amendment, Remedy, Slower, remedies, words
from tuneloop.recipe.watch import NotifyPart
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run
from tuneloop.tasks.loss import LossModel
from tuneloop.tasks.objective import Losses
from tuneloop.tasks.task import TaskContext
from tuneloop.training.guards import Guard
from tuneloop.training.mending import Mender
from tuneloop.training.state import build


@pytest.fixture
def sessions(tiny_model: Path, tmp_path: Path) -> Sessions:
    return Sessions(tiny_model, tmp_path)


@contextmanager
def planted(fault: Callable[[Batch, Losses], Losses]) -> Iterator[None]:
    """Training passes (not those that measure) give what `fault` makes of their losses."""
    real = LossModel.forward

    def forward(self: LossModel, batch: Batch) -> Losses:
        losses = real(self, batch)
        return fault(batch, losses) if self.training and torch.is_grad_enabled() else losses

    LossModel.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        LossModel.forward = real  # type: ignore[method-assign]


def without_clock(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "clock"} for line in lines(run.metrics)]


def done(run: Run) -> list[Remedy]:
    return remedies(Journal(run.events).lines())


def same_result(one: Run, other: Run) -> bool:
    mine, theirs = (load_file(run.path / "adapter" / "adapter_model.safetensors") for run in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


class NoMemory:
    """Passes of more than `most` rows find no memory, from the `first` pass on."""

    def __init__(self, most: int, first: int = 0) -> None:
        self.most, self.first, self.passes = most, first, 0

    def __call__(self, batch: Batch, losses: Losses) -> Losses:
        self.passes += 1
        if self.passes > self.first and len(batch.segments) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return losses


def test_memory_that_runs_out_halves_the_passes_and_the_run_goes_on(sessions: Sessions) -> None:
    whole = sessions.run(epochs=2, save_strategy="steps", save_steps=4)
    with planted(NoMemory(1, first=6)):
        run = sessions.run(epochs=2, save_strategy="steps", save_steps=4)
    first, second = done(run)
    assert (first.remedy, first.resume_at, first.amendment) == ("memory", 6, Amendment(micro_batch_size=2))
    assert second.amendment.micro_batch_size == 1
    assert steps(run, "loss") == list(range(1, 11))
    ours, usual = without_clock(run), without_clock(whole)
    assert [m.get("batch") for m in ours] == [m.get("batch") for m in usual]
    for mine, theirs in zip(ours, usual, strict=True):
        for key in ("loss", "eval_loss"):
            if key in mine:
                assert mine[key] == pytest.approx(theirs[key], rel=1e-4)
    alerts = [e for e in lines(run.events) if e["event"] == "alert" and e["rule"] == "memory"]
    assert alerts[0]["level"] == "bad"
    assert alerts[0]["step"] == 7


def test_memory_ends_the_run_where_nothing_is_left_to_reduce(sessions: Sessions) -> None:
    run, recipe = sessions.begin()
    with planted(NoMemory(0)), pytest.raises(RunError) as caught:
        sessions.go(run, recipe)
    assert caught.value.code == "TL-RUN-MEMORY"
    assert [remedy.amendment for remedy in done(run)] == [
        Amendment(micro_batch_size=2), Amendment(micro_batch_size=1), Amendment(checkpointing=True),
    ]  # fmt: skip


class NoNumber:
    """The pass that holds sample `row` loses NaN, each time; as in life, other rows do not."""

    def __init__(self, row: int) -> None:
        self.row = row

    def __call__(self, batch: Batch, losses: Losses) -> Losses:
        if self.row not in batch.members:
            return losses
        return Losses(losses.total * math.nan, losses.per_item * math.nan, losses.metrics)


def test_a_batch_that_gives_no_number_is_left_out_at_a_lower_rate(sessions: Sessions) -> None:
    with planted(NoNumber(11)):
        run = sessions.run(max_steps=5, save_strategy="steps", save_steps=100)
    (remedy,) = done(run)
    at = remedy.facts["at"]
    assert (remedy.remedy, remedy.resume_at, remedy.amendment.skip) == ("spike", at - 1, (at - 1,))
    assert remedy.amendment.slower == (Slower(at - 1, 0.8, 1),)
    assert remedy.facts["rate"] == pytest.approx(4e-3)
    assert remedy.amendment.drop == (11,)
    assert steps(run, "loss") == [1, 2, 3, 4, 5]
    (alert,) = [e for e in lines(run.events) if e["event"] == "alert"]
    assert (alert["rule"], alert["level"], alert["step"]) == ("nan", "bad", at)


def test_a_mended_run_that_is_killed_goes_on_bit_for_bit(sessions: Sessions, tmp_path: Path) -> None:
    train = {
        "epochs": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "save_total_limit": None,
        "lora": {"rank": 2, "dropout": 0.1},
    }
    with planted(NoNumber(11)):
        whole = sessions.run(**train)
        assert len(done(whole)) == 1, "its row is not met again in the second epoch"
        cut = Run(tmp_path / "runs" / "cut-1")
        shutil.copytree(whole.path, cut.path)
        shutil.rmtree(cut.path / "adapter")
        last = done(whole)[-1]
        for saved in cut.checkpoints.iterdir():  # as if it had been killed before the next checkpoint
            if int(saved.name.removeprefix("step-")) > max(3, last.resume_at):
                shutil.rmtree(saved)
        recipe = sessions.begin(**train)[1]
        assert sessions.go(cut, recipe, resume=True).finished
    assert without_clock(cut) == without_clock(whole)
    assert same_result(cut, whole)


def test_a_rate_that_is_far_too_high_is_brought_down(sessions: Sessions) -> None:
    run = sessions.run(learning_rate=1.0, epochs=6, method="full")
    found = done(run)
    assert found
    assert all((remedy.remedy, remedy.facts["cause"]) == ("spike", "rebound") for remedy in found)
    assert found[0].facts["rate"] == pytest.approx(math.sqrt(1.0 * 1e-5))
    assert steps(run, "loss") == list(range(1, 31))
    measured = [m["eval_loss"] for m in lines(run.metrics) if "eval_loss" in m]
    first = next(m["loss"] for m in lines(run.metrics))
    assert measured[-1] < 0.8 * first


@pytest.mark.parametrize(("bad_from", "held_bad", "expected"), [(5, (), 4), (4, (), 2), (2, (), 0), (5, (4,), 2)])
def test_a_remedy_goes_back_to_a_state_that_was_not_far_worse_than_the_model_came(
    bad_from: int, held_bad: tuple[int, ...], expected: int, sessions: Sessions
) -> None:
    """Checkpoints are at steps 2 and 4; the loss is far too high from a step on, or at a measurement."""
    settings = {"epochs": 2, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    run, recipe = sessions.begin(**settings, max_steps=6, save_total_limit=None)
    assert sessions.go(run, recipe).finished
    told = lines(run.metrics)
    for line in told:
        if "loss" in line and line["step"] >= bad_from:
            line["loss"] = 40.0
        if "eval_loss" in line and line["step"] in held_bad:
            line["eval_loss"] = 40.0
    run.metrics.unlink()
    Journal(run.metrics).write_all(told)
    given = assembled(recipe, sessions.folder, sessions.samples, sessions.held,
                      context=TaskContext(recipe.train, sessions.tokenizer))  # fmt: skip
    setup = build(run, given, torch.device("cpu"))
    mender = Mender(setup, Guard(0, False, setup.metrics, setup.events, print, run.checkpoints, may_end=False))
    remedy = mender.spike(6, 6, "rebound")
    assert remedy is not None
    assert remedy.resume_at == expected


def test_a_late_remedy_of_a_run_that_began_with_an_easy_batch_keeps_what_was_learned(sessions: Sessions) -> None:
    run, recipe = sessions.begin(max_steps=36, save_strategy="steps", save_steps=10, save_total_limit=None)
    assert sessions.go(run, recipe).finished
    told = lines(run.metrics)
    for line in told:
        if line["step"] == 1:
            line["loss"] = 0.1
    run.metrics.unlink()
    Journal(run.metrics).write_all(told)
    given = assembled(recipe, sessions.folder, sessions.samples, sessions.held,
                      context=TaskContext(recipe.train, sessions.tokenizer))  # fmt: skip
    setup = build(run, given, torch.device("cpu"))
    mender = Mender(setup, Guard(0, False, setup.metrics, setup.events, print, run.checkpoints, may_end=False))
    remedy = mender.spike(36, 35, "rebound")
    assert remedy is not None
    assert remedy.resume_at == 30


def test_a_rebound_goes_back_to_before_what_began_it(sessions: Sessions) -> None:
    run, recipe = sessions.begin(max_steps=6, save_strategy="steps", save_steps=2, save_total_limit=None)
    assert sessions.go(run, recipe).finished
    given = assembled(recipe, sessions.folder, sessions.samples, sessions.held,
                      context=TaskContext(recipe.train, sessions.tokenizer))  # fmt: skip
    setup = build(run, given, torch.device("cpu"))
    mender = Mender(setup, Guard(0, False, setup.metrics, setup.events, print, run.checkpoints, may_end=False))
    early, late = Alert("exploding", "watch", 5, 3, {}), Alert("rebound", "bad", 6, 6, {})
    for alert in (early, late):
        setup.events.event("alert", **alert.as_event())
    mender.alerted(late)
    assert mender.decision is not None
    assert (mender.decision.resume_at, mender.decision.facts["at"]) == (2, 3)


def test_without_remedies_the_run_ends_as_it_did(sessions: Sessions) -> None:
    run, recipe = sessions.begin(max_steps=5)
    watch = recipe.watch.model_copy(update={"enabled": False})
    with planted(NoNumber(11)), pytest.raises(RunError) as caught:
        sessions.go(run, recipe.model_copy(update={"watch": watch}))
    assert caught.value.code == "TL-RUN-NAN"
    assert [e["event"] for e in lines(run.events)] == ["started", "failed"]


def test_a_run_that_the_system_ended_for_memory_goes_on_with_smaller_passes(sessions: Sessions, tmp_path: Path) -> None:
    """And whoever wants notifications hears of the alert and of the remedy."""
    pytest.importorskip("apprise", reason="the extra notify is not installed")
    run, recipe = sessions.begin(epochs=2, save_strategy="steps", save_steps=4)
    file = tmp_path / "addresses.txt"
    notified = recipe.watch.model_copy(update={"notify": NotifyPart(file=str(file))})

    class Killed(BaseException):
        pass

    def kill(batch: Batch, losses: Losses) -> Losses:
        if len(lines(run.metrics)) >= 6 if run.metrics.exists() else False:
            raise Killed
        return losses

    with planted(kill), pytest.raises(Killed):
        sessions.go(run, recipe)
    run.note_kill()
    with listening() as robots:
        file.write_text(f"json://{robots.at[7:]}\n", encoding="utf-8")
        assert sessions.go(run, recipe.model_copy(update={"watch": notified}), resume=True).finished
    codes = [re.findall("TL-[A-Z-]+", json.loads(body)["message"]) for _, body in robots.got]
    assert codes == [["TL-WATCH-MEMORY"], ["TL-REMEDY-MEMORY"], []]
    (remedy,) = done(run)
    assert (remedy.resume_at, remedy.amendment) == (4, Amendment(micro_batch_size=2))
    assert steps(run, "loss") == list(range(1, 11))


def test_words_of_remedies(sessions: Sessions) -> None:
    spoken = words(
        Remedy("memory", 7, 6, Amendment(micro_batch_size=2), {"at": 7, "setting": "train.micro_batch_size: 2"})
    )
    assert "step 7" in spoken.what
    assert "micro-batches of at most 2 rows" in spoken.what
    assert "train.micro_batch_size: 2" in spoken.do
