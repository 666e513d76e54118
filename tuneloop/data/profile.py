"""The card of a dataset: what is in it, as numbers and as one HTML page that needs nothing but itself.

It reads a finished version and knows nothing of how it was made or where it lies.
"""

from __future__ import annotations

import html
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Protocol

from tuneloop.data.ledger import steps, words
from tuneloop.language import current, t
from tuneloop.records import Message, Record

SAMPLES = 5
LONGEST_TURN = 2000
"""Characters of a turn that the card shows; it says how many more there are."""


class Described(Protocol):
    """What a card needs of a dataset."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def manifest(self) -> dict[str, Any]: ...
    def rows(self) -> Iterator[tuple[Record, Any, int]]: ...


def histogram(values: Iterable[int]) -> list[list[int]]:
    """[upper bound, how many] with bounds that double from 16; empty bars inside are kept.

    >>> histogram([10, 20, 100])
    [[16, 1], [32, 1], [64, 0], [128, 1]]
    """
    counted = Counter(max(4, (max(v, 1) - 1).bit_length()) for v in values)
    return [[2**k, counted[k]] for k in range(min(counted), max(counted) + 1)] if counted else []


def script(text: str) -> str:
    """A guess at the language by the letters of its beginning: zh, ja, ko, latin, cyrillic, arabic or other.

    >>> script("今天天气 nice"), script("hello")
    ('zh', 'latin')
    """
    seen: Counter[str] = Counter()
    for c in text[:1000]:
        if "\u4e00" <= c <= "\u9fff" or "\u3400" <= c <= "\u4dbf":
            seen["zh"] += 4  # a character says about as much as four letters
        elif "\u3040" <= c <= "\u30ff":
            seen["ja"] += 4
        elif "\uac00" <= c <= "\ud7a3":
            seen["ko"] += 4
        elif c.isalpha():
            first = "latin" if c.isascii() else unicodedata.name(c, "OTHER").split(" ", 1)[0].lower()
            seen[first if first in ("latin", "cyrillic", "arabic") else "other"] += 1
    if seen["ja"] * 8 > seen["zh"]:
        seen["ja"] += seen.pop("zh", 0)
    return max(seen, key=lambda k: seen[k]) if seen.total() else "other"


def languages() -> dict[str, str]:
    """The words for what `script` gives."""
    return {
        "zh": t("Chinese"),
        "ja": t("Japanese"),
        "ko": t("Korean"),
        "latin": t("Latin letters (English …)"),
        "cyrillic": t("Cyrillic letters"),
        "arabic": t("Arabic letters"),
        "other": t("other"),
    }


def summary(dataset: Described) -> dict[str, Any]:
    """The numbers of the card: counts, tokens, lengths, turns, languages, sources and steps."""
    turns: Counter[int] = Counter()
    tongues: Counter[str] = Counter()
    with_system = with_tools = with_reasoning = 0
    for record, _, _ in dataset.rows():
        turns[sum(m.role == "user" for m in record.messages)] += 1
        tongues[script(" ".join(m.content for m in record.messages if m.role != "system"))] += 1
        with_system += record.messages[0].role == "system"
        with_tools += bool(record.tools) or any(m.tool_calls for m in record.messages)
        with_reasoning += any(m.reasoning for m in record.messages)
    keys = ("created", "counts", "tokens", "lengths", "repeat", "sources", "steps", "settings")
    return {
        "name": dataset.name,
        "hash": dataset.hash,
        **{key: dataset.manifest[key] for key in keys},
        "turns": [list(pair) for pair in sorted(turns.items())],
        "languages": dict(tongues.most_common()),
        "with": {"system": with_system, "tools": with_tools, "reasoning": with_reasoning},
    }


def samples(dataset: Described, count: int = SAMPLES) -> list[Record]:
    """Training dialogues from all over the dataset, evenly spaced from the first to the last."""
    train = [record for record, side, _ in dataset.rows() if side == "train"]
    wanted = min(count, len(train))
    return [train[n * (len(train) - 1) // max(wanted - 1, 1)] for n in range(wanted)]


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6675; --line: #d9dee5; --back: #fff; --bar: #2f6fdb;
  --turn: #f3f5f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #39424f; --back: #14181f;
  --bar: #6ea0ff; --turn: #1d232c; } }
body { font: 15px/1.5 system-ui, "PingFang SC", "Microsoft YaHei", sans-serif; color: var(--ink);
  background: var(--back); max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 small, p.soft, .turn b { color: var(--soft); font-weight: 400; }
h2 { margin-top: 2rem; font-size: 1.1rem; }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; } svg rect { fill: var(--bar); } svg text { fill: var(--ink); font-size: 12px; }
.turn { background: var(--turn); border-radius: 6px; padding: .5rem .8rem; margin: .3rem 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
"""


