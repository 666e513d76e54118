"""The proof of an export: what was written is read back from the disk and held against the trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig

from tuneloop.exports import parity
from tuneloop.exports.certificate import certify
from tuneloop.exports.forms import LlamaForm, TransformersForm
from tuneloop.exports.parity import Parity
from tuneloop.exports.reference import Reference, says
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import untrained_model
from tuneloop.methods import adapters
from tuneloop.model.backbone import unwrap
from tuneloop.model.load import load_model


def prove_model(reference: Reference, target: str, folder: Path, dtype: str) -> Parity:
    """Of a folder with a whole model. It is read in the coarser of the trained type and the one it is written in: what
    the trained model has rounded, it has rounded whatever type it is compared in."""
    coarser = max((reference.dtype, dtype), key=lambda name: torch.finfo(getattr(torch, name)).eps)
    return _proof(reference, target, load_model(folder, coarser, reference.head), folder)


def prove_adapter(reference: Reference, target: str, folder: Path) -> Parity:
    """Of a folder with an adapter, on the base as it was held in training."""
    base = untrained_model(reference.parts.weights, reference.parts.recipe, reference.head)
    model = adapters.with_adapter(base, folder)
    if (folder / "generation_config.json").is_file():
        unwrap(model).generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    if reference.measured is not None:  # the base rounds what it computes with, as it did in training
        reference = replace(reference, evidence=reference.measured, measured=None)
    return _proof(reference, target, model, folder)


def _proof(reference: Reference, target: str, model: nn.Module, folder: Path) -> Parity:
    """Models that write get a certificate; of labels and scores, numbers are compared."""
    tokenizer = load_tokenizer(folder)
    if reference.parts.task.answers == "text":
        return certify(reference.evidence, TransformersForm(model, tokenizer), target, reference.measured)
    return parity.compare(reference.evidence, says(reference, model, tokenizer), reference.measured)


def prove_gguf(
    reference: Reference, target: str, gguf: Path, lora: Path | None = None, template: Path | None = None
) -> Parity:
    """Of a GGUF file, with an adapter in another and a chat template in a third, as llama.cpp reads them."""
    from tuneloop.gguf.llamacpp import LlamaCpp

    more = [lora] if lora else []
    with LlamaCpp(gguf, adapters=more) as llama:
        return certify(reference.evidence, LlamaForm(llama, gguf, more, template), target, reference.measured)
