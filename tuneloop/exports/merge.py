"""Merge: base and adapters of a finished run as one model folder that any tool loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tuneloop.data.tokens.templates import stop_ids
from tuneloop.exports import streamed
from tuneloop.exports.composition import Composition, added_adapters
from tuneloop.exports.reference import Reference
from tuneloop.hub.provenance import licence
from tuneloop.hub.pull import PROVENANCE, provenance
from tuneloop.inference.trained import untrained_model
from tuneloop.methods import adapters
from tuneloop.model import quantize
from tuneloop.model.old_keys import keep_old_keys, write_json
from tuneloop.model.quiet import quiet


def merge(reference: Reference, folder: Path, dtype: str) -> None:
    """Write the merged model to the new folder: safetensors, config, tokenizer, chat template, generation config.

    The adapters are added in the type, and to the numbers, that they were trained on, which qlora has rounded; `dtype`
    is what the sum is then written in. Weights pass one by one where that gives what PEFT gives, else all are loaded.
    Raises TL-RUN-NOT-FINITE and what `adapters.added` raises.
    """
    parts, held, wanted = reference.parts, getattr(torch, reference.dtype), getattr(torch, dtype)
    folder.mkdir()
    additions = streamed.additions(parts.weights, reference.head, parts.adapters, held)
    if additions is None:
        model = _merged(reference).to(wanted)
        _stop_where_trained(model, reference.tokenizer)
        with quiet():
            model.save_pretrained(folder, safe_serialization=True)
    else:
        model = streamed.write(
            parts.weights,
            folder,
            head=reference.head,
            added=additions,
            held=held,
            dtype=wanted,
            bits=parts.bits,
            quantised=reference.quantised,
        )
        _stop_where_trained(model, reference.tokenizer)
        streamed.save_configs(model, folder)
    reference.tokenizer.save_pretrained(folder)
    keep_old_keys(folder, parts.base)
    write_origin(parts, folder, "merged")


def write_origin(parts: Composition, folder: Path, kind: str, digests: Mapping[str, str] | None = None) -> None:
    """Say in tuneloop.json where a model is from: whoever trains on from this folder finds the base's licence in it,
    and whoever serves it the SHA-256 of its weights' files (`digests`)."""
    source = {
        "name": parts.name,
        "kind": kind,
        "base": parts.base_name,
        "licence": licence(parts.base),
        "terms": provenance(parts.base).get("terms"),
        "system": parts.recipe.prepare.system,
    }
    if digests:
        source["files"] = dict(digests)
    if parts.more:
        source["adapters"] = [asdict(adapter) for adapter in added_adapters(parts)]
    write_json(folder / PROVENANCE, source)


def _merged(reference: Reference) -> PreTrainedModel:
    """The model in memory, its adapters added by PEFT."""
    parts = reference.parts
    model = untrained_model(parts.weights, parts.recipe, reference.head)
    if quantize.is_quantized(model):
        model = quantize.dequantized(model)
    for adapter in parts.adapters:
        model = adapters.added(model, adapter)
    quantize.forget(model)  # a model read from GGUF says it is quantised, too
    return model


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


def generation_config(reference: Reference, folder: Path) -> None:
    """The base's generation config, with the end tokens of what was trained, for an export without a model's config."""
    model = streamed.skeleton(reference.parts.weights, reference.head)
    if model.can_generate():
        _stop_where_trained(model, reference.tokenizer)
        with quiet():
            model.generation_config.save_pretrained(folder)
        keep_old_keys(folder, reference.parts.base)
