"""A query as llama.cpp's own server takes it: token ids, and every sampler named, since its defaults are not ours; and
its events as pieces."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.base.errors import ServeError
from tuneloop.base.records import Sampling
from tuneloop.serving.answers.parsing import AnswerParser
from tuneloop.serving.engine import Finish, Piece, Query, TokenScore
from tuneloop.serving.upstream.upstream_answer import OddAnswer, clean, score_of

SAMPLERS = ["penalties", "temperature", "top_k", "top_p", "min_p"]
"""In transformers' order; llama.cpp's own comes to the temperature last."""
ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How llama.cpp's llguidance is told to have JSON written: otherwise it lets in blanks without bound, and small models
write them until they are cut off."""
_SEEDS = (1 << 32) - 1
"""llama.cpp's seeds are below it; it itself means a random one."""


@dataclass(frozen=True, slots=True)
class GgufPrompt:
    """A query's prompt for llama.cpp: `most` is how many tokens an answer may have, `begun` the text at the end of the
    prompt that is a part of the answer, `seen` the texts of special tokens that must stay in an answer, and `parser`
    makes what takes an answer apart."""

    ids: Sequence[int]
    most: int
    begun: str = ""
    schema: Mapping[str, Any] | None = None
    seen: tuple[str, ...] = ()
    parser: Callable[[], AnswerParser] | None = None


def llama_body(query: Query, prompt: GgufPrompt, penalty: float, lora: Sequence[float]) -> dict[str, Any]:
    """The body for /completion; `penalty` is the model's own, `lora` the weight of each adapter."""
    sampling = query.sampling
    body: dict[str, Any] = {
        "prompt": list(prompt.ids),
        "n_predict": prompt.most,
        "stream": True,
        "cache_prompt": True,
        "stop": list(query.stop),
        "lora": [{"id": n, "scale": scale} for n, scale in enumerate(lora)],
        **_sampling(sampling, penalty),
    }
    if query.logprobs is not None:
        body["n_probs"] = max(1, query.logprobs)
    if prompt.schema is not None:
        body["json_schema"] = {**(prompt.schema or {"type": "object"}), "x-guidance": ONE_LINE}
    if prompt.seen:
        body["preserved_tokens"] = list(prompt.seen)
    return body


def _sampling(sampling: Sampling, penalty: float) -> dict[str, Any]:
    repetition = penalty if sampling.repetition_penalty is None else sampling.repetition_penalty
    penalised = repetition != 1 or sampling.frequency_penalty or sampling.presence_penalty
    fields: dict[str, Any] = {
        "samplers": SAMPLERS,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": repetition,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "repeat_last_n": -1 if penalised else 0,
        "logit_bias": [[token, number] for token, number in sampling.logit_bias],
    }
    return fields if sampling.seed is None else {**fields, "seed": sampling.seed % _SEEDS}


def require_schema(schema: Mapping[str, Any]) -> None:
    """Raise TL-SERVE-SCHEMA for a schema that llama.cpp's grammar library has something against: llama.cpp itself would
    answer without it, in silence."""
    from llguidance import LLMatcher

    try:
        fault = str(LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(dict(schema)))))
    except (ValueError, RecursionError) as error:
        fault = str(error) or type(error).__name__
    if fault:
        first = next((line for line in fault.splitlines() if line.strip()), "?")
        raise ServeError("TL-SERVE-SCHEMA", param="response_format", error=first.strip()[:300])


class LlamaReader:
    """Pieces of llama.cpp's events, of one answer. The prompt's tokens are known before, those at hand at the end."""

    def __init__(self, query: Query, prompt: GgufPrompt) -> None:
        self._logprobs, self._most = query.logprobs, prompt.most
        self.prompt_tokens, self.cached_tokens = len(prompt.ids), 0
        self._finished = False
        self._parser = prompt.parser() if prompt.parser else None
        piece = self._piece(prompt.begun, ())
        self.begun = [] if piece is None else [piece]
        """What the answer has of the text that it was made to begin with."""

    def pieces(self, event: Mapping[str, Any]) -> list[Piece]:
        """What is new with an event. Raises OddAnswer."""
        text = event.get("content", "")
        if not isinstance(text, str):
            raise OddAnswer("content")
        scores = self._scores(event.get("completion_probabilities") or [])
        if not self._most:  # it writes a token also where none is wanted
            text, scores = "", ()
        if not event.get("stop"):
            piece = self._piece(clean(text), scores)
            return [] if piece is None else [piece]
        timings = event.get("timings")
        cached = timings.get("cache_n") if isinstance(timings, dict) else 0
        self.cached_tokens = max(self.cached_tokens, cached if type(cached) is int else 0)
        self._finished = True
        return [self._last(clean(text), scores, event)]

    def _piece(self, text: str, scores: tuple[TokenScore, ...]) -> Piece | None:
        """The text taken apart; None where nothing of it is clear yet."""
        if self._parser is None:
            return Piece(text=text, scores=scores) if text or scores else None
        delta = self._parser.feed(text)
        return Piece(0, delta.text, delta.thought, delta.calls, scores) if delta or scores else None

    def _last(self, text: str, scores: tuple[TokenScore, ...], event: Mapping[str, Any]) -> Piece:
        finish: Finish = "length" if event.get("stop_type") == "limit" else "stop"
        tokens = event.get("tokens_predicted")
        count = min(tokens, self._most) if type(tokens) is int else 0
        if self._parser is None:
            return Piece(text=text, scores=scores, finish=finish, tokens=count)
        first, rest = self._parser.feed(text), self._parser.end()
        if self._parser.called and finish == "stop":
            finish = "tool_calls"
        calls = first.calls + rest.calls
        text, thought = first.text + rest.text, first.thought + rest.thought
        return Piece(0, text, thought, calls, scores, finish=finish, tokens=count)

    def ending(self) -> list[Piece]:
        """Nothing more. Raises OddAnswer where the answer has not finished."""
        if not self._finished:
            raise OddAnswer("stop")
        return []

    def _scores(self, given: Any) -> tuple[TokenScore, ...]:
        if self._logprobs is None or not isinstance(given, list):
            return ()
        scores = [score_of(one) for one in given]
        if self._logprobs:
            return tuple(scores)
        return tuple(TokenScore(one.token, one.text, one.octets, one.logprob) for one in scores)
