"""Several prompts of one request, answered as one stream."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from tuneloop.serving.admission import Question, Submit
from tuneloop.serving.engine import AnswerStream, Piece


async def submit_all(submit: Submit, questions: Sequence[Question], at_once: int) -> AnswerStream:
    """The answers to all questions; the choices of one follow those of the one before.

    At most `at_once` are with the engine at a time, so that one request of many prompts does not fill the queue. The
    first ones are accepted or refused before this returns.
    """
    if len(questions) == 1:
        return await submit(questions[0])
    several = Several(submit, questions)
    await several.start(max(1, at_once))
    return several


class Several:
    """An AnswerStream over several. An error of one ends all."""

    def __init__(self, submit: Submit, questions: Sequence[Question]) -> None:
        self._submit = submit
        self._waiting = deque(enumerate(questions))
        self._left = len(questions)
        self._streams: list[AnswerStream] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._pieces: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()

    @property
    def prompt_tokens(self) -> int:
        return sum(stream.prompt_tokens for stream in self._streams)

    @property
    def cached_tokens(self) -> int:
        return sum(stream.cached_tokens for stream in self._streams)

    async def start(self, at_once: int) -> None:
        """Submit the first questions. Raises what one of them is refused with; none is left behind then."""
        try:
            while self._waiting and len(self._tasks) < at_once:  # one that ended meanwhile has taken the next itself
                number, question = self._waiting.popleft()
                stream = await self._submit(question)
                self._streams.append(stream)
                self._tasks.append(asyncio.ensure_future(self._follow(number, question, stream)))
        except BaseException:
            await self.aclose()
            raise

    async def _follow(self, number: int, question: Question, stream: AnswerStream) -> None:
        """Hand on the pieces of a stream, and those of the next question that waits."""
        try:
            while True:
                async for piece in stream:
                    self._pieces.put_nowait(replace(piece, choice=number * question.query.n + piece.choice))
                self._pieces.put_nowait(None)
                if not self._waiting:
                    return
                number, question = self._waiting.popleft()
                stream = await self._submit(question)
                self._streams.append(stream)
        except Exception as error:
            self._pieces.put_nowait(error)

    def __aiter__(self) -> Several:
        return self

    async def __anext__(self) -> Piece:
        while self._left:
            piece = await self._pieces.get()
            if isinstance(piece, BaseException):
                await self.aclose()
                raise piece
            if piece is not None:
                return piece
            self._left -= 1
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._left = 0
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self._streams:
            await stream.aclose()
