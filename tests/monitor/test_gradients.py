from __future__ import annotations

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tuneloop.monitor.gradients import Gradients, group_names

LORA = "model.base_model.model.model.layers.{}.self_attn.q_proj.lora_A.default.weight"


def model(*types: torch.dtype) -> nn.Module:
    """Layers of these types in turn, of sizes that no order of summing forgives."""
    torch.manual_seed(0)
    layers = [nn.Linear(7 + 3 * k, 5 + 11 * k).to(types[k % len(types)]) for k in range(9)]
    return nn.ModuleDict({"layers": nn.ModuleList(layers), "unused": nn.Linear(3, 3)})


def with_gradients(module: nn.Module, scale: float) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name, p in module.named_parameters():
        if "unused" not in name:
            p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)
    return module


@pytest.mark.parametrize(
    "types",
    [(torch.float32,), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float64, torch.float16)],
    ids=str,
)
@pytest.mark.parametrize(("scale", "limit"), [(1e-4, 1.0), (1.0, 1.0), (1.0, 0.3), (3e4, 1e-3), (1.0, 0.0)])
def test_norm_and_clipped_gradients_are_accelerates_to_the_bit(
    types: tuple[torch.dtype, ...], scale: float, limit: float
) -> None:
    if torch.float16 in types and scale > 1:
        scale = 1e2  # what float16 holds
    theirs = with_gradients(model(*types), scale)
    ours = with_gradients(copy.deepcopy(theirs), scale)
    before = [p.grad.clone() for p in ours.parameters() if p.grad is not None]
    total = Accelerator(cpu=True).clip_grad_norm_(list(theirs.parameters()), limit or math.inf)
    norms = Gradients(ours).clip(limit)
    assert torch.equal(norms.total, total)
    assert norms.total.dtype == total.dtype
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all((a.grad is None) == (b.grad is None) for a, b in pairs)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)
    after = [p.grad for p in ours.parameters() if p.grad is not None]
    clipped = 0 < limit < total.item()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) != clipped


@pytest.mark.parametrize("types", [(torch.float32,), (torch.bfloat16, torch.float64, torch.float16)], ids=str)
def test_the_norm_of_a_group_is_that_of_its_weights(types: tuple[torch.dtype, ...]) -> None:
    module = with_gradients(model(*types), 1.0)
    norms = Gradients(module).clip(0.5).read()
    again = with_gradients(module, 1.0)
    for name, norm in norms.items():
        low, high = (name.split()[1].split("-") * 2)[:2]
        own = [p.grad.double().norm() for k in range(int(low), int(high) + 1) for p in again["layers"][k].parameters()]  # type: ignore[index]
        assert norm == pytest.approx(float(torch.stack(own).norm()), rel=1e-2 if len(types) > 1 else 1e-5), name
    assert len(norms) == 8
    assert "rest" not in norms, "what has no gradient has no norm"


def test_without_gradients_there_is_nothing() -> None:
    norms = Gradients(model(torch.float32)).clip(1.0)
    assert (float(norms.total), norms.read()) == (0.0, {})


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        ([LORA.format(k) for k in range(2)], ["layer 0", "layer 1"]),
        ([LORA.format(k) for k in (28, 29)], ["layer 28", "layer 29"]),
        (
            [LORA.format(k) for k in range(30)],
            [name for name, n in (("layers 0-2", 3), ("layers 3-6", 4), ("layers 7-10", 4), ("layers 11-14", 4),
             ("layers 15-17", 3), ("layers 18-21", 4), ("layers 22-25", 4), ("layers 26-29", 4)) for _ in range(n)],
        ),
        (
            ["model.model.embed_tokens.weight", "model.model.layers.0.mlp.experts.7.up_proj.weight", "model.model.norm.weight", "model.lm_head.weight"],
            ["embeddings", "layer 0", "rest", "head"],
        ),
        (
            ["module.model.bert.embeddings.word_embeddings.weight", "module.model.bert.embeddings.LayerNorm.weight",
             "module.model.bert.encoder.layer.5.output.dense.bias", "module.model.bert.pooler.dense.weight", "module.model.classifier.weight"],
            ["embeddings", "embeddings", "layer 5", "head", "head"],
        ),
        (
            ["model.base_model.model.score.modules_to_save.default.weight", "model.base_model.model.model.embed_tokens.lora_embedding_A.default"],
            ["head", "embeddings"],
        ),
        (["transformer.wte.weight", "transformer.wpe.weight", "transformer.h.3.ln_1.weight", "transformer.ln_f.weight"],
         ["embeddings", "embeddings", "layer 3", "rest"]),
        (["model.prompt_encoder.default.embedding.weight"], ["rest"]),
        (["model.albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight"], ["layer 0"]),
    ],
)  # fmt: skip
def test_names_tell_groups(names: list[str], groups: list[str]) -> None:
    assert group_names(names) == groups
