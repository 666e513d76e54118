"""Works on batches behind interactive requests: their lines go through the application as requests do, a few at a time
and only where the engine has a place. What was answered is in the store at once, so a restart loses no answer."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection

from tuneloop.base.errors import TuneloopError
from tuneloop.base.language import t
from tuneloop.improvement.archive import Archive, beside
from tuneloop.serving.batches import batch_table as table
from tuneloop.serving.batches.batch_line import (
    MOST_LINES,
    LineFault,
    answer_line,
    error_line,
    read_line,
)
from tuneloop.serving.batches.batch_table import StoredBatch
from tuneloop.serving.batches.inner_request import inner_request
from tuneloop.serving.engine import Engine

if TYPE_CHECKING:
    from starlette.types import ASGIApp

T = TypeVar("T")
log = logging.getLogger("tuneloop.serving")
POLL_SECONDS = 2.0
"""How often the store is asked for batches: of other processes, or such that nobody works on any more."""
AWAY_SECONDS = 10.0
"""How long a store is left alone that could not be asked."""
RENEW_SECONDS = 3.0
PLACE_SECONDS = 0.02
LINES = 16
"""Lines that are read at a time."""
MOST_FAULTS = 100
AT_A_TIME, OF_ONE_TENANT = 16, 2
"""Batches that a process works on at a time, and those of one tenant among them: their lines take turns."""
COME_BACK = (429, 503)
LONGEST_PAUSE = 30.0
NEVER = "TL-SERVE-LIMIT-SIZE"
"""A refusal that no wait makes another answer of."""


class BatchRunner:
    """One of a server's process. `start` and `stop` are called on its event loop."""

    def __init__(self, app: ASGIApp, engine: Engine, archive: Archive, at_once: int) -> None:
        self.app, self.engine, self.archive = app, engine, archive
        self.owner = f"{socket.gethostname()[:24]}-{os.getpid()}-{secrets.token_hex(4)}"
        self.places = asyncio.Semaphore(at_once)
        self._news = asyncio.Event()
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._tenants: dict[str, str] = {}
        """Batch in hand -> its tenant."""
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watch = asyncio.ensure_future(self._claim_for_ever())

    def wake(self) -> None:
        """There is a new batch."""
        self._news.set()

    async def stop(self) -> None:
        """End at once: lines under way are asked anew by whoever takes the batch on."""
        tasks = [*self._jobs.values(), *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.archive.exists and tasks:
            with suppress(TuneloopError):
                await self.in_store(lambda connection: table.release(connection, self.owner))

    async def in_store(self, work: Callable[[Connection], T]) -> T:
        return await beside(self.archive.store.retried, work)

    async def _claim_for_ever(self) -> None:
        while True:
            self._news.clear()
            try:
                # A workspace without a store has no batches, and gets no store because somebody looked.
                while len(self._jobs) < AT_A_TIME and self.archive.exists and await self._claim():
                    pass
            except TuneloopError as error:
                log.error("the store cannot be asked for batches: %s", error.code)
                await asyncio.sleep(AWAY_SECONDS)
            except Exception:
                log.exception("the search for batches failed")
                await asyncio.sleep(AWAY_SECONDS)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._news.wait(), POLL_SECONDS)

    async def _claim(self) -> bool:
        counts = Counter(self._tenants.values())
        busy = [tenant for tenant, count in counts.items() if count >= OF_ONE_TENANT]
        batch = await self.in_store(lambda connection: table.claim(connection, self.owner, time.time(), busy))
        if batch is None or batch.id in self._jobs:
            return False
        job = asyncio.ensure_future(self._work(batch))
        self._jobs[batch.id], self._tenants[batch.id] = job, batch.tenant
        job.add_done_callback(lambda _: self._let_go(batch.id))
        return True

    def _let_go(self, batch: str) -> None:
        self._jobs.pop(batch, None)
        self._tenants.pop(batch, None)
        self._news.set()

    async def _work(self, batch: StoredBatch) -> None:
        try:
            await BatchJob(self, batch).run()
        except Exception:
            log.exception("work on batch %s failed; it goes on in %g seconds", batch.id, table.LEASE_SECONDS)


