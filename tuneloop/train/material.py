"""What a run trains on and measures: a dataset's rows as the recipe's model and task see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tuneloop.data.dataset import Dataset
from tuneloop.data.excerpts import View
from tuneloop.data.items import Items
from tuneloop.data.preflight import beyond
from tuneloop.data.reading.sniff import shown
from tuneloop.data.samples import Samples
from tuneloop.data.split import Side
from tuneloop.data.tokens import encode_records, marked
from tuneloop.errors import DataError, ModelError
from tuneloop.language import t
from tuneloop.model import adapters
from tuneloop.model.load import (
    adapter_labels,
    fingerprint,
    known_labels,
    load_tokenizer,
    masked,
    numbered_places,
    resolve,
)
from tuneloop.model.methods import METHODS
from tuneloop.model.model_folder import context, vocabulary
from tuneloop.model.tasks.table import TASKS, task_name
from tuneloop.model.tasks.task import Rows, Setting, Task
from tuneloop.presets import settled
from tuneloop.records import Record
from tuneloop.sections import Recipe


@dataclass(frozen=True)
class Words:
    """A recipe's model folder and tokenizer, and the samples that they make."""

    folder: Path
    tokenizer: Any
    key: str

    def samples(self, dataset: Dataset, side: Side) -> Samples:
        return dataset.samples(side, self.key, self.encode)

    def encode(self, records: Sequence[Record]) -> Samples:
        return encode_records(self.tokenizer, records)

    def view(self) -> View:
        """How a dataset's card shows samples."""
        return View(lambda sample: marked(self.tokenizer, sample), context(self.folder))


def words_of(recipe: Recipe) -> Words:
    folder = resolve(recipe.model)
    tokenizer = load_tokenizer(folder, recipe.model.template)
    return Words(folder, tokenizer, fingerprint(folder, tokenizer))


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What a session works on: a model folder, the task, and its items to train on and to hold out."""

    folder: Path
    task: Task
    setting: Setting
    items: Items
    held: Items
    questions: Sequence[Record] = ()
    """Held-out rows that may be answered while training (train.sample_answers)."""


def settle(recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe with what its rows decide: the usual learning rate of their task, where none is written."""
    task = task_name(recipe.train.task, list(dataset.manifest["kinds"]), shown(dataset.path))
    return settled(recipe, task)[0]


def setting_of(recipe: Recipe, dataset: Dataset, words: Words) -> tuple[Task, Setting]:
    """The task of a recipe, and what it is told: of its classes, those of the training rows."""
    task = TASKS[task_name(recipe.train.task, list(dataset.manifest["kinds"]), shown(dataset.path))]
    setting = Setting(recipe.train, words.tokenizer, masked=masked(words.folder, words.tokenizer))
    if task.classes is None:
        return task, setting
    counts = Counter(record.label for record, _, _ in dataset.rows("train"))
    known = known_labels(words.folder)
    if recipe.train.adapter and (theirs := adapter_labels(Path(recipe.train.adapter))):
        if set(theirs) != set(counts):
            reason = t("its labels are {theirs}, and those of the rows {ours}", theirs=", ".join(theirs),
                       ours=", ".join(sorted(counts)))  # fmt: skip
            raise ModelError("TL-MODEL-METHOD", where="train.adapter", method=recipe.train.method, reason=reason)
        known = theirs
    labels, weights = task.classes(counts, recipe.train, known)
    return task, replace(setting, labels=labels, weights=weights)


def material(recipe: Recipe, dataset: Dataset) -> Material:
    """What a session trains on and measures: the rows of a dataset as the recipe's task sees them."""
    words = words_of(recipe)
    task, setting = setting_of(recipe, dataset, words)

    def items(side: Side) -> Items:
        return task.items(Rows(words.samples(dataset, side), lambda: dataset.records(side)), setting)

    held = held_items(recipe, dataset, words, task, setting)
    asked = dataset.records("validation") if recipe.train.sample_answers and task.writes else ()
    return Material(words.folder, task, setting, items("train"), held.take(np.flatnonzero(held.weights)), asked)


def held_items(recipe: Recipe, dataset: Dataset, words: Words, task: Task, setting: Setting) -> Items:
    """The held-out rows as the task sees them. Raises TL-DATA-CONTEXT where the model has no place for one,
    TL-DATA-VOCABULARY where it has no row for a token."""
    held = task.items(Rows(words.samples(dataset, "validation"), lambda: dataset.records("validation")), setting)
    most, lengths = room(recipe, words.folder, task), held.samples.lengths
    if most and (long := np.flatnonzero(lengths > most)).size:
        raise DataError("TL-DATA-CONTEXT", where="validation", n=len(long), of=len(lengths), context=most,
                        length=int(lengths.max()), example=held.samples.names[long[0]].decode())  # fmt: skip
    rows = vocabulary(words.folder)
    if rows and len(held.samples) and (unknown := np.flatnonzero(beyond(held.samples, rows))).size:
        token = str(words.tokenizer.convert_ids_to_tokens(int(held.samples.ids.max())))
        raise DataError("TL-DATA-VOCABULARY", where="validation", n=len(unknown), of=len(lengths), token=token,
                        tokens=len(words.tokenizer), rows=rows,
                        example=held.samples.names[unknown[0]].decode())  # fmt: skip
    return held


def room(recipe: Recipe, folder: Path, task: Task) -> int:
    """The longest sample that the model has places for beside the virtual tokens; 0 where any length has."""
    most = context(folder)
    if not most or (task.writes and not numbered_places(folder)):
        return 0
    train = recipe.train
    if not METHODS[train.method].virtual:
        return most
    virtual = adapters.read_config(Path(train.adapter)).get("num_virtual_tokens") if train.adapter else None
    return max(1, most - int(virtual or train.virtual.tokens))
