from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import tiny_folder
from tuneloop.base.errors import ModelError
from tuneloop.data.batches.pack import pack
from tuneloop.data.tokens.encode import Sample
from tuneloop.methods.table import parameters
from tuneloop.methods.wrap import wrap
from tuneloop.model.head import Head
from tuneloop.model.kernels.install import install
from tuneloop.model.load import load_model
from tuneloop.planning.budget import (
    GENERATION,
    LAYER_SECONDS,
    PROCESS_GB,
    STATE,
    ModelShape,
    forward_flops,
    generation_seconds,
    kept_flops,
    memory_gb,
    shape,
    step_flops,
)
from tuneloop.planning.hardware import Hardware
from tuneloop.recipe.schema import OptimizerName, TrainPart
from tuneloop.tasks.loss import LossModel

SEVEN = ModelShape(
    7_000_000_000, 20_000_000, 6_500_000_000, 4096, 11008, 32, 102400, 2, linear_trained=20_000_000,
    head=4096 * 102400, bytes_all=14_000_000_000,
)  # fmt: skip


def part(**train: Any) -> TrainPart:
    return TrainPart.model_validate(train)


@pytest.mark.parametrize(
    "train", [{"method": "full"}, {"lora": {"rank": 4}}, {"lora": {"targets": ["q_proj"]}}], ids=str
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_shape_is_that_of_the_loaded_model(tmp_path: Path, family: str, train: dict[str, Any]) -> None:
    if family == "gpt2" and "targets" in train.get("lora", {}):
        train = {"lora": {"targets": ["c_attn"]}}
    folder = tiny_folder(tmp_path / family, family, tie_word_embeddings=True)
    settings = part(**train)
    seen = shape(folder, settings, "float32")
    model = wrap(load_model(folder), settings, 0)
    assert (seen.parameters, seen.trainable) == parameters(model)
    assert (seen.hidden, seen.layers, seen.vocabulary, seen.bytes_each) == (32, 2, 128, 4)
    assert seen.inner == 64
    assert 0.2 < seen.linear / seen.parameters < 1
    assert shape(folder, settings, "bfloat16").bytes_each == 2


def test_no_memory_is_taken_for_the_shape(tiny_model: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    shape(tiny_model, part(), "float32")
    assert torch.equal(torch.get_rng_state(), before), "no weight was drawn"


def test_a_model_that_cannot_be_built_is_told(tmp_path: Path) -> None:
    for text in ('{"model_type": "t5"}', '{"model_type": "none-such"}', "{"):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(ModelError) as caught:
            shape(tmp_path, part(), "float32")
        assert caught.value.code == "TL-MODEL-CONFIG"


def sample(length: int) -> Sample:
    return Sample(np.arange(length, dtype=np.int32) % 120 + 3, np.arange(length) > length // 2, "x", True)


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that matrices are what counts."""
    return tiny_folder(
        tmp_path_factory.mktemp("m") / "llama", "llama", hidden_size=128, intermediate_size=320, num_hidden_layers=4,
        num_attention_heads=4, head_dim=32, vocab_size=512, max_position_embeddings=512,
    )  # fmt: skip


class Products(TorchDispatchMode):
    """Counts the operations of matrix products: two for each multiplication."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}:
            a, b = args[-2:]
            self.total += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "train", [{"method": "full"}, {}, {"checkpointing": True}, {"method": "full", "checkpointing": True}], ids=str
)
def test_operations_are_those_that_torch_counts(middling: Path, train: dict[str, Any]) -> None:
    settings = part(**train)
    model = LossModel(wrap(load_model(middling), settings, 0))
    model.train()
    row = sample(128)
    with Products() as counter:
        model(pack([row])).total.backward()
    foreseen = step_flops(shape(middling, settings, "float32"), 128, row.labels, settings)
    assert foreseen == pytest.approx(counter.total, rel=0.25)


def kept_a_token(folder: Path, settings: TrainPart, *, fast: bool = False) -> float:
    """Bytes that autograd keeps for the backward pass, a token, counted."""
    model = LossModel(wrap(load_model(folder), settings, 0))
    if fast:
        assert install(model)
    model.train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def kept(tokens: int) -> int:
        held: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            model(pack([sample(tokens)]))
        return sum(held.values())

    return (kept(384) - kept(128)) / 256


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("train", [{"method": "full"}, {}, {"checkpointing": True}], ids=str)
def test_memory_grows_with_tokens_as_it_does(middling: Path, train: dict[str, Any], fast: bool) -> None:
    settings = part(**train)
    seen = shape(middling, settings, "float32")
    assert seen.gated
    counted = kept_a_token(middling, settings, fast=fast)
    if settings.checkpointing:  # the backward pass makes one layer after the other again
        counted += kept_a_token(middling, part(), fast=fast) / seen.layers
    head = 12 * seen.vocabulary
    few, many = (memory_gb(seen, tokens, settings, fused=fast) for tokens in (128, 384))
    foreseen = (many - few) * 1e9 / 256 - head
    assert (0.7 if fast else 0.5) < foreseen / counted < (1.4 if fast else 2)


def test_more_of_anything_needs_no_less() -> None:
    lora, full = part(), part(method="full")
    for bigger in (
        replace(SEVEN, bytes_all=2 * SEVEN.bytes_all), replace(SEVEN, layers=40), replace(SEVEN, hidden=5120),
        replace(SEVEN, inner=16000), replace(SEVEN, bytes_each=4), replace(SEVEN, trainable=10**9),
    ):  # fmt: skip
        assert memory_gb(bigger, 2048, lora) > memory_gb(SEVEN, 2048, lora)
    assert memory_gb(SEVEN, 4096, lora) > memory_gb(SEVEN, 2048, lora) > memory_gb(SEVEN, 512, lora) > PROCESS_GB
    everything = replace(SEVEN, trainable=SEVEN.parameters, linear_trained=SEVEN.linear, head_trained=True)
    assert memory_gb(everything, 2048, full) > 4 * memory_gb(SEVEN, 2048, lora) / 2
    assert memory_gb(SEVEN, 2048, part(checkpointing=True)) < memory_gb(SEVEN, 2048, lora)
    assert step_flops(SEVEN, 200, 50, lora) == 2 * step_flops(SEVEN, 100, 25, lora)
    assert step_flops(SEVEN, 100, 50, lora) > step_flops(SEVEN, 100, 10, lora)
    assert step_flops(everything, 100, 50, full) > step_flops(SEVEN, 100, 50, lora)
    assert step_flops(SEVEN, 100, 50, part(checkpointing=True)) > step_flops(SEVEN, 100, 50, lora)


def test_seven_billion_in_bfloat16_need_what_is_known() -> None:
    """A dry run that counted bytes found 15.9 GiB for LoRA on 512 tokens, 13.6 with recomputed activations."""
    assert memory_gb(SEVEN, 512, part()) == pytest.approx(15.9 * 2**30 / 1e9, rel=0.15)
    assert memory_gb(SEVEN, 512, part(checkpointing=True)) == pytest.approx(13.6 * 2**30 / 1e9, rel=0.15)


EXPERTS = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1,
                  "mlp_only_layers": []},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2},
}  # fmt: skip


