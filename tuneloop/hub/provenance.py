"""Where a base model is from: what it is called elsewhere, and under which licence it came."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import yaml

from tuneloop.hub.pull import provenance
from tuneloop.recipe.schema import Recipe

_SAMPLES, _PIECE = 33, 1 << 16


def licence(base: Path) -> str:
    """The licence of a base model, as written when it was pulled or in its own card; "" if neither says."""
    recorded = str(provenance(base).get("licence") or "")
    readme = base / "README.md"
    if recorded or not readme.is_file():
        return recorded
    head = re.match(r"---\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        fields = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return ""
    if not isinstance(fields, dict):
        return ""
    name = fields.get("license_name") if fields.get("license") == "other" else fields.get("license")
    return str(name or "")


def base_name(recipe: Recipe, base: Path) -> str:
    """What the base model is called elsewhere: a path of the machine that trained says nothing to a reader."""
    named = str(provenance(base).get("name") or recipe.model.name)
    return Path(named).name if Path(named).is_absolute() else named


def licence_fields(terms: str) -> dict[str, str]:
    """The licence as the front matter of a model card has it; {} where it is not known.

    >>> licence_fields("Apache-2.0"), licence_fields("Gemma Terms of Use")
    ({'license': 'apache-2.0'}, {'license': 'other', 'license_name': 'Gemma Terms of Use'})
    """
    if re.fullmatch(r"[\w.-]+", terms):
        return {"license": terms.lower()}
    return {"license": "other", "license_name": terms} if terms else {}


def provenance_note(folder: Path) -> str:
    """12 hex digits that tell a model's weights from others: of each file its size, its header, and samples of it.

    "" for a folder without safetensors. Reading all of it would take a minute for a large model.
    """
    files = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for k in range(_SAMPLES):
                stream.seek(k * max(0, size - _PIECE) // (_SAMPLES - 1))
                digest.update(stream.read(_PIECE))
    return digest.hexdigest()[:12] if files else ""
