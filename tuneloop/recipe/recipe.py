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
from tuneloop.base.language import t
from tuneloop.recipe.defaults import FOLLOWS_FROM, filled, followers
from tuneloop.recipe.peers.account import shown
from tuneloop.recipe.peers.translate import ALIASES, CHINESE, translate
from tuneloop.recipe.schema import AugmentPart, PreparePart, Recipe, TrainPart
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


def contradictions(raw: dict[str, Any], recipe: Recipe) -> list[RecipeError]:
    """What cannot be meant together. A key that `raw` has not, or has with its default, is held against no other:
    a recipe written out by `dump` has them all."""
    return [*_of_train(raw.get("train", {}), recipe), *_of_prepare(recipe), *_of_augment(recipe), *_of_data(recipe)]


def _clash(a: str, b: str) -> RecipeError:
    return RecipeError("TL-RECIPE-CLASH", where=a, b=b)


ONLY_FOR = {
    "lora": {"lora", "qlora"}, "qlora": {"qlora"}, "freeze": {"freeze"}, "virtual": {"ptuning_v2", "prompt_tuning"},
}  # fmt: skip
"""Section of train -> the methods it belongs to."""
ONLY_IN = {"classify": {"classify", "classify_prompt"}, "prefer": {"prefer"}}
"""Section of train -> the tasks it belongs to; with auto the rows decide."""


def _of_method(meant: Callable[[str], bool], part: TrainPart) -> Iterator[RecipeError]:
    for key, methods in ONLY_FOR.items():
        if meant(key) and part.method not in methods:
            yield _clash(f"train.{key}", f"train.method: {part.method}")
    for key, tasks in ONLY_IN.items():
        if meant(key) and part.task not in {"auto", *tasks}:
            yield _clash(f"train.{key}", f"train.task: {part.task}")
    if part.virtual.projection and part.method == "prompt_tuning":
        yield _clash("train.virtual.projection", "train.method: prompt_tuning")
    if part.prefer.smoothing and part.prefer.loss not in {"auto", "dpo"}:
        yield _clash("train.prefer.smoothing", f"train.prefer.loss: {part.prefer.loss}")
    for key in ("early_stopping", "keep_best", "sample_answers"):
        if getattr(part, key) and part.eval_strategy == "no":
            yield _clash(f"train.{key}", "train.eval_strategy: no")


def _of_train(train: dict[str, Any], recipe: Recipe) -> Iterator[RecipeError]:
    plain, part = TrainPart(), recipe.train

    def meant(key: str) -> bool:
        return key in train and getattr(part, key) != getattr(plain, key)

    yield from _of_method(meant, part)
    if meant("warmup_ratio") and meant("warmup_steps"):
        yield _clash("train.warmup_ratio", "train.warmup_steps")
    for what in ("save", "eval", "logging"):
        strategy = getattr(part, f"{what}_strategy")
        if meant(f"{what}_steps") and strategy != "steps":
            yield _clash(f"train.{what}_steps", f"train.{what}_strategy: {strategy}")
    micro, budget, length = part.micro_batch_size, part.token_budget, recipe.prepare.max_length
    if micro and micro > part.batch_size:
        yield _clash("train.micro_batch_size", f"train.batch_size: {part.batch_size}")
    elif micro and micro > 1 and not part.packing:
        yield _clash("train.micro_batch_size", "train.packing: false")
    if length != "auto" and length > budget:
        yield RecipeError("TL-RECIPE-BUDGET", where="train.token_budget", budget=budget, length=length)


def _of_prepare(recipe: Recipe) -> Iterator[RecipeError]:
    part, plain = recipe.prepare, PreparePart()
    for key in ("turns", "tokens"):
        limits = getattr(part, key)
        if limits and not 0 <= limits[0] <= limits[1]:
            need = t("[least, most], the smaller number first")
            yield RecipeError("TL-RECIPE-VALUE", where=f"prepare.{key}", got=shown(list(limits)), need=need)
    most = part.max_length
    if part.tokens and most != "auto" and most < part.tokens[0] <= part.tokens[1]:
        yield _clash("prepare.tokens", f"prepare.max_length: {most}")
    for key, switch in (("pii_kinds", "pii"), ("lexicon_files", "lexicon")):
        if getattr(part.clean, key) and getattr(part.clean, switch) == "off":
            yield _clash(f"prepare.clean.{key}", f"prepare.clean.{switch}: off")
    if part.overlap != plain.overlap and part.too_long != "split":
        yield _clash("prepare.overlap", f"prepare.too_long: {part.too_long}")
    elif most != "auto" and part.overlap >= most and part.too_long == "split":
        need = t("a number below {limit}", limit=f"prepare.max_length: {most}")
        yield RecipeError("TL-RECIPE-VALUE", where="prepare.overlap", got=str(part.overlap), need=need)
    if max(part.validation, part.test) < 1 <= part.validation + part.test:
        yield _clash("prepare.validation", f"prepare.test: {part.test:g}")


