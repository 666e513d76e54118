"""What a run trains on and measures: a dataset's rows as the recipe's model and task see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tuneloop.base.errors import DataError, ModelError, RecipeError, TuneloopError
from tuneloop.base.files import printable
from tuneloop.base.language import listed, t
from tuneloop.base.records import Message, Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.card.excerpts import View
from tuneloop.data.kinds import KINDS
from tuneloop.data.tokens.encode import encode_records, marked
from tuneloop.data.tokens.preflight import beyond
from tuneloop.data.tokens.samples import Sequences
from tuneloop.data.version.dataset import Dataset
from tuneloop.data.version.split import Split
from tuneloop.hub.folder_check import context as context_length
from tuneloop.hub.folder_check import vocabulary
from tuneloop.hub.resolve import model_folder
from tuneloop.inference.tokenizer import fingerprint, load_tokenizer
from tuneloop.methods import adapters
from tuneloop.methods.table import METHODS
from tuneloop.model.load import known_labels, numbered_places
from tuneloop.recipe.choices import task_choice
from tuneloop.recipe.defaults import roomy, settled
from tuneloop.recipe.schema import Recipe, TrainPart
from tuneloop.registry import versions
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
        records = [
            Record(tuple(Message("user", text) for text in texts), "", n, kind="label")
            for n, texts in enumerate((("a",), ("1.",), ("字",), ("a", "a")))
        ]
        rows = SplitView(self.encode(records), lambda: records)
        setting = TaskContext(train, self.tokenizer, masked=masked(self.folder, self.tokenizer))
        try:
            return max(0, int((task.view(rows, setting).samples.lengths - rows.samples.lengths).max()))
        except RecipeError:
            return 0

    @property
    def context(self) -> int:
        """The longest sequence that the model was made for; of a tokenizer alone, the one that it was made for."""
        limit = int(getattr(self.tokenizer, "model_max_length", 0) or 0)
        return context_length(self.folder) or (limit if self.alone and limit < _NO_CONTEXT else 0)

    @property
    def alone(self) -> bool:
        """Whether there is a tokenizer and no model."""
        return not has_model(self.folder)

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


def has_model(folder: Path) -> bool:
    """Whether a model lies in a folder, and not a tokenizer alone."""
    return (folder / "config.json").is_file()


def tokenizer_bundle(recipe: Recipe) -> TokenizerBundle:
    """The tokenizer of a recipe's model, or one that stands alone, with its folder and key."""
    folder = model_folder(recipe.model, weights=False)
    tokenizer = load_tokenizer(folder, recipe.model.template)
    key = fingerprint(folder, tokenizer)
    if recipe.prepare.empty_thoughts:
        key = sha256(f"{key} empty thoughts".encode()).hexdigest()[:12]
    return TokenizerBundle(folder, tokenizer, key, recipe.prepare.empty_thoughts)


@dataclass(frozen=True, slots=True, eq=False)
class TrainingInput:
    """What is planned with and trained on, put together once by `assemble`.

    `recipe` has what its rows decide: the task, the rate, a pass for the longest row, and where its adapters lie.
    `folder` is the model's, or a tokenizer's alone. `samples` are the training rows as the task's model reads them;
    `train` and `held` the examples of the two sides, of which those of `held` that weigh nothing tell nothing.
    """

    recipe: Recipe
    folder: Path
    task: Task
    context: TaskContext
    dataset: Dataset
    samples: Sequences
    train: Examples
    held: Examples
    prompts: tuple[str, ...] = ()
    """Those that evaluation asks before and after: of `evaluate.show`, then of all probes."""

    @property
    def alone(self) -> bool:
        """Whether there is a tokenizer and no model: rows can be counted, and nothing be trained."""
        return not has_model(self.folder)

    @property
    def max_sequence_length(self) -> int:
        return max_sequence_length(self.recipe, self.folder, self.task)

    def questions(self) -> Sequence[Record]:
        """The held-out rows that may be answered while training."""
        wanted = self.recipe.train.sample_answers and self.task.generates
        return self.dataset.records("validation") if wanted else ()

    def require_held(self) -> None:
        """Raise TL-DATA-CONTEXT where the model has no place for a held-out row, TL-DATA-VOCABULARY where it has no row
        for a token."""
        most, lengths = self.max_sequence_length, self.held.samples.lengths
        names = self.held.samples.names
        if most and (long := np.flatnonzero(lengths > most)).size:
            raise DataError(
                "TL-DATA-CONTEXT",
                where="validation",
                n=len(long),
                of=len(lengths),
                context=most,
                length=int(lengths.max()),
                example=names[long[0]].decode(),
            )
        rows = vocabulary(self.folder)
        if rows and len(self.held.samples) and (unknown := np.flatnonzero(beyond(self.held.samples, rows))).size:
            tokenizer = self.context.tokenizer
            token = str(tokenizer.convert_ids_to_tokens(int(self.held.samples.ids.max())))
            raise DataError(
                "TL-DATA-VOCABULARY",
                where="validation",
                n=len(unknown),
                of=len(lengths),
                token=token,
                tokens=len(tokenizer),
                rows=rows,
                example=names[unknown[0]].decode(),
            )


