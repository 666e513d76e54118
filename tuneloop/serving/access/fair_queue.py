"""The queue before the engine: bounded, and served in turn between the keys, so that one busy key delays no other."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tuneloop.base.errors import ServeError
from tuneloop.serving.admission import Admission, Question, Submit, caller_of
from tuneloop.serving.engine import AnswerStream, Engine, Piece, WrappedStream

if TYPE_CHECKING:
    from starlette.requests import Request

LOOK_SECONDS = 0.25
"""How often a request that waits looks whether the server is being closed or can answer more at once."""


Lane = tuple[bool, str]
"""Whether it stands behind all lanes that do not (long jobs behind who waits for an answer), and the caller."""


class WaitingLine:
    """Requests that wait, a lane for each caller, and how many are with the engine."""

    def __init__(self) -> None:
        self.running = 0
        self._lanes: OrderedDict[Lane, deque[asyncio.Future[None]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lanes.values()))

    def join(self, lane: Lane) -> asyncio.Future[None]:
        """A turn to wait for."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lanes.setdefault(lane, deque()).append(turn)
        return turn

    def leave(self, lane: Lane, turn: asyncio.Future[None]) -> None:
        """Give up a turn that has not come."""
        turns = self._lanes.get(lane, deque())
        if turn in turns:
            turns.remove(turn)
        if not turns:
            self._lanes.pop(lane, None)

    def call(self, places: int) -> None:
        """Give free places away: to the caller whose turn it is, who then goes behind all others."""
        while self._lanes and self.running < places:
            lane = next((one for one in self._lanes if not one[0]), next(iter(self._lanes)))
            turns = self._lanes[lane]
            turns.popleft().set_result(None)
            self.running += 1
            if turns:
                self._lanes.move_to_end(lane)
            else:
                del self._lanes[lane]


class Queue(Admission):
    """Lets as many requests to the engine as it answers at once; `length` more wait, the next one is refused.

    The last step. A request that waits has no status yet, so that what the engine refuses it with still becomes one.
    One whose state says `behind` waits until no other does.
    """

    def __init__(self, engine: Engine, length: int) -> None:
        self._engine, self._length = engine, length
        self._line = WaitingLine()
        self._refused = 0

    async def answer(self, question: Question, submit: Submit) -> AnswerStream:
        if not self._engine.open:
            return await submit(question)  # which says so
        line = self._line
        if not len(line) and line.running < self._engine.capacity:
            line.running += 1
        else:
            await self._wait(line, question.request)
        place = _Place(self._engine, line)
        try:
            return QueuedStream(await submit(question), place)
        except BaseException:
            place.free()
            raise

    async def _wait(self, line: WaitingLine, request: Request) -> None:
        """Wait for a place. Raises TL-SERVE-FULL, and what tells that the client has hung up."""
        if len(line) >= self._length:
            self._refused += 1
            raise ServeError("TL-SERVE-FULL", status=503, waiting=len(line), seconds=self._engine.retry_after)
        lane = (bool(getattr(getattr(request, "state", None), "behind", False)), caller_of(request).id)
        turn = line.join(lane)
        line.call(self._engine.capacity)
        gone = asyncio.ensure_future(hung_up(request))
        try:
            while not turn.done():
                await asyncio.wait({turn, gone}, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not turn.done():
                    if gone.done():
                        from starlette.requests import ClientDisconnect

                        raise ClientDisconnect
                    if not self._engine.open:
                        raise ServeError("TL-SERVE-CLOSING")
                    line.call(self._engine.capacity)
        except BaseException:
            if turn.done():  # it came at the same moment
                _Place(self._engine, line).free()
            line.leave(lane, turn)
            raise
        finally:
            gone.cancel()

    def take_over(self, before: Admission) -> None:
        """Go on with the requests that wait and are answered under the settings before."""
        if isinstance(before, Queue):
            self._line, self._refused = before._line, before._refused

    def gauges(self) -> Mapping[str, float]:
        """Requests that wait, those with the engine, and those refused."""
        return {
            "queue_waiting": len(self._line),
            "queue_running": self._line.running,
            "queue_refused_total": self._refused,
        }


class _Place:
    """A place in the engine, to be freed once."""

    def __init__(self, engine: Engine, line: WaitingLine) -> None:
        self._engine, self._line, self._freed = engine, line, False

    def free(self) -> None:
        if not self._freed:
            self._freed = True
            self._line.running -= 1
            self._line.call(self._engine.capacity)


class QueuedStream(WrappedStream):
    """An AnswerStream that frees its place at its end, however it ends."""

    def __init__(self, stream: AnswerStream, place: _Place) -> None:
        super().__init__(stream)
        self._place = place

    async def __anext__(self) -> Piece:
        try:
            return await anext(self._stream)
        except asyncio.CancelledError:
            raise  # whoever asked has gone; the stream goes on until it is closed
        except BaseException:
            self._place.free()
            raise

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._place.free()


async def hung_up(request: Request) -> None:
    """Returns when the client has gone; never where there is no client."""
    try:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    except (RuntimeError, AttributeError):  # a question of the server's own: nobody is at its other end
        await asyncio.Event().wait()
