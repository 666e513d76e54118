"""Merge: a finished run as one plain model folder that any tool loads, proven equal to what was trained."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from tuneloop.base import refusals
from tuneloop.base.errors import RunError
from tuneloop.base.files import flush
from tuneloop.data.tokens.templates import Chat, stop_ids
from tuneloop.exports import card, parity
from tuneloop.exports.evidence import EVIDENCE, Questions
from tuneloop.hub.provenance import base_name, licence
from tuneloop.hub.pull import PROVENANCE, provenance
from tuneloop.hub.resolve import model_folder
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import load_trained, untrained_model
from tuneloop.methods import adapters
from tuneloop.methods.table import METHODS
from tuneloop.methods.wrap import bits_of
from tuneloop.model import quantize
from tuneloop.model.backbone import unwrap
from tuneloop.model.head import Head
from tuneloop.model.load import load_model
from tuneloop.model.old_keys import keep_old_keys, write_json
from tuneloop.model.quiet import quiet
from tuneloop.recipe.schema import Recipe
from tuneloop.tasks.task import Task, TaskContext

TOKENIZER_BYTES = 64 << 20


def merge(run: Path, target: Path, *, chats: Sequence[Chat] | None = None) -> parity.Parity:
    """Write the run's model to `target`: safetensors, tokenizer, chat template, generation config, card, parity.json.

    `chats` are dialogues for the parity check; by default some that the run's evaluation has answered. Everything is
    made in a sibling folder that gets its name last. Raises TL-RUN-EXISTS, TL-RUN-UNMERGEABLE, TL-MACHINE-DISK,
    TL-RUN-PARITY and what `load_trained` raises; then `target` does not exist.
    """
    if target.exists() or target.is_symlink():
        raise RunError("TL-RUN-EXISTS", where=str(target), path=target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        saved = _save(run, partial, chats)
        proof = _check(saved, partial, where=str(target))
        _describe(run, saved, proof, partial)
        _sync(partial)
        try:
            partial.rename(target)
        except OSError as error:
            raise RunError("TL-RUN-EXISTS", where=str(target), path=target) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return proof


@dataclass(frozen=True, slots=True, eq=False)
class _Saved:
    """What remains of the trained model once it is saved and out of memory."""

    recipe: Recipe
    task: Task
    setting: TaskContext
    head: Head
    questions: Questions
    evidence: parity.Evidence
    measured: parity.Evidence | None
    """Where the trained model also rounds what it computes with, which no file can hold: what it says itself;
    `evidence` is then of the same weights without that."""
    dtype: str


def _save(run: Path, folder: Path, chats: Sequence[Chat] | None) -> _Saved:
    """Load, question, merge and save. The model goes with this frame: one copy in memory at a time."""
    trained = load_trained(run)
    recipe, task, setting, head = trained.recipe, trained.task, trained.setting, trained.head
    model, tokenizer, adapter = trained.model, trained.tokenizer, METHODS[recipe.train.method].adapter
    del trained
    if adapter and not METHODS[recipe.train.method].mergeable:
        raise RunError("TL-RUN-UNMERGEABLE", where=str(run), method=recipe.train.method)
    examination = EVIDENCE[task.answers]
    questions = examination.questions(run, model, tokenizer, chats)
    evidence = examination.evidence(model, tokenizer, task, setting, questions)
    saved = _Saved(
        recipe, task, setting, head, questions, evidence, None, str(unwrap(model).dtype).removeprefix("torch.")
    )
    if adapter:
        del model
        model, again = _merged(run, saved, tokenizer)
        if again is not None:
            saved = replace(saved, evidence=again, measured=saved.evidence)
    assert isinstance(model, PreTrainedModel)
    refusals.require_space(folder.parent, _bytes(model) + TOKENIZER_BYTES)
    quantize.forget(model)  # a model read from GGUF says it is quantised, too
    _stop_where_trained(model, tokenizer)
    with quiet():
        model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    keep_old_keys(folder, model_folder(recipe.model))
    return saved


def _merged(run: Path, saved: _Saved, tokenizer: Any) -> tuple[PreTrainedModel, parity.Evidence | None]:
    """The base with the run's adapter added into its weights: those that it was trained on, which qlora has rounded.

    Where training rounded activations as well (int8), also what base and adapter say without that.
    """
    bits, adapter = bits_of(saved.recipe.train), run / "adapter"
    base = untrained_model(model_folder(saved.recipe.model), saved.recipe, saved.head)
    evidence = None
    if bits is not None:
        base = quantize.dequantized(base)
    if bits is not None and bits.bits == "int8":
        wrapped = adapters.with_adapter(base, adapter)
        evidence = _evidence(wrapped, tokenizer, saved)
        base = wrapped.unload()
    return adapters.added(base, adapter), evidence


def _evidence(model: nn.Module, tokenizer: Any, saved: _Saved) -> parity.Evidence:
    """What a model says to the questions that the trained one was asked."""
    return EVIDENCE[saved.task.answers].evidence(model, tokenizer, saved.task, saved.setting, saved.questions)


def _check(saved: _Saved, folder: Path, *, where: str) -> parity.Parity:
    """Parity with what was read back from the disk, not with what was in memory."""
    model, tokenizer = load_model(folder, saved.dtype, saved.head), load_tokenizer(folder)
    proof = parity.compare(saved.evidence, _evidence(model, tokenizer, saved), saved.measured)
    parity.require(proof, where)
    return proof


def _describe(run: Path, saved: _Saved, proof: parity.Parity, folder: Path) -> None:
    base = model_folder(saved.recipe.model)
    write_json(folder / "parity.json", proof.as_dict())
    own = {"name": saved.recipe.name, "kind": "merged", "base": base_name(saved.recipe, base)}
    # Whoever trains on from this folder finds the base model's licence in it.
    write_json(
        folder / PROVENANCE,
        {
            **own,
            "licence": licence(base),
            "terms": provenance(base).get("terms"),
            "system": saved.recipe.prepare.system,
        },
    )
    text = card.card(run, saved.recipe, base, proof, dtype=saved.dtype, head=saved.head)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _stop_where_trained(model: PreTrainedModel, tokenizer: Any) -> None:
    """Other tools stop where the generation config says: the token the template ends an answer with must be in it."""
    config = getattr(model, "generation_config", None)  # a model that names labels has none
    if config is None:
        return
    own = config.eos_token_id
    own = [] if own is None else own if isinstance(own, list) else [own]
    config.eos_token_id = sorted({*own, *stop_ids(tokenizer)}) or None
    if not config.do_sample:
        # Settings of sampling in a greedy configuration: transformers warns of them, and refuses to save them.
        for name in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
            setattr(config, name, None)


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters()) + sum(
        b.numel() * b.element_size() for b in model.buffers()
    )


def _sync(folder: Path) -> None:
    """Bytes reach the disk before the name does: a crash must not leave a named folder with empty files.

    safetensors makes its files private; they get the permissions of the others.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod((folder / "config.json").stat().st_mode)
            flush(path)
