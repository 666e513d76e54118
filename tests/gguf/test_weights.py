from __future__ import annotations

import json
import math
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.gguf import tiny
from tuneloop.gguf import weights
from tuneloop.gguf.file import GgufFile
from tuneloop.gguf.tokenizer import write_tokenizer
from tuneloop.gguf.weights import ShardedWeights


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_pieces_are_the_tensor(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PIECE", 100)
    tensor = torch.randn(50, 12).to(dtype)
    save_file({"a": tensor, "b": tensor[0].clone()}, tmp_path / "model.safetensors")
    opened = ShardedWeights(tmp_path)
    assert opened.shapes == {"a": (50, 12), "b": (12,)}
    pieces = list(opened.pieces("a", 4))
    assert [len(piece) for piece in pieces] == [8, 8, 8, 8, 8, 8, 2]
    assert np.array_equal(np.concatenate(pieces), tensor.float().numpy())
    assert np.array_equal(opened.tensor("b"), tensor[0].float().numpy())


def test_a_damaged_index_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model.safetensors.index.json is damaged"):
        ShardedWeights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    with pytest.raises(ValueError, match=r"gone\.safetensors|No such file"):
        ShardedWeights(tmp_path)


SHAPES: dict[str, dict[str, Any]] = {
    "3B": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
           "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
}  # fmt: skip
"""Qwen2.5's."""
CHILD = (
    "import resource, sys; from pathlib import Path; import tests.gguf.tiny; from tuneloop.gguf.write import write_gguf; "
    "write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
)


@pytest.mark.slow
@pytest.mark.parametrize("size", SHAPES)
def test_a_large_model_needs_little_memory(size: str, tmp_path: Path) -> None:
    """Peak of the process at most 1.5 times the largest shard and 1 GB. All but one layer's numbers are zeros."""
    shape = SHAPES[size]
    folder = tmp_path / "m"
    folder.mkdir()
    largest = _write_shape(folder, shape)
    need = {"3B": 2.2e9, "7B": 5.0e9}[size]
    if shutil.disk_usage(tmp_path).free < need + 5e8:
        pytest.skip(f"{need / 1e9} GB of disk are needed")
    path = tmp_path / "a.gguf"
    try:
        run = subprocess.run([sys.executable, "-c", CHILD, str(folder), str(path), "q4_k_m"], capture_output=True)
        assert run.returncode == 0, run.stderr.decode()[-2000:]
        peak = int(run.stdout)
        print(f"{size}: largest shard {largest / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB")
        assert peak < 1.5 * largest + 1e9
        with GgufFile(path) as file:
            assert file.facts["qwen2.block_count"] == shape["num_hidden_layers"]
            assert file.tensors["token_embd.weight"].shape[0] == shape["vocab_size"]
    finally:
        shutil.rmtree(folder)
        path.unlink(missing_ok=True)


def _write_shape(folder: Path, shape: dict[str, Any]) -> int:
    """A Qwen2 in bfloat16, a shard a layer, block by block; bytes of its largest shard."""
    hidden, inner, rows = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    keys = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    config = {**tiny.SIZE, **shape, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 1e6, "max_position_embeddings": 32768}))
    write_tokenizer(tiny.FACTS, folder)
    blocks = [{"model.embed_tokens.weight": (rows, hidden), "model.norm.weight": (hidden,)}]
    if not shape["tie_word_embeddings"]:
        blocks.append({"lm_head.weight": (rows, hidden)})
    for n in range(shape["num_hidden_layers"]):
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (hidden, hidden), "self_attn.q_proj.bias": (hidden,),
            "self_attn.k_proj.weight": (keys, hidden), "self_attn.k_proj.bias": (keys,),
            "self_attn.v_proj.weight": (keys, hidden), "self_attn.v_proj.bias": (keys,),
            "self_attn.o_proj.weight": (hidden, hidden), "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden), "mlp.down_proj.weight": (hidden, inner),
            "input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,),
        }  # fmt: skip
        blocks.append({f"model.layers.{n}.{name}": size for name, size in layer.items()})
    files = {}
    for number, block in enumerate(blocks):
        file = folder / f"model-{number:05d}.safetensors"
        files |= dict.fromkeys(block, file.name)
        if "model.layers.0.mlp.up_proj.weight" in block:
            save_file({name: torch.randn(size).to(torch.bfloat16) for name, size in block.items()}, file)
        else:
            _write_zeros(file, block)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return max(file.stat().st_size for file in folder.glob("*.safetensors"))


def _write_zeros(file: Path, block: dict[str, tuple[int, ...]]) -> None:
    """A shard that takes no space on the disk."""
    header, end = {}, 0
    for name, size in block.items():
        begin, end = end, end + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + end)
