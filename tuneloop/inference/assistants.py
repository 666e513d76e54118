"""What preparing data asks of models: to judge a text, to answer a chat, to translate. Nothing is loaded before it is
needed, and the recipe's model at most once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from tuneloop.base.environment import environment
from tuneloop.base.language import t
from tuneloop.base.records import Reply
from tuneloop.data.augmenting.calls import Watch
from tuneloop.data.augmenting.endpoint import Endpoint, notice
from tuneloop.data.augmenting.helpers import Chat, Helpers
from tuneloop.hub import resolve
from tuneloop.hub.folder_check import weight_files
from tuneloop.inference.generate import Answerer
from tuneloop.inference.likelihood_ratio import log_ratios
from tuneloop.inference.perplexity import nll
from tuneloop.inference.translate import Translator
from tuneloop.model.kernels.matmul import bfloat16_units
from tuneloop.model.load import load_model, placed
from tuneloop.recipe.schema import Recipe

LONGEST, SHORT = 512, 96
"""Tokens of an answer, and of a question; an answer that is not done by then is none."""
IN_FLOAT32 = 4 << 30
"""Bytes of weights up to which a CPU never judges and writes in float16: it is many times slower there, and Gemma's
values overflow in it, which makes every judgement no number."""


def helpers(
    recipe: Recipe,
    folder: Path,
    tokenizer: Any,
    say: Callable[[str], None],
    about: Callable[[float], str] = "{:.0f} s".format,
) -> Helpers:
    """The helpers of `prepare.augment`: its endpoint and translators, and else the recipe's own model in `folder`."""
    part = recipe.prepare.augment
    if not part.methods:
        return Helpers(say=say)
    own = _Own(recipe, folder, tokenizer, say)
    far = _Far(part.endpoint or "", part.endpoint_model or "", say) if part.endpoint else None
    translate = None
    if part.translator:
        translate = own.translate
    elif far:
        translate = far.translate
    writer = far if far and part.endpoint_model else own
    return Helpers(writer.answer, own.score, translate, say, writer.ask, own.shift, about, own.watch)


def judging_type(wanted: str) -> Literal["float32", "bfloat16"]:
    """In which type a small model judges and writes on this CPU: bfloat16 where it is faster and float32 is not asked.

    Of 142 changed sentences Gemma 3 270M accepted the same in both; the sums differed by 0.1 nats (median), at most
    0.9.
    """
    return "bfloat16" if wanted != "float32" and bfloat16_units() else "float32"


class _Far:
    """The endpoint, and one sentence to the reader before the first row is sent."""

    def __init__(self, url: str, model: str, say: Callable[[str], None]) -> None:
        self._url, self._model, self._say = url, model, say

    @cached_property
    def _endpoint(self) -> Endpoint:
        if sentence := notice(self._url):
            self._say(sentence)
        return Endpoint(self._url, self._model, environment().endpoint_key)

    def answer(self, chats: Sequence[Chat]) -> list[str]:
        return self._endpoint.answer(chats)

    ask = answer

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        return self._endpoint.translate(texts, source, target)


class _Own:
    """Models on this machine."""

    def __init__(self, recipe: Recipe, folder: Path, tokenizer: Any, say: Callable[[str], None]) -> None:
        self._recipe, self._folder, self._tokenizer, self._say = recipe, folder, tokenizer, say
        self.watch = Watch()

    @cached_property
    def _model(self) -> Any:
        self._say(t("Loading the model to derive rows"))
        size = sum(file.stat().st_size for file in weight_files(self._folder))
        dtype = self._recipe.model.dtype
        if not torch.cuda.is_available() and size <= IN_FLOAT32:
            dtype = judging_type(dtype)
        return placed(load_model(self._folder, dtype))

    @cached_property
    def _translator(self) -> Translator:
        self._say(t("Loading the translation model"))
        part = self._recipe.prepare.augment
        return Translator([resolve.resolve(name) for name in part.translator], part.via)

    def score(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        return nll(self._model, self._tokenizer, texts) if texts else []

    def shift(self, pairs: Sequence[tuple[str, str]], limit: float) -> list[tuple[float, int]]:
        return log_ratios(self._model, self._tokenizer, pairs, limit) if pairs else []

    def answer(self, chats: Sequence[Chat]) -> list[str]:
        """Drawn at temperature 0.7, always the same for the same chats; "" where there is no room or no end."""
        return [reply.text if reply and reply.finish == "stop" else "" for reply in self._written(chats, LONGEST)]

    def ask(self, chats: Sequence[Chat]) -> list[str]:
        """The same for short texts, of which the whole lines are taken where one does not end."""
        replies = self._written(chats, SHORT)
        return [
            "" if reply is None else reply.text if reply.finish == "stop" else reply.text.rpartition("\n")[0]
            for reply in replies
        ]

    def _written(self, chats: Sequence[Chat], longest: int) -> list[Reply | None]:
        answerer = Answerer(self._model, self._tokenizer)
        fitting = [n for n, chat in enumerate(chats) if answerer.count(chat) < answerer.context]
        replies = answerer.answer(
            [chats[n] for n in fitting],
            max_new_tokens=longest,
            temperature=0.7,
            top_p=0.95,
            seed=self._recipe.seed,
            share=lambda done: self.watch.hear(done),
        )
        by_chat = dict(zip(fitting, replies, strict=True))
        return [by_chat.get(n) for n in range(len(chats))]

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        return self._translator.translate(texts, source, target)
