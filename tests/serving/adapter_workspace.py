"""A workspace for engines: an untied tiny base with one poisoned token, and runs whose adapters are drawn at random.

The embedding of the poisoned token is no number, so a prompt that has it makes its own row so, and no other.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.base.errors import TuneloopError
from tuneloop.serving.engine import Query, TokenScore
from tuneloop.serving.worker.torch_engine import TorchEngine

SMALL = ("a-1", "b-1", "c-1", "d-1", "e-1")
"""Runs whose adapters fit the base."""
OWN = SMALL[0]
POISON, POISON_ID = "<|poison|>", 3
CHAT = [{"role": "user", "content": "Who are you?"}]


def make_workspace(folder: Path) -> Path:
    """runs/a-1 … e-1 with LoRA adapters, wide-1 with one of another shape, dora-1 with one that cannot share passes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.conftest import byte_tokenizer
    from tuneloop.data.tokens.templates import CHATML
    from tuneloop.methods.adapters import save_adapter

    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", POISON)
    tokenizer = byte_tokenizer(CHATML, special=special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    assert tokenizer.convert_tokens_to_ids(POISON) == POISON_ID
    base = folder / "models-here" / "tiny-base"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8)  # so that its parts matter
        model.get_input_embeddings().weight[POISON_ID] = float("nan")
        model.lm_head.weight[list(tokenizer.all_special_ids)] = 0  # it hardly ever ends by itself
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    wide = LlamaForCausalLM(
        LlamaConfig(**{**config.to_dict(), "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1})
    )
    for n, name in enumerate((*SMALL, "wide-1", "dora-1")):
        run = folder / "runs" / name
        run.mkdir(parents=True)
        recipe = {"name": name[:-2], "model": str(base), "data": [], "train": {"task": "chat"}}
        (run / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        torch.manual_seed(n + 1)
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
        lora.use_dora = name == "dora-1"
        adapted = get_peft_model(wide if name == "wide-1" else model, lora)
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.5)
        save_adapter(adapted, run / "adapter", base, {"base_model_name_or_path": str(base)})
        tokenizer.save_pretrained(run / "adapter")
        adapted.unload()
    return folder


def make_virtual_run(workspace: Path, name: str) -> None:
    """A run of P-tuning v2 on the base of the workspace."""
    import torch
    from peft import PrefixTuningConfig, get_peft_model

    from tuneloop.inference.tokenizer import load_tokenizer
    from tuneloop.methods.adapters import save_adapter
    from tuneloop.model.load import load_model

    base, run = workspace / "models-here" / "tiny-base", workspace / "runs" / name
    run.mkdir()
    recipe = {"name": name[:-2], "model": str(base), "data": [], "train": {"task": "chat", "method": "ptuning_v2"}}
    (run / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    torch.manual_seed(5)
    adapted = get_peft_model(load_model(base), PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"))
    save_adapter(adapted, run / "adapter", base, {"base_model_name_or_path": str(base)})
    load_tokenizer(base).save_pretrained(run / "adapter")


def copied_run(workspace: Path, name: str, to: str) -> None:
    """A run under another name."""
    shutil.copytree(workspace / "runs" / name, workspace / "runs" / to)


@dataclass(frozen=True)
class Answered:
    """A whole answer."""

    text: str
    finish: str
    tokens: int
    prompt_tokens: int
    scores: tuple[TokenScore, ...]

    @property
    def ids(self) -> list[int]:
        return [score.token for score in self.scores]


def query(model: str, text: str = "Who are you?", **more: Any) -> Query:
    options = {"max_new_tokens": 24, "logprobs": 1, **more}
    return Query("chat", model, chat=[{"role": "user", "content": text}], **options)


async def answered(engine: TorchEngine, wanted: Query) -> Answered:
    """The first choice of an answer."""
    stream = await engine.submit(wanted)
    pieces = [piece async for piece in stream]
    mine = [piece for piece in pieces if piece.choice == 0]
    scores = tuple(score for piece in mine for score in piece.scores)
    text = "".join(piece.text for piece in mine)
    return Answered(text, str(mine[-1].finish), mine[-1].tokens, stream.prompt_tokens, scores)


async def outcome(engine: TorchEngine, wanted: Query) -> Answered | TuneloopError:
    """The answer, or the error that came in its place."""
    try:
        return await answered(engine, wanted)
    except TuneloopError as error:
        return error


def run(work: Coroutine[Any, Any, Any], seconds: float = 120) -> Any:
    return asyncio.run(asyncio.wait_for(work, seconds))


async def until(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.005)


NEAR = 0.02
"""Two likeliest tokens whose log-probabilities are nearer than this are a near tie: the order of sums decides."""


def behind_tie(one: Answered, alone: Answered) -> int:
    """Tokens of `one` that stand behind its first near tie, where it is another answer than `alone`; 0 where it is the
    same. Fails where they differ before a tie."""
    if one.ids == alone.ids and one.text == alone.text:
        return 0
    at = next(n for n, (a, b) in enumerate(zip(one.ids, alone.ids, strict=False)) if a != b)
    first, second = alone.scores[at].likeliest[:2]
    assert first.logprob is not None
    assert second.logprob is not None
    assert first.logprob - second.logprob < NEAR, (at, alone.scores[at], one.scores[at])
    return len(one.ids) - at
