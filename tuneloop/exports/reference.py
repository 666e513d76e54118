"""The reference of an export: the trained model as it was measured, and what it says to the questions of the check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tuneloop.base.errors import DataError, RunError
from tuneloop.base.language import t
from tuneloop.data.tokens.templates import Chat, template_file
from tuneloop.exports.composition import Composition
from tuneloop.exports.evidence import EVIDENCE, Questions
from tuneloop.exports.parity import Evidence
from tuneloop.inference.trained import load_trained, untrained_model
from tuneloop.methods import adapters
from tuneloop.model import quantize
from tuneloop.model.backbone import unwrap
from tuneloop.model.head import Head
from tuneloop.tasks.task import TaskContext


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What remains of the trained model once it was questioned and is out of memory."""

    parts: Composition
    context: TaskContext
    head: Head
    dtype: str
    """Type of its weights: float32, bfloat16 or float16."""
    quantised: frozenset[str]
    """Names of the weights that were held in 4 or 8 bits, without the adapter around them."""
    questions: Questions
    evidence: Evidence
    measured: Evidence | None = None
    """Where the trained model also rounds what it computes with, which no file can hold: what it says itself;
    `evidence` is then of the same weights without that."""

    @property
    def tokenizer(self) -> Any:
        return self.context.tokenizer


def reference(parts: Composition, chats: Sequence[Chat] | None = None) -> Reference:
    """Load the model of these parts, question it, and let it go. `chats` are dialogues to ask about, by default some
    that the run's evaluation has answered. Raises TL-RUN-NOT-FINITE, TL-DATA-TEMPLATE of the run's own template, and
    what `load_trained` raises.
    """
    try:
        return _reference(parts, chats)
    except DataError as error:
        if error.code == "TL-DATA-TEMPLATE" and not error.where:
            error.where = str(template_file(parts.run / ("adapter" if parts.weights == parts.base else "model")))
        raise


def _reference(parts: Composition, chats: Sequence[Chat] | None) -> Reference:
    trained = load_trained(parts.run)
    model, context, head = trained.model, trained.setting, trained.head
    del trained
    quantised = frozenset(_bare(n) for n, p in model.named_parameters() if type(p).__name__ in quantize.QUANTISED)
    dtype = str(unwrap(model).dtype).removeprefix("torch.")
    if parts.more:
        del model
        model = unrounded(parts, head)
    examination = EVIDENCE[parts.task.answers]
    questions = examination.questions(parts.run, model, context.tokenizer, chats)
    measured, evidence = None, examination.evidence(model, context.tokenizer, parts.task, context, questions)
    if parts.bits is not None and parts.bits.bits == "int8" and not parts.more:
        del model
        model = unrounded(parts, head)
        measured, evidence = evidence, examination.evidence(model, context.tokenizer, parts.task, context, questions)
    _require_numbers(parts, evidence)
    return Reference(parts, context, head, dtype, quantised, questions, evidence, measured)


def _require_numbers(parts: Composition, evidence: Evidence) -> None:
    """Raise TL-RUN-NOT-FINITE for a trained model whose logits are no numbers, or all the same."""
    for logits in evidence.logits:
        if not bool(torch.isfinite(logits).all()) or (logits.shape[-1] > 2 and not bool(logits.std(-1).any())):
            trained = parts.adapters[0] if parts.adapters else parts.weights
            error = t("the trained model itself computes none, whatever it is asked")
            raise RunError("TL-RUN-NOT-FINITE", where=str(trained), error=error)


def unrounded(parts: Composition, head: Head) -> nn.Module:
    """The base with the numbers that its weights stand for in training, all adapters but the last added into them, and
    the last one beside them."""
    model: PreTrainedModel = untrained_model(parts.weights, parts.recipe, head)
    if quantize.is_quantized(model):
        model = quantize.dequantized(model)
    if not parts.adapters:
        return model
    for adapter in parts.adapters[:-1]:
        model = adapters.added(model, adapter)
    return adapters.with_adapter(model, parts.adapters[-1])


def says(reference: Reference, model: nn.Module, tokenizer: Any) -> Evidence:
    """What another model says to the questions that the trained one was asked."""
    parts = reference.parts
    examination = EVIDENCE[parts.task.answers]
    return examination.evidence(model, tokenizer, parts.task, reference.context, reference.questions)


def _bare(name: str) -> str:
    """The name of a weight in the base model, whatever PEFT has put around it.

    >>> _bare("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")
