"""Puts the fast parts into a model that transformers built: same modules, same weights, same names, quicker forward.

What is replaced is known by its parts, not by its family: a gated block has gate_proj, up_proj, down_proj and act_fn, a
norm has one weight and a class called …RMSNorm. Each is tried on a few rows against the module's own forward first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from tuneloop.model.kernels.gated import ACTS, Act, gated
from tuneloop.model.kernels.norm import norm
from tuneloop.model.kernels.packed import listening
from tuneloop.model.kernels.projection import project, projection
from tuneloop.model.kernels.rotary_heads import project3, turned_attention
from tuneloop.model.kernels.tiles import cut_row

HEADS = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling")
LIMITS = ("clip_qkv", "swiglu_limit", "swiglu_limits_shared")
"""Keys of configurations that cut off large values inside a block."""
TOLERANCE = 1e-4
"""Largest difference to the module's own output, as a share of its largest value."""


def install(model: nn.Module) -> int:
    """Give each module that has a faster forward, and agrees with it, that forward. Returns how many have it now.

    Only float32 on a CPU: elsewhere the libraries' own kernels are at home.
    """
    count = 0
    for module in model.modules():
        weight = next(module.parameters(), None)
        if weight is None or weight.device.type != "cpu" or weight.dtype != torch.float32:
            continue
        if faster := _proven(module):
            module.forward = MethodType(faster, module)
            count += 1
    return count


def _proven(module: Any) -> Callable[..., Any] | None:
    """A faster forward that agrees with the module's own, if there is one."""
    if _hides(module):
        return None
    try:
        candidate = _faster(module)
        return candidate[0] if candidate is not None and _agrees(module, *candidate) else None
    except (TypeError, RuntimeError, AttributeError, ValueError, IndexError, KeyError):
        return None  # it is built otherwise than its names say: asked for more, or for other shapes


def _hides(module: Any) -> bool:
    """Whether a module may do what a comparison of small numbers sees nothing of: dropout of its own, and limits."""
    if isinstance(module, LoraLinear):
        return False
    dropouts = (m.p for n, m in module.named_modules() if isinstance(m, nn.Dropout) and "lora_dropout" not in n)
    rates = (getattr(module, name, 0) for name in ("residual_dropout", "dropout"))
    limits = (getattr(getattr(module, "config", None), name, None) for name in LIMITS)
    return (
        any(p > 0 for p in dropouts)
        or any(isinstance(p, float) and p > 0 for p in rates)
        or any(one is not None for one in (*limits, getattr(module, "limit", None)))
    )


def _faster(module: Any) -> tuple[Callable[..., Any], int] | None:
    """(forward, width of its input) of a module that has a faster one."""
    if type(module).__name__.endswith("RMSNorm") and [n for n, _ in module.named_parameters()] == ["weight"]:
        return _norm_forward(module), int(module.weight.shape[0])
    if all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        act = _act(module)
        gate = projection(module.gate_proj)
        if act is not None and gate is not None and not hasattr(module, "experts"):
            return _gated_forward(act), int(gate.weight.shape[1])
    if all(hasattr(module, name) for name in HEADS) and getattr(module, "is_causal", False):
        query = projection(module.q_proj)
        if query is not None and projection(module.k_proj) is not None and projection(module.v_proj) is not None:
            forward = _heads_forward(module)
            return (forward, int(query.weight.shape[1])) if forward is not None else None
    if isinstance(module, LoraLinear) and (p := projection(module)) is not None:
        return _lora_forward, int(p.weight.shape[1])
    return None


def _act(module: Any) -> Act | None:
    """The activation of a gated block, known by what it computes."""
    x = torch.linspace(-4, 4, 33)
    with torch.no_grad():
        return next((a for a in ACTS.values() if torch.equal(a[0](x), module.act_fn(x))), None)


