"""The fast parts against what they replace: same values, same gradients, for every family that has such modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tests.conftest import tiny_folder
from tuneloop.data.batches.pack import Batch, pack
from tuneloop.data.tokens.samples import Sample
from tuneloop.model.kernels import tiles as attention
from tuneloop.model.kernels.install import install
from tuneloop.model.kernels.matmul import chosen, matmul_precision, matrix_units
from tuneloop.model.kernels.tiles import attend, cut_row
from tuneloop.model.load import load_model
from tuneloop.tasks.loss import LossModel

OTHERS = ("olmo2", "olmo3", "stablelm", "gpt_oss", "glm4_moe", "seed_oss", "granite", "cohere", "gemma2", "ministral3")
"""Built of parts with the same names, which compute something else: partial rotations, norms over all heads, dropout."""
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "deepseek_v3")


def slow_attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], causal: bool, window: int | None
) -> Tensor:
    """Sample by sample, with a mask matrix; keys may begin with a prefix that all see."""
    group, prefix = q.shape[0] // k.shape[0], k.shape[1] - q.shape[1]
    out, begin = [], 0
    for n in lengths:
        rows, own = slice(begin, begin + n), slice(prefix + begin, prefix + begin + n)
        keys, values = (torch.cat([x[:, :prefix], x[:, own]], 1).repeat_interleave(group, 0) for x in (k, v))
        at = torch.arange(n)
        seen = at[:, None] >= at if causal else torch.ones(n, n, dtype=torch.bool)
        if window is not None:
            seen = seen & ((at[:, None] - at).abs() < window)
        mask = torch.cat([torch.ones(n, prefix, dtype=torch.bool), seen], 1)
        out.append(scaled_dot_product_attention(q[:, rows], keys, values, attn_mask=mask, scale=0.3))
        begin += n
    return torch.cat(out, 1).transpose(0, 1)


@pytest.mark.parametrize("lengths", [(1,), (64,), (65, 1, 200), (3, 5, 2, 7), (130, 70)], ids=str)
@pytest.mark.parametrize(("heads", "shared"), [(4, 2), (3, 3), (6, 1)])
@pytest.mark.parametrize(
    ("causal", "window", "prefix", "values"),
    [
        (True, None, 0, 8),
        (True, 9, 0, 8),
        (False, None, 0, 8),
        (True, None, 4, 8),
        (True, None, 4, 5),
        (True, None, 0, 12),
    ],
)
def test_tiles_attend_as_sample_by_sample(
    lengths: tuple[int, ...], heads: int, shared: int, causal: bool, window: int | None, prefix: int, values: int
) -> None:  # fmt: skip
    torch.manual_seed(sum(lengths))
    total = sum(lengths)
    q, k, v = (torch.randn(n, m, width, requires_grad=True) for n, m, width in
               ((heads, total, 8), (shared, prefix + total, 8), (shared, prefix + total, values)))  # fmt: skip
    ours = attend(q, k, v, lengths, scale=0.3, causal=causal, window=window)
    theirs = slow_attention(q, k, v, lengths, causal, window)
    assert torch.allclose(ours, theirs, atol=1e-5)
    grad = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (q, k, v), grad), torch.autograd.grad(theirs, (q, k, v), grad), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-4)


def test_many_products_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(4, 300, 8), torch.randn(2, 300, 8), torch.randn(2, 300, 8)
    one = attend(q, k, v, (120, 100, 80), scale=0.3)
    monkeypatch.setattr(attention, "SCORES", 1)
    cut_row.cache_clear()
    several = attend(q, k, v, (120, 100, 80), scale=0.3)
    assert len(cut_row((120, 100, 80), 2, 2, 0, True, None).batches) == 5
    cut_row.cache_clear()
    assert torch.allclose(one, several, atol=1e-6)


def row() -> Batch:
    rng = np.random.default_rng(0)
    every = [Sample(rng.integers(3, 60, n).astype(np.int32), np.ones(n, bool), "", True) for n in (9, 4, 17)]
    return pack(every)


def measured(model: nn.Module) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one row; the generator begins anew, so that dropout draws the same."""
    torch.manual_seed(3)
    model.zero_grad()
    loss = LossModel(model)(row()).total
    loss.backward()
    return float(loss), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def tuned(folder: Path, family: str, method: str, dropout: float) -> nn.Module:
    torch.manual_seed(0)
    model = load_model(tiny_folder(folder / family, family), "float32")
    if method == "full":
        return model.train()
    targets = "all-linear" if method == "lora" else ["q_proj", "v_proj"]
    whole = get_peft_model(model, LoraConfig(r=2, lora_alpha=8, lora_dropout=dropout, target_modules=targets))
    for name, p in whole.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.1)
    return whole.train()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["full", "lora", "lora on q and v"])
def test_a_model_with_fast_parts_loses_and_learns_the_same(tmp_path: Path, family: str, method: str) -> None:
    if family == "deepseek_v3" and method == "lora on q and v":
        pytest.skip("its attention has neither")
    model = tuned(tmp_path, family, method, 0.0)
    loss, grads = measured(model)
    assert install(model) > 2
    again, faster = measured(model)
    assert again == pytest.approx(loss, rel=1e-5)
    assert grads.keys() == faster.keys()
    for name, grad in grads.items():
        assert float((faster[name] - grad).norm()) <= 1e-4 * float(grad.norm()) + 1e-6, name


