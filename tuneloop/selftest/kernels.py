"""Attention kernels: which this device has, which is chosen, and whether each agrees with torch's own attention."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from tuneloop.base.language import t
from tuneloop.model.kernels import varlen
from tuneloop.model.kernels.varlen import Kernel, VarlenShape
from tuneloop.selftest.lines import FailedError, Lines, NotRunError

SEGMENTS = (200, 1, 57, 130, 252)
HEADS, SHARED, WIDTH = 8, 2, 64
TYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES: tuple[tuple[bool, int | None], ...] = ((True, None), (True, 33), (False, None))
"""Causal or not, and the window."""


CAPABILITIES = ((7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
"""CUDA's of V100, T4, A100, RTX 30, RTX 40, H100, B200, RTX 50."""


def _chosen(dtype: torch.dtype, device: torch.device) -> str:
    """Which kernel each kind of card would be given with the packages that are here."""
    here = varlen.card(device)
    facts = {"flash_attn": varlen._flash() is not None, "torch_varlen": varlen._varlen() is not None,
             "triton": importlib.util.find_spec("triton") is not None}  # fmt: skip
    cards = [here] if device.type == "cuda" else []
    cards += [varlen.Card(c, **facts) for c in CAPABILITIES]
    choices = [(c.capability, varlen.choose(c, VarlenShape(dtype, WIDTH, WIDTH, sum(SEGMENTS)))) for c in cards]
    return ", ".join(f"{major}.{minor}: {kernel}" for (major, minor), kernel in choices)


def prove(lines: Lines, device: torch.device) -> None:
    """A line a type: which kernel is chosen by which compute capability; and one a type and kernel but flex."""
    for dtype in TYPES:
        lines.claim(
            t("attention"),
            t("chosen in {dtype} by compute capability", dtype=_name(dtype)),
            lambda d=dtype: _chosen(d, device),  # type: ignore[misc]
        )
    for kernel in varlen.KERNELS:
        if kernel != "flex":
            _every_type(lines, kernel, device)


def compiled(lines: Lines, device: torch.device) -> None:
    """A line a type for flex, which takes half a minute a type to compile on a card."""
    _every_type(lines, "flex", device)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _every_type(lines: Lines, kernel: Kernel, device: torch.device) -> None:
    card = varlen.card(device)
    for dtype in TYPES:
        chosen = varlen.choose(card, VarlenShape(dtype, WIDTH, WIDTH, sum(SEGMENTS)))
        label = (
            t("{kernel} in {dtype} (chosen here)", kernel=kernel, dtype=_name(dtype))
            if kernel == chosen
            else t("{kernel} in {dtype}", kernel=kernel, dtype=_name(dtype))
        )
        lines.claim(t("attention"), label, lambda d=dtype: _agrees(kernel, d, device))  # type: ignore[misc]


def _missing(kernel: Kernel, dtype: torch.dtype, device: torch.device) -> str:
    """Why a kernel cannot be looked at here, "" if it can."""
    card = varlen.card(device)
    if kernel == "segments" or (kernel == "flex" and device.type == "cpu"):
        return ""
    if device.type != "cuda":
        return t("needs a CUDA device")
    if card.capability < (8, 0):
        return t("needs compute capability 8.0, this card has {n}", n=".".join(map(str, card.capability)))
    has = {"flash_attn": card.flash_attn, "torch_varlen": card.torch_varlen, "flex": card.triton}
    if not has[kernel]:
        return t("its package is not installed")
    if kernel != "flex" and dtype == torch.float32:
        return t("takes 16-bit types only")
    return ""


def _agrees(kernel: Kernel, dtype: torch.dtype, device: torch.device) -> str:
    """Against attention in float32, sample by sample on the CPU: output, and gradients where there are any."""
    if reason := _missing(kernel, dtype, device):
        raise NotRunError(reason)
    torch.manual_seed(0)
    total = sum(SEGMENTS)
    inputs = [torch.randn(1, h, total, WIDTH) for h in (HEADS, SHARED, SHARED)]
    backward = device.type != "cpu" or kernel != "flex"  # flex on a CPU computes no gradients
    worst = 0.0
    for causal, window in CASES:
        how: dict[str, Any] = {"causal": causal, "window": window}
        exact = _run("segments", [x.clone() for x in inputs], how, True)
        got = _run(kernel, [x.to(device, dtype) for x in inputs], how, backward)
        for a, b in zip(exact, got, strict=False):
            worst = max(worst, float((a - b.float().cpu()).abs().max() / a.abs().max()))
    allowed = 1e-4 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    summary = t("largest relative difference {got:.1e}, allowed {allowed:.1e}", got=worst, allowed=allowed)
    if not worst <= allowed:
        raise FailedError(summary)
    return summary if backward else summary + t("; forward only, by its uncompiled twin")


def _run(kernel: Kernel, inputs: list[Tensor], how: dict[str, Any], backward: bool) -> list[Tensor]:
    """[output, gradients of query, key and value]."""
    query, key, values = (x.requires_grad_(backward) for x in inputs)
    if kernel == "flex" and query.device.type == "cpu":
        out = varlen.by_flex(flex_attention, query, key, values, SEGMENTS, **how)
    else:
        out = varlen.attend(query, key, values, SEGMENTS, kernel=kernel, **how)
    if not backward:
        return [out]
    out.backward(torch.linspace(-1, 1, out.numel(), device=out.device).to(out.dtype).view_as(out))
    return [out.detach(), *(x.grad for x in (query, key, values) if x.grad is not None)]