class BatchJob:
    """The work of a process on one batch."""

    def __init__(self, runner: BatchRunner, batch: StoredBatch) -> None:
        self._runner, self.batch = runner, batch
        self._ours = True
        self._lines: set[asyncio.Task[None]] = set()
        self._paused_until = 0.0

    async def run(self) -> None:
        """Until the batch has ended, or is another process's."""
        renewing = asyncio.ensure_future(self._renew_for_ever())
        try:
            if self.batch.status == "validating" and not await self._validate():
                return
            await self._answer_lines()
            if self._ours:
                await self._close()
        finally:
            renewing.cancel()
            for task in self._lines:
                task.cancel()
            await asyncio.gather(renewing, *self._lines, return_exceptions=True)

    async def _store(self, work: Callable[[Connection], T]) -> T:
        return await self._runner.in_store(work)

    async def _renew_for_ever(self) -> None:
        while self._ours:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                renewed = await self._store(self._renewed)
            except TuneloopError:
                renewed = None
            if renewed is None:
                self._ours = False
            else:
                self.batch = renewed

    def _renewed(self, connection: Connection) -> StoredBatch | None:
        return table.renew(connection, self.batch.id, self._runner.owner, time.time())

    @property
    def _ending(self) -> bool:
        """Whether no more lines are to be asked."""
        return not self._ours or self.batch.status == "cancelling" or time.time() >= self.batch.expires

    async def _validate(self) -> bool:
        """Look at each line before the first is asked; a batch with a wrong one fails whole, as OpenAI's do."""
        count, faults = await beside(self._faults)
        if faults:
            await self._store(lambda c: table.enter_state(c, self.batch, "failed", errors=faults, owner="", lease=0.0))
            return False

        def begin(connection: Connection) -> StoredBatch | None:
            renewed = self._renewed(connection)
            if renewed is not None and renewed.status == "validating":  # it may have been cancelled meanwhile
                table.enter_state(connection, renewed, "in_progress", total=count)
                return self._renewed(connection)
            return renewed

        renewed = await self._store(begin)
        if renewed is None:
            return False
        self.batch = renewed
        return True

    def _faults(self) -> tuple[int, list[dict[str, Any]]]:
        """How many lines there are, and what is wrong with them. Blank ones do not count."""
        faults: list[dict[str, Any]] = []
        names: set[str] = set()
        count = last = 0
        while page := self._page(last):
            for number, text in page:
                last = number
                if not text.strip():
                    continue
                count += 1
                try:
                    request = read_line(text, self.batch.endpoint)
                    if request.custom_id in names:
                        raise LineFault("duplicate_custom_id", t("it is given twice"), "custom_id")
                    names.add(request.custom_id)
                except LineFault as fault:
                    faults.append({"code": fault.code, "message": str(fault), "param": fault.param, "line": number})
            if len(faults) >= MOST_FAULTS or count > MOST_LINES:
                break
        if count > MOST_LINES:
            words = t("at most {most} lines make a batch", most=MOST_LINES)
            faults.append({"code": "too_many_requests", "message": words, "param": None, "line": None})
        if not count:
            faults.append({"code": "empty_file", "message": t("the file has no line"), "param": None, "line": None})
        return count, faults[:MOST_FAULTS]

    def _page(self, last: int) -> list[tuple[int, str]]:
        with self._runner.archive.store.read() as connection:
            return table.lines_left(connection, self.batch, last, LINES)

    async def _answer_lines(self) -> None:
        """Ask line after line, and those again that were refused for now, or whose answer could not be written down."""
        while await self._pass_over_lines():
            pass

    async def _pass_over_lines(self) -> bool:
        """Whether a line was asked."""
        last, any_sent = 0, False
        while not self._ending and (page := await beside(self._page, last)):
            for number, text in page:
                last = number
                if text.strip() and not self._ending:
                    any_sent = True
                    await self._take_place()
                    task = asyncio.ensure_future(self._answer(number, text))
                    self._lines.add(task)
                    task.add_done_callback(self._give_place)
        if self._lines:
            await asyncio.wait(self._lines)
        return any_sent

    async def _take_place(self) -> None:
        """Wait until the engine has a place that nobody else waits for."""
        while not self._ending and (left := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 1.0))
        await self._runner.places.acquire()
        engine = self._runner.engine
        while engine.open and (engine.pending >= engine.capacity or not engine.ready):
            await asyncio.sleep(PLACE_SECONDS)

    def _give_place(self, task: asyncio.Task[None]) -> None:
        self._lines.discard(task)
        self._runner.places.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a line of batch %s was not answered: %s", self.batch.id, type(error).__name__)

    async def _answer(self, number: int, text: str) -> None:
        """Ask, and write down an answer that lasts. Where the server is busy or closing, or the key's limits are used
        up, the batch pauses, and the line is left for another pass: its place is for other tenants' batches."""
        try:
            request = read_line(text, self.batch.endpoint)
            body = json.dumps(request.body).encode()
        except (LineFault, RecursionError):  # nested so deeply that it could just be read when it was looked at first
            await self._put(number, error_line("", "invalid_json_line", t("the line is not JSON")), True)
            return
        if self._ending:
            return
        status, content, headers = await inner_request(self._runner.app, self.batch.endpoint, body, self.batch.caller)
        if not self._runner.engine.open:
            self._ours = False  # what an engine says while it is closed is no answer
            return
        answer = json.loads(content)
        if status in COME_BACK and answer["error"]["code"] != NEVER:
            seconds = headers.get("retry-after", "1")
            pause = min(LONGEST_PAUSE, float(seconds) if seconds.isdecimal() else 1.0)
            self._paused_until = max(self._paused_until, time.monotonic() + pause)
            return
        await self._put(number, answer_line(request.custom_id, status, answer), status != 200)

    async def _put(self, number: int, line: str, failed: bool) -> None:
        owner = self._runner.owner
        try:
            self._ours &= await self._store(lambda c: table.put_answer(c, self.batch, owner, number, line, failed))
        except TuneloopError:
            self._ours = False  # nothing is asked whose answer cannot be written down: the batch is taken on later
            raise

    async def _close(self) -> None:
        """Write down what was not asked of a batch that has expired, and let its files be seen."""
        cancelled, expired = self.batch.status == "cancelling", time.time() >= self.batch.expires
        if expired and not cancelled:
            await self._expire()
        status = "cancelled" if cancelled else "expired" if expired else "completed"

        def close(connection: Connection) -> None:
            renewed = self._renewed(connection)
            if renewed is not None:
                table.close_batch(connection, renewed, status)

        await self._store(close)

    async def _expire(self) -> None:
        last = 0
        while page := await beside(self._page, last):
            for number, text in page:
                last, name = number, ""
                if text.strip():
                    with suppress(LineFault):
                        name = read_line(text, self.batch.endpoint).custom_id
                    words = t("the batch expired before this request was answered")
                    await self._put(number, error_line(name, "batch_expired", words), True)