def _of_augment(recipe: Recipe) -> Iterator[RecipeError]:
    part, plain = recipe.prepare.augment, AugmentPart()
    here, methods = "prepare.augment", set(part.methods)
    shown_methods = f"{here}.methods: {shown(part.methods)}"
    if "back_translation" in methods and not part.endpoint and not part.translator:
        need = t("beside it {one} or {other}", one=f"{here}.endpoint", other=f"{here}.translator")
        yield RecipeError("TL-RECIPE-VALUE", where=f"{here}.methods", got="back_translation", need=need)
    if part.endpoint_model and not part.endpoint:
        yield _clash(f"{here}.endpoint_model", f"{here}.endpoint: null")
    if part.translator and part.endpoint and not part.endpoint_model:
        yield _clash(f"{here}.translator", f"{here}.endpoint")
    used = {
        "synonyms_file": {"synonyms"}, "translator": {"back_translation"}, "via": {"back_translation"},
        "nonsense": {"synonyms", "back_translation"},
        "endpoint": {"back_translation", "follow_up", "branch"} if part.endpoint_model else {"back_translation"},
    }  # fmt: skip
    for key, by in used.items():
        if getattr(part, key) != getattr(plain, key) and not by & methods:
            yield _clash(f"{here}.{key}", shown_methods)


def _of_data(recipe: Recipe) -> Iterator[RecipeError]:
    for n, file in enumerate(recipe.data):
        if file.repeat > 1 and file.split in {"validation", "test"}:
            yield _clash(f"data.{n}.repeat", f"data.{n}.split: {file.split}")
        bounds = re.fullmatch(r"\[\s*(\d{0,18})\s*:\s*(\d{1,18})\s*\]", file.rows or "")
        if bounds and file.sample and file.sample > int(bounds[2]) - int(bounds[1] or 0):
            yield _clash(f"data.{n}.sample", f'data.{n}.rows: "{file.rows}"')


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


SHAPE = re.compile(r"(list|literal)\[.*\]|constrained-int")
"""What pydantic adds to a key to say which of its shapes it tried."""


def _problems(error: ValidationError) -> list[RecipeError]:
    """One problem a key: where a key may have several shapes, pydantic reports each that it has not."""
    found: list[RecipeError] = []
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
            found.append(RecipeError(code, where=where, key=where, guess=guess))
            continue
        need = NEEDS.get(kind) or NEEDS.get(kind.split("_")[0])
        needs.setdefault(where, []).append(need(e.get("ctx", {})) if need else e["msg"])
        gots[where] = t("nothing") if kind == "missing" else shown(e["input"])
    for where, texts in needs.items():
        need_one = " / ".join(dict.fromkeys(texts))
        found.append(RecipeError("TL-RECIPE-VALUE", where=where, got=gots[where], need=need_one))
    return found


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


def is_beside(name: str) -> bool:
    """Whether the name of a model or adapter is a path from the recipe's own folder: it begins with ./ or ../, or so
    with Windows' backslash."""
    return name.startswith(("./", "../", ".\\", "..\\"))


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
    elsewhere = ("hub:", "modelscope:")
    data = [
        d if d.path == "-" or d.path.startswith(elsewhere) else d.model_copy(update={"path": fix(d.path)})
        for d in recipe.data
    ]
    model = recipe.model
    if is_beside(model.name):
        model = model.model_copy(update={"name": str((folder / model.name).resolve())})
    if model.template and model.template.endswith(".jinja"):
        model = model.model_copy(update={"template": fix(model.template)})
    lists = [fix(path) for path in recipe.prepare.clean.lexicon_files]
    clean = recipe.prepare.clean.model_copy(update={"lexicon_files": lists})
    prepare = recipe.prepare.model_copy(update={"augment": _anchored(recipe.prepare.augment, folder), "clean": clean})
    named = {
        key: [str((folder / a).resolve()) if is_beside(a) else a for a in adapters]
        for key, adapters in (("adapter", filter(None, [recipe.train.adapter])), ("merge", recipe.train.merge))
    }
    train = recipe.train.model_copy(update={"adapter": next(iter(named["adapter"]), None), "merge": named["merge"]})
    return recipe.model_copy(
        update={"data": data, "evaluate": evaluate, "model": model, "prepare": prepare, "train": train}
    )


