"""The trunk: from tokens to the last hidden states, under whatever a method wrapped around the model.

All objectives come through here, so what a method does to a forward pass (virtual tokens, noise on the embeddings,
kept activations) is done in one place and holds for every task.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from tuneloop.model.anatomy import scores_labels

FROZEN_CACHE = "kept_blocks"
"""Attribute of a transformers model: its frozen blocks, where they were told so (model/frozen_cache.py)."""
NOISE = "neftune_alpha"
"""Attribute of a transformers model: how strong the noise on its embeddings is in training."""
PAIRS = "pair_mark"
"""Attribute of a transformers model: the id that stands between two texts, where token types tell them apart (BERT)."""


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside an adapter's wrapper (adapters that are injected stay in it)."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(inner, PreTrainedModel)
    return inner


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What the model's own forward is called with for a packed row, and where its tokens come out.

    `places` int64 [length]: the rows of the output that belong to real tokens; None where all do.
    """

    inputs: dict[str, Any]
    places: Tensor | None = None

    def tokens(self, positions: Tensor) -> Tensor:
        """Positions of tokens -> positions in the output."""
        return positions if self.places is None else self.places[positions]


def virtual_kind(model: nn.Module) -> str:
    """ "layers" where virtual tokens stand before every layer, "input" where they stand before the text, else ""."""
    if not isinstance(model, PeftModel) or model._adapters_disabled or not model.active_peft_config.is_prompt_learning:
        return ""
    return "layers" if model.active_peft_config.peft_type == "PREFIX_TUNING" else "input"


def callable_model(model: nn.Module) -> nn.Module:
    """What to call for the model's own forward: the model inside, where virtual tokens have been set aside."""
    aside = isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning and not virtual_kind(model)
    return unwrap(model) if aside else model


def virtual_tokens(model: nn.Module) -> int:
    """How many virtual tokens stand before a text."""
    return int(model.active_peft_config.num_virtual_tokens) if virtual_kind(model) else 0  # type: ignore[union-attr,arg-type]


def first_position(base: PreTrainedModel) -> int:
    """The number of a text's first position: 0, but RoBERTa and what is built like it count from the padding's on."""
    embeddings: Any = getattr(base.base_model, "embeddings", None)
    return int(embeddings.padding_idx) + 1 if hasattr(embeddings, "create_position_ids_from_input_ids") else 0


def tell_pairs(model: nn.Module, tokenizer: Any) -> None:
    """Let the model tell two texts apart by token types, where its tokenizer does so.

    The id between them is known by where the types change.
    """
    base = unwrap(model)
    pair = tokenizer("a", "a")
    types = list(pair.get("token_type_ids") or ())
    if 1 in types and types.index(1) and int(getattr(base.config, "type_vocab_size", 0) or 0) > 1:
        setattr(base, PAIRS, int(pair["input_ids"][types.index(1) - 1]))


def token_types(model: nn.Module, ids: Tensor, segments: tuple[int, ...] | None = None) -> dict[str, Tensor]:
    """The argument token_type_ids int64 [1, length] of a packed row of ids: 1 behind the mark between two texts.

    Empty where the model has no such types.
    """
    separator = getattr(unwrap(model), PAIRS, None)
    if separator is None:
        return {}
    boundaries = (ids[0] == separator).long()
    before = boundaries.cumsum(0) - boundaries
    sizes = torch.tensor(segments or (ids.shape[1],), device=ids.device)
    first = before[sizes.cumsum(0) - sizes]
    return {"token_type_ids": (before > torch.repeat_interleave(first, sizes)).long()[None]}


def packed_inputs(
    model: nn.Module, input_ids: Tensor, position_ids: Tensor, segments: tuple[int, ...] | None = None
) -> Entry:
    """A packed row, ids and positions int64 [1, length], as the model's own forward takes it: with the virtual tokens
    before each sample, and in training with NEFTune's noise."""
    base = unwrap(model)
    first = first_position(base)
    position_ids = position_ids + first
    kind, lengths = virtual_kind(model), segments or (input_ids.shape[1],)
    given: dict[str, Any] = {"position_ids": position_ids, "segments": segments, "use_cache": False}
    noise = float(getattr(base, NOISE, 0.0)) if model.training and torch.is_grad_enabled() else 0.0
    if not noise and kind != "input":
        given["input_ids"] = input_ids
    else:
        embedded = _noisy(base.get_input_embeddings()(input_ids), lengths, noise)
        given["inputs_embeds"] = embedded
    if kind == "layers":
        assert isinstance(model, PeftModel)
        given["past_key_values"] = model.get_prompt(1)
        given["position_ids"] = position_ids + virtual_tokens(model)
    if kind != "input":
        return Entry(given | token_types(base, input_ids, segments))
    assert isinstance(model, PeftModel)
    prompt = model.get_prompt(1).to(embedded.dtype)
    n = prompt.shape[1]
    pieces = [piece for part in embedded.split(lengths, 1) for piece in (prompt, part)]
    given["inputs_embeds"] = torch.cat(pieces, 1)
    sizes = torch.tensor([n + length for length in lengths], device=input_ids.device)
    starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    place = torch.arange(int(sizes.sum()), device=input_ids.device) - starts
    given["position_ids"] = place[None] + first
    given["segments"] = None if segments is None else tuple(n + length for length in segments)
    places = (place >= n).nonzero().squeeze(1)
    if scores_labels(base):
        # A head that reads the first position reads, as under PEFT, what stands there: a virtual token.
        begins = torch.tensor(lengths, device=places.device).cumsum(0) - torch.tensor(lengths, device=places.device)
        longer = torch.tensor([length > 1 for length in lengths], device=places.device)
        places[begins[longer]] -= n
    return Entry(given, places)


