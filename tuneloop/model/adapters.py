"""Adapters on the disk: put on the model they are of, to answer or to be trained on, and added into its weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tuneloop.errors import ModelError, RunError
from tuneloop.language import t
from tuneloop.model.lora import adapter_state
from tuneloop.model.model_folder import check_safetensors
from tuneloop.model.origin import mark

WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"
"""Files of an adapter folder; the last says which weights it belongs on, and is tuneloop's own."""


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder. Raises TL-MODEL-NO-ADAPTER."""
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        assert isinstance(content, dict)
        assert isinstance(content.get("peft_type"), str)
    except (OSError, ValueError, AssertionError, RecursionError) as error:
        raise ModelError("TL-MODEL-NO-ADAPTER", where=str(folder)) from error
    return content


def with_adapter(base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """The model with the adapter of a folder.

    PEFT itself would read a pickle where there is no safetensors file, and begin anew where a weight is missing.
    Raises TL-MODEL-NO-ADAPTER, TL-RUN-DAMAGED, and TL-MODEL-ADAPTER-BASE where the adapter does not fit this model.
    """
    read_config(folder)
    file = folder / WEIGHTS
    if not file.is_file():
        raise RunError("TL-RUN-DAMAGED", where=str(file), error=t("there is no such file"))
    check_safetensors(file)
    try:
        model = _put_on(base, folder, trainable)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError("TL-MODEL-ADAPTER-BASE", where=str(folder), reason=reason) from error
    with safe_open(file, "pt") as weights:
        there = set(weights.keys())
    own = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if missing := sorted(own - there):
        error_ = t("{n} weights are in no file: {names}", n=len(missing), names=", ".join(missing[:3]))
        raise RunError("TL-RUN-DAMAGED", where=str(file), error=error_)
    model.train(trainable and base.training)
    return model


def unfilled(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with an adapter of the same kind and size, begun anew: for the dry run of the planner."""
    config = PeftConfig.from_pretrained(str(folder), local_files_only=True)
    config.inference_mode = False
    for name, value in (("prefix_projection", False), ("prompt_tuning_init", "RANDOM"), ("init_lora_weights", True)):
        if hasattr(config, name):
            setattr(config, name, value)
    try:
        model = get_peft_model(base, config)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError("TL-MODEL-ADAPTER-BASE", where=str(folder), reason=reason) from error
    assert isinstance(model, PeftModel)
    return model


def _put_on(base: PreTrainedModel, folder: Path, trainable: bool) -> PeftModel:
    # PEFT takes no path for a folder unless it is text, and looks at a hub for one that is not there.
    config = PeftConfig.from_pretrained(str(folder), local_files_only=True)
    if not (trainable and config.is_prompt_learning):  # these PEFT loads to answer only
        return PeftModel.from_pretrained(base, str(folder), is_trainable=trainable, local_files_only=True)
    # What is saved of a prefix are its keys and values, not the network that made them, and of a prompt its vectors.
    model = unfilled(base, folder)
    set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
    return model


def require_same_base(adapter: Path, base: Path) -> None:
    """Raise TL-MODEL-ADAPTER-BASE where an adapter is known to be of other weights than those in the folder `base`.

    An adapter made elsewhere says no more than a name, and then its shapes decide when it is loaded.
    """
    try:
        known = json.loads((adapter / BASE).read_text(encoding="utf-8"))["mark"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if known != mark(base):
        named = str(read_config(adapter).get("base_model_name_or_path") or "?")
        reason = t("it was trained on {base}, whose weights are others", base=named)
        raise ModelError("TL-MODEL-ADAPTER-BASE", where=str(adapter), reason=reason)


def merged(model: PreTrainedModel, adapters: Sequence[Path]) -> PreTrainedModel:
    """The model with adapters added into its weights, in turn. Raises as `with_adapter`; TL-MODEL-METHOD."""
    for folder in adapters:
        config = read_config(folder)
        if config["peft_type"] != "LORA" or config.get("task_type") == "SEQ_CLS":
            reason = t("only LoRA adapters of models that write can be added into the weights, and {adapter} is none",
                       adapter=folder)  # fmt: skip
            raise ModelError("TL-MODEL-METHOD", where="train.merge", method=config["peft_type"], reason=reason)
        whole = with_adapter(model, folder).merge_and_unload(safe_merge=True)
        assert isinstance(whole, PreTrainedModel)
        model = whole
    return model


def stacked(model: PreTrainedModel, base: Path, adapters: Sequence[Path], target: Path) -> Path:
    """A model folder `target`: the model loaded from `base` with adapters added. Written aside, then renamed.

    Raises TL-MODEL-ADAPTER-BASE and what `merged` raises.
    """
    for adapter in adapters:
        require_same_base(adapter, base)
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        merged(model, adapters).save_pretrained(draft, safe_serialization=True)
        for path in base.iterdir():  # tokenizer, template, licence, where it is from
            weights = path.name.endswith((".bin", ".gguf", ".pt")) or ".safetensors" in path.name
            if path.is_file() and not weights and not (draft / path.name).exists():
                shutil.copyfile(path, draft / path.name)
        os.replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def save_adapter(model: PeftModel, target: Path, base: Path, named: dict[str, Any]) -> None:
    """Write an adapter in PEFT's own layout, to be put on the weights in `base`; `named` goes into its config."""
    model.save_pretrained(str(target), safe_serialization=True)
    config = json.loads((target / CONFIG).read_text(encoding="utf-8"))
    state: dict[str, torch.Tensor] = load_file(target / WEIGHTS)
    before = dict(state)
    adapter_state(model, state, config)
    if any(state[n] is not before[n] for n in state):
        save_file(state, target / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config | named, indent=2, sort_keys=True, ensure_ascii=False)
    (target / CONFIG).write_text(text, encoding="utf-8")
    (target / BASE).write_text(json.dumps({"mark": mark(base)}) + "\n", encoding="utf-8")
