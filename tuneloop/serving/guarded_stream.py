"""Answers as the guard lets them pass: texts word by word, calls of tools and log-probabilities once they are whole."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tuneloop.safety import gaps
from tuneloop.safety.guard import GuardFinding, StreamFilter, TextGuard
from tuneloop.safety.policy import TextSide
from tuneloop.serving.engine import AnswerStream, CallPiece, Piece, TokenScore, WrappedStream

Report = Callable[[Sequence[GuardFinding], bool], None]
"""Hears what was found in an answer, and whether it was blocked."""
Refused = Callable[[str], Awaitable[str]]
"""Whether a model refuses a text: the label, or ""."""


class Blocked(Exception):
    """A text of JSON data is blocked."""


class TreeFilter:
    """Filters the texts of JSON data, and counts what it finds. `blocked` texts raise."""

    def __init__(self, guard: TextGuard, side: TextSide) -> None:
        self._guard, self._side = guard, side
        self.findings: list[GuardFinding] = []

    def text(self, text: str) -> str:
        """A text as it may pass. Raises Blocked."""
        out = self._guard.filter(text, self._side)
        self.findings += out.findings
        if out.blocked:
            raise Blocked
        return out.text

    def tree(self, content: Any) -> Any:
        """JSON data with its texts filtered; keys are looked at as well. Raises Blocked."""
        if isinstance(content, str):
            return self.text(content)
        if isinstance(content, dict):
            return {
                self.text(key) if isinstance(key, str) else key: inner if _is_type(key, inner) else self.tree(inner)
                for key, inner in content.items()
            }
        if isinstance(content, list | tuple):
            return type(content)(self.tree(inner) for inner in content)
        if isinstance(content, int) and not isinstance(content, bool):
            shown = self.text(digits := str(content))  # a telephone's number may come as one
            return content if shown == digits else shown
        return content

    def turn(self, turn: Any) -> Any:
        """A turn of a chat, or a tool, with its texts filtered. Raises Blocked.

        What ties a call to its answer stays as it is, or is blocked: a client may write whatever it likes there.
        """
        out = {}
        for key, inner in turn.items():
            if key == "tool_calls":
                out[key] = [self.turn(call) for call in inner]
            elif key in _TIES:
                self.text(str(inner))
                out[key] = inner
            else:
                out[key] = inner if key in _NAMED else self.tree(inner)
        return out

    def turns(self, turns: Any) -> Any:
        """The turns of a chat, or tools, filtered; the very same where nothing is found in all their texts together.
        Raises Blocked."""
        return type(turns)(self.turn(turn) for turn in turns) if self._finds(turns) else turns

    def checked(self, content: Any) -> Any:
        """What `tree` makes of JSON data; the very same where nothing is found in all its texts together."""
        return self.tree(content) if self._finds(content) else content

    def _finds(self, content: Any) -> bool:
        return bool(content) and bool(self._guard.find(_APART.join(texts_of(content)), self._side))

    def arguments(self, text: str) -> str:
        """The arguments of a call, which are JSON; the very same text where nothing in it is masked. Raises Blocked."""
        twice = False

        def read(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            nonlocal twice
            read_so_far = dict(pairs)
            twice = twice or len(read_so_far) < len(pairs)
            return read_so_far

        try:
            decoded = json.loads(text, object_pairs_hook=read)
            safe = self.tree(decoded)
            # Of a key that comes twice only the last was looked at: the others do not go on.
            return text if safe == decoded and not twice else json.dumps(safe, ensure_ascii=False)
        except (ValueError, RecursionError):
            return self.text(text)


_APART = "\n" * (gaps.LONGEST + 1)
"""Stands between two texts, so that no word reaches from one into the other."""


_TIES = frozenset({"id", "tool_call_id"})
_NAMED = frozenset({"role", "type"})
"""Of a turn, a call or a tool: what the API has names for."""
_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
"""Of JSON schemas."""


def _is_type(key: Any, content: Any) -> bool:
    return key == "type" and isinstance(content, str) and content in _TYPES


def texts_of(content: Any) -> Iterator[str]:
    """All texts, keys and whole numbers of JSON data."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for key, inner in content.items():
            yield str(key)
            yield from texts_of(inner)
    elif isinstance(content, list | tuple):
        for inner in content:
            yield from texts_of(inner)
    elif isinstance(content, int) and not isinstance(content, bool):
        yield str(content)


@dataclass(slots=True)
class _Choice:
    """One answer under way."""

    text: StreamFilter
    thought: StreamFilter
    calls: dict[int, CallPiece] = field(default_factory=dict)
    scores: list[TokenScore] = field(default_factory=list)
    findings: list[GuardFinding] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    held: list[Piece] = field(default_factory=list)
    pieces: int = 0
    ended: bool = False
    cut: bool = False
    """Whether it ended here before it did inside. Where none did, the inner stream is read to its end, by which a cache
    knows that the answer is whole."""


