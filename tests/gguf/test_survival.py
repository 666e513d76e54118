"""What was added to a base that lies on a type's steps is not taken back by rounding to it again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.gguf import judge, tiny
from tuneloop.gguf.file import GgufFile
from tuneloop.gguf.quantize import quantized
from tuneloop.gguf.survival import share_left
from tuneloop.gguf.write import write_gguf

RNG = np.random.default_rng(0)
CHANGED = "model.layers.1.self_attn.q_proj.weight"


def coarse(numbers: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """The numbers as they are once they were stored in a type."""
    out: NDArray[np.float32] = dequantize(quantized(numbers, kind), GGMLQuantizationType[kind]).astype(np.float32)
    return out


def low_rank(shape: tuple[int, ...], size: float) -> NDArray[np.float32]:
    product = RNG.normal(size=(shape[0], 4)) @ RNG.normal(size=(4, shape[1]))
    return (product * size / product.std()).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "size"), [("Q4_0", 0.02), ("Q4_K", 0.02), ("Q5_0", 0.02), ("Q5_K", 0.02), ("Q6_K", 0.005)]
)
def test_rounding_takes_back_what_is_small_beside_the_steps_of_the_base(kind: str, size: float) -> None:
    base = RNG.normal(size=(128, 512)).astype(np.float32)
    added = low_rank(base.shape, size)
    share, error = share_left(base, base + added, kind)
    assert abs(share - 1) < 4 * error < 0.5  # of any base: nothing, on average
    before = coarse(base, kind)
    assert abs(share_left(before, before + added, kind)[0] - 1) > 0.3
    assert abs(share_left(before, before + added, "Q8_0")[0] - 1) < 0.2
    assert share_left(before, before, kind) == (1.0, 0.0)


def test_a_weight_that_would_lose_it_is_stored_in_a_finer_type(tmp_path: Path) -> None:
    folder = tiny.save(tiny.model("llama"), tmp_path / "any")
    tensors = load_file(folder / "model.safetensors")
    some = {name: coarse(x, "Q4_K") if ".layers." in name and x.ndim == 2 else x for name, x in tensors.items()}
    added = low_rank(some[CHANGED].shape, 0.05 * float(some[CHANGED].std()))
    contents = {"base": some, "merged": some | {CHANGED: some[CHANGED] + added}}
    contents["other"] = tensors | {CHANGED: tensors[CHANGED] + added}
    for name, content in contents.items():
        shutil.copytree(folder, tmp_path / name)
        save_file(content, tmp_path / name / "model.safetensors", {"format": "pt"})

    assert write_gguf(tmp_path / "merged", tmp_path / "a.gguf", "q4_k_m", tmp_path / "base") == [CHANGED]
    assert write_gguf(tmp_path / "merged", tmp_path / "b.gguf", "q4_k_m") == []
    assert write_gguf(tmp_path / "merged", tmp_path / "c.gguf", "q8_0", tmp_path / "base") == []
    assert write_gguf(tmp_path / "other", tmp_path / "d.gguf", "q4_k_m", folder) == []  # a base of full numbers
    with GgufFile(tmp_path / "a.gguf") as ours, GgufFile(tmp_path / "b.gguf") as theirs:
        types = [
            {name: GGMLQuantizationType(one.kind).name for name, one in file.tensors.items()} for file in (ours, theirs)
        ]
    other = {name for name in types[0] if types[0][name] != types[1][name]}
    assert {name: types[0][name] for name in other} == {"blk.1.attn_q.weight": "Q8_0"}
    assert np.isfinite(judge.logits(tmp_path / "a.gguf", list(range(40, 64)))).all()
