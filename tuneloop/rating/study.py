"""A study: pairs of answers that people rate blind, who is shown what in which order, and what they rated.

It lies in the run's folder, `<run>/ratings/<name>/`: study.json holds the pairs and each rater's plan with the sides
that were drawn, ratings.jsonl each change as it was made.
"""

from __future__ import annotations

import json
import math
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout

from tuneloop.base.errors import RunError
from tuneloop.base.files import flush, write_atomic
from tuneloop.evaluation.pairs import AnswerPair, Pairing
from tuneloop.rating.rating import AnswerRating, Rating, SlotKind
from tuneloop.registry.store import now
from tuneloop.runs.journal import Journal
from tuneloop.runs.lock import lock
from tuneloop.runs.run import Run

FOLDER, FILE, JOURNAL = "ratings", "study.json", "ratings.jsonl"
LEAST_OVERLAP = 0.2
LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in a rater's order: a pair, why it is shown, and whether the second answer stands on the left."""

    pair: str
    kind: SlotKind
    swapped: bool


@dataclass(frozen=True, slots=True)
class Shares:
    """How rows are given out: `raters` share them, all see `overlap` of them, `repeats` of a rater's come twice."""

    raters: int = 1
    overlap: float = LEAST_OVERLAP
    repeats: float = 0.1
    seed: int = 0


