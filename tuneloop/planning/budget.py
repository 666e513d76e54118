"""Memory and time of a run before it starts, from the model's shape alone; no weights are loaded.

Time is counted in floating-point operations and divided by the rate this machine was measured at; memory is counted by
what lives at the same time. Both are estimates: the report sets them beside what really happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from tuneloop.base.errors import ModelError
from tuneloop.methods.table import LINEAR, METHODS, parameters
from tuneloop.methods.wrap import wrap
from tuneloop.model.backbone import unwrap
from tuneloop.model.blocks import blocks, lowest_trained
from tuneloop.model.config import model_config
from tuneloop.model.head import Head
from tuneloop.model.load import CLASSES, pick_dtype
from tuneloop.planning.hardware import Hardware
from tuneloop.recipe.schema import OptimizerName, TrainPart
from tuneloop.tasks.loss import CHUNK

EFFICIENCY = 0.56
"""Share of the matrix-product rate a training step reaches; measured in float32 on SmolLM2-135M with LoRA on two CPU
cores (385 tokens a second of 0.51 GFLOP each, where products reach 350 GFLOP/s). On a card it is a guess."""
EFFICIENCY_BFLOAT16 = 0.24
"""The same where float32 matrices are multiplied in bfloat16: 650 tokens a second beside products at 1400 GFLOP/s."""
OTHER_HALF = 0.5
"""With 16-bit types on a CPU everything beside the products takes the time that products would take at this part of the
rate of float32: where there are matrix units that is most of a step, where there are none it is nothing beside them."""
EFFICIENCY_QUANTISED = 0.5
"""Part of those that is left where frozen weights are unpacked from 4 or 8 bits on a CPU. A guess: NF4 came to about
95 GFLOP/s on two cores, half of what the same cores reach in float32."""
GENERATION = 0.6
"""Share of the rate of products of a few rows that a step of generation reaches; measured on SmolLM2-135M and
Gemma-3-270M with 1 to 16 answers at once on CPU cores."""
LAYER_SECONDS = 0.0005
"""What a layer costs a step of generation besides its products: Python, small kernels, the cache."""
PROCESS_GB = 0.75
"""Python, torch, transformers and peft themselves, measured on Linux with the CPU build of torch."""
STATE: dict[OptimizerName, float] = {
    "adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "paged_adamw": 8, "adafactor": 0.1, "sgd": 0,
}  # fmt: skip
"""Bytes that an optimizer holds for a trained weight: two float32 moments, or two of 8 bits; Adafactor's rows and
columns are next to nothing."""
GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
"""What a gated block has, by which `model.fast.install` knows it."""
EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k", "moe_k")
"""What the configurations of mixtures of experts call all experts of a layer, and those that a token passes."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the arithmetic needs to know of a model; counts of weights, widths in elements.

    `linear` are the weights that one token is multiplied by: of a mixture of experts, those it passes. Of these,
    `linear_trained` are trained and `linear_below` lie in the `below` blocks that no gradient reaches. `head` are the
    weights that a label is multiplied by, `vocabulary` the numbers that come out. `bytes_each` is of a frozen weight in
    the recipe's type, `bytes_all` of all weights as they are held. `virtual` tokens stand before each text.
    `gated` blocks are those of Llama and its kin, which have fast parts in float32 on a CPU.
    """

    parameters: int
    trainable: int
    linear: int
    hidden: int
    inner: int
    layers: int
    vocabulary: int
    bytes_each: int
    linear_trained: int = 0
    linear_below: int = 0
    below: int = 0
    head: int = 0
    head_trained: bool = False
    bytes_all: int = 0
    virtual: int = 0
    gated: bool = False


def shape(
    folder: Path, train: TrainPart, dtype: str, head_of: Callable[[Any], Head] = lambda config: Head()
) -> ModelShape:
    """Build the model on torch's meta device (no memory) and read its shape. `head_of` is told its configuration.

    Raises TL-MODEL-CONFIG when transformers cannot build it, and what a method says of a recipe that it cannot follow.
    """
    with torch.device("meta"), torch.random.fork_rng([]):
        try:
            config = model_config(folder)
            head = head_of(config)
            if head.kind == "classifier":
                config.id2label = dict(enumerate(head.labels))
            model = CLASSES[head.kind].from_config(config, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError("TL-MODEL-CONFIG", where=str(folder), error=" ".join(str(error).split())[:300]) from error
        model.name_or_path = str(folder)
        wrapped = wrap(model, train, 0)
    total, trainable = parameters(wrapped)
    base = unwrap(wrapped)
    text = base.config.get_text_config()
    bytes_each = pick_dtype(dtype).itemsize
    bits = _held_bytes(train) if METHODS[train.method].quantize else None
    below = lowest_trained(wrapped)
    linear = _linear(base, below, *experts(text))
    out = base.get_output_embeddings()
    scores = out if head.kind != "classifier" else None
    return ModelShape(
        parameters=total,
        trainable=trainable,
        linear=linear.all,
        hidden=int(text.hidden_size),
        inner=int(getattr(text, "intermediate_size", 0) or 4 * text.hidden_size),
        layers=int(text.num_hidden_layers),
        vocabulary=int(text.vocab_size) if head.kind == "causal" else max(1, len(head.labels)),
        bytes_each=bytes_each,
        linear_trained=linear.trained,
        linear_below=linear.below,
        below=below,
        head=scores.weight.numel() if scores is not None else int(text.hidden_size) * max(1, len(head.labels)),
        head_trained=scores is None or any(p.requires_grad for p in scores.parameters()),
        bytes_all=_bytes(wrapped, linear.quantised, bytes_each, bits),
        virtual=train.virtual.tokens if METHODS[train.method].virtual else 0,
        gated=any(all(hasattr(module, part) for part in GATED) for module in base.modules()),
    )


def _held_bytes(train: TrainPart) -> float:
    """Bytes of a quantised weight with its share of the scales: one a block of 64, themselves in 8 bits if `double`."""
    if train.qlora.bits == "int8":
        return 1.01
    return 0.5 + ((1 + 4 / 256) / 64 if train.qlora.double else 4 / 64)


def _bytes(model: nn.Module, quantised: int, each: int, bits: float | None) -> int:
    """Of all weights: trained ones are float32, frozen ones of the recipe's type, or quantised."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    if bits is None:
        return 4 * trained + each * frozen
    return round(4 * trained + each * (frozen - quantised) + bits * quantised)


