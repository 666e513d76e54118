"""The certificate of GGUF files, which llama.cpp reads back: each type passes unharmed, and planted faults are named."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tests.conftest import TALK, byte_tokenizer
from tuneloop.data.tokens.templates import CHATML, stop_ids
from tuneloop.exports import parity
from tuneloop.exports.certificate import certify
from tuneloop.exports.forms import LlamaForm, TransformersForm
from tuneloop.exports.parity import Evidence, Parity
from tuneloop.gguf.file import GgufFile
from tuneloop.gguf.llamacpp import LlamaCpp
from tuneloop.gguf.lora import write_lora
from tuneloop.gguf.write import write_gguf
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import QloraPart

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in TALK
]
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Trained:
    """A tiny Llama with a random adapter: its base folder, its adapter folder, both merged, and what it says."""

    def __init__(self, root: Path) -> None:
        self.base, self.adapter, self.merged = root / "base", root / "adapter", root / "merged"
        numbers = ["2024 2024 345 345 12 12"] * 8  # tokens of several digits, which other pre-tokenizers never make
        tokenizer = byte_tokenizer(CHATML, words=numbers, eos_token="<|im_end|>", pad_token="<|endoftext|>")
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(4 if weight.ndim == 2 else 1)
        model.generation_config = GenerationConfig(eos_token_id=sorted(stop_ids(tokenizer)))
        for folder in (self.base, self.merged, self.adapter):
            tokenizer.save_pretrained(folder)
        model.save_pretrained(self.base)
        wrapped = get_peft_model(load_model(self.base), LoraConfig(r=4, lora_alpha=8, target_modules=list(TARGETS)))
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.1)
        wrapped.save_pretrained(self.adapter)
        self.evidence: Evidence = parity.measure(wrapped.eval(), load_tokenizer(self.base), CHATS)
        self.save(wrapped, self.merged)

    def save(self, model: PeftModel, folder: Path) -> Path:
        merged: Any = model.merge_and_unload()
        merged.generation_config = GenerationConfig(eos_token_id=sorted(self.evidence.ends))
        merged.save_pretrained(folder)
        load_tokenizer(self.base).save_pretrained(folder)
        return folder

    def certify(self, gguf: Path, target: str, adapters: Sequence[Path] = ()) -> Parity:
        with LlamaCpp(gguf, adapters=adapters) as llama:
            return certify(self.evidence, LlamaForm(llama, gguf, adapters), target)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def f16(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(trained.merged, tmp_path_factory.mktemp("gguf") / "f16.gguf", "f16")


def written(folder: Path, path: Path, kind: str) -> Path:
    write_gguf(folder, path, kind)
    return path


def edited(gguf: Path, tmp_path: Path, old: str, new: str) -> Path:
    """A copy of a GGUF file in which a text was changed on the disk, wherever it stands in the header."""
    copy = Path(shutil.copy(gguf, tmp_path / "edited.gguf"))
    raw, before, after = copy.read_bytes(), old.encode(), new.encode()
    assert len(before) == len(after)
    assert before in raw
    copy.write_bytes(raw.replace(before, after))
    return copy


def changed(gguf: Path, tmp_path: Path, name: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> Path:
    """A copy of an F16 file in which the numbers of one tensor were changed on the disk."""
    copy = Path(shutil.copy(gguf, tmp_path / "changed.gguf"))
    with GgufFile(copy) as file:
        tensor, start = file.tensors[name], file._start
    stored = np.memmap(copy, np.float16, "r+", start + tensor.offset, tensor.shape)
    stored[:] = change(np.array(stored))
    stored.flush()
    return copy


def planted(folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "planted"))
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file({n: w.contiguous() for n, w in weights.items()}, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"])
def test_each_type_passes_unharmed(kind: str, trained: Trained, tmp_path: Path) -> None:
    certificate = trained.certify(written(trained.merged, tmp_path / "m.gguf", kind), f"gguf-{kind}")
    assert certificate.passed, certificate.differences()
    assert certificate.cause is None
    assert certificate.answer_tokens > 100
    assert certificate.tolerance is None


@pytest.mark.parametrize("bits", ["nf4", "int8"])
def test_weights_held_by_bitsandbytes_pass_unharmed(bits: Any, trained: Trained) -> None:
    model = load_model(trained.merged, "float32", quantized=QloraPart(bits=bits))
    certificate = certify(trained.evidence, TransformersForm(model, load_tokenizer(trained.merged)), bits)
    assert certificate.passed, certificate.differences()


def test_the_adapter_alone_passes_on_the_base(trained: Trained, tmp_path: Path) -> None:
    base = written(trained.base, tmp_path / "base.gguf", "f16")
    write_lora(trained.adapter, trained.base, tmp_path / "lora.gguf")
    certificate = trained.certify(base, "gguf-lora", [tmp_path / "lora.gguf"])
    assert certificate.passed, certificate.differences()
    alone = trained.certify(base, "gguf-lora")
    assert (alone.passed, alone.cause) == (False, "not-applied")


def test_the_adapter_on_what_it_was_merged_into(trained: Trained, f16: Path, tmp_path: Path) -> None:
    """The LoRA applied twice: by the merge, and by llama.cpp."""
    write_lora(trained.adapter, trained.base, tmp_path / "lora.gguf")
    certificate = trained.certify(f16, "gguf-lora", [tmp_path / "lora.gguf"])
    assert (certificate.passed, certificate.cause) == (False, "applied-twice")


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_k_m"])
def test_a_merge_with_a_wrong_scale(kind: str, trained: Trained, tmp_path: Path) -> None:
    base = load_file(trained.base / "model.safetensors")

    def rescale(weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            weights[name] = base[name] + 3 * (weight - base[name])

    gguf = written(planted(trained.merged, tmp_path, rescale), tmp_path / "m.gguf", kind)
    certificate = trained.certify(gguf, f"gguf-{kind}")
    assert (certificate.passed, certificate.cause) == (False, "merge-scale")


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_k_m"])
def test_a_transposed_attention_weight(kind: str, trained: Trained, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    folder = planted(trained.merged, tmp_path, lambda weights: weights.update({name: weights[name].T}))
    certificate = trained.certify(written(folder, tmp_path / "m.gguf", kind), f"gguf-{kind}")
    assert (certificate.passed, certificate.cause) == (False, "transposed")
    assert name in certificate.why


def test_a_weight_that_is_transposed_in_the_file(trained: Trained, f16: Path, tmp_path: Path) -> None:
    gguf = changed(f16, tmp_path, "blk.1.attn_output.weight", lambda numbers: numbers.T)
    certificate = trained.certify(gguf, "gguf-f16")
    assert (certificate.passed, certificate.cause) == (False, "transposed")
    assert "model.layers.1.self_attn.o_proj.weight" in certificate.why


def test_rotary_halves_that_were_not_interleaved(trained: Trained, f16: Path, tmp_path: Path) -> None:
    """The rows of k as the checkpoint has them: what a writer makes that knows nothing of llama.cpp's order."""

    def halves(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return numbers.reshape(2, 8, 2, 64).swapaxes(1, 2).reshape(32, 64)

    certificate = trained.certify(changed(f16, tmp_path, "blk.0.attn_k.weight", halves), "gguf-f16")
    assert (certificate.passed, certificate.cause) == (False, "permuted")
    assert "k_proj" in certificate.why


def test_a_coarser_type_under_the_name_of_a_finer(trained: Trained, tmp_path: Path) -> None:
    certificate = trained.certify(written(trained.merged, tmp_path / "m.gguf", "q4_0"), "gguf-q8_0")
    assert (certificate.passed, certificate.cause) == (False, "rounding")


def test_a_wrong_pre_tokenizer(trained: Trained, f16: Path, tmp_path: Path) -> None:
    with GgufFile(f16) as file:
        assert file.facts["tokenizer.ggml.pre"] == "gpt-2"
    certificate = trained.certify(edited(f16, tmp_path, "gpt-2", "qwen2"), "gguf-f16")
    assert (certificate.passed, certificate.cause, certificate.past_limits()) == (False, "pre-tokenizer", [])
    assert "2024" in certificate.why


def test_a_template_changed_in_the_file(trained: Trained, f16: Path, tmp_path: Path) -> None:
    gguf = edited(f16, tmp_path, "m['content'] + '<|im_end|>", "m['content'] + '<|im_EnD|>")
    certificate = trained.certify(gguf, "gguf-f16")
    assert (certificate.passed, certificate.cause, certificate.past_limits()) == (False, "template", [])
    assert "<|im_EnD|>" in certificate.why


def test_a_lost_end_token(trained: Trained, f16: Path, tmp_path: Path) -> None:
    """llama.cpp itself still knows <|im_end|> by its spelling; other readers of the file do not."""
    with GgufFile(f16) as file:
        named = [key for key in file.facts if key in ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")]
    assert named
    gguf = f16
    for key in named:
        gguf = edited(gguf, tmp_path_of(tmp_path, key), key, key.replace("token_id", "tokem_id"))
    certificate = trained.certify(gguf, "gguf-f16")
    assert (certificate.passed, certificate.cause) == (False, "end-token")


def tmp_path_of(tmp_path: Path, key: str) -> Path:
    folder = tmp_path / key
    folder.mkdir()
    return folder
