"""The recipe: the one file that describes a run.

Strict: an unknown key, a wrong type and a contradiction are all reported together, with the nearest known key. The keys
of transformers, TRL, LLaMA-Factory, ms-swift and Axolotl are translated first, and said so (`peers/translate.py`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tuneloop.base.errors import RecipeError, nearby, os_words
from tuneloop.base.language import alternatives, t
from tuneloop.recipe.checks import contradictions
from tuneloop.recipe.defaults import filled
from tuneloop.recipe.paths import anchored
from tuneloop.recipe.peers.account import shown
from tuneloop.recipe.peers.translate import ALIASES, CHINESE, translate
from tuneloop.recipe.schema import Recipe
from tuneloop.recipe.yaml import dumps, loads, slips


def keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every dotted key of the recipe, with the section it stands in: ("train.lora.rank", LoraPart), ("data[].path"…)"""
    for name, info in model.model_fields.items():
        yield prefix + name, model
        inner = (*get_args(info.annotation), info.annotation)[0]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, f"{prefix}{name}{'.' if inner is info.annotation else '[].'}")


def nearest(key: str) -> str:
    """The key whose name, here or in another tool, looks most like `key` or its last part; "" if none does.

    >>> nearest("train.learning_rat"), nearest("num_train_epoch"), nearest("colour")
    ('train.learning_rate', 'train.epochs', '')
    """
    own = [k for k, _ in keys()]
    known = {alias: target for alias, (target, _) in ALIASES.items()}
    known |= {k.rsplit(".", 1)[-1]: k for k in reversed(own)} | {k: k for k in own}
    key = re.sub(r"\.\d+", "[]", key)
    chinese = {name: k for k, names in CHINESE.items() for name in names.split()}.get(key.rsplit(".", 1)[-1])
    if chinese:
        return chinese
    for name, cutoff in ((key, 0.75), (key.rsplit(".", 1)[-1], 0.7)):
        close = difflib.get_close_matches(name, list(known), 1, cutoff)
        if close:
            return known[close[0]]
    return ""


# pydantic's kind of error, or the first word of it -> what is needed; any other keeps pydantic's own words
NEEDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "missing": lambda c: t("a value"),
    "invalid_key": lambda c: t("a key that is text"),
    "greater_than": lambda c: t("a number above {limit}", limit=f"{c['gt']:.10g}"),
    "greater_than_equal": lambda c: t("a number of at least {limit}", limit=f"{c['ge']:.10g}"),
    "less_than": lambda c: t("a number below {limit}", limit=f"{c['lt']:.10g}"),
    "less_than_equal": lambda c: t("a number of at most {limit}", limit=f"{c['le']:.10g}"),
    "finite_number": lambda c: t("a finite number"),
    "int": lambda c: t("a whole number"),
    "float": lambda c: t("a number"),
    "bool": lambda c: t("true or false"),
    "string": lambda c: t("text, in quotes where it looks like a number"),
    "string_pattern_mismatch": lambda c: t("up to 64 letters, digits and . _ - with a letter or digit first"),
    "list": lambda c: t("a list"),
    "tuple": lambda c: t("a list of two numbers"),
    "too_long": lambda c: t("a list of two numbers"),
    "literal_error": lambda c: t("one of {choices}", choices=alternatives(c["expected"])),
    "dict": lambda c: t("a section of its own, lines of key: value"),
    "model": lambda c: t("a section of its own, lines of key: value"),
    "value_error": lambda c: str(c["error"]),
}
SHAPE = re.compile(r"(list|literal)\[.*\]|constrained-int")
"""What pydantic adds to a key to say which of its shapes it tried."""


