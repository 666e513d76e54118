"""A file in, a file out: each row of any file that tuneloop reads, answered, labelled or scored by a model.

One row goes out for each that came in, in order. A row that cannot be answered says why in its column `error`. A prompt
that ends with an answer is asked without it, and the answer stands beside what the model says, as `reference`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tuneloop.base import refusals
from tuneloop.base.duration import about
from tuneloop.base.errors import TuneloopError
from tuneloop.base.language import t
from tuneloop.base.records import Kind
from tuneloop.data.kinds import answers
from tuneloop.data.reading import formats
from tuneloop.data.reading.inputs import InputFile, InputRow, digest, input_files, rows_of
from tuneloop.inference.batch import MOST
from tuneloop.inference.classifier import Classifier, likeliest
from tuneloop.inference.fingerprint import weights_fingerprint
from tuneloop.inference.generate import Answerer
from tuneloop.inference.output import Output, require_ending
from tuneloop.inference.scorer import Scorer

PARTS = 4
"""Batches that are written to the disk together: so many answers a crash may cost."""
INTERVAL = 5.0
"""Seconds between two lines of progress."""
Say = Callable[[str], None]
Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PredictSettings:
    """How a model that writes answers; `column` is the one that holds the question, where looking is not enough."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    column: str | None = None
    batch_size: int = MOST


@dataclass(frozen=True, slots=True)
class Predicted:
    """What came of it. `counts`: of labels, how many were given, and how many were the row's own; of answers, tokens
    and how many were cut off."""

    path: Path
    rows: int
    failed: int
    resumed: int
    """Rows that were there already."""
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


Judge = Callable[[Any, Sequence[InputRow], PredictSettings, Callable[[int], None]], list[Fields]]


def _written(answerer: Answerer, rows: Sequence[InputRow], how: PredictSettings, hear: Callable[[int], None]) -> Any:
    """Answers of a model that writes, all at once."""
    out: list[Fields] = [{} for _ in rows]
    fitting: list[int] = []
    for n, row in enumerate(rows):
        assert row.record is not None
        try:
            if row.record.tools:
                raise ValueError(t("the row offers tools, which are not offered here"))
            if (tokens := answerer.count(row.record.chat())) >= answerer.context:
                raise ValueError(
                    t("the prompt has {n} tokens, the model takes {context}", n=tokens, context=answerer.context)
                )
            fitting.append(n)
        except (TuneloopError, ValueError) as error:
            out[n] = {"error": _explained(error)}
    chats = [row.record.chat() for n in fitting if (row := rows[n]).record is not None]
    replies = answerer.answer(
        chats,
        max_new_tokens=how.max_new_tokens,
        temperature=how.temperature,
        top_p=how.top_p,
        batch_size=how.batch_size,
        seed=how.seed,
        progress=hear,
    )
    for n, reply in zip(fitting, replies, strict=True):
        out[n] = {"prediction": reply.text, "finish": reply.finish, "tokens": reply.tokens}
    return out


def _labelled(
    classifier: Classifier, rows: Sequence[InputRow], how: PredictSettings, hear: Callable[[int], None]
) -> list[Fields]:
    out: list[Fields] = []
    for n, row in enumerate(rows, 1):
        assert row.record is not None
        texts = tuple(m.content for m in row.record.messages)
        try:
            chances = classifier.classify([texts if len(texts) > 1 else texts[0]])[0]
            label = likeliest(chances)
            out.append({"prediction": label, "probability": chances[label], "probabilities": chances})
        except TuneloopError as error:
            out.append({"error": _explained(error)})
        hear(n)
    return out


