"""Tokens that a tokenizer has and its model has no row for: added to the one, and never to the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from tuneloop.base.errors import ServeError
from tuneloop.model.backbone import unwrap


def rows(model: nn.Module) -> int:
    """Rows of a model's embeddings: the ids from 0 on that it can read."""
    weight: Any = unwrap(model).get_input_embeddings().weight
    return int(weight.shape[0])


def require_rows(model: nn.Module, tokenizer: Any, texts: Iterable[Sequence[int]]) -> None:
    """Raise TL-SERVE-TOKEN where a text has a token that the model has no row for; torch would only name an index."""
    there = rows(model)
    highest = max((max(ids, default=0) for ids in texts), default=0)
    if highest >= there:
        token = str(tokenizer.convert_ids_to_tokens(highest))
        raise ServeError("TL-SERVE-TOKEN", token=token, id=highest, rows=there, tokens=len(tokenizer))
