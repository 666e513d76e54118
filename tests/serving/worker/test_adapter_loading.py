"""An adapter that is loaded while others stream holds up none of their tokens: of the real SmolLM2, on all its layers,
with a tokenizer of its own to be read."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from pathlib import Path

import pytest

from tests.serving.adapter_workspace import answered, query, run, until
from tuneloop.recipe.schema import ServePart
from tuneloop.serving.engine import Query
from tuneloop.serving.worker.torch_engine import TorchEngine

MODEL = "smollm2-135m-instruct"
NAMES = ("a-1", "b-1", "c-1", "d-1", "fifth-1")
BOUND = 2.0
"""Seconds: ten times what is promised."""


def make_runs(workspace: Path, base: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from tuneloop.inference.tokenizer import load_tokenizer
    from tuneloop.methods.adapters import save_adapter
    from tuneloop.model.load import load_model

    tokenizer, model = load_tokenizer(base), load_model(base)
    for n, name in enumerate(NAMES):
        folder = workspace / "runs" / name
        folder.mkdir(parents=True)
        recipe = {"name": name[:-2], "model": str(base), "data": [], "train": {"task": "chat"}}
        (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        torch.manual_seed(n)
        adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.01)
        save_adapter(adapted, folder / "adapter", base, {"base_model_name_or_path": str(base)})
        if name == NAMES[-1]:
            tokenizer.model_max_length = 4096  # so that its files are others
        tokenizer.save_pretrained(folder / "adapter")
        adapted.unload()


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(1800)
def test_a_fifth_adapter_delays_no_token_of_four_that_stream(tmp_path: Path) -> None:
    from tuneloop.hub.resolve import resolve

    make_runs(tmp_path, resolve(MODEL))
    engine = TorchEngine(NAMES[0], ServePart(slots=8), tmp_path)
    gaps: list[float] = []

    async def watch(wanted: Query) -> None:
        last = time.monotonic()
        async for _ in await engine.submit(wanted):
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    async def work() -> tuple[list[float], list[float]]:
        """Seconds between two tokens of a stream: before the fifth is loaded, and meanwhile."""
        wanted = [query(name, "Tell a long story.", max_new_tokens=1000) for name in NAMES[:-1]]
        tasks = [asyncio.ensure_future(watch(one)) for one in wanted]
        await until(lambda: len(gaps) > 40, 120)
        del gaps[:]
        await until(lambda: len(gaps) > 80, 120)
        before = gaps[:]
        del gaps[:]
        assert engine.gauges()["adapters_loaded"] == 4
        fifth = await answered(engine, query(NAMES[-1], max_new_tokens=16))
        assert fifth.tokens == 16
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return before, gaps[:]

    try:
        before, meanwhile = run(work(), 600)
        usual = statistics.median(before)
        delay = max(meanwhile) - usual
        print(
            f"between two tokens {usual * 1000:.0f} ms, at most {max(before) * 1000:.0f}; while an adapter is loaded at "
            f"most {max(meanwhile) * 1000:.0f}: delayed by {delay * 1000:.0f} ms"
        )
        assert engine.gauges()["adapters_loaded"] == 5
        assert delay < BOUND
    finally:
        engine.close()
