"""What a run trains on and measures: a dataset's rows as the recipe's model and task see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tuneloop.base.errors import DataError, ModelError, RecipeError
from tuneloop.base.files import printable
from tuneloop.base.language import listed, t
from tuneloop.base.records import Message, Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.card.excerpts import View
from tuneloop.data.tokens.encode import encode_records, marked
from tuneloop.data.tokens.preflight import beyond
from tuneloop.data.tokens.samples import Sequences
from tuneloop.data.version.dataset import Dataset
from tuneloop.data.version.split import Split
from tuneloop.hub.folder_check import context, vocabulary
from tuneloop.hub.resolve import model_folder
from tuneloop.inference.tokenizer import fingerprint, load_tokenizer
from tuneloop.methods import adapters
from tuneloop.methods.table import METHODS
from tuneloop.model.load import known_labels, numbered_places
from tuneloop.recipe.defaults import roomy, settled
from tuneloop.recipe.schema import Recipe, TrainPart
from tuneloop.tasks.labels_file import adapter_labels, masked
from tuneloop.tasks.table import TASKS, task_name
from tuneloop.tasks.task import SplitView, Task, TaskContext


@dataclass(frozen=True)
class TokenizerBundle:
    """A recipe's model folder and tokenizer, and the samples that they make."""

    folder: Path
    tokenizer: Any
    key: str
    empty_thoughts: bool = False

    def samples(self, dataset: Dataset, side: Split) -> Sequences:
        return dataset.samples(side, self.key, self.encode)

    def encode(self, records: Sequence[Record]) -> Sequences:
        return encode_records(self.tokenizer, records, empty_thoughts=self.empty_thoughts)

    def view(self) -> View:
        """How a dataset's card shows samples."""
        return View(lambda sample: marked(self.tokenizer, sample), self.context)

    def _around(self, train: TrainPart) -> int:
        """Tokens that a task's sample has beyond those of its row: a template around the text. 0 for a faulty
        template, which is told before training."""
        task = TASKS.get(train.task)
        if task is None or self.alone:
            return 0
        records = [Record(tuple(Message("user", text) for text in texts), "", n, kind="label")
                   for n, texts in enumerate((("a",), ("1.",), ("字",), ("a", "a")))]  # fmt: skip
        rows = SplitView(self.encode(records), lambda: records)
        setting = TaskContext(train, self.tokenizer, masked=masked(self.folder, self.tokenizer))
        try:
            return max(0, int((task.samples(rows, setting).lengths - rows.samples.lengths).max()))
        except RecipeError:
            return 0

    @property
    def context(self) -> int:
        """The longest sequence that the model was made for; of a tokenizer alone, the one that it was made for."""
        said = int(getattr(self.tokenizer, "model_max_length", 0) or 0)
        return context(self.folder) or (said if self.alone and said < _NO_CONTEXT else 0)

    @property
    def alone(self) -> bool:
        """Whether there is a tokenizer and no model."""
        return not (self.folder / "config.json").is_file()

    def most_tokens(self, recipe: Recipe) -> int:
        """The limit of a row where prepare.max_length is auto: what the model takes, 0 for any.

        Virtual tokens and what the task writes around a text need places, too. A train.token_budget that the recipe
        sets is a limit as well; the usual one is raised where rows need it.
        """
        most, train = self.context, recipe.train
        if most:
            most = max(1, most - _virtual(train) - self._around(train))
        budget = train.token_budget
        return budget if budget != TrainPart().token_budget and budget < (most or budget + 1) else most


_NO_CONTEXT = 10_000_000
"""From here on a tokenizer's model_max_length means that it knows none."""


