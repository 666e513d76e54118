"""Values that other tools write, read as the recipe's own: `bf16: true` is a dtype, `lora_target: all` every layer.

A converter takes a value and gives the recipe's, or NOTHING where nothing was asked for; else it raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tuneloop.base.language import t
from tuneloop.recipe.choices import LOSS_CHOICES, METHOD_CHOICES, TASK_CHOICES

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


def off(setting: Any) -> bool:
    """Is this the value of something that is not wanted?

    >>> [off(v) for v in (None, False, 0, "", "none", [], "zero2", 5)]
    [True, True, True, True, True, True, False, False]
    """
    if isinstance(setting, str):
        return setting.strip().lower() in {"", "none", "no", "false", "null", "off", "0"}
    return setting is None or setting in (False, [], {})


def on(setting: Any) -> bool:
    """Is this the value of a switch that is on?"""
    return setting is True or (isinstance(setting, str) and setting.strip().lower() in {"true", "yes", "on", "1"})


def same(setting: Any) -> Any:
    """The value as it stands; the recipe judges it."""
    return setting


def together(setting: Any) -> Any:
    """Marks the keys that `translate.py` reads several at a time, e.g. per-device size and accumulation steps."""
    return setting


def integer(setting: Any) -> int:
    """A whole number of at least 1, also written as text or as 2.0; raises Wrong.

    >>> integer("4"), integer(2.0)
    (4, 2)
    """
    if isinstance(setting, str) and setting.strip().isdecimal() and len(setting) < 20:
        setting = int(setting)
    if isinstance(setting, float) and setting.is_integer():
        setting = int(setting)
    if isinstance(setting, bool) or not isinstance(setting, int) or setting < 1:
        raise Wrong(t("a whole number of at least 1"))
    return setting


def number(setting: Any) -> float:
    """A number, also written as text; raises Wrong."""
    try:
        return setting if isinstance(setting, int) and not isinstance(setting, bool) else float(setting)
    except (TypeError, ValueError) as error:
        raise Wrong(t("a number")) from error


def flag(meaning: Any, auto: Any = NOTHING) -> Convert:
    """A switch that stands for a value: `bf16: true` means bfloat16, `bf16: false` says nothing."""

    def convert(setting: Any) -> Any:
        if off(setting):
            return NOTHING
        if on(setting):
            return meaning
        if setting == "auto" and auto is not NOTHING:
            return auto
        raise Wrong(t("true or false"))

    return convert


def either(setting: Any) -> bool:
    """A switch, also as `unsloth` or `offload` for a kind of recomputing; raises Wrong."""
    if on(setting) or (isinstance(setting, str) and "offload" in setting) or setting == "unsloth":
        return True
    if off(setting):
        return False
    raise Wrong(t("true or false"))


def dtype(setting: Any) -> str:
    """The type of the weights under any of its names; raises Wrong.

    >>> dtype("torch.bfloat16"), dtype("fp16")
    ('bfloat16', 'float16')
    """
    short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
    name = setting.strip().lower().removeprefix("torch.") if isinstance(setting, str) else ""
    name = short.get(name, name)
    if name not in {"auto", "bfloat16", "float16", "float32"}:
        raise Wrong(t("one of {choices}", choices="auto, bfloat16, float16, float32"))
    return name


def targets(setting: Any) -> Any:
    """Module names as a list or a text; raises Wrong, or Cannot for a regular expression.

    >>> targets("q_proj, v_proj"), targets(["all-linear"]), targets("all")
    (['q_proj', 'v_proj'], 'all-linear', 'all-linear')
    """
    names = setting.replace(",", " ").split() if isinstance(setting, str) else setting
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise Wrong(t("all-linear, or a list of module names"))
    if any(n.lower().replace("_", "-") in {"all", "all-linear"} for n in names):
        return "all-linear"
    if not all(re.fullmatch(r"[\w.-]+", n) for n in names):
        raise Cannot(t("choosing modules by a regular expression"), t("list the module names in train.lora.targets"))
    return names


METHODS = {alias: name for name, row in METHOD_CHOICES.items() for alias in (name, *row.aliases)}


def method(setting: Any) -> str:
    """The method under any of its names; raises Cannot for those that other tools alone have.

    >>> method("LORA"), method("PREFIX_TUNING"), method(None)
    ('lora', 'ptuning_v2', 'full')
    """
    name = setting.strip().lower().replace("-", "_") if isinstance(setting, str) else "full" if off(setting) else ""
    if name in METHODS:
        return METHODS[name]
    known = "oft longlora adalora llamapro adapter vera boft fourierft reft bone ia3 llama_adapter p_tuning loha lokr"
    choices = ", ".join(METHOD_CHOICES)
    if name in known.split():
        raise Cannot(t("the method {name}", name=name), t("train.method is one of {choices}", choices=choices))
    raise Wrong(t("one of {choices}", choices=choices))


USUAL_ADAMW = {"adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused"}
OPTIMIZERS = {
    "adamw_8bit": "adamw_8bit", "adamw_bnb_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit",
    "paged_adamw": "paged_adamw", "paged_adamw_32bit": "paged_adamw", "adafactor": "adafactor", "sgd": "sgd",
}  # fmt: skip


def optimizer(setting: Any) -> Any:
    """An optimizer under the names of transformers and bitsandbytes; the usual AdamW says nothing.

    >>> optimizer("adamw_bnb_8bit"), optimizer("paged_adamw_32bit"), optimizer("adamw_torch_fused") is NOTHING
    ('adamw_8bit', 'paged_adamw', True)
    """
    name = setting.strip().lower() if isinstance(setting, str) else ""
    if name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if off(setting) or name in USUAL_ADAMW:
        return NOTHING
    if "adamw" in name and not any(other in name for other in ("galore", "apollo", "bit", "muon")):
        raise Dropped(t("the optimizer is AdamW in full precision"))
    choices = "adamw, adamw_8bit, paged_adamw_8bit, paged_adamw, adafactor, sgd"
    raise Cannot(t("the optimizer {name}", name=name or "?"), t("train.optimizer is one of {choices}", choices=choices))


def lora_init(setting: Any) -> Any:
    """How adapters begin; `true` is the usual way.

    >>> lora_init("pissa_niter_16"), lora_init("gaussian"), lora_init(True) is NOTHING
    ('pissa', 'gaussian', True)
    """
    name = setting.strip().lower() if isinstance(setting, str) else ""
    if setting is None or on(setting) or name in {"default", "kaiming"}:
        return NOTHING
    if name.startswith("pissa_niter_"):
        return "pissa"
    if name in {"gaussian", "pissa", "olora", "orthogonal"}:
        return name
    choices = "default, gaussian, pissa, olora, orthogonal"
    raise Cannot(t("this start of the adapters"), t("train.lora.init is one of {choices}", choices=choices))


def wanted(setting: Any) -> Any:
    """The value, or NOTHING for one that switches off."""
    return NOTHING if off(setting) else setting


def amount(setting: Any) -> Any:
    """A number, or NOTHING for 0 and other values that switch off; raises Wrong."""
    return NOTHING if off(setting) else number(setting)


def modules(setting: Any) -> Any:
    """Module names as a list, or a text with commas.

    >>> modules("embed_tokens,lm_head"), modules(["embed_tokens"]), modules([]) is NOTHING
    (['embed_tokens', 'lm_head'], ['embed_tokens'], True)
    """
    if off(setting):
        return NOTHING
    names = setting.replace(",", " ").split() if isinstance(setting, str) else setting
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise Wrong(t("a list of module names"))
    return names


def last_blocks(setting: Any) -> Any:
    """How many of the last blocks are trained; a negative number counts the first ones elsewhere."""
    if isinstance(number(setting), int) and setting < 0:
        raise Cannot(t("training the first blocks"), t("train.freeze.layers counts the last ones"))
    return setting


def bits(setting: Any) -> Any:
    """4 or 8 bits as the name of a form; raises Cannot for others.

    >>> bits(4), bits("8"), bits(None) is NOTHING
    ('nf4', 'int8', True)
    """
    if off(setting):
        return NOTHING
    number_ = integer(setting)
    if number_ not in {4, 8}:
        raise Cannot(t("weights of {n} bits", n=number_), t("train.qlora.bits is nf4 or int8"))
    return {4: "nf4", 8: "int8"}[number_]


def adapters(setting: Any) -> Any:
    """Folders of adapters, as a list or a text with commas; raises Wrong.

    >>> adapters("a, b"), adapters(["a"]), adapters([]) is NOTHING
    (['a', 'b'], ['a'], True)
    """
    if off(setting):
        return NOTHING
    names = [n.strip() for n in setting.split(",")] if isinstance(setting, str) else setting
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise Wrong(t("the path of an adapter, or a list of them"))
    return names


PREFERENCES = {alias: name for name, row in LOSS_CHOICES.items() for alias in (name, *row.aliases)}


def preference(setting: Any) -> Any:
    """A preference loss under the names of TRL, LLaMA-Factory and ms-swift; `nll` says nothing.

    >>> preference("sigmoid"), preference("simpo"), preference("nll") is NOTHING
    ('dpo', 'simpo', True)
    """
    setting = setting[0] if isinstance(setting, list) and len(setting) == 1 else setting
    name = setting.strip().lower() if isinstance(setting, str) else ""
    if off(setting) or name == "nll":
        return NOTHING
    if name in PREFERENCES:
        return PREFERENCES[name]
    choices = ", ".join(LOSS_CHOICES)
    raise Cannot(t("the loss {name}", name=name or "?"), t("train.prefer.loss is one of {choices}", choices=choices))


TASKS = {loss: (name, loss) for name, row in TASK_CHOICES.items() for loss in row.losses}
TASKS |= {alias: (name, "") for name, row in TASK_CHOICES.items() for alias in (name, *row.aliases)}
"""Name of a task or stage -> the task, and the loss that it says; "" for the usual one."""


def task(setting: Any) -> Any:
    """What is learned, and the loss that this says: a stage, ms-swift's rlhf_type, Axolotl's rl, PEFT's task_type.

    >>> task("dpo"), task("pt"), task("SEQ_CLS"), task("sft") is NOTHING
    (('prefer', ''), ('text', ''), ('classify', ''), True)
    """
    name = setting.strip().lower() if isinstance(setting, str) else ""
    if off(setting) or name in {"sft", "causal_lm", "auto"}:
        return NOTHING
    if name in TASKS:
        return TASKS[name]
    choices = ", ".join(TASK_CHOICES)
    raise Cannot(t("the task {name}", name=name or "?"), t("train.task is one of {choices}", choices=choices))


def schedule(setting: Any) -> str:
    """The learning rate's course; all of them warm up here."""
    name = setting.strip().lower() if isinstance(setting, str) else ""
    name = "constant" if name == "constant_with_warmup" else name
    if name not in {"cosine", "linear", "constant"}:
        known = t("train.schedule is cosine, linear or constant")
        raise Cannot(t("the schedule {name}", name=name), known) if name else Wrong(known)
    return name


