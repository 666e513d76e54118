"""One decoding step over a cache, driven by hand as a scheduler would: the tokens are those of the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TALK
from tuneloop.inference.decode import Decoder
from tuneloop.inference.generate import Answerer
from tuneloop.inference.sampling import Chooser, Sampling, choose
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.methods.wrap import wrap
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import TrainPart

CHATS: list[Any] = [[{"role": "user", "content": q}] for q, _ in TALK[:4]]
TOKENS = 12


@pytest.fixture(scope="module")
def answerer(tiny_model: Path) -> Answerer:
    answerer = Answerer(load_model(tiny_model, "float32"), load_tokenizer(tiny_model))
    answerer.stops = frozenset()
    return answerer


def by_hand(answerer: Answerer, chats: list[Any], how: Sampling) -> list[list[int]]:
    prompts = [answerer.prompt(chat) for chat in chats]
    decoder = Decoder(answerer.model, answerer.context)
    choosers = [
        Chooser(replace(how, seed=None if how.seed is None else how.seed + n), p) for n, p in enumerate(prompts)
    ]
    state, rows = decoder.prefill(prompts, pad=0), []
    for _ in range(TOKENS):
        logits = decoder.step(state)
        assert not logits.requires_grad
        rows.append(choose(logits, choosers, answerer.penalty))
        state = decoder.extended(state, rows[-1])
    return torch.stack(rows, 1).tolist()


@pytest.mark.parametrize("how", [Sampling(), Sampling(0.9, 0.8, seed=3)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_steps_by_hand_are_the_loop(answerer: Answerer, how: Sampling, penalty: float) -> None:
    answerer.penalty = penalty
    rows = by_hand(answerer, CHATS, how)
    options: dict[str, Any] = {"temperature": how.temperature, "top_p": how.top_p, "seed": how.seed}
    steps = list(answerer._decode([answerer.prompt(c) for c in CHATS], TOKENS, how))
    assert rows == [list(row) for row in zip(*steps, strict=True)]
    replies = answerer.answer(CHATS[:1], max_new_tokens=TOKENS, **options)
    assert replies[0].text == answerer._reply(by_hand(answerer, CHATS[:1], how)[0], 0, 0.0, ()).text
    answerer.penalty = 1.0


def test_a_step_is_the_models_own_forward(answerer: Answerer) -> None:
    """With a cache or without one, and whatever the padding: the same logits."""
    prompts = [answerer.prompt(chat) for chat in CHATS]
    decoder = Decoder(answerer.model, answerer.context)
    state = decoder.prefill(prompts, pad=0)
    for _ in range(3):
        logits = decoder.step(state)
        for prompt, row in zip(prompts, logits, strict=True):
            with torch.no_grad():
                alone = answerer.model(input_ids=torch.tensor([prompt])).logits[0, -1]
            torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)
        chosen = logits.argmax(-1)
        prompts = [[*p, t] for p, t in zip(prompts, chosen.tolist(), strict=True)]
        state = decoder.extended(state, chosen)
        assert state.positions.squeeze(1).tolist() == [len(p) - 1 for p in prompts]
        assert state.mask.sum(1).tolist() == [len(p) for p in prompts]


@pytest.mark.parametrize("method", ["ptuning_v2", "prompt_tuning"])
def test_virtual_tokens_are_in_the_state(tiny_model: Path, method: Any) -> None:
    model = wrap(load_model(tiny_model, "float32"), TrainPart(method=method), 0).eval()
    answerer = Answerer(model, load_tokenizer(tiny_model))
    answerer.stops = frozenset()
    steps = list(answerer._decode([answerer.prompt(CHATS[0])], TOKENS, Sampling()))
    assert by_hand(answerer, CHATS[:1], Sampling()) == [[step[0] for step in steps]]


def test_a_row_that_goes_along_stays_within_the_context(answerer: Answerer) -> None:
    prompt = answerer.prompt(CHATS[0])
    decoder = Decoder(answerer.model, len(prompt) + 1)
    state = decoder.prefill([prompt], pad=0)
    for _ in range(3):
        state = decoder.extended(state, decoder.step(state).argmax(-1))
    assert state.positions.tolist() == [[len(prompt)]]