def experts(config: Any) -> tuple[int, int]:
    """(experts of a layer, those that a token passes) as a model's configuration says; (0, 0) of a dense model.

    >>> from types import SimpleNamespace
    >>> experts(SimpleNamespace(num_local_experts=8, num_experts_per_tok=2)), experts(SimpleNamespace())
    ((8, 2), (0, 0))
    """
    total, active = (
        next((n for key in keys if isinstance(n := getattr(config, key, None), int) and n > 0), 0)
        for keys in (EXPERTS, ACTIVE)
    )
    return (total, min(active, total)) if total and active else (0, 0)


@dataclass(frozen=True, slots=True)
class _Linear:
    """Weights of the trunk's linear layers: passed by a token, of these trained and below; and what is quantised."""

    all: int
    trained: int
    below: int
    quantised: int


def _linear(base: PreTrainedModel, below: int, total: int, active: int) -> _Linear:
    """`below` blocks are frozen; of the `total` experts of a layer a token passes the `active` ones."""
    share = active / total if total else 1.0
    low = {id(p) for block in blocks(base)[:below] for p in block.parameters()}
    every = trained = under = 0.0
    quantised = 0
    backbone = getattr(base, base.base_model_prefix, base)
    for name, module in backbone.named_modules():
        if isinstance(module, LINEAR):
            weight, count = module.weight, module.weight.numel() * (share if ".experts." in f".{name}." else 1.0)
            every += count
            trained += count * weight.requires_grad
            under += count * (id(weight) in low)
            quantised += 0 if weight.requires_grad else weight.numel()
    for p in backbone.parameters():
        # transformers keeps the experts of a layer in one tensor: [experts, rows, columns].
        if total and p.ndim == 3 and p.shape[0] == total:
            every += p.numel() * share
            trained += p.numel() * share * p.requires_grad
            under += p.numel() * share * (id(p) in low)
    return _Linear(round(every), round(trained), round(under), quantised)


def step_flops(shape: ModelShape, tokens: int, labels: int, train: TrainPart, *, cached: bool = False) -> float:
    """Floating-point operations of forward and backward over `tokens` with `labels` label tokens.

    Two a weight and token forward; where a gradient passes, two for the activations' and two more for the weights' that
    are trained, and two more forward where activations are recomputed. With `kept` the blocks below are not run.
    """
    reached = shape.linear - shape.linear_below
    forward = reached if cached else shape.linear
    weights = 2 * (forward + reached + shape.linear_trained) + (2 * reached if train.checkpointing else 0)
    return float(weights * tokens + (6 if shape.head_trained else 4) * shape.head * labels)


def kept_flops(shape: ModelShape, tokens: int) -> float:
    """Floating-point operations of the frozen blocks alone, forward: what keeping their output costs, once."""
    return 2.0 * shape.linear_below * tokens


def forward_flops(shape: ModelShape, tokens: int, labels: int) -> float:
    """Floating-point operations of one forward pass alone: reading a prompt, or measuring a loss."""
    return 2.0 * (shape.linear * tokens + shape.head * labels)


def generation_seconds(shape: ModelShape, machine: Hardware, batches: int, tokens: int) -> float:
    """Seconds to write `batches` batches of answers of `tokens` tokens: each step reads all weights once."""
    step = shape.bytes_all / (machine.weights_gbs * GENERATION * 1e9) + shape.layers * LAYER_SECONDS
    return batches * tokens * step


def memory_gb(shape: ModelShape, tokens: int, train: TrainPart, *, fused: bool = False) -> float:
    """Most memory of a step over one forward pass of `tokens`, in GB (1e9 bytes). `fast` parts keep half as much."""
    trained = shape.trainable * (4 + STATE[train.optimizer])  # gradients are float32, as what is trained
    # What a decoder layer keeps for its backward pass, per token: about ten rows of its width (norms, q, k, v,
    # attention, residuals) and five of its inner width (gate, up, their product and what the adapters see). A layer
    # that no gradient reaches keeps nothing, but needs as much while it runs.
    # The fast parts make again what is made quickly: seven rows and two are left, counted on SmolLM2-135M.
    rows, inner = (7, 2) if fused else (10, 5)
    layer = (rows * shape.hidden + inner * shape.inner) * shape.bytes_each
    reached = shape.layers - shape.below
    if train.checkpointing:
        activations = tokens * (reached * shape.hidden * shape.bytes_each + layer)
    else:
        activations = tokens * max(1, reached) * layer
    head = 3 * 4 * min(CHUNK, tokens * shape.vocabulary) + (2 * 4 * shape.head if shape.head_trained else 0)
    return PROCESS_GB + (shape.bytes_all + trained + activations + head) / 1e9