@dataclass
class Study:
    """The pairs of two models, and the plan of each rater who came. One process at a time writes it (`alone`)."""

    folder: Path
    models: tuple[str, str]
    pairs: dict[str, AnswerPair]
    shares: Shares = Shares()
    plans: dict[str, list[Slot]] = field(default_factory=dict)

    @classmethod
    def at(cls, run: Run, other: Run | None) -> Path:
        """The folder of the study of one run before and after training, or of two runs."""
        name = "before-after" if other is None else re.sub(r"[^\w.-]", "-", other.name)
        return run.path / FOLDER / name

    @classmethod
    def begin(cls, folder: Path, pairing: Pairing, gold: Sequence[AnswerPair], shares: Shares) -> Study:
        """A new study, written down."""
        pairs = {pair.id: pair for pair in (*pairing.pairs, *gold)}
        study = cls(folder, pairing.models, pairs, shares)
        folder.mkdir(parents=True, exist_ok=True)
        study.write()
        return study

    @classmethod
    def read(cls, folder: Path) -> Study | None:
        """The study of a folder, None where there is none. Raises TL-RUN-DAMAGED."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            pairs = {one["id"]: AnswerPair.from_dict(one) for one in content["pairs"]}
            plans = {name: [Slot(**slot) for slot in slots] for name, slots in content["raters"].items()}
            first, second = content["models"]
            return cls(folder, (first, second), pairs, Shares(**content["shares"]), plans)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError("TL-RUN-DAMAGED", where=str(path), error=str(error)) from error

    def write(self) -> None:
        """Write study.json, whole or not at all."""
        content = {
            "models": list(self.models),
            "shares": asdict(self.shares),
            "pairs": [pair.as_dict() for pair in self.pairs.values()],
            "raters": {name: [asdict(slot) for slot in slots] for name, slots in self.plans.items()},
        }
        write_atomic(self.folder / FILE, json.dumps(content, indent=1, ensure_ascii=False), sync=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else serves this study meanwhile. Raises TL-RUN-RATING-BUSY."""
        try:
            with lock(self.folder / ".lock", wait=0):
                yield
        except Timeout as error:
            raise RunError("TL-RUN-RATING-BUSY", where=str(self.folder)) from error

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / JOURNAL)

    def join(self, rater: str) -> list[Slot]:
        """The plan of a rater, drawn and written down when the name is new."""
        if rater not in self.plans:
            self.plans[rater] = self._plan(rater)
            self.write()
        return self.plans[rater]

    def _plan(self, rater: str) -> list[Slot]:
        """Rows of this rater's share in an order of their own, repeats far behind their first, gold rows anywhere.

        The sides are a draw of as many swapped rows as unswapped ones.
        """
        shares, number = self.shares, len(self.plans)
        rows = [key for key, pair in self.pairs.items() if not pair.right]
        random.Random(f"{shares.seed} rows").shuffle(rows)
        common = math.ceil(shares.overlap * len(rows))
        mine = rows[:common] + rows[common:][number % shares.raters :: shares.raters]
        draw = random.Random(f"{shares.seed} {number} {rater}")
        draw.shuffle(mine)
        sides = [n % 2 == 0 for n in range(len(mine))]
        draw.shuffle(sides)
        plan = [Slot(key, "row", swapped) for key, swapped in zip(mine, sides, strict=True)]
        count = math.ceil(shares.repeats * len(plan)) if len(plan) > 1 else 0
        again = draw.sample(plan[: math.ceil(len(plan) / 2)], min(count, math.ceil(len(plan) / 2)))
        late = math.ceil(len(plan) * 2 / 3)
        for slot in again:
            plan.insert(draw.randint(late, len(plan)), Slot(slot.pair, "repeat", not slot.swapped))
        for key in (key for key, pair in self.pairs.items() if pair.right):
            plan.insert(draw.randint(0, len(plan)), Slot(key, "gold", draw.random() < 0.5))
        return plan

    def blank(self, rater: str, slot: Slot) -> Rating:
        """The rating of a slot before anything is rated."""
        left, right = reversed(self.models) if slot.swapped else self.models
        return Rating(slot.pair, rater, left, right, slot.kind)

    def shown(self, slot: Slot) -> tuple[str, str]:
        """The answers on the left and on the right."""
        pair = self.pairs[slot.pair]
        return (pair.second, pair.first) if slot.swapped else (pair.first, pair.second)

    def cut(self, slot: Slot) -> tuple[bool, bool]:
        """Whether the answers on the left and on the right were cut off."""
        first, second = self.pairs[slot.pair].cut
        return (second, first) if slot.swapped else (first, second)

    def ratings(self) -> list[Rating]:
        """The last rating of each rater, pair and kind, in the order of the first change; unfinished ones as well."""
        last: dict[tuple[str, str, str], Rating] = {}
        for line in self.journal.lines():
            try:
                rating = Rating.from_dict(line)
            except ValueError:  # edited by hand: what else was rated still counts
                continue
            last[rating.key] = rating
        return list(last.values())

    def add(self, ratings: Sequence[Rating]) -> None:
        """Write ratings down; they are on the disk when this returns."""
        for rating in ratings:
            self.journal.write(rating.as_dict())
        flush(self.folder / JOURNAL)

    def left(self) -> dict[str, int]:
        """Rater -> slots that are not rated completely."""
        complete = {rating.key for rating in self.ratings() if rating.complete}
        return {
            name: sum((name, slot.pair, slot.kind) not in complete for slot in slots)
            for name, slots in self.plans.items()
        }


def rater_name(text: str) -> str:
    """A rater's name in one form: composed characters, one blank between words; "" where it cannot be one.

    >>> rater_name("  Li   Na "), rater_name("\\x00"), rater_name("x" * 65)
    ('Li Na', '', '')
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    bare = re.sub("[\u200c\u200d]", "", name)  # joiners: names in Persian have them, and emoji
    return name if bare.isprintable() and bare and len(name) <= LONGEST_NAME else ""


def rated(blank: Rating, content: dict[str, Any], seconds: float | None) -> Rating:
    """The blank rating of a slot, filled with what a page sent. Raises ValueError, which names the column."""
    filled = Rating.from_dict(
        {**blank.as_dict(), **{k: v for k, v in content.items() if k in COLUMNS}, "seconds": seconds}
    )
    return Rating.from_dict({**filled.as_dict(), "time": now()})


COLUMNS = frozenset({"choice", *AnswerRating().columns("a"), *AnswerRating().columns("b")})
"""What a page may fill in; who stood where, the study knows itself."""
