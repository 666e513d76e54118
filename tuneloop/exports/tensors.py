"""Tensors of models in whatever form they lie, by their names in transformers, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from torch import Tensor, nn

from tuneloop.model.backbone import unwrap
from tuneloop.model.quantize import QUANTISED

Tensors = Mapping[str, Callable[[], Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """What an adapter adds to one weight: scale B A, `down` A [rank, in], `up` B [out, rank]."""

    down: Tensor
    up: Tensor
    scale: float

    def delta(self) -> Tensor:
        """float32 [out, in]."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True, slots=True, eq=False)
class TrainedWeights:
    """Where the weights of a trained model are: a folder on the disk, and what an adapter adds to them.

    `replaced` are names of tensors that training has put in the place of the folder's; what they are is not known here.
    `moved` is how far a weight was from the folder's when the model was in memory, over its size: 0, but where it was
    held in 4 or 8 bits, or another adapter was added to it first.
    """

    folder: Path
    deltas: Mapping[str, LowRank] = field(default_factory=dict)
    replaced: frozenset[str] = frozenset()
    moved: float = 0.0

    def base(self) -> Tensors:
        """The folder's tensors, without those that training has replaced."""
        return {name: read for name, read in folder_tensors(self.folder).items() if name not in self.replaced}


def source_of(model: nn.Module) -> TrainedWeights | None:
    """Where the weights of a model in memory are from; None where no folder is known.

    An adapter's two narrow matrices are copied; the base is read again from its folder when somebody asks.
    """
    base = unwrap(model)
    folder = Path(str(getattr(base.config, "_name_or_path", "") or ""))
    if not str(folder) or not (folder / "config.json").is_file():
        return None
    deltas, replaced = dict[str, LowRank](), set[str]()
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer):
            low = _low_rank(module)
            if low is None:
                replaced.add(f"{name}.weight")
            else:
                deltas[f"{name}.weight"] = low
        elif isinstance(module, ModulesToSaveWrapper):
            replaced |= {f"{name}.weight", f"{name}.bias"}
    return TrainedWeights(folder, deltas, frozenset(replaced), _moved(base, folder))


def _moved(base: nn.Module, folder: Path) -> float:
    """How far the first matrix of the model's layers is from the folder's, over its size; 0 where it is not there."""
    there = folder_tensors(folder)
    for name, module in base.named_modules():
        weight = f"{name}.weight"
        if "embed" not in weight and weight in there:
            inner = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            if not isinstance(inner, nn.Linear):
                continue
            original = there[weight]()
            held = _from_module(None, inner, "weight")
            if original.ndim == 2 and original.shape == held.shape:
                return float((held - original).norm() / original.norm().clamp_min(1e-30))
    return 0.0


def _low_rank(module: LoraLayer) -> LowRank | None:
    """The sum that one adapter adds to a linear layer; None for what is no such sum (DoRA, several, embeddings)."""
    active = [name for name in module.active_adapters if name in module.lora_A]
    if len(active) != 1 or getattr(module, "use_dora", {}).get(active[0]) or getattr(module, "fan_in_fan_out", False):
        return None
    down, up = (side[active[0]].get_parameter("weight").detach().cpu() for side in (module.lora_A, module.lora_B))
    return LowRank(down.clone(), up.clone(), float(module.scaling[active[0]])) if down.ndim == 2 else None


def folder_tensors(folder: Path) -> Tensors:
    """The tensors of a folder's safetensors files, in the names that the files have."""
    out: dict[str, Callable[[], Tensor]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            out |= {name: partial(_from_file, path, name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    return out


def _from_file(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor.float()


def model_tensors(model: nn.Module) -> Tensors:
    """The tensors of a model in memory: what its 4- or 8-bit weights stand for, with what an adapter adds to them.

    A language head that is tied to the embeddings is the same tensor, and named once.
    """
    base = unwrap(model)
    out: dict[str, Callable[[], Tensor]] = {}
    seen = set[int]()
    for name, module in base.named_modules():
        if isinstance(module, ModulesToSaveWrapper | BaseTunerLayer):
            inner: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else _saved(module)
        elif any(part in name for part in (".base_layer", ".lora_", ".modules_to_save", ".original_module")):
            continue
        else:
            inner = module
        for part, parameter in inner._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                out[f"{name}.{part}"] = partial(_from_module, module, inner, part)
    return out


def _saved(wrapper: ModulesToSaveWrapper) -> nn.Module:
    active = next((name for name in wrapper.active_adapters if name in wrapper.modules_to_save), None)
    return wrapper.original_module if active is None else wrapper.modules_to_save[active]


@torch.no_grad()
def _from_module(module: Any, inner: Any, part: str) -> Tensor:
    tensor = inner._parameters[part]
    if type(tensor).__name__ in QUANTISED:
        from transformers.integrations.bitsandbytes import dequantize_bnb_weight

        tensor = dequantize_bnb_weight(tensor, getattr(inner, "state", None))
    elif hasattr(tensor, "dequantize") and type(tensor) is not nn.Parameter:  # torchao's
        tensor = tensor.dequantize()
    out: Tensor = tensor.detach().float().cpu()
    if part == "weight" and isinstance(module, LoraLayer):
        layer: Any = module
        for name in layer.active_adapters:
            if name in layer.lora_A:
                out = out + layer.get_delta_weight(name).float().cpu()
    return out


def gguf_tensors(gguf: Path, adapters: Sequence[Path] = ()) -> Tensors:
    """The tensors of a GGUF file as transformers has them, with what adapters in GGUF add to them.

    What transformers computes itself (the factors of long contexts) is left out. Raises TL-MODEL-GGUF.
    """
    from tuneloop.gguf.architectures import ARCHITECTURES, head_size
    from tuneloop.gguf.convert import rename
    from tuneloop.gguf.file import GgufFile

    with GgufFile(gguf) as file:
        facts, names = file.facts, [name for name in file.tensors if not name.startswith("rope_")]
    architecture, head = ARCHITECTURES[str(facts["general.architecture"])], head_size(facts)
    added = [_gguf_adapter(path) for path in adapters]

    def read(name: str, part: str) -> Tensor:
        with GgufFile(gguf) as file:
            numbers = file.numbers(name)
        for low in (pairs[name] for pairs in added if name in pairs):
            if (delta := low.delta().numpy()).shape == numbers.shape:  # that of an embedding lies otherwise
                numbers = numbers + delta
        return torch.from_numpy(architecture.restored(part, numbers, head).copy())

    out: dict[str, Callable[[], Tensor]] = {}
    for name in names:
        target, part = rename(name, architecture.names, gguf)
        out[target] = partial(read, name, part)
    return out


def _gguf_adapter(path: Path) -> dict[str, LowRank]:
    """The pairs of llama.cpp's adapter file by the name of the tensor that they change."""
    from tuneloop.gguf.file import GgufFile

    with GgufFile(path) as file:
        alpha = float(file.facts.get("adapter.lora.alpha", 0.0))
        names = [name.removesuffix(".lora_a") for name in file.tensors if name.endswith(".lora_a")]
        pairs = {}
        for name in names:
            down, up = (torch.from_numpy(file.numbers(f"{name}.lora_{x}")) for x in "ab")
            # llama.cpp: alpha / rank, or 1 where alpha is 0
            pairs[name] = LowRank(down, up, alpha / len(down) if alpha else 1.0)
    return pairs