@pytest.mark.parametrize("family", OTHERS)
def test_a_family_of_another_build_keeps_what_is_its_own(tmp_path: Path, family: str) -> None:
    try:
        model = tuned(tmp_path, family, "full", 0.0)
    except (ValueError, KeyError) as error:
        pytest.skip(f"this transformers builds no tiny {family}: {error}")
    loss, grads = measured(model)
    install(model)
    again, faster = measured(model)
    assert again == pytest.approx(loss, rel=1e-5)
    for name, grad in grads.items():
        assert float((faster[name] - grad).norm()) <= 1e-4 * float(grad.norm()) + 1e-6, name


def test_dropout_is_applied_only_to_the_update_and_only_in_training(tmp_path: Path) -> None:
    model = tuned(tmp_path, "llama", "lora", 0.5)
    plain_eval = float(LossModel(model.eval())(row()).total)
    install(model.train())
    losses = set()
    for seed in range(4):
        torch.manual_seed(seed)
        losses.add(float(LossModel(model)(row()).total))
    assert len(losses) == 4
    assert float(LossModel(model.eval())(row()).total) == pytest.approx(plain_eval, rel=1e-5)


def test_the_gradient_of_dropout_is_that_of_its_forward(tmp_path: Path) -> None:
    model = tuned(tmp_path, "llama", "lora", 0.3)
    install(model)
    _, grads = measured(model)
    name, weight = next((n, p) for n, p in model.named_parameters() if "down_proj.lora_A" in n)
    step = 1e-2 * grads[name] / grads[name].norm()
    with torch.no_grad():
        weight += step
    up, _ = measured(model)
    with torch.no_grad():
        weight -= 2 * step
    down, _ = measured(model)
    assert (up - down) / 2e-2 == pytest.approx(float(grads[name].norm()), rel=2e-2)


def test_an_adapter_that_is_switched_off_is_off(tmp_path: Path) -> None:
    model: Any = tuned(tmp_path, "llama", "lora", 0.0).eval()
    with model.disable_adapter():
        base = float(LossModel(model)(row()).total)
    install(model)
    with model.disable_adapter():
        assert float(LossModel(model)(row()).total) == pytest.approx(base, rel=1e-6)
    assert float(LossModel(model)(row()).total) != pytest.approx(base, rel=1e-3)


def test_a_module_that_computes_something_else_keeps_its_own_forward(tmp_path: Path) -> None:
    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))
            self.eps = 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight * 3

    odd = OddRMSNorm()
    assert install(odd) == 0
    assert torch.equal(odd(torch.ones(2, 8)), torch.full((2, 8), 3.0))


def test_dropout_and_limits_that_a_small_trial_does_not_show_keep_their_own_forward(tmp_path: Path) -> None:
    """GTE drops out inside its gated block, OLMo cuts off large queries: neither shows in a trial on small numbers."""
    from transformers import GteConfig, GteForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
             "vocab_size": 60}  # fmt: skip
    with_dropout = GteForSequenceClassification(GteConfig(**sizes, hidden_dropout_prob=0.5))
    install(with_dropout)
    block, x = next(m for m in with_dropout.modules() if hasattr(m, "gate_proj")).train(), torch.ones(1, 3, 32)
    assert not torch.equal(block(x), block(x))

    model = load_model(tiny_folder(tmp_path / "olmo", "olmo", clip_qkv=0.5), "float32")
    whole = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).train()
    loss, grads = measured(whole)
    assert install(whole)
    ours, own = measured(whole)
    assert ours == pytest.approx(loss, rel=1e-6)
    for name, grad in grads.items():
        assert torch.allclose(own[name], grad, rtol=1e-3, atol=1e-5), name


def test_a_head_without_extras_loses_and_learns_the_same_in_one_place(tmp_path: Path) -> None:
    model = tuned(tmp_path, "llama", "full", 0.0)
    quick, grads = measured(model)
    model.get_output_embeddings().register_forward_hook(lambda *_: None)  # who looks on gets the module itself
    slow, theirs = measured(model)
    assert quick == pytest.approx(slow, rel=1e-6)
    for name, grad in theirs.items():
        assert float((grads[name] - grad).norm()) <= 1e-5 * float(grad.norm()) + 1e-6, name


def test_products_are_float32_again_behind_the_block() -> None:
    settings: Any = torch.backends.mkldnn
    before = settings.matmul.fp32_precision
    with matmul_precision("bfloat16"):
        assert settings.matmul.fp32_precision == "bf16"
    assert settings.matmul.fp32_precision == before
    assert chosen("float32") == "float32"
    assert chosen("bfloat16", exact=True) == "bfloat16"
    assert chosen("auto", exact=True) == "float32"
    assert chosen("auto") == ("bfloat16" if matrix_units() else "float32")


@pytest.mark.skipif(not matrix_units(), reason="this processor has no matrix units for bfloat16")
def test_coarse_products_are_near_and_not_equal() -> None:
    a, b = torch.randn(64, 256), torch.randn(256, 64)
    exact = a @ b
    with matmul_precision("bfloat16"):
        coarse = a @ b
    assert 1e-4 < float((exact - coarse).norm() / exact.norm()) < 1e-2
