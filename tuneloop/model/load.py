"""Load tokenizers and models, untrained and trained. Only safetensors and JSON are read."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from tuneloop.base.environment import quiet_libraries
from tuneloop.base.errors import ModelError, RunError
from tuneloop.base.files import sha256_of
from tuneloop.base.language import t
from tuneloop.data.tokens.chains import opening
from tuneloop.data.tokens.templates import choose_template
from tuneloop.hub import resolve as sources
from tuneloop.model import adapters, anatomy, attention, determinism, precision, quantize
from tuneloop.model.methods import METHODS
from tuneloop.model.old_keys import keep_old_keys
from tuneloop.model.tasks.table import TASKS
from tuneloop.model.tasks.task import Head, Setting, Task
from tuneloop.model.tasks.verbalize import fills_masks
from tuneloop.model.trunk import NOISE
from tuneloop.model.virtual import require_effect
from tuneloop.recipe.schema import ModelPart, QloraPart, Recipe, TrainPart
from tuneloop.runs.run import run_recipe

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
            whole.update(name.encode() + sha256_of(folder / name).encode())
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

    A card older than Ampere runs bfloat16 as well, but has no units for it: it would convert for each product.
    bfloat16 on a CPU is for those who ask: without bf16 units it halves the speed.
    """
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[wanted]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.float32


CAUSAL = Head()
CLASSES_FILE = adapters.LABELS
SPARE = 4
"""Rows that a table of positions may have beside one a position: OPT's has two."""
CLASSES: dict[str, Any] = {
    "causal": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification, "masked": AutoModelForMaskedLM,
}  # fmt: skip


def _labels(head: Head) -> dict[str, Any]:
    """What transformers is told of a classifier's labels. A head of another number of them is begun anew."""
    if head.kind != "classifier":
        return {}
    names = dict(enumerate(head.labels))
    return {"id2label": names, "label2id": {v: k for k, v in names.items()}, "ignore_mismatched_sizes": True}


def _never_quantised(folder: Path, head: Head) -> list[str] | None:
    """The parts of a classifier that may be in no file: they are trained, and there is nothing to quantise."""
    if head.kind != "classifier":
        return None
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = CLASSES[head.kind].from_config(config)
    return anatomy.never_quantised(model)


