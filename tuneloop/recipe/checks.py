"""What a recipe cannot mean together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

from tuneloop.base.errors import RecipeError
from tuneloop.base.language import t
from tuneloop.recipe.choices import LOSS_CHOICES, METHOD_CHOICES, METHOD_SECTIONS, TASK_CHOICES, TASK_SECTIONS
from tuneloop.recipe.peers.account import shown
from tuneloop.recipe.schema import AugmentPart, PreparePart, Recipe, TrainPart


def contradictions(raw: dict[str, Any], recipe: Recipe) -> list[RecipeError]:
    """What cannot be meant together. A key that `raw` has not, or has with its default, is held against no other:
    a recipe written out by `dump` has them all."""
    train = _of_train(raw.get("train", {}), recipe)
    return [
        *train,
        *_of_prepare(recipe),
        *_of_augment(recipe),
        *_of_data(recipe),
        *_of_compare(recipe),
        *_of_watch(recipe),
    ]


def _clash(a: str, b: str) -> RecipeError:
    return RecipeError("TL-RECIPE-CLASH", where=a, b=b)


def _of_method(meant: Callable[[str], bool], part: TrainPart) -> Iterator[RecipeError]:
    method = METHOD_CHOICES[part.method]
    for key in METHOD_SECTIONS:
        if meant(key) and key not in method.sections:
            yield _clash(f"train.{key}", f"train.method: {part.method}")
    for key in TASK_SECTIONS:  # with auto the rows decide
        if meant(key) and part.task != "auto" and key not in TASK_CHOICES[part.task].sections:
            yield _clash(f"train.{key}", f"train.task: {part.task}")
    for key in method.without:
        if attrgetter(key)(part) != attrgetter(key)(TrainPart()):
            yield _clash(f"train.{key}", f"train.method: {part.method}")
    if part.prefer.smoothing and part.prefer.loss != "auto" and not LOSS_CHOICES[part.prefer.loss].smoothing:
        yield _clash("train.prefer.smoothing", f"train.prefer.loss: {part.prefer.loss}")
    for key in ("early_stopping", "keep_best", "sample_answers"):
        if getattr(part, key) and part.eval_strategy == "no":
            yield _clash(f"train.{key}", "train.eval_strategy: no")


def _of_train(train: dict[str, Any], recipe: Recipe) -> Iterator[RecipeError]:
    defaults, part = TrainPart(), recipe.train

    def meant(key: str) -> bool:
        return key in train and getattr(part, key) != getattr(defaults, key)

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
    part, defaults = recipe.prepare, PreparePart()
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
    if part.overlap != defaults.overlap and part.too_long != "split":
        yield _clash("prepare.overlap", f"prepare.too_long: {part.too_long}")
    elif most != "auto" and part.overlap >= most and part.too_long == "split":
        need = t("a number below {limit}", limit=f"prepare.max_length: {most}")
        yield RecipeError("TL-RECIPE-VALUE", where="prepare.overlap", got=str(part.overlap), need=need)
    if max(part.validation, part.test) < 1 <= part.validation + part.test:
        yield _clash("prepare.validation", f"prepare.test: {part.test:g}")


def _of_augment(recipe: Recipe) -> Iterator[RecipeError]:
    part, defaults = recipe.prepare.augment, AugmentPart()
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
        if getattr(part, key) != getattr(defaults, key) and not by & methods:
            yield _clash(f"{here}.{key}", shown_methods)


def _of_data(recipe: Recipe) -> Iterator[RecipeError]:
    for n, file in enumerate(recipe.data):
        if file.repeat > 1 and file.split in {"validation", "test"}:
            yield _clash(f"data.{n}.repeat", f"data.{n}.split: {file.split}")
        bounds = re.fullmatch(r"\[\s*(\d{0,18})\s*:\s*(\d{1,18})\s*\]", file.rows or "")
        if bounds and file.sample and file.sample > int(bounds[2]) - int(bounds[1] or 0):
            yield _clash(f"data.{n}.sample", f'data.{n}.rows: "{file.rows}"')


def _of_compare(recipe: Recipe) -> Iterator[RecipeError]:
    names = shown(list(recipe.compare.variants))
    for n, claim in enumerate(recipe.compare.claims):
        for key in ("variant", "against"):
            if (name := getattr(claim, key)) not in recipe.compare.variants:
                need = t("one of {choices}", choices=names)
                yield RecipeError("TL-RECIPE-VALUE", where=f"compare.claims.{n}.{key}", got=name, need=need)


def _of_watch(recipe: Recipe) -> Iterator[RecipeError]:
    rules = recipe.watch.rules
    pairs = {
        "memory.bad": (rules.memory.bad, "memory.watch", rules.memory.watch),
        "exploding.alarm": (rules.exploding.alarm, "exploding.high", rules.exploding.high),
    }
    for key, (worse, other, limit) in pairs.items():
        if worse < limit:
            need = t("a number of at least {limit}", limit=f"watch.rules.{other}: {limit:g}")
            yield RecipeError("TL-RECIPE-VALUE", where=f"watch.rules.{key}", got=f"{worse:g}", need=need)
