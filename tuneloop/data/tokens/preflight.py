"""The last look before a run costs anything: refuses a mask of nothing, a missing end token, a doubled first token.

Of the samples all are looked at, as arrays; of the records' text at most `LOOKED`, spread evenly, and of those at most
`RENDERED` are rendered. Each warning says of how many it speaks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneloop.base.errors import DataError
from tuneloop.base.language import t
from tuneloop.base.records import Record
from tuneloop.data.kinds import KINDS
from tuneloop.data.tokens.chains import ChainWriter, empty_thought
from tuneloop.data.tokens.control_tokens import control_tokens
from tuneloop.data.tokens.encode import marked
from tuneloop.data.tokens.named_templates import DEFAULTS, fuller
from tuneloop.data.tokens.samples import Sample, Sequences
from tuneloop.data.tokens.templates import encode, render, template_of

LOOKED, RENDERED = 20_000, 300
_MOST = 0.5
"""Share of the rows from which on something is so for most of them."""
_SHORTEST_LEAK = 12
"""Characters of an answer below which its prompt may well contain it: a choice to make, a word to translate."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was looked at. `sample` is one sample's text in runs of (text, trained?)."""

    samples: int
    tokens: int
    label_tokens: int
    longest: int
    sample: list[tuple[str, bool]]
    warnings: tuple[str, ...] = ()
    """What is worth knowing and no reason to stop, in words."""


def _spread(records: Sequence[Record], most: int) -> list[Record]:
    """At most so many of the records, evenly from first to last."""
    if len(records) <= most:
        return list(records)
    return [records[k] for k in np.linspace(0, len(records) - 1, most).astype(int).tolist()]


def unrendered(tokenizer: Any, records: Sequence[Record]) -> list[str]:
    """Warnings about what a template leaves out without a word: thoughts, tool calls, tools."""
    # A text has no template, so it has nothing that one could leave out.
    dialogues = [r for r in records if KINDS[r.kind].dialogue]
    with_more = [r for r in dialogues if r.tools or any(m.reasoning or m.tool_calls for m in r.messages)]
    examined = _spread(with_more, RENDERED)
    writer = ChainWriter(tokenizer)
    lost = Counter[str]()
    for record in examined:
        _, unsaid = writer.write([record])
        lost.update(list({one.what for one in unsaid}))
        if record.tools:
            first = next((n for n, m in enumerate(record.messages) if m.role == "assistant"), len(record.messages))
            text = render(tokenizer, record.chat()[:first], prompt=True, tools=record.tools)
            lost["tools"] += not all(_name(tool) in text for tool in record.tools)
    n, name = len(examined), fuller(tokenizer)
    warnings = {
        "thought": t("of {of} dialogues with thoughts or tools that were looked at, {n} have a thought that this "
                     "chat template leaves out, and these answers are not trained", n=lost["thought"], of=n),
        "call": t("of {of} dialogues with thoughts or tools that were looked at, {n} have tool calls that this chat "
                  "template leaves out, and these answers are not trained", n=lost["call"], of=n),
        "tools": t("of {of} dialogues with thoughts or tools that were looked at, {n} offer tools that this chat "
                   "template leaves out", n=lost["tools"], of=n),
    }  # fmt: skip
    remedy = t(" (model.template: {name} writes them)", name=name) if name else ""
    return [words + remedy for kind, words in warnings.items() if lost[kind]]


def stray(tokenizer: Any, records: Sequence[Record]) -> list[str]:
    """A warning about control tokens written as text in the data, which are read as text."""
    control = control_tokens(tokenizer)
    matches = [token for _, token in filter(None, (next(control.spelled(record), None) for record in records))]
    if not matches:
        return []
    return [
        t(
            "{n} of {of} dialogues looked at have {token} in their text: it is read as text, and ends or begins "
            "nothing there",
            n=len(matches),
            of=len(records),
            token=matches[0],
        )
    ]


def _name(of: dict[str, Any]) -> str:
    return str(of.get("function", {}).get("name", ""))


