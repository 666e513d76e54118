"""A trained classifier that answers: to a text, how likely each label is; to a chat, the likeliest label."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from tuneloop.base.errors import ServeError
from tuneloop.base.language import t
from tuneloop.base.records import Message, Record, Reply
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import pack
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.tokens.samples import Sequences
from tuneloop.data.tokens.templates import Chat
from tuneloop.model.backbone import longest
from tuneloop.model.vocabulary import require_rows
from tuneloop.tasks.task import SplitView, Task, TaskContext


class Classifier:
    """Names labels with a model and its tokenizer. Not for several threads at once.

    Of a chat it reads the last message of the user (two in a row are a pair of texts), and answers with the likeliest
    label: so what can talk to a model that writes can talk to this one.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, task: Task, setting: TaskContext) -> None:
        self.model, self.tokenizer, self.labels = model, tokenizer, setting.labels
        self._task, self._setting = task, setting
        self._module = task.objective(model, Examples.of(self._samples(["."])), setting)
        self.context = longest(model)
        """Longest text in tokens."""

    def _samples(self, texts: Sequence[str | tuple[str, ...]]) -> Sequences:
        pairs = [(text,) if isinstance(text, str) else text for text in texts]
        records = [Record(tuple(Message("user", text) for text in pair), kind="label") for pair in pairs]
        return self._task.samples(SplitView(tokenize(self.tokenizer, records), lambda: records), self._setting)

    @torch.no_grad()
    def classify(self, texts: Sequence[str | tuple[str, ...]]) -> list[dict[str, float]]:
        """Of each text (or pair), label -> its probability. Raises TL-SERVE-CONTEXT for one that is too long."""
        self._module.eval()
        device = next(self.model.parameters()).device
        out = []
        for sample in self._samples(texts) if texts else ():
            if len(sample.ids) > self.context:
                raise ServeError("TL-SERVE-CONTEXT", tokens=len(sample.ids), context=self.context)
            if not len(sample.ids):
                raise ServeError("TL-SERVE-REQUEST", where="text", error=t("there is no text to name a label of"))
            require_rows(self.model, self.tokenizer, [sample.ids.tolist()])
            scores = self._module.scores(pack([sample]).to(device))  # type: ignore[operator]
            out.append(dict(zip(self.labels, scores[0].double().softmax(-1).tolist(), strict=True)))
        return out

    def count(self, chat: Chat) -> int:
        """Tokens of the text that a chat asks about."""
        return len(self._samples([_text(chat)])[0].ids)

    def answer(
        self, chats: Sequence[Chat], *, progress: Callable[[int], None] | None = None, **options: Any
    ) -> list[Reply]:
        """The likeliest label of each chat's text; options of writing change nothing."""
        out = []
        for n, chat in enumerate(chats, 1):
            began = time.perf_counter()
            chances = self.classify([_text(chat)])[0]
            out.append(Reply(likeliest(chances), self.count(chat), 1, "stop", time.perf_counter() - began, chances))
            if progress is not None:
                progress(n)
        return out

    def stream_reply(self, chat: Chat, **options: Any) -> Iterator[str | Reply]:
        """The label, then the whole Reply."""
        reply = self.answer([chat])[0]
        yield reply.text
        yield reply


def likeliest(chances: dict[str, float]) -> str:
    """The label of the highest probability; of equal ones the first.

    >>> likeliest({"neg": 0.2, "pos": 0.8})
    'pos'
    """
    return max(chances, key=chances.__getitem__)


def _text(chat: Chat) -> str | tuple[str, ...]:
    """The last message of the user; two in a row are a pair.

    >>> _text([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    ('a', 'b')
    """
    last = next((n for n in reversed(range(len(chat))) if chat[n]["role"] == "user"), None)
    if last is None:
        return ""
    text = str(chat[last]["content"])
    return (str(chat[last - 1]["content"]), text) if last and chat[last - 1]["role"] == "user" else text
