"""What a recipe means where it says nothing: presets, and values that follow from others. Each is told in a note."""

from __future__ import annotations

from typing import Any

from tuneloop.language import t
from tuneloop.sections import TrainPart

PRESETS: dict[str, dict[str, Any]] = {"guide": {"turns": [3, 8], "tokens": [512, 4096], "max_length": 4096}}
"""What `prepare.preset` sets where the recipe says nothing."""


def filled(raw: dict[str, Any]) -> list[str]:
    """Put into a raw recipe what follows from what it says; returns the notes."""
    return [*_preset(raw), *_given(raw), *_make_room(raw)]


def _preset(raw: dict[str, Any]) -> list[str]:
    prepare = raw.get("prepare")
    name = prepare.get("preset") if isinstance(prepare, dict) else None
    if not isinstance(prepare, dict) or not isinstance(name, str) or name not in PRESETS:
        return []
    added = {key: value for key, value in PRESETS[name].items() if key not in prepare}
    raw["prepare"] = {**prepare, **added}
    told = ", ".join(f"prepare.{key}: {value}" for key, value in added.items())
    return [t("prepare.preset {name} sets {keys}", name=name, keys=told)] if added else []


def _given(raw: dict[str, Any]) -> list[str]:
    """Where a file is given as validation and no share is asked for, nothing more is held out."""
    prepare, data = raw.get("prepare", {}), raw.get("data")
    files = data if isinstance(data, list) else [data]
    if not isinstance(prepare, dict) or "validation" in prepare:
        return []
    if not any(isinstance(f, dict) and f.get("split") == "validation" for f in files):
        return []
    raw["prepare"] = {**prepare, "validation": 0}
    return [t("prepare.validation is 0, since a file is given as validation")]


def _make_room(raw: dict[str, Any]) -> list[str]:
    """Where nothing is said about the tokens of a forward pass, the longest dialogue has room in it."""
    prepare, train = raw.get("prepare"), raw.get("train", {})
    length = prepare.get("max_length") if isinstance(prepare, dict) else None
    if type(length) is not int or not isinstance(train, dict) or "token_budget" in train:
        return []
    if length <= TrainPart().token_budget:
        return []
    raw["train"] = {**train, "token_budget": length}
    return [t("train.token_budget is {n}, so that the longest dialogue has room", n=length)]
