"""Sample rows of a version as they are trained: runs of text, trained or not, long ones without their middle.

Control characters and those that change the writing direction are made visible.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuneloop.base.errors import DataError
from tuneloop.base.records import Message, Record
from tuneloop.data import arrow
from tuneloop.data.kinds import KINDS, answers
from tuneloop.data.tokens.samples import Sample, Sequences, open_samples
from tuneloop.data.version.dataset import Dataset

COUNT = 5
HEAD, TAIL = 400, 160
"""Characters of a run that are shown: at its beginning, and at its end."""
RUNS = 24
"""Most runs of a sample that are shown: half from its beginning, half from its end."""
PARTS = 2
"""Most samples of one row that are shown."""
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

Run = tuple[str, bool, int]
"""Text, whether it is trained, and how many characters are left out behind it."""


@dataclass(frozen=True)
class View:
    """The model's view of samples: `look` decodes one into (text, trained) runs; `context` is its context length."""

    look: Callable[[Sample], Sequence[tuple[str, bool]]]
    context: int = 0


def visible(text: str) -> str:
    """The text with control and bidirectional characters replaced by visible ones.

    >>> visible("a\\x1b[31m\\u202eb\\n"), visible("\\x9b")
    ('a␛[31m�b\\n', '�')
    """
    return _UNSEEN.sub(lambda m: chr(0x2400 + ord(m[0])) if m[0] < " " else "\ufffd", text)


def places(total: int, count: int) -> list[int]:
    """`count` numbers below `total`, evenly spaced from the first to the last; all where there are no more.

    >>> places(10, 4), places(3, 5), places(5, 1), places(0, 5)
    ([0, 3, 6, 9], [0, 1, 2], [0], [])
    """
    count = min(count, total)
    return [n * (total - 1) // max(count - 1, 1) for n in range(count)]


def excerpts(dataset: Dataset, key: str = "", view: View | None = None, count: int = COUNT) -> list[dict[str, Any]]:
    """Training rows from all over the version: id, file, line, kind, label, and `parts`, the samples made of each.

    A part has a name ("", "better" or "worse"), tokens, trained (tokens) and runs. Without a view, or where the tokens
    are gone, the runs are the turns as they stand in the record, not as the model's template writes them.
    """
    samples = _samples(dataset, key) if view else None
    out = []
    for record, at in _rows(dataset, places(dataset.manifest["counts"]["train"], count)):
        parts = _as_trained(record, at, samples, view) if samples and view else []
        out.append(
            {
                "id": record.id,
                "file": record.file,
                "line": record.line,
                "kind": record.kind,
                "label": record.label,
                "rendered": bool(parts),
                "parts": parts or _as_written(record),
            }
        )
    return out


def _samples(dataset: Dataset, key: str) -> Sequences | None:
    try:
        return open_samples(dataset.path / "tokens" / key / "train")
    except DataError:
        return None


def _rows(dataset: Dataset, wanted: Sequence[int]) -> Iterator[tuple[Record, int]]:
    """The training rows of these numbers, each with its place among the rows that the samples count: with repeats."""
    start = before = 0
    for batch in dataset.batches("train") if wanted else ():
        repeats = np.asarray(batch.column("repeat"))
        for n in wanted:
            if start <= n < start + batch.num_rows:
                record, _ = next(arrow.records(batch.slice(n - start, 1)))
                yield record, before + int(repeats[: n - start].sum())
        start += batch.num_rows
        before += int(repeats.sum())


def _as_trained(record: Record, at: int, samples: Sequences, view: View) -> list[dict[str, Any]]:
    own = np.flatnonzero(samples.row == at)
    names = KINDS[record.kind].names or ("",) * PARTS
    parts = []
    for name, n in zip(names, own.tolist(), strict=False):
        sample = samples[n]
        runs = [(visible(text), trained) for text, trained in view.look(sample)]
        parts.append({"name": name, "tokens": len(sample.ids), "trained": sample.labels, "runs": shortened(runs)})
    return parts


def _as_written(record: Record) -> list[dict[str, Any]]:
    kind = KINDS[record.kind]
    if compared := answers(record):
        return [
            {"name": name, "runs": shortened(_turns(record.prompt, False) + _turns(answer, True))}
            for name, answer in zip(kind.names, compared, strict=False)
        ]
    return [{"name": "", "runs": shortened(_turns(record.messages, kind.encoding != "framed"))}]


def _turns(messages: Sequence[Message], trained: bool) -> list[tuple[str, bool]]:
    out: list[tuple[str, bool]] = []
    for m in messages:
        calls = [f"{c['function']['name']}({c['function']['arguments']})" for c in m.tool_calls]
        text = "\n".join(part for part in (m.reasoning, m.content, *calls) if part)
        out += [(f"{m.role}: ", False), (visible(text), trained and m.role == "assistant" and m.trained), ("\n", False)]
    return out[:-1]


def shortened(runs: Sequence[tuple[str, bool]]) -> list[Run]:
    """Long runs without their middle; of many runs the first and the last. The number says what is missing.

    >>> [(len(text), trained, gap) for text, trained, gap in shortened([("x" * 1000, True)])]
    [(400, True, 440), (160, True, 0)]
    """
    out: list[Run] = []
    skip = range(RUNS // 2, len(runs) - RUNS // 2)
    for n, (text, trained) in enumerate(runs):
        if n in skip:
            last, mine, gap = out[-1]
            out[-1] = (last, mine, gap + len(text))
        elif len(text) <= HEAD + TAIL + 40:
            out.append((text, trained, 0))
        else:
            out += [(text[:HEAD], trained, len(text) - HEAD - TAIL), (text[-TAIL:], trained, 0)]
    return out
