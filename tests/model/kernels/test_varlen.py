from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from tuneloop.model.kernels import varlen
from tuneloop.model.kernels.varlen import (
    Card,
    VarlenShape,
    attend,
    bounds,
    by_flex,
    card,
    choose,
    documents,
    one_by_one,
    reach,
)

SEGMENTS = (130, 1, 57, 200)
AMPERE = Card((8, 6), flash_attn=True, torch_varlen=True, triton=True)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def shape(dtype: torch.dtype = BF16, width: int = 64, **more: Any) -> VarlenShape:
    return replace(VarlenShape(dtype, width, width, 2048), **more)


@pytest.mark.parametrize(
    ("on", "asked", "kernel"),
    [
        (AMPERE, shape(), "flash_attn"),
        (AMPERE, shape(FP16, dropout=0.1), "flash_attn"),
        (replace(AMPERE, flash_attn=False), shape(), "torch_varlen"),
        (replace(AMPERE, flash_attn=False), shape(dropout=0.1), "segments"),
        (replace(AMPERE, flash_attn=False, torch_varlen=False), shape(), "flex"),
        (replace(AMPERE, flash_attn=False, torch_varlen=False, triton=False), shape(), "segments"),
        # float32 has no flash kernel
        (AMPERE, shape(FP32), "flex"),
        (AMPERE, shape(FP32, 128), "segments"),
        (AMPERE, shape(FP32, length=127), "segments"),
        (AMPERE, shape(FP32, length=8193), "segments"),
        (replace(AMPERE, triton=False), shape(FP32), "segments"),
        # widths: 256 needs a data-centre card, odd ones and two widths (MLA) no flash kernel at all
        (AMPERE, shape(width=256), "segments"),
        (replace(AMPERE, capability=(9, 0)), shape(width=256), "flash_attn"),
        (AMPERE, shape(width=100), "flex"),
        (AMPERE, shape(width=192, value_width=128), "segments"),
        (AMPERE, shape(width=96, value_width=64), "flex"),
        (AMPERE, shape(width=8, value_width=8), "flash_attn"),
        (AMPERE, shape(FP32, 8), "segments"),
        # a prefix that all samples see has no flash kernel
        (AMPERE, shape(prefix=20), "flex"),
        # before Ampere nothing is hoped for
        (replace(AMPERE, capability=(7, 5)), shape(FP16), "segments"),
        (Card((0, 0), True, True, True), shape(), "segments"),
    ],
    ids=str,
)  # fmt: skip
def test_a_kernel_is_chosen_by_what_the_card_can_do(on: Card, asked: VarlenShape, kernel: str) -> None:
    assert choose(on, asked) == kernel


def test_a_cpu_has_no_kernel_of_a_card() -> None:
    assert card(torch.device("cpu")) == Card((0, 0), False, False, False)


def test_bounds_are_where_samples_begin_and_end() -> None:
    starts, longest = bounds(SEGMENTS, torch.device("cpu"))
    assert starts.tolist() == [0, 130, 131, 188, 388]
    assert starts.dtype == torch.int32
    assert longest == 200


def rows(kv: int = 2, width: int = 16, value_width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    total = sum(SEGMENTS)
    shapes = ((4, width), (kv, width), (kv, value_width))
    query, key, value = (torch.randn(1, heads, total, w) for heads, w in shapes)
    return query, key, value


@pytest.mark.parametrize("kv", [4, 2, 1])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 9), (True, 500), (False, None), (False, 9)])
def test_the_document_mask_is_attention_sample_by_sample(kv: int, causal: bool, window: int | None) -> None:
    query, key, value = rows(kv)
    how: dict[str, Any] = {"causal": causal, "scale": 0.3, "window": window}
    got = by_flex(flex_attention, query, key, value, SEGMENTS, **how)
    wanted = one_by_one(query, key, value, SEGMENTS, **how)
    assert got.shape == (1, 388, 4, 16)
    assert torch.allclose(got, wanted, atol=2e-6)


def test_blocks_between_samples_are_left_out() -> None:
    mask = documents((256, 256, 256), True, None, 0, torch.device("cpu"))
    assert mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum() == 3 * 3  # of 36: half of 2 x 2 for each sample


