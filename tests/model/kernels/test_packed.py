from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import tiny_folder
from tuneloop.model.kernels import packed as attention
from tuneloop.model.kernels.packed import packed_attention
from tuneloop.model.load import load_model

SEGMENTS = (13, 1, 20, 6)


def plainly(query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None = None) -> Tensor:
    """Attention of one sample as the textbook has it: [heads, length, width] -> [length, heads, width]."""
    length = query.shape[1]
    groups = query.shape[0] // key.shape[0]
    out = torch.zeros(length, query.shape[0], query.shape[2], dtype=query.dtype)
    for h in range(query.shape[0]):
        for i in range(length):
            first = max(0, i - window + 1) if window else 0
            seen = slice(first, i + 1)
            scores = (key[h // groups, seen] @ query[h, i]) * scaling
            out[i, h] = torch.softmax(scores, 0) @ value[h // groups, seen]
    return out


@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("window", [None, 5, 100])
def test_each_sample_is_attended_as_if_alone(heads: int, kv: int, window: int | None) -> None:
    torch.manual_seed(0)
    total = sum(SEGMENTS)
    query = torch.randn(1, heads, total, 8, dtype=torch.float64)
    key, value = (torch.randn(1, kv, total, 8, dtype=torch.float64) for _ in range(2))
    out, weights = packed_attention(
        torch.nn.Module(), query, key, value, None, segments=SEGMENTS, scaling=0.3, sliding_window=window
    )
    assert weights is None
    assert out.shape == (1, total, heads, 8)
    parts = zip(query[0].split(SEGMENTS, 1), key[0].split(SEGMENTS, 1), value[0].split(SEGMENTS, 1), strict=True)
    expected = torch.cat([plainly(q, k, v, 0.3, window) for q, k, v in parts])
    assert torch.allclose(out[0], expected, atol=1e-12)


def test_rows_without_segments_go_to_transformers() -> None:
    torch.manual_seed(0)
    module: Any = SimpleNamespace(is_causal=True, num_key_value_groups=1)
    query, key, value = (torch.randn(2, 2, 7, 8) for _ in range(3))
    for segments in (None, (5,)):  # one that is of other rows does not count
        out, _ = packed_attention(module, query, key, value, None, segments=segments, scaling=0.3)
        for b in range(2):
            assert torch.allclose(out[b], plainly(query[b], key[b], value[b], 0.3), atol=1e-5)


def logits(model: Any, row: Tensor, segments: tuple[int, ...] | None = None) -> Tensor:
    places = torch.cat([torch.arange(n) for n in segments or (len(row),)])
    with torch.no_grad():
        out = model(input_ids=row[None], position_ids=places[None], segments=segments, use_cache=False)
    return out.logits[0]


FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "granite", "cohere"]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_of_a_model_are_its_single_rows(tmp_path: Path, family: str) -> None:
    model = load_model(tiny_folder(tmp_path / family, family), "float32")
    torch.manual_seed(1)
    row = torch.randint(3, 128, (sum(SEGMENTS),))
    packed = logits(model, row, SEGMENTS)
    single = torch.cat([logits(model, part) for part in row.split(SEGMENTS)])
    assert torch.allclose(packed, single, atol=2e-5)
    model.set_attn_implementation("eager")
    own = torch.cat([logits(model, part) for part in row.split(SEGMENTS)])
    assert torch.allclose(packed, own, atol=2e-5)
    # and a leak would be seen
    assert (logits(model, row)[-1] - packed[-1]).abs().max() > 1e-3


def test_a_window_is_felt(tmp_path: Path) -> None:
    narrow = load_model(tiny_folder(tmp_path / "narrow", "gemma3_text"), "float32")
    wide = load_model(tiny_folder(tmp_path / "wide", "gemma3_text", sliding_window=60), "float32")
    row = torch.arange(3, 33)
    assert torch.allclose(logits(narrow, row, (30,))[:7], logits(wide, row, (30,))[:7], atol=1e-5)
    assert (logits(narrow, row, (30,))[-1] - logits(wide, row, (30,))[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_a_model_whose_attention_is_more_than_ours_keeps_its_own(tmp_path: Path, family: str) -> None:
    """Score capping and sinks would be left out in silence."""
    model = load_model(tiny_folder(tmp_path / family, family), "float32")
    row = torch.arange(3, 33)
    ours = logits(model, row, (30,))
    model.set_attn_implementation("eager")
    assert torch.allclose(ours, logits(model, row), atol=2e-5)


def test_it_is_known_to_transformers(tiny_model: Path) -> None:
    assert attention.register() == attention.NAME
    assert load_model(tiny_model).config._attn_implementation == attention.NAME


def test_dropout_is_drawn_only_where_it_is_asked_for() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 12, 8) for _ in range(3))
    once, again = (packed_attention(torch.nn.Module(), query, key, value, None, segments=(5, 7))[0] for _ in range(2))
    assert torch.equal(once, again)
    dropped = packed_attention(torch.nn.Module(), query, key, value, None, segments=(5, 7), dropout=0.5)[0]
    assert not torch.allclose(once, dropped)
