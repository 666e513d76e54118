"""What an engine's process answers with, loaded by the words a user has for it: a run, a version or a model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tuneloop.base.errors import ServeError
from tuneloop.hub import resolve
from tuneloop.hub.provenance import base_name, provenance_note
from tuneloop.inference.classifier import Classifier
from tuneloop.inference.embedder import is_encoder, load_embedder
from tuneloop.inference.generate import Answerer
from tuneloop.inference.open import answerer, make_answerer
from tuneloop.inference.row_adapters import RowAdapters
from tuneloop.inference.scorer import Scorer
from tuneloop.inference.trained import load_trained
from tuneloop.methods import adapters
from tuneloop.methods.wrap import bits_of
from tuneloop.model.load import load_model, placed
from tuneloop.recipe.schema import Recipe
from tuneloop.recipe.serve import ServePart
from tuneloop.registry import versions
from tuneloop.runs.run import run_recipe
from tuneloop.serving.catalogue import held_words
from tuneloop.serving.worker.adapter_store import AdapterStore
from tuneloop.serving.worker.chat_format import ChatFormat, Tokens
from tuneloop.serving.worker.single import Single
from tuneloop.serving.worker.writing import Writing
from tuneloop.tasks.table import TASKS, task_name

GIB = 1 << 30


def serving_model(ref: str, workspace: Path, settings: ServePart, key: str) -> Writing | Single:
    """The model that answers for `ref`, which the server calls by `key` among the adapters.

    A LoRA run of a model that writes is its base with the adapter beside it, so that others can share its passes.
    Raises what `answerer` raises.
    """
    run = versions.locate(workspace, ref)
    if run is not None and _shares(run):
        return _base_with_adapters(run, run_recipe(run), settings, key)
    if run is not None:
        trained = load_trained(run)
        answers = make_answerer(trained)
        folder = run / "model"
    else:
        versions.require(workspace, ref)
        folder = resolve.resolve(ref)
        if is_encoder(folder):
            return Single(load_embedder(folder))
        answers = answerer(ref, workspace)
    if not isinstance(answers, Answerer):
        return Single(answers)
    if not folder.is_dir():  # virtual tokens stand in front of every row
        return _alone(answers, settings)
    store = AdapterStore(RowAdapters(answers.model), folder, settings.adapter_memory * GIB)
    chat_format = store.format_of(folder, answers.tokenizer, answers.system, answers.answer_prefix)
    about = {"name": None, "model": ref, "note": provenance_note(folder), "bits": adapters.WHOLE}
    return Writing(answers.model, chat_format, settings, store=store, shared=about)


def _shares(run: Path) -> bool:
    """Whether a run's result is a LoRA adapter of a model that writes."""
    if not (run / "adapter").is_dir() or TASKS[task_name(run_recipe(run).train.task, ())].answers != "text":
        return False
    return bool(adapters.read_config(run / "adapter")["peft_type"] == "LORA")


def _base_with_adapters(run: Path, recipe: Recipe, settings: ServePart, key: str) -> Writing:
    base, bits = resolve.model_folder(recipe.model), bits_of(recipe.train)
    model: nn.Module = placed(load_model(base, recipe.model.dtype, quantized=bits))
    store = AdapterStore(RowAdapters(model), base, settings.adapter_memory * GIB)
    store.base_format()
    try:
        own = store.load(key, run)
    except ServeError:  # a kind that cannot share passes, or one that does not fit: then it is said here
        del store, model
        return _alone(make_answerer(load_trained(run)), settings)
    held = {"bits": adapters.WHOLE} if bits is None else {"bits": bits.bits, "double": bits.double}
    about = {"name": base_name(recipe, base), "model": recipe.model.name, "note": provenance_note(base)}
    return Writing(model, own.format, settings, store=store, own=own, shared={**about, "bits": held_words(held)})


def _alone(answers: Answerer | Classifier | Scorer, settings: ServePart) -> Writing:
    """A model that writes and shares its passes with no adapter."""
    assert isinstance(answers, Answerer)
    chat_format = ChatFormat(answers.model, Tokens(answers.tokenizer), answers.system, answers.answer_prefix)
    return Writing(answers.model, chat_format, settings)