def tokenizer_bundle(recipe: Recipe) -> TokenizerBundle:
    """The words of a recipe's model; a tokenizer alone has them as well."""
    folder = model_folder(recipe.model, weights=False)
    tokenizer = load_tokenizer(folder, recipe.model.template)
    key = fingerprint(folder, tokenizer)
    if recipe.prepare.empty_thoughts:
        key = sha256(f"{key} empty thoughts".encode()).hexdigest()[:12]
    return TokenizerBundle(folder, tokenizer, key, recipe.prepare.empty_thoughts)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingInput:
    """What a session works on: a model folder, the task, and its items to train on and to hold out."""

    folder: Path
    task: Task
    setting: TaskContext
    items: Examples
    held: Examples
    questions: Sequence[Record] = ()
    """Held-out rows that may be answered while training (train.sample_answers)."""


def settle(recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe with what its rows decide: the usual learning rate of their task, where none is written; and where
    their length is left to them, a pass that the longest has room in."""
    kinds = list(dataset.manifest["kinds"])
    recipe = settled(recipe, task_name(recipe.train.task, kinds, printable(dataset.path)))[0]
    return roomy(recipe, int(dataset.manifest["tokens"]["longest"]), kinds)


def setting_of(recipe: Recipe, dataset: Dataset, words: TokenizerBundle) -> tuple[Task, TaskContext]:
    """The task of a recipe, and what it is told: of its classes, those of the training rows."""
    task = TASKS[task_name(recipe.train.task, list(dataset.manifest["kinds"]), printable(dataset.path))]
    setting = TaskContext(recipe.train, words.tokenizer, masked=masked(words.folder, words.tokenizer))
    if task.classes is None:
        return task, setting
    counts = Counter(record.label for record, _, _ in dataset.rows("train"))
    known = known_labels(words.folder)
    if recipe.train.adapter and (theirs := adapter_labels(Path(recipe.train.adapter))):
        if set(theirs) != set(counts):
            reason = t("its labels are {theirs}, and those of the rows {ours}", theirs=listed(theirs),
                       ours=listed(sorted(counts)))  # fmt: skip
            raise ModelError("TL-MODEL-METHOD", where="train.adapter", method=recipe.train.method, reason=reason)
        known = theirs
    labels, weights = task.classes(counts, recipe.train, known)
    return task, replace(setting, labels=labels, weights=weights)


def assemble(recipe: Recipe, dataset: Dataset) -> TrainingInput:
    """What a session trains on and measures: the rows of a dataset as the recipe's task sees them."""
    words = tokenizer_bundle(recipe)
    task, setting = setting_of(recipe, dataset, words)

    def items(side: Split) -> Examples:
        return task.items(SplitView(words.samples(dataset, side), lambda: dataset.records(side)), setting)

    held = held_items(recipe, dataset, words, task, setting)
    asked = dataset.records("validation") if recipe.train.sample_answers and task.generates else ()
    return TrainingInput(words.folder, task, setting, items("train"), held.take(np.flatnonzero(held.weights)), asked)


def held_items(recipe: Recipe, dataset: Dataset, words: TokenizerBundle, task: Task, setting: TaskContext) -> Examples:
    """The held-out rows as the task sees them. Raises TL-DATA-CONTEXT where the model has no place for one,
    TL-DATA-VOCABULARY where it has no row for a token."""
    held = task.items(SplitView(words.samples(dataset, "validation"), lambda: dataset.records("validation")), setting)
    most, lengths = max_sequence_length(recipe, words.folder, task), held.samples.lengths
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


def max_sequence_length(recipe: Recipe, folder: Path, task: Task) -> int:
    """The longest sample that the model has places for beside the virtual tokens; 0 where any length has."""
    most = context(folder)
    if not most or (task.generates and not numbered_places(folder)):
        return 0
    return max(1, most - _virtual(recipe.train))


def _virtual(train: TrainPart) -> int:
    """Virtual tokens before each text: as many as the adapter has that is trained on, where there is one."""
    if not METHODS[train.method].virtual:
        return 0
    virtual = adapters.read_config(Path(train.adapter)).get("num_virtual_tokens") if train.adapter else None
    return int(virtual or train.virtual.tokens)
