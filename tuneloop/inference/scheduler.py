"""Answers that come and go, step by step: what an engine's loop calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneloop.base.errors import ServeError
from tuneloop.base.records import Sampling
from tuneloop.inference import batch, sampling
from tuneloop.inference.decode import Decoder


@dataclass(slots=True, eq=False)
class Generation:
    prompt: Sequence[int]
    most: int
    how: Sampling = field(default_factory=Sampling)
    complete: Callable[[list[int]], bool] | None = None
    adapter: str | None = None
    logprobs: int | None = None
    echo: bool = False
    grammar: Any = None
    tokens: list[int] = field(default_factory=list)
    scores: list[Any] = field(default_factory=list)
    prompt_scores: list[Any] = field(default_factory=list)
    ended: str | None = None
    error: ServeError | None = None
    reused: int = 0


class Scheduler:
    def __init__(
        self,
        decoder: Decoder,
        stops: frozenset[int],
        *,
        penalty: float = 1.0,
        slots: int = 64,
        cache_tokens: int | None = None,
        alone: bool = False,
        adapters: Any = None,
        chunk: int = 512,
    ) -> None:
        self._batch = batch.DecodeBatch(decoder, stops, penalty=penalty, slots=slots, alone=alone)
        self._waiting: deque[batch.Generation] = deque()
        self._of: dict[int, Generation] = {}
        self._stops = stops

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._batch.generations)

    def add(self, generation: Generation) -> None:
        how = sampling.Sampling(generation.how.temperature, generation.how.top_p, generation.how.seed)
        inner = batch.Generation(generation.prompt, generation.most, how, generation.complete)
        inner.tokens = generation.tokens
        self._of[id(inner)] = generation
        self._waiting.append(inner)

    def drop(self, generation: Generation) -> None:
        inner = next((n for n in [*self._waiting, *self._batch.generations] if self._of[id(n)] is generation), None)
        if inner is None:
            return
        if inner in self._waiting:
            self._waiting.remove(inner)
        else:
            self._batch.drop(inner)
        del self._of[id(inner)]

    def step(self) -> list[Generation]:
        new: list[batch.Generation] = []
        ended: list[batch.Generation] = []
        if count := self._batch.admits(self._waiting):
            joining = [self._waiting.popleft() for _ in range(count)]
            new += joining
            ended += self._batch.join(joining)
        else:
            new += self._batch.generations
            ended += self._batch.step()
        for inner in ended:
            self._of[id(inner)].ended = "stop" if inner.tokens[-1] in self._stops else "length"
        out = [self._of[id(inner)] for inner in new]
        for inner in ended:
            del self._of[id(inner)]
        return out
