"""Speed and memory: a LoRA run of ours beside the loop that tutorials write, same rows, same model, same types."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from peft import LoraConfig, get_peft_model

from tuneloop.data.tokens import Sample
from tuneloop.language import t
from tuneloop.model.load import pick_dtype
from tuneloop.proof.lines import Lines
from tuneloop.proof.parity import padded, plainly, samples
from tuneloop.proof.training import Ground
from tuneloop.train.callbacks import Journal

BATCH = 8
TARGETS = ["q_proj", "v_proj"]


def _most_gb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def _forget(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _told(rate: float, memory: float | None) -> str:
    told = t("{n:,.0f} real tokens/s", n=rate)
    return told if memory is None else told + t(", {n:.2f} GB at the peak", n=memory)


def ours(ground: Ground, device: torch.device, steps: int) -> tuple[float, float | None]:
    """(real tokens a second without the first step, peak GB) of a run by the whole pipeline."""
    _forget(device)
    recipe = ground.recipe(
        "chat", "auto", batch_size=BATCH, max_steps=steps, save_steps=steps, learning_rate=2e-4,
        token_budget=4096, lora={"rank": 8, "alpha": 32, "targets": TARGETS},
    )  # fmt: skip
    run = ground.train(recipe, "chat")
    lines = list(Journal(run.metrics).lines())
    later = [line for line in lines if "loss" in line][1:]
    tokens, seconds = (sum(line["tokens"] for line in later), sum(line["clock"]["seconds"] for line in later))
    return tokens / seconds, _most_gb(device)


def theirs(ground: Ground, device: torch.device, steps: int, rows: Sequence[Sample]) -> tuple[float, float | None]:
    """The same of transformers and PEFT: batches padded to their longest row, in the given order."""
    _forget(device)
    torch.manual_seed(0)
    kept = pick_dtype("auto")
    config = LoraConfig(r=8, lora_alpha=32, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(plainly(ground.model, kept), config).to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    tokens, seconds = 0, 0.0
    for k in range(steps):
        batch = [rows[(k * BATCH + i) % len(rows)] for i in range(BATCH)]
        began = time.perf_counter()
        loss = model(**padded(batch, device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        if k:
            seconds += time.perf_counter() - began
            tokens += sum(len(s.ids) for s in batch)
    return tokens / seconds, _most_gb(device)


def measure(lines: Lines, ground: Ground, device: torch.device, steps: int, name: str) -> None:
    """Two lines of what was measured. Speed passes or fails nothing: only a way that breaks does."""
    found: list[tuple[float, float | None]] = []

    def beside() -> str:
        found.append(theirs(ground, device, steps, samples(ground.model, 24)))
        return _told(*found[0])

    def mine() -> str:
        rate, memory = ours(ground, device, steps)
        told = _told(rate, memory)
        return told + t(", {n:.2f} times as fast", n=rate / found[0][0]) if found else told

    lines.claim(t("speed"), t("{model}: transformers + PEFT, padded batches", model=name), beside)
    lines.claim(t("speed"), t("{model}: tuneloop", model=name), mine)
