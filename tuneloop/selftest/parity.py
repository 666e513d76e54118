"""The same numbers as others: transformers' own loss and gradient, and an export that answers as what was trained."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tuneloop import pipeline
from tuneloop.base.language import t
from tuneloop.base.records import Message, Record
from tuneloop.data.batches.pack import pack
from tuneloop.data.tokens.encode import Sample, tokenize
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model, pick_dtype
from tuneloop.selftest import subject
from tuneloop.selftest.lines import FailedError, Lines
from tuneloop.selftest.training import Ground
from tuneloop.tasks.loss import LossModel


def samples(ground: Ground, count: int) -> list[Sample]:
    """The first dialogues of this ground as its model's tokenizer sees them."""
    rows = ground.rows() if ground.rows else subject.rows("chat", count, ground.longest)
    records = [Record(tuple(Message(m["role"], m["content"]) for m in row["messages"])) for row in islice(rows, count)]
    return list(tokenize(load_tokenizer(ground.model), records))


def padded(batch: list[Sample], device: torch.device) -> dict[str, torch.Tensor]:
    """What tutorials make of a batch: one padded matrix, a mask, and labels where the answer is."""
    longest = max(len(s.ids) for s in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, sample in enumerate(batch):
        n = len(sample.ids)
        ids[row, :n] = torch.from_numpy(sample.ids).long()
        mask[row, :n] = 1
        labels[row, :n] = torch.where(torch.from_numpy(sample.trained), ids[row, :n], -100)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}


def plainly(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model as transformers loads it by itself."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )


def _norm(model: nn.Module) -> float:
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))


def _loss(ground: Ground, device: torch.device, count: int) -> str:
    batch = samples(ground, count)
    ours: Any = load_model(ground.model, "float32")
    ours.to(device).requires_grad_(True)
    mine = LossModel(ours)(pack(batch).to(device)).total / sum(s.labels for s in batch)
    mine.backward()
    got = mine.item(), _norm(ours)
    del ours
    theirs = plainly(ground.model).to(device).eval()
    loss = theirs(**padded(batch, device)).loss
    loss.backward()
    wanted = loss.item(), _norm(theirs)
    summary = t(
        "loss {a:.6f} and {b:.6f}, gradient norm {c:.6f} and {d:.6f}", a=got[0], b=wanted[0], c=got[1], d=wanted[1]
    )
    if abs(got[0] - wanted[0]) > 1e-4 * abs(wanted[0]) or abs(got[1] - wanted[1]) > 1e-3 * wanted[1]:
        raise FailedError(summary)
    return summary


def _export(ground: Ground, method: str, dtype: str) -> str:
    run = ground.train(ground.recipe("chat", dtype, method=method, max_steps=2, batch_size=2), "chat")
    target = ground.folder / f"exported-{method}-{dtype}"
    return pipeline.export(run.path, target, workspace=ground.folder).line()


def prove(lines: Lines, ground: Ground, device: torch.device, name: str) -> None:
    """`name` is what the model of this ground is called in the report."""
    group = t("parity")
    lines.claim(group, t("{model}: loss and gradient of transformers", model=name), lambda: _loss(ground, device, 4))
    lines.claim(group, t("{model}: export of a LoRA run", model=name), lambda: _export(ground, "lora", "float32"))


def merged(lines: Lines, ground: Ground, name: str) -> None:
    """A line: an adapter added into weights of this device's own type answers as it did beside them."""
    dtype = str(pick_dtype("auto")).removeprefix("torch.") if torch.cuda.is_available() else "bfloat16"
    lines.claim(
        t("parity"),
        t("{model}: export of a LoRA run in {dtype}", model=name, dtype=dtype),
        lambda: _export(ground, "lora", dtype),
    )