def test_values_may_be_narrower_than_keys() -> None:
    query, key, value = rows(value_width=24)
    got = by_flex(flex_attention, query, key, value, SEGMENTS, causal=True)
    assert torch.allclose(got, attend(query, key, value, SEGMENTS, causal=True), atol=2e-6)


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 9), (False, None)])
def test_all_samples_see_the_prefix(causal: bool, window: int | None) -> None:
    query, key, value = rows()
    torch.manual_seed(1)
    front = [torch.randn(1, 2, 5, 16) for _ in range(2)]
    key, value = torch.cat([front[0], key], 2), torch.cat([front[1], value], 2)
    how: dict[str, Any] = {"causal": causal, "scale": 0.3, "window": window}
    got = one_by_one(query, key, value, SEGMENTS, **how)
    assert torch.allclose(by_flex(flex_attention, query, key, value, SEGMENTS, **how), got, atol=2e-6)
    at = 131 + 20  # in the third sample: sees the prefix and its own positions
    first = max(131, at - 8) if window else 131
    seen = [*range(0 if window is None else 5, 5), *range(5 + first, 5 + (at + 1 if causal else 188))]
    weights = torch.softmax(key[0, 1, seen] @ query[0, 3, at] * 0.3, 0)
    assert torch.allclose(got[0, at, 3], weights @ value[0, 1, seen], atol=1e-6)
    seen = [*range(0 if window is None else max(0, 5 + 2 - 8), 5), *range(5 + 131, 5 + (131 + 3 if causal else 188))]
    weights = torch.softmax(
        key[0, 1, seen] @ query[0, 3, 131 + 2] * 0.3, 0
    )  # its third position: the window counts them
    assert torch.allclose(got[0, 131 + 2, 3], weights @ value[0, 1, seen], atol=1e-6)


def by_the_contract(causal_from_window: bool, grouped: bool, log: list[dict[str, Any]]) -> Any:
    """A kernel of varlen's form, made of the plain one: what the index arithmetic hands it must mean the same."""

    def newer(*args: Any, enable_gqa: bool = False, **more: Any) -> Tensor:
        return kernel(*args, enable_gqa=enable_gqa, **more)

    def kernel(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, ends: Tensor, most: int, _: int, **more: Any) -> Tensor:
        log.append(more)
        assert starts is ends
        back, ahead = more["window_size"]
        causal = (ahead == 0) if causal_from_window else more["causal"]
        lengths = tuple(starts.diff().tolist())
        assert max(lengths) == most
        row = [x.transpose(0, 1)[None] for x in (q, k, v)]
        scale = more.get("scale", more.get("softmax_scale"))
        out = one_by_one(
            row[0], row[1], row[2], lengths, causal=causal, scale=scale, window=back + 1 if back >= 0 else None
        )
        return out[0]

    return newer if grouped else kernel


@pytest.mark.parametrize(("name", "grouped"), [("flash_attn", False), ("torch_varlen", True), ("torch_varlen", False)])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 9), (False, None), (False, 9)])
def test_what_the_kernels_are_handed(
    monkeypatch: pytest.MonkeyPatch, name: Any, grouped: bool, causal: bool, window: int | None
) -> None:
    """torch's varlen of 2.11 knows no grouped heads: it is handed as many keys as queries."""
    log: list[dict[str, Any]] = []
    kernel = by_the_contract(name == "torch_varlen", grouped, log)
    monkeypatch.setattr(varlen, "_flash", lambda: kernel)
    monkeypatch.setattr(varlen, "_varlen", lambda: kernel)
    query, key, value = rows()
    how: dict[str, Any] = {"causal": causal, "scale": 0.3, "window": window}
    got = attend(query, key, value, SEGMENTS, kernel=name, **how)
    assert torch.equal(got, one_by_one(query, key, value, SEGMENTS, **how))
    assert log[0]["window_size"] == reach(causal, window)
    assert log[0].get("enable_gqa", False) is grouped
    assert log[0].get("deterministic", False) is (name == "flash_attn")


def test_this_torch_has_the_varlen_that_is_asked_for() -> None:
    """Its signature is what `attend` calls; the kernel itself needs a card."""
    assert varlen._varlen() is not None


@pytest.mark.parametrize("where", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_flex_is_not_given_up_where_it_is_first_asked_without_gradients(
    monkeypatch: pytest.MonkeyPatch, where: Any
) -> None:
    """A session asks first under no_grad (packs_exactly); a backward pass must be tried all the same."""
    asked: list[tuple[bool, torch.dtype]] = []

    def flex(query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Tensor:
        out = query @ key.transpose(2, 3) @ value
        asked.append((out.requires_grad, out.dtype))
        return out

    monkeypatch.setattr(varlen, "_compiled", lambda: flex)
    varlen._compiles.cache_clear()
    try:
        with where():
            assert varlen._compiles(torch.device("cpu"))
    finally:
        varlen._compiles.cache_clear()
    assert asked == [(True, torch.float32)]