def card(dataset: Described) -> str:
    """The page, in the chosen language. Every text of the data in it is escaped; no script, nothing fetched."""
    data = summary(dataset)
    counts, tokens = data["counts"], data["tokens"]
    facts = [
        (t("rows read"), counts["rows_in"]),
        (t("dialogues to train on"), counts["train"]),
        (t("dialogues held out"), counts["validation"]),
        (t("rows dropped"), counts["dropped"]),
        (t("rows changed"), counts["changed"]),
        (t("tokens"), tokens["total"]),
        (t("tokens of the longest dialogue"), tokens["longest"]),
        (t("tokens of a dialogue on average"), tokens["mean"]),
        (t("with a system prompt"), data["with"]["system"]),
        (t("with tools"), data["with"]["tools"]),
        (t("with a thought before the answer"), data["with"]["reasoning"]),
    ]
    tongues, reasons, stages = languages(), words(), steps()
    made = t(
        "made {when}; tokens as {model} counts them", when=_local(data["created"]), model=data["settings"]["model"]
    )
    body = [
        f"<h1>{_e(data['name'])} <small>{_e(data['hash'])}</small></h1>",
        f'<p class="soft">{_e(made)}</p>',
        _table([], [(label, value) for label, value in facts]),
        _section(t("Length in tokens"), _bars([(f"≤ {top}", n) for top, n in data["lengths"]])),
        _section(t("Questions in a dialogue"), _bars(_grouped(data["turns"]))),
        _section(t("Language, by its letters"), _bars([(tongues[k], n) for k, n in data["languages"].items()])),
        _section(t("Sources"), _table(
            [t("file"), t("rows"), t("repeat"), t("container"), t("encoding"), t("shape"), t("sure"), t("why")],
            [(s["file"], s["rows"], data["repeat"].get(s["file"], 1), s["container"], s["encoding"], s["shape"],
              f"{100 * s['sure']:.0f}%", s["why"]) for s in data["sources"]])),
        _section(t("What was dropped or changed"), _table(
            [t("step"), t("reason"), t("dropped"), t("changed")],
            [(stages.get(s["step"], s["step"]), reasons.get(s["reason"], s["reason"]), s["dropped"], s["changed"])
             for s in data["steps"]])
            if data["steps"] else f"<p>{_e(t('Nothing.'))}</p>"),
        _section(t("Some dialogues"), "\n".join(_dialogue(record) for record in samples(dataset))),
    ]  # fmt: skip
    title = _e(t("Data card: {name}", name=data["name"]))
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    page = "\n".join(body)
    language = "zh-CN" if current() == "zh" else "en"
    head = f"<head>{head}<style>{_STYLE}</style></head>"
    return f'<!doctype html>\n<html lang="{language}">{head}\n<body>\n{page}\n</body></html>\n'


def _local(moment: str) -> str:
    """A time of the manifest (UTC) where the reader lives."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")


def _e(value: object) -> str:
    return html.escape(str(value))


def _section(title: str, inner: str) -> str:
    return f"<h2>{_e(title)}</h2>\n{inner}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    top = f"<tr>{''.join(f'<th>{_e(h)}</th>' for h in heads)}</tr>" if heads else ""
    lines = (
        "".join(f'<td class="n">{v:,}</td>' if isinstance(v, int | float) else f"<td>{_e(v)}</td>" for v in row)
        for row in rows
    )
    return f"<table>{top}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _bars(rows: Sequence[tuple[str, int]]) -> str:
    """Horizontal bars, one a row, as inline SVG."""
    most = max((n for _, n in rows), default=0) or 1
    lines = [
        f'<text x="190" y="{20 * k + 14}" text-anchor="end">{_e(_cut(label, 28))}</text>'
        f'<rect x="200" y="{20 * k + 3}" width="{420 * n / most:.1f}" height="14" rx="2"/>'
        f'<text x="{206 + 420 * n / most:.1f}" y="{20 * k + 14}">{n:,}</text>'
        for k, (label, n) in enumerate(rows)
    ]
    return f'<svg viewBox="0 0 700 {20 * len(rows) + 4}" role="img">{"".join(lines)}</svg>'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _grouped(turns: Sequence[Sequence[int]], most: int = 12) -> list[tuple[str, int]]:
    """The bars of turns; the many long ones together in the last."""
    out = [(str(k), n) for k, n in turns[:most]]
    rest = turns[most:]
    return [*out, (f"≥ {rest[0][0]}", sum(n for _, n in rest))] if rest else out


def _dialogue(record: Record) -> str:
    turns = "".join(_turn(m) for m in record.messages)
    return f'<p class="soft">{_e(record.file)}:{record.line}</p>{turns}'


def _turn(message: Message) -> str:
    parts = [message.reasoning and f"({message.reasoning})", message.content]
    parts += [f"{c['function']['name']}({c['function']['arguments']})" for c in message.tool_calls]
    text = "\n".join(p for p in parts if p)
    more = t(" … and {n} more characters", n=len(text) - LONGEST_TURN) if len(text) > LONGEST_TURN else ""
    return f'<div class="turn"><b>{_e(message.role)}</b>\n{_e(text[:LONGEST_TURN])}{_e(more)}</div>'
