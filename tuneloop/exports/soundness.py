"""Soundness of what a run's model is composed of: found out from its files, before a model is loaded.

An export ships what was measured. Files that are not whole, that hold no numbers, that training did not write, or of
which a part would go unused are refused here, by their names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors import safe_open

from tuneloop.base.errors import ModelError, RunError
from tuneloop.base.language import listed, t
from tuneloop.data.tokens.templates import template_file
from tuneloop.evaluation.diagnosis import ended
from tuneloop.exports.composition import Composition
from tuneloop.exports.streamed import skeleton
from tuneloop.exports.tensor_file import TensorFile
from tuneloop.hub.folder_check import check_safetensors, layer_of, weight_files
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import description
from tuneloop.methods import adapters
from tuneloop.model.head import Head
from tuneloop.runs.run import Run
from tuneloop.training.digests import config_digest, template_digest, weights_digest

_UNUSED = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias|\.attn\.bias|\.position_ids)$")
"""Tensors of old files that models compute anew."""


def require_sound(parts: Composition, targets: Sequence[str]) -> None:
    """Raise TL-MODEL-TRUNCATED, TL-RUN-DAMAGED or TL-RUN-NOT-FINITE for an adapter file that cannot be used,
    TL-RUN-TARGET for an adapter that cannot be beside the run's own, and what `_require_written` raises."""
    for adapter in parts.adapters:
        _require_adapter(adapter)
    _require_beside(parts, targets)
    _require_written(parts, targets)


