"""Threads: as many as other programs leave cores for, and the same sums with any number."""

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
from tuneloop.training.finite import Finite
from tuneloop.training.loop import StepResult
from tuneloop.training.threads import INTERVAL, Threads, fitting, restored

CPU = torch.device("cpu")
RESULT = StepResult(Step(0, [], 1.0, 1, 1, 1, ""), torch.ones(()), torch.ones(()), 1e-3, Finite(None, CPU))


@pytest.fixture
def two() -> Iterator[None]:
    with restored():
        torch.set_num_threads(2)
        yield


class Seen(OtherPrograms):
    """Other programs that keep `busy` cores busy, looked at long enough ago."""

    seconds = 2 * INTERVAL

    def __init__(self, busy: float) -> None:
        self.busy = busy

    def cores(self) -> float:
        return self.busy


@pytest.mark.usefixtures("two")
def test_a_step_has_a_thread_for_each_free_core_and_says_when_that_changes(tmp_path: Path) -> None:
    journal, said = Journal(tmp_path / "events.jsonl"), list[str]()
    threads, counts = Threads(journal, said.append, most=4, all_cores=4), []
    for step, busy in enumerate([0.1, 0.4, 1.0, 1.3, 3.9, 9.0, 2.6, 0.5, 0.2], 1):
        threads.others = Seen(busy)
        threads.on_step(State(step), RESULT)
        counts.append(torch.get_num_threads())
    assert counts == [4, 4, 3, 3, 1, 1, 1, 4, 4]
    assert [(e["step"], e["threads"], e["of"]) for e in journal.lines()] == [(1, 4, 4), (3, 3, 4), (5, 1, 4), (8, 4, 4)]
    assert len(said) == 4
    assert "1.0 cores" in said[1]
    assert "3 of 4 threads" in said[1]


@pytest.mark.parametrize("most", [1, 2, 16])
def test_there_is_always_one_and_never_more_than_at_first(most: int) -> None:
    for now in range(1, most + 1):
        for tenths in range(-20, 200):
            assert 1 <= fitting(tenths / 10, most, now) <= most
        assert fitting(most, most, now) == most


@pytest.mark.usefixtures("two")
def test_real_programs_on_all_cores_leave_one_thread(tmp_path: Path) -> None:
    spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        threads = Threads(Journal(tmp_path / "events.jsonl"), lambda text: None)
        limit = time.monotonic() + 60
        while torch.get_num_threads() > 1 and time.monotonic() < limit:
            time.sleep(INTERVAL)
            threads.on_step(State(1), RESULT)
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()
    assert torch.get_num_threads() == 1


def test_the_number_is_put_back() -> None:
    before = torch.get_num_threads()

    def fails() -> None:
        torch.set_num_threads(before + 1)
        raise KeyError

    with pytest.raises(KeyError), restored():
        fails()
    assert torch.get_num_threads() == before


def step_bits(count: int, method: str, how: MatmulPrecision) -> list[bytes]:
    """Loss and gradients of one packed row, of a model large enough that its products are shared out."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(count)
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
def test_any_number_of_threads_computes_the_same_bits(method: str, how: MatmulPrecision) -> None:
    assert step_bits(2, method, how) == step_bits(1, method, how)
