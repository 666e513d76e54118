"""Linear layers with weights laid out beforehand, as oneDNN reads them: for many passes over weights that stay.

A product of a few dozen rows spends much of its time on laying out the weights. Done once, a pass of 64 rows is a
quarter faster and one of 16 by a half (float32, AMD EPYC with AVX-512). The sums are float32 in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tuneloop.model.kernels.install import TOLERANCE

SHARE = 0.25
"""Of the free memory that a second copy of the weights may take."""
PROBE = 3
"""Rows by which a layer is compared with its own forward."""


@contextmanager
def prepacked(model: nn.Module, rows: int) -> Iterator[int]:
    """Inside, linear layers in float32 on a CPU multiply `rows` rows fastest; how many do. No gradient flows.

    None does where the copies would take too much of the free memory, or where a layer does not agree with itself.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear) and _fits(module)]
    size = sum(module.weight.numel() * module.weight.element_size() for module in layers)
    if not torch.backends.mkldnn.is_available() or size > SHARE * psutil.virtual_memory().available:
        layers = []
    replaced: list[nn.Linear] = []
    proven: dict[Any, bool] = {}
    try:
        for layer in layers:
            shape = (*layer.weight.shape, layer.bias is None)
            if shape not in proven:
                proven[shape] = _agrees(layer, rows)
            if proven[shape]:
                layer.forward = MethodType(_forward(layer, rows), layer)  # type: ignore[method-assign]
                replaced.append(layer)
        yield len(replaced)
    finally:
        for layer in replaced:
            del layer.forward


def _fits(module: nn.Linear) -> bool:
    """Whether a layer is linear and nothing else, on a CPU, in float32."""
    if type(module) is not nn.Linear or "forward" in vars(module):
        return False
    return bool(module.weight.device.type == "cpu" and module.weight.dtype == torch.float32)


def _forward(layer: nn.Linear, rows: int) -> Callable[..., Tensor]:
    """The forward of a layer over its weights laid out for `rows` rows."""
    ops: Any = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(layer.weight.detach(), rows)

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.requires_grad:
            return linear(x, self.weight, self.bias)
        out: Tensor = ops._linear_pointwise(x, packed, self.bias, "none", [], "")
        return out

    return forward


@torch.no_grad()
def _agrees(layer: nn.Linear, rows: int) -> bool:
    """Whether the first layer of a shape multiplies laid out as it does by itself."""
    try:
        x = torch.linspace(-1, 1, PROBE * layer.in_features).view(PROBE, -1).sin()
        own = linear(x, layer.weight, layer.bias)
        return bool((own - _forward(layer, rows)(layer, x)).abs().max() <= TOLERANCE * own.abs().max().clamp(min=1e-6))
    except (RuntimeError, AttributeError, TypeError):  # this build of torch has no such operation
        return False
