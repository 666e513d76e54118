"""card.html of a dataset version: its profile as one page that needs no network and runs no script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import StrictUndefined, Template

from tuneloop.base.language import current, t
from tuneloop.data import ledger
from tuneloop.data.card import language_names, plots
from tuneloop.data.card.excerpts import View
from tuneloop.data.card.profile import PROFILE, profile
from tuneloop.data.version.dataset import Dataset
from tuneloop.data.version.split import SIDES

BARS = 12
"""Bars that are shown one by one."""


def write(dataset: Dataset, key: str = "", view: View | None = None) -> None:
    """Write profile.json and card.html into a version's folder. `key` names the tokenizer, `view` shows its tokens."""
    data = profile(dataset, key, view)
    for name, text in ((PROFILE, json.dumps(data, ensure_ascii=False) + "\n"), ("card.html", card(data))):
        (dataset.path / name).write_bytes(text.encode("utf-8", "backslashreplace"))


def card(data: dict[str, Any]) -> str:
    """The page of a profile, in the chosen language. Every text of the data in it is escaped."""
    return _template().render(**_context(data))


@cache
def _template() -> Template:
    templates = Templates(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.globals["t"] = t
    templates.filters["n"] = lambda n: f"{n:,}"
    return templates.from_string(files("tuneloop.data.card").joinpath("card.jinja").read_text(encoding="utf-8"))


def _context(data: dict[str, Any]) -> dict[str, Any]:
    lengths = data["lengths"]
    return {
        **data,
        "language": "zh-CN" if current() == "zh" else "en",
        "space": "" if current() == "zh" else " ",
        "made": moment(data["created"]),
        "tiles": tiles(data),
        "facts": facts(data),
        "histogram": plots.lengths(lengths["kept"], lengths["too_long"], data["max_length"], data["context"]),
        "turn_bars": _shares(turn_bars(data["turns"])),
        "language_bars": _shares([(language_names.name(code), n) for code, n in data["languages"]["found"]]),
        "label_bars": _labels(data["labels"]),
        "repeats": repeats(data["duplicates"]),
        "stages": [{**s, "name": step_name(s["step"]), "acted": acted(s)} for s in data["steps"]],
        "idle": ("、" if current() == "zh" else ", ").join(step_name(s["step"]) for s in data["steps"] if not acted(s)),
        "over": sum(n for _, n in lengths["too_long"]),
        "told": {action: told(data, action) for action in ledger.ACTIONS},
        "samples": [{**one, "parts": [{**part, "facts": part_facts(part)} for part in one["parts"]]}
                    for one in data["samples"]],
    }  # fmt: skip


def moment(created: str) -> str:
    """A time of the manifest (UTC) where the reader lives."""
    return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")


def tiles(data: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(label, value, remark) of the few numbers at the top."""
    counts, tokens = data["counts"], data["tokens"]
    held = t("{n:,} to validate", n=counts["validation"])
    test = t("{n:,} to test", n=counts["test"]) if counts["test"] else ""
    out = [
        (t("rows read"), f"{counts['rows_in']:,}", t("{n:,} dropped", n=counts["dropped"])),
        (t("rows to train on"), f"{counts['train']:,}", ""),
        (t("rows held out"), f"{counts['validation'] + counts['test']:,}",
         t("{held}, {test}", held=held, test=test) if test else ""),
        (t("tokens"), f"{tokens['total']:,}",
         t("{mean:,} a row, {most:,} at most", mean=tokens["mean"], most=tokens["longest"])),
    ]  # fmt: skip
    if tokens.get("labels"):
        share = f"{100 * tokens['labels'] / tokens['sampled']:.0f} %"
        out.append((t("of them trained"), share, t("{n:,} an epoch", n=tokens["labels"])))
    return out


def facts(data: dict[str, Any]) -> list[tuple[str, int]]:
    """(what, rows) of what rows may have; only what some have."""
    words = {
        "system": t("with a system prompt"),
        "tools": t("with tools"),
        "reasoning": t("with a thought before the answer"),
        "untrained": t("with an answer that is only context"),
        "pieces": t("made from another row"),
        "unsaid": t("with an answer that the chat template cannot write, which is not trained"),
    }
    return [(words[name], n) for name, n in data["with"].items() if n]


def turn_bars(turns: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
    """(questions, rows); the many long dialogues together in the last.

    >>> turn_bars([[n, 1] for n in range(1, 40)])[-1]
    ('≥ 12', 28)
    """
    if len(turns) <= BARS:
        return [(str(k), n) for k, n in turns]
    rest = turns[BARS - 1 :]
    return [*((str(k), n) for k, n in turns[: BARS - 1]), (f"≥ {rest[0][0]}", sum(n for _, n in rest))]


def _shares(rows: Sequence[tuple[str, int]]) -> list[tuple[str, int, float, float]]:
    """(label, rows, width of the bar in percent, share of all in percent)."""
    most, total = max((n for _, n in rows), default=0) or 1, sum(n for _, n in rows) or 1
    return [(label, n, 100 * n / most, 100 * n / total) for label, n in rows]


def _labels(labels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    most = max((sum(one[s] for s in SIDES) for one in labels), default=0) or 1
    total = sum(one[s] for one in labels for s in SIDES) or 1
    out = []
    for one in labels:
        n, start, parts = sum(one[s] for s in SIDES), 0.0, []
        for side in SIDES:
            parts.append((side, start, 100 * one[side] / most))
            start += parts[-1][2]
        out.append({"label": one["label"], "rows": n, "share": 100 * n / total, "parts": parts})
    return out


def repeats(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, rows, remark) about rows that repeat others."""
    percent = f"{100 * found['threshold']:.0f} %"
    off = t("kept: prepare.dedupe is off")
    dropped = t("dropped")
    rows = [(t("exact repetitions"), "–" if found["mode"] == "off" else f"{found['exact']:,}",
             off if found["mode"] == "off" else dropped)]  # fmt: skip
    if found["mode"] == "near":
        rows.append((t("near repetitions, {share} alike or more", share=percent), f"{found['near']:,}", dropped))
    elif found["near_left"] is not None:
        remark = t("kept, on one side of the split; prepare.dedupe: near drops them") if found["near_left"] else ""
        rows.append((t("near repetitions, {share} alike or more", share=percent), f"{found['near_left']:,}", remark))
    else:
        rows.append((t("near repetitions"), "–", t("not looked for; prepare.dedupe: near does")))
    more = {
        "held_out": (t("nearly the same as a held-out row"), t("dropped from training")),
        "torn": (t("held-out rows that training nearly sees"), t("kept and marked")),
        "conflicting": (t("the same text with another label or answer"), t("kept and marked")),
    }
    return rows + [(what, f"{found[name]:,}", remark) for name, (what, remark) in more.items() if found[name]]


def acted(step: dict[str, Any]) -> bool:
    """Whether a step dropped, changed, marked or added a row."""
    return any(step[action] for action in ledger.ACTIONS)


def step_name(step: str) -> str:
    """A step in the chosen language."""
    return {**ledger.steps(), "near": t("near repetitions"), "split": t("split")}.get(step, step)


def part_facts(part: dict[str, Any]) -> list[str]:
    """What a sample of a row is called, if it has a name, and how long it is."""
    names = {"better": t("the better answer"), "worse": t("the worse answer")}
    out = [names[part["name"]]] if part["name"] else []
    if part.get("trained"):
        out.append(t("{n:,} tokens, {trained:,} of them trained", n=part["tokens"], trained=part["trained"]))
    elif part.get("tokens"):
        out.append(t("{n:,} tokens, none of them trained", n=part["tokens"]))
    return out


def told(data: dict[str, Any], action: str) -> list[dict[str, Any]]:
    """The reasons of one action, most rows first: rows, step, reason, examples (place, detail)."""
    words = ledger.words()
    return [
        {
            "rows": one["rows"], "step": step_name(one["step"]), "reason": words.get(one["reason"], one["reason"]),
            "examples": [(f"{e['file']}:{e['line']}", e["detail"]) for e in one["examples"]],
        }
        for one in data["reasons"] if one["action"] == action
    ]  # fmt: skip
