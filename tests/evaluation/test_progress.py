from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lives import fork, wait
from tuneloop import pipeline
from tuneloop.data.batches.pack import Batch
from tuneloop.evaluation.progress import ANSWERS_FILE, Counted, counted
from tuneloop.inference.generate import Answerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.methods.wrap import wrap
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import TrainPart
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run

CHATS = [[{"role": "user", "content": f"Count to {n}."}] for n in range(5)]


@pytest.fixture
def answerer(tiny_model: Path) -> Answerer:
    return Answerer(load_model(tiny_model), load_tokenizer(tiny_model))


def prompts_of(answerer: Answerer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many chats are answered from now on, call by call."""
    counts: list[int] = []
    inner = answerer.answer

    def answer(chats: Any, **options: Any) -> Any:
        counts.append(len(chats))
        return inner(chats, **options)

    monkeypatch.setattr(answerer, "answer", answer)
    return counts


def test_it_answers_as_the_answerer_and_says_how_far_it_is(answerer: Answerer) -> None:
    said: list[str] = []
    teller = Counted(answerer, 7, said.append, interval=0)
    replies = teller.answer(CHATS, max_new_tokens=3, batch_size=2)
    assert [r.text for r in replies] == [r.text for r in answerer.answer(CHATS, max_new_tokens=3, batch_size=2)]
    teller.answer(CHATS[:2], max_new_tokens=3, batch_size=2)
    found = [re.fullmatch(r"  (\d) of 7 answers, [\d.e+]+ a second, about (.+) left", line) for line in said]
    assert [int(match[1]) for match in found if match] == [2, 4, 5, 7]
    assert found[-1] is not None
    assert found[-1][2] == "0 s"
    assert (teller.context, teller.count(CHATS[0])) == (answerer.context, answerer.count(CHATS[0]))


def test_losses_say_how_far_they_are() -> None:
    lines: list[str] = []
    nothing = torch.zeros(0)
    batches = [Batch(nothing, nothing, nothing, nothing, (1, 1), members=(0, 1)) for _ in range(3)]
    assert len(list(counted(batches, 6, lines.append, interval=0))) == 3
    assert lines == [f"  {n} of 6 losses measured" for n in (2, 4, 6)]
    list(counted(batches, 6, lines.append, interval=3600))
    assert len(lines) == 3


def test_two_runs_say_what_they_do(tiny_run: Path) -> None:
    lines: list[str] = []
    run = Run(tiny_run)
    pipeline.compare(run, run, ["Count."], max_new_tokens=2, say=lines.append)
    assert lines == [f"loading {run.name} …", f"{run.name} answers"] * 2
    lines.clear()
    pipeline.ask_runs([run], ["Count."], max_new_tokens=2, say=lines.append)
    assert lines == [f"loading {run.name} …", f"{run.name} answers"]


def test_a_quick_evaluation_is_not_talked_over(answerer: Answerer) -> None:
    said: list[str] = []
    Counted(answerer, 5, said.append, interval=3600).answer(CHATS, max_new_tokens=2, batch_size=1)
    assert said == []


def test_what_is_in_the_journal_is_not_answered_again(
    answerer: Answerer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / ANSWERS_FILE)
    first = Counted(answerer, 5, print, journal=journal).answer(CHATS, max_new_tokens=3, batch_size=1)
    counts = prompts_of(answerer, monkeypatch)
    again = Counted(answerer, 5, print, journal=journal)
    assert again.answer(CHATS, max_new_tokens=3, batch_size=1) == first
    assert counts == []
    again.answer(CHATS, max_new_tokens=4, batch_size=1)
    assert sum(counts) == len(CHATS), "other options are other answers"


def test_half_a_part_is_written_again_as_it_was(
    answerer: Answerer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four answers a part of one batch: the last line of the first part is cut short, as a crash may leave it."""
    journal = Journal(tmp_path / ANSWERS_FILE)
    first = Counted(answerer, 5, print, journal=journal).answer(CHATS, max_new_tokens=3, batch_size=1)
    lines = journal.path.read_bytes().split(b"\n")
    journal.path.write_bytes(b"\n".join(lines[:3]) + b"\n" + lines[3][:20])
    counts = prompts_of(answerer, monkeypatch)
    again = Counted(answerer, 5, print, journal=journal).answer(CHATS, max_new_tokens=3, batch_size=1)
    assert [(r.text, r.tokens) for r in again] == [(r.text, r.tokens) for r in first]
    assert counts == [4, 1]
    assert Counted(answerer, 5, print, journal=journal).answer(CHATS, max_new_tokens=3, batch_size=1) == again


def test_an_answer_belongs_to_its_model(tiny_model: Path, tmp_path: Path) -> None:
    """Before and after training, and an adapter that was trained on: none takes the answers of another."""
    model = wrap(load_model(tiny_model, "float32"), TrainPart(), 0).eval()
    journal = Journal(tmp_path / ANSWERS_FILE)
    answerer = Answerer(model, load_tokenizer(tiny_model))
    lora = [p for name, p in model.named_parameters() if "lora_B" in name]
    lora[0].data.normal_()
    Counted(answerer, 2, print, journal=journal).answer(CHATS[:2], max_new_tokens=3)
    with model.disable_adapter():
        Counted(answerer, 2, print, journal=journal).answer(CHATS[:2], max_new_tokens=3)
    lora[0].data[0, 0] += 1
    Counted(answerer, 2, print, journal=journal).answer(CHATS[:2], max_new_tokens=3)
    assert len({line["key"] for line in journal.lines()}) == 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_evaluation_that_was_killed_goes_on(tiny_model: Path, talk_file: Path, tmp_path: Path) -> None:
    """Killed in the middle of the answers after training; then evaluation.json is that of a run never stopped."""
    recipe, _ = make_recipe(
        {
            "name": "tiny", "model": str(tiny_model), "data": str(talk_file), "prepare": {"validation": 12},
            "train": {"epochs": 1, "learning_rate": 0.01, "lora": {"rank": 4}},
            "evaluate": {"rows": 12, "max_new_tokens": 8, "batch_size": 1, "show": ["Who are you?"]},
        }
    )  # fmt: skip
    run = pipeline.train(recipe, pipeline.prepare(recipe, workspace=tmp_path), workspace=tmp_path)
    answered = tmp_path / "answered"

    def evaluate(kill_after: int = 0) -> None:
        inner = Counted._store

        def store(self: Counted, keys: Any, replies: Any) -> None:
            inner(self, keys, replies)
            with answered.open("a") as file:
                file.write(f"{len(keys)}\n")
            if answered.read_text().count("\n") == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        Counted._store = store  # type: ignore[method-assign]
        pipeline.measure(run)

    assert wait(fork(lambda: evaluate(6))) == -signal.SIGKILL
    assert not (run.path / "evaluation.json").exists()
    written = sum(map(int, answered.read_text().split()))
    assert len(list(Journal(run.path / ANSWERS_FILE).lines())) == written
    answered.write_text("")
    assert wait(fork(evaluate)) == 0
    resumed = (run.path / "evaluation.json").read_bytes()
    rest = sum(map(int, answered.read_text().split()))
    assert not (run.path / ANSWERS_FILE).exists()
    answered.write_text("")
    assert wait(fork(evaluate)) == 0
    every = sum(map(int, answered.read_text().split()))
    assert (run.path / "evaluation.json").read_bytes() == resumed
    assert json.loads(resumed)["held"]
    assert written + rest == every
    assert 0 < rest < written


def test_a_run_knows_its_folder(tiny_run: Path) -> None:
    from tuneloop.inference.trained import load_trained

    assert load_trained(Run(tiny_run).path).folder == tiny_run
