"""What can be asked to answer, by the words a user has for it: a run, a registered version, or a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tuneloop.hub import resolve
from tuneloop.inference.classifier import Classifier
from tuneloop.inference.generate import Answerer
from tuneloop.inference.scorer import Scorer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import Trained, load_trained
from tuneloop.model.head import Answers, Head
from tuneloop.model.load import known_labels, load_model, placed
from tuneloop.recipe.schema import TrainPart
from tuneloop.registry import versions
from tuneloop.tasks.classify import CLASSIFY
from tuneloop.tasks.task import TaskContext


def _writer(trained: Trained) -> Answerer:
    return Answerer(trained.model, trained.tokenizer, trained.recipe.prepare.system, trained.answer_prefix)


def _classifier(trained: Trained) -> Classifier:
    return Classifier(trained.model, trained.tokenizer, trained.task, trained.setting)


def _scorer(trained: Trained) -> Scorer:
    return Scorer(trained.model, trained.tokenizer, trained.recipe.prepare.system)


ANSWERERS: dict[Answers, Callable[[Trained], Answerer | Classifier | Scorer]] = {
    "text": _writer, "label": _classifier, "score": _scorer,
}  # fmt: skip
"""How a model answers -> what answers for it."""


def make_answerer(trained: Trained) -> Answerer | Classifier | Scorer:
    """What answers for a trained model: one that writes, one that names labels, or one that scores answers."""
    placed(trained.model)
    return ANSWERERS[trained.task.answers](trained)


def answerer(ref: str | Path, workspace: Path = Path()) -> Answerer | Classifier | Scorer:
    """A run (folder, name, "latest"), a version ("name:production"), or a model (name or folder), ready to answer.

    On the GPU where there is one. Raises what `registry.locate`, `load_trained` and `sources.resolve` raise.
    """
    run = versions.locate(workspace, str(ref))
    if run is not None:
        return make_answerer(load_trained(run))
    versions.require(workspace, str(ref))  # a run that was misspelt is no organisation on the hub
    folder = resolve.resolve(str(ref))
    tokenizer = load_tokenizer(folder)
    if len(labels := known_labels(folder)) > 1:  # an exported classifier
        model = load_model(folder, head=Head("classifier", labels))
        return Classifier(placed(model), tokenizer, CLASSIFY, TaskContext(TrainPart(), tokenizer, labels))
    if labels:  # an exported reward model
        return Scorer(placed(load_model(folder, head=Head("classifier", labels))), tokenizer, trained_system(folder))
    return Answerer(placed(load_model(folder)), tokenizer, trained_system(folder))


def trained_system(folder: Path) -> str | None:
    """The system prompt that an exported model was trained with."""
    try:
        provenance = json.loads((folder / "tuneloop.json").read_text(encoding="utf-8"))
        return str(provenance["system"]) if provenance.get("system") else None
    except (OSError, ValueError, AttributeError):
        return None