def load_model(
    folder: Path, dtype: str = "auto", head: Head = CAUSAL, quantized: QloraPart | None = None
) -> PreTrainedModel:
    """A model with this head from a checked local folder, on the CPU, in evaluation mode.

    `quantized` says how its weights are held in 4 or 8 bits; then it is on the GPU where there is one.

    A classifier's head that is in no file, or of other labels, is drawn at random; `model.new_weights` are the names of
    its weights.
    Raises TL-MODEL-CONFIG when transformers cannot build it, TL-MODEL-WEIGHTS when a weight is in no file.
    """
    name = attention.register()
    try:
        bits = quantize.settings(quantized, pick_dtype(dtype), _never_quantised(folder, head)) if quantized else {}
        loaded: Any = CLASSES[head.kind].from_pretrained(
            folder, dtype=pick_dtype(dtype), local_files_only=True, trust_remote_code=False, use_safetensors=True,
            attn_implementation=name,
            output_loading_info=True, **_labels(head), **bits,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelError("TL-MODEL-CONFIG", where=str(folder), error=" ".join(str(error).split())[:300]) from error
    model, found = loaded
    assert isinstance(model, PreTrainedModel)
    missing = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if head.kind == "classifier":
        inside = f"{model.base_model_prefix}."
        new = tuple(name for name in missing if not name.startswith(inside) or ".pooler." in name)
        if (theirs := known_labels(folder)) and not same_labels(theirs, head.labels):
            object.__setattr__(model, anatomy.OLD_LABELS, theirs)
            new = tuple(dict.fromkeys([*new, *anatomy.begin_anew(model, len(head.labels))]))
        object.__setattr__(model, "new_weights", new)
        missing = [name for name in missing if name not in new]
    if missing:  # transformers would make them up, at random
        lost = t("{n} weights are in no file: {names}", n=len(missing), names=", ".join(missing[:3]))
        raise ModelError("TL-MODEL-WEIGHTS", where=str(folder), error=lost)
    if not model._supports_sdpa:  # its attention is more than ours: capped scores (Gemma 2), sinks (gpt-oss)
        model.set_attn_implementation("eager")
    if quantized:
        quantize.settle(model)
        quantize.require_running(model, quantized.bits)
    # A base model may not know the end of a turn its template writes; the answerer stops by the template, not by this.
    model.eval()
    return model


def placed(model: Model) -> Model:
    """The model on the graphics card where there is one, to answer or be measured there; training places it itself."""
    there = not torch.cuda.is_available() or quantize.is_quantized(model)  # these were put there when they were read
    return model if there else model.to("cuda")


def wrap(model: PreTrainedModel, train: TrainPart, seed: int) -> nn.Module:
    """The model with what the method adds to it, started from `seed`, or from the adapter that the recipe goes on from.

    Raises TL-MODEL-NOTHING-TRAINED, TL-MODEL-CHECKPOINTING, TL-MODEL-METHOD, TL-MODEL-MODULE, TL-MODEL-RANK,
    TL-MODEL-LAYERS, and what `with_adapter` raises.
    """
    method = METHODS[train.method]
    if train.checkpointing and not method.checkpointing:
        raise ModelError("TL-MODEL-CHECKPOINTING", where="train.checkpointing", method=train.method)
    torch.manual_seed(seed)
    wrapped = _continued(model, train) if train.adapter else method.wrap(model, train)
    if train.checkpointing:
        how = {"use_reentrant": False, "context_fn": determinism.recomputing}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
        model.disable_input_require_grads()  # not needed so, and frozen blocks would compute gradients for it
    setattr(model, NOISE, train.neftune_alpha)
    if not any(p.requires_grad for p in wrapped.parameters()):
        raise ModelError("TL-MODEL-NOTHING-TRAINED", where="train.method", method=train.method)
    if method.virtual and model.device.type != "meta":
        assert isinstance(wrapped, PeftModel)
        require_effect(wrapped, train.method)
    return wrapped


def _continued(model: PreTrainedModel, train: TrainPart) -> PeftModel:
    """The model with the adapter to go on from, whose own settings hold. Raises TL-MODEL-METHOD for another kind."""
    assert train.adapter
    folder, method = Path(train.adapter), METHODS[train.method]
    kind = str(adapters.read_config(folder)["peft_type"])
    if kind != method.kind:
        reason = t("the adapter is a {kind}; add it into the weights with train.merge, or take the method it is of",
                   kind=kind)  # fmt: skip
        raise ModelError("TL-MODEL-METHOD", where="train.adapter", method=train.method, reason=reason)
    theirs, ours = adapters.read_config(folder).get("task_type"), anatomy.task_type(model)
    if theirs and ours and theirs != ours.value:
        reason = t("the adapter is of a model for {theirs}, and this one is for {ours}", theirs=theirs, ours=ours.value)
        raise ModelError("TL-MODEL-METHOD", where="train.adapter", method=train.method, reason=reason)
    adapters.require_same_bits(folder, bits_of(train), train.method)
    if model.device.type == "meta":
        return adapters.unfilled(model, folder)
    adapters.require_same_base(folder, Path(str(model.name_or_path)))
    return adapters.with_adapter(model, folder, trainable=True)


def started(recipe: Recipe, folder: Path, task: Task, setting: Setting) -> nn.Module:
    """The model of a recipe as training begins: with the task's head and what the method adds, drawn from the seed."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    torch.manual_seed(recipe.seed)  # a new head is drawn at random
    kept = pick_dtype(recipe.model.dtype)
    whole = not METHODS[recipe.train.method].adapter and kept in precision.HALVES
    model = load_model(
        folder, "float32" if whole else recipe.model.dtype, task.head(setting, config), bits_of(recipe.train)
    )
    wrapped = wrap(model, recipe.train, recipe.seed)
    precision.hold(wrapped, kept, whole=whole)
    return wrapped


def bits_of(train: TrainPart) -> QloraPart | None:
    """How the method holds the frozen weights; None where it holds them as they are."""
    return train.qlora if METHODS[train.method].quantize else None


def resolve(part: ModelPart, *, weights: bool = True) -> Path:
    """The local folder of a recipe's model, pulled if need be; without `weights` a tokenizer alone will do."""
    return sources.resolve(part.name, part.revision, accept_terms=part.accept_terms, weights=weights)


@dataclass(frozen=True, slots=True)
class Trained:
    """A model as it was trained, ready to answer."""

    model: nn.Module
    tokenizer: Any
    recipe: Recipe
    task: Task
    setting: Setting
    head: Head
    opening: str = ""
    """What its rows, none of which has a thought, had before each answer: the template's empty thought."""


def load_trained(run: Path) -> Trained:
    """Base and adapter (or the whole model) of a finished run, the base held as in training: in 4 or 8 bits with qlora.

    Raises TL-RUN-MISSING for a folder that is no run, TL-RUN-UNFINISHED for one without a result, TL-RUN-DAMAGED for an
    adapter that lacks weights.
    """
    if not (run / "recipe.yaml").is_file():
        raise RunError("TL-RUN-MISSING", where=str(run), path=run)
    recipe = run_recipe(run)
    result = run / ("adapter" if METHODS[recipe.train.method].adapter else "model")
    if not result.is_dir():
        raise RunError("TL-RUN-UNFINISHED", where=str(run), path=run)
    tokenizer = load_tokenizer(result)
    task = TASKS[recipe.train.task if recipe.train.task != "auto" else "chat"]
    base = result if result.name == "model" else resolve(recipe.model)
    setting = Setting(recipe.train, tokenizer, masked=masked(base, tokenizer), **_read_classes(result / CLASSES_FILE))
    head = task.head(setting, AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False))
    model: nn.Module = untrained_model(base, recipe, head)
    if result.name != "model":
        assert isinstance(model, PreTrainedModel)
        if Path(recipe.model.name).is_absolute():  # a folder may be another one by now; a name stands for one model
            adapters.require_same_base(result, base)
        model = adapters.with_adapter(model, result)
    return Trained(model, tokenizer, recipe, task, setting, head, _opening(run, recipe, tokenizer))


