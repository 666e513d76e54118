from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from tests.gguf import judge, tiny
from tuneloop.base.errors import MachineError, ModelError
from tuneloop.gguf import library, weights, write
from tuneloop.gguf.convert import convert
from tuneloop.gguf.file import GgufFile
from tuneloop.gguf.types import KINDS
from tuneloop.gguf.write import write_gguf

IDS = list(range(40, 64))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {kind: tiny.save(tiny.model(kind), root / kind) for kind in tiny.KINDS}


def theirs(folder: Path) -> NDArray[np.float32]:
    """transformers' logits of IDS."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        numbers: NDArray[np.float32] = model(torch.tensor([IDS])).logits[0].numpy()
    return numbers


def divergence(p: NDArray[np.float32], q: NDArray[np.float32]) -> float:
    """Mean KL divergence."""
    left, right = (torch.from_numpy(np.array(x)).double().log_softmax(-1) for x in (p, q))
    return float((left.exp() * (left - right)).sum(-1).mean())


def require_alike(folder: Path, path: Path, most: float = 2e-5) -> None:
    ours, expected = judge.logits(path, IDS), theirs(folder)
    assert expected.std() > 0.1  # else any model were like any other
    assert divergence(expected, ours) < most


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_llama_cpp_says_what_transformers_says(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    write_gguf(folders[kind], tmp_path / "a.gguf", "f16")
    require_alike(folders[kind], tmp_path / "a.gguf")


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_transformers_reads_the_weights_back(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_gguf(folders[kind], tmp_path / "a.gguf", "f16")
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    own: Any = AutoModelForCausalLM.from_pretrained(folders[kind], dtype=torch.float32)
    assert type(read) is type(own)
    for (name, ours), weight in zip(own.state_dict().items(), read.state_dict().values(), strict=True):
        shifted = kind == "gemma3" and ours.ndim == 1  # 1 is added to its norms and taken away again
        expected = (ours + 1) - 1 if shifted else ours if ours.ndim == 1 else ours.half().float()
        assert torch.equal(weight, expected), name
    for setting in ("head_dim", "num_key_value_heads", "tie_word_embeddings", "max_position_embeddings"):
        assert getattr(read.config, setting, None) == getattr(own.config, setting, None), setting
    assert read.config.rms_norm_eps == pytest.approx(own.config.rms_norm_eps)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_what_is_read_is_written_again_byte_for_byte(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    write_gguf(folders[kind], tmp_path / "a.gguf", "f16")
    facts = tmp_path / "made"
    facts.mkdir()
    with pytest.MonkeyPatch.context() as patch:  # tokenizers of these architectures are known by name
        patch.setattr("tuneloop.gguf.convert.write_tokenizer", lambda facts, folder: None)
        convert(tmp_path / "a.gguf", facts)
    for name, weight in load_file(facts / "model.safetensors").items():
        own = load_file(folders[kind] / "model.safetensors")[name]
        shifted = kind == "gemma3" and own.ndim == 1
        assert torch.equal(weight, (own + 1) - 1 if shifted else own if own.ndim == 1 else own.half().float()), name
    for path in folders[kind].iterdir():
        if not (facts / path.name).exists():
            shutil.copyfile(path, facts / path.name)
    (facts / "tuneloop.json").write_text(json.dumps({"name": kind}))
    write_gguf(facts, tmp_path / "b.gguf", "f16")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_is_read_by_llama_cpp(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    write_gguf(folders["llama"], tmp_path / "a.gguf", kind)
    limits = {"f16": 2e-5, "bf16": 1e-3, "q8_0": 1e-3, "q6_k": 5e-3, "q5_k_m": 2e-2, "q4_k_m": 8e-2, "q4_0": 0.15}
    require_alike(folders["llama"], tmp_path / "a.gguf", limits[kind])
    with GgufFile(tmp_path / "a.gguf") as file:
        assert file.facts["general.file_type"] == KINDS[kind].number


@pytest.mark.parametrize(
    ("kind", "rope"),
    [
        ("llama", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
        ("llama", {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
        ("qwen2", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}),
        ("qwen3", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
                   "attention_factor": 0.8}),
        ("gemma3", {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}),
    ],
    ids=lambda x: x if isinstance(x, str) else str(x.get("rope_type", "per layer")),
)  # fmt: skip
def test_scaled_rotary_positions_are_those_of_transformers(
    kind: str, rope: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig

    folder = tiny.save(tiny.model(kind, rope_parameters=rope), tmp_path / "m")
    write_gguf(folder, tmp_path / "a.gguf", "f16")
    require_alike(folder, tmp_path / "a.gguf")
    if rope.get("rope_type") != "llama3":  # a tensor, which is not read
        monkeypatch.setattr("tuneloop.gguf.convert.write_tokenizer", lambda facts, folder: None)
        (tmp_path / "read").mkdir()
        convert(tmp_path / "a.gguf", tmp_path / "read")
        own, read = (AutoConfig.from_pretrained(f).rope_parameters for f in (folder, tmp_path / "read"))
        assert read.keys() == own.keys()
        for name, setting in own.items():
            assert read[name] == (setting if isinstance(setting, str | dict) else pytest.approx(setting))
    unscaled = json.loads((folder / "config.json").read_text())
    flat = unscaled["rope_parameters"].get("full_attention", unscaled["rope_parameters"])
    for name in set(flat) - {"rope_theta", "rope_type"}:
        del flat[name]
    flat["rope_type"] = "default"
    (folder / "config.json").write_text(json.dumps(unscaled))
    assert divergence(theirs(folder), judge.logits(tmp_path / "a.gguf", IDS)) > 1e-4  # the scaling is seen at all


def test_heads_wider_than_the_model_and_an_untied_head(tmp_path: Path) -> None:
    folder = tiny.save(tiny.model("llama", head_dim=96, tie_word_embeddings=False), tmp_path / "m")
    write_gguf(folder, tmp_path / "a.gguf", "f16")
    require_alike(folder, tmp_path / "a.gguf")
    untied = tiny.save(tiny.model("gemma3", tie_word_embeddings=False), tmp_path / "n")
    write_gguf(untied, tmp_path / "b.gguf", "q8_0")
    require_alike(untied, tmp_path / "b.gguf", 2e-3)


def test_shards_in_half_precision_give_the_same_file(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tiny.model("llama").to(torch.bfloat16)
    names = {"one": "5GB", "many": "300KB"}
    for name, size in names.items():
        tiny.save(model, tmp_path / name, max_shard_size=size)
        (tmp_path / name / "tuneloop.json").write_text('{"name": "x", "licence": "Apache-2.0"}')
        write_gguf(tmp_path / name, tmp_path / f"{name}.gguf", "bf16")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()
    with GgufFile(tmp_path / "many.gguf") as file:
        assert file.facts["general.license"] == "Apache-2.0"
        embedding = file.numbers("token_embd.weight")
    assert np.array_equal(embedding, model.model.embed_tokens.weight.detach().float().numpy())


def test_pieces_do_not_show(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(folders["llama"], tmp_path / "a.gguf", "q4_k_m")
    monkeypatch.setattr(weights, "PIECE", 1000)  # a head of a matrix at a time
    write_gguf(folders["llama"], tmp_path / "b.gguf", "q4_k_m")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ("llama", {"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ("llama", {"architectures": None}, "class"),
        ("llama", {"model_type": "nothing"}, "nothing"),
        ("llama", {"hidden_act": "gelu"}, "activation is gelu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ("qwen3", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "beta_fast": 16,
                                       "original_max_position_embeddings": 64}}, "yarn"),
        ("qwen2", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                                       "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}, "llama3"),
        ("gemma3", {"rope_parameters": {
            "full_attention": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4,
                               "original_max_position_embeddings": 64},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}, "yarn"),
        ("gemma3", {"num_hidden_layers": 6, "layer_types": [*["sliding_attention"] * 5, "full_attention"]}, "layers.6"),
        ("qwen3", {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}, r"layers.3.* is missing"),
        ("qwen3", {"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ("llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3, "sliding_window": 8}, "window"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "each sixth"),
        ("gemma3", {"query_pre_attn_scalar": 64}, "root of 64"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "capped"),
        ("gemma3", {"use_bidirectional_attention": True}, "behind them"),
    ],
)  # fmt: skip
def test_what_a_gguf_has_no_place_for_is_refused(
    kind: str, change: dict[str, Any], words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    _refused(folder, tmp_path, words)


def _refused(folder: Path, tmp_path: Path, words: str, kind: str = "f16") -> None:
    (tmp_path / "old.gguf").write_bytes(b"old")
    with pytest.raises(ModelError, match=words) as caught:
        write_gguf(folder, tmp_path / "old.gguf", kind)
    assert caught.value.code == "TL-MODEL-GGUF-WRITE"
    assert (tmp_path / "old.gguf").read_bytes() == b"old"
    assert sorted(p.suffix for p in tmp_path.iterdir() if p.is_file()) == [".gguf"]


def test_tensors_of_another_kind_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["qwen3"], tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    for name, tensor, words in (
        ("model.layers.0.self_attn.q_proj.bias", torch.zeros(128), "q_proj.bias has no place"),
        ("model.layers.0.mlp.experts", torch.zeros(4, 4), "experts has no place"),
        ("model.norm.weight", torch.zeros(256, dtype=torch.int8), "is of type I8"),
        ("model.norm.weight", torch.full((256,), torch.nan), "model.norm.weight: some of its numbers are not finite"),
        (
            "model.layers.1.mlp.up_proj.weight",
            torch.full((512, 256), 7e4),
            "layers.1.mlp.up_proj.weight: .* too large for F16",
        ),
        ("model.embed_tokens.weight", torch.zeros(99, 256), f"99 rows, its tokenizer {tiny.SIZE['vocab_size']}"),
    ):
        save_file(tensors | {name: tensor}, folder / "model.safetensors", metadata={"format": "pt"})
        _refused(folder, tmp_path, words)
    (folder / "model.safetensors").write_bytes(b"\0" * 50)
    _refused(folder, tmp_path, "")
    (folder / "model.safetensors").unlink()
    _refused(folder, tmp_path, "")


def test_a_full_disk_is_told_before_anything_is_written(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=130 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(MachineError) as caught:
        write_gguf(folders["llama"], tmp_path / "a.gguf", "f16")
    assert caught.value.code == "TL-MACHINE-DISK"
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing_behind(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tuneloop.base.files.flush", full)
    with pytest.raises(MachineError) as caught:
        write_gguf(folders["llama"], tmp_path / "a.gguf", "f16")
    assert caught.value.code == "TL-MACHINE-DISK"
    assert list(tmp_path.iterdir()) == []


def test_without_llama_cpp_half_precision_is_written_and_blocks_are_not(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.library.cache_clear()
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    write_gguf(folders["llama"], tmp_path / "a.gguf", "bf16")
    with pytest.raises(MachineError, match="gguf") as caught:
        write_gguf(folders["llama"], tmp_path / "b.gguf", "q8_0")
    assert caught.value.code == "TL-MACHINE-EXTRA"
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


def test_layers_beyond_nine_are_in_their_order(tmp_path: Path) -> None:
    folder = tiny.save(tiny.model("qwen3", num_hidden_layers=12, hidden_size=64, intermediate_size=256), tmp_path / "m")
    write_gguf(folder, tmp_path / "a.gguf", "q4_k_m")
    with GgufFile(tmp_path / "a.gguf") as file:
        names = [n for n in file.tensors if n.endswith("ffn_down.weight")]
        assert names == [f"blk.{n}.ffn_down.weight" for n in range(12)]
        higher = [n for n in range(12) if file.tensors[f"blk.{n}.ffn_down.weight"].kind == 14]
        assert higher == [n for n in range(12) if n < 1 or n >= 10 or (n - 1) % 3 == 2]
    assert write.layer_order("blk.2.x") < write.layer_order("blk.10.x")
