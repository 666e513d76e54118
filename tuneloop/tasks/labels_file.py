"""The classes that a run tells apart, kept beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tuneloop.base.errors import RunError
from tuneloop.methods import adapters
from tuneloop.model.config import model_config
from tuneloop.tasks.task import TaskContext
from tuneloop.tasks.verbalize import fills_masks

CLASSES_FILE = adapters.LABELS


def write_classes(folder: Path, setting: TaskContext) -> None:
    """Keep the classes that a run tells apart beside its weights."""
    if setting.labels:
        content = {"labels": setting.labels, "weights": setting.weights}
        (folder / CLASSES_FILE).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_classes(file: Path) -> dict[str, tuple[Any, ...]]:
    """`labels` and `weights` of a file that `write_classes` wrote, {} where there is none. Raises TL-RUN-DAMAGED."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {"labels": tuple(map(str, content["labels"])), "weights": tuple(map(float, content["weights"]))}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError("TL-RUN-DAMAGED", where=str(file), error=str(error)) from error


def adapter_labels(folder: Path) -> tuple[str, ...]:
    """The labels of an adapter's head, in its order; () where it has none or nothing tells them."""
    try:
        content = json.loads((folder / CLASSES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    labels = content.get("labels") if isinstance(content, dict) else content
    return tuple(str(label) for label in labels or ())


def masked(folder: Path, tokenizer: Any) -> bool | None:
    """Whether the model in a folder fills masks; None for a tokenizer alone."""
    if not (folder / "config.json").is_file():
        return None
    return fills_masks(model_config(folder), tokenizer)