def _opening(run: Path, recipe: Recipe, tokenizer: Any) -> str:
    """The empty thought that answers begin behind, "" where the rows had thoughts or were trained to write it."""
    try:
        thoughts = json.loads((run / "dataset.json").read_text(encoding="utf-8")).get("thoughts", True)
    except (OSError, ValueError, AttributeError):
        return ""
    return "" if thoughts or recipe.prepare.empty_thoughts else opening(tokenizer)


def untrained_model(folder: Path, recipe: Recipe, head: Head) -> PreTrainedModel:
    """The model of a recipe as training found it: a new head is the one that training began with."""
    torch.manual_seed(recipe.seed)
    return load_model(folder, recipe.model.dtype, head, bits_of(recipe.train))


def write_classes(folder: Path, setting: Setting) -> None:
    """Keep the classes that a run tells apart beside its weights."""
    if setting.labels:
        content = {"labels": setting.labels, "weights": setting.weights}
        (folder / CLASSES_FILE).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _read_classes(file: Path) -> dict[str, tuple[Any, ...]]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {"labels": tuple(map(str, found["labels"])), "weights": tuple(map(float, found["weights"]))}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError("TL-RUN-DAMAGED", where=str(file), error=str(error)) from error


def adapter_labels(folder: Path) -> tuple[str, ...]:
    """The labels of an adapter's head, in its order; () where it has none or nothing tells them."""
    try:
        found = json.loads((folder / CLASSES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    labels = found.get("labels") if isinstance(found, dict) else found
    return tuple(str(label) for label in labels or ())


@lru_cache(maxsize=4)
def numbered_places(folder: Path) -> bool:
    """Whether the model in `folder` has one learned vector for each position, and so none behind the last (GPT-2)."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text = config.get_text_config()
    most = getattr(text, "max_position_embeddings", None)
    if not most or getattr(text, "rope_parameters", None):  # rotary positions go on without end
        return False
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError):  # no trunk of its own
        return False
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not model.get_input_embeddings())
    return any(0 <= m.num_embeddings - most <= SPARE for m in tables)


def masked(folder: Path, tokenizer: Any) -> bool | None:
    """Whether the model in a folder fills masks; None for a tokenizer alone."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return fills_masks(config, tokenizer)


def known_labels(folder: Path) -> tuple[str, ...]:
    """The labels of the head that a model folder brings, in its order; () where it brings none."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a tokenizer alone
        return ()
    heads = [name for name in config.architectures or () if name.endswith("ForSequenceClassification")]
    return tuple(str(config.id2label[k]) for k in sorted(config.id2label)) if heads else ()


def same_labels(theirs: Sequence[str], ours: Sequence[str]) -> bool:
    """Whether a head's labels are those of the rows: by name, or by number where it has never named them.

    >>> same_labels(["pos", "neg"], ["neg", "pos"]), same_labels(["LABEL_0", "LABEL_1"], ["0", "1"])
    (True, True)
    >>> same_labels(["bad", "good"], ["negative", "positive"]), same_labels(["LABEL_0"], ["reward"])
    (False, True)
    """
    if len(theirs) == len(ours) and all(name == f"LABEL_{k}" for k, name in enumerate(theirs)):
        return len(ours) == 1 or set(theirs) == set(ours) or all(name == str(k) for k, name in enumerate(ours))
    return set(theirs) == set(ours)


def on_hub(name: str) -> bool:
    """Whether a recipe's model name is one of the hub that other tools ask as well.

    >>> on_hub("Qwen/Qwen3-0.6B"), on_hub("smollm2"), on_hub("modelscope:Qwen/Qwen3-0.6B"), on_hub("./models/x")
    (True, False, False, False)
    """
    return "/" in name and not sources.is_path(name) and not name.startswith("modelscope:")


def save_result(
    model: nn.Module, tokenizer: Any, base: Path, target: Path, part: ModelPart | None = None,
    bits: QloraPart | None = None,
) -> None:  # fmt: skip
    """Write the adapter (PEFT's own layout) or the whole model, with tokenizer and template, into `target`.

    `bits` says how the weights of the base were held.
    """
    tokenizer.save_pretrained(str(target))
    if not isinstance(model, PeftModel):
        assert isinstance(model, PreTrainedModel)
        model.save_pretrained(str(target), safe_serialization=True)
        keep_old_keys(target, base)
        return
    keep_old_keys(target, base)
    # Other people have the hub as well, but not this machine's folders.
    name = part.name if part else ""
    named = {
        "base_model_name_or_path": name if on_hub(name) else str(base),
        "revision": part.revision if part and on_hub(name) else None,
    }
    adapters.save_adapter(model, target, base, named, bits)
