"""The step that keeps replies, as `serve.records` says: question and answer go to the store, behind the answer."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from tuneloop.base.errors import TuneloopError
from tuneloop.improvement.archive import Archive
from tuneloop.improvement.replies import KeptReply, put_replies
from tuneloop.recipe.serve import RecordsPart
from tuneloop.serving.admission import Admission, Question, Submit, caller_of
from tuneloop.serving.engine import AnswerStream, Piece, Query, WrappedStream
from tuneloop.serving.guarded_stream import texts_of

log = logging.getLogger("tuneloop.serving")
MOST_WAITING, MOST_LETTERS = 10_000, 64_000_000
"""Replies that wait for the store, and characters in them; beyond that they are dropped, and the log says so."""
AT_ONCE = 256
RECORDED = frozenset({"chat", "text"})
"""Purposes whose answers are kept: those that have an id."""


class ReplyWriter:
    """Writes replies down in a thread of its own, several in one transaction, so that no answer waits for a disk."""

    def __init__(self, archive: Archive, *, masked: bool) -> None:
        self._archive, self.masked = archive, masked
        self._waiting: queue.Queue[tuple[KeptReply, int] | threading.Event | None] = queue.Queue(MOST_WAITING)
        self._letters = 0
        """Of the replies that wait."""
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def put(self, reply: KeptReply) -> None:
        """Never waits."""
        size = sum(map(len, texts_of([reply.question, *reply.answers])))
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_for_ever, name="replies", daemon=True)
                self._thread.start()
            try:
                if self._letters and self._letters + size > MOST_LETTERS:
                    raise queue.Full
                self._waiting.put_nowait((reply, size))
                self._letters += size
            except queue.Full:
                log.error("a reply was not kept: the store is too slow")

    def flush(self, seconds: float = 30.0) -> None:
        """Wait until what was put so far is in the store."""
        if self._thread is not None:
            written = threading.Event()
            with suppress(queue.Full):
                self._waiting.put(written, timeout=seconds)
                written.wait(seconds)

    def close(self) -> None:
        """Write down what waits, and end."""
        if self._thread is not None:
            with suppress(queue.Full):
                self._waiting.put(None, timeout=30)
                self._thread.join(30)

    def _write_for_ever(self) -> None:
        going_on = True
        while going_on:
            entries = [self._waiting.get()]
            while entries[-1] is not None and len(entries) < AT_ONCE and not self._waiting.empty():
                entries.append(self._waiting.get())
            going_on = entries[-1] is not None
            replies = [one for one in entries if isinstance(one, tuple)]
            self._write([reply for reply, _ in replies])
            with self._lock:
                self._letters -= sum(size for _, size in replies)
            for one in entries:
                if isinstance(one, threading.Event):
                    one.set()

    def _write(self, rows: list[KeptReply]) -> None:
        if not rows:
            return
        try:
            self._archive.store.retried(lambda connection: put_replies(connection, rows, masked=self.masked))
        except TuneloopError as error:
            log.error("%d replies were not kept: %s", len(rows), error.code)
        except Exception as error:  # one that cannot be written costs no other, nor those to come
            if len(rows) == 1:
                log.error("a reply was not kept: %s", type(error).__name__)  # never the row itself: it is a text
                return
            for row in rows:
                self._write([row])


@dataclass(slots=True)
class _Answered:
    text: str = ""
    thought: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    finish: str = ""

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.thought += piece.thought
        self.finish = piece.finish or self.finish
        for part in piece.calls:
            while len(self.calls) <= part.index:
                self.calls.append({"name": "", "arguments": ""})
            self.calls[part.index]["name"] += part.name
            self.calls[part.index]["arguments"] += part.arguments


class RecordedStream(WrappedStream):
    """An AnswerStream that hands on what went through it, once, however it ends."""

    def __init__(self, stream: AnswerStream, choices: int, ended: Callable[[RecordedStream], None]) -> None:
        super().__init__(stream)
        self._ended, self._over = ended, False
        self.answers = [_Answered() for _ in range(choices)]
        self.tokens = 0

    async def __anext__(self) -> Piece:
        try:
            piece = await anext(self._stream)
        except BaseException:
            self._end()
            raise
        self.answers[piece.choice].add(piece)
        self.tokens += piece.tokens
        return piece

    def _end(self) -> None:
        if not self._over:
            self._over = True
            self._ended(self)

    async def aclose(self) -> None:
        self._end()
        await self._stream.aclose()


class Records(Admission):
    """Keeps the replies that the policy wants kept. `version` is what the server was started with."""

    def __init__(self, archive: Archive, writer: ReplyWriter, policy: RecordsPart, version: str) -> None:
        self._archive, self._writer, self._policy, self._version = archive, writer, policy, version

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        state, began = question.request.state, int(time.time())
        reply = getattr(state, "reply_id", "")
        if not reply or question.query.purpose not in RECORDED or not wanted(reply, self._policy):
            return await submit(question)
        prompt = state.prompts = getattr(state, "prompts", -1) + 1
        stream = await submit(question)
        caller = caller_of(question.request)
        query = question.query

        def ended(recorded: RecordedStream) -> None:
            user = self._archive.users.of(query.user or caller.name)
            self._writer.put(
                KeptReply(
                    id=reply,
                    prompt=prompt,
                    created=began,
                    tenant=caller.tenant,
                    key_id=caller.id,
                    user_hash=user,
                    model=query.model,
                    version=self._version,
                    arm="",
                    purpose=query.purpose,
                    question=question_of(query),
                    answers=[asdict(one) for one in recorded.answers],
                    prompt_tokens=recorded.prompt_tokens,
                    answer_tokens=recorded.tokens,
                )
            )

        return RecordedStream(stream, query.n, ended)


def wanted(reply: str, policy: RecordsPart) -> bool:
    """Whether the reply of an id is kept: the same for all prompts of one request, and in every process.

    >>> [wanted(f"chatcmpl-{k}", RecordsPart(replies="sampled", share=0.5)) for k in range(4)]
    [False, True, True, False]
    """
    if policy.replies != "sampled":
        return policy.replies == "full"
    drawn = int.from_bytes(hashlib.sha256(reply.encode()).digest()[:8], "big") / 2**64
    return drawn < policy.share


def question_of(query: Query) -> dict[str, Any]:
    """What shaped an answer, as JSON: texts, tools, the schema and how it was sampled."""
    shape: dict[str, Any] = {"sampling": asdict(query.sampling), "max_new_tokens": query.max_new_tokens}
    if query.purpose == "text":
        shape["prompt"] = query.prompt if isinstance(query.prompt, str) else list(query.prompt)
    else:
        shape["messages"] = query.chat
    given = {"tools": list(query.tools), "schema": query.schema, "stop": list(query.stop), "thinking": query.thinking}
    return shape | {name: one for name, one in given.items() if one not in (None, [])}
