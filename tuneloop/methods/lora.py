"""Low-rank adapters: where they go, how they begin, and how one that changed the base weights is saved."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuneloop.base.errors import ModelError
from tuneloop.base.language import listed, t
from tuneloop.model.anatomy import heads, new_parts, task_type
from tuneloop.model.quiet import quiet
from tuneloop.recipe.schema import TrainPart

LINEAR = (nn.Linear, Conv1D)
"""What multiplies by a weight matrix; GPT-2 has the transposed kind."""
CHANGING = ("pissa", "olora")
"""Beginnings that take their part out of the base weights."""
START = "tuneloop_start"
"""Attribute of a wrapped model: what A and B began as, where that was taken out of the base weights."""


def linear_names(model: nn.Module) -> list[str]:
    """Last name parts of all linear layers but the head: what a LoRA may target."""
    apart = tuple(f"{name}." for name in heads(model))
    named = ((n, m) for n, m in model.named_modules() if not f"{n}.".startswith(apart))
    return sorted({n.rsplit(".", 1)[-1] for n, m in named if isinstance(m, LINEAR)})


def require_modules(model: nn.Module, names: Iterable[str], where: str) -> None:
    """Raise TL-MODEL-MODULE, with the near ones, unless each name is a module's or the end of one's."""
    every = [n for n, _ in model.named_modules() if n]
    unknown = [x for x in names if not any(n == x or n.endswith("." + x) for n in every)]
    if unknown:
        known = linear_names(model) if where == "train.lora.targets" else sorted({n.rsplit(".", 1)[-1] for n in every})
        known = [n for n in known if not n.isdigit()]
        close = difflib.get_close_matches(unknown[0], known, 3, 0.4) or difflib.get_close_matches(
            unknown[0], every, 3, 0.4
        )
        raise ModelError("TL-MODEL-MODULE", where=where, got=listed(unknown), near=listed(close or known[:12]))


def lora(model: PreTrainedModel, train: TrainPart) -> nn.Module:
    """The model with adapters on its linear layers.

    Raises TL-MODEL-MODULE, TL-MODEL-RANK, TL-MODEL-METHOD, TL-MODEL-NOTHING-TRAINED.
    """
    part = train.lora
    every = part.targets == "all-linear"
    targets = _linear_alone(model) if part.targets == "all-linear" else list(part.targets)
    if not targets:
        raise ModelError("TL-MODEL-NOTHING-TRAINED", where="train.lora.targets", method=train.method)
    require_modules(model, targets, "train.lora.targets")
    require_modules(model, part.train_also, "train.lora.train_also")
    if not every:
        targets = [x for x in targets if not _within(x, part.train_also)]
    _require_fitting(model, train, targets)
    saved = list(dict.fromkeys([*new_parts(model), *part.train_also]))
    excluded = list(dict.fromkeys([*heads(model), *new_parts(model)])) if every else []
    quantised = bool(getattr(model, "is_quantized", False))
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    # The dry run of the planner has no numbers that a decomposition could begin with.
    init = True if part.init == "default" or model.device.type == "meta" else part.init
    config = LoraConfig(
        task_type=task_type(model),
        r=part.rank,
        lora_alpha=part.alpha,
        lora_dropout=part.dropout,
        target_modules=targets,
        exclude_modules=rf"({'|'.join(map(re.escape, excluded))})(\..*)?" if excluded else None,
        use_rslora=part.rslora,
        use_dora=part.dora,
        init_lora_weights=init,
        modules_to_save=saved or None,
        ensure_weight_tying=tied and bool(_embeddings(model, part.train_also)),
        fan_in_fan_out=any(isinstance(m, Conv1D) for m in model.modules()),
    )
    if quantised and part.init in CHANGING:
        reason = t("{init} takes its part out of the base weights, which are quantised here", init=part.init)
        raise ModelError("TL-MODEL-METHOD", where="train.lora.init", method=train.method, reason=reason)
    try:
        with quiet():
            wrapped: nn.Module = get_peft_model(model, config)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError("TL-MODEL-METHOD", where="train.lora", method=train.method, reason=reason) from error
    if part.init in CHANGING and init is not True:
        object.__setattr__(wrapped, START, _pairs(wrapped))
    return wrapped


def describe_lora(train: TrainPart) -> str:
    """Rank, alpha and what departs from plain LoRA, in a few words."""
    part = train.lora
    rank = t("rank {rank}, alpha {alpha}", rank=part.rank, alpha=f"{part.alpha:g}")
    variants = [name for name in ("rslora", "dora") if getattr(part, name)]
    return ", ".join([rank, *variants, *([part.init] if part.init != "default" else [])])


def describe_qlora(train: TrainPart) -> str:
    """The same, after the form of the frozen weights."""
    return f"{train.qlora.bits}, {describe_lora(train)}"


def _linear_alone(model: nn.Module) -> list[str]:
    """`linear_names` without those that PEFT takes for a layer's experts, such as gate_proj in a DeepSeek-V3.

    Experts lie in one tensor, and an adapter on them computes the change of all of them at each pass; who wants that
    names them as targets. The shared experts and the dense layers have the same names, and PEFT no way to tell them
    apart.
    """
    names = linear_names(model)
    if not stacked(model):
        return names
    config = LoraConfig(target_modules=names)
    convert_peft_config_for_transformers(config, model, None)
    assert isinstance(config.target_modules, set)
    return [n for n in names if n in config.target_modules]


def _within(name: str, others: Iterable[str]) -> bool:
    return any(name == o or name.endswith("." + o) for o in others)


def _embeddings(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Which of the names are the embeddings or the language head."""
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    own = [n for n, m in model.named_modules() if id(m) in ends]
    return [x for x in names if any(n == x or n.endswith("." + x) for n in own)]


