"""An objective of each task over a few rows, with a tiny decoder; of the preference losses one with pairs and KTO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from tests.conftest import TALK
from tuneloop.base.records import Message, Record
from tuneloop.data.tokens.encode import tokenize
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.table import TASKS
from tuneloop.tasks.task import SplitView, TaskContext

LABELS = ("neg", "pos")
WORDS = {"template": "{text} It was", "words": {"neg": ["terrible"], "pos": ["great"]}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat", {}), "text": ("text", {}), "classify": ("label", {}), "classify_prompt": ("label", {"classify": WORDS}),
    "reward": ("preference", {}), "prefer": ("preference", {"prefer": {"loss": "simpo"}}),
    "prefer kto": ("judged", {"prefer": {"loss": "kto"}}),
}  # fmt: skip


def record(kind: str, n: int) -> Record:
    question, answer = (Message(role, text) for role, text in zip(("user", "assistant"), TALK[n], strict=True))
    if kind == "text":
        return Record((Message("assistant", TALK[n][1]),), kind=kind, line=n + 1)
    if kind == "label":
        return Record((question,), kind=kind, label=LABELS[n % 2], line=n + 1)
    worse = (Message("assistant", TALK[n - 1][1]),) if kind == "preference" else ()
    label = ("good", "bad")[n % 2] if kind == "judged" else ""
    return Record((question, answer), kind=kind, rejected=worse, label=label, line=n + 1)


class Case:
    """The objective of a case and its examples."""

    def __init__(self, name: str, folder: Path) -> None:
        kind, more = CASES[name]
        task, records = TASKS[name.split()[0]], [record(kind, n) for n in range(6)]
        tokenizer = load_tokenizer(folder)
        context = TaskContext(TrainPart(**more), tokenizer, LABELS if kind == "label" else (), masked=False)
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(folder)
        self.model = load_model(folder, head=task.head(context, config))
        self.examples = task.items(SplitView(tokenize(tokenizer, records), lambda: records), context)
        self.objective = task.objective(self.model, self.examples, context)
        if "kto" in name:
            self.examples.columns["reference"] = torch.full((len(self.examples.samples),), -20.0).numpy()
