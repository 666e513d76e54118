"""The profile of a dataset version: statistics of its rows and of what was dropped, as JSON data.

It is computed once, when the version is written, and saved as profile.json; the card and the terminal show it. Counts
come from the columns of the files; languages, which need the texts, from a sample.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tuneloop.base.errors import DataError
from tuneloop.base.files import printable
from tuneloop.data.card.excerpts import View, excerpts, places
from tuneloop.data.card.language_names import script
from tuneloop.data.cleaning.languages import language
from tuneloop.data.ledger import entries
from tuneloop.data.tokens.samples import open_samples
from tuneloop.data.version.dataset import Dataset
from tuneloop.data.version.split import SIDES

FORMAT = 1
LOOKED = 2000
"""Rows whose language is detected."""
EXAMPLES = 3
"""Example rows for each reason."""
MANY = 50
"""Most files and labels that are listed; the rest is counted together."""
PROFILE = "profile.json"
Unsaid = dict[str, set[tuple[str, int]]]
"""The ledger's reason why an answer is not trained -> the rows that stay with such an answer, by file and line."""

ORDER = (
    "read", "markup", "mojibake", "normalise", "empty_turns", "templates", "merge_turns", "reject_turns", "results",
    "order", "unanswered", "difference", "turns", "languages", "pii", "lexicon", "repetition", "refusal", "gibberish",
    "dedupe", "system", "template", "control_tokens", "length", "near", "split",
)  # fmt: skip
"""The steps of a preparation in the order in which a row meets them."""
_TOGETHER = frozenset({"nearly repeated", "held out elsewhere", "holds a held-out row"})
"""Reasons of the step "dedupe" that are shown as the later step "near", which compares all rows."""


def profile(dataset: Dataset, key: str = "", view: View | None = None) -> dict[str, Any]:
    """The profile of a version. `key` names the tokenizer whose samples lie in it; `view` shows them.

    Raises TL-DATA-DAMAGED where the ledger cannot be read.
    """
    manifest = dataset.manifest
    prepare = manifest["settings"]["prepare"]
    reasons, too_long, unsaid = _ledger_figures(dataset)
    labels, more_labels = _labels(dataset)
    files = sorted(manifest["sources"], key=lambda s: -s["rows"])
    return {
        "format": FORMAT,
        "name": dataset.name,
        "hash": dataset.hash,
        "created": manifest["created"],
        "model": manifest["settings"]["model"],
        "max_length": _limit(manifest),
        "context": view.context if view else 0,
        "counts": manifest["counts"],
        "kinds": manifest["kinds"],
        "tokens": {**manifest["tokens"], **_trained(dataset, key)},
        "lengths": {"kept": manifest["lengths"], "too_long": histogram(too_long)},
        **_shape(dataset, unsaid),
        "languages": _languages(dataset),
        "duplicates": _duplicates(manifest, reasons),
        "labels": labels,
        "more_labels": more_labels,
        "steps": effects(manifest["counts"]["rows_in"], manifest["steps"], _wanted(prepare)),
        "reasons": reasons,
        "sources": [_source(s, manifest["repeat"]) for s in files[:MANY]],
        "more_sources": {"files": len(files[MANY:]), "rows": sum(s["rows"] for s in files[MANY:])},
        "left_out": manifest["left_out"][:MANY],
        "more_left_out": len(manifest["left_out"][MANY:]),
        "samples": excerpts(dataset, key, view),
    }


def of(dataset: Dataset) -> dict[str, Any]:
    """The saved profile of a version; where there is none, a new one without rendered samples."""
    try:
        stored: dict[str, Any] = json.loads((dataset.path / PROFILE).read_text(encoding="utf-8"))
        if (stored["format"], stored["hash"]) == (FORMAT, dataset.hash):
            return stored
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return profile(dataset)


def histogram(values: Iterable[int]) -> list[list[int]]:
    """[upper bound, how many] with four bounds to a doubling, from 16; empty bars inside are kept.

    >>> histogram([10, 17, 30])
    [[16, 1], [19, 1], [23, 0], [27, 0], [32, 1]]
    """
    counted = Counter(_bar(v) for v in values)
    return [[_bound(k), counted[k]] for k in range(min(counted), max(counted) + 1)] if counted else []


def _bound(k: int) -> int:
    return round(2 ** (k / 4))


def _bar(length: int) -> int:
    k = max(int(4 * np.log2(max(length, 1))) - 1, 16)
    while _bound(k) < length:
        k += 1
    return k


