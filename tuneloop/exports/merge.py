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
from tuneloop.base.records import Record
from tuneloop.data.tokens.templates import Chat, stop_ids
from tuneloop.exports import card, parity
from tuneloop.hub.provenance import base_name, licence
from tuneloop.hub.pull import PROVENANCE, provenance
from tuneloop.hub.resolve import model_folder
from tuneloop.inference.classifier import Classifier
from tuneloop.inference.generate import Answerer
from tuneloop.inference.scorer import Scorer
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
from tuneloop.runs.run import Run
from tuneloop.tasks.task import Task, TaskContext

QUESTIONS = (
    "Who are you?",
    "Give three tips for staying healthy.",
    "你好，请介绍一下你自己。",
    "Write a Python function that adds two numbers.",
)
"""Asked by the parity check when the run has no evaluated answers of its own."""
CHATS = 4
"""Dialogues of the parity check."""
TOKENIZER_ROOM = 64 << 20


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
        found = _check(saved, partial, where=str(target))
        _describe(run, saved, found, partial)
        _sync(partial)
        try:
            partial.rename(target)
        except OSError as error:
            raise RunError("TL-RUN-EXISTS", where=str(target), path=target) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Saved:
    """What remains of the trained model once it is saved and out of memory."""

    recipe: Recipe
    task: Task
    setting: TaskContext
    head: Head
    chats: list[Chat]
    texts: list[str]
    held: list[Record]
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
    texts = classified(run) if task.classes is not None else []
    asked = scored() if task.classes is None and not task.generates else []
    held = parity.held_rows(run, tokenizer) if task.generates else []
    if task.generates:
        asked = [c for c in (dialogues(run) if chats is None else chats) if parity.questions(c)][:CHATS]
        asked = asked or [[{"role": "user", "content": q}] for q in QUESTIONS]
        asked = _answered(Answerer(model, tokenizer), asked)
    saved = _Saved(recipe, task, setting, head, asked, texts, held, _evidence(model, tokenizer, task, setting, asked,
                   texts, held), None, str(unwrap(model).dtype).removeprefix("torch."))  # fmt: skip
    if adapter:
        del model
        model, again = _whole(run, saved, tokenizer)
        if again is not None:
            saved = replace(saved, evidence=again, measured=saved.evidence)
    assert isinstance(model, PreTrainedModel)
    refusals.require_space(folder.parent, _bytes(model) + TOKENIZER_ROOM)
    quantize.forget(model)  # a model read from GGUF says it is quantised, too
    _stop_where_trained(model, tokenizer)
    with quiet():
        model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    keep_old_keys(folder, model_folder(recipe.model))
    return saved


def _whole(run: Path, saved: _Saved, tokenizer: Any) -> tuple[PreTrainedModel, parity.Evidence | None]:
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
        evidence = _evidence(wrapped, tokenizer, saved.task, saved.setting, saved.chats, saved.texts, saved.held)
        base = wrapped.unload()
    return adapters.added(base, adapter), evidence


def _evidence(
    model: nn.Module, tokenizer: Any, task: Task, setting: TaskContext, chats: Sequence[Chat], texts: Sequence[str],
    held: Sequence[Record],
) -> parity.Evidence:  # fmt: skip
    """What a model says, by what its task has to say."""
    if task.classes is not None:
        return parity.measure_labels(Classifier(model, tokenizer, task, replace(setting, tokenizer=tokenizer)), texts)
    if not task.generates:
        return parity.measure_scores(Scorer(model, tokenizer), chats)
    return parity.measure(model, tokenizer, chats, held)


def _check(saved: _Saved, folder: Path, *, where: str) -> parity.Parity:
    """Parity with what was read back from the disk, not with what was in memory."""
    model, tokenizer = load_model(folder, saved.dtype, saved.head), load_tokenizer(folder)
    exported = _evidence(model, tokenizer, saved.task, saved.setting, saved.chats, saved.texts, saved.held)
    found = parity.compare(saved.evidence, exported, saved.measured)
    parity.require(found, where)
    return found


def _describe(run: Path, saved: _Saved, found: parity.Parity, folder: Path) -> None:
    base = model_folder(saved.recipe.model)
    write_json(folder / "parity.json", found.as_dict())
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
    text = card.card(run, saved.recipe, base, found, dtype=saved.dtype)
    (folder / "README.md").write_text(text, encoding="utf-8")


def dialogues(run: Path) -> list[Chat]:
    """Question and reference answer of what the run's evaluation has asked; [] without an evaluation."""
    answers = Run(run).read("evaluation.json").get("answers", [])
    return [
        [{"role": "user", "content": a["prompt"]}, {"role": "assistant", "content": a.get("reference") or a["after"]}]
        for a in answers
        if a.get("prompt") and (a.get("reference") or a.get("after"))
    ]


def classified(run: Path) -> list[str]:
    """Texts that a classifier's evaluation shows, and questions beside them, so that there is always one."""
    evaluation = Run(run).read("evaluation.json")
    shown = [str(one["text"]) for one in evaluation.get("mistakes") or () if one.get("text")]
    return [*shown, *(str(one["prompt"]) for one in evaluation.get("show") or ()), *QUESTIONS]


def scored() -> list[Chat]:
    """Dialogues for a reward model: any will do, for scores can be compared to the last digit."""
    return [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q in QUESTIONS for a in QUESTIONS]


def _answered(answerer: Answerer, chats: Sequence[Chat]) -> list[Chat]:
    """The chats that have an assistant turn as they are; the others with the trained model's answer."""
    out: list[Chat] = []
    for chat in chats:
        if not any(m["role"] == "assistant" for m in chat):
            reply = answerer.answer([chat], max_new_tokens=parity.NEW_TOKENS)[0]
            chat = [*chat, {"role": "assistant", "content": reply.text}]
        out.append(chat)
    return out


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