def _scored(
    scorer: Scorer, rows: Sequence[InputRow], how: PredictSettings, hear: Callable[[int], None]
) -> list[Fields]:
    out: list[Fields] = []
    for n, row in enumerate(rows, 1):
        assert row.record is not None
        compared = answers(row.record) or (row.record.messages[len(row.record.prompt) :],)
        names = ("score", "rejected_score")
        try:
            chats = [[m.as_chat() for m in (*row.record.prompt, *turns)] for turns in compared]
            out.append(dict(zip(names, scorer.scores(chats), strict=False)))
        except TuneloopError as error:
            out.append({"error": _explained(error)})
        hear(n)
    return out


def _explained(error: Exception) -> str:
    return f"{error.code} {error.what}" if isinstance(error, TuneloopError) else str(error)


@dataclass(frozen=True, slots=True)
class _Way:
    """How one kind of model predicts: the rows it takes, what it makes of them, and its columns."""

    kind: Kind
    judge: Judge
    columns: tuple[str, ...]


WAYS: dict[type, _Way] = {
    Answerer: _Way("chat", _written, ("reference", "prediction", "finish", "tokens", "error")),
    Classifier: _Way("label", _labelled, ("reference", "prediction", "probability", "probabilities", "error")),
    Scorer: _Way("preference", _scored, ("score", "rejected_score", "error")),
}
"""What answers for a model -> how it predicts."""


def predict(
    answerer: Answerer | Classifier | Scorer,
    path: str,
    out: Path,
    how: PredictSettings,
    *,
    again: bool = False,
    name: str = "",
    say: Say = lambda text: None,
) -> Predicted:
    """Answer each row of the file at `path` into `out`, and go on where it was stopped. `name` is the model's.

    Raises what reading raises, TL-DATA-QUESTIONS, and TL-RECIPE-VALUE, TL-RUN-OUT-EXISTS, TL-RUN-OUT-OTHER or
    TL-RUN-OUT-BUSY for an `out` that is something else's.
    """
    began = time.perf_counter()
    require_ending(out)
    way = WAYS[type(answerer)]
    files = input_files(path, way.kind, how.column)
    output = Output(out, _identity(answerer, files, how), name, _columns(files, way, answerer))
    with refusals.writing(out.parent), output.alone():
        output.open(again=again)
        resumed = output.rows
        if not output.finished:
            if resumed:
                say(t("Going on after {n} rows", n=f"{resumed:,}"))
            _fill(answerer, way, files, output, how, say)
            output.finish()
    return Predicted(out, output.rows, output.failed, resumed, round(time.perf_counter() - began, 2), output.counts)


def _fill(
    answerer: Answerer | Classifier | Scorer,
    way: _Way,
    files: list[InputFile],
    output: Output,
    how: PredictSettings,
    say: Say,
) -> None:
    """Answer the rows that are not in the output yet, part by part."""
    total = sum(1 for file in files for _ in formats.raw_rows(file.blob, file.guess))
    rows = islice(_all_rows(files, way.kind, how.column), output.rows, None)
    progress = _Progress(total, output.rows, say)
    while part := list(islice(rows, PARTS * how.batch_size)):
        seed = None if how.seed is None else how.seed + output.rows
        settings = PredictSettings(how.max_new_tokens, how.temperature, how.top_p, seed, how.column, how.batch_size)
        questions = [row for row in part if row.record is not None]
        outcomes = iter(way.judge(answerer, questions, settings, progress.hear) if questions else ())
        each = [(row, {"error": row.problem} if row.record is None else next(outcomes)) for row in part]
        lines = [_joined(row, one, table=output.is_table, keep=_keeps(files)) for row, one in each]
        failed = sum("error" in one for _, one in each)
        output.append(lines, failed=failed, counts=_counts(each))
        progress.settle(output.rows)


def _all_rows(files: list[InputFile], kind: Kind, column: str | None) -> Iterator[InputRow]:
    for file in files:
        yield from rows_of(file, kind, column)


def _keeps(files: list[InputFile]) -> bool:
    """Whether a table that goes out has the columns of the one that came in."""
    return all(file.table and file.guess.columns == files[0].guess.columns for file in files)


