"""Forms: exported models that can be questioned, whatever program reads them back from the disk.

A form answers in tokens and logits only. What is held against it, and what follows, the certificate says.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from tuneloop.base.errors import DataError
from tuneloop.base.records import Record
from tuneloop.data.tokens.templates import Chat, encode, render
from tuneloop.evaluation.before_after import held_out_loss
from tuneloop.exports.tensors import Tensors, gguf_tensors, model_tensors
from tuneloop.inference.decode import Decoder
from tuneloop.model.backbone import longest, unwrap

if TYPE_CHECKING:
    from pathlib import Path

    from tuneloop.gguf.llamacpp import LlamaCpp


HELD = 2048
"""Tokens of the held-out rows whose loss is compared, at most."""
TOGETHER = 2048
"""Tokens of prompts, padding too, that are read in one pass at most: prompts of more are answered one by one."""
Greedy = tuple[list[int], list[float]]
"""The tokens of a greedy answer, and how far each was ahead of the second, in standard deviations of the logits."""


class Form(Protocol):
    """An exported model, read back from the disk."""

    @property
    def dtype(self) -> torch.dtype:
        """The type that its weights are computed with, as far as the form is judged by it."""

    @property
    def vocabulary(self) -> int:
        """Tokens that it knows."""

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered texts: special tokens in them are tokens, none are added."""

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> Tensor:
        """float32 [positions, vocabulary] on the CPU: the logits behind the tokens at these positions of `ids`."""

    def greedy(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Greedy]:
        """The most likely token at each step behind each of the prompts."""

    def ends(self) -> frozenset[int]:
        """Tokens at which programs that read this form end an answer."""

    def named_ends(self) -> frozenset[int]:
        """Those that its files name: a program that knows no token by its spelling ends at these alone."""

    def template(self, chat: Chat, *, prompt: bool = False) -> str | None:
        """The chat as the form's own template renders it, "" where that raises an error; None where it brings none."""

    def loss(self, held: Sequence[Record]) -> float | None:
        """Mean loss of a label token on rows, in nats; None where the answer tokens' loss must do."""

    def tensors(self) -> Tensors:
        """Its weights by their names in transformers, each read (float32, CPU) when it is called."""


class TransformersForm:
    """A model and a tokenizer that transformers (with PEFT, bitsandbytes or torchao) has read back from a folder."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    @property
    def dtype(self) -> torch.dtype:
        return computing_dtype(self.model)

    @property
    def vocabulary(self) -> int:
        return len(unwrap(self.model).get_input_embeddings().weight)  # type: ignore[arg-type]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return encode(self.tokenizer, list(texts))

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> Tensor:
        return logits_at(self.model, torch.tensor(list(ids)), torch.tensor(list(positions)))

    def greedy(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Greedy]:
        return greedy_tokens(self.model, prompts, new_tokens)

    def ends(self) -> frozenset[int]:
        """What its generation config names: other programs go by that, not by the template."""
        config = getattr(unwrap(self.model), "generation_config", None)
        return _numbers(getattr(config, "eos_token_id", None))

    def named_ends(self) -> frozenset[int]:
        return self.ends()

    def template(self, chat: Chat, *, prompt: bool = False) -> str | None:
        try:
            return render(self.tokenizer, chat, prompt=prompt)
        except DataError:
            return ""

    def loss(self, held: Sequence[Record]) -> float | None:
        return mean_loss(self.model, self.tokenizer, held)

    def tensors(self) -> Tensors:
        return model_tensors(self.model)


class LlamaForm:
    """A GGUF file, with adapters or without, as llama.cpp has read it; `template` is a file with the chat template to
    be used in place of the GGUF's own, as for `llama-server --chat-template-file`."""

    dtype = torch.float32
    """llama.cpp computes what matters in float32; what the weights have lost is the target's matter."""

    def __init__(
        self, llama: LlamaCpp, gguf: Path, adapters: Sequence[Path] = (), template: Path | None = None
    ) -> None:
        self.llama, self.gguf, self.adapters = llama, gguf, tuple(adapters)
        self._template = template and template.read_text(encoding="utf-8")

    @property
    def vocabulary(self) -> int:
        return self.llama.vocabulary

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.llama.tokenize(list(texts))

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.llama.logits(list(ids), list(positions))).float()

    def greedy(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Greedy]:
        return [self.llama.greedy(ids, new_tokens) for ids in prompts]

    def ends(self) -> frozenset[int]:
        """llama.cpp's end tokens: those that the file names, and some that it knows by their spelling."""
        return frozenset(self.llama.ends())

    def named_ends(self) -> frozenset[int]:
        facts = self._facts
        return frozenset(facts[key] for key in (f"tokenizer.ggml.{x}_token_id" for x in ("eos", "eot")) if key in facts)

    def template(self, chat: Chat, *, prompt: bool = False) -> str | None:
        from transformers.utils import chat_template_utils

        own: Any = chat_template_utils
        facts = self._facts
        source = self._template or facts.get("tokenizer.chat_template")
        if not source:
            return None
        tokens = facts["tokenizer.ggml.tokens"]
        named = {
            f"{name}_token": tokens[facts[f"tokenizer.ggml.{key}_token_id"]]
            for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
            if f"tokenizer.ggml.{key}_token_id" in facts
        }
        try:
            texts, _ = own.render_jinja_template([chat], chat_template=source, add_generation_prompt=prompt, **named)
        except Exception:  # whatever a broken template raises
            return ""
        return str(texts[0])

    def loss(self, held: Sequence[Record]) -> float | None:
        return None

    def tensors(self) -> Tensors:
        return gguf_tensors(self.gguf, self.adapters)

    @cached_property
    def _facts(self) -> dict[str, Any]:
        """The file's metadata; its vocabulary alone takes a second to read."""
        from tuneloop.gguf.file import GgufFile

        with GgufFile(self.gguf) as file:
            return file.facts


