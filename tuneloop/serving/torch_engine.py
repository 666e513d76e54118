"""The engine of this process: one model, one thread that answers one request at a time, and a queue before it.

torch blocks; the event loop must not. So the thread owns the model, and hands what it has made to the loop of whoever
asked. A request that nobody waits for any more is taken out of the queue, or stopped before its next token.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.records import Reply
from tuneloop.data.tokens.templates import Chat

if TYPE_CHECKING:
    from tuneloop.inference.classifier import Classifier
    from tuneloop.inference.generate import Answerer
    from tuneloop.inference.scorer import Scorer

log = logging.getLogger("tuneloop.serving")

JOIN_SECONDS = 60
"""How long closing waits for a token that is being computed; the prompt of a long conversation counts as one."""


class _Cancelled(BaseException):
    """Ends a generation between two tokens. Not an Exception: nobody on the way may take it for a failure."""


@dataclass(slots=True, eq=False)
class _Job:
    chat: Chat
    options: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    out: asyncio.Queue[str | Reply | BaseException] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def put(self, piece: str | Reply | BaseException) -> None:
        """Hand a piece to the waiting coroutine, from any thread; a loop that has ended cancels the job."""
        try:
            self.loop.call_soon_threadsafe(self.out.put_nowait, piece)
        except RuntimeError:
            self.cancelled.set()


class TorchEngine:
    """An Engine over an Answerer, which it has to itself from now on. `close` it when done.

    May be used from several threads and event loops.
    """

    def __init__(self, answerer: Answerer | Classifier | Scorer) -> None:
        self._answerer = answerer
        # A fast tokenizer must not be used by two threads at once, and counting must not wait for an answer to end.
        self._counter = copy.copy(answerer)
        self._counter.tokenizer = copy.deepcopy(answerer.tokenizer)
        self._counting = threading.Lock()
        self.context = answerer.context
        """Longest prompt and answer together, in tokens."""
        self.labels: tuple[str, ...] = getattr(answerer, "labels", ())
        """The labels of a classifier; none of a model that writes."""
        self._jobs: deque[_Job] = deque()
        self._current: _Job | None = None
        self.open = True
        """False once `close` was called."""
        self._seconds = 1.0
        self._wake = threading.Condition()
        # The pieces of text come when characters are whole; a cancelled answer must end at the next token, so the
        # question is asked where each token begins: before the model's forward.
        self._hook = answerer.model.register_forward_pre_hook(self._stop_if_cancelled)
        self._thread = threading.Thread(target=self._work, name="tuneloop-engine", daemon=True)
        self._thread.start()

    async def count(self, chat: Chat) -> int:
        """Prompt tokens of a chat. Raises TL-DATA-TEMPLATE for one that the chat template refuses."""
        return await asyncio.to_thread(self._count, chat)

    def _count(self, chat: Chat) -> int:
        with self._counting:
            return self._counter.count(chat)

    @property
    def waiting(self) -> int:
        """Requests in the queue, the one that is being answered not counted."""
        return len(self._jobs)

    @property
    def busy(self) -> bool:
        return self._current is not None

    @property
    def pending(self) -> int:
        """Requests in the queue and the one that is being answered."""
        with self._wake:
            return len(self._jobs) + self.busy

    @property
    def retry_after(self) -> int:
        """Whole seconds after which a refused request may find a place: the mean length of an answer."""
        return max(1, round(self._seconds))

    def submit(
        self,
        chat: Chat,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: tuple[str, ...] = (),
    ) -> Stream:
        """Queue a chat, at once; iterate for text pieces and last the whole Reply. Call it on the event loop.

        Raises TL-SERVE-CLOSING here, not later, so that a streaming server can still send a status.
        Whoever stops iterating closes the iterator (`aclose`), which cancels the answer.
        """
        options = {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "stop": stop,
        }  # fmt: skip
        job = _Job(chat, options, asyncio.get_running_loop())
        with self._wake:
            if not self.open:
                raise ServeError("TL-SERVE-CLOSING")
            self._jobs.append(job)
            self._wake.notify()
        return Stream(self, job)

    def close(self, grace: float = 0.0) -> None:
        """Refuse what waits, give the answer under way `grace` seconds, and end the thread. Blocks; may be repeated."""
        with self._wake:
            self.open = False
            refused = list(self._jobs)
            self._jobs.clear()
            self._wake.notify_all()
        for job in refused:
            job.cancelled.set()
            job.put(ServeError("TL-SERVE-CLOSING"))
        with self._wake:
            self._wake.wait_for(lambda: self._current is None, grace)
            running = self._current
        if running is not None:
            running.cancelled.set()
            running.put(ServeError("TL-SERVE-CLOSING"))
        self._thread.join(JOIN_SECONDS)
        self._hook.remove()

    def _cancel(self, job: _Job) -> None:
        job.cancelled.set()
        with self._wake:
            if job in self._jobs:
                self._jobs.remove(job)

    def _stop_if_cancelled(self, *_: Any) -> None:
        # Only in the engine's own thread: counting and other users of the model are not its business.
        job = self._current
        if job is not None and job.cancelled.is_set() and threading.current_thread() is self._thread:
            raise _Cancelled

    def _work(self) -> None:
        while True:
            with self._wake:
                while self.open and not self._jobs:
                    self._wake.wait()
                if not self.open:
                    return
                job = self._current = self._jobs.popleft()
            began = time.monotonic()
            try:
                self._answer(job)
            finally:
                with self._wake:
                    self._current = None
                    self._wake.notify_all()
            if not job.cancelled.is_set():
                self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - began)

    def _answer(self, job: _Job) -> None:
        """One job from start to end. Whatever happens in it reaches its asker, and the thread lives on."""
        try:
            for piece in self._answerer.stream_reply(job.chat, **job.options):
                if job.cancelled.is_set():
                    return
                job.put(piece)
        except _Cancelled:
            return
        except TuneloopError as error:
            job.put(error)
        except BaseException as error:
            log.exception("an answer failed")
            failure = ServeError("TL-SERVE-FAILED", error=f"{type(error).__name__}: {error}"[:300])
            failure.__cause__ = error
            job.put(failure)


class Stream:
    """The pieces of one job, in order. Ends after the Reply; an error of the job is raised here."""

    def __init__(self, engine: TorchEngine, job: _Job) -> None:
        self._engine, self._job, self._ended = engine, job, False

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> str | Reply:
        if self._ended:
            raise StopAsyncIteration
        try:
            piece = await self._job.out.get()
        except BaseException:
            await self.aclose()
            raise
        if isinstance(piece, BaseException):
            await self.aclose()
            raise piece
        self._ended = isinstance(piece, Reply)
        return piece

    async def aclose(self) -> None:
        """Nobody listens any more: take the job out of the queue, or stop it before its next token."""
        self._ended = True
        self._engine._cancel(self._job)
