"""Values that other tools write, read as the recipe's own: `bf16: true` is a dtype, `lora_target: all` every layer.

A converter takes a value and gives the recipe's, or NOTHING where nothing was asked for; else it raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tuneloop.language import t

Convert = Callable[[Any], Any]

NOTHING = object()  # what a converter returns for "switched off": nothing was said


class Wrong(Exception):
    """The value cannot be read; the text says what is needed."""


class Cannot(Exception):
    """The value asks for something that tuneloop cannot do: its name, and what to do instead."""

    def __init__(self, feature: str, instead: str) -> None:
        super().__init__(instead)
        self.feature = feature


class Dropped(Exception):
    """The value has no meaning here; the text says why."""


def off(value: Any) -> bool:
    """Is this the value of something that is not wanted?

    >>> [off(v) for v in (None, False, 0, "", "none", [], "zero2", 5)]
    [True, True, True, True, True, True, False, False]
    """
    if isinstance(value, str):
        return value.strip().lower() in {"", "none", "no", "false", "null", "off", "0"}
    return value is None or value in (False, [], {})


def on(value: Any) -> bool:
    """Is this the value of a switch that is on?"""
    return value is True or (isinstance(value, str) and value.strip().lower() in {"true", "yes", "on", "1"})


def same(value: Any) -> Any:
    """The value as it stands; the recipe judges it."""
    return value


def together(value: Any) -> Any:
    """Marks the keys that `aliases.py` reads several at a time, e.g. per-device size and accumulation steps."""
    return value


def whole(value: Any) -> int:
    """A whole number of at least 1, also written as text or as 2.0; raises Wrong.

    >>> whole("4"), whole(2.0)
    (4, 2)
    """
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Wrong(t("a whole number of at least 1"))
    return value


def number(value: Any) -> float:
    """A number, also written as text; raises Wrong."""
    try:
        return value if isinstance(value, int) and not isinstance(value, bool) else float(value)
    except (TypeError, ValueError) as error:
        raise Wrong(t("a number")) from error


def flag(meaning: Any, auto: Any = NOTHING) -> Convert:
    """A switch that stands for a value: `bf16: true` means bfloat16, `bf16: false` says nothing."""

    def convert(value: Any) -> Any:
        if off(value):
            return NOTHING
        if on(value):
            return meaning
        if value == "auto" and auto is not NOTHING:
            return auto
        raise Wrong(t("true or false"))

    return convert


def either(value: Any) -> bool:
    """A switch, also as `unsloth` or `offload` for a kind of recomputing; raises Wrong."""
    if on(value) or (isinstance(value, str) and "offload" in value) or value == "unsloth":
        return True
    if off(value):
        return False
    raise Wrong(t("true or false"))


def dtype(value: Any) -> str:
    """The type of the weights under any of its names; raises Wrong.

    >>> dtype("torch.bfloat16"), dtype("fp16")
    ('bfloat16', 'float16')
    """
    short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
    name = value.strip().lower().removeprefix("torch.") if isinstance(value, str) else ""
    name = short.get(name, name)
    if name not in {"auto", "bfloat16", "float16", "float32"}:
        raise Wrong(t("one of {choices}", choices="auto, bfloat16, float16, float32"))
    return name


def targets(value: Any) -> Any:
    """Module names as a list or a text; raises Wrong, or Cannot for a regular expression.

    >>> targets("q_proj, v_proj"), targets(["all-linear"]), targets("all")
    (['q_proj', 'v_proj'], 'all-linear', 'all-linear')
    """
    names = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise Wrong(t("all-linear, or a list of module names"))
    if any(n.lower().replace("_", "-") in {"all", "all-linear"} for n in names):
        return "all-linear"
    if not all(re.fullmatch(r"[\w.-]+", n) for n in names):
        raise Cannot(t("choosing modules by a regular expression"), t("list the module names in train.lora.targets"))
    return names


def method(value: Any) -> str:
    """lora or full; raises Cannot for the methods of other tools."""
    name = value.strip().lower() if isinstance(value, str) else "full" if off(value) else ""
    if name in {"lora", "full"}:
        return name
    known = "qlora freeze oft longlora adalora llamapro adapter vera boft fourierft reft bone prefix ia3 llama-adapter"
    if name in known.split():
        raise Cannot(t("the method {name}", name=name), t("train.method is lora or full"))
    raise Wrong(t("one of {choices}", choices="lora, full"))


def schedule(value: Any) -> str:
    """The learning rate's course; all of them warm up here."""
    name = value.strip().lower() if isinstance(value, str) else ""
    name = "constant" if name == "constant_with_warmup" else name
    if name not in {"cosine", "linear", "constant"}:
        known = t("train.schedule is cosine, linear or constant")
        raise Cannot(t("the schedule {name}", name=name), known) if name else Wrong(known)
    return name


def strategy(value: Any) -> Any:
    """When something is done: steps, epoch or no."""
    return "no" if value is False else value  # YAML reads a bare no as false


def times_an_epoch(value: Any) -> str:
    """Axolotl's number of times an epoch."""
    return "no" if number(value) == 0 else "epoch"


def max_steps(value: Any) -> Any:
    """-1 elsewhere means: as the epochs say."""
    return NOTHING if number(value) <= 0 else value


def system(value: Any) -> Any:
    """A system prompt; ms-swift takes a file as well, which raises Wrong."""
    if isinstance(value, str) and value.endswith(".txt"):
        raise Wrong(t("the system prompt itself, not a file"))
    return value


def template(value: Any) -> Any:
    """A template that can be named here; a name of another tool's list raises Dropped."""
    if isinstance(value, str) and (value == "chatml" or value.endswith(".jinja")):
        return value
    if isinstance(value, str) and "{" in value:
        raise Cannot(
            t("a template inside the recipe"), t("save the template as a .jinja file and name that in model.template")
        )
    raise Dropped(t("the tokenizer's own chat template is used; model.template names another one"))


def exact(value: Any) -> str:
    """A switch for exact deduplication."""
    return "exact" if either(value) else "off"


CUTS = {
    "delete": "reject", "drop": "reject", "raise": "reject", "left": "cut_left", "right": "cut_right",
    "truncate": "cut_right", "keep_start": "cut_right", "keep_end": "cut_left", "split": "split",
}  # fmt: skip


def too_long(value: Any) -> Any:
    """What ms-swift, Axolotl and TRL do with a longer dialogue; `left` cuts its beginning off.

    >>> too_long("left"), too_long("drop")
    ('cut_left', 'reject')
    """
    name = value.strip().lower() if isinstance(value, str) else ""
    if off(value):
        return NOTHING
    if name not in CUTS:
        raise Wrong(t("one of {choices}", choices=", ".join(CUTS)))
    return CUTS[name]
