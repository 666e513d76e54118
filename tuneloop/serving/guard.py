"""The step of admission that looks at what is sent to the model and at what it answers.

What is blocked ends with finish_reason content_filter; a label or a vector of a blocked text is refused. Each finding
is counted, and written down without any text.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.recipe.serve import SafetyPart
from tuneloop.runs.journal import Journal
from tuneloop.safety.guard import GuardFinding, TextGuard
from tuneloop.safety.policy import TextSide
from tuneloop.serving.admission import Admission, Question, Submit, caller_of
from tuneloop.serving.engine import AnswerStream, Engine, Query
from tuneloop.serving.guard_model import ModelGuard
from tuneloop.serving.guarded_stream import Blocked, BlockedStream, GuardedStream, TreeFilter, texts_of

log = logging.getLogger("tuneloop.audit")
ACTIONS = ("block", "mask", "log")
"""What is done about a finding; one that is off is none."""
LONG = 16_384
"""Characters of a question from which a thread looks at it."""


class AuditLog:
    """What the guard found: JSON lines in a file, or the log "tuneloop.audit". No record holds a text."""

    def __init__(self, path: Path | None = None) -> None:
        self._journal = Journal(path) if path else None
        self.counts = Counter[tuple[TextSide, str, str]]()
        """(side, category, action) -> findings, for metrics."""

    def write(
        self, question: Question, side: TextSide, policy: str, findings: Sequence[GuardFinding], blocked: bool
    ) -> None:
        """A record of one text's findings; none where nothing was found."""
        if not findings:
            return
        self.counts.update((side, finding.category, finding.action) for finding in findings)
        caller = caller_of(question.request)
        fields = {
            "request": str(getattr(getattr(question.request, "state", None), "request_id", "")),
            "key": caller.id,
            "model": "" if getattr(question.request.state, "unlisted", False) else question.query.model,
            "side": side,
            "policy": policy,
            "blocked": blocked,
            "findings": [
                {"category": category, "action": action, "count": count}
                for (category, action), count in sorted(Counter((f.category, f.action) for f in findings).items())
            ],
        }
        if self._journal is not None:
            self._journal.write({"time": round(time.time(), 3), "event": "guard", **fields})
        else:
            log.log(logging.WARNING if blocked else logging.INFO, "guard", extra={"fields": fields})


class GuardStep(Admission):
    """Filters questions and answers by a guard's policy."""

    def __init__(
        self, guard: TextGuard, audit: AuditLog, model: ModelGuard | None = None, engine: Engine | None = None
    ) -> None:
        """`engine` is asked for its models: a name that it does not list is a client's text and in no record."""
        self.guard, self.audit, self._model, self._engine = guard, audit, model, engine

    @property
    def version(self) -> str:
        """What changes whenever an answer may: for the key of a cache."""
        return self.guard.version

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        query = question.query
        # A long text takes its time, in which others are to be answered.
        long = len(query.prompt) + sum(len(str(one)) for turn in query.chat for one in turn.values()) > LONG
        long = long or bool(query.tools or query.schema)
        safe, findings = await asyncio.to_thread(self._looked_at, query) if long else self._looked_at(query)
        if (
            safe is not None
            and self._model is not None
            and "input" in self._model.part.sides
            and (await self._model.refused(_text_of(query)))
        ):
            safe, findings = None, [*findings, GuardFinding("model", "block", 0, 0)]
        if findings and not await self._lists(query.model):
            question.request.state.unlisted = True
        self.audit.write(question, "input", self.version, findings, safe is None)
        if safe is None:
            if query.purpose in {"chat", "text"}:
                return BlockedStream(query.n)
            raise ServeError("TL-SERVE-GUARD", status=400, param="prompt")
        stream = await submit(replace(question, query=safe))
        if query.purpose not in {"chat", "text"}:
            return stream
        report = partial(self.audit.write, question, "output", self.version)
        judges = self._model is not None and "output" in self._model.part.sides
        return GuardedStream(
            stream, self.guard, query.n, report, self._model.refused if self._model and judges else None
        )

    async def _lists(self, name: str) -> bool:
        if self._engine is None:
            return True
        try:
            return any(model.name == name for model in await self._engine.models())
        except TuneloopError:  # no upstream answers
            return False

    def _looked_at(self, query: Query) -> tuple[Query | None, list[GuardFinding]]:
        """The query as it may pass, None where it is blocked; and what was found. Raises TL-SERVE-GUARD-TOKENS."""
        checker = TreeFilter(self.guard, "input")
        if not isinstance(query.prompt, str):
            raise ServeError("TL-SERVE-GUARD-TOKENS", status=400, param="prompt")
        try:
            chat: Any = checker.turns(query.chat)
            tools: Any = checker.turns(query.tools)
            schema: Any = checker.checked(query.schema)  # some servers write it into the prompt
            prompt = checker.text(query.prompt)
        except Blocked:
            return None, checker.findings
        return replace(query, chat=chat, tools=tools, schema=schema, prompt=prompt), checker.findings

    def take_over(self, before: Admission) -> None:
        """Go on with the counts. A model that judges is loaded anew: the policy may name another one."""
        if isinstance(before, GuardStep):
            self.audit.counts = before.audit.counts

    def gauges(self) -> Mapping[str, float]:
        """Findings by side and by what was done about them."""
        out = {f"guard_{side}_{action}_total": 0.0 for side in ("input", "output") for action in ACTIONS}
        for (side, _, action), count in self.audit.counts.items():
            out[f"guard_{side}_{action}_total"] += count
        return out

    async def close(self) -> None:
        """End the process of the model that judges, where there is one."""
        if self._model is not None:
            await self._model.aclose()

    def shut(self) -> None:
        """What `close` does, where no event loop is."""
        if self._model is not None:
            self._model.shut()


def _text_of(query: Query) -> str:
    """What a query says, for a model that judges it: the prompt, or all turns with their calls and thoughts, and what
    the tools and the schema say."""
    if isinstance(query.prompt, str) and query.prompt:
        return query.prompt
    contents = [str(turn.get("content") or "") for turn in query.chat]
    beside = [{name: one for name, one in turn.items() if name not in ("role", "content")} for turn in query.chat]
    functions = [tool.get("function") for tool in query.tools]
    return "\n".join(
        [*contents, *texts_of([one for one in beside if one]), *texts_of(functions), *texts_of(query.schema)]
    )


def guard_step(part: SafetyPart, workspace: Path = Path(), engine: Engine | None = None) -> GuardStep | None:
    """The step that the section `serve.safety` asks for, None where it is off. Raises what `read_policy` raises."""
    if part.policy == "off":
        return None
    guard = TextGuard.load(part.policy)
    model = ModelGuard.load(guard.policy.model, workspace) if guard.policy.model else None
    return GuardStep(guard, AuditLog(Path(part.audit) if part.audit else None), model, engine)


def policy_version(part: SafetyPart) -> str:
    """The version of a section's policy, "" where it is off: it changes with every word and action."""
    return "" if part.policy == "off" else TextGuard.load(part.policy).version
