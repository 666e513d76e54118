from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from tests.conftest import tiny_config
from tuneloop.errors import ModelError
from tuneloop.model.load import load_model, wrap
from tuneloop.model.methods import METHODS, linear_names, parameters
from tuneloop.sections import TrainPart


def part(**train: Any) -> TrainPart:
    return TrainPart.model_validate(train)


def test_lora_goes_to_every_linear_layer_but_the_head(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(linear_names(model)) == names
    wrapped = wrap(model, part(lora={"rank": 4}), 0)
    assert isinstance(wrapped, PeftModel)
    touched = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n, p in wrapped.named_parameters() if p.requires_grad}
    assert touched == names
    assert all("lora_" in n for n, p in wrapped.named_parameters() if p.requires_grad)
    layers = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)
    assert parameters(wrapped)[1] == 2 * 4 * layers


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_does(tiny_model: Path) -> None:
    base, ids = load_model(tiny_model), torch.arange(20)[None]
    with torch.no_grad():
        before = base(ids).logits
        wrapped = wrap(base, part(lora={"rank": 4, "alpha": 8}), 0)
        assert torch.equal(wrapped(ids).logits, before)
        for n, p in wrapped.named_parameters():
            if "lora_B" in n:
                p.normal_()
        assert not torch.allclose(wrapped(ids).logits, before, atol=1e-3)


def test_named_targets_alone_are_touched(tiny_model: Path) -> None:
    wrapped = wrap(load_model(tiny_model), part(lora={"rank": 2, "targets": ["q_proj", "layers.1.mlp.down_proj"]}), 0)
    touched = {n.split(".lora_")[0].split("layers.")[1] for n, p in wrapped.named_parameters() if p.requires_grad}
    assert touched == {"0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.down_proj"}


def test_a_misspelt_target_names_the_near_ones(tiny_model: Path) -> None:
    with pytest.raises(ModelError) as caught:
        wrap(load_model(tiny_model), part(lora={"targets": ["q_prj", "v_proj"]}), 0)
    assert caught.value.code == "TL-MODEL-MODULE"
    assert "q_prj" in str(caught.value)
    assert "q_proj" in str(caught.value)


def test_the_same_seed_begins_with_the_same_adapter(tiny_model: Path) -> None:
    def start(seed: int, draws: int) -> dict[str, torch.Tensor]:
        torch.rand(draws)
        wrapped = wrap(load_model(tiny_model), part(lora={"rank": 2}), seed)
        return {n: p for n, p in wrapped.named_parameters() if "lora_A" in n}

    one, same, other = start(1, 3), start(1, 50), start(2, 3)
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not any(torch.equal(one[n], other[n]) for n in one)


def test_full_trains_every_weight_once(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    for p in model.parameters():
        p.requires_grad_(False)
    wrapped = wrap(model, part(method="full"), 0)
    every, trained = parameters(wrapped)
    assert every == trained == sum(p.numel() for p in set(model.parameters()))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("method", ["lora", "full"])
def test_activations_are_recomputed_where_it_is_asked_for(tiny_model: Path, method: str) -> None:
    wrapped = wrap(load_model(tiny_model), part(method=method, checkpointing=True), 0)
    inner = wrapped.get_base_model() if isinstance(wrapped, PeftModel) else wrapped
    assert inner.is_gradient_checkpointing
    wrapped.train()
    wrapped(torch.arange(9)[None]).logits.sum().backward()
    assert all(p.grad is not None for p in wrapped.parameters() if p.requires_grad)
    plain = wrap(load_model(tiny_model), part(method=method), 0)
    assert not (plain.get_base_model() if isinstance(plain, PeftModel) else plain).is_gradient_checkpointing


def test_a_method_that_trains_nothing_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    def frozen(model: Any, train: TrainPart) -> nn.Module:
        return model.requires_grad_(False)

    monkeypatch.setitem(METHODS, "full", replace(METHODS["full"], wrap=frozen))
    with pytest.raises(ModelError) as caught:
        wrap(load_model(tiny_model), part(method="full"), 0)
    assert caught.value.code == "TL-MODEL-NOTHING-TRAINED"


def test_each_method_of_the_recipe_is_an_entry() -> None:
    from typing import get_args

    assert set(METHODS) == set(get_args(TrainPart.model_fields["method"].annotation))
    assert METHODS["lora"].adapter
    assert METHODS["lora"].mergeable
    assert not METHODS["full"].adapter
    assert not METHODS["full"].mergeable, "there is nothing to merge"


def test_an_untied_head_is_no_target() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(tiny_config("qwen2", tie_word_embeddings=False))
    assert "lm_head" not in linear_names(model)
    assert "lm_head" in dict(model.named_modules())


def test_gpt2_has_linear_layers_of_another_kind() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(tiny_config("gpt2"))
    assert linear_names(model) == ["c_attn", "c_fc", "c_proj"]
    wrapped = wrap(model, part(lora={"rank": 2}), 0)
    touched = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n, p in wrapped.named_parameters() if p.requires_grad}
    assert touched == {"c_attn", "c_fc", "c_proj"}


def test_no_target_is_nothing_to_train(tiny_model: Path) -> None:
    with pytest.raises(ModelError) as caught:
        wrap(load_model(tiny_model), part(lora={"targets": []}), 0)
    assert caught.value.code == "TL-MODEL-NOTHING-TRAINED"
