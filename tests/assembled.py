"""A TrainingInput of samples and rows at hand, without a prepared dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.base.records import Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.tokens.samples import Sample, Sequences
from tuneloop.data.version.dataset import Dataset
from tuneloop.data.version.split import Split
from tuneloop.recipe.schema import Recipe
from tuneloop.tasks.chat import CHAT
from tuneloop.tasks.task import Task, TaskContext
from tuneloop.training.input import TrainingInput


@dataclass(frozen=True)
class Questions(Dataset):
    """A dataset of which only its manifest, its held-out rows and the files of its training rows are asked for."""

    answered: Sequence[Record] = ()
    of_rows: Sequence[str] = ()

    def records(self, side: Split) -> list[Record]:
        assert side == "validation"
        return list(self.answered)

    def files(self, side: Split) -> list[str]:
        assert side == "train"
        return list(self.of_rows)


def assembled(
    recipe: Recipe, folder: Path, train: Examples | Sequence[Sample], held: Examples | Sequence[Sample] = (), *,
    task: Task = CHAT, context: TaskContext | None = None, questions: Sequence[Record] = (),
    manifest: dict[str, Any] | None = None, prompts: int = 0, version: str = "nowhere",
    files: Sequence[str] = (),
) -> TrainingInput:  # fmt: skip
    examples = Examples.of(train)
    other = Examples.of(held) if len(held) else Examples.of(Sequences.of([]))
    sources = {"sources": [{"file": file} for file in dict.fromkeys(files)]} if files else {}
    dataset = Questions(Path(version), "given", "0" * 12, {**sources, **(manifest or {})}, questions, files)
    return TrainingInput(
        recipe, folder, task, context or TaskContext(recipe.train, None), dataset, examples.samples, examples, other,
        ("?",) * prompts,
    )  # fmt: skip
