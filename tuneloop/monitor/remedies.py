"""Remedies: what a run did about its trouble. A remedy is a line of events.jsonl, and a resume with an amendment.

    {"event": "remedy", "remedy": "spike", "step": 31, "resume_at": 20, "amendment": {"skip": [30], "rate": 0.5}, …}

Whoever resumes the run reads the amendments of all its remedies (`amended`), so that a mended run that is killed goes
on bit for bit as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self, cast

from tuneloop.base.errors import catalogue
from tuneloop.base.files import format_bytes
from tuneloop.base.language import current, listed, t
from tuneloop.monitor.alerts import SIGNS, NoticeWords

RemedyName = Literal["memory", "spike", "stop", "disk"]


@dataclass(frozen=True, slots=True)
class Slower:
    """From optimizer step `step` on (steps done by then) the learning rate is `rate` times what the schedule says, and
    rises to that over `warmup` steps."""

    step: int
    rate: float
    warmup: int


@dataclass(frozen=True, slots=True)
class Amendment:
    """What remedies have changed of a recipe. The empty one changes nothing.

    micro_batch_size: examples in a micro-batch at most; checkpointing: activations are recomputed in the backward pass;
    offload: those that the backward pass needs wait in CPU memory; skip: batches of the plan, counted from
    0 over all epochs, that are not trained on; drop: examples, counted from 0, that are not trained on in any epoch;
    slower: changes of the learning rate, each on top of those before.
    """

    micro_batch_size: int | None = None
    checkpointing: bool = False
    offload: bool = False
    skip: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    slower: tuple[Slower, ...] = ()

    def __bool__(self) -> bool:
        return self != Amendment()

    def as_dict(self) -> dict[str, Any]:
        """Only what it changes.

        >>> Amendment(skip=(4,)).as_dict(), Amendment.of({"skip": [4]}).skip
        ({'skip': (4,)}, (4,))
        """
        usual = Amendment()
        return {f.name: asdict(self)[f.name] for f in fields(self) if getattr(self, f.name) != getattr(usual, f.name)}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self:
        """What `as_dict` wrote, read back from JSON."""
        given = {f.name: facts[f.name] for f in fields(cls) if f.name in facts}
        given |= {name: tuple(int(k) for k in given[name]) for name in ("skip", "drop") if name in given}
        if "slower" in given:
            given["slower"] = tuple(Slower(**one) for one in given["slower"])
        return cls(**given)

    def beside(self, later: Amendment) -> Amendment:
        """This one with a later one on top. A lower rate from an earlier step on is meant of all that was before."""
        begin = min((one.step for one in later.slower), default=math.inf)
        return replace(
            self,
            micro_batch_size=later.micro_batch_size or self.micro_batch_size,
            checkpointing=self.checkpointing or later.checkpointing,
            offload=self.offload or later.offload,
            skip=tuple(dict.fromkeys((*self.skip, *later.skip))),
            drop=tuple(dict.fromkeys((*self.drop, *later.drop))),
            slower=(*(replace(one, step=int(min(one.step, begin))) for one in self.slower), *later.slower),
        )


@dataclass(frozen=True, slots=True)
class Remedy:
    """What was done after optimizer step `step`; the run went on from step `resume_at`. `facts` fill its words."""

    remedy: RemedyName
    step: int
    resume_at: int
    amendment: Amendment = field(default_factory=Amendment)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The code that `tuneloop explain` knows: TL-REMEDY-SPIKE, say."""
        return f"TL-REMEDY-{self.remedy.upper()}"

    def as_event(self) -> dict[str, Any]:
        """The fields of its line, without event and time."""
        return {
            "remedy": self.remedy,
            "step": self.step,
            "resume_at": self.resume_at,
            "amendment": self.amendment.as_dict(),
            "facts": self.facts,
        }

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Self:
        """The remedy of a line of events.jsonl. KeyError, ValueError or TypeError where the line is none."""
        remedy, step, resume_at = line["remedy"], line["step"], line["resume_at"]
        if not (isinstance(remedy, str) and type(step) is int and type(resume_at) is int):
            raise ValueError(f"no remedy: {line}")
        return cls(
            cast("RemedyName", remedy),
            step,
            resume_at,
            Amendment.of(line.get("amendment") or {}),
            dict(line.get("facts") or {}),
        )


def remedies(events: Iterable[Mapping[str, Any]]) -> list[Remedy]:
    """Those among the lines of events.jsonl, in order."""
    return [Remedy.of(line) for line in events if line.get("event") == "remedy"]


def amended(events: Iterable[Mapping[str, Any]]) -> Amendment:
    """All amendments of a run together."""
    together = Amendment()
    for remedy in remedies(events):
        together = together.beside(remedy.amendment)
    return together


def words(remedy: Remedy) -> NoticeWords:
    """What a remedy was, in the chosen language."""
    texts = catalogue("remedy", current())[remedy.code]
    facts = {"step": remedy.step, "resume_at": remedy.resume_at, "where": "", **remedy.facts, **_facts(remedy)}
    what, why, do = (texts[part].format_map(facts).strip() for part in ("what", "why", "do"))
    return NoticeWords(what, why, do)


def shown(remedy: Remedy) -> list[str]:
    """A remedy as lines of plain text, the way alerts are shown: what was done, and below it what one may still do."""
    text = words(remedy)
    head = t("{sign} remedied: {what} ({code})", sign=SIGNS["remedy"], what=text.what, code=remedy.code)
    return [head, f"   -> {text.do}"] if text.do else [head]


def _facts(remedy: Remedy) -> dict[str, Any]:
    """Facts that are words or figures for people."""
    amendment, facts = remedy.amendment, remedy.facts
    changes = [
        *([t("micro-batches of at most {n} rows", n=n)] if (n := amendment.micro_batch_size) else []),
        *([t("activations recomputed in the backward pass")] if amendment.checkpointing else []),
        *([t("activations offloaded to CPU memory")] if amendment.offload else []),
    ]
    causes = {
        "nan": t("the loss or its gradient was NaN or infinite"),
        "rebound": t("the loss diverged"),
        "exploding": t("the gradient exploded"),
    }
    return {
        "changes": listed(changes),
        "cause": causes.get(str(facts.get("cause")), ""),
        "rate": f"{float(facts.get('rate', 0)):.2g}",
        "size": format_bytes(int(facts.get("bytes", 0))),
        "rows": listed(facts.get("rows") or ()),
        "loss": f"{float(facts.get('loss') or 0):.4f}",
    }
