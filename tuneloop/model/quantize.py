"""Frozen weights in 4 or 8 bits, by bitsandbytes (Dettmers et al. 2022, arXiv:2208.07339; 2023, arXiv:2305.14314)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from tuneloop.base import optional
from tuneloop.base.errors import ModelError
from tuneloop.base.language import t
from tuneloop.recipe.schema import QloraPart

QUANTISED = frozenset({"Params4bit", "Int8Params"})
"""What bitsandbytes calls its weights."""


def settings(part: QloraPart, dtype: torch.dtype, skipped: list[str] | None = None) -> dict[str, Any]:
    """What `from_pretrained` is told. A language head and what is tied to it are never quantised: transformers sees to
    it. `skipped` are the modules that are not, where that is not what it would find: a head of labels is trained.

    `dtype` is what is computed in. On a CPU bfloat16 was 2.5 times slower than float32. Raises TL-MACHINE-EXTRA.
    """
    optional.need("bitsandbytes", extra="qlora")
    if part.bits == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=part.double,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=torch.uint8,
            llm_int8_skip_modules=skipped,
        )
    return {"quantization_config": config, "device_map": {"": _device()}}


def stored(folder: Path) -> dict[str, Any]:
    """What `from_pretrained` is told of a folder whose weights lie in bitsandbytes' 4 or 8 bits; {} of any other.

    Raises TL-MACHINE-EXTRA.
    """
    config = PretrainedConfig.get_config_dict(folder, local_files_only=True)[0].get("quantization_config") or {}
    if str(config.get("quant_method")) != "bitsandbytes":
        return {}
    optional.need("bitsandbytes", extra="qlora")
    return {"device_map": {"": _device()}}


def _device() -> int | str:
    """Where weights in 4 or 8 bits are put as they are read: they do not move afterwards."""
    return torch.cuda.current_device() if torch.cuda.is_available() else "cpu"


def numbers(weight: torch.Tensor, part: QloraPart) -> torch.Tensor:
    """The numbers that a weight [rows, columns] stands for in 4 or 8 bits, in its own type, on the CPU.

    One tensor of what `load_model` and `dequantized` do for a whole model, to the bit.
    """
    library = optional.need("bitsandbytes", extra="qlora").nn
    if part.bits == "int8":
        held = library.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(_device())
        return _dequantized(held, held).to(weight.dtype).cpu()
    held = library.Params4bit(
        weight, requires_grad=False, compress_statistics=part.double, quant_type="nf4", quant_storage=torch.uint8
    )
    return _dequantized(held.to(_device()), None).to(weight.dtype).cpu()


def _dequantized(weight: Any, state: Any) -> torch.Tensor:
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    unpacked: torch.Tensor = dequantize_bnb_weight(weight, state)
    return unpacked


def settle(model: nn.Module) -> None:
    """Keep 4-bit weights in one form.

    On a CPU bitsandbytes would turn them over, in place, at the first pass outside of training, and the steps behind it
    would compute something else than they do in a run that was resumed there.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


@torch.no_grad()
def require_running(model: nn.Module, bits: str) -> None:
    """Raise TL-MODEL-METHOD where bitsandbytes cannot compute with this model on this machine."""
    ids = torch.arange(3, device=next(model.parameters()).device)[None]
    was = model.training
    try:
        for training in (True, False):  # it takes another way in each
            model.train(training)(input_ids=ids)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError, ImportError) as error:
        reason = t("bitsandbytes cannot compute it here: {error}", error=" ".join(str(error).split())[:200])
        raise ModelError("TL-MODEL-METHOD", where="train.qlora.bits", method=bits, reason=reason) from error
    finally:
        model.train(was)


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the numbers that its 4- or 8-bit weights stand for, in its own type, on the CPU.

    An adapter was trained on these: added to the weights as they were before, it makes a model that nobody trained.
    """
    for name, module in list(model.named_modules()):
        weight = module._parameters.get("weight")
        if weight is None or type(weight).__name__ not in QUANTISED:
            continue
        with torch.no_grad():
            unpacked = _dequantized(weight, getattr(module, "state", None)).to(model.dtype).cpu()
        linear = nn.Linear(unpacked.shape[1], unpacked.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(unpacked, requires_grad=False)
        linear.bias = module.bias
        model.set_submodule(name, linear)
    forget(model)
    model.cpu()
    return model


def forget(model: PreTrainedModel) -> None:
    """Without this a model says that it is quantised when it is no more, and cannot be saved."""
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer = None  # type: ignore[assignment]
    for name, no in (("is_loaded_in_4bit", False), ("is_loaded_in_8bit", False), ("is_quantized", False)):
        if getattr(model, name, no) != no:
            setattr(model, name, no)
    if hasattr(model, "quantization_method"):
        del model.quantization_method
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def count(parameter: nn.Parameter) -> int:
    """Numbers in a parameter; bitsandbytes keeps two of 4 bits in a byte."""
    return parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)


def is_quantized(model: nn.Module) -> bool:
    """Whether some of its weights are in 4 or 8 bits."""
    return any(type(p).__name__ in QUANTISED for p in model.parameters())
