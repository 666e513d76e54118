"""Training speed beside what tutorials write: transformers + PEFT, a padded batch, labels where the answer is.

Same rows, same model, same optimizer steps in one process, in turn. Real tokens leave padding out.
"""

from __future__ import annotations

import csv
import time
from importlib.resources import files
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tuneloop.data.batches import BatchPlan, Steps
from tuneloop.data.tokens import Sample, tokenize
from tuneloop.model.load import load_model, load_tokenizer
from tuneloop.model.loss import LossModel
from tuneloop.model.sources import resolve
from tuneloop.records import Message, Record

ROWS, BATCH = 32, 8


def samples() -> list[Sample]:
    """The first rows of the demo's real questions and answers."""
    path = files("tuneloop").joinpath("recipes", "data", "general_en.csv")
    with path.open(encoding="utf-8") as file:
        rows = [r for _, r in zip(range(ROWS), csv.DictReader(file), strict=False)]
    records = [Record((Message("user", r["question"]), Message("assistant", r["answer"]))) for r in rows]
    return tokenize(load_tokenizer(resolve("smollm2-135m-instruct")), records)


def adapted() -> nn.Module:
    torch.manual_seed(0)
    model = load_model(resolve("smollm2-135m-instruct"), "float32")
    config = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    wrapped: nn.Module = get_peft_model(model, config).train()
    return wrapped


def padded_loss(model: Any, batch: list[Sample], width: int | None) -> torch.Tensor:
    """The tutorials' way: one padded matrix, the full logits."""
    width = width or max(len(s.ids) for s in batch)
    ids = torch.full((len(batch), width), 2)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, sample in enumerate(batch):
        n = len(sample.ids)
        ids[row, :n] = torch.from_numpy(sample.ids).long()
        mask[row, :n] = 1
        labels[row, :n] = torch.where(torch.from_numpy(sample.trained), ids[row, :n], -100)
    loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    return loss


def run(name: str, rows: list[Sample]) -> dict[str, float]:
    """One epoch; the first step is not counted."""
    model = adapted()
    if name != "tuneloop":
        model.get_base_model().set_attn_implementation("sdpa")  # type: ignore[operator, union-attr]
    ours = LossModel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    plan = BatchPlan(tuple(len(s.ids) for s in rows), BATCH, 4096, seed=0)
    steps = Steps(plan, rows, 0, plan.steps_per_epoch)
    tokens, seconds, last = 0, 0.0, 0.0
    for k in range(len(steps)):
        step = steps[k]
        batch = [rows[i] for b in plan.step(k) for i in b]
        began = time.perf_counter()
        if name == "tuneloop":
            loss = sum((ours(**micro) for micro in step.micros), torch.zeros(())) / step.label_tokens
        else:
            loss = padded_loss(model, batch, 512 if name == "padded to 512" else None)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if k:
            seconds += time.perf_counter() - began
            tokens += step.tokens
        last = loss.item()
    return {"tokens_per_second": tokens / seconds, "loss": last}


def measure() -> dict[str, Any]:
    """Name -> figures of each way, in turn."""
    rows = samples()
    names = ("padded to 512", "padded to the longest", "tuneloop")
    return {"rows": len(rows), **{name: run(name, rows) for name in names}}
