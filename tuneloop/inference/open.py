"""What can be asked to answer, by the words a user has for it: a run, a registered version, or a model."""

from __future__ import annotations

import json
from pathlib import Path

from tuneloop.hub import resolve
from tuneloop.inference.classifier import Classifier
from tuneloop.inference.generate import Answerer
from tuneloop.inference.scorer import Scorer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import Trained, load_trained
from tuneloop.model.head import Head
from tuneloop.model.load import known_labels, load_model, placed
from tuneloop.recipe.schema import TrainPart
from tuneloop.registry import versions
from tuneloop.tasks.classify import CLASSIFY
from tuneloop.tasks.task import TaskContext


def make_answerer(trained: Trained) -> Answerer | Classifier | Scorer:
    """What answers for a trained model: one that writes, one that names labels, or one that scores answers."""
    if trained.task.classes is not None:
        return Classifier(placed(trained.model), trained.tokenizer, trained.task, trained.setting)
    model, system = placed(trained.model), trained.recipe.prepare.system
    if not trained.task.generates:
        return Scorer(model, trained.tokenizer, system)
    return Answerer(model, trained.tokenizer, system, trained.opening)


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
        return Scorer(placed(load_model(folder, head=Head("classifier", labels))), tokenizer, _system(folder))
    return Answerer(placed(load_model(folder)), tokenizer, _system(folder))


def _system(folder: Path) -> str | None:
    """The system prompt that an exported model was trained with."""
    try:
        made = json.loads((folder / "tuneloop.json").read_text(encoding="utf-8"))
        return str(made["system"]) if made.get("system") else None
    except (OSError, ValueError, AttributeError):
        return None