def _limit(manifest: dict[str, Any]) -> int:
    """prepare.max_length; where it was left to the rows, the tokens of the longest."""
    wanted = manifest["settings"]["prepare"]["max_length"]
    return int(manifest["tokens"]["longest"] if wanted == "auto" else wanted)


# --- what is in it ---


def _shape(dataset: Dataset, unsaid: Unsaid) -> dict[str, Any]:
    """turns: [user turns, rows]; with: rows that have a system prompt, tools, a thought, or untrained answers.

    A thought that the template cannot write is not counted as one; rows with such an answer count as "unsaid".
    """
    turns: Counter[int] = Counter()
    having = dict.fromkeys(("system", "tools", "reasoning", "untrained", "pieces"), 0)
    for batch in _batches(dataset):
        messages = batch.column("messages")
        of_row, turn = np.asarray(pc.list_parent_indices(messages)), messages.flatten()
        role = turn.field("role")

        def rows(which: Any, of_row: Any = of_row) -> int:
            return len(np.unique(of_row[np.asarray(pc.fill_null(which, False))]))

        is_user = np.asarray(pc.equal(role, "user"))
        turns.update(np.bincount(of_row[is_user], minlength=batch.num_rows).tolist())
        having["system"] += rows(pc.equal(role, "system"))
        having["reasoning"] += rows(pc.not_equal(turn.field("reasoning_content"), ""))
        having["untrained"] += rows(pc.and_(pc.equal(role, "assistant"), pc.invert(turn.field("trained"))))
        called = np.zeros(batch.num_rows, bool)
        called[of_row[np.asarray(pc.is_valid(turn.field("tool_calls")))]] = True
        having["tools"] += int((called | np.asarray(pc.not_equal(batch.column("tools"), ""))).sum())
        having["pieces"] += int(np.asarray(pc.not_equal(batch.column("parent"), "")).sum())
    having["reasoning"] -= min(having["reasoning"], len(unsaid.get("thought not written", ())))
    if rows_unsaid := set().union(*unsaid.values()):
        having["unsaid"] = len(rows_unsaid)
    return {"turns": [list(pair) for pair in sorted(turns.items())], "with": having}


def _batches(dataset: Dataset) -> Iterator[pa.RecordBatch]:
    for side in SIDES:
        yield from dataset.batches(side)


def _languages(dataset: Dataset) -> dict[str, Any]:
    """found: [code, rows] of at most `LOOKED` rows from all over; of so many rows."""
    counts = dataset.manifest["counts"]
    total = sum(counts[side] for side in SIDES)
    wanted = np.asarray(places(total, LOOKED), np.int64)
    counted: Counter[str] = Counter()
    start = 0
    # Without the package that identifies languages a card shows scripts: no reason to prepare nothing.
    identify = language if find_spec("py3langid") else script
    for batch in _batches(dataset):
        mine = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
        start += batch.num_rows
        for turns in batch.column("messages").take(pa.array(mine)).to_pylist() if len(mine) else ():
            text = "\n".join(m["content"] for m in turns if m["role"] in ("user", "assistant"))
            counted[identify(text) or script(text)] += 1
    return {"looked": len(wanted), "of": total, "found": [list(pair) for pair in counted.most_common()]}


def _labels(dataset: Dataset) -> tuple[list[dict[str, Any]], int]:
    """The most frequent labels with their rows on each side, and how many other labels there are."""
    every: dict[str, Counter[str]] = {}
    for side in SIDES:
        for batch in dataset.batches(side):
            for one in pc.value_counts(batch.column("label")).to_pylist():
                if one["values"]:
                    every.setdefault(one["values"], Counter())[side] += one["counts"]
    ranked = sorted(every.items(), key=lambda pair: (-pair[1].total(), pair[0]))
    return [{"label": label, **{s: n[s] for s in SIDES}} for label, n in ranked[:MANY]], len(ranked[MANY:])


def _trained(dataset: Dataset, key: str) -> dict[str, int]:
    """Of the training samples, with repeats: all tokens, and those that are trained."""
    try:
        samples = open_samples(dataset.path / "tokens" / key / "train") if key else None
    except DataError:
        samples = None
    return {"sampled": samples.tokens, "labels": int(samples.labels.sum())} if samples else {}