def strategy(setting: Any) -> Any:
    """When something is done: steps, epoch or no."""
    return "no" if setting is False else setting  # YAML reads a bare no as false


def times_an_epoch(setting: Any) -> str:
    """Axolotl's number of times an epoch."""
    return "no" if number(setting) == 0 else "epoch"


def max_steps(setting: Any) -> Any:
    """-1 elsewhere means: as the epochs say."""
    return NOTHING if number(setting) <= 0 else setting


def system(setting: Any) -> Any:
    """A system prompt; ms-swift takes a file as well, which raises Wrong."""
    if isinstance(setting, str) and setting.endswith(".txt"):
        raise Wrong(t("the system prompt itself, not a file"))
    return setting


def template(setting: Any) -> Any:
    """A template that can be named here; a name of another tool's list raises Dropped."""
    if isinstance(setting, str) and (setting == "chatml" or setting.endswith(".jinja")):
        return setting
    if isinstance(setting, str) and "{" in setting:
        raise Cannot(
            t("a template inside the recipe"), t("save the template as a .jinja file and name that in model.template")
        )
    raise Dropped(t("the tokenizer's own chat template is used; model.template names another one"))


def exact(setting: Any) -> str:
    """A switch for exact deduplication."""
    return "exact" if either(setting) else "off"


CUTS = {
    "delete": "reject", "drop": "reject", "raise": "reject", "left": "cut_left", "right": "cut_right",
    "truncate": "cut_right", "keep_start": "cut_right", "keep_end": "cut_left", "split": "split",
}  # fmt: skip


def too_long(setting: Any) -> Any:
    """What ms-swift, Axolotl and TRL do with a longer dialogue; `left` cuts its beginning off.

    >>> too_long("left"), too_long("drop")
    ('cut_left', 'reject')
    """
    name = setting.strip().lower() if isinstance(setting, str) else ""
    if off(setting):
        return NOTHING
    if name not in CUTS:
        raise Wrong(t("one of {choices}", choices=", ".join(CUTS)))
    return CUTS[name]
