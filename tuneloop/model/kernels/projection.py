"""y = x W' + b, with a low-rank update on it or without: forward and backward as a few products in place.

As PEFT computes it, the update of Hu et al. 2021 (arXiv:2106.09685) makes a scaled copy and a sum as large as the
output; here both go into the output's own memory, and of the input nothing is kept twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Projection:
    """What one linear layer computes. weight [out, in], bias [out]; down [rank, in] and up [out, rank] are the update.

    In the backward pass each trained one of these four gets a gradient, in this order.
    """

    weight: Tensor
    bias: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0
    dropout: float = 0.0

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias, self.down, self.up


def forward(p: Projection, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """x [n, in] -> (y [n, out], the input of the update's second factor [n, rank]). `mask` is that of the dropout."""
    y = torch.mm(x, p.weight.t()) if p.bias is None else torch.addmm(p.bias, x, p.weight.t())
    if p.down is None or p.up is None:
        return y, None
    inner = torch.mm(x if mask is None else x * mask, p.down.t())
    return y.addmm_(inner, p.up.t(), alpha=p.scale), inner


def backward(
    p: Projection,
    x: Tensor,
    inner: Tensor | None,
    grad: Tensor,
    to: Tensor | None,
    needs: tuple[bool, ...],
    mask: Tensor | None = None,
    *,
    input_grad: bool = True,
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """grad [n, out] -> (gradient of x, gradients of weight, bias, down and up where `needs` says so).

    The input's gradient is added to `to` in place where that is given; none is computed without `input_grad`.
    """
    if input_grad:
        to = torch.mm(grad, p.weight) if to is None else to.addmm_(grad, p.weight)
    of_weight = torch.mm(grad.t(), x) if needs[0] else None
    of_bias = grad.sum(0) if needs[1] else None
    if p.down is None or p.up is None:
        return to, (of_weight, of_bias, None, None)
    assert inner is not None
    narrow = torch.mm(grad, p.up)
    seen = x if mask is None else x * mask
    of_down = torch.mm(narrow.t(), seen).mul_(p.scale) if needs[2] else None
    of_up = torch.mm(grad.t(), inner).mul_(p.scale) if needs[3] else None
    if input_grad:
        assert to is not None
        if mask is None:
            to.addmm_(narrow, p.down, alpha=p.scale)
        else:
            to.addcmul_(torch.mm(narrow, p.down), mask, value=p.scale)
    return to, (of_weight, of_bias, of_down, of_up)


def dropped(p: Projection, x: Tensor, training: bool) -> Tensor | None:
    """The mask of the update's dropout for an input like x, scaled so that means stay; None where there is none."""
    if p.down is None or not training or p.dropout == 0.0:
        return None
    return torch.empty_like(x).bernoulli_(1 - p.dropout).div_(1 - p.dropout)


def projection(module: nn.Module) -> Projection | None:
    """The projection of a linear layer, adapted by LoRA or not; None of anything that computes more than that."""
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if isinstance(module, LoraLinear):
        base = module.base_layer
        if module.disable_adapters or module.merged or module.lora_variant or len(module.active_adapters) != 1:
            return None
        name = module.active_adapters[0]
        if name not in module.lora_A or type(base) is not nn.Linear or module.fan_in_fan_out:
            return None
        down, up, drop = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
        if up.bias is not None or down.weight.dtype != base.weight.dtype:
            return None
        rate = float(drop.p) if isinstance(drop, nn.Dropout) else 0.0
        return Projection(base.weight, base.bias, down.weight, up.weight, float(module.scaling[name]), rate)
    return Projection(module.weight, module.bias) if type(module) is nn.Linear else None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Projection, training: bool, *tensors: Tensor | None) -> Tensor:
        mask = dropped(p, x, training)
        y, inner = forward(p, x, mask)
        ctx.p = p
        ctx.save_for_backward(x, inner, mask)
        return y

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, mask = ctx.saved_tensors
        needs = ctx.needs_input_grad
        to, own = backward(ctx.p, x, inner, outputs[0], None, needs[3:], mask, input_grad=needs[0])
        return to, None, None, *own


def project(p: Projection, x: Tensor, training: bool) -> Tensor:
    """x [..., in] -> y [..., out]."""
    # Flat inside and a view outside: so a module may write over its projection's output, as OLMo's limits do.
    y: Tensor = _Project.apply(x.reshape(-1, x.shape[-1]), p, training, *p.tensors)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], -1)
