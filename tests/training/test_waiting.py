"""Waiting: awake on a quiet machine, asleep beside other programs, and the same bits either way."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tuneloop.data.batches.loader import Step
from tuneloop.data.batches.pack import Batch
from tuneloop.model.checkpoint import State
from tuneloop.model.kernels.install import install
from tuneloop.model.kernels.matmul import MatmulPrecision, matmul_precision
from tuneloop.monitor.meters import OtherPrograms
from tuneloop.runs.journal import Journal
from tuneloop.tasks.loss import LossModel
from tuneloop.training.finite import Finite
from tuneloop.training.step_result import StepResult
from tuneloop.training.waiting import INTERVAL, IdleTeam, Waiting

CPU = torch.device("cpu")
RESULT = StepResult(Step(0, [], 1.0, 1, 1, 1, ""), torch.ones(()), torch.ones(()), 1e-3, Finite(None, CPU))
TASKS = Path("/proc/self/task")


@pytest.fixture
def two() -> Iterator[None]:
    """Two threads; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Seen(OtherPrograms):
    """Other programs that keep `busy` cores busy, looked at long enough ago."""

    seconds = 2 * INTERVAL

    def __init__(self, busy: float) -> None:
        self.busy = busy

    def cores(self) -> float:
        return self.busy


def test_threads_sleep_while_other_programs_run(tmp_path: Path) -> None:
    journal, asleep = Journal(tmp_path / "events.jsonl"), []
    with Waiting(journal, threads=4, all_cores=4) as waiting:
        for step, busy in enumerate([0.1, 0.5, 1.0, 3.9, 0.5, 0.2, 0.0, 9.0], 1):
            waiting.others = Seen(busy)
            waiting.on_step(State(step), RESULT)
            asleep.append(waiting.team is not None)
    assert asleep == [False, False, True, True, True, False, False, True]
    events = [(event["step"], event["asleep"], event["others"]) for event in journal.lines()]
    assert events == [(3, True, 1.0), (6, False, 0.2), (8, True, 9.0)]
    assert waiting.team is None, "behind the context it is gone"


def test_programs_on_cores_that_it_does_not_need_are_nothing_to_it(tmp_path: Path) -> None:
    with Waiting(Journal(tmp_path / "events.jsonl"), threads=2, all_cores=8) as waiting:
        for busy in (1.0, 3.0, 5.9):
            waiting.others = Seen(busy)
            waiting.on_step(State(1), RESULT)
            assert waiting.team is None


def test_real_programs_on_all_cores_are_seen(tmp_path: Path) -> None:
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        with Waiting(Journal(tmp_path / "events.jsonl"), threads=2) as waiting:
            limit = time.monotonic() + 60
            while waiting.team is None and time.monotonic() < limit:
                time.sleep(INTERVAL)
                waiting.on_step(State(1), RESULT)
            assert waiting.team is not None
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


@pytest.mark.usefixtures("two")
@pytest.mark.skipif(not TASKS.is_dir(), reason="no list of threads here")
def test_a_team_is_threads_beyond_those_that_compute_and_goes_when_released() -> None:
    torch.ones(2 * 10**6).sum()
    before, python = len(list(TASKS.iterdir())), threading.active_count()
    team = IdleTeam()
    assert len(list(TASKS.iterdir())) >= before + 2, "one of Python, and one that OpenMP made for it"
    team.release()
    limit = time.monotonic() + 30
    while len(list(TASKS.iterdir())) > before and time.monotonic() < limit:
        time.sleep(0.05)
    assert len(list(TASKS.iterdir())) <= before
    assert threading.active_count() == python


def step_bits(method: str, how: MatmulPrecision) -> list[bytes]:
    """Loss and gradients of one packed row, of a model large enough that its products are shared out."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=256, intermediate_size=640, num_hidden_layers=2, num_attention_heads=8,
                         num_key_value_heads=4, vocab_size=8192, tie_word_embeddings=True)  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "down_proj"], lora_dropout=0.1))
    install(model)
    objective, segments = LossModel(model).train(), (301, 77, 500, 146)
    ids = torch.randint(0, 8192, (1, 1024))
    places = torch.cat([torch.arange(n) for n in segments])[None]
    at = torch.arange(1, 1023)
    with matmul_precision(how):
        loss = objective(Batch(ids, places, at, ids[0, at + 1], segments)).total
        loss.backward()
    grads = [p.grad for p in objective.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    return [x.detach().numpy().tobytes() for x in (loss, norm, *grads)]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("how", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_either_way_of_waiting_computes_the_same_bits(method: str, how: MatmulPrecision) -> None:
    awake = step_bits(method, how)
    team = IdleTeam()
    try:
        assert step_bits(method, how) == awake
    finally:
        team.release()
