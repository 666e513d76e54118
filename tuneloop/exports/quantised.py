"""Exports whose weights lie in bitsandbytes' 4 or 8 bits: folders that transformers and `tuneloop serve` load."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tuneloop.exports.reference import Reference
from tuneloop.model.load import load_model
from tuneloop.model.old_keys import keep_old_keys
from tuneloop.model.quiet import quiet
from tuneloop.recipe.schema import QloraPart


def quantise(reference: Reference, merged: Path, folder: Path, dtype: str, *, bits: Literal["nf4", "int8"]) -> None:
    """Write the merged model's folder with its linear layers in NF4 (scales quantised, too) or LLM.int8 to `folder`.

    What stays in `dtype`: embeddings, head and norms. Raises TL-MODEL-METHOD where bitsandbytes cannot compute with it.
    """
    model = load_model(merged, dtype, reference.head, QloraPart(bits=bits))
    with quiet():
        model.save_pretrained(folder, safe_serialization=True)
    reference.tokenizer.save_pretrained(folder)
    keep_old_keys(folder, merged)
