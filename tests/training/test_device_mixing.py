"""Training, measuring and answering with a model that lies elsewhere than the rows come from, as on a card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, PartialState
from torch import nn

from tests.oncard import CARD, Card, MixedError, OnCard
from tuneloop.recipe.schema import EvaluatePart
from tuneloop.runs.journal import Journal
from tuneloop.selftest import subject
from tuneloop.selftest.training import OF_METHOD, OF_TASK, Ground, kind_for
from tuneloop.training import distributed, state


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with the card; from where training places its model on, what is there must not be mixed."""
    distributed.world()
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("cpu"))
    place = state._place
    tensor, autocasts = torch.tensor, torch.is_autocast_enabled

    def sent(*args: Any, device: Any = None, **more: Any) -> torch.Tensor:
        made = tensor(*args, **more)  # for the meta device torch would make one without numbers
        return made if device is None else made.to(device)

    with ExitStack() as stack:

        def placed(model: nn.Module, device: torch.device) -> None:
            monkeypatch.setitem(PartialState._shared_state, "device", CARD)
            monkeypatch.setattr(Accelerator, "device", CARD)
            monkeypatch.setattr(torch, "tensor", sent)
            monkeypatch.setattr(torch, "is_autocast_enabled", lambda *a: a != (CARD.type,) and autocasts(*a))
            stack.enter_context(Card())
            place(model, CARD)
            assert all(type(p.data) is OnCard for p in model.parameters())

        monkeypatch.setattr(state, "_place", placed)
        yield


def test_the_card_refuses_what_a_card_refuses() -> None:
    with Card():
        there, here = torch.ones(3, device=CARD), torch.ones(3)
        assert (there + here.to(CARD) + torch.tensor(1.0)).tolist() == [3.0] * 3
        assert there.cpu().numpy().tolist() == [1.0] * 3
        with pytest.raises(MixedError):
            there + here
        with pytest.raises((TypeError, RuntimeError)):
            there.numpy()


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("method", "task", "family"),
    [("lora", "chat", "llama"), ("full", "chat", "qwen3"), ("lora", "classify", "llama"), 
     ("lora", "reward", "llama"), ("ptuning_v2", "chat", "llama"),
     ("prompt_tuning", "chat", "llama"), ("freeze", "chat", "llama"), ("lora", "chat", "gemma3_text"),
     ("lora", "chat", "deepseek_v3")],
)  # fmt: skip
def test_steps_and_measurements_on_the_card(method: str, task: str, family: str, tmp_path: Path) -> None:
    ground = Ground(tmp_path, subject.model_folder(tmp_path / "tiny", family), longest=200)
    kind = kind_for(task)
    told: dict[str, Any] = OF_METHOD.get(method, {}) | OF_TASK.get(task, {})
    answers = 1 if family == "llama" and task == "chat" else 0
    recipe = ground.recipe(kind, method=method, task=task, max_steps=2, save_steps=1, eval_strategy="steps",
                           eval_steps=2, sample_answers=answers, **told)  # fmt: skip
    run = ground.train(recipe.model_copy(update={"evaluate": EvaluatePart(max_new_tokens=4)}), kind)
    assert run.trained_folder() is not None
    assert any("eval_loss" in line for line in Journal(run.metrics).lines())
    assert len(list(Journal(run.path / "samples.jsonl").lines())) == answers
