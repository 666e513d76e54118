"""Ratings and gold rows as JSON lines: those made elsewhere come in, those made here go out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tuneloop.base.errors import DataError, nearby, os_words
from tuneloop.base.files import write_atomic
from tuneloop.base.language import listed, t
from tuneloop.evaluation.pairs import AnswerPair
from tuneloop.rating.rating import CHOICES, Rating, encodable
from tuneloop.rating.study import Study, rater_name

T = TypeVar("T")

MOST_PROBLEMS = 5
"""Malformed lines that an error names."""


def read_gold(file: Path) -> list[AnswerPair]:
    """Pairs whose right choice is known: prompt, answer_a, answer_b and choice of each line.

    Raises TL-DATA-RATINGS, which names file and line, and TL-DATA-MISSING.
    """
    right = {"A": "first", "B": "second", "tie": "tie", "both_bad": "both_bad"}

    def gold(content: dict[str, Any]) -> AnswerPair:
        texts = [content.get(key) for key in ("prompt", "answer_a", "answer_b")]
        if not all(isinstance(text, str) for text in texts) or content.get("choice") not in CHOICES:
            raise ValueError(
                t("a gold row needs prompt, answer_a, answer_b, and choice ({choices})", choices=listed(CHOICES))
            )
        prompt, a, b = (encodable(str(text)) for text in texts)
        return AnswerPair(prompt, a, b, right=right[str(content["choice"])])

    return _read(file, gold)


def read_ratings(file: Path, study: Study) -> list[Rating]:
    """The ratings of a file, of pairs and models that the study has. Raises TL-DATA-RATINGS and TL-DATA-MISSING.

    A line may name its pair by id, or bring prompt, answer_a and answer_b instead.
    """
    by_texts = {(p.prompt, *sorted((p.first, p.second))): key for key, p in study.pairs.items()}

    def rating(content: dict[str, Any]) -> Rating:
        if not content.get("pair"):
            answers = sorted(str(content.get(key)) for key in ("answer_a", "answer_b"))
            content = {**content, "pair": by_texts.get((str(content.get("prompt")), *answers), "")}
            if not content["pair"]:
                raise ValueError(t("these answers are no pair of the study"))
        read = Rating.from_dict(content)
        if read.pair not in study.pairs:
            raise ValueError(t("pair = {got}: the study has no such pair", got=repr(read.pair[:40])))
        if {read.model_a, read.model_b} != set(study.models):
            raise ValueError(t("model_a, model_b: the study compares {models}", models=listed(study.models)))
        if not read.choice:
            raise ValueError(f"choice: {listed(CHOICES)}")
        if not (name := rater_name(read.rater)):
            raise ValueError(t("rater: a name of 1 to 64 characters"))
        kind = "gold" if study.pairs[read.pair].right else read.kind
        return replace(read, rater=name, kind=kind)

    return _read(file, rating)


def write_ratings(file: Path, study: Study) -> int:
    """Write the ratings of a study, each with its prompt and answers as they were shown; how many lines."""
    lines = []
    for rating in study.ratings():
        pair = study.pairs.get(rating.pair)
        if pair is None or not rating.choice:
            continue
        a, b = (pair.first, pair.second) if rating.model_a == study.models[0] else (pair.second, pair.first)
        texts = {"prompt": pair.prompt, "answer_a": a, "answer_b": b}
        lines.append(json.dumps({**rating.as_dict(), **texts}, ensure_ascii=False) + "\n")
    write_atomic(file, "".join(lines).encode("utf-8", "backslashreplace"))
    return len(lines)


def _read(file: Path, make: Callable[[dict[str, Any]], T]) -> list[T]:
    """`make` of each line's object. All malformed lines stand in one error."""
    if not file.is_file():
        raise DataError("TL-DATA-MISSING", where=str(file), path=str(file), near=nearby(file))
    out: list[T] = []
    problems: list[DataError] = []
    for number, line in _lines(file):
        try:
            content = json.loads(line)
            if not isinstance(content, dict):
                raise ValueError(t("a JSON object is expected"))
            out.append(make(content))
        except (ValueError, RecursionError) as error:
            words = t("it is not JSON") if isinstance(error, json.JSONDecodeError) else str(error)
            problems.append(DataError("TL-DATA-RATING-LINE", where=f"{file}:{number}", error=words))
    if problems:
        n = len(problems)
        raise DataError("TL-DATA-RATINGS", where=str(file), n=n, causes=problems[:MOST_PROBLEMS])
    if not out:
        raise DataError("TL-DATA-EMPTY", where=str(file), path=str(file))
    return out


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("TL-DATA-RATING-LINE", where=str(file), error=os_words(error)) from error
    yield from ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
