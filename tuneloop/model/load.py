"""Load tokenizers and models, untrained and trained. Only safetensors and JSON are read."""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from tuneloop.data.stamps import digest
from tuneloop.data.templates import choose_template
from tuneloop.environment import quiet_libraries
from tuneloop.errors import ModelError, RunError
from tuneloop.language import t
from tuneloop.model import attention, sources
from tuneloop.model.methods import METHODS
from tuneloop.model.model_folder import check_safetensors
from tuneloop.model.tasks.task import Head, Setting, Task
from tuneloop.recipe import read_recipe
from tuneloop.sections import ModelPart, Recipe, TrainPart

Model = TypeVar("Model", bound=nn.Module)

quiet_libraries()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
# transformers and peft warn about each other's names; nothing a user could act on.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")


def fingerprint(folder: Path, tokenizer: Any) -> str:
    """12 hex digits of all that decides how text becomes tokens: the tokenizer's files and its chat template."""
    whole = hashlib.sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode())
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (folder / name).is_file():
            whole.update(name.encode() + digest(folder / name).encode())
    return whole.hexdigest()[:12]


def load_tokenizer(folder: Path, template: str | None = None) -> Any:
    """The tokenizer of a model folder, with a chat template whatever the folder has.

    Raises TL-MODEL-TOKENIZER when the folder's files make none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises no other class
        raise ModelError("TL-MODEL-TOKENIZER", where=str(folder), error=" ".join(str(error).split())[:200]) from error
    choose_template(tokenizer, template)
    return tokenizer


def pick_dtype(wanted: str) -> torch.dtype:
    """The type of the weights. auto: bfloat16 on a GPU that has it, else float16 there; float32 on a CPU.

    bfloat16 on a CPU is for those who ask: without bf16 units it halves the speed.
    """
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


CAUSAL = Head()
CLASSES: dict[str, Any] = {
    "causal": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification, "masked": AutoModelForMaskedLM,
}  # fmt: skip


def load_model(folder: Path, dtype: str = "auto", head: Head = CAUSAL) -> PreTrainedModel:
    """A model with this head from a checked local folder, on the CPU, in evaluation mode.

    Raises TL-MODEL-CONFIG when transformers cannot build it, TL-MODEL-WEIGHTS when a weight is in no file.
    """
    name = attention.register()
    try:
        loaded: Any = CLASSES[head.kind].from_pretrained(
            folder, dtype=pick_dtype(dtype), local_files_only=True, trust_remote_code=False, use_safetensors=True,
            attn_implementation=name,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelError("TL-MODEL-CONFIG", where=str(folder), error=" ".join(str(error).split())[:300]) from error
    model, found = loaded
    assert isinstance(model, PreTrainedModel)
    if missing := sorted(found["missing_keys"]):  # transformers would make them up, at random
        lost = t("{n} weights are in no file: {names}", n=len(missing), names=", ".join(missing[:3]))
        raise ModelError("TL-MODEL-WEIGHTS", where=str(folder), error=lost)
    if not model._supports_sdpa:  # its attention is more than ours: capped scores (Gemma 2), sinks (gpt-oss)
        model.set_attn_implementation("eager")
    # A base model may not know the end of a turn its template writes; the answerer stops by the template, not by this.
    model.eval()
    return model


def placed(model: Model) -> Model:
    """The model on the graphics card where there is one, to answer or be measured there; training places it itself."""
    return model.to("cuda") if torch.cuda.is_available() else model


def wrap(model: PreTrainedModel, train: TrainPart, seed: int) -> nn.Module:
    """The model with what the method adds to it, started from `seed`. Raises TL-MODEL-NOTHING-TRAINED."""
    torch.manual_seed(seed)
    wrapped = METHODS[train.method].wrap(model, train)
    if train.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if not any(p.requires_grad for p in wrapped.parameters()):
        raise ModelError("TL-MODEL-NOTHING-TRAINED", where="train.method", method=train.method)
    return wrapped


def started(recipe: Recipe, folder: Path, task: Task, setting: Setting) -> nn.Module:
    """The model of a recipe as training begins: with the task's head and what the method adds, drawn from the seed."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    torch.manual_seed(recipe.seed)  # a new head is drawn at random
    model = load_model(folder, recipe.model.dtype, task.head(setting, config))
    return wrap(model, recipe.train, recipe.seed)


def resolve(part: ModelPart) -> Path:
    """The local folder of a recipe's model, pulled if need be."""
    return sources.resolve(part.name, part.revision, accept_terms=part.accept_terms)


@dataclass(frozen=True, slots=True)
class Trained:
    """A model as it was trained, ready to answer."""

    model: nn.Module
    tokenizer: Any
    recipe: Recipe


def load_trained(run: Path) -> Trained:
    """Base and adapter (or the whole model) of a finished run.

    Raises TL-RUN-MISSING for a folder that is no run, TL-RUN-UNFINISHED for one without a result, TL-RUN-DAMAGED for an
    adapter that lacks weights.
    """
    if not (run / "recipe.yaml").is_file():
        raise RunError("TL-RUN-MISSING", where=str(run), path=run)
    recipe, _ = read_recipe(run / "recipe.yaml")
    result = run / ("adapter" if METHODS[recipe.train.method].adapter else "model")
    if not result.is_dir():
        raise RunError("TL-RUN-UNFINISHED", where=str(run), path=run)
    tokenizer = load_tokenizer(result)
    if result.name == "model":
        return Trained(load_model(result, recipe.model.dtype), tokenizer, recipe)
    return Trained(_with_adapter(load_model(resolve(recipe.model), recipe.model.dtype), result), tokenizer, recipe)


def _with_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """PEFT itself would read a pickle where there is no safetensors file, and begin anew where a weight is missing."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise RunError("TL-RUN-DAMAGED", where=str(file), error=t("there is no such file"))
    check_safetensors(file)
    model = PeftModel.from_pretrained(base, str(folder), local_files_only=True)
    with safe_open(file, "pt") as weights:
        missing = sorted(set(get_peft_model_state_dict(model, save_embedding_layers=False)) - set(weights.keys()))
    if missing:
        error = t("{n} weights are in no file: {names}", n=len(missing), names=", ".join(missing[:3]))
        raise RunError("TL-RUN-DAMAGED", where=str(file), error=error)
    model.eval()
    return model


def on_hub(name: str) -> bool:
    """Whether a recipe's model name is one of the hub that other tools ask as well.

    >>> on_hub("Qwen/Qwen3-0.6B"), on_hub("smollm2"), on_hub("modelscope:Qwen/Qwen3-0.6B"), on_hub("./models/x")
    (True, False, False, False)
    """
    return "/" in name and not sources.is_path(name) and not name.startswith("modelscope:")


def save_result(model: nn.Module, tokenizer: Any, base: Path, target: Path, part: ModelPart | None = None) -> None:
    """Write the adapter (PEFT's own layout) or the whole model, with tokenizer and template, into `target`."""
    assert isinstance(model, PeftModel | PreTrainedModel)
    model.save_pretrained(str(target), safe_serialization=True)
    tokenizer.save_pretrained(str(target))
    config = target / "adapter_config.json"
    if config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        # Other people have the hub as well, but not this machine's folders.
        name = part.name if part else ""
        content["base_model_name_or_path"] = name if on_hub(name) else str(base)
        content["revision"] = part.revision if part and on_hub(name) else None
        config.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False), encoding="utf-8")
