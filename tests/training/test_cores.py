"""Cores: those that other programs leave free, and the same bits on any number of them."""

from __future__ import annotations

import os
import subprocess
import sys
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
from tuneloop.training import cores
from tuneloop.training.cores import INTERVAL, Cores, bind, can_choose, fitting, restored
from tuneloop.training.finite import Finite
from tuneloop.training.loop import StepResult

CPU = torch.device("cpu")
RESULT = StepResult(Step(0, [], 1.0, 1, 1, 1, ""), torch.ones(()), torch.ones(()), 1e-3, Finite(None, CPU))


@pytest.fixture
def two() -> Iterator[None]:
    """Two threads, where this system lets a process choose its cores; afterwards all is as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        if not can_choose():
            pytest.skip("a process cannot choose its cores here")
        with restored():
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


@pytest.mark.usefixtures("two")
def test_a_step_has_the_cores_that_others_leave_free_and_says_when_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, heard, bound = Journal(tmp_path / "events.jsonl"), list[str](), list[set[int]]()
    monkeypatch.setattr(cores, "bind", bound.append)
    monkeypatch.setattr(cores, "_seconds", lambda: [0.0] * 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    watcher, counts = Cores(journal, heard.append, {0, 1, 2, 3}, count=4), []
    monkeypatch.setattr(cores, "_seconds", lambda: [3.0, 1.0, 4.0, 2.0])
    for step, busy in enumerate([0.1, 0.4, 1.0, 1.3, 3.9, 9.0, 2.6, 0.5, 0.2], 1):
        watcher.others, watcher.before = Seen(busy), [0.0] * 4
        watcher.on_step(State(step), RESULT)
        counts.append(watcher.now)
    assert counts == [4, 4, 3, 3, 1, 1, 1, 4, 4]
    assert bound == [{0, 1, 3}, {1}, {0, 1, 2, 3}], "those that worked least"
    assert [(e["step"], e["cores"], e["of"]) for e in journal.lines()] == [(3, 3, 4), (5, 1, 4), (8, 4, 4)]
    assert len(heard) == 3
    assert "1.0 cores busy: on 3 of 4 cores" in heard[0]


@pytest.mark.parametrize("most", [1, 2, 16])
def test_there_is_always_one_and_never_more_than_at_first(most: int) -> None:
    for now in range(1, most + 1):
        for tenths in range(-20, 200):
            assert 1 <= fitting(tenths / 10, most, now) <= most
        assert fitting(most, most, now) == most


@pytest.mark.usefixtures("two")
def test_beside_real_programs_on_all_cores_one_is_left(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("there is one core")
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        watcher = Cores(Journal(tmp_path / "events.jsonl"), lambda text: None)
        limit = time.monotonic() + 60
        while watcher.now > 1 and time.monotonic() < limit:
            time.sleep(INTERVAL)
            watcher.on_step(State(1), RESULT)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) < allowed


@pytest.mark.usefixtures("two")
def test_the_cores_are_put_back() -> None:
    allowed = os.sched_getaffinity(0)

    def fails() -> None:
        bind({min(allowed)})
        raise KeyError

    with pytest.raises(KeyError), restored():
        fails()
    assert os.sched_getaffinity(0) == allowed


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
def test_any_number_of_cores_computes_the_same_bits(method: str, how: MatmulPrecision) -> None:
    free = step_bits(method, how)
    with restored():
        bind({min(os.sched_getaffinity(0))})
        assert step_bits(method, how) == free