def _numbers(field: Any) -> frozenset[int]:
    """
    >>> sorted(_numbers([2, 1])), sorted(_numbers(3)), sorted(_numbers(None))
    ([1, 2], [3], [])
    """
    return frozenset() if field is None else frozenset([field] if isinstance(field, int) else field)


def computing_dtype(model: nn.Module) -> torch.dtype:
    """The type that a model computes in; bitsandbytes' weights are bytes."""
    return next(p.dtype for p in unwrap(model).parameters() if p.is_floating_point())


@torch.no_grad()
def logits_at(model: nn.Module, ids: Tensor, positions: Tensor) -> Tensor:
    """float32 [positions, vocabulary] on the CPU of one text of tokens, int64 [length]; no others are computed."""
    device = next(model.parameters()).device
    out = model(input_ids=ids[None].to(device), use_cache=False, logits_to_keep=positions.to(device))
    logits: Tensor = out.logits[0].float().cpu()
    return logits


@torch.no_grad()
def greedy_tokens(model: nn.Module, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Greedy]:
    """The most likely token at each step behind each prompt, side by side where all are short.

    An end token does not end it: a model that has learned to answer briefly would be compared on next to nothing.
    """
    if not prompts:
        return []
    if len(prompts) > 1 and len(prompts) * max(map(len, prompts)) > TOGETHER:
        return [one for prompt in prompts for one in greedy_tokens(model, [prompt], new_tokens)]
    out: list[Greedy] = [([], []) for _ in prompts]
    decoder = Decoder(model, longest(model))
    state = decoder.prefill(prompts, pad=0)
    for left in range(new_tokens, 0, -1):
        rows = decoder.step(state).double()
        for (tokens, gaps), logits in zip(out, rows, strict=True):
            first, second = logits.topk(2).values.tolist()
            spread = float(logits.std())
            gaps.append((first - second) / spread if spread else 0.0)  # all tokens alike: a tie
            tokens.append(int(logits.argmax()))
        if left > 1:
            state = decoder.extended(state, torch.tensor([tokens[-1] for tokens, _ in out], device=rows.device))
    return out


def mean_loss(model: nn.Module, tokenizer: Any, held: Sequence[Record]) -> float | None:
    """Mean loss of a label token on rows, in nats; None where there is none."""
    total, tokens = held_out_loss(model, tokenizer, HELD)(list(held)) if held else (0.0, 0)
    return total / tokens if tokens else None
