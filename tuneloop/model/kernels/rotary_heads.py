"""Attention between its projections: rotary positions (Su et al. 2021, arXiv:2104.09864) in place, then the tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tuneloop.model.kernels.projection import Projection, backward, dropped, forward
from tuneloop.model.kernels.tiles import Cut, attend_backward, attend_forward

Three = tuple[Projection, Projection, Projection]


class _Project3(torch.autograd.Function):
    """One input, three projections: their gradients of the input are added up in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, three: Three, training: bool, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        masks = [dropped(p, flat, training) for p in three]
        out, inner = zip(*(forward(p, flat, mask) for p, mask in zip(three, masks, strict=True)), strict=True)
        ctx.three, ctx.shape = three, x.shape
        ctx.save_for_backward(flat, *inner, *masks)
        return tuple(out)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        flat, *saved = ctx.saved_tensors
        needs, sums = ctx.needs_input_grad, list[Tensor | None]()
        to: Tensor | None = None
        for n, (p, grad) in enumerate(zip(ctx.three, outputs, strict=True)):
            own = needs[3 + 4 * n : 7 + 4 * n]
            to, gradients = backward(p, flat, saved[n], grad, to, own, saved[3 + n], input_grad=needs[0])
            sums += gradients
        return to.view(ctx.shape) if to is not None else None, None, None, *sums


def project3(x: Tensor, three: Three, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x [1, length, width] -> three matrices [length, out]."""
    every = [tensor for p in three for tensor in p.tensors]
    query, key, value = _Project3.apply(x, three, training, *every)  # type: ignore[no-untyped-call]
    return query, key, value


def turn_(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """Rotate x [length, heads x width] in place by cos and sin [length, 1, width / 2]; `back` undoes it."""
    heads = x.view(len(x), -1, 2 * cos.shape[-1])
    one, two = heads[..., : cos.shape[-1]], heads[..., cos.shape[-1] :]
    side = one * sin
    sign = 1 if back else -1
    one.mul_(cos).addcmul_(two, sin, value=sign)
    two.mul_(cos).add_(side, alpha=-sign)
    return x


class _Turned(torch.autograd.Function):
    """Writes over query and key, which nobody else may need: they come fresh from a projection or a norm."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, scale: float, cut: Cut
    ) -> Tensor:
        query, key = turn_(query.detach(), cos * scale, sin * scale), turn_(key.detach(), cos, sin)
        ctx.save_for_backward(query, key, value, cos, sin)
        ctx.cut, ctx.scale = cut, scale
        return attend_forward(cut, query, key, value)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, cos, sin = ctx.saved_tensors
        to_query, to_key, to_value = attend_backward(ctx.cut, query, key, value, outputs[0].contiguous())
        turn_(to_query, cos * ctx.scale, sin * ctx.scale, back=True)
        return to_query, turn_(to_key, cos, sin, back=True), to_value, None, None, None, None


def turned_attention(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, scale: float, cut: Cut
) -> Tensor:
    """query [length, heads x width], key, value [length, kv heads x width], angles [1, length, width] -> as query."""
    half = cos.shape[-1] // 2
    cos, sin = cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()
    out: Tensor = _Turned.apply(query, key, value, cos, sin, scale, cut)  # type: ignore[no-untyped-call]
    return out
