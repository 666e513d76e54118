"""Tied tensors: a language head and the embeddings that are one, and what happens where only one of them is changed."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def tied_parts(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Name -> module of the embeddings and of the head, where they are one tensor; {} where they are two."""
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not words.weight:
        return {}
    return {n: m for n, m in model.named_modules() if m is words or m is head}


def reached(model: PreTrainedModel, targets: Any) -> list[str]:
    """Which of two tied parts an adapter with these `target_modules` (names, or a pattern) changes alone."""
    if not targets:
        return []
    if isinstance(targets, str):
        return [n for n in tied_parts(model) if re.fullmatch(targets, n)]
    return [n for n in tied_parts(model) if any(n == x or n.endswith("." + x) for x in targets)]


def untied(model: PreTrainedModel, targets: Any) -> None:
    """Give the head a tensor of its own, where an adapter with these targets changes the head or the embeddings."""
    if not reached(model, targets):
        return
    head = model.get_output_embeddings()
    for name, parameter in list(head.named_parameters(recurse=False)):
        setattr(head, name, nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad))
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