def _problems(error: ValidationError) -> list[RecipeError]:
    """One problem a key: where a key may have several shapes, pydantic reports each that it has not."""
    faults: list[RecipeError] = []
    needs: dict[str, list[str]] = {}
    gots: dict[str, str] = {}
    for e in error.errors(include_url=False):
        kind, loc = e["type"], [str(p) for p in e["loc"] if not SHAPE.fullmatch(str(p))]
        if kind == "string_type" and len(loc) > 1 and loc[-1] == "str":
            loc.pop()
        where = ".".join(loc)
        if kind == "extra_forbidden":
            guess = nearest(where)
            code = "TL-RECIPE-KEY" if guess else "TL-RECIPE-KEY-FAR"
            faults.append(RecipeError(code, where=where, key=where, guess=guess))
            continue
        need = NEEDS.get(kind) or NEEDS.get(kind.split("_")[0])
        needs.setdefault(where, []).append(need(e.get("ctx", {})) if need else e["msg"])
        got = t("nothing") if kind == "missing" else shown(e["input"])
        gots[where] = re.sub(r"://.*", "://…", got) if where.startswith("watch.notify") else got  # it may be a secret
    for where, texts in needs.items():
        need_one = " / ".join(dict.fromkeys(texts))
        faults.append(RecipeError("TL-RECIPE-VALUE", where=where, got=gots[where], need=need_one))
    return faults


def make_recipe(raw: Any, *, where: str = "recipe", folder: Path | None = None) -> tuple[Recipe, list[str]]:
    """A recipe from a plain dict, and the notes about translated keys. Raises TL-RECIPE-INVALID with every problem.

    `folder` is where it lies: the names of LLaMA-Factory's datasets are looked up from there.
    """
    if not isinstance(raw, dict):
        got = t("a list") if isinstance(raw, list) else t("a text") if isinstance(raw, str) else shown(raw)
        raise RecipeError("TL-RECIPE-SHAPE", where=where, got=got)
    raw, notes, problems = translate(raw, folder)
    notes += filled(raw)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        problems += _problems(error)
    if recipe is not None:
        problems += contradictions(raw, recipe)
    if problems or recipe is None:
        raise RecipeError("TL-RECIPE-INVALID", where=where, causes=problems, n=len(problems))
    return recipe, notes


def read_recipe(path: Path) -> tuple[Recipe, list[str]]:
    """Read a recipe file. Relative paths in it are made absolute against its folder."""
    if not path.is_file():
        raise RecipeError("TL-RECIPE-MISSING", where=str(path), path=path, near=nearby(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise RecipeError("TL-RECIPE-READ", where=str(path), error=os_words(error)) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        words = t("line {line} is not UTF-8; save the file as UTF-8", line=line)
        raise RecipeError("TL-RECIPE-YAML", where=str(path), error=words) from error
    raw = loads(text, str(path))
    try:
        recipe, notes = make_recipe({} if raw is None else raw, where=str(path), folder=path.resolve().parent)
    except RecipeError as error:
        causes = [*slips(text, str(path)), *error.causes]
        raise RecipeError(error.code, where=error.where, causes=causes, **{**error.facts, "n": len(causes)}) from None
    return anchored(recipe, path.resolve().parent), notes


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every key written out: what `recipe.yaml` in a run folder holds."""
    return dumps(recipe.model_dump(mode="json"))


def without_defaults(raw: dict[str, Any], keep: dict[str, Any], model: type[BaseModel] = Recipe) -> dict[str, Any]:
    """Drop what equals the default and was not just written, so that only what is meant can contradict."""
    out: dict[str, Any] = {}
    for key, setting in raw.items():
        info = model.model_fields.get(key)
        inner = info.annotation if info else None
        keep_inside = keep.get(key, {}) if isinstance(keep.get(key), dict) else {}
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(setting, dict):
            nested = without_defaults(setting, keep_inside, inner)
            if nested:
                out[key] = nested
        elif key in keep or info is None or setting != _as_list(info.get_default(call_default_factory=True)):
            out[key] = setting
    return out


def _as_list(setting: Any) -> Any:
    return list(setting) if isinstance(setting, tuple) else setting
