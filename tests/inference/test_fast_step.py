"""The step without modules gives the model's own logits, or is not taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.inference.test_batch import alone, model_of, prompts_of
from tests.inference.test_scheduler import run, scheduler_of
from tuneloop.inference import fast_step as fast_steps
from tuneloop.inference.batch import DecodeBatch, Generation
from tuneloop.inference.decode import Decoder
from tuneloop.inference.fast_step import FastStep, fast_step

HAVE = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text"]
HAVE_NOT = ["gemma2", "granite", "cohere", "gpt_oss", "deepseek_v3", "falcon_h1", "qwen3_moe"]
MOST = 24
"""With the prompts, more tokens than the tiny models' sliding windows are long."""


@pytest.mark.parametrize("family", HAVE)
@pytest.mark.parametrize("packed", [True, False])
def test_logits_are_the_models_own(tmp_path: Path, family: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of different lengths, one alone and five together, beside the step through the model's modules."""
    model = model_of(tmp_path, family)
    if not packed:
        monkeypatch.setattr(fast_steps, "SHARE", 0.0)
    fast = fast_step(model)
    assert fast is not None
    assert (fast.head.packed is not None) == (packed and torch.backends.mkldnn.is_available())
    for prompts in (prompts_of(3, 1), prompts_of(4, 5)):
        batches = []
        for step in (None, fast):
            decoder = Decoder(model, 256)
            decoder.quick = step
            batches.append(DecodeBatch(decoder, frozenset(), slots=5))
            batches[-1].join([Generation(p, 99) for p in prompts])
        for _ in range(MOST):
            tokens = torch.tensor([one.tokens[-1] for one in batches[0].generations])
            own, ours = (batch._cache.step(batch.decoder, tokens) for batch in batches)  # type: ignore[union-attr]
            torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)
            for batch in batches:
                for one, token in zip(batch.generations, own.argmax(-1).tolist(), strict=True):
                    one.tokens.append(token)


@pytest.mark.parametrize("family", HAVE_NOT)
def test_a_model_that_is_built_otherwise_steps_through_its_modules(tmp_path: Path, family: str) -> None:
    assert fast_step(model_of(tmp_path, family)) is None


@pytest.mark.parametrize("change", ["norm", "sequence", "block", "listener", "dtype"])
def test_a_model_that_computes_something_else_is_found_out(tmp_path: Path, change: str) -> None:
    model: Any = model_of(tmp_path, "llama")
    layer = model.model.layers[1]
    if change == "norm":
        layer.post_attention_layernorm.forward = lambda x: x
    elif change == "sequence":
        layer.mlp.down_proj = torch.nn.Sequential(layer.mlp.down_proj)
    elif change == "block":
        block = type(layer.mlp)
        layer.mlp.__class__ = type("Halved", (block,), {"forward": lambda self, x: block.forward(self, x) * 0.5})
    elif change == "listener":
        model.lm_head.register_forward_hook(lambda *_: None)
    else:
        model.to(torch.bfloat16)
    assert fast_step(model) is None


def test_a_longer_window_than_was_tried_goes_through_the_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_steps, "PROVEN", 4)
    model = model_of(tmp_path, "mistral")
    calls: list[int] = []
    forward = FastStep.__call__

    def counted(self: FastStep, tokens: Any, places: Any, before: Any, memory: Any, adapted: int = 0) -> Any:
        calls.append(memory[0][0].shape[2])
        return forward(self, tokens, places, before, memory, adapted)

    scheduler = scheduler_of(model)
    assert scheduler.decoder.quick is not None
    monkeypatch.setattr(FastStep, "__call__", counted)
    one = Generation([5, 6, 7], MOST)
    run(scheduler, [one])
    assert max(calls) == model.config.sliding_window
    assert one.tokens == alone(model, [5, 6, 7], MOST)


def test_the_weights_stay_one_copy_and_the_model_says_the_same(tmp_path: Path) -> None:
    """Fused weights are the layers' own memory: what is written into the one is in the other."""
    model: Any = model_of(tmp_path, "qwen2")
    ids = torch.arange(5, 37)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        fast = fast_step(model)
        after = model(input_ids=ids).logits
    assert fast is not None
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    for layer, block in zip(model.model.layers, fast.blocks, strict=True):
        assert layer.self_attn.q_proj.weight.data_ptr() == block.three.weight.data_ptr()
