"""What can be asked to answer, by the words a user has for it: a run, a registered version, or a model."""

from __future__ import annotations

from pathlib import Path

from tuneloop import registry
from tuneloop.model import sources
from tuneloop.model.generate import Answerer
from tuneloop.model.load import load_model, load_tokenizer, load_trained, placed


def answerer(ref: str | Path, workspace: Path = Path()) -> Answerer:
    """A run (folder, name, "latest"), a version ("name:production"), or a model (name or folder), ready to answer.

    On the GPU where there is one. Raises what `registry.locate`, `load_trained` and `sources.resolve` raise.
    """
    run = registry.locate(workspace, str(ref))
    if run is not None:
        trained = load_trained(run)
        model, tokenizer = trained.model, trained.tokenizer
    else:
        folder = sources.resolve(str(ref))
        model, tokenizer = load_model(folder), load_tokenizer(folder)
    return Answerer(placed(model), tokenizer)
