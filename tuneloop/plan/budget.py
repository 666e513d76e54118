"""Memory and time of a run before it starts, from the model's shape alone; no weights are loaded.

Time is counted in floating-point operations and divided by the rate this machine was measured at; memory is counted by
what lives at the same time. Both are estimates: the report sets them beside what really happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tuneloop.errors import ModelError
from tuneloop.model.load import pick_dtype
from tuneloop.model.loss import CHUNK, plain
from tuneloop.model.methods import LINEAR, METHODS, parameters
from tuneloop.sections import TrainPart

EFFICIENCY = 0.5
"""Share of the matrix-product rate a training step reaches; measured on SmolLM2-135M with LoRA on two CPU cores."""
EFFICIENCY_HALF = 0.1
"""The same for 16-bit types on a CPU, whose matrix units are so fast that everything else takes the time."""
PROCESS_GB = 0.7
"""Python, torch, transformers and peft themselves, measured on Linux with the CPU build of torch."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the arithmetic needs to know of a model; counts of parameters, widths in elements."""

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
    linear = sum(m.weight.numel() for m in base.modules() if isinstance(m, LINEAR) and m is not head)
    text = base.config.get_text_config()
    return Shape(
        parameters=total,
        trainable=trainable,
        linear=linear,
        hidden=int(text.hidden_size),
        inner=int(getattr(text, "intermediate_size", 0) or 4 * text.hidden_size),
        layers=int(text.num_hidden_layers),
        vocabulary=int(text.vocab_size),
        bytes_each=pick_dtype(dtype).itemsize,
    )


def step_flops(shape: Shape, tokens: int, labels: int, train: TrainPart) -> float:
    """Floating-point operations of forward and backward over `tokens` with `labels` label tokens.

    Two a weight and token forward, two for the activations' gradient, two more for the weights' where they are trained,
    two more forward where activations are recomputed.
    """
    adapter = METHODS[train.method].adapter
    passes = (4 if adapter else 6) + (2 if train.checkpointing else 0)
    return float(passes * shape.linear * tokens + (4 if adapter else 6) * shape.hidden * shape.vocabulary * labels)


def memory_gb(shape: Shape, tokens: int, train: TrainPart) -> float:
    """Most memory of a step over one forward pass of `tokens`, in GiB."""
    weights = shape.parameters * shape.bytes_each
    optimizer = shape.trainable * (shape.bytes_each + 8)
    # What a decoder layer keeps for its backward pass, per token: about ten rows of its width (norms, q, k, v,
    # attention, residuals) and five of its inner width (gate, up, their product and what the adapters see).
    layer = (10 * shape.hidden + 5 * shape.inner) * shape.bytes_each
    kept = tokens * (shape.layers * shape.hidden * shape.bytes_each + layer if train.checkpointing
                     else shape.layers * layer)  # fmt: skip
    head = 3 * 4 * min(CHUNK, tokens * shape.vocabulary)
    return PROCESS_GB + (weights + optimizer + kept + head) / 2**30
