"""A streamed merge: the numbers that loading a whole model gives, file by file, without loading it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import tiny_folder
from tuneloop.exports import streamed
from tuneloop.exports.tensor_file import TensorFile, TensorShape, header
from tuneloop.model import quantize
from tuneloop.model.head import CAUSAL
from tuneloop.model.load import load_model
from tuneloop.recipe.schema import QloraPart


def test_a_file_is_what_its_library_writes(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
        "counts": torch.tensor([1, 2, 3]), "empty": torch.zeros(0, 4), "one": torch.tensor(7.0),
    }  # fmt: skip
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    file = TensorFile.read(tmp_path / "theirs.safetensors")
    ours = TensorFile.of(tmp_path / "ours.safetensors", file.shapes)
    ours.write(tensors[shape.name] for shape in ours.shapes)
    back = load_file(tmp_path / "ours.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert ours.bytes == file.bytes == 6 * 4 + 2 * 2 + 3 * 8 + 4


@pytest.mark.parametrize("part", [QloraPart(), QloraPart(double=False), QloraPart(bits="int8")], ids=str)
def test_numbers_of_quantised_weights(tiny_model: Path, tmp_path: Path, part: QloraPart) -> None:
    """What 4- and 8-bit weights stand for, tensor by tensor and of a whole model: equal to the bit."""
    model = load_model(tiny_model, "float32", CAUSAL, part)
    names = frozenset(n for n, p in model.named_parameters() if type(p).__name__ in quantize.QUANTISED)
    assert names
    whole = quantize.dequantized(model).state_dict()
    streamed.write(
        tiny_model, tmp_path, head=CAUSAL, added={}, held=torch.float32, dtype=torch.float32, bits=part, quantised=names
    )
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[name], whole[name]) for name in written)
    assert any(not torch.equal(written[name], tensor) for name, tensor in load_model(tiny_model).state_dict().items())


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_families_pass_as_a_stream(family: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / family, family)
    assert streamed.additions(folder, CAUSAL, [], torch.float32) == {}
    (tmp_path / "out").mkdir()
    streamed.write(folder, tmp_path / "out", head=CAUSAL, added={}, held=torch.float32, dtype=torch.float32)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()


LARGE = """
import json, resource, sys
from pathlib import Path
import torch
from tuneloop.exports import streamed
from tuneloop.model.head import CAUSAL
base, adapter, out = map(Path, sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
added = streamed.additions(base, CAUSAL, [adapter], torch.bfloat16)
streamed.write(base, out, head=CAUSAL, added=added, held=torch.bfloat16, dtype=torch.bfloat16)
print(json.dumps([len(added), before * 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


@pytest.mark.slow
def test_a_large_model_needs_little_memory(tmp_path: Path) -> None:
    """A model of Llama-3.2-3B's shape in shards of about 1 GB, each block written by itself: 6.4 GB, merged within
    1.5 of the largest shard and 1 GB. Its weights are zeros in sparse files; the merged ones are not."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    if shutil.disk_usage(tmp_path).free < 10 << 30:
        pytest.skip("10 GB of disk are needed")
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    config = AutoConfig.for_model(
        "llama", hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True, head_dim=128,
    )  # fmt: skip
    config.save_pretrained(base)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    largest = _sparse_shards(base, {n: tuple(p.shape) for n, p in model.named_parameters()})
    tiny = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    tiny.peft_config["default"].save_pretrained(adapter)
    names = [n for n, _ in tiny.named_parameters() if "lora_" in n]
    torch.manual_seed(0)
    sizes = {n.replace(".default", ""): tiny.get_parameter(n).shape for n in names}
    save_file({n: torch.randn(size) for n, size in sizes.items()}, adapter / "adapter_model.safetensors")
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LARGE, base, adapter, out], capture_output=True, text=True, check=True
    )
    changed, before, peak = json.loads(done.stdout.splitlines()[-1])
    print(f"peak {(peak - before) / 1e9:.2f} GB above the start, largest shard {largest / 1e9:.2f} GB")
    assert changed == 56
    assert peak - before < 1.5 * largest + (1 << 30), (peak, before, largest)
    assert sum(file.stat().st_size for file in out.glob("*.safetensors")) > 6_400_000_000
    shutil.rmtree(out)


def _sparse_shards(folder: Path, shapes: dict[str, tuple[int, ...]]) -> int:
    """Shards of at most 1 GB of zeros (bfloat16) that take no room on the disk; returns the bytes of the largest."""
    shards: list[list[TensorShape]] = [[]]
    for name, sizes in shapes.items():
        shape = TensorShape(name, torch.bfloat16, sizes)
        if shards[-1] and sum(one.bytes for one in shards[-1]) + shape.bytes > 1 << 30:
            shards.append([])
        shards[-1].append(shape)
    index = {}
    for k, held in enumerate(shards):
        file = TensorFile.of(folder / f"model-{k:05}.safetensors", held)
        with file.path.open("wb") as stream:
            stream.write(header(file.shapes))
            stream.truncate(stream.tell() + file.bytes)
        index |= {shape.name: file.path.name for shape in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    return max(file.stat().st_size for file in folder.glob("*.safetensors"))
