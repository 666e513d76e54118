from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from tests.conftest import tiny_folder
from tuneloop.base.errors import ModelError, RunError
from tuneloop.data.tokens.templates import CHATML, PLAIN
from tuneloop.hub.resolve import model_folder
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import load_trained
from tuneloop.methods.wrap import wrap
from tuneloop.model.load import load_model, pick_dtype
from tuneloop.recipe.recipe import dump, make_recipe
from tuneloop.recipe.schema import ModelPart, TrainPart
from tuneloop.training.model_folder import save_result

IDS = torch.arange(3, 30)[None]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may harm."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def code(call: Any, *args: Any) -> str:
    with pytest.raises((ModelError, RunError)) as caught:
        call(*args)
    assert caught.value.do
    assert "?" not in caught.value.what
    return caught.value.code


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_a_tokenizer_brings_a_template_whatever_the_folder_has(folder: Path) -> None:
    assert load_tokenizer(folder).chat_template == CHATML
    (folder / "chat_template.jinja").unlink()
    assert load_tokenizer(folder).chat_template == PLAIN
    (folder / "chat_template.jinja").write_text("{{ 'own' }}", encoding="utf-8")
    assert load_tokenizer(folder).chat_template == "{{ 'own' }}"
    assert load_tokenizer(folder, "chatml").chat_template == CHATML


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {"type": "BPE"}}', "\x00\x01"])
def test_a_broken_tokenizer_is_told(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    assert code(load_tokenizer, folder) == "TL-MODEL-TOKENIZER"


def test_a_model_is_loaded_to_answer(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    assert not model.training
    assert model.dtype == torch.float32
    assert load_model(tiny_model, "bfloat16").dtype == torch.bfloat16
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_types_are_those_of_the_recipe() -> None:
    assert [pick_dtype(d) for d in ("float32", "bfloat16", "float16")] == [torch.float32, torch.bfloat16, torch.float16]
    if not torch.cuda.is_available():
        assert pick_dtype("auto") == torch.float32


def test_a_weight_that_is_in_no_file_is_not_made_up(folder: Path) -> None:
    """transformers fills it with random numbers and only warns."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, file, {"format": "pt"})
    assert code(load_model, folder) == "TL-MODEL-WEIGHTS"


def test_a_model_without_a_language_head_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path / "bert")
    assert code(load_model, tmp_path / "bert") == "TL-MODEL-WEIGHTS"


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}), encoding="utf-8")
    assert code(load_model, folder) == "TL-MODEL-CONFIG"


@pytest.mark.parametrize("kind", ["t5", "no-such-kind"])
def test_what_is_no_causal_model_is_refused(folder: Path, kind: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    assert code(load_model, folder) == "TL-MODEL-CONFIG"


def test_a_cut_off_file_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert code(load_model, folder) == "TL-MODEL-CONFIG"
    assert code(model_folder, ModelPart(name=str(folder))) == "TL-MODEL-TRUNCATED"


def test_pickled_weights_are_never_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert code(load_model, folder) == "TL-MODEL-CONFIG"
    assert code(model_folder, ModelPart(name=str(folder))) == "TL-MODEL-PICKLE"


def finished(tmp_path: Path, base: Path, method: str) -> tuple[Path, Any]:
    """A run folder with a result, as the session writes it, and the model in memory."""
    run = tmp_path / "run"
    run.mkdir()
    recipe, _ = make_recipe({"model": str(base), "train": {"method": method}})
    (run / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    model = wrap(load_model(base), TrainPart(method=method), 0).eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.requires_grad and ("lora_B" in n or method == "full"):
                p.add_(torch.randn_like(p) * 0.05)
    target = run / ("adapter" if method == "lora" else "model")
    target.mkdir()
    save_result(model, load_tokenizer(base), base, target)
    return run, model


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_was_trained_is_what_is_loaded(tiny_model: Path, tmp_path: Path, method: str) -> None:
    run, model = finished(tmp_path, tiny_model, method)
    trained = load_trained(run)
    assert isinstance(trained.model, PeftModel) == (method == "lora")
    assert not any(m.training for m in trained.model.modules())
    assert torch.equal(logits(trained.model), logits(model))
    assert not torch.allclose(logits(trained.model), logits(load_model(tiny_model)), atol=1e-3)
    assert trained.tokenizer.chat_template == CHATML
    assert trained.recipe.train.method == method


def test_an_adapter_folder_is_what_other_tools_load(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, model = finished(tmp_path, tiny_model, "lora")
    adapter = run / "adapter"
    names = {p.name for p in adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl"))]
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tiny_model)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), adapter)
    assert torch.allclose(logits(theirs.eval()), logits(model), atol=1e-5)
    assert AutoTokenizer.from_pretrained(adapter).chat_template == CHATML


def test_a_whole_model_is_what_other_tools_load(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run, model = finished(tmp_path, tiny_model, "full")
    theirs = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    assert torch.allclose(logits(theirs.eval()), logits(model), atol=1e-5)


def test_what_is_no_finished_run_is_told(tiny_model: Path, tmp_path: Path) -> None:
    assert code(load_trained, tmp_path) == "TL-RUN-MISSING"
    run, _ = finished(tmp_path, tiny_model, "lora")
    shutil.rmtree(run / "adapter")
    assert code(load_trained, run) == "TL-RUN-UNFINISHED"


def test_an_adapter_is_never_unpickled(tiny_model: Path, tmp_path: Path) -> None:
    run, _ = finished(tmp_path, tiny_model, "lora")
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    (run / "adapter" / "adapter_model.safetensors").unlink()
    torch.save(weights, run / "adapter" / "adapter_model.bin")
    assert code(load_trained, run) == "TL-RUN-DAMAGED"


def test_a_cut_off_adapter_is_told(tiny_model: Path, tmp_path: Path) -> None:
    run, _ = finished(tmp_path, tiny_model, "lora")
    file = run / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert code(load_trained, run) == "TL-MODEL-TRUNCATED"


def test_an_adapter_that_lacks_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """PEFT would leave them at their start, and the run would answer as half trained."""
    run, _ = finished(tmp_path, tiny_model, "lora")
    file = run / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    weights.pop(next(n for n in weights if "lora_B" in n))
    save_file(weights, file)
    assert code(load_trained, run) == "TL-RUN-DAMAGED"


def test_more_than_two_sided_models_load(tmp_path: Path) -> None:
    for family in ("qwen3", "gemma3_text"):
        assert logits(load_model(tiny_folder(tmp_path / family, family))).shape[-1] == 128