def thoughtless(tokenizer: Any, records: Sequence[Record]) -> list[str]:
    """A warning when a template that knows thoughts, and writes no empty ones, meets dialogues that have none."""
    source = tokenizer.chat_template
    dialogues = [r for r in records if KINDS[r.kind].imitated]
    if not isinstance(source, str) or "<think>" not in source or not dialogues or empty_thought(tokenizer):
        return []
    if source in DEFAULTS.values():  # asked for by name, and it writes what there is
        return []
    if any(m.reasoning or "</think>" in m.content for r in dialogues for m in r.messages):
        return []
    return [
        t(
            "this model thinks before it answers (its chat template has <think>), and none of {of} dialogues looked "
            "at has a thought: it learns to answer without one",
            of=len(dialogues),
        )
    ]


def unthought(tokenizer: Any, samples: Sequences) -> list[str]:
    """A warning that counts the answers before which the template puts a thought without words."""
    empty = empty_thought(tokenizer)
    if not empty:
        return []
    ids = np.array(encode(tokenizer, [empty])[0], np.int32)
    begins = np.flatnonzero(samples.trained & ~np.concatenate([[False], samples.trained[:-1]]))

    def stands(at: NDArray[np.int64]) -> int:
        inside = at[(at >= 0) & (at + len(ids) <= samples.tokens)]
        return int((samples.ids[inside[:, None] + np.arange(len(ids))] == ids).all(axis=1).sum())

    facts = {"thought": " ".join(empty.split()), "of": len(begins)}
    if n := stands(begins - len(ids)):
        return [
            t(
                "{n} of {of} answers have no thought: the {thought} that the chat template writes before them is "
                "context and not trained (prepare.empty_thoughts: true trains it, and the model learns not to think)",
                n=n,
                **facts,
            )
        ]
    if n := stands(begins):
        return [
            t(
                "{n} of {of} answers have no thought and are trained with the {thought} that the chat template writes "
                "before them: the model learns not to think (prepare.empty_thoughts)",
                n=n,
                **facts,
            )
        ]
    return []


def leaked(records: Sequence[Record]) -> list[str]:
    """A warning when most prompts already hold what is to be learned."""
    answers = [
        (record.messages[-1].content.strip(), record)
        for record in records
        if KINDS[record.kind].imitated and record.prompt and len(record.prompt) < len(record.messages)
    ]
    long = [(answer, record) for answer, record in answers if len(answer) >= _SHORTEST_LEAK]
    held = sum(any(answer in m.content for m in record.prompt) for answer, record in long)
    out = []
    if long and held > _MOST * len(long):
        out.append(
            t(
                "{n} of {of} answers looked at stand word for word in their own prompt: there is nothing to learn "
                "but to copy",
                n=held,
                of=len(long),
            )
        )
    labelled = [r for r in records if KINDS[r.kind].label == "name" and len(r.label) > 1]
    held = sum(bool(re.search(rf"\b{re.escape(r.label)}\b", r.messages[0].content, re.IGNORECASE)) for r in labelled)
    if labelled and held > _MOST * len(labelled):
        out.append(t("{n} of {of} texts looked at have their own label in them", n=held, of=len(labelled)))
    return out


def other_template(tokenizer: Any, folder: Path | None = None) -> list[str]:
    """A warning when dialogues are written in another form than the model was made with.

    `folder` is the model's; by default the one the tokenizer was loaded from.
    """
    folder = folder or Path(str(getattr(tokenizer, "name_or_path", "") or ""))
    if not folder.is_dir() or folder == Path():
        return []
    own, used = template_of(folder), tokenizer.chat_template
    name = next((name for name, source in DEFAULTS.items() if source == used), "")
    if own is None:
        return (
            [t("this model has no chat template of its own and gets the default one, {name}", name=name)]
            if name
            else []
        )
    if own == used:
        return []
    called = name or t("another one")
    return [t("the chat template is not the model's own but {name}; the model has learned its own", name=called)]


