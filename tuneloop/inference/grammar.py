"""Answers that meet a JSON schema: before each token, which tokens can go on to text that does (llguidance).

What the tokenizer's vocabulary spells is laid out once a tokenizer, which takes about a second.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tuneloop.base.errors import MachineError, ServeError
from tuneloop.base.optional import install, need
from tuneloop.data.tokens.templates import stop_ids

FIELD = "response_format"
"""The field of a request that brings a schema."""
DEEPEST = 64
"""How deep a schema may be nested."""
_vocabularies: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class Grammar:
    """A compiled schema: one for all answers to a request."""

    pattern: Any
    """An LLMatcher at its start."""

    def matcher(self) -> Matcher:
        """The schema at the start of one answer."""
        return Matcher(self.pattern.deep_copy())


class Matcher:
    """Where one answer stands in its schema."""

    def __init__(self, pattern: Any) -> None:
        self._pattern = pattern

    def allowed(self, vocabulary: int) -> Tensor:
        """bool [vocabulary]: the tokens that may come next; an end token where the text may end."""
        bits = np.frombuffer(self._pattern.compute_bitmask(), np.uint8)
        self._require()
        allowed = np.zeros(vocabulary, bool)
        each = np.unpackbits(bits, bitorder="little")[:vocabulary]
        allowed[: len(each)] = each
        return torch.from_numpy(allowed)

    def wrote(self, token: int) -> bool:
        """Go on by the token that was chosen; whether nothing can follow it."""
        self._pattern.consume_token(token)
        self._require()
        return bool(self._pattern.is_stopped())

    def _require(self) -> None:
        if self._pattern.is_error():
            raise _refused(self._pattern.get_error())


def compile(schema: Mapping[str, Any], tokenizer: Any) -> Grammar:
    """A schema, {} for any JSON object, over a tokenizer's tokens.

    Raises TL-SERVE-SCHEMA for a schema that cannot be followed, TL-SERVE-SCHEMA-EXTRA without the extra `schema`.
    """
    try:
        engine = need("llguidance", extra="schema")
    except MachineError as error:
        raise ServeError("TL-SERVE-SCHEMA-EXTRA", param=FIELD, command=install("schema")) from error
    if _depth(schema) > DEEPEST:
        raise _refused(f"nested deeper than {DEEPEST}")
    text = json.dumps(dict(schema) or {"type": "object"})
    try:
        grammar = engine.LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": r"[ \t\n\r]{0,20}"})
    except ValueError as error:
        raise _refused(str(error)) from error
    pattern = engine.LLMatcher(_vocabulary(tokenizer), grammar, log_level=0)
    if pattern.is_error():
        raise _refused(pattern.get_error())
    return Grammar(pattern)


def _vocabulary(tokenizer: Any) -> Any:
    """What llguidance makes of a tokenizer, once."""
    if tokenizer not in _vocabularies:
        layout = need("llguidance.hf", extra="schema")
        try:
            _vocabularies[tokenizer] = layout.from_tokenizer(tokenizer, eos_token=sorted(stop_ids(tokenizer)))
        except Exception as error:  # a tokenizer without the tokenizers library's file, or one it does not read
            raise _refused(f"{type(error).__name__}: {error}") from error
    return _vocabularies[tokenizer]


def _refused(reason: str) -> ServeError:
    first = next((line for line in reason.splitlines() if line.strip()), "?")
    return ServeError("TL-SERVE-SCHEMA", param=FIELD, error=first.strip()[:300])


def _depth(node: Any) -> int:
    """How deep mappings and lists are nested.

    >>> _depth({"a": [{"b": 1}]})
    3
    """
    depth, level = 0, [node]
    while level := [
        child
        for one in level
        if isinstance(one, Mapping | list)
        for child in (one.values() if isinstance(one, Mapping) else one)
    ]:
        depth += 1
    return depth