def assemble(recipe: Recipe, dataset: Dataset, workspace: Path = Path(), prompts: Sequence[str] = ()) -> TrainingInput:
    """The rows of a dataset as the recipe's model and task see them. Adapters are named by run, version or folder.

    Raises TL-MODEL-NO-ADAPTER, TL-DATA-TASK, and what a task says of rows that cannot teach it.
    """
    recipe = located(_settled(recipe, dataset), workspace)
    bundle, task = tokenizer_bundle(recipe), TASKS[recipe.train.task]
    context = _task_context(recipe, dataset, bundle, task)

    def view(side: Split) -> SplitView:
        rows = SplitView(bundle.samples(dataset, side), lambda: dataset.records(side), lambda: dataset.labels(side))
        return task.view(rows, context)

    train, held = view("train"), view("validation")
    return TrainingInput(
        recipe,
        bundle.folder,
        task,
        context,
        dataset,
        train.samples,
        task.items(train, context),
        task.items(held, context),
        tuple(prompts),
    )


def _settled(recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe with what its rows decide: the task and its usual learning rate, where none is written; and where
    their length is left to them, a pass that the longest fits into."""
    kinds = list(dataset.manifest["kinds"])
    name = task_name(recipe.train.task, kinds, printable(dataset.path))
    samples = max((KINDS[kind].pass_samples for kind in kinds), default=1)
    recipe = roomy(settled(recipe, name)[0], int(dataset.manifest["tokens"]["longest"]), samples)
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"task": name})})


def adapter_folder(ref: str, workspace: Path) -> Path:
    """The adapter that a run, a version or a folder names, an absolute path. Raises TL-MODEL-NO-ADAPTER."""
    run = versions.locate(workspace, ref)
    path = Path(ref).expanduser() if run is None else run / "adapter"
    adapters.read_config(path)
    return path.resolve()


def located(recipe: Recipe, workspace: Path) -> Recipe:
    """The recipe with the folders of the adapters it names by run, version or folder. Raises TL-MODEL-NO-ADAPTER."""

    def folder(ref: str) -> str:
        return str(adapter_folder(ref, workspace))

    train = recipe.train
    update = {"adapter": folder(train.adapter) if train.adapter else None, "merge": [folder(m) for m in train.merge]}
    adapters.held_alike([Path(str(m)) for m in update["merge"] or ()])
    return recipe.model_copy(update={"train": train.model_copy(update=update)})


def with_adapters(recipe: Recipe, workspace: Path) -> Recipe:
    """The recipe with the folders of its adapters; without them where they are not there yet: rows can be prepared."""
    try:
        return located(recipe, workspace)
    except TuneloopError:
        return recipe.model_copy(update={"train": recipe.train.model_copy(update={"adapter": None})})


def labelled(recipe: Recipe) -> Recipe:
    """The recipe with what its task says of its rows: those of a classifier are labelled texts, however many labels."""
    reads = task_choice(recipe.train.task).reads
    if reads is None:
        return recipe
    files = [d if d.task or d.columns else d.model_copy(update={"task": reads}) for d in recipe.data]
    return recipe.model_copy(update={"data": files})


def _task_context(recipe: Recipe, dataset: Dataset, bundle: TokenizerBundle, task: Task) -> TaskContext:
    """What the parts of a task are told: of its classes, those of the training rows."""
    context = TaskContext(recipe.train, bundle.tokenizer, masked=masked(bundle.folder, bundle.tokenizer))
    if task.classes is None:
        return context
    counts = Counter(dataset.labels("train", repeated=False))
    known = known_labels(bundle.folder)
    if recipe.train.adapter and (theirs := adapter_labels(Path(recipe.train.adapter))):
        if set(theirs) != set(counts):
            reason = t(
                "its labels are {theirs}, and those of the rows {ours}",
                theirs=listed(theirs),
                ours=listed(sorted(counts)),
            )
            raise ModelError("TL-MODEL-METHOD", where="train.adapter", method=recipe.train.method, reason=reason)
        known = theirs
    labels, weights = task.classes(counts, recipe.train, known)
    return replace(context, labels=labels, weights=weights)


def max_sequence_length(recipe: Recipe, folder: Path, task: Task) -> int:
    """The longest sample that the model has places for beside the virtual tokens; 0 where any length has."""
    most = context_length(folder)
    if not most or (task.generates and not numbered_places(folder)):
        return 0
    return max(1, most - _virtual(recipe.train))


def _virtual(train: TrainPart) -> int:
    """Virtual tokens before each text: as many as the adapter has that is trained on, where there is one."""
    if not METHODS[train.method].virtual:
        return 0
    virtual = adapters.read_config(Path(train.adapter)).get("num_virtual_tokens") if train.adapter else None
    return int(virtual or train.virtual.tokens)
