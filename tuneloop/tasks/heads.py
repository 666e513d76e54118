"""The heads that transformers puts on a trunk to name a label or to fill a mask, asked for single positions.

A head's own forward takes hidden states of padded rows; ours are packed, so its modules are called on the positions
that count. How they are called is not guessed: of the ways known, the one is taken that gives a probe the model's own
scores, and where there is none, the model itself is asked, one text at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuneloop.model.backbone import states, token_types, unwrap

Read = Callable[[Any, Tensor, Tensor], Tensor]
"""(model, first states [n, width], last states [n, width]) -> scores [n, labels]."""
Fill = Callable[[Any, Tensor], Tensor]
"""(model, states at the masks [n, width]) -> logits [n, vocabulary]."""


def _encoder(base: Any) -> Any:
    return getattr(base, base.base_model_prefix)


READS: tuple[Read, ...] = (
    # Decoders: the last token has seen all others.
    lambda base, first, last: base.score(last),
    # BERT, and what is built like it: the first token through pooler, dropout and classifier.
    lambda base, first, last: base.classifier(base.dropout(_encoder(base).pooler(first[:, None]))),
    # ALBERT has the pooler in two parts.
    lambda base, first, last: base.classifier(
        base.dropout(_encoder(base).pooler_activation(_encoder(base).pooler(first)))
    ),
    # RoBERTa, ELECTRA: a head that takes the first token by itself.
    lambda base, first, last: base.classifier(first[:, None]),
    # DistilBERT.
    lambda base, first, last: base.classifier(base.dropout(torch.relu(base.pre_classifier(first)))),
    # ModernBERT.
    lambda base, first, last: base.classifier(base.drop(base.head(first))),
)  # fmt: skip

FILLS: tuple[Fill, ...] = (
    lambda base, hidden: base.cls(hidden),  # BERT
    lambda base, hidden: base.lm_head(hidden),  # RoBERTa
    lambda base, hidden: base.predictions(hidden),  # ALBERT
    lambda base, hidden: base.vocab_projector(base.vocab_layer_norm(base.activation(base.vocab_transform(hidden)))),
    lambda base, hidden: base.generator_lm_head(base.generator_predictions(hidden)),  # ELECTRA
    lambda base, hidden: base.decoder(base.head(hidden)),  # ModernBERT
)


@torch.no_grad()
def reader(model: nn.Module, ids: Tensor) -> Read | None:
    """How this model's head names a label, proven on `ids` int64 [1, length]; None where no way known gives its own."""
    base = unwrap(model)
    wanted = base(input_ids=ids, **token_types(base, ids)).logits.float()
    hidden = _hidden(base, ids)
    if hidden is None:
        return None
    first, last = ends(base, hidden, ids, (ids.shape[1],))
    return next((read for read in READS if _gives(read, (base, first, last), wanted)), None)


@torch.no_grad()
def filler(model: nn.Module, ids: Tensor) -> Fill | None:
    """How this model's head fills a mask, proven on `ids` int64 [1, length]; None where no way known gives its own."""
    base = unwrap(model)
    wanted = base(input_ids=ids).logits[0].float()
    hidden = _hidden(base, ids)
    if hidden is None:
        return None
    return next((fill for fill in FILLS if _gives(fill, (base, hidden), wanted)), None)


def _hidden(base: PreTrainedModel, ids: Tensor) -> Tensor | None:
    """The states of one text as training asks for them; None where this trunk cannot be asked so."""
    try:
        return states(base, ids, torch.arange(ids.shape[1], device=ids.device)[None], (ids.shape[1],))
    except TypeError:
        return None


def _gives(head: Callable[..., Tensor], inputs: tuple[Any, ...], wanted: Tensor) -> bool:
    """Whether a way to ask the head fits this model and gives its scores. A new head's scores are small numbers."""
    try:
        raw = head(*inputs)
    except (AttributeError, TypeError, RuntimeError, IndexError):
        return False
    share = 1e-4 if raw.dtype == torch.float32 else 2e-2
    return raw.shape == wanted.shape and bool((raw.float() - wanted).abs().max() <= share * wanted.abs().max() + 1e-6)


def ends(base: PreTrainedModel, hidden: Tensor, ids: Tensor, segments: Sequence[int]) -> tuple[Tensor, Tensor]:
    """States of the first and of the last token of each segment, [n, width] each, from hidden [length, width].

    The last is the last that is no padding token, as transformers has it: a text may end with the token that pads.
    """
    lengths = torch.tensor(segments, device=ids.device)
    starts = lengths.cumsum(0) - lengths
    at = torch.arange(ids.shape[1], device=ids.device)
    pad = base.config.get_text_config().pad_token_id
    real = at if pad is None else torch.where(ids[0] != pad, at, -1).cummax(0).values
    last = torch.maximum(real[starts + lengths - 1], starts)
    return hidden.index_select(0, starts), hidden.index_select(0, last)