@pytest.mark.parametrize("family", EXPERTS)
@pytest.mark.parametrize("train", [{"method": "full"}, {"lora": {"targets": ["q_proj"]}}], ids=str)
def test_of_a_mixture_only_the_experts_a_token_passes_are_counted(
    tmp_path: Path, family: str, train: dict[str, Any]
) -> None:
    few = shape(tiny_folder(tmp_path / "few", family, **EXPERTS[family]), part(**train), "float32")
    all_ = shape(
        tiny_folder(tmp_path / "all", family, **{**EXPERTS[family], "num_experts_per_tok": 8}), part(**train), "float32"
    )
    assert few.parameters == all_.parameters, "memory holds them all"
    one = 3 * 32 * 64 * 2  # gate, up and down of one expert in two layers
    assert all_.linear - few.linear == 6 * one
    assert few.linear > 2 * one


def test_a_dense_model_passes_all_it_has(tmp_path: Path) -> None:
    """Three dimensions alone make no expert."""
    seen = shape(tiny_folder(tmp_path / "llama", "llama"), part(method="full"), "float32")
    assert seen.linear == 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)


def test_a_step_of_generation_reads_all_weights() -> None:
    machine = Hardware("Linux", "cpu", 8, 64.0, 50.0, "cpu", (), 0.0, 500.0, 20.0)
    step = 14 / (20 * GENERATION) + 32 * LAYER_SECONDS
    assert generation_seconds(SEVEN, machine, 3, 100) == pytest.approx(300 * step)
    assert forward_flops(SEVEN, 100, 10) < step_flops(SEVEN, 100, 10, part()) / 1.9


