"""Root mean square norm (Zhang & Sennrich 2019, arXiv:1910.07467): few passes over the rows, only the input kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, shift: float) -> Tensor:
        width = x.shape[-1]
        rate = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(width).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rate)
        ctx.shift = shift
        out: Tensor = (x * rate).mul_(weight + shift if shift else weight)
        return out

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = outputs
        x, weight, rate = ctx.saved_tensors
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (grad * x).mul_(rate).flatten(0, -2).sum(0)
        if not ctx.needs_input_grad[0]:
            return None, of_weight, None, None
        inner = grad * (weight + ctx.shift if ctx.shift else weight)
        pull = (inner * x).sum(-1, keepdim=True).mul_(rate.pow(3)).div_(x.shape[-1])
        return inner.mul_(rate).addcmul_(x, pull, value=-1), of_weight, None, None


def norm(x: Tensor, weight: Tensor, eps: float, shift: float = 0.0) -> Tensor:
    """x [..., width] over the root of its mean square, times weight + shift [width]; Gemma's weights count from 1."""
    y: Tensor = _Norm.apply(x, weight, eps, shift)  # type: ignore[no-untyped-call]
    return y
