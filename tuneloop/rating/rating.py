"""One rating: what one rater thinks of two answers, and the columns it has as a JSON line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SCALES = ("relevance", "fluency", "informativeness")
"""What is scored from 0 to 5, of each answer."""
MOST = 5
CHOICES = ("A", "B", "tie", "both_bad")
"""Which answer is better: A stood on the left, B on the right."""
MODELS_CHOSEN = ("first", "second", "tie", "both_bad")
"""The same by the models of a study, whatever side they stood on."""
SAFETY = {"pass": True, "fail": False}
MOST_SECONDS = 1e9
LONGEST_REASON = 2000
"""Characters of a reason."""
SlotKind = Literal["row", "repeat", "gold"]
KINDS: tuple[SlotKind, ...] = ("row", "repeat", "gold")
SIDES = ("a", "b")


def encodable(text: str) -> str:
    """A text as every file and database takes it: half a surrogate pair and the zero character are replaced.

    >>> encodable("a" + chr(0xD83D) + chr(0) + "b")
    'a??b'
    """
    return text.encode("utf-8", "replace").decode("utf-8").replace("\x00", "?")


@dataclass(frozen=True, slots=True)
class AnswerRating:
    """What a rater thinks of one answer; None: not rated yet. `scores` are those of SCALES, in their order."""

    scores: tuple[int | None, int | None, int | None] = (None, None, None)
    safe: bool | None = None
    reason: str = ""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be rated: an answer that is not safe needs a reason."""
        return None not in self.scores and self.safe is not None and (self.safe or bool(self.reason.strip()))

    def columns(self, side: str) -> dict[str, Any]:
        """The columns of a side, "a" or "b"."""
        safety = None if self.safe is None else "pass" if self.safe else "fail"
        scores = {f"{scale}_{side}": score for scale, score in zip(SCALES, self.scores, strict=True)}
        return {**scores, f"safety_{side}": safety, f"safety_reason_{side}": self.reason}

    @classmethod
    def from_columns(cls, content: Mapping[str, Any], side: str) -> AnswerRating:
        """What the columns of a side hold. Raises ValueError, which names the column, for what they cannot hold."""
        scores = [_score(content, f"{scale}_{side}") for scale in SCALES]
        safety = content.get(f"safety_{side}")
        if safety not in (None, "", *SAFETY):
            raise ValueError(f"safety_{side} = {str(safety)[:40]!r}: pass, fail")
        reason = content.get(f"safety_reason_{side}") or ""
        if not isinstance(reason, str) or len(reason) > LONGEST_REASON:
            raise ValueError(f"safety_reason_{side}: a text of at most {LONGEST_REASON} characters")
        return cls((scores[0], scores[1], scores[2]), SAFETY.get(safety or ""), encodable(reason))


def _score(content: Mapping[str, Any], column: str) -> int | None:
    score = content.get(column)
    if score is None or score == "":
        return None
    if isinstance(score, bool) or not isinstance(score, int) or not 0 <= score <= MOST:
        raise ValueError(f"{column} = {str(score)[:40]!r}: 0 .. {MOST}")
    return score


@dataclass(frozen=True, slots=True)
class Rating:
    """One rater's view of one pair as it was shown: `model_a` wrote the answer on the left."""

    pair: str
    rater: str
    model_a: str
    model_b: str
    kind: SlotKind = "row"
    a: AnswerRating = AnswerRating()
    b: AnswerRating = AnswerRating()
    choice: str = ""
    """One of CHOICES, "" as long as none is made."""
    time: str = ""
    seconds: float | None = None
    """For how long the pair was looked at."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be rated."""
        return self.choice != "" and self.a.complete and self.b.complete

    @property
    def key(self) -> tuple[str, str, str]:
        """What is rated by whom: of equal keys the last rating counts."""
        return self.rater, self.pair, self.kind

    def chosen(self, models: tuple[str, str]) -> str:
        """The choice by the two models of a study: one of MODELS_CHOSEN, "" where none is made."""
        if self.choice not in ("A", "B"):
            return self.choice
        return "first" if (self.model_a if self.choice == "A" else self.model_b) == models[0] else "second"

    def of(self, model: str) -> AnswerRating:
        """What is thought of the answer of one model."""
        return self.a if model == self.model_a else self.b

    def as_dict(self) -> dict[str, Any]:
        """The columns of a JSON line."""
        return {
            "pair": self.pair,
            "rater": self.rater,
            "kind": self.kind,
            "model_a": self.model_a,
            "model_b": self.model_b,
            "choice": self.choice or None,
            **self.a.columns("a"),
            **self.b.columns("b"),
            "time": self.time,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Rating:
        """A rating of a JSON line's columns. Raises ValueError, which names the column, for what they cannot hold."""
        texts = {key: content.get(key) for key in ("pair", "rater", "model_a", "model_b")}
        for key, text in texts.items():
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{key}: a text")
        kind, choice = content.get("kind") or "row", content.get("choice") or ""
        if kind not in KINDS:
            raise ValueError(f"kind = {str(kind)[:40]!r}: {', '.join(KINDS)}")
        if choice not in ("", *CHOICES):
            raise ValueError(f"choice = {str(choice)[:40]!r}: {', '.join(CHOICES)}")
        seconds = content.get("seconds")
        if seconds is not None and (
            isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < MOST_SECONDS
        ):
            raise ValueError(f"seconds = {str(seconds)[:40]!r}: 0 ..")
        a, b = (AnswerRating.from_columns(content, side) for side in SIDES)
        time = str(content.get("time") or "")[:32]
        return cls(
            **{k: str(v) for k, v in texts.items()}, kind=kind, a=a, b=b, choice=choice, time=time, seconds=seconds
        )
