"""What everybody must know of a dataset before and after training on it: rows that went, and too few that stayed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneloop.base.language import current, listed, sentences, t
from tuneloop.data import ledger
from tuneloop.data.card import language_names
from tuneloop.data.version.split import SIDES, SMALL
from tuneloop.recipe.choices import METHOD_CHOICES, usual_rate
from tuneloop.recipe.schema import PreparePart, TrainPart

LOST = 0.2
"""A larger share of dropped rows is worth a loud word: mostly a wrong setting or a misread file."""
FEW = 20
"""Fewer rows to train on teach a model little but those rows."""
REASONS = 3
SEMICOLON = {"en": "; ", "zh": "；"}


def cautions(counts: Mapping[str, Any], steps: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Sentences about a dataset's `counts` and `steps` (of its manifest); `where` is its ledger. [] if all is well.

    >>> cautions({"rows_in": 100, "train": 90, "dropped": 10}, [], "ledger.jsonl")
    []
    >>> cautions({"rows_in": 8, "train": 8}, [], "ledger.jsonl")
    ['Rows left to train on: 8, which is too few to learn more than these rows. Add data.']
    """
    rows, dropped, train = (int(counts.get(key) or 0) for key in ("rows_in", "dropped", "train"))
    sentences = []
    if dropped > LOST * rows:
        lost = {"dropped": f"{dropped:,}", "rows": f"{rows:,}", "percent": round(100 * dropped / max(rows, 1))}
        why = top_reasons(steps)
        sentences.append(
            t(
                "{dropped} of {rows} rows were dropped ({percent} %): {reasons}. Each row and its reason: {ledger}",
                **lost,
                reasons=why,
                ledger=where,
            )
            if why
            else t(
                "{dropped} of {rows} rows were dropped ({percent} %). Each row and its reason: {ledger}",
                **lost,
                ledger=where,
            )
        )
    if "train" in counts and train < FEW:
        sentences.append(
            t("Rows left to train on: {n}, which is too few to learn more than these rows. Add data.", n=train)
        )
    return sentences


def top_reasons(steps: Sequence[Mapping[str, Any]]) -> str:
    """The most frequent reasons for dropped rows with their numbers, most first.

    >>> top_reasons([{"reason": "no answer", "dropped": 2}, {"reason": "too long", "dropped": 5}])
    'longer than max_length (5 rows); nothing to learn: no answer (2 rows)'
    """
    words = ledger.words()
    lost = sorted((s for s in steps if s.get("dropped")), key=lambda s: -int(s["dropped"]))
    shown = [
        t("{reason} ({n} rows)", reason=words.get(s["reason"], s["reason"]), n=f"{int(s['dropped']):,}")
        for s in lost[:REASONS]
    ]
    return SEMICOLON[current()].join(shown)


ENGLISH = frozenset({"smollm2-135m-instruct", "all-minilm-l6-v2"})
"""Known models that have learned hardly anything but English."""
CHINESE = ("qwen2.5-coder-0.5b-instruct", "gemma-3-270m")
"""Known models that write Chinese, the first the better one to talk to."""
FOREIGN = 0.3
"""Share of the rows in another language from which it is worth a word."""


def foreign(model: str, dataset: Path) -> list[str]:
    """A sentence where many rows of the dataset in a folder are in a language that the known model `model` hardly has.

    [] for any other model, and where the dataset's profile.json does not tell its languages.
    """
    from tuneloop.hub.known import find

    known = find(model)
    if known is None or known.name not in ENGLISH:
        return []
    try:
        profile = json.loads((dataset / "profile.json").read_text(encoding="utf-8"))
        rows = {str(code): int(n) for code, n in profile["languages"]["found"]}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    rows["zh"] = rows.pop("han", 0) + rows.get("zh", 0)
    sure = {code: n for code, n in rows.items() if code not in ("en", "latin", "none", "other")}
    code = max(sure, key=lambda one: sure[one])
    share = sure[code] / max(sum(rows.values()), 1)
    if share < FOREIGN:
        return []
    sentence = t(
        "{percent} % of the rows are in {language}, and {model} is an English model.",
        percent=round(100 * share),
        language=language_names.name(code),
        model=known.name,
    )
    able = listed(name for name in CHINESE if find(name))
    more = t("Models that write Chinese: {names} (--model NAME).", names=able)
    return [sentences(sentence, more) if code == "zh" else sentence]


LOW = 5
"""So many times below the usual rate, an adapter hardly moves."""
HIGH = 50
"""So many times the usual rate is mostly a slip of the pen."""


def low_rate(train: TrainPart, task: str) -> list[str]:
    """A sentence where new adapters would learn at the rate of whole weights.

    >>> low_rate(TrainPart(learning_rate=2e-5), "chat")[0][:48]
    'train.learning_rate is 2e-05, which is low for l'
    >>> low_rate(TrainPart(learning_rate=1e-4), "chat"), low_rate(TrainPart(learning_rate=5e-6), "prefer")
    ([], [])
    """
    usual = usual_rate(train.method, task, train.freeze.layers)
    if not METHOD_CHOICES[train.method].adapter or train.adapter or train.learning_rate * LOW > usual:
        return []
    text = t(
        "train.learning_rate is {rate}, which is low for {method}: it would learn little. Usual is {usual}; rates as "
        "low as this one are for training all weights.",
        rate=f"{train.learning_rate:g}",
        method=train.method,
        usual=f"{usual:g}",
    )
    return [text]


def high_rate(train: TrainPart, task: str) -> list[str]:
    """A sentence where the rate is so far above the usual one that training will hardly stay stable.

    >>> high_rate(TrainPart(learning_rate=0.02), "chat")[0][:52]
    'train.learning_rate is 0.02, 100 times what is usual'
    >>> high_rate(TrainPart(learning_rate=2e-3), "chat")
    []
    """
    times = train.learning_rate / usual_rate(train.method, task, train.freeze.layers)
    if times < HIGH:
        return []
    text = t(
        "train.learning_rate is {rate}, {times} times what is usual for {method} ({usual}): training will hardly stay "
        "stable.",
        rate=f"{train.learning_rate:g}",
        times=f"{times:,.0f}",
        method=train.method,
        usual=f"{usual_rate(train.method, task, train.freeze.layers):g}",
    )
    return [text]


def nothing_held() -> str:
    """The sentence for a dataset without held-out rows."""
    return t("Nothing was held out, so there is no comparison of loss: raise prepare.validation or add rows.")


def few_held(counts: Mapping[str, Any], part: PreparePart) -> list[str]:
    """A sentence where rows belong together so much that less than half of what is asked for is held out.

    >>> few_held({"train": 160, "validation": 0, "test": 0}, PreparePart(validation=0.2))[0][:50]
    'Only 0 of the 32 rows asked for could be held out:'
    >>> few_held({"train": 150, "validation": 10, "test": 0}, PreparePart(validation=10))
    []
    """
    of = {side: counts.get(side, 0) for side in SIDES}  # profiles of earlier versions name those alone that have rows
    rows, held = sum(of.values()), of["validation"] + of["test"]
    wanted = int(sum(share if share >= 1 else share * rows for share in (part.validation, part.test)) + 0.5)
    if rows < SMALL or min(wanted, rows) <= 2 * held:
        return []
    return [
        t(
            "Only {held} of the {wanted} rows asked for could be held out: rows that contain each other or come from "
            "one row stay on one side of the split. Add other dialogues, or give a file of other rows with "
            "split: validation.",
            held=f"{held:,}",
            wanted=f"{wanted:,}",
        )
    ]
