"""What a recipe means where it says nothing: presets, and values that follow from others. Each is told in a note."""

from __future__ import annotations

from typing import Any

from tuneloop.base.language import t
from tuneloop.recipe.choices import USUAL_METHOD, usual_rate
from tuneloop.recipe.schema import Recipe, TrainPart

GUIDES: dict[str, Any] = {
    "batch_size": 16, "optimizer": "adamw", "schedule": "cosine", "warmup_ratio": 0.1, "betas": [0.9, 0.999],
    "max_grad_norm": 1.0,
}  # fmt: skip
"""What the guides to fine-tuning agree on. They accumulate 8-16 passes of one or two dialogues: a step of about 16."""

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "prepare": {"guide": {"turns": [3, 8], "tokens": [512, 4096], "max_length": 4096}},
    "train": {
        "general": {"epochs": 3.0, **GUIDES},
        "domain": {"epochs": 10.0, **GUIDES},
        "quick": {"epochs": 1.0, "batch_size": 8, "schedule": "constant", "warmup_ratio": 0.03},
    },
}
"""Section -> preset -> what it sets where the recipe says nothing."""

FOLLOWS_FROM = {"prepare": {"preset"}, "train": {"preset", "method", "task", "freeze"}}
"""The keys that others follow from, by section."""


def followers(raw: dict[str, Any], section: str) -> dict[str, Any]:
    """What the keys of a section would have as values if nothing were said: its preset's, and the usual rate."""
    part = raw.get(section, {})
    if not isinstance(part, dict):
        return {}
    name = part.get("preset")
    out = dict(PRESETS[section].get(name, {})) if isinstance(name, str) else {}
    if section == "train":
        freeze = part.get("freeze")
        layers = freeze.get("layers") if isinstance(freeze, dict) else None
        out["learning_rate"] = usual_rate(part.get("method", USUAL_METHOD), part.get("task"), layers)
    return out


def filled(raw: dict[str, Any]) -> list[str]:
    """Put into a raw recipe what follows from what it says; returns the notes."""
    return [*_preset(raw, "prepare"), *_preset(raw, "train"), *_rate(raw), *_given(raw), *_make_room(raw)]


def _preset(raw: dict[str, Any], section: str) -> list[str]:
    part = raw.get(section)
    name = part.get("preset") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(name, str) or name not in PRESETS[section]:
        return []
    given = part.keys() | ({"warmup_ratio"} if part.get("warmup_steps") is not None else set())
    added = {key: setting for key, setting in PRESETS[section][name].items() if key not in given}
    raw[section] = {**part, **added}
    assigned = ", ".join(f"{section}.{key}: {setting}" for key, setting in added.items())
    if not added:
        return []
    if section == "train":
        return [t("train.preset {name} sets {keys}", name=name, keys=assigned)]
    return [t("prepare.preset {name} sets {keys}", name=name, keys=assigned)]


def _rate(raw: dict[str, Any]) -> list[str]:
    """Where no learning rate is said, the usual one of the method and the task."""
    train = raw.get("train")
    if not isinstance(train, dict) or "learning_rate" in train:
        return []
    rate = followers(raw, "train")["learning_rate"]
    if rate == TrainPart().learning_rate:
        return []
    raw["train"] = {**train, "learning_rate": rate}
    what = ", ".join(f"{key}: {train[key]}" for key in ("method", "task") if key in train)
    return [t("train.learning_rate is {rate}, usual for {what}", rate=f"{rate:g}", what=what)]


def settled(recipe: Recipe, task: str) -> tuple[Recipe, list[str]]:
    """The recipe once its rows have told what `task: auto` means; a learning rate that nobody wrote goes along."""
    train = recipe.train
    layers = train.freeze.layers
    before, after = usual_rate(train.method, train.task, layers), usual_rate(train.method, task, layers)
    given = "learning_rate" in train.model_fields_set and before == TrainPart().learning_rate
    if train.task != "auto" or after == before or train.learning_rate != before or given:
        return recipe, []
    what = f"method: {train.method}, task: {task}"
    note = t("train.learning_rate is {rate}, usual for {what}", rate=f"{after:g}", what=what)
    return recipe.model_copy(update={"train": train.model_copy(update={"learning_rate": after})}), [note]


def roomy(recipe: Recipe, longest: int, samples: int = 1) -> Recipe:
    """The recipe with room for the longest row in a forward pass, where prepare.max_length is auto.

    `samples` of so many tokens share a pass: the answers of a pair, say.

    >>> roomy(Recipe(), 3000).train.token_budget, roomy(Recipe(), 100).train.token_budget
    (3000, 2048)
    """
    need = longest * samples
    if recipe.prepare.max_length != "auto" or recipe.train.token_budget >= need:
        return recipe
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"token_budget": need})})


def _given(raw: dict[str, Any]) -> list[str]:
    """Where a file is given as validation and no share is asked for, nothing more is held out."""
    prepare, section = raw.get("prepare", {}), raw.get("data")
    files = section if isinstance(section, list) else [section]
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