def _require_adapter(adapter: Path) -> None:
    adapters.peft_config(adapter)
    config, file = adapters.read_config(adapter), adapter / adapters.WEIGHTS
    if not file.is_file():
        raise RunError("TL-RUN-DAMAGED", where=str(file), error=t("there is no such file"))
    check_safetensors(file)
    with safe_open(file, "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no dict
            tensor = tensors.get_tensor(name)
            if name.endswith(".lora_A.weight") and len(tensor) not in {config["r"], *_own_ranks(config)}:
                error = t("its r is {r}, and {name} has {n}", r=config["r"], name=name, n=len(tensor))
                raise RunError("TL-RUN-DAMAGED", where=str(adapter / adapters.CONFIG), error=error)
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
                raise RunError("TL-RUN-NOT-FINITE", where=str(file), error=t("in {name}", name=name))


def _own_ranks(config: dict[str, Any]) -> list[Any]:
    """The ranks of modules that have one of their own."""
    pattern = config.get("rank_pattern")
    return list(pattern.values()) if isinstance(pattern, dict) else []


def _require_beside(parts: Composition, targets: Sequence[str]) -> None:
    """Each adapter is added once, and answers as the run's model does."""
    seen = [adapter.resolve() for adapter in parts.adapters[: len(parts.adapters) - len(parts.more)]]
    own = {_task_type(adapter) for adapter in seen} or {"CAUSAL_LM" if parts.task.answers == "text" else "SEQ_CLS"}
    for adapter in parts.more:
        reason = ""
        if adapter.resolve() in seen:
            reason = t("{adapter} would be added twice", adapter=adapter)
        elif not {_task_type(adapter)} <= own | {None}:
            reason = t("{adapter} is for a model of another kind ({kind})", adapter=adapter, kind=_task_type(adapter))
        if reason:
            raise RunError("TL-RUN-TARGET", where="--adapter", target=listed(targets), reason=reason)
        seen.append(adapter.resolve())


def _task_type(adapter: Path) -> Any:
    return adapters.read_config(adapter).get("task_type")


def _require_written(parts: Composition, targets: Sequence[str]) -> None:
    """Raise TL-RUN-WEIGHTS-CHANGED, TL-RUN-DAMAGED or TL-RUN-PARITY where weights, settings or chat template are not
    those that the run recorded when it ended. Runs of earlier versions recorded less."""
    recorded, folder = ended(Run(parts.run)), Run(parts.run).trained_folder()
    assert folder is not None
    if recorded.get("weights") not in {None, "", weights_digest(folder)}:
        raise RunError("TL-RUN-WEIGHTS-CHANGED", where=str(parts.run), path=folder)
    if recorded.get("adapter_config") not in {None, "", config_digest(folder)}:
        changed = t("it was changed after training")
        raise RunError("TL-RUN-DAMAGED", where=str(folder / adapters.CONFIG), error=changed)
    if recorded.get("template") not in {None, template_digest(load_tokenizer(folder))}:
        raise RunError(
            "TL-RUN-PARITY",
            where=str(template_file(folder)),
            target=listed(targets),
            differences=t("the chat template renders another text"),
            cause=t("the run's chat template was changed after training"),
            remedy=t("put the chat template back that the run was trained with, then export again"),
        )


def require_fit(parts: Composition) -> None:
    """Raise TL-MODEL-CONFIG for weights, and TL-MODEL-ADAPTER-BASE for tensors of an adapter, that have no place in the
    model which the config describes: transformers and PEFT would leave them out without a word."""
    head = description(parts.run).head
    model = skeleton(parts.weights, head)
    config = parts.weights / "config.json"
    if other := _other_shape(model, parts.weights):
        raise ModelError("TL-MODEL-CONFIG", where=str(config), error=other)
    if unused := _unused(model, parts.weights, head):
        error = t("it has no place for {n} tensors of the weights: {names}", n=len(unused), names=listed(unused[:3]))
        raise ModelError("TL-MODEL-CONFIG", where=str(config), error=error)
    for adapter in parts.adapters:
        if adapters.read_config(adapter)["peft_type"] != "LORA":
            continue
        wrapped = adapters.unfilled(skeleton(parts.weights, head), adapter)
        places = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        names = check_safetensors(adapter / adapters.WEIGHTS)
        if odd := sorted(n for n in names if n not in places and not n.endswith(".base_layer.weight")):
            reason = t("it has no place for {n} tensors of the adapter: {names}", n=len(odd), names=listed(odd[:3]))
            raise ModelError("TL-MODEL-ADAPTER-BASE", where=str(adapter), reason=reason)


def _other_shape(model: Any, weights: Path) -> str:
    """The first tensor that the config wants otherwise than it lies in the files, in words; "" where there is none."""
    if getattr(model.config, "quantization_config", None):  # its files hold numbers in a form of their own
        return ""
    own = model.state_dict()
    for file in weight_files(weights):
        for shape in TensorFile.read(file).shapes:
            if shape.name in own and tuple(own[shape.name].shape) != tuple(shape.sizes):
                wanted, there = (list(sizes) for sizes in (own[shape.name].shape, shape.sizes))
                return t(
                    "it wants {name} as {wanted}, and there it is {there}", name=shape.name, wanted=wanted, there=there
                )
    return ""


def _unused(model: Any, weights: Path, head: Head) -> list[str]:
    """Names of tensors that are in the files and not in the model. Where a name means something else in memory, or the
    model has another head than its files, only layers are looked at."""
    own = set(model.state_dict())
    there = {shape.name for file in weight_files(weights) for shape in TensorFile.read(file).shapes}
    known = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    odd = {n for n in there - own if not _UNUSED.search(n) and not any(re.search(k, n) for k in known)}
    if head.kind != "causal" or not own - set(model.all_tied_weights_keys) <= there:
        last = max((layer for name in own if (layer := layer_of(name)) is not None), default=None)
        odd = {n for n in odd if last is not None and (layer_of(n) or 0) > last}
    return sorted(odd)


def notes_on_bases(parts: Composition) -> list[str]:
    """What cannot be known of adapters made elsewhere, which name their base and have no digest of it."""
    here = {parts.base_name, parts.recipe.model.name, parts.base.name}
    notes = []
    for adapter in parts.adapters:
        named = str(adapters.read_config(adapter).get("base_model_name_or_path") or "")
        if adapters.known_base(adapter).get("mark") is None and named and not {named, Path(named).name} & here:
            notes.append(
                t(
                    "{adapter} names {named} as its base, and this is {base}. Its shapes fit; whether it was trained "
                    "on these weights cannot be known.",
                    adapter=adapter,
                    named=named,
                    base=parts.base_name,
                )
            )
    return notes
