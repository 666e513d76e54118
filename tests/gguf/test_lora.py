from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tests.gguf import judge, tiny
from tests.gguf.test_write import IDS, divergence
from tuneloop.base.environment import environment
from tuneloop.base.errors import ModelError
from tuneloop.gguf.file import GgufFile
from tuneloop.gguf.lora import write_lora
from tuneloop.gguf.write import write_gguf

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"r": 4, "lora_alpha": 8},
    "qwen2": {"r": 4, "lora_alpha": 4, "use_rslora": True, "rank_pattern": {"q_proj": 9}, "target_modules": [
        *LINEAR, "lm_head", "embed_tokens"]},
    "qwen3": {"r": 4, "lora_alpha": 8, "alpha_pattern": {r"1\.self_attn\.v_proj": 40}, "rank_pattern": {"o_proj": 2}},
    "gemma3": {"r": 2, "lora_alpha": 16},
}  # fmt: skip


def tuned(kind: str, root: Path, **settings: Any) -> tuple[Path, Path, PeftModel]:
    """(base folder, adapter folder, the model with it): an adapter of random numbers that changes what is said."""
    base = tiny.save(tiny.model(kind), root / "base")
    config = LoraConfig(**{"target_modules": LINEAR, "task_type": "CAUSAL_LM"} | SETTINGS[kind] | settings)
    model = get_peft_model(tiny.model(kind), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.06)
    model.save_pretrained(str(root / "adapter"), save_embedding_layers=False)
    return base, root / "adapter", model.eval()


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_llama_cpp_applies_it_as_peft_does(kind: str, tmp_path: Path) -> None:
    base, adapter, model = tuned(kind, tmp_path)
    write_gguf(base, tmp_path / "base.gguf", "f16")
    write_lora(adapter, base, tmp_path / "lora.gguf")
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    ours = judge.logits(tmp_path / "base.gguf", IDS, tmp_path / "lora.gguf")
    assert divergence(expected, ours) < 5e-5
    assert divergence(expected, judge.logits(tmp_path / "base.gguf", IDS)) > 1e-2  # without it, another model
    merged: Any = model.merge_and_unload()
    write_gguf(tiny.save(merged, tmp_path / "merged"), tmp_path / "merged.gguf", "f16")
    assert divergence(judge.logits(tmp_path / "merged.gguf", IDS), ours) < 5e-5


def test_it_says_what_it_is(tmp_path: Path) -> None:
    base, adapter, _ = tuned("llama", tmp_path)
    write_lora(adapter, base, tmp_path / "lora.gguf")
    with GgufFile(tmp_path / "lora.gguf") as file:
        assert file.facts["general.type"] == "adapter"
        assert (file.facts["adapter.type"], file.facts["adapter.lora.alpha"]) == ("lora", 8.0)
        assert len(file.tensors) == 2 * 7 * 3
        a = file.numbers("blk.1.ffn_up.weight.lora_a")
    theirs = load_file(adapter / "adapter_model.safetensors")
    assert np.array_equal(a, theirs["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"].numpy())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "setting bias"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        (None, "adapter_config.json is missing or damaged"),
    ],
)
def test_what_llama_cpp_does_not_have_is_refused(change: dict[str, Any] | None, words: str, tmp_path: Path) -> None:
    base, adapter, _ = tuned("llama", tmp_path)
    file = adapter / "adapter_config.json"
    file.write_text("{" if change is None else json.dumps(json.loads(file.read_text()) | change))
    _refused(adapter, base, tmp_path, words)


def _refused(adapter: Path, base: Path, tmp_path: Path, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        write_lora(adapter, base, tmp_path / "lora.gguf")
    assert caught.value.code == "TL-MODEL-GGUF-WRITE"
    assert not list(tmp_path.glob("*lora*"))


def test_tensors_of_another_base_or_method_are_refused(tmp_path: Path) -> None:
    base, adapter, _ = tuned("llama", tmp_path)
    other = tiny.save(tiny.model("llama", hidden_size=128), tmp_path / "other")
    _refused(adapter, other, tmp_path, "not of this base model")
    file = adapter / "adapter_model.safetensors"
    own = load_file(file)
    first = "base_model.model.model.layers.0.self_attn.q_proj."
    for changed, words in (
        (own | {f"{first}lora_magnitude_vector": torch.ones(256)}, "magnitude_vector has no place"),
        ({n: w for n, w in own.items() if n != f"{first}lora_B.weight"}, "do not belong together"),
        ({n.replace("q_proj", "other_proj"): w for n, w in own.items()}, "other_proj are not of this base"),
        (own | {f"{first}lora_A.weight": torch.full((4, 256), torch.nan)}, "not finite"),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        _refused(adapter, base, tmp_path, words)
    file.unlink()
    _refused(adapter, base, tmp_path, "")


def test_half_of_a_tied_pair_is_refused(tmp_path: Path) -> None:
    for target in ("embed_tokens", "lm_head"):
        root = tmp_path / target
        base, adapter, _ = tuned("llama", root, target_modules=["q_proj", target])
        _refused(adapter, base, root, "head and embedding are one tensor")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.real_model
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"])
def test_the_real_model_with_it_answers_as_the_merged_one(name: str, tmp_path: Path) -> None:
    """Greedy answers of base F16 and gguf-lora, of merged F16 and of transformers are the same, near ties apart."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = environment().home / "models" / name
    if not (base / "config.json").is_file():
        pytest.skip(f"tuneloop model pull {name}")
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    loaded: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    model: Any = get_peft_model(loaded, LoraConfig(r=8, lora_alpha=16, target_modules=LINEAR, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for part, weight in model.named_parameters():
            if "lora_" in part:
                weight.copy_(torch.randn_like(weight) * 0.01)
    model.save_pretrained(str(tmp_path / "adapter"))
    write_gguf(base, tmp_path / "base.gguf", "f16")
    write_lora(tmp_path / "adapter", base, tmp_path / "lora.gguf")
    merged: Any = model.merge_and_unload().eval()
    merged.save_pretrained(tmp_path / "merged")
    for file in base.glob("*token*"):
        shutil.copyfile(file, tmp_path / "merged" / file.name)
    write_gguf(tmp_path / "merged", tmp_path / "merged.gguf", "f16")
    shutil.rmtree(tmp_path / "merged")
    compared = 0
    for question in ("What is the capital of France?", "请介绍一下你自己。", "Write a haiku about rain."):
        text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        length = {"min_new_tokens": 40, "max_new_tokens": 40}  # Qwen's answers would end sooner
        answer = merged.generate(ids, **length, do_sample=False, repetition_penalty=1.0)[0].tolist()
        with torch.inference_mode():
            theirs = merged(torch.tensor([answer])).logits[0]
        best = theirs.topk(2, dim=-1)
        clear = ((best.values[:, 0] - best.values[:, 1]) > 0.05 * theirs.std(dim=-1)).numpy()
        for path, adapter in (("base.gguf", "lora.gguf"), ("merged.gguf", None)):
            ours = judge.logits(tmp_path / path, answer, tmp_path / adapter if adapter else None)
            assert (ours.argmax(-1) == best.indices[:, 0].numpy())[clear].all(), (question, path)
            assert divergence(theirs.numpy(), ours) < 1e-3
        compared += int(clear.sum())
    assert compared > 100
