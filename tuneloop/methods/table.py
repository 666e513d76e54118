"""The training methods: one visible dict. Planner, export and serving read an entry's facts, never its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tuneloop.base.language import listed, sentences, t
from tuneloop.methods.adapters import came_from
from tuneloop.methods.freeze import describe_freeze, freeze, tied_head
from tuneloop.methods.lora import LINEAR, describe_lora, describe_qlora, linear_names, lora, stacked
from tuneloop.methods.virtual import describe_virtual, prefix, prompt
from tuneloop.model import quantize
from tuneloop.model.anatomy import OLD_LABELS
from tuneloop.model.backbone import routers_off, unwrap
from tuneloop.model.tying import reached
from tuneloop.recipe.choices import METHOD_CHOICES, MethodChoice
from tuneloop.recipe.schema import TrainPart

__all__ = ["LINEAR", "METHODS", "Method", "linear_names", "notes", "parameters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(MethodChoice):
    """A row of METHOD_CHOICES, and how the method changes a model."""

    wrap: Callable[[PreTrainedModel, TrainPart], nn.Module]
    describe: Callable[[TrainPart], str] = lambda train: ""
    """Its settings in a few words, for cards."""
    mergeable: bool = False
    """The adapter can be added into the base weights."""
    packable: bool = True
    """Several samples may share a row."""
    checkpointing: bool = True
    """Activations may be recomputed."""
    virtual: bool = False
    """Virtual tokens stand before each text."""
    kind: str = ""
    """PEFT's word for its adapters, as in adapter_config.json."""


def _row(name: str) -> dict[str, Any]:
    row = METHOD_CHOICES[name]
    return {one.name: getattr(row, one.name) for one in fields(row)}


def _full(model: PreTrainedModel, train: TrainPart) -> nn.Module:
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


METHODS: dict[str, Method] = {
    "lora": Method(**_row("lora"), wrap=lora, describe=describe_lora, mergeable=True, kind="LORA"),
    "qlora": Method(**_row("qlora"), wrap=lora, describe=describe_qlora, mergeable=True, kind="LORA"),
    "full": Method(**_row("full"), wrap=_full),
    "freeze": Method(**_row("freeze"), wrap=freeze, describe=describe_freeze),
    "ptuning_v2": Method(**_row("ptuning_v2"), wrap=prefix, describe=describe_virtual, checkpointing=False,
                         virtual=True, kind="PREFIX_TUNING"),
    "prompt_tuning": Method(**_row("prompt_tuning"), wrap=prompt, describe=describe_virtual, virtual=True,
                            kind="PROMPT_TUNING"),
}  # fmt: skip


def parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters, shared ones counted once."""
    every = list(model.parameters())
    return sum(map(quantize.count, every)), sum(p.numel() for p in every if p.requires_grad)


def notes(model: nn.Module, train: TrainPart) -> list[str]:
    """What a user should know about a wrapped model before it is trained."""
    base, out = unwrap(model), []
    method = METHODS[train.method]
    if not isinstance(model, PeftModel) and any(not p.requires_grad for p in base.parameters()) and tied_head(base):
        out.append(t("Head and embeddings are one tensor in this model: training the head trains both."))
    if method.kind == "LORA" and (n := stacked(base)):
        out.extend(_of_experts(model, base, n, method.quantize))
    if old := getattr(base, OLD_LABELS, ()):
        out.append(
            t("The model's head is of other labels ({labels}): a new one is trained in its place.", labels=_some(old))
        )
    if method.kind == "LORA" and (names := _tied(model, base)):
        out.append(
            t(
                "Head and embeddings are one tensor in this model, and only {names} gets an adapter: an export or "
                "a merge gives the head a tensor of its own, and is larger by it.",
                names=listed(names),
            )
        )
    if routers_off(base):
        out.append(t("output_router_logits: the loss that balances the experts' load is not trained."))
    if train.adapter:
        out.append(
            t(
                "Goes on from {adapter}; its own rank, targets and the like hold.",
                adapter=came_from(Path(train.adapter)),
            )
        )
    return out


def _some(names: Sequence[str]) -> str:
    """The first names, and that there are more."""
    return listed(names[:5]) + (" …" if len(names) > 5 else "")


def _tied(model: nn.Module, base: PreTrainedModel) -> list[str]:
    """Which of head and embeddings, where they are one tensor, an adapter changes alone."""
    if not isinstance(model, PeftModel):
        return []
    config = model.active_peft_config
    targets = getattr(config, "target_modules", None)
    if getattr(config, "ensure_weight_tying", False):
        return []
    return reached(base, targets)


def _of_experts(model: nn.Module, base: PreTrainedModel, weights: int, quantized: bool) -> list[str]:
    adapted = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n, p in model.named_parameters() if ".lora_A" in n}
    left = [n for n in linear_names(base) if n not in adapted | {"base_layer", "default"}]
    out = []
    if left:
        more = t(
            "This model's experts ({n:,} weights) and what is called like their parts ({names}) get no adapters.",
            n=weights,
            names=listed(left),
        )
        how = t("To train them, name these in train.lora.targets; each step then costs far more.")
        out.append(sentences(more, how))
    if quantized:
        out.append(t("The experts' weights stay as they are: only linear layers are quantised."))
    return out
