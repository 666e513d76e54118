"""What a run was when training ended, by digests: an evaluation finds out with them what was changed since."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tuneloop.base.files import sha256_of
from tuneloop.data.tokens.samples import Sequences


def ending(folder: Path, tokenizer: Any, held: Sequences) -> dict[str, str]:
    """What the event `finished` records: digests of the weights, of an adapter's settings, of the chat template and of
    the held-out samples."""
    return {
        "weights": weights_digest(folder),
        "adapter_config": config_digest(folder),
        "template": template_digest(tokenizer),
        "held": samples_digest(held),
    }


def config_digest(folder: Path) -> str:
    """12 hex digits of an adapter's settings, however they are laid out in their file; "" where there are none."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return ""
    settings = json.loads(file.read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def weights_digest(folder: Path) -> str:
    """12 hex digits of all weight files of a trained folder, whole; "" where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    names = "".join(f"{file.name} {sha256_of(file)}\n" for file in files)
    return hashlib.sha256(names.encode()).hexdigest()[:12] if files else ""


def template_digest(tokenizer: Any) -> str:
    """12 hex digits of a tokenizer's chat template.

    >>> from types import SimpleNamespace
    >>> template_digest(SimpleNamespace(chat_template="a")) == template_digest(SimpleNamespace(chat_template="a "))
    False
    """
    return hashlib.sha256(json.dumps(tokenizer.chat_template, sort_keys=True).encode()).hexdigest()[:12]


def samples_digest(samples: Sequences) -> str:
    """12 hex digits of the tokens of samples, and of which are trained; "" of none."""
    if not len(samples):
        return ""
    digest = hashlib.sha256(samples.lengths.astype("<i8").tobytes())
    digest.update(samples.ids.astype("<i4").tobytes())
    digest.update(samples.trained.astype("u1").tobytes())
    return digest.hexdigest()[:12]
