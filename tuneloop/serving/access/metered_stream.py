"""The tokens of an answer, counted for the limits: what its prompt may have before it is asked, and what it used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable

from tuneloop.serving.engine import AnswerStream, Piece, Query, WrappedStream

TURN_TOKENS = 4
"""Of a chat template, around each turn."""


class MeteredStream(WrappedStream):
    """An AnswerStream that counts its tokens. `prompt` is about how many the prompt has, for as long as the engine does
    not say; `at_end` is called when it has been answered to its end."""

    def __init__(self, stream: AnswerStream, prompt: int, at_end: Callable[[], Awaitable[None]]) -> None:
        super().__init__(stream)
        self._prompt, self._at_end = prompt, at_end
        self._pieces: Counter[int] = Counter()
        self._tokens: dict[int, int] = {}
        self._ended = False

    @property
    def used(self) -> int:
        """Tokens so far. A choice says how many at its end; of one that is cut short each piece counts as one."""
        written = sum(self._tokens.get(choice, pieces) for choice, pieces in self._pieces.items())
        return (self.prompt_tokens or self._prompt) + written

    async def __anext__(self) -> Piece:
        try:
            piece = await anext(self._stream)
        except StopAsyncIteration:
            if not self._ended:
                self._ended = True
                await self._at_end()
            raise
        self._pieces[piece.choice] += piece.count
        if piece.finish is not None:
            self._tokens[piece.choice] = piece.tokens
        return piece


def prompt_tokens(query: Query) -> int:
    """About how many tokens a prompt has: a token for four letters of ASCII, and for each other character.

    >>> prompt_tokens(Query("text", "m", prompt="Who are you?")), prompt_tokens(Query("text", "m", prompt=(1, 2)))
    (3, 2)
    """
    if query.purpose == "text" or (query.purpose == "vector" and query.prompt):
        return len(query.prompt) if isinstance(query.prompt, tuple) else _estimate(query.prompt)
    texts = [
        one if isinstance(one, str) else json.dumps(one, default=str) for turn in query.chat for one in turn.values()
    ]
    texts += [json.dumps(tool, ensure_ascii=False) for tool in query.tools]
    return sum(map(_estimate, texts)) + TURN_TOKENS * len(query.chat)


def _estimate(text: str) -> int:
    ascii_letters = len(text.encode("ascii", "ignore"))
    return -(-ascii_letters // 4) + len(text) - ascii_letters
