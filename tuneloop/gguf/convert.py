"""A GGUF file to a model folder of safetensors and JSON, exactly: each weight is the value its block stands for.

Stored as float32: the value of a block is the product of a half-precision number and a small whole one, and 42 % of
SmolLM2's are no half-precision numbers themselves (79 % no bfloat16). What llama.cpp's converter does to a checkpoint
(`architectures`) is undone here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.base.errors import ModelError
from tuneloop.base.language import t
from tuneloop.gguf.architectures import ARCHITECTURES, Facts, head_size
from tuneloop.gguf.file import GgufFile
from tuneloop.gguf.tokenizer import write_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def convert(gguf: Path, folder: Path, generation: Facts | None = None) -> None:
    """Write the model in `gguf` to the existing `folder`: safetensors, config, generation config, tokenizer.

    Raises TL-MODEL-GGUF for what it cannot convert exactly.
    """
    with GgufFile(gguf) as file:
        facts = file.facts
        kind = str(facts.get("general.architecture"))
        if kind not in ARCHITECTURES:
            raise ModelError(
                "TL-MODEL-GGUF", where=str(gguf), error=t("its architecture {kind} is not known", kind=kind)
            )
        scaling = facts.get(f"{kind}.rope.scaling.type", "none")
        if scaling not in ("none", "linear", "yarn"):
            error = t("its rotary positions are scaled by {kind}", kind=scaling)
            raise ModelError("TL-MODEL-GGUF", where=str(gguf), error=error)
        architecture = ARCHITECTURES[kind]
        config = architecture.config(facts) | {"tie_word_embeddings": "output.weight" not in file.tensors}
        parts = {}
        for name in file.tensors:
            target, part = rename(name, architecture.names, gguf)
            parts[target] = (name, part)
        write_tokenizer(facts, folder)

        def numbers(target: str) -> NDArray[np.float32]:
            name, part = parts[target]
            return architecture.restored(part, file.numbers(name), head_size(facts))

        shapes = {target: file.tensors[name].shape for target, (name, _) in parts.items()}
        _write_weights(folder / "model.safetensors", shapes, numbers)
    _write_json(folder / "config.json", config)
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    _write_json(folder / "generation_config.json", {k: config[k] for k in tokens} | (generation or {}))


def _write_weights(
    path: Path, shapes: dict[str, tuple[int, ...]], numbers: Callable[[str], NDArray[np.float32]]
) -> None:
    """One safetensors file of float32 tensors by name, written tensor by tensor: memory holds one at a time."""
    header: Facts = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in sorted(shapes.items()):
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of eight bytes
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(shapes):
            out.write(numbers(name).astype("<f4", order="C", copy=False).data)


def rename(name: str, names: dict[str, str], where: Path) -> tuple[str, str]:
    """(the tensor's name in transformers, its part name). Raises TL-MODEL-GGUF for a name that is not in `names`.

    >>> rename("blk.3.attn_q.weight", {"attn_q": "self_attn.q_proj"}, Path("m.gguf"))
    ('model.layers.3.self_attn.q_proj.weight', 'attn_q')
    >>> rename("blk.3.attn_q.bias", {"attn_q.bias": "self_attn.q_proj"}, Path("m.gguf"))
    ('model.layers.3.self_attn.q_proj.bias', 'attn_q.bias')
    """
    stem, _, suffix = name.rpartition(".")
    prefix = ""
    if stem.startswith("blk."):
        _, number, stem = stem.split(".", 2)
        prefix = f"model.layers.{number}."
    part = stem if suffix == "weight" else f"{stem}.{suffix}"
    if part not in names:
        raise ModelError("TL-MODEL-GGUF", where=str(where), error=t("its tensor {name} is not known", name=name))
    return f"{prefix}{names[part]}.{suffix}", part


def _write_json(path: Path, content: Facts) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")