def _source(source: dict[str, Any], repeat: dict[str, int]) -> dict[str, Any]:
    names = ("file", "rows", "container", "encoding", "shape", "sure", "why")
    return {**{name: source[name] for name in names}, "repeat": repeat.get(source["file"], 1)}


# --- what became of the rest ---


def _ledger_figures(dataset: Dataset) -> tuple[list[dict[str, Any]], list[int], Unsaid]:
    """Each action, step and reason of the ledger with its rows and first places; the lengths of what was too long; and
    which of the rows that stay have an answer that is not trained."""
    unsaid: Unsaid = {}
    reasons: dict[tuple[str, str, str], dict[str, Any]] = {}
    too_long: list[int] = []
    for e in entries(dataset.path / "ledger.jsonl"):
        step = "near" if e.step == "dedupe" and e.reason in _TOGETHER else e.step
        fresh = {"action": e.action, "step": step, "reason": e.reason, "rows": 0, "examples": []}
        one = reasons.setdefault((e.action, step, e.reason), fresh)
        one["rows"] += 1
        if len(one["examples"]) < EXAMPLES:
            one["examples"].append({"file": printable(e.file), "line": e.line, "id": e.id, "detail": e.detail})
        if (e.action, e.step) == ("dropped", "length") and (length := re.match(r"\d+", e.detail)):
            too_long.append(int(length[0]))
        if e.step == "template":
            unsaid.setdefault(e.reason if e.action == "marked" else "", set()).add((e.file, e.line))
    gone = unsaid.pop("", set())
    unsaid = {reason: rows - gone for reason, rows in unsaid.items()}
    return sorted(reasons.values(), key=lambda one: -one["rows"]), too_long, unsaid


def _duplicates(manifest: dict[str, Any], reasons: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows that repeat others, exactly and nearly: dropped, or still there (`near_left`, None where nobody looked)."""
    prepare = manifest["settings"]["prepare"]

    def rows(*names: str) -> int:
        return sum(one["rows"] for one in reasons if one["reason"] in names)

    return {
        "mode": prepare["dedupe"],
        "threshold": prepare["near"],
        "exact": rows("repeated"),
        "near": rows("nearly repeated"),
        "held_out": rows("held out elsewhere", "holds a held-out row"),
        "near_left": manifest.get("alike"),
        "conflicting": rows("conflicting label"),
        "torn": rows("also in training", "question also in training"),
    }


def _wanted(prepare: dict[str, Any]) -> set[str]:
    """The steps that the recipe has switched on: they are shown even where they changed nothing."""
    clean = prepare["clean"]
    switches = {
        "markup": clean["html"], "mojibake": clean["mojibake"], "normalise": clean["unicode"],
        "templates": clean["templates"], "turns": prepare["turns"], "languages": clean["languages"],
        "merge_turns": clean["roles"] == "merge", "reject_turns": clean["roles"] == "reject",
        "dedupe": prepare["dedupe"] != "off", "near": prepare["dedupe"] == "near", "system": prepare["system"],
        **{name: clean[name] != "off" for name in ("pii", "lexicon", "repetition", "refusal", "gibberish")},
    }  # fmt: skip
    always = {"read", "empty_turns", "order", "unanswered", "length"}
    return always | {name for name, on in switches.items() if on}


def effects(rows_in: int, counts: Iterable[dict[str, Any]], wanted: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Each step in order: rows before and after it, and how many it dropped, changed, marked and added.

    >>> one = {"step": "dedupe", "reason": "repeated", "dropped": 2, "changed": 0, "marked": 0, "added": 0}
    >>> [(s["step"], s["before"], s["after"]) for s in effects(9, [one], ["read"])]
    [('read', 9, 9), ('dedupe', 9, 7)]
    """
    actions = ("dropped", "changed", "marked", "added")
    total = {step: dict.fromkeys(actions, 0) for step in wanted}
    for one in counts:
        step = "near" if one["step"] == "dedupe" and one["reason"] in _TOGETHER else one["step"]
        mine = total.setdefault(step, dict.fromkeys(actions, 0))
        for action in actions:
            mine[action] += one[action]
    rank = {step: n for n, step in enumerate(ORDER)}
    out, left = [], rows_in
    for step in sorted(total, key=lambda s: (rank.get(s, rank["dedupe"] - 0.5), s)):
        after = left - total[step]["dropped"] + total[step]["added"]
        out.append({"step": step, "before": left, "after": after, **total[step]})
        left = after
    return out