class GuardedStream(WrappedStream):
    """An AnswerStream that passes what the guard lets pass, and ends a choice with content_filter where it blocks.

    `refused`, where given, judges each answer whole: nothing of it passes before.
    """

    def __init__(
        self, stream: AnswerStream, guard: TextGuard, choices: int, report: Report, refused: Refused | None = None
    ) -> None:
        super().__init__(stream)
        self._guard, self._report, self._refused = guard, report, refused
        self._choices = [_Choice(guard.stream(), guard.stream()) for _ in range(choices)]
        self._ready: deque[Piece] = deque()

    async def __anext__(self) -> Piece:
        while not self._ready:
            if all(choice.ended for choice in self._choices) and any(choice.cut for choice in self._choices):
                await self._stream.aclose()
                raise StopAsyncIteration
            await self._take(await anext(self._stream))
        return self._ready.popleft()

    async def _take(self, piece: Piece) -> None:
        choice = self._choices[piece.choice]
        if choice.ended:
            return
        choice.pieces += piece.count
        out = self._filtered(choice, piece)
        if self._refused is not None:
            choice.texts += [
                piece.thought,
                piece.text,
                *(part for one in piece.calls for part in (one.name, one.arguments)),
            ]
            choice.held.append(out)
            if out.finish is None:
                return
            # Of an answer that a word has cut short, what came before the word has still to be judged.
            cut = out.finish == "content_filter"
            if await self._refused(
                "".join(one.thought + one.text for one in choice.held) if cut else "".join(choice.texts)
            ):
                out = Piece(piece.choice, finish="content_filter", tokens=out.tokens)
                choice.held = [out]
                choice.findings.append(GuardFinding("model", "block", 0, 0))
        if out.finish is not None:
            choice.ended, choice.cut = True, piece.finish is None
            self._report(
                [*choice.thought.findings, *choice.text.findings, *choice.findings], out.finish == "content_filter"
            )
        self._ready += choice.held if self._refused is not None else _shown(out)

    def _filtered(self, choice: _Choice, piece: Piece) -> Piece:
        """What of a piece may pass now."""
        thought, text = choice.thought.push(piece.thought), ""
        if piece.text or piece.finish:
            thought += self._end_of_thought(choice)
        if not choice.thought.blocked:
            text = choice.text.push(piece.text)
        for part in piece.calls:
            before = choice.calls.get(part.index, CallPiece(part.index))
            choice.calls[part.index] = CallPiece(
                part.index, part.id or before.id, part.name or before.name, before.arguments + part.arguments
            )
        choice.scores += piece.scores
        if piece.finish and not choice.thought.blocked:
            text += choice.text.finish()
        blocked = choice.thought.blocked or choice.text.blocked
        calls: tuple[CallPiece, ...] = ()
        if piece.finish and not blocked:
            calls, blocked = self._calls(choice)
        if blocked:
            return Piece(piece.choice, text, thought, finish="content_filter", tokens=piece.tokens or choice.pieces)
        scores = self._scores(choice) if piece.finish else ()
        return replace(piece, text=text, thought=thought, calls=calls, scores=scores)

    def _end_of_thought(self, choice: _Choice) -> str:
        """What is left of a thought when the answer begins. Another may follow: it is a text of its own."""
        left = choice.thought.finish()
        if not choice.thought.blocked:
            choice.findings += choice.thought.findings
            choice.thought = self._guard.stream()
        return left

    def _calls(self, choice: _Choice) -> tuple[tuple[CallPiece, ...], bool]:
        checker = TreeFilter(self._guard, "output")
        try:
            calls = tuple(
                replace(call, name=checker.text(call.name), arguments=checker.arguments(call.arguments))
                for _, call in sorted(choice.calls.items())
            )
        except Blocked:
            return (), True
        finally:
            choice.findings += checker.findings
        return calls, False

    def _scores(self, choice: _Choice) -> tuple[TokenScore, ...]:
        """The scores of an answer that passed as it was; of one that did not, none: they spell what was masked. A token
        that might have come instead is a text as well."""
        findings = [*choice.thought.findings, *choice.text.findings, *choice.findings]
        if any(finding.action != "log" for finding in findings):
            return ()
        return tuple(
            replace(score, likeliest=tuple(one for one in score.likeliest if not self._touched(one.text)))
            for score in choice.scores
        )

    def _touched(self, text: str) -> bool:
        return any(finding.action != "log" for finding in self._guard.find(text))


def _shown(piece: Piece) -> list[Piece]:
    something = (
        piece.text or piece.thought or piece.calls or piece.scores or piece.finish or piece.labels or piece.vector
    )
    return [piece] if something else []


class BlockedStream:
    """The answers to a question that was blocked: none, each with finish_reason content_filter. No model was asked."""

    prompt_tokens = cached_tokens = 0

    def __init__(self, choices: int) -> None:
        self._pieces = iter([Piece(k, finish="content_filter") for k in range(choices)])

    def __aiter__(self) -> BlockedStream:
        return self

    async def __anext__(self) -> Piece:
        piece = next(self._pieces, None)
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        self._pieces = iter(())
