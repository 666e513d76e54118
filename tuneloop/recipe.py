"""The recipe: the one file that describes a run.

Strict: an unknown key, a wrong type and a contradiction are all reported together, with the nearest known key. The keys
of transformers, LLaMA-Factory, ms-swift and Axolotl are translated first, and said so (`aliases.py`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tuneloop.aliases import ALIASES, shown, translate
from tuneloop.errors import RecipeError
from tuneloop.language import t
from tuneloop.notation import dumps, loads
from tuneloop.sections import Recipe, TrainPart


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
    for name, cutoff in ((key, 0.75), (key.rsplit(".", 1)[-1], 0.7)):
        close = difflib.get_close_matches(name, list(known), 1, cutoff)
        if close:
            return known[close[0]]
    return ""


def contradictions(raw: dict[str, Any], recipe: Recipe) -> list[RecipeError]:
    """What cannot be meant together. A key that `raw` has not, or has with its default, is held against no other:
    a recipe written out by `dump` has them all."""
    train, plain = raw.get("train", {}), TrainPart()
    found: list[RecipeError] = []

    def meant(key: str) -> bool:
        return key in train and getattr(recipe.train, key) != getattr(plain, key)

    def clash(a: str, b: str) -> None:
        found.append(RecipeError("TL-RECIPE-CLASH", where=f"train.{a}", a=f"train.{a}", b=b))

    if meant("lora") and recipe.train.method != "lora":
        clash("lora", f"train.method: {recipe.train.method}")
    if meant("warmup_ratio") and meant("warmup_steps"):
        clash("warmup_ratio", "train.warmup_steps")
    for what in ("save", "eval", "logging"):
        strategy = getattr(recipe.train, f"{what}_strategy")
        if meant(f"{what}_steps") and strategy != "steps":
            clash(f"{what}_steps", f"train.{what}_strategy: {strategy}")
    micro = recipe.train.micro_batch_size
    if micro and micro > recipe.train.batch_size:
        clash("micro_batch_size", f"train.batch_size: {recipe.train.batch_size}")
    if micro and micro > 1 and not recipe.train.packing:
        clash("micro_batch_size", "train.packing: false")
    budget, length = recipe.train.token_budget, recipe.prepare.max_length
    if length > budget:
        found.append(RecipeError("TL-RECIPE-BUDGET", where="train.token_budget", budget=budget, length=length))
    return found


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
    "literal_error": lambda c: t("one of {choices}", choices=str(c["expected"]).replace("'", "")),
    "dict": lambda c: t("a section of its own, lines of key: value"),
    "model": lambda c: t("a section of its own, lines of key: value"),
    "value_error": lambda c: str(c["error"]),
}


def _problems(error: ValidationError) -> list[RecipeError]:
    """One problem a key: where a key may have several shapes, pydantic reports each that it has not."""
    found: list[RecipeError] = []
    needs: dict[str, list[str]] = {}
    gots: dict[str, str] = {}
    for e in error.errors(include_url=False):
        kind, loc = e["type"], [str(p) for p in e["loc"] if not re.fullmatch(r"(list|literal)\[.*\]", str(p))]
        if kind == "string_type" and len(loc) > 1 and loc[-1] == "str":
            loc.pop()
        where = ".".join(loc)
        if kind == "extra_forbidden":
            guess = nearest(where)
            code = "TL-RECIPE-KEY" if guess else "TL-RECIPE-KEY-FAR"
            found.append(RecipeError(code, where=where, key=where, guess=guess))
            continue
        need = NEEDS.get(kind) or NEEDS.get(kind.split("_")[0])
        needs.setdefault(where, []).append(need(e.get("ctx", {})) if need else e["msg"])
        gots[where] = t("nothing") if kind == "missing" else shown(e["input"])
    for where, texts in needs.items():
        need_one = " / ".join(dict.fromkeys(texts))
        found.append(RecipeError("TL-RECIPE-VALUE", where=where, got=gots[where], need=need_one))
    return found


def make_recipe(raw: Any, *, where: str = "recipe") -> tuple[Recipe, list[str]]:
    """A recipe from a plain dict, and the notes about translated keys. Raises TL-RECIPE-INVALID with every problem."""
    if not isinstance(raw, dict):
        raise RecipeError("TL-RECIPE-SHAPE", where=where, got=type(raw).__name__)
    raw, notes, problems = translate(raw)
    notes += _make_room(raw)
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


def read_recipe(path: Path) -> tuple[Recipe, list[str]]:
    """Read a recipe file. Relative paths in it are made absolute against its folder."""
    if not path.is_file():
        raise RecipeError("TL-RECIPE-MISSING", where=str(path), path=path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("TL-RECIPE-YAML", where=str(path), error=str(error)) from error
    raw = loads(text, str(path))
    recipe, notes = make_recipe({} if raw is None else raw, where=str(path))
    return anchored(recipe, path.resolve().parent), notes


def anchored(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its file paths made absolute; globs, hub ids and lists of prompts stay as they are."""

    def fix(value: Any) -> Any:
        return str(folder / Path(value).expanduser()) if isinstance(value, str) else value

    part = recipe.evaluate
    evaluate = part.model_copy(
        update={
            "show": fix(part.show),
            "probes": [p.model_copy(update={"prompts": fix(p.prompts)}) for p in part.probes],
        }
    )
    data = [d.model_copy(update={"path": fix(d.path)}) for d in recipe.data]
    model = recipe.model
    if model.name.startswith(("./", "../")):
        model = model.model_copy(update={"name": str((folder / model.name).resolve())})
    if model.template and model.template.endswith(".jinja"):
        model = model.model_copy(update={"template": fix(model.template)})
    return recipe.model_copy(update={"data": data, "evaluate": evaluate, "model": model})


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every key written out: what `recipe.yaml` in a run folder holds."""
    return dumps(recipe.model_dump(mode="json"))


def changed(recipe: Recipe, assignments: list[str]) -> Recipe:
    """The recipe with `key=value` assignments of the command line applied (values are YAML).

    Raises TL-RECIPE-INVALID as `make_recipe` does.
    """
    raw = recipe.model_dump(mode="json")
    written: dict[str, Any] = {}
    for assignment in assignments:
        key, sep, text = assignment.partition("=")
        if not sep or not key:
            raise RecipeError("TL-RECIPE-ASSIGN", where=assignment, got=assignment)
        _put(written, key.strip(), loads(text, assignment), assignment)
    written, _, problems = translate(written)
    if problems:
        raise RecipeError("TL-RECIPE-INVALID", where="--set", causes=problems, n=len(problems))
    _merge(raw, written)
    recipe, _ = make_recipe(_without_defaults(raw, written), where="--set")
    return recipe


def _put(target: dict[str, Any], dotted: str, value: Any, assignment: str) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        if parent == "model" and isinstance(target.get(parent), str):  # `model=NAME` before `model.dtype=…`
            target[parent] = {"name": target[parent]}
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise RecipeError("TL-RECIPE-ASSIGN", where=assignment, got=assignment)
    target[leaf] = value


def _merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _without_defaults(raw: dict[str, Any], keep: dict[str, Any], model: type[BaseModel] = Recipe) -> dict[str, Any]:
    """Drop what equals the default and was not just written, so that only what is meant can contradict."""
    out: dict[str, Any] = {}
    for key, value in raw.items():
        info = model.model_fields.get(key)
        inner = info.annotation if info else None
        kept = keep.get(key, {}) if isinstance(keep.get(key), dict) else {}
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, dict):
            nested = _without_defaults(value, kept, inner)
            if nested:
                out[key] = nested
        elif key in keep or info is None or value != _plain(info.get_default(call_default_factory=True)):
            out[key] = value
    return out


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
