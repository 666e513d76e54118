"""What machines write into a run's files, in words: events, their facts, the machine, counts, roles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from tuneloop.base.duration import duration
from tuneloop.base.language import current, t


def events() -> dict[str, str]:
    """Name of an event -> what happened."""
    return {
        "plan": t("planned"),
        "started": t("training began"),
        "checkpoint": t("checkpoint written"),
        "stopped": t("training was stopped"),
        "resumed": t("training went on"),
        "paused": t("training paused: the disk is full"),
        "failed": t("training ended with an error"),
        "killed": t("the system ended training for want of memory"),
        "finished": t("training ended"),
        "evaluated": t("evaluated"),
        "early_stop": t("stopped early, the held-out loss did not fall"),
        "best": t("the best state is the result"),
        "frozen_blocks": t("the frozen blocks ran"),
        "threads": t("threads wait in another way"),
        "alert": t("alert"),
        "remedy": t("remedied"),
    }


def keys() -> dict[str, str]:
    """Key of a fact, of a machine or of a count -> its name."""
    return {
        "step": t("at step"),
        "code": t("code"),
        "cause": t("reason"),
        "by": t("reason"),
        "best_step": t("best at step"),
        "best_loss": t("lowest held-out loss"),
        "eval_loss": t("held-out loss"),
        "total": t("steps in all"),
        "packing": t("packed"),
        "products": t("products in"),
        "kept": t("kept for all epochs"),
        "why": t("reason"),
        "why_in": t("reason"),
        "weights": t("weights (digest)"),
        "template": t("chat template (digest)"),
        "held": t("held-out rows (digest)"),
        "bytes": t("bytes"),
        "path": t("folder"),
        "seconds": t("time"),
        "memory_gb": t("memory"),
        "memory_all_gb": t("memory in all"),
        "free_gb": t("free memory"),
        "tokens_per_second": t("tokens a second"),
        "system": t("system"),
        "cpu": t("processor"),
        "cores": t("cores"),
        "device": t("device"),
        "gpus": t("graphics card"),
        "gpu_memory_gb": t("memory of the graphics card"),
        "gflops": t("speed of matrix products"),
        "weights_gbs": t("speed of reading weights"),
        "bfloat16_gflops": f"{t('speed of matrix products')} (bfloat16)",
        "float32_gflops": f"{t('speed of matrix products')} (float32)",
        "all_cores": t("cores in all"),
        "threads": t("threads"),
        "asleep": t("asleep"),
        "others": t("cores that other programs kept busy"),
        "counts.train": t("dialogues to train on"),
        "counts.validation": t("dialogues held out"),
        "counts.test": t("dialogues kept for a test"),
        "counts.rows_in": t("rows read"),
        "counts.dropped": t("rows dropped"),
        "counts.changed": t("rows repaired"),
        "counts.marked": t("rows marked"),
        "counts.added": t("rows added"),
        "tokens": t("tokens"),
        "tokens.total": t("tokens"),
        "tokens.longest": t("tokens of the longest dialogue"),
        "tokens.mean": t("tokens a dialogue, on average"),
        "tokens.train": t("tokens to train on"),
        "tokens.validation": t("tokens held out"),
        "tokens.test": t("tokens kept for a test"),
    }


def actions() -> dict[str, str]:
    """Action of the ledger -> its name."""
    return {"dropped": t("dropped"), "changed": t("changed"), "marked": t("marked"), "added": t("added")}


def roles() -> dict[str, str]:
    """Role of a turn -> who speaks."""
    return {"system": t("System prompt"), "user": t("User"), "assistant": t("Assistant"), "tool": t("Tool")}


def name(key: str) -> str:
    """The name of a key; one that is not known in its own letters.

    >>> name("versions.torch"), name("counts.odd_one"), name("cores")
    ('torch', 'odd one', 'cores')
    """
    known = keys()
    return known.get(key) or key.removeprefix("versions.").removeprefix("counts.").replace("_", " ")


def fact(key: str, one: Any) -> str:
    """A fact as a reader wants it, with its unit.

    >>> fact("seconds", 111.3), fact("memory_gb", 2.9), fact("packing", True), fact("step", 1200)
    ('1 min 51 s', '2.9 GB', 'yes', '1,200')
    """
    if isinstance(one, bool):
        return t("yes") if one else t("no")
    if isinstance(one, list):
        return ", ".join(fact(key, x) for x in one)
    if not isinstance(one, int | float):
        return {"cpu": t("CPU"), "cuda": t("graphics card")}.get(str(one), str(one)) if key == "device" else str(one)
    if key == "seconds":
        return duration(one)
    units = {"gflops": " GFLOP/s", "bfloat16_gflops": " GFLOP/s", "float32_gflops": " GFLOP/s", "weights_gbs": " GB/s"}
    unit = units.get(key, " GB" if key.endswith("_gb") else "")
    if unit:
        return f"{one:,.1f}{unit}"
    return f"{one:,}" if isinstance(one, int) else f"{one:,.4g}"


def facts(content: Mapping[str, Any], skip: frozenset[str] = frozenset()) -> list[tuple[str, str]]:
    """(name, value) of the leaves of nested dicts; what is empty, zero or in `skip` says nothing and is left out.

    >>> facts({"cores": 2, "gpus": [], "gpu_memory_gb": 0.0, "versions": {"torch": "2.13.0"}})
    [('cores', '2'), ('torch', '2.13.0')]
    """
    return [(name(k), fact(k, v)) for k, v in _flat(content) if k not in skip and (v is False or v)]


def counts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of a dataset's counts, zeros too: that nothing was dropped is worth knowing."""
    return [(name(k), fact(k, v)) for k, v in _flat(content)]


def told_in(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event in the reader's language: of a text `name` that it has in several languages, `name_in`, the right one.

    >>> told_in({"step": 0, "why": "there is one epoch", "why_in": {"en": "there is one epoch", "zh": "只有一轮"}})
    {'step': 0, 'why': 'there is one epoch'}
    """
    spoken = {key.removesuffix("_in"): texts for key, texts in event.items() if _has_languages(key, texts)}
    known = {key: one for key, one in event.items() if not _has_languages(key, one)}
    return known | {key: texts[current()] for key, texts in spoken.items()}


def _has_languages(key: str, texts: Any) -> bool:
    return key.endswith("_in") and isinstance(texts, Mapping) and current() in texts


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves with dotted keys; None is left out."""
    for key, inner in content.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        elif inner is not None:
            yield prefix + str(key), inner


def moment(time: Any) -> str:
    """A time of the clock (seconds since 1970) where the reader lives; "" for what is none."""
    try:
        return datetime.fromtimestamp(time).strftime("%Y-%m-%d %H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
