"""Types of weights in training: what is trained is held in float32, what is frozen in the type of the recipe.

A step of 1e-5 of a weight is lost in bfloat16, which has three digits; so the trained weights and the optimizer's
moments are float32 whatever the model's type, as in "Mixed Precision Training" (Micikevicius et al. 2017,
arXiv:1710.03740). Products are then made in the model's type by torch's autocast. PEFT's own adapters need no autocast:
PEFT holds them in float32 and converts around them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

HALVES = (torch.float16, torch.bfloat16)
EXACT = 1e-3
"""Largest logit difference that float32 weights may show: adding the adapter first or last only reorders sums."""
ROUNDINGS = 8
"""For lower precision, how many units in the last place of the largest logit may differ; see `tolerance`."""


def hold(model: nn.Module, dtype: torch.dtype, *, cast_frozen: bool) -> None:
    """Trained weights to float32. With `cast_frozen`, for a model read in float32, the frozen ones to `dtype`."""
    if dtype not in HALVES:
        return
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in HALVES:
            parameter.data = parameter.data.float()
        elif cast_frozen and not parameter.requires_grad and parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(dtype)


def mixed(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether the forward pass needs autocast: some weight of the model itself, and not of an adapter, is trained."""
    if dtype not in HALVES:
        return False
    adapters = {id(p) for m in model.modules() if isinstance(m, BaseTunerLayer) for p in _adapters(m)}
    return any(p.requires_grad and id(p) not in adapters for p in model.parameters())


def _adapters(layer: Any) -> list[nn.Parameter]:
    """The weights that an adapter adds to a layer."""
    parts = (getattr(layer, name, None) for name in layer.adapter_layer_names)
    modules = [p for p in parts if isinstance(p, nn.Module)]
    return [p for m in modules for p in m.parameters()]


def computing(model: nn.Module, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """The context that forward passes of this model run in."""
    if not mixed(model, dtype):
        return contextlib.nullcontext()
    return torch.autocast(next(model.parameters()).device.type, dtype=dtype)


def cast(objective: nn.Module, dtype: torch.dtype) -> None:
    """From now on each forward pass of the objective runs in that context, wherever it is called from.

    accelerate's mixed precision wraps a model in the same way; but for float16 it brings a loss scaling along whose
    state would have to be in checkpoints. Ours has none: see `late` of `training/loop.py`.
    """
    if not mixed(objective, dtype):
        return
    for name in ("forward", "before_step"):  # what the loop calls
        setattr(objective, name, _inside(getattr(objective, name), objective, dtype))


def _inside(called: Callable[..., Any], objective: nn.Module, dtype: torch.dtype) -> Callable[..., Any]:
    @wraps(called)
    def in_context(*args: Any, **kwargs: Any) -> Any:
        with computing(objective, dtype):
            return called(*args, **kwargs)

    return in_context


def tolerance(dtype: torch.dtype, largest: float) -> float:
    """The largest logit difference allowed for weights of `dtype` when logits reach `largest` in size.

    float32: 1e-3. Below that, merging rounds every weight once more, by up to half a unit in the last place (eps / 2,
    relative). Each layer passes on such an error in its output, independent of the others', so over n layers of two
    blocks each they add up to about sqrt(2 n) * eps / 2 of a logit: 4 to 6 eps for 30 to 80 layers. 8 leaves room.
    SmolLM2-135M and a random adapter showed 0.94 of 1.98 allowed in bfloat16, 0.13 of 0.25 in float16. An adapter that
    moves no logit by more than that is below what the type resolves, and cannot be told from none at all.

    >>> tolerance(torch.float32, 30.0), round(tolerance(torch.bfloat16, 16.0), 3)
    (0.001, 1.0)
    """
    if dtype in (torch.float32, torch.float64):
        return EXACT
    return max(EXACT, ROUNDINGS * torch.finfo(dtype).eps * largest)
