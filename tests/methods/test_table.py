from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

from tests.conftest import tiny_config
from tuneloop.base.errors import MachineError, ModelError
from tuneloop.methods.table import METHODS, linear_names, notes, parameters
from tuneloop.methods.wrap import wrap
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import QloraPart, TrainPart


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


def tiny(family: str, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(tiny_config(family, **more))


def trained(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


def code(model: Any, **train: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        wrap(model, part(**train), 0)
    assert caught.value.do
    assert "?" not in caught.value.what
    return caught.value


def test_freeze_trains_the_last_blocks_with_the_norm_behind_them() -> None:
    model = wrap(tiny("llama", num_hidden_layers=3), part(method="freeze", freeze={"layers": 2}), 0)
    assert trained(model) == {
        n for n, _ in model.named_parameters() if n.startswith(("model.layers.1.", "model.layers.2.", "model.norm."))
    }
    gpt2 = wrap(tiny("gpt2"), part(method="freeze", freeze={"layers": 1}), 0)
    assert {n.split(".")[1] for n in trained(gpt2)} == {"h", "ln_f"}
    assert not any(".h.0." in n for n in trained(gpt2))


def test_freeze_trains_named_modules_or_the_head_alone() -> None:
    named = wrap(tiny("qwen2"), part(method="freeze", freeze={"modules": ["layers.0.mlp", "q_proj"]}), 0)
    assert {n.rsplit(".", 1)[0].removeprefix("model.layers.") for n in trained(named)} == {
        "0.mlp.gate_proj", "0.mlp.up_proj", "0.mlp.down_proj", "0.self_attn.q_proj", "1.self_attn.q_proj",
    }  # fmt: skip
    only = part(method="freeze", freeze={"layers": 0, "head": True})
    head = wrap(tiny("llama"), only, 0)
    assert trained(head) == {"lm_head.weight"}
    assert notes(head, only) == []
    tied = wrap(tiny("llama", tie_word_embeddings=True), only, 0)
    assert trained(tied) == {"model.embed_tokens.weight"}
    assert "both" in notes(tied, only)[0]


def test_what_cannot_be_trained_is_told_before_the_first_step() -> None:
    assert code(tiny("llama"), method="freeze", freeze={"layers": 0}).code == "TL-MODEL-NOTHING-TRAINED"
    assert "2" in code(tiny("llama"), method="freeze", freeze={"layers": 9}).what
    misspelt = code(tiny("llama"), method="freeze", freeze={"modules": ["lm_haed"]})
    assert misspelt.code == "TL-MODEL-MODULE"
    assert "lm_head" in misspelt.do
    also = code(tiny("llama"), lora={"train_also": ["embed_token"]})
    assert also.where == "train.lora.train_also"
    assert "embed_tokens" in also.do
    narrow = code(tiny("llama"), lora={"rank": 17})
    assert narrow.code == "TL-MODEL-RANK"
    assert "16" in narrow.what
    assert isinstance(wrap(tiny("llama"), part(lora={"rank": 17, "targets": ["q_proj"]}), 0), PeftModel)
    assert code(tiny("llama"), lora={"rank": 3, "init": "orthogonal"}).code == "TL-MODEL-METHOD"
    assert code(tiny("llama"), method="ptuning_v2", checkpointing=True).code == "TL-MODEL-CHECKPOINTING"


def test_quantisation_without_its_package_names_the_extra(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    real = importlib.import_module

    def without(name: str, *more: Any) -> Any:
        if name == "bitsandbytes":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MachineError) as caught:
        load_model(tiny_model, quantized=QloraPart())
    assert caught.value.code == "TL-MACHINE-EXTRA"
    assert "qlora" in caught.value.do


def test_experts_get_no_adapters_unless_they_are_named() -> None:
    wanted = part(lora={"rank": 2})
    model = wrap(tiny("deepseek_v3"), wanted, 0)
    touched = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in trained(model)}
    assert touched == {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    (note,) = notes(model, wanted)
    assert "gate_proj" in note
    named = wrap(tiny("deepseek_v3"), part(lora={"rank": 2, "targets": ["gate_proj", "up_proj", "down_proj"]}), 0)
    assert any(".experts." in n for n in trained(named))


@pytest.mark.parametrize("kind", ["orthogonal", "gaussian", "pissa", "olora"])
def test_every_beginning_leaves_the_model_as_it_was(tiny_model: Path, kind: str) -> None:
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = load_model(tiny_model)(ids).logits
        wrapped = wrap(load_model(tiny_model), part(lora={"rank": 4, "init": kind}), 0)
        assert torch.allclose(wrapped(ids).logits, before, atol=1e-4)


def test_tied_embeddings_stay_tied_when_they_are_trained_whole(tiny_model: Path) -> None:
    model: Any = wrap(load_model(tiny_model), part(lora={"rank": 2, "train_also": ["embed_tokens"]}), 0)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.requires_grad and "embed_tokens" in n:
                p.add_(0.1)
        after = model.eval()(torch.arange(9)[None]).logits
        merged = model.merge_and_unload()
        assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
        assert torch.allclose(merged(torch.arange(9)[None]).logits, after, atol=1e-4)


def test_noise_on_the_embeddings_is_of_each_sample_alone_and_of_training_alone() -> None:
    from tuneloop.model.backbone import packed_inputs

    model = wrap(tiny("llama"), part(lora={"rank": 2}, neftune_alpha=5), 0)
    ids, places, lengths = torch.arange(3, 23)[None], torch.tensor([[*range(4), *range(16)]]), (4, 16)
    plain_ = model.get_base_model().get_input_embeddings()(ids)  # type: ignore[operator,union-attr]
    model.train()
    torch.manual_seed(7)
    noise = (packed_inputs(model, ids, places, lengths).inputs["inputs_embeds"] - plain_)[0].abs()
    for piece, length in zip(noise.split(lengths), lengths, strict=True):
        most = 5 / (length * 32) ** 0.5
        assert 0.9 * most < float(piece.max()) <= most
    torch.manual_seed(7)
    assert torch.equal((packed_inputs(model, ids, places, lengths).inputs["inputs_embeds"] - plain_)[0].abs(), noise)
    model.eval()
    assert "input_ids" in packed_inputs(model, ids, places, lengths).inputs
    with torch.no_grad():
        assert "input_ids" in packed_inputs(model.train(), ids, places, lengths).inputs


def bert(words: bool = False) -> Any:
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    config = BertConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_labels=3,
                        num_attention_heads=4, max_position_embeddings=64)  # fmt: skip
    if words:
        return BertForMaskedLM(config)
    model = BertForSequenceClassification(config)
    model.new_weights = ("classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias")
    return model


def test_a_new_head_is_trained_and_saved_whatever_the_method(tmp_path: Path) -> None:
    new = ("classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias")
    for train in ({"lora": {"rank": 2}}, {"method": "prompt_tuning"}, {"method": "freeze", "freeze": {"layers": 0}}):
        model: Any = wrap(bert(), part(**train), 0)
        names = {
            n.replace("modules_to_save.default.", "").replace("base_model.model.", "").removeprefix("base_model.")
            for n in trained(model)
        }
        assert names.issuperset(new), train
        ids = torch.arange(9)[None]
        model.save_pretrained(tmp_path / str(train.get("method")))
        before = model.eval()(ids).logits
        if isinstance(model, PeftModel):
            again = PeftModel.from_pretrained(bert_with(model), str(tmp_path / str(train.get("method"))))
            assert torch.allclose(again.eval()(ids).logits, before, atol=1e-5)


def bert_with(model: Any) -> Any:
    """The same trunk with another new head and pooler."""
    from copy import deepcopy

    fresh = bert()
    own = {k.replace(".base_layer.", ".").replace(".original_module.", "."): v
           for k, v in deepcopy(model.get_base_model()).state_dict().items()}  # fmt: skip
    fresh.load_state_dict({k: v for k, v in own.items() if k in fresh.state_dict() and not k.startswith("classifier")},
                          strict=False)  # fmt: skip
    return fresh


@pytest.mark.parametrize("method", ["ptuning_v2", "prompt_tuning", "lora"])
def test_an_encoder_scores_packed_texts_as_peft_does(method: str) -> None:
    from tuneloop.data.batches.pack import Batch
    from tuneloop.model.kernels import packed
    from tuneloop.tasks.classify import LabelModel

    model = bert()
    model.set_attn_implementation(packed.register())
    wrapped = wrap(model, part(method=method), 0).eval()
    objective, lengths = LabelModel(wrapped, torch.arange(5)[None]).eval(), (5, 7)
    ids, places = torch.arange(3, 15)[None], torch.tensor([[*range(5), *range(7)]])
    none = torch.zeros(0, dtype=torch.int64)
    with torch.no_grad():
        alone = [wrapped(input_ids=x, attention_mask=torch.ones_like(x)).logits for x in ids.split(lengths, 1)]
        assert objective.read is not None
        assert torch.allclose(objective.scores(Batch(ids, places, none, none, lengths)), torch.cat(alone), atol=1e-5)


def test_models_of_masked_words_take_no_virtual_tokens() -> None:
    assert code(bert(words=True), method="prompt_tuning").code == "TL-MODEL-METHOD"
    model = wrap(bert(words=True), part(lora={"rank": 2}), 0)
    assert trained(model)
    assert not any("cls." in n for n in trained(model))


def test_a_prompt_may_begin_as_a_text(tiny_model: Path) -> None:
    from tuneloop.inference.tokenizer import load_tokenizer

    model = load_model(tiny_model)
    words = load_tokenizer(tiny_model)("Small step", add_special_tokens=False)["input_ids"]
    wrapped: Any = wrap(model, part(method="prompt_tuning", virtual={"tokens": 9, "text": "Small step"}), 0)
    expected = model.get_input_embeddings()(torch.tensor([words[k % len(words)] for k in range(9)]))
    assert torch.equal(wrapped.get_prompt(1)[0], expected)
    long = code(load_model(tiny_model), method="prompt_tuning", virtual={"tokens": 2, "text": "Small step of mine"})
    assert long.where == "train.virtual.text"


def test_a_text_that_a_prefix_cannot_begin_as_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that makes the vectors, and a model that keeps no keys and values: an encoder."""
    from tuneloop.methods import virtual

    wanted = {"tokens": 4, "text": "Small step"}
    made = code(load_model(tiny_model), method="ptuning_v2", virtual={**wanted, "projection": True})
    monkeypatch.setattr(virtual, "_text", lambda *_: [3, 4, 5, 6])
    encoder = code(bert(), method="ptuning_v2", virtual=wanted)
    assert {(e.code, e.where) for e in (made, encoder)} == {("TL-MODEL-METHOD", "train.virtual.text")}
