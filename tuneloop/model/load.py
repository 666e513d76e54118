"""Load models from checked local folders. Only safetensors and JSON are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from tuneloop.base.errors import ModelError
from tuneloop.base.language import t
from tuneloop.model import anatomy, quantize
from tuneloop.model.config import model_config
from tuneloop.model.head import CAUSAL, Head
from tuneloop.model.kernels import packed
from tuneloop.model.quiet import quiet
from tuneloop.recipe.schema import QloraPart

Model = TypeVar("Model", bound=nn.Module)
_FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)
SPARE = 4
"""Rows that a table of positions may have beside one a position: OPT's has two."""
CLASSES: dict[str, Any] = {
    "causal": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification, "masked": AutoModelForMaskedLM,
}  # fmt: skip


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
    config = model_config(folder)
    with torch.device("meta"):
        model = CLASSES[head.kind].from_config(config)
    return anatomy.never_quantised(model)


@contextmanager
def _building(folder: Path) -> Iterator[None]:
    """What transformers has against a folder is TL-MODEL-CONFIG."""
    try:
        with quiet():
            yield
    except _FAULTS as error:
        raise ModelError("TL-MODEL-CONFIG", where=str(folder), error=" ".join(str(error).split())[:300]) from error


def from_files(auto: Any, folder: Path, dtype: str = "auto", **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model as a class of transformers builds it from a checked local folder, in evaluation mode, and what it says of
    the loading ("missing_keys", "mismatched_keys"). Raises TL-MODEL-CONFIG."""
    with _building(folder):
        loaded: Any = auto.from_pretrained(
            folder,
            dtype=pick_dtype(dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    model, info = loaded
    assert isinstance(model, PreTrainedModel)
    return model.eval(), info


def require_weights(folder: Path, missing: Sequence[str]) -> None:
    """Raise TL-MODEL-WEIGHTS for weights that are in no file: transformers would make them up, at random."""
    if missing:
        lost = t("{n} weights are in no file: {names}", n=len(missing), names=", ".join(missing[:3]))
        raise ModelError("TL-MODEL-WEIGHTS", where=str(folder), error=lost)


def load_model(
    folder: Path, dtype: str = "auto", head: Head = CAUSAL, quantized: QloraPart | None = None
) -> PreTrainedModel:
    """A model with this head from a checked local folder, on the CPU, in evaluation mode.

    `quantized` says how its weights are held in 4 or 8 bits; then it is on the GPU where there is one, and so it is
    where they lie in the folder in 4 or 8 bits of bitsandbytes.

    A classifier's head that is in no file, or of other labels, is drawn at random; `model.new_weights` are the names of
    its weights.
    Raises TL-MODEL-CONFIG when transformers cannot build it, TL-MODEL-WEIGHTS when a weight is in no file.
    """
    name = packed.register()
    model_config(folder)  # what is wrong in it is told of the file
    with _building(folder):
        if quantized:
            bits = quantize.settings(quantized, pick_dtype(dtype), _never_quantised(folder, head))
        else:
            bits = quantize.stored(folder)
    options = {"attn_implementation": name, **_labels(head), **bits}
    model, info = from_files(CLASSES[head.kind], folder, dtype, **options)
    missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if head.kind == "classifier":
        inside = f"{model.base_model_prefix}."
        new = tuple(name for name in missing if not name.startswith(inside) or ".pooler." in name)
        if (theirs := known_labels(folder)) and not same_labels(theirs, head.labels):
            object.__setattr__(model, anatomy.OLD_LABELS, theirs)
            new = tuple(dict.fromkeys([*new, *anatomy.begin_anew(model, len(head.labels))]))
        object.__setattr__(model, "new_weights", new)
        missing = [name for name in missing if name not in new]
    require_weights(folder, missing)
    if not model._supports_sdpa:  # its attention is more than ours: capped scores (Gemma 2), sinks (gpt-oss)
        model.set_attn_implementation("eager")
    if bits:
        quantize.settle(model)
        quantize.require_running(model, quantized.bits if quantized else "bitsandbytes")
    # A base model may not know the end of a turn its template writes; the answerer stops by the template, not by this.
    model.eval()
    return model


def placed(model: Model) -> Model:
    """The model on the graphics card where there is one, to answer or be measured there; training places it itself."""
    there = not torch.cuda.is_available() or quantize.is_quantized(model)  # these were put there when they were read
    return model if there else model.to("cuda")


@lru_cache(maxsize=4)
def numbered_places(folder: Path) -> bool:
    """Whether the model in `folder` has one learned vector for each position, and so none behind the last (GPT-2)."""
    config = model_config(folder)
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


def known_labels(folder: Path) -> tuple[str, ...]:
    """The labels of the head that a model folder brings, in its order; () where it brings none."""
    try:
        config = model_config(folder)
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