def longest(model: nn.Module) -> int:
    """Tokens of the longest text that the model takes beside virtual ones; 2**20 where its config does not say."""
    base = unwrap(model)
    most = int(getattr(base.config.get_text_config(), "max_position_embeddings", 0) or 1 << 20)
    return most - first_position(base) - virtual_tokens(model)


def rope_packing_limit(module: nn.Module) -> int | None:
    """Up to which length of a row all positions turn alike in the model inside; None where they do at any length.

    Rotary positions of the kinds dynamic and longrope go by the longest sample of a row, for all of its samples.
    """
    config = next(m for m in module.modules() if isinstance(m, PreTrainedModel)).config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    for one in kinds:
        if one.get("rope_type") in {"dynamic", "longrope"}:
            first = one.get("original_max_position_embeddings")
            return int(
                first or getattr(config, "original_max_position_embeddings", 0) or config.max_position_embeddings
            )
    return None


def routers_off(base: PreTrainedModel) -> dict[str, Any]:
    """What a model of experts is told while it answers, where its config asks for its routers' scores: their loss is of
    training, and counts the positions of a mask that an answer with a cache has not."""
    wanted = getattr(base.config.get_text_config(), "output_router_logits", False)
    return {"output_router_logits": False} if wanted else {}


def has_sliding_window(model: nn.Module) -> bool:
    """Whether virtual tokens stand before layers that look back only so far."""
    config = unwrap(model).config.get_text_config()
    windows = getattr(config, "layer_types", None) or [getattr(config, "sliding_window", None) and "sliding_attention"]
    return virtual_kind(model) == "layers" and "sliding_attention" in windows


def prefill_inputs(model: nn.Module, ids: Tensor, mask: Tensor, place: Tensor) -> dict[str, Any]:
    """What the model's own forward is called with to begin answers: ids, mask and positions [batch, length], padded on
    the left, with a cache that holds the virtual tokens or will. Mask and positions come back with them counted in."""
    base, n = unwrap(model), virtual_tokens(model)
    given = {"attention_mask": mask, "position_ids": place}
    if not n:
        return {"input_ids": ids, "past_key_values": DynamicCache(config=base.config), **given}
    assert isinstance(model, PeftModel)
    given = {"attention_mask": torch.cat([mask.new_ones(len(ids), n), mask], 1), "position_ids": place + n}
    if virtual_kind(model) == "layers":
        return {"input_ids": ids, "past_key_values": model.get_prompt(len(ids)), **given}
    # The padding stays in front of all: the prompt's vectors go right before each text.
    prompt, embedded = model.get_prompt(len(ids)), base.get_input_embeddings()(ids)
    rows, begins = [], (mask == 0).sum(1).tolist()
    for row, vectors, begin in zip(embedded, prompt.to(embedded.dtype), begins, strict=True):
        rows.append(torch.cat([row[:begin], vectors, row[begin:]]))
    attended = torch.cat([mask.new_ones(len(ids), n), mask], 1)
    for k, begin in enumerate(begins):
        attended[k, :begin], attended[k, begin:] = 0, 1
    places = (attended.cumsum(-1) - 1).clamp(min=0)
    return {
        "inputs_embeds": torch.stack(rows),
        "attention_mask": attended,
        "position_ids": places,
        "past_key_values": DynamicCache(config=base.config),
    }


def _noisy(embedded: Tensor, lengths: tuple[int, ...], alpha: float) -> Tensor:
    """NEFTune (Jain et al. 2023, arXiv:2310.05914): uniform noise of alpha / sqrt(length x width), length the sample's.

    embedded [1, length, width].
    """
    if not alpha:
        return embedded
    width = embedded.shape[-1]
    scale = torch.tensor([alpha / (length * width) ** 0.5 for length in lengths], device=embedded.device)
    each = torch.repeat_interleave(scale, torch.tensor(lengths, device=embedded.device))[None, :, None]
    return embedded + (torch.empty_like(embedded).uniform_(-1, 1) * each).to(embedded.dtype)


def states(
    model: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    segments: tuple[int, ...] | None = None,
    members: Sequence[int] = (),
) -> Tensor:
    """Last hidden states [length, width] of a packed row: ids and positions int64 [1, length].

    `members` are the samples in it: where they are in the frozen cache, the frozen blocks are not run again.
    """
    base = unwrap(model)
    backbone = getattr(base, base.base_model_prefix)
    given = packed_inputs(model, input_ids, position_ids, segments)
    frozen = vars(base).get(FROZEN_CACHE)
    with frozen.row(members) if frozen is not None else nullcontext():
        hidden: Tensor = backbone(**given.inputs).last_hidden_state[0]
    return hidden if given.places is None else hidden.index_select(0, given.places)
