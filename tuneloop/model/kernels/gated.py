"""The gated feed-forward block: down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202), block of rows by block.

Of the widest rows only gate and up are kept; their product is made again in the backward pass. A block of rows bounds
what else exists at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tuneloop.model.kernels.projection import Projection, backward, dropped, forward

ROWS = 2048
"""Rows of a block."""
aten = torch.ops.aten


Act = tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]
ACTS: dict[str, Act] = {
    "silu": (aten.silu, aten.silu_backward),
    "gelu": (aten.gelu, aten.gelu_backward),
    "gelu_pytorch_tanh": (partial(aten.gelu, approximate="tanh"), partial(aten.gelu_backward, approximate="tanh")),
}
"""Activation, as configurations call it -> itself and its gradient."""
Three = tuple[Projection, Projection, Projection]


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, three: Three, act: Act, training: bool, *tensors: Tensor | None) -> Tensor:
        gate, up, down = three
        flat = x.reshape(-1, x.shape[-1])
        out = flat.new_empty(len(flat), down.weight.shape[0])
        saved: list[Tensor | None] = []
        for start in range(0, len(flat), ROWS):
            rows = flat[start : start + ROWS]
            masks = [dropped(gate, rows, training), dropped(up, rows, training)]
            g, g_inner = forward(gate, rows, masks[0])
            u, u_inner = forward(up, rows, masks[1])
            wide = act[0](g).mul_(u)
            mask = dropped(down, wide, training)
            y, d_inner = forward(down, wide, mask)
            out[start : start + ROWS] = y
            saved += [g, u, g_inner, u_inner, d_inner, *masks, mask]
        ctx.three, ctx.act, ctx.shape = three, act, x.shape
        ctx.save_for_backward(flat, *saved)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        flat, *saved = ctx.saved_tensors
        grad = outputs[0].reshape(-1, outputs[0].shape[-1])
        needs = ctx.needs_input_grad
        to = torch.empty_like(flat) if needs[0] else None
        sums: list[Tensor | None] = [None] * 12
        for n, start in enumerate(range(0, len(flat), ROWS)):
            rows = slice(start, start + ROWS)
            back, own = _block(ctx, flat[rows], saved[8 * n : 8 * n + 8], grad[rows], needs)
            if to is not None and back is not None:
                to[rows] = back
            sums = [a if b is None else b if a is None else a.add_(b) for a, b in zip(sums, own, strict=True)]
        return to.view(ctx.shape) if to is not None else None, None, None, None, *sums


def _block(
    ctx: Any, x: Tensor, saved: list[Tensor | None], grad: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of one block of rows: of its input, and of the twelve tensors of the three projections."""
    gate, up, down = ctx.three
    g, u, g_inner, u_inner, d_inner, g_mask, u_mask, d_mask = saved
    assert g is not None
    assert u is not None
    active = ctx.act[0](g)
    wide = active * u if needs[12] or needs[14] else u  # u in its place where only the shape matters
    to_wide, of_down = backward(down, wide, d_inner, grad, None, needs[12:16], d_mask)
    assert to_wide is not None
    to_up = active.mul_(to_wide)
    to_gate = ctx.act[1](to_wide.mul_(u), g)
    to, of_gate = backward(gate, x, g_inner, to_gate, None, needs[4:8], g_mask, input_grad=needs[0])
    to, of_up = backward(up, x, u_inner, to_up, to, needs[8:12], u_mask, input_grad=needs[0])
    return to, [*of_gate, *of_up, *of_down]


def gated(x: Tensor, three: Three, act: Act, training: bool) -> Tensor:
    """x [..., width] -> [..., width], through gate, up and down projection."""
    every = [tensor for p in three for tensor in p.tensors]
    y: Tensor = _Gated.apply(x, three, act, training, *every)  # type: ignore[no-untyped-call]
    return y
