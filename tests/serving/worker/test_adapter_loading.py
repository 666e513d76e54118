"""An adapter that is loaded while others stream holds up none of their tokens: of the real SmolLM2, on all its layers,
with a tokenizer of its own to be read."""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import time
from pathlib import Path

import pytest

from tests.serving.adapter_workspace import answered, query, run, until
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.engine import Query
from tuneloop.serving.worker.torch_engine import TorchEngine

MODEL = "smollm2-135m-instruct"
NAMES = ("a-1", "b-1", "c-1", "d-1", "fifth-1", "sixth-1")
OTHERWISE = NAMES[-1]
"""The run whose tokenizer is none that was read before."""
BOUND = 2.0
"""Seconds: ten times what is promised."""


def make_runs(workspace: Path, base: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    from tuneloop.inference.tokenizer import load_tokenizer
    from tuneloop.model.load import load_model
    from tuneloop.training.model_folder import save_result

    tokenizer, model = load_tokenizer(base), load_model(base)
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    save_result(adapted, tokenizer, base, workspace / "drawn")
    tensors = load_file(workspace / "drawn" / "adapter_model.safetensors")
    for n, name in enumerate(NAMES):
        folder = workspace / "runs" / name
        shutil.copytree(workspace / "drawn", folder / "adapter")
        recipe = {"name": name[:-2], "model": str(base), "data": [], "train": {"task": "chat"}}
        (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        torch.manual_seed(n)
        drawn = {key: tensor.normal_(std=0.01) if "lora_B" in key else tensor for key, tensor in tensors.items()}
        save_file(drawn, folder / "adapter" / "adapter_model.safetensors")
        if name == OTHERWISE:
            tokenizer.model_max_length = 4096  # so that its files are others
            tokenizer.save_pretrained(folder / "adapter")


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(1800)
def test_a_fifth_adapter_delays_no_token_of_four_that_stream(tmp_path: Path) -> None:
    from tuneloop.hub.resolve import resolve

    base = resolve(MODEL)
    make_runs(tmp_path, base)
    engine = TorchEngine(NAMES[0], ServePart(slots=8), tmp_path)
    gaps: list[float] = []

    async def watch(wanted: Query) -> None:
        last = time.monotonic()
        async for _ in await engine.submit(wanted):
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    async def longest(model: str) -> float:
        """Seconds between two tokens of a stream, at most, while another model is asked for the first time."""
        del gaps[:]
        assert (await answered(engine, query(model, max_new_tokens=16))).tokens == 16
        return max(gaps)

    async def work() -> None:
        wanted = [query(name, "Tell a long story.", max_new_tokens=1500) for name in NAMES[:4]]
        tasks = [asyncio.ensure_future(watch(one)) for one in wanted]
        await until(lambda: len(gaps) > 40, 120)
        del gaps[:]
        await until(lambda: len(gaps) > 80, 120)
        usual = statistics.median(gaps)
        assert engine.gauges()["adapters_loaded"] == 4
        for model, what in ((NAMES[4], "a fifth"), (base.name, "the base"), (OTHERWISE, "one with its own tokenizer")):
            delay = await longest(model) - usual
            print(f"{usual * 1000:.0f} ms between two tokens; {what} delayed one by {delay * 1000:.0f} ms")
            assert delay < BOUND
        assert engine.gauges()["adapters_loaded"] == 6
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        run(work(), 600)
    finally:
        engine.close()
