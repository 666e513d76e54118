"""A merge that never holds a model: base weights pass one by one, each with what its adapters add to it.

It stands for PEFT's own merge (`methods/adapters.added`) where that only adds B A to matrices, and gives the same
files to the bit. What else an adapter may do (DoRA, whole layers, embeddings) is left to PEFT: `additions` is None.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.tuners.lora import Linear, LoraLayer
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from tuneloop.base.errors import ModelError, RunError
from tuneloop.base.language import t
from tuneloop.exports.tensor_file import TensorFile, TensorShape
from tuneloop.hub.folder_check import weight_files
from tuneloop.methods import adapters
from tuneloop.model import quantize
from tuneloop.model.config import model_config
from tuneloop.model.head import Head
from tuneloop.model.load import CLASSES
from tuneloop.model.precision import HALVES
from tuneloop.model.quiet import quiet
from tuneloop.model.tying import reached
from tuneloop.recipe.schema import QloraPart


@dataclass(frozen=True, slots=True)
class Addition:
    """What an adapter adds to one weight: scale B A. `name` is the module's, in the adapter's file."""

    file: Path
    name: str
    scale: float
    transposed: bool

    def added(self, weight: Tensor) -> Tensor:
        """The sum as PEFT computes it: the product in float32, the sum in the weight's type."""
        with safe_open(self.file, "pt") as tensors:
            a, b = (tensors.get_tensor(f"{self.name}.lora_{side}.weight").float() for side in "AB")
        change = b @ a
        total: Tensor = weight + ((change.T if self.transposed else change) * self.scale).to(weight.dtype)
        return total


Additions = Mapping[str, tuple[Addition, ...]]
"""Name of a weight -> what is added to it, in order."""


def skeleton(folder: Path, head: Head) -> PreTrainedModel:
    """The model of a folder without its numbers, with its generation config. Raises TL-MODEL-CONFIG."""
    config = model_config(folder)
    try:
        with torch.device("meta"), quiet():
            model: PreTrainedModel = CLASSES[head.kind].from_config(config, trust_remote_code=False)
    except Exception as error:  # a config is input from strangers
        words = " ".join(str(error).split())[:300]
        raise ModelError("TL-MODEL-CONFIG", where=str(folder / "config.json"), error=words) from error
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def additions(weights: Path, head: Head, chain: Sequence[Path], dtype: torch.dtype) -> Additions | None:
    """What the adapters of a chain add to the weights of a folder; None where a stream would not give PEFT's result."""
    model = skeleton(weights, head)
    own = {name for name in model.state_dict() if name not in model.all_tied_weights_keys}
    apart = getattr(model, "_keep_in_fp32_modules", None) or getattr(model, "_keep_in_fp32_modules_strict", None)
    if not own <= _tensor_names(weights) or (apart and dtype in HALVES):
        return None
    if getattr(model.config, "quantization_config", None):  # its files do not hold the numbers themselves
        return None
    every: dict[str, tuple[Addition, ...]] = {}
    for adapter in chain:
        added = _of_adapter(skeleton(weights, head), adapter)
        if added is None or not added.keys() <= own:
            return None
        for name, addition in added.items():
            every[name] = (*every.get(name, ()), addition)
    return every


def _tensor_names(weights: Path) -> set[str]:
    return {shape.name for file in weight_files(weights) for shape in TensorFile.read(file).shapes}


def _of_adapter(model: PreTrainedModel, adapter: Path) -> dict[str, Addition] | None:
    """Weight -> what one adapter adds to it; None where it does more than add to matrices."""
    config = adapters.read_config(adapter)
    if config["peft_type"] != "LORA" or reached(model, config.get("target_modules")):
        return None
    file, prefix = adapter / adapters.WEIGHTS, "base_model.model."
    out, names = dict[str, Addition](), set[str]()
    for name, layer in adapters.unfilled(model, adapter).get_base_model().named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if type(layer) is not Linear or layer.lora_variant or layer.lora_bias.get("default"):
            return None
        out[f"{name}.weight"] = Addition(
            file, prefix + name, layer.scaling["default"], bool(getattr(layer, "fan_in_fan_out", False))
        )
        names |= {f"{prefix}{name}.lora_{side}.weight" for side in "AB"}
    with safe_open(file, "pt") as tensors:
        return out if set(tensors.keys()) == names else None


def write(
    weights: Path,
    folder: Path,
    *,
    head: Head,
    added: Additions,
    held: torch.dtype,
    dtype: torch.dtype,
    bits: QloraPart | None = None,
    quantised: frozenset[str] = frozenset(),
) -> PreTrainedModel:
    """Write the weights of a folder, with what is added to them, as shards of the same names; returns the skeleton.

    Weights are added to in the type `held`, the `quantised` among them as the numbers they stand for in `bits`, and
    written in `dtype`. One tensor is in memory at a time. Raises TL-RUN-NOT-FINITE.
    """
    model = skeleton(weights, head)
    own = {name for name in model.state_dict() if name not in model.all_tied_weights_keys}

    def tensors(file: Path, shapes: Sequence[TensorShape]) -> Iterator[Tensor]:
        with safe_open(file, "pt") as source:
            for shape in shapes:
                tensor = source.get_tensor(shape.name)
                if tensor.is_floating_point():
                    tensor = tensor.to(held)
                    if shape.name in quantised and bits is not None:
                        tensor = quantize.numbers(tensor, bits)
                    for addition in added.get(shape.name, ()):
                        tensor = addition.added(tensor)
                        _require_finite(tensor, shape.name, addition.file.parent)
                yield tensor.to(shape.dtype)

    index, total = dict[str, str](), 0
    files = weight_files(weights)
    for file in files:
        shapes = [
            _as_written(shape, dtype) for shape in TensorFile.read(file).shapes if shape.name in own - index.keys()
        ]
        written = TensorFile.of(folder / file.name, shapes)
        written.write(tensors(file, written.shapes))
        index |= {shape.name: file.name for shape in shapes}
        total += written.bytes
    if len(files) > 1:
        table = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        text = json.dumps(table, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8", newline="\n")
    model.config.dtype = dtype
    model.config.architectures = [type(model).__name__]
    return model


def save_configs(model: PreTrainedModel, folder: Path) -> None:
    """The skeleton's config.json and generation_config.json, as `save_pretrained` writes them beside weights."""
    with quiet():
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)


def _as_written(shape: TensorShape, dtype: torch.dtype) -> TensorShape:
    return TensorShape(shape.name, dtype if shape.dtype.is_floating_point else shape.dtype, shape.sizes)


def _require_finite(weight: Tensor, name: str, adapter: Path) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise RunError("TL-RUN-NOT-FINITE", where=str(adapter), error=t("in {name}", name=name))