def test_a_frozen_part_costs_one_pass_and_keeps_nothing(middling: Path) -> None:
    full, half = part(method="full"), part(method="freeze", freeze={"layers": 2})
    whole, seen = shape(middling, full, "float32"), shape(middling, half, "float32")
    assert (seen.below, whole.below) == (2, 0)
    assert seen.linear == whole.linear
    assert seen.linear_below == seen.linear_trained == seen.linear // 2
    tokens = 1000
    every = 2 * whole.linear * tokens
    assert step_flops(whole, tokens, 0, full) == 3 * every
    assert step_flops(seen, tokens, 0, half) == 2 * every, "half of it forward alone"
    assert step_flops(seen, tokens, 0, half, cached=True) == 1.5 * every
    assert kept_flops(seen, tokens) == every / 2
    small = replace(seen, trainable=whole.trainable, bytes_all=whole.bytes_all, head_trained=whole.head_trained)
    assert (memory_gb(whole, tokens, full) - memory_gb(small, tokens, half)) * 1e9 == pytest.approx(
        2 * tokens * (10 * 128 + 5 * 320) * 4
    )


@pytest.mark.parametrize("train", [{"freeze": {"layers": 1}}, {"freeze": {"layers": 2}}], ids=str)
def test_operations_of_a_frozen_model_are_those_that_torch_counts(middling: Path, train: dict[str, Any]) -> None:
    settings = part(method="freeze", **train)
    model = LossModel(wrap(load_model(middling), settings, 0)).train()
    row = sample(128)
    with Products() as counter:
        model(pack([row])).total.backward()
    foreseen = step_flops(shape(middling, settings, "float32"), 128, row.labels, settings)
    assert foreseen == pytest.approx(counter.total, rel=0.25)


def test_what_is_held_in_fewer_bits(middling: Path) -> None:
    plain, four = shape(middling, part(), "float32"), shape(middling, part(method="qlora"), "float32")
    single = shape(middling, part(method="qlora", qlora={"double": False}), "float32")
    eight = shape(middling, part(method="qlora", qlora={"bits": "int8"}), "float32")
    assert plain.parameters == four.parameters
    assert plain.bytes_all == 4 * plain.parameters
    frozen = plain.linear - plain.linear_trained
    assert plain.bytes_all - four.bytes_all == pytest.approx((4 - 0.516) * frozen, rel=0.01)
    assert plain.bytes_all - eight.bytes_all == pytest.approx((4 - 1.01) * frozen, rel=0.01)
    assert four.bytes_all < single.bytes_all < eight.bytes_all
    assert shape(middling, part(), "bfloat16").bytes_all == 2 * plain.parameters + 2 * plain.trainable


def test_the_head_is_that_of_the_task(middling: Path) -> None:
    scores = shape(middling, part(), "float32", lambda config: Head("classifier", ("a", "b", "c")))
    words = shape(middling, part(), "float32")
    assert (scores.vocabulary, scores.head) == (3, 3 * 128)
    assert (words.vocabulary, words.head) == (512, 512 * 128)
    assert scores.head_trained
    assert not words.head_trained
    assert scores.linear == words.linear


@pytest.mark.parametrize("method", ["ptuning_v2", "prompt_tuning"])
def test_virtual_tokens_are_known(middling: Path, method: str) -> None:
    seen = shape(middling, part(method=method, virtual={"tokens": 7}), "float32")
    assert seen.virtual == 7
    assert seen.below == 0
    assert 0 < seen.trainable < seen.parameters


def test_optimizers_need_what_they_hold() -> None:
    everything = replace(SEVEN, trainable=10**9)
    need = {name: memory_gb(everything, 512, part(optimizer=name)) for name in STATE}
    assert need["adamw"] - need["adamw_8bit"] == pytest.approx(6)
    assert need["adamw"] - need["sgd"] == pytest.approx(8)
    assert need["sgd"] < need["adafactor"] < need["adamw_8bit"]
    assert set(STATE) == set(get_args(OptimizerName))


@pytest.mark.parametrize(
    ("train", "code"),
    [
        ({"lora": {"rank": 1000}}, "TL-MODEL-RANK"), ({"lora": {"targets": ["q_porj"]}}, "TL-MODEL-MODULE"),
        ({"method": "freeze", "freeze": {"layers": 9}}, "TL-MODEL-LAYERS"),
        ({"method": "freeze", "freeze": {"layers": 0}}, "TL-MODEL-NOTHING-TRAINED"),
        ({"method": "ptuning_v2", "checkpointing": True}, "TL-MODEL-CHECKPOINTING"),
    ],
    ids=str,
)  # fmt: skip
def test_a_recipe_that_cannot_be_followed_is_told_here(middling: Path, train: dict[str, Any], code: str) -> None:
    with pytest.raises(ModelError) as caught:
        shape(middling, part(**train), "float32")
    assert caught.value.code == code
