"""Memory and time of a run before it starts, from the model's shape alone; no weights are loaded.

Time is counted in floating-point operations and divided by the rate this machine was measured at; memory is counted by
what lives at the same time. Both are estimates: the report sets them beside what really happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tuneloop.errors import ModelError
from tuneloop.model.load import pick_dtype
from tuneloop.model.loss import CHUNK
from tuneloop.model.methods import LINEAR, METHODS, parameters
from tuneloop.model.trunk import plain
from tuneloop.plan.hardware import Hardware
from tuneloop.sections import TrainPart

EFFICIENCY = 0.5
"""Share of the matrix-product rate a training step reaches; measured on SmolLM2-135M with LoRA on two CPU cores."""
EFFICIENCY_HALF = 0.1
"""The same for 16-bit types on a CPU, whose matrix units are so fast that everything else takes the time."""
GENERATION = 0.6
"""Share of the rate of products of a few rows that a step of generation reaches; measured on SmolLM2-135M and
Gemma-3-270M with 1 to 16 answers at once on CPU cores."""
LAYER_SECONDS = 0.0005
"""What a layer costs a step of generation besides its products: Python, small kernels, the cache."""
PROCESS_GB = 0.75
"""Python, torch, transformers and peft themselves, measured on Linux with the CPU build of torch."""
EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_topk", "moe_top_k", "moe_k")
"""What the configurations of mixtures of experts call all experts of a layer, and those that a token passes."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the arithmetic needs to know of a model; counts of parameters, widths in elements.

    `linear` are the weights that one token is multiplied by: of a mixture of experts, those it passes.
    """

    parameters: int
    trainable: int
    linear: int
    hidden: int
    inner: int
    layers: int
    vocabulary: int
    bytes_each: int


def shape(folder: Path, train: TrainPart, dtype: str) -> Shape:
    """Build the model on torch's meta device (no memory) and read its shape.

    Raises TL-MODEL-CONFIG when transformers cannot build it.
    """
    with torch.device("meta"):
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError("TL-MODEL-CONFIG", where=str(folder), error=" ".join(str(error).split())[:300]) from error
        wrapped = METHODS[train.method].wrap(model, train)
    total, trainable = parameters(wrapped)
    base = plain(wrapped)
    head = base.get_output_embeddings()
    text = base.config.get_text_config()
    return Shape(
        parameters=total,
        trainable=trainable,
        linear=_linear(base, head, *experts(text)),
        hidden=int(text.hidden_size),
        inner=int(getattr(text, "intermediate_size", 0) or 4 * text.hidden_size),
        layers=int(text.num_hidden_layers),
        vocabulary=int(text.vocab_size),
        bytes_each=pick_dtype(dtype).itemsize,
    )


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


def _linear(model: nn.Module, head: Any, total: int, active: int) -> int:
    """Weights that one token is multiplied by, the head's apart."""
    share = active / total if total else 1.0
    count = 0.0
    for name, module in model.named_modules():
        if isinstance(module, LINEAR) and module is not head:
            count += module.weight.numel() * (share if ".experts." in f".{name}." else 1.0)
    # transformers keeps the experts of a layer in one tensor: [experts, rows, columns].
    stacked = (p.numel() for p in model.parameters() if total and p.ndim == 3 and p.shape[0] == total)
    return round(count + sum(stacked) * share)


def step_flops(shape: Shape, tokens: int, labels: int, train: TrainPart) -> float:
    """Floating-point operations of forward and backward over `tokens` with `labels` label tokens.

    Two a weight and token forward, two for the activations' gradient, two more for the weights' where they are trained,
    two more forward where activations are recomputed.
    """
    adapter = METHODS[train.method].adapter
    passes = (4 if adapter else 6) + (2 if train.checkpointing else 0)
    return float(passes * shape.linear * tokens + (4 if adapter else 6) * shape.hidden * shape.vocabulary * labels)


def forward_flops(shape: Shape, tokens: int, labels: int) -> float:
    """Floating-point operations of one forward pass alone: reading a prompt, or measuring a loss."""
    return 2.0 * (shape.linear * tokens + shape.hidden * shape.vocabulary * labels)


def generation_seconds(shape: Shape, machine: Hardware, batches: int, tokens: int) -> float:
    """Seconds to write `batches` batches of answers of `tokens` tokens: each step reads all weights once."""
    step = shape.parameters * shape.bytes_each / (machine.weights_gbs * GENERATION * 1e9) + shape.layers * LAYER_SECONDS
    return batches * tokens * step


def memory_gb(shape: Shape, tokens: int, train: TrainPart) -> float:
    """Most memory of a step over one forward pass of `tokens`, in GB (1e9 bytes)."""
    weights = shape.parameters * shape.bytes_each
    optimizer = shape.trainable * (shape.bytes_each + 8)
    # What a decoder layer keeps for its backward pass, per token: about ten rows of its width (norms, q, k, v,
    # attention, residuals) and five of its inner width (gate, up, their product and what the adapters see).
    layer = (10 * shape.hidden + 5 * shape.inner) * shape.bytes_each
    kept = tokens * (shape.layers * shape.hidden * shape.bytes_each + layer if train.checkpointing
                     else shape.layers * layer)  # fmt: skip
    head = 3 * 4 * min(CHUNK, tokens * shape.vocabulary)
    return PROCESS_GB + (weights + optimizer + kept + head) / 1e9
