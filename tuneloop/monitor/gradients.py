"""The norm of the gradient, of all weights and of groups of neighbouring layers, from one pass over the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype, _has_foreach_support

RANGES = 8
"""Layers are told apart in at most so many ranges."""

_LAYER = re.compile(r"(?:^|\.)(?:\w*layers?|h|\w*blocks?)\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(?:^|\.)(?:\w*embeddings?|\w*embed_\w+|wte|wpe)(?:\.|$)")
_HEAD = re.compile(r"(?:^|\.)(?:\w*head|score|cls|classifier|pooler)(?:\.|$)")
_PROMPT = re.compile(r"(?:^|\.)prompt_encoder\.")


def layer_of(name: str) -> int | None:
    """The number of the layer that a weight belongs to, by its name; None where it is of none.

    >>> layer_of("model.base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight")
    3
    >>> layer_of("model.bert.encoder.layer.11.output.dense.weight"), layer_of("model.lm_head.weight")
    (11, None)
    """
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def group_names(names: Sequence[str]) -> list[str]:
    """The group of each weight: "embeddings", a range of layers (counted from 0), "head" or "rest".

    >>> group_names(["wte.weight", "h.0.mlp.weight", "h.1.mlp.weight", "ln_f.weight", "lm_head.weight"])
    ['embeddings', 'layer 0', 'layer 1', 'rest', 'head']
    """
    layers = sorted({layer for name in names if (layer := layer_of(name)) is not None})
    parts = min(RANGES, len(layers))
    label: dict[int, str] = {}
    for k in range(parts):
        part = layers[k * len(layers) // parts : (k + 1) * len(layers) // parts]
        name = f"layer {part[0]}" if len(part) == 1 else f"layers {part[0]}-{part[-1]}"
        label |= dict.fromkeys(part, name)

    def group(name: str) -> str:
        layer = layer_of(name)
        if layer is not None:
            return label[layer]
        if _PROMPT.search(name):
            return "rest"
        return "embeddings" if _EMBEDDINGS.search(name) else "head" if _HEAD.search(name) else "rest"

    return [group(name) for name in names]


@dataclass(frozen=True, slots=True, eq=False)
class GradientNorms:
    """Of one step, before clipping, on the device: `total` float32 []; `each` [weights], the norm of every weight's
    gradient; `groups` names the group of each."""

    total: Tensor
    each: Tensor
    groups: Sequence[str]

    def read(self) -> dict[str, float]:
        """The norm of each group, in the order of the weights. It waits for the device."""
        squares: dict[str, float] = {}
        for name, norm in zip(self.groups, self.each.tolist(), strict=True):
            squares[name] = squares.get(name, 0.0) + norm * norm
        return {name: math.sqrt(square) for name, square in squares.items()}


class Gradients:
    """The trained weights of a model, whose gradients are measured and clipped at once.

    Total norm and clipped gradients are bit for bit those of torch.nn.utils.clip_grad_norm_, which measures every
    weight as well and keeps no more than the total.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.weights = [p for _, p in named]
        self.groups = group_names([name for name, _ in named])

    @torch.no_grad()
    def clip(self, limit: float) -> GradientNorms:
        """Measure the gradients, and scale them down to a total norm of `limit` where it is larger; 0: never."""
        present = [k for k, p in enumerate(self.weights) if p.grad is not None]
        gradients = [g for k in present if (g := self.weights[k].grad) is not None]
        if not gradients:
            return GradientNorms(torch.tensor(0.0), torch.zeros(0), ())
        norms, order = _norms(gradients)
        each = torch.stack([norm.to(gradients[0].device) for norm in norms])
        total = torch.linalg.vector_norm(each, 2.0)
        if limit:
            torch.nn.utils.clip_grads_with_norm_([self.weights[k] for k in present], limit, total)
        return GradientNorms(total, each, [self.groups[present[k]] for k in order])


def _norms(gradients: list[Tensor]) -> tuple[list[Tensor], list[int]]:
    """The norm of each gradient, and which it is of: sorted by device and type, as torch sums them up."""
    norms: list[Tensor] = []
    order: list[int] = []
    sorted_: dict[Any, Any] = _group_tensors_by_device_and_dtype([gradients], with_indices=True)  # type: ignore[list-item]
    for (device, _), ([tensors], indices) in sorted_.items():
        together = _has_foreach_support(tensors, device)
        norms += torch._foreach_norm(tensors, 2.0) if together else _one_by_one(tensors)
        order += indices
    return norms, order


def _one_by_one(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [torch.linalg.vector_norm(tensor, 2.0) for tensor in tensors]