def preflight(
    tokenizer: Any,
    samples: Sequence[Sample],
    budget: int,
    records: Sequence[Record] = (),
    folder: Path | None = None,
    max_sequence_length: int = 0,
    rows: int = 0,
    words: Mapping[str, Sequence[str]] | None = None,
) -> Preflight:
    """Look at every sample, and at what `records`, which they were made from, say of themselves.

    `max_sequence_length` is what the model takes, `rows` how many tokens it has rows for; 0 where that is not known, or
    does not matter. `words` are what a model is taught to say for a label, where that is not the label.

    Raises TL-DATA-PREFLIGHT with all findings together.
    """
    if not samples:
        raise DataError("TL-DATA-NOTHING-LEFT", rows=0, reasons=t("no dialogue has an answer"))
    every = Sequences.of(samples)
    lengths = every.lengths
    faults: list[DataError] = []

    def count(code: str, bad: NDArray[np.bool_], **facts: Any) -> None:
        if bad.any():
            example = every.names[int(bad.argmax())].decode()
            faults.append(DataError(code, n=int(bad.sum()), of=len(every), example=example, **facts))

    longest = int(lengths.max())
    count("TL-DATA-NO-LABEL", (every.labels == 0) & ~_unlabelled(every, records))
    count("TL-DATA-NO-END", ~every.ended, end=tokenizer.eos_token)
    # ChatML models call <|im_start|> their bos, and it may open every turn: only a doubled one at the start is a fault.
    count("TL-DATA-DOUBLE-BOS", _doubled(every, lengths, tokenizer.bos_token_id))
    count("TL-DATA-TOO-LONG", lengths > budget, budget=budget, length=longest)
    count("TL-DATA-CONTEXT", lengths > (max_sequence_length or longest), context=max_sequence_length, length=longest)
    if rows and (unknown := beyond(every, rows)).any():
        token = str(tokenizer.convert_ids_to_tokens(int(every.ids.max())))
        count("TL-DATA-VOCABULARY", unknown, token=token, tokens=len(tokenizer), rows=rows)
    if faults:
        raise DataError("TL-DATA-PREFLIGHT", causes=faults)
    examined = _spread(records, LOOKED)
    shown = int(np.abs(lengths - 80).argmin())
    return Preflight(
        samples=len(every),
        tokens=every.tokens,
        label_tokens=int(every.labels.sum()),
        longest=longest,
        sample=[*marked(tokenizer, every[shown]), *_label(every, shown, records, words or {})],
        warnings=(
            *unused_tokens(tokenizer, rows),
            *other_template(tokenizer, folder),
            *unrendered(tokenizer, examined),
            *stray(tokenizer, examined),
            *thoughtless(tokenizer, examined),
            *unthought(tokenizer, every),
            *leaked(examined),
        ),
    )


def beyond(samples: Sequences, rows: int) -> NDArray[np.bool_]:
    """Which samples have a token whose id is `rows` or above."""
    bad = np.zeros(len(samples), np.bool_)
    at = np.flatnonzero(samples.ids >= rows)
    bad[np.searchsorted(samples.starts, at, side="right") - 1] = True
    return bad


def unused_tokens(tokenizer: Any, rows: int) -> list[str]:
    """A warning when the tokenizer has tokens that the model has no row for, though no sample uses them."""
    tokens = len(tokenizer) if rows else 0
    if tokens <= rows:
        return []
    return [
        t(
            "the tokenizer has {tokens} tokens and the model only {rows} rows; no row here uses the others",
            tokens=tokens,
            rows=rows,
        )
    ]


def _is_framed(record: Record) -> bool:
    return KINDS[record.kind].encoding == "framed"


def _unlabelled(samples: Sequences, records: Sequence[Record]) -> NDArray[np.bool_]:
    """Which samples are of records that teach by their label alone, and so need no trained token."""
    if samples.records != len(records):  # of many records the first are here; those with labels stand alone
        return np.full(len(samples), bool(records) and _is_framed(records[0]))
    return np.array([_is_framed(record) for record in records], np.bool_)[samples.row]


def _label(
    samples: Sequences, at: int, records: Sequence[Record], words: Mapping[str, Sequence[str]]
) -> list[tuple[str, bool]]:
    """What a text is to be called, as a run of its own: it is what is trained."""
    row = int(samples.row[at])
    known = row < len(records) and _is_framed(records[row])
    return [(f" → {' / '.join(words.get(records[row].label) or [records[row].label])}", True)] if known else []


def _doubled(samples: Sequences, lengths: NDArray[np.int32], first: int | None) -> NDArray[np.bool_]:
    """Which samples begin with their first token twice."""
    bad = lengths >= 2
    if first is None:
        return np.zeros(len(samples), np.bool_)
    at = samples.starts[:-1][bad]
    bad[bad] = (samples.ids[at] == first) & (samples.ids[at + 1] == first)
    return bad
