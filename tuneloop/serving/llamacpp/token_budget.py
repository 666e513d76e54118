"""Places and tokens of a shared cache, lent to answers in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque


class TokenBudget:
    """`places` answers at a time, of `tokens` tokens together. On one event loop."""

    def __init__(self, places: int, tokens: int) -> None:
        self.places, self.tokens = places, tokens
        self.free_places, self.free_tokens = places, tokens
        self._waiting: deque[tuple[int, int, asyncio.Future[None]]] = deque()

    async def take(self, places: int, tokens: int) -> None:
        """Wait for so many places and tokens; whoever came first has them first."""
        if not self._waiting and self._fits(places, tokens):
            self._lend(places, tokens)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((places, tokens, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(places, tokens)
            raise

    def give(self, places: int, tokens: int) -> None:
        """Give back what was taken."""
        self.free_places += places
        self.free_tokens += tokens
        while self._waiting:
            wanted, more, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
                continue
            if not self._fits(wanted, more):
                return
            self._waiting.popleft()
            self._lend(wanted, more)
            turn.set_result(None)

    def _fits(self, places: int, tokens: int) -> bool:
        return places <= self.free_places and tokens <= self.free_tokens

    def _lend(self, places: int, tokens: int) -> None:
        self.free_places -= places
        self.free_tokens -= tokens
