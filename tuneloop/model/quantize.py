"""Frozen weights in 4 or 8 bits, by bitsandbytes (Dettmers et al. 2022, arXiv:2208.07339; 2023, arXiv:2305.14314)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

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
    place = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": place}}


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
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    for name, module in list(model.named_modules()):
        weight = module._parameters.get("weight")
        if weight is None or type(weight).__name__ not in QUANTISED:
            continue
        with torch.no_grad():
            numbers = dequantize_bnb_weight(weight, getattr(module, "state", None)).to(model.dtype).cpu()
        linear = nn.Linear(numbers.shape[1], numbers.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(numbers, requires_grad=False)
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