def _require_fitting(model: nn.Module, train: TrainPart, targets: list[str]) -> None:
    """Raise TL-MODEL-RANK where the rank is above a target's smaller side: the update would not be of low rank."""
    rank = train.lora.rank
    for name, module in model.named_modules():
        if not isinstance(module, (*LINEAR, nn.Embedding)) or not any(
            name == x or name.endswith("." + x) for x in targets
        ):
            continue
        sides = (
            (module.in_features, module.out_features) if isinstance(module, nn.Linear) else tuple(module.weight.shape)
        )
        if rank > min(sides):
            raise ModelError(
                "TL-MODEL-RANK", where="train.lora.rank", rank=rank, module=name, rows=sides[0], columns=sides[1]
            )
    if train.lora.init == "orthogonal" and rank % 2:
        reason = t("orthogonal splits the rank into two halves, and {rank} is odd", rank=rank)
        raise ModelError("TL-MODEL-METHOD", where="train.lora.rank", method=train.method, reason=reason)


def _pairs(wrapped: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name -> its A and B, copied."""
    out: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in wrapped.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            a, b = (side["default"].get_parameter("weight") for side in (module.lora_A, module.lora_B))
            out[name] = (a.detach().clone(), b.detach().clone())
    return out


def adapter_state(model: PeftModel, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Rewrite an adapter's weights and configuration, in place, so that they belong on the unchanged base weights.

    PiSSA (Meng et al. 2024, arXiv:2404.02948) and OLoRA (Büyükakyüz 2024, arXiv:2406.01775) train on W - s B0 A0 in
    place of W. What was learned is s (B A - B0 A0) on W: an adapter [B, -B0] [A; A0] of twice the rank, with the scale
    kept. The direction that DoRA divides by its length is the same sum, so its magnitudes stay.
    """
    start: dict[str, tuple[Tensor, Tensor]] = getattr(model, START, {})
    for name, (a, b) in start.items():
        first, second = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        state[first] = torch.cat([state[first], a.to(state[first])], 0).contiguous()
        state[second] = torch.cat([state[second], -b.to(state[second])], 1).contiguous()
    if start:
        config["init_lora_weights"] = True
        config["r"] *= 2
        config["lora_alpha"] *= math.sqrt(2) if config.get("use_rslora") else 2


def stacked(model: nn.Module) -> int:
    """Weights of experts that lie in one tensor, [experts, rows, columns]."""
    return sum(p.numel() for n, p in model.named_parameters() if p.ndim == 3 and ".experts." in f".{n}")