def _joined(row: InputRow, outcome: Mapping[str, Any], *, table: bool, keep: bool) -> Fields:
    """The row that goes out: where it lay, its own columns, and what was found."""
    ours = {**({"reference": row.reference} if row.reference is not None else {}), **outcome}
    place = {"file": row.file, "line": row.line}
    if not table:
        taken = {*place, *OURS}
        own = {(f"input_{name}" if name in taken else name): cell for name, cell in row.columns.items()}
        return {**place, **own, **ours}
    chances = ours.pop("probabilities", None) or {}
    own = {_own(name): cell for name, cell in row.columns.items()} if keep else {"input": dict(row.columns)}
    return {**own, **place, **ours, **{f"probability_{label}": chance for label, chance in chances.items()}}


OURS = ("reference", "prediction", "finish", "tokens", "probability", "probabilities", "score", "rejected_score",
        "error")  # fmt: skip


def _own(name: str) -> str:
    """The name of a column of the input in the output.

    >>> _own("review"), _own("line"), _own("error")
    ('review', 'input_line', 'input_error')
    """
    return f"input_{name}" if name in ("file", "line", *OURS) or name.startswith("probability_") else name


def _columns(files: list[InputFile], way: _Way, answerer: Any) -> tuple[str, ...]:
    """The header of a table that goes out."""
    own = tuple(_own(name) for name in files[0].guess.columns) if _keeps(files) else ("input",)
    ours = [name for name in way.columns if name != "probabilities"]
    if isinstance(answerer, Classifier):
        ours[-1:] = [*(f"probability_{label}" for label in answerer.labels), "error"]
    return (*own, "file", "line", *ours)


def _identity(answerer: Any, files: list[InputFile], how: PredictSettings) -> dict[str, str]:
    """What the rows that go out depend on."""
    writing = {
        "max_new_tokens": how.max_new_tokens, "temperature": how.temperature, "top_p": how.top_p, "seed": how.seed,
        "system": getattr(answerer, "system", None), "answer_prefix": getattr(answerer, "answer_prefix", None),
    }  # fmt: skip
    facts = {
        "input": digest(files), "model": weights_fingerprint(answerer.model), "column": how.column,
        "template": getattr(answerer.tokenizer, "chat_template", None),
        **(writing if isinstance(answerer, Answerer) else {}),
    }  # fmt: skip
    return {name: str(one)[:200] for name, one in facts.items() if one is not None}


def _counts(each: Sequence[tuple[InputRow, Mapping[str, Any]]]) -> dict[str, int]:
    out: dict[str, int] = {}
    for row, one in each:
        if "finish" in one:
            add = {"tokens": int(one["tokens"]), "cut": int(one["finish"] == "length")}
        elif "probability" in one and row.reference is not None:
            add = {"labelled": 1, "right": int(one["prediction"] == row.reference)}
        else:
            continue
        out = {**out, **{name: out.get(name, 0) + n for name, n in add.items()}}
    return out


class _Progress:
    """Says now and then how many rows are done, how fast, and how long it still takes."""

    def __init__(self, total: int, done: int, say: Say) -> None:
        self.total, self.done, self.say = total, done, say
        self.first, self.began = done, time.perf_counter()
        self.last = self.began

    def hear(self, written: int) -> None:
        """So many rows of the part that is under way are done."""
        now = time.perf_counter()
        if now - self.last < INTERVAL:
            return
        self.last = now
        done = self.done + written
        rate = (done - self.first) / (now - self.began)
        left = about((self.total - done) / rate) if rate else "?"
        self.say(
            t(
                "  {n} of {total} rows, {rate:.2g} a second, about {left} left",
                n=f"{done:,}",
                total=f"{self.total:,}",
                rate=rate,
                left=left,
            )
        )

    def settle(self, done: int) -> None:
        """So many rows are on the disk."""
        self.done = done