def _norm_forward(module: Any) -> Callable[..., Tensor]:
    eps = float(getattr(module, "variance_epsilon", getattr(module, "eps", 1e-6)))
    with torch.no_grad():
        x = torch.linspace(1, 2, module.weight.shape[0])[None]
        unshifted = norm(x, module.weight, eps)
        shift = 0.0 if torch.allclose(unshifted, module(x), rtol=TOLERANCE, atol=TOLERANCE) else 1.0

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return norm(hidden_states, self.weight, eps, shift)

    return forward


def _gated_forward(act: Act) -> Callable[..., Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        three = tuple(projection(p) for p in (self.gate_proj, self.up_proj, self.down_proj))
        if any(p is None for p in three):
            own: Tensor = type(self).forward(self, x)
            return own
        return gated(x, three, act, self.training)  # type: ignore[arg-type]

    return forward


def _call_arguments(module: Any) -> dict[str, Any]:
    """What an attention module is called with beside three rows of two samples."""
    angles = torch.linspace(0, 2, 3)[:, None] * torch.linspace(1, 0.1, module.head_dim // 2)
    turn = torch.cat([angles, angles], -1)[None]
    return {"position_embeddings": (turn.cos(), turn.sin()), "attention_mask": None, "segments": (2, 1)}


def _heads_forward(module: Any) -> Callable[..., Any] | None:
    """Some layers look back only so far: what they ask of attention tells."""
    with listening() as heard, torch.no_grad():
        module(torch.ones(1, 3, module.q_proj.in_features), **_call_arguments(module))
    if len(heard) != 1 or heard[0].scale is None or not heard[0].causal:
        return None
    return partial(_attend_heads, window=heard[0].window, scale=heard[0].scale)


def _attend_heads(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: Any = None,
    attention_mask: Any = None,
    past_key_values: Any = None,
    *,
    segments: tuple[int, ...] | None = None,
    window: int | None,
    scale: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    length = hidden_states.shape[1]
    three = tuple(projection(p) for p in (self.q_proj, self.k_proj, self.v_proj))
    dropout = self.training and getattr(self, "attention_dropout", 0.0)
    packed = segments is not None and sum(segments) == length and past_key_values is None
    full_width = position_embeddings is not None and position_embeddings[0].shape[-1] == self.head_dim
    if segments is None or not packed or not full_width or dropout or None in three:
        own: tuple[Tensor, Tensor | None] = type(self).forward(
            self, hidden_states, position_embeddings, attention_mask, past_key_values, segments=segments, **kwargs
        )
        return own
    query, key, value = project3(hidden_states, three, self.training)  # type: ignore[arg-type]
    width = self.head_dim
    if hasattr(self, "q_norm"):
        query, key = self.q_norm(query.view(length, -1, width)), self.k_norm(key.view(length, -1, width))
        query, key = query.view(length, -1), key.view(length, -1)
    shared = key.shape[1] // width
    cut = cut_row(segments, shared, query.shape[1] // key.shape[1], 0, True, window)
    cos, sin = position_embeddings
    out = turned_attention(query, key, value, cos, sin, scale, cut)
    return self.o_proj(out.unsqueeze(0)), None


def _lora_forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    p = projection(self)
    if p is None or args or kwargs:
        own: Tensor = type(self).forward(self, x, *args, **kwargs)
        return own
    return project(p, x, self.training)


@torch.no_grad()
def _agrees(module: Any, forward: Callable[..., Any], width: int) -> bool:
    was = module.training
    module.eval()
    x = torch.linspace(-1, 1, 3 * width).view(1, 3, width).sin()
    try:
        if hasattr(module, "q_proj"):
            arguments = _call_arguments(module)
            return _same(module(x, **arguments)[0], forward(module, x, **arguments)[0])
        return all(_same(module(size * x), forward(module, size * x)) for size in (1.0, 100.0))
    finally:
        module.train(was)


def _same(own: Tensor, ours: Tensor) -> bool:
    return bool((own - ours).abs().max() <= TOLERANCE * own.abs().max().clamp(min=1e-6))
