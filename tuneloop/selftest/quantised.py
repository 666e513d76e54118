"""Weights in 4 and 8 bits: what bitsandbytes computes here, against its weights unpacked; and runs on top of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tuneloop.base.language import t
from tuneloop.model.load import load_model, pick_dtype, placed
from tuneloop.recipe.schema import QloraPart
from tuneloop.selftest import training
from tuneloop.selftest.lines import FailedError, Lines
from tuneloop.selftest.training import Ground

BITS = ("nf4", "int8")
ALLOWED = {"nf4": 16.0, "int8": 0.05}
"""nf4: units in the last place of the type that is computed in; int8 rounds activations as well: a relative error."""


def _unpacked(module: Any, bits: str) -> Tensor:
    """The weight of a quantised layer, float32 [out, in], on the CPU."""
    functional = importlib.import_module("bitsandbytes.functional")
    if bits == "nf4":
        weight: Tensor = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        return weight.float().cpu()
    # After a pass the numbers lie in the layer's state, before it beside the weight.
    packed, scales = (
        next(x for x in (getattr(module.state, name), getattr(module.weight, name)) if x is not None)
        for name in ("CB", "SCB")
    )
    unpacked: Tensor = packed.float() * scales.float().view(-1, 1) / 127
    return unpacked.cpu()


def _layers(model: nn.Module, bits: str) -> Iterator[Any]:
    name = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[bits]
    return (m for m in model.modules() if type(m).__name__ == name)


@torch.no_grad()
def _agrees(ground: Ground, bits: Any) -> str:
    """Every quantised layer against the product with its own weight, unpacked, in float32 on the CPU."""
    importlib.import_module("bitsandbytes")
    dtype = pick_dtype("auto")
    model = placed(load_model(ground.model, "auto", quantized=QloraPart(bits=bits)))
    worst, count, held, numbers = 0.0, 0, 0, 0
    torch.manual_seed(0)
    for layer in _layers(model, bits):
        x = torch.randn(48, layer.in_features)
        got = layer(x.to(layer.weight.device, dtype)).float().cpu()
        weight = _unpacked(layer, bits)
        exact = linear(x.to(dtype).float(), weight)
        worst = max(worst, float((got - exact).abs().max() / exact.abs().max()))
        held += layer.weight.data.numel() * layer.weight.data.itemsize
        numbers, count = numbers + weight.numel(), count + 1
    allowed = ALLOWED["int8"] if bits == "int8" else ALLOWED["nf4"] * torch.finfo(dtype).eps
    summary = t(
        "{n} layers, largest relative difference {got:.1e}, allowed {allowed:.1e}; {bits:.1f} bits a weight",
        n=count,
        got=worst,
        allowed=allowed,
        bits=8 * held / max(1, numbers),
    )
    if not count or not worst <= allowed:
        raise FailedError(summary)
    return summary


def prove(lines: Lines, ground: Ground) -> None:
    """Two lines for each kind of weights."""
    for bits in BITS:
        lines.claim(
            t("quantised"),
            t("{bits}: products as with its weights unpacked", bits=bits),
            lambda b=bits: _agrees(ground, b),  # type: ignore[misc]
        )
        lines.claim(
            t("quantised"),
            t("{bits}: qlora trains, is read back, resumes", bits=bits),
            lambda b=bits: training.combination(ground, "qlora", "chat", qlora={"bits": b}),  # type: ignore[misc]
        )
