"""The dataset card (card.html) of a version: its profile as one page that needs no network and runs no script."""

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
"""Most bars of a chart; the rest is one bar."""


def write(dataset: Dataset, key: str = "", view: View | None = None) -> None:
    """Write profile.json and card.html into a version's folder. `key` names the tokenizer, `view` shows its tokens."""
    figures = profile(dataset, key, view)
    for name, text in ((PROFILE, json.dumps(figures, ensure_ascii=False) + "\n"), ("card.html", card(figures))):
        (dataset.path / name).write_bytes(text.encode("utf-8", "backslashreplace"))


def card(figures: dict[str, Any]) -> str:
    """The page of a profile, in the chosen language. Every text of the data in it is escaped."""
    return _template().render(**_context(figures))


@cache
def _template() -> Template:
    templates = Templates(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.globals["t"] = t
    templates.filters["n"] = lambda n: f"{n:,}"
    return templates.from_string(files("tuneloop.data.card").joinpath("card.jinja").read_text(encoding="utf-8"))


def _context(figures: dict[str, Any]) -> dict[str, Any]:
    lengths, steps = figures["lengths"], figures["steps"]
    return {
        **figures,
        "language": "zh-CN" if current() == "zh" else "en",
        "space": "" if current() == "zh" else " ",
        "made": moment(figures["created"]),
        "tiles": tiles(figures),
        "facts": facts(figures),
        "histogram": plots.lengths(lengths["kept"], lengths["too_long"], figures["max_length"], figures["context"]),
        "turn_bars": _shares(turn_bars(figures["turns"])),
        "language_bars": _shares([(language_names.name(code), n) for code, n in figures["languages"]["found"]]),
        "label_bars": _labels(figures["labels"]),
        "repeats": repeats(figures["duplicates"]),
        "stages": [{**s, "name": step_name(s["step"]), "acted": acted(s)} for s in steps],
        "idle": ("、" if current() == "zh" else ", ").join(step_name(s["step"]) for s in steps if not acted(s)),
        "over": sum(n for _, n in lengths["too_long"]),
        "by_action": {action: reasons_of(figures, action) for action in ledger.ACTIONS},
        "samples": [
            {**one, "parts": [{**part, "facts": part_facts(part)} for part in one["parts"]]}
            for one in figures["samples"]
        ],
    }


def moment(created: str) -> str:
    """A UTC timestamp of the manifest in local time."""
    return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M")


def tiles(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The key figures at the top: (label, figure, remark)."""
    counts, tokens = figures["counts"], figures["tokens"]
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


def facts(figures: dict[str, Any]) -> list[tuple[str, int]]:
    """Optional features of rows, such as tools: (feature, rows), without those that no row has."""
    words = {
        "system": t("with a system prompt"),
        "tools": t("with tools"),
        "reasoning": t("with a thought before the answer"),
        "untrained": t("with an answer that is only context"),
        "pieces": t("made from another row"),
        "unsaid": t("with an answer that the chat template cannot write, which is not trained"),
    }
    return [(words[name], n) for name, n in figures["with"].items() if n]


def turn_bars(turns: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
    """Histogram of user turns: (turns, rows), long dialogues together in the last.

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


def repeats(duplicates: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The table of duplicates: (kind, rows, remark)."""
    percent = f"{100 * duplicates['threshold']:.0f} %"
    off = t("kept: prepare.dedupe is off")
    dropped = t("dropped")
    rows = [
        (
            t("exact repetitions"),
            "–" if duplicates["mode"] == "off" else f"{duplicates['exact']:,}",
            off if duplicates["mode"] == "off" else dropped,
        )
    ]
    if duplicates["mode"] == "near":
        rows.append((t("near repetitions, {share} alike or more", share=percent), f"{duplicates['near']:,}", dropped))
    elif duplicates["near_left"] is not None:
        remark = t("kept, on one side of the split; prepare.dedupe: near drops them") if duplicates["near_left"] else ""
        rows.append(
            (t("near repetitions, {share} alike or more", share=percent), f"{duplicates['near_left']:,}", remark)
        )
    else:
        rows.append((t("near repetitions"), "–", t("not looked for; prepare.dedupe: near does")))
    more = {
        "held_out": (t("nearly the same as a held-out row"), t("dropped from training")),
        "torn": (t("held-out rows that training nearly sees"), t("kept and marked")),
        "conflicting": (t("the same text with another label or answer"), t("kept and marked")),
    }
    return rows + [(what, f"{duplicates[name]:,}", remark) for name, (what, remark) in more.items() if duplicates[name]]


def acted(step: dict[str, Any]) -> bool:
    """Whether a step dropped, changed, marked or added a row."""
    return any(step[action] for action in ledger.ACTIONS)


def step_name(step: str) -> str:
    """The name of a step in the chosen language."""
    return {**ledger.steps(), "near": t("near repetitions"), "split": t("split")}.get(step, step)


def part_facts(part: dict[str, Any]) -> list[str]:
    """Facts on a sample of a row: its name, if it has one, and its length."""
    names = {"better": t("the better answer"), "worse": t("the worse answer")}
    out = [names[part["name"]]] if part["name"] else []
    if part.get("trained"):
        out.append(t("{n:,} tokens, {trained:,} of them trained", n=part["tokens"], trained=part["trained"]))
    elif part.get("tokens"):
        out.append(t("{n:,} tokens, none of them trained", n=part["tokens"]))
    return out


def reasons_of(figures: dict[str, Any], action: str) -> list[dict[str, Any]]:
    """The ledger's reasons of one action, most rows first: rows, step, reason, examples (place, detail)."""
    words = ledger.words()
    return [
        {
            "rows": one["rows"],
            "step": step_name(one["step"]),
            "reason": words.get(one["reason"], one["reason"]),
            "examples": [(f"{e['file']}:{e['line']}", e["detail"]) for e in one["examples"]],
        }
        for one in figures["reasons"]
        if one["action"] == action
    ]