def _anchored(part: AugmentPart, folder: Path) -> AugmentPart:
    table = part.synonyms_file
    models = [str((folder / m).resolve()) if is_beside(m) else m for m in part.translator]
    return part.model_copy(
        update={"synonyms_file": table and str(folder / Path(table).expanduser()), "translator": models}
    )


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every key written out: what `recipe.yaml` in a run folder holds."""
    return dumps(recipe.model_dump(mode="json"))


def changed(recipe: Recipe, assignments: list[str]) -> Recipe:
    """The recipe with `key=value` assignments of the command line applied (values are YAML).

    Raises TL-RECIPE-INVALID as `make_recipe` does.
    """
    return changed_and_told(recipe, assignments)[0]


def changed_and_told(recipe: Recipe, assignments: list[str]) -> tuple[Recipe, list[str]]:
    """`changed`, and the notes about translated keys and about assignments without effect."""
    raw = recipe.model_dump(mode="json")
    written: dict[str, Any] = {}
    for assignment in assignments:
        key, sep, text = assignment.partition("=")
        if not sep or not key.strip():
            guess = nearest(key.strip()) or "train.epochs"
            raise RecipeError("TL-RECIPE-ASSIGN", where=assignment, got=assignment, guess=guess)
        value = loads(text, assignment)
        if isinstance(value, dict) and any(one is None and ":" in str(name) for name, one in value.items()):
            need = t("a blank behind each colon: {example}", example=re.sub(r":(?=\S)", ": ", text))
            raise RecipeError("TL-RECIPE-VALUE", where=assignment, got=text, need=need)
        _put(written, raw, key.strip(), value, assignment)
    written, notes, problems = translate(written)
    if problems:
        raise RecipeError("TL-RECIPE-INVALID", where="--set", causes=problems, n=len(problems))
    _unset(raw, written)
    meant = _meant(raw, written)
    _merge(raw, written)
    new, more = make_recipe(_without_defaults(raw, meant), where="--set")
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
            for key, value in followers(raw, section).items():
                if raw[section].get(key) == value:
                    del raw[section][key]


def _meant(raw: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """What was just written, and what stands in the place of a value that would follow from others."""
    kept = {s: dict.fromkeys(followers(raw, s).keys() & raw.get(s, {}).keys()) for s in FOLLOWS_FROM}
    if any(file.get("split") == "validation" for file in raw.get("data") or ()):  # a share beside it was asked for
        kept["prepare"] = {**kept.get("prepare", {}), "validation": None}
    return {**kept, **{k: {**kept.get(k, {}), **v} if isinstance(v, dict) else v for k, v in written.items()}}


def _put(target: dict[str, Any], base: Any, dotted: str, value: Any, assignment: str) -> None:
    """Write `value` below a dotted key of `target`, over the recipe `base`: `data[0].columns` changes one item of its
    list, `data[].columns` each of them."""
    head, _, rest = dotted.partition(".")
    if item := re.fullmatch(r"(\w+)\[(\d*)\]", head):
        for one in _items(target, base, item[1], item[2], assignment):
            if rest:
                _put(one, one, rest, value, assignment)
            else:
                one.update(value if isinstance(value, dict) else {"path": value})
        return
    if not rest:
        target[head] = value
        return
    if head == "model" and isinstance(target.get(head), str):  # `model=NAME` before `model.dtype=…`
        target[head] = {"name": target[head]}
    inner = target.setdefault(head, {})
    if not isinstance(inner, dict):
        raise RecipeError("TL-RECIPE-ASSIGN", where=assignment, got=assignment, guess="train.epochs")
    _put(inner, base.get(head) if isinstance(base, dict) else None, rest, value, assignment)


def _items(target: dict[str, Any], base: Any, name: str, number: str, assignment: str) -> list[dict[str, Any]]:
    """The sections of a list that an assignment means, in a list of `target`'s own: one by its number, or all.

    Raises TL-RECIPE-ITEM where the list has none of this number.
    """
    found = target[name] if name in target else base.get(name) if isinstance(base, dict) else None
    found = [] if found is None else found if isinstance(found, list) else [found]
    items = [dict(one) if isinstance(one, dict) else {"path": one} for one in found]
    wanted = items[int(number) : int(number) + 1] if number else items
    if not wanted:
        raise RecipeError("TL-RECIPE-ITEM", where=assignment, list=name, n=len(items))
    target[name] = items
    return wanted


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
