"""key=value over a recipe, by its dotted keys."""

from __future__ import annotations

import re
from typing import Any

from tuneloop.base.errors import RecipeError
from tuneloop.base.language import t
from tuneloop.recipe.defaults import FOLLOWS_FROM, followers
from tuneloop.recipe.peers.translate import translate
from tuneloop.recipe.recipe import make_recipe, nearest, without_defaults
from tuneloop.recipe.schema import Recipe
from tuneloop.recipe.yaml import loads


def changed(recipe: Recipe, assignments: list[str]) -> Recipe:
    """The recipe with `key=value` assignments of the command line applied (values are YAML).

    Raises TL-RECIPE-INVALID as `make_recipe` does.
    """
    return changed_with_notes(recipe, assignments)[0]


def changed_with_notes(recipe: Recipe, assignments: list[str]) -> tuple[Recipe, list[str]]:
    """`changed`, and the notes about translated keys and about assignments without effect."""
    raw = recipe.model_dump(mode="json")
    written: dict[str, Any] = {}
    for assignment in assignments:
        key, sep, text = assignment.partition("=")
        if not sep or not key.strip():
            guess = nearest(key.strip()) or "train.epochs"
            raise RecipeError("TL-RECIPE-ASSIGN", where=assignment, got=assignment, guess=guess)
        setting = loads(text, assignment)
        if isinstance(setting, dict) and any(one is None and ":" in str(name) for name, one in setting.items()):
            need = t("a blank behind each colon: {example}", example=re.sub(r":(?=\S)", ": ", text))
            raise RecipeError("TL-RECIPE-VALUE", where=assignment, got=text, need=need)
        _put(written, raw, key.strip(), setting, assignment)
    written, notes, problems = translate(written)
    if problems:
        raise RecipeError("TL-RECIPE-INVALID", where="--set", causes=problems, n=len(problems))
    _unset(raw, written)
    meant = _meant(raw, written)
    _merge(raw, written)
    new, more = make_recipe(without_defaults(raw, meant), where="--set")
    train = written.get("train")
    steps = new.train.max_steps
    if isinstance(train, dict) and "epochs" in train and "max_steps" not in train and steps is not None:
        note = t("train.epochs has no effect beside train.max_steps: {n}; add --set train.max_steps=null", n=steps)
        notes.append(note)
    return new, [*notes, *more]


def _unset(raw: dict[str, Any], written: dict[str, Any]) -> None:
    """What followed from a preset or a method that is now another goes with it."""
    for section, sources in FOLLOWS_FROM.items():
        over = written.get(section)
        if isinstance(over, dict) and over.keys() & sources:
            for key, setting in followers(raw, section).items():
                if raw[section].get(key) == setting:
                    del raw[section][key]


def _meant(raw: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """What was just written, and what stands in the place of a value that would follow from others."""
    explicit = {s: dict.fromkeys(followers(raw, s).keys() & raw.get(s, {}).keys()) for s in FOLLOWS_FROM}
    if any(file.get("split") == "validation" for file in raw.get("data") or ()):  # a share beside it was asked for
        explicit["prepare"] = {**explicit.get("prepare", {}), "validation": None}
    return {**explicit, **{k: {**explicit.get(k, {}), **v} if isinstance(v, dict) else v for k, v in written.items()}}


def _put(target: dict[str, Any], base: Any, dotted: str, setting: Any, assignment: str) -> None:
    """Write `value` below a dotted key of `target`, over the recipe `base`: `data[0].columns` changes one item of its
    list, `data[].columns` each of them."""
    head, _, rest = dotted.partition(".")
    if numbered := re.fullmatch(r"(\w+)\[(\d*)\]", head):
        for one in _items(target, base, numbered[1], numbered[2], assignment):
            if rest:
                _put(one, one, rest, setting, assignment)
            else:
                one.update(setting if isinstance(setting, dict) else {"path": setting})
        return
    if not rest:
        target[head] = setting
        return
    if head == "model" and isinstance(target.get(head), str):  # `model=NAME` before `model.dtype=…`
        target[head] = {"name": target[head]}
    inner = target.setdefault(head, {})
    if not isinstance(inner, dict):
        raise RecipeError("TL-RECIPE-ASSIGN", where=assignment, got=assignment, guess="train.epochs")
    _put(inner, base.get(head) if isinstance(base, dict) else None, rest, setting, assignment)


def _items(target: dict[str, Any], base: Any, name: str, number: str, assignment: str) -> list[dict[str, Any]]:
    """The sections of a list that an assignment means, in a list of `target`'s own: one by its number, or all.

    Raises TL-RECIPE-ITEM where the list has none of this number.
    """
    sections = target[name] if name in target else base.get(name) if isinstance(base, dict) else None
    sections = [] if sections is None else sections if isinstance(sections, list) else [sections]
    items = [dict(one) if isinstance(one, dict) else {"path": one} for one in sections]
    wanted = items[int(number) : int(number) + 1] if number else items
    if not wanted:
        raise RecipeError("TL-RECIPE-ITEM", where=assignment, list=name, n=len(items))
    target[name] = items
    return wanted


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    for key, setting in over.items():
        if isinstance(setting, dict) and isinstance(base.get(key), dict):
            _merge(base[key], setting)
        else:
            base[key] = setting
