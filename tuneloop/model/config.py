"""A model folder's config as transformers reads it: input from strangers, so its faults are coded errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from tuneloop.base.errors import ModelError
from tuneloop.model.quiet import quiet


def model_config(folder: Path) -> Any:
    """config.json of a folder. Raises TL-MODEL-CONFIG, whatever transformers raises at it."""
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers checks fields with exceptions of its own
        words = " ".join(str(error).split())[:300]
        raise ModelError("TL-MODEL-CONFIG", where=str(folder / "config.json"), error=words) from error
