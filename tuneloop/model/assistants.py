"""What preparing data asks of models: to judge a text, to answer a chat, to translate. Nothing is loaded before it is
needed, and the recipe's model at most once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tuneloop.data.augmenting.augment import Chat, Helpers
from tuneloop.data.augmenting.endpoint import Endpoint, notice
from tuneloop.environment import environment
from tuneloop.language import t
from tuneloop.model import sources
from tuneloop.model.generate import Answerer
from tuneloop.model.load import load_model, placed
from tuneloop.model.perplexity import nll
from tuneloop.model.translate import Translator
from tuneloop.sections import Recipe

LONGEST = 512
"""Tokens of an answer; one that is not done by then is none."""


def helpers(recipe: Recipe, folder: Path, tokenizer: Any, say: Callable[[str], None]) -> Helpers:
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
    return Helpers(far.answer if far and part.endpoint_model else own.answer, own.score, translate, say)


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

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        return self._endpoint.translate(texts, source, target)


class _Own:
    """Models on this machine."""

    def __init__(self, recipe: Recipe, folder: Path, tokenizer: Any, say: Callable[[str], None]) -> None:
        self._recipe, self._folder, self._tokenizer, self._say = recipe, folder, tokenizer, say

    @cached_property
    def _model(self) -> Any:
        self._say(t("Loading the model to derive rows"))
        return placed(load_model(self._folder, self._recipe.model.dtype))

    @cached_property
    def _translator(self) -> Translator:
        self._say(t("Loading the translation model"))
        part = self._recipe.prepare.augment
        return Translator([sources.resolve(name) for name in part.translator], part.via)

    def score(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        return nll(self._model, self._tokenizer, texts) if texts else []

    def answer(self, chats: Sequence[Chat]) -> list[str]:
        """Drawn at temperature 0.7, always the same for the same chats; "" where there is no room or no end."""
        answerer = Answerer(self._model, self._tokenizer)
        fit = [n for n, chat in enumerate(chats) if answerer.count(chat) < answerer.context]
        replies = answerer.answer(
            [chats[n] for n in fit], max_new_tokens=LONGEST, temperature=0.7, top_p=0.95, seed=self._recipe.seed
        )
        done = {n: reply.text for n, reply in zip(fit, replies, strict=True) if reply.finish == "stop"}
        return [done.get(n, "") for n in range(len(chats))]

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        return self._translator.translate(texts, source, target)
