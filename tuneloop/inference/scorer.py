"""A trained reward model that answers: to a dialogue that ends with an answer, how good that answer is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from tuneloop.base.errors import ServeError
from tuneloop.base.records import Message, Record, Reply
from tuneloop.data.batches.pack import pack
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.tokens.samples import Sample
from tuneloop.data.tokens.templates import Chat
from tuneloop.model.backbone import longest
from tuneloop.model.vocabulary import require_rows
from tuneloop.tasks.classify import LabelModel


class Scorer:
    """Scores answers with a model and its tokenizer. Not for several threads at once.

    It answers a chat with the score as text: so what can talk to a model that writes can talk to this one.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, system: str | None = None) -> None:
        """`system` is the prompt a run was trained with (prepare.system): chats that bring none get it here as well."""
        self.model, self.tokenizer, self.system = model, tokenizer, system
        probe = torch.tensor(tokenizer("a b")["input_ids"], device=next(model.parameters()).device)[None]
        self._module = LabelModel(model, probe)
        self.context = longest(model)
        """Longest dialogue in tokens."""

    def _sample(self, chat: Chat) -> Sample:
        """The dialogue as in training: what the answers of a pair were. Raises TL-SERVE-NO-ANSWER."""
        if not chat or chat[-1]["role"] != "assistant":
            raise ServeError("TL-SERVE-NO-ANSWER", where="messages", param="messages")
        if self.system and not any(m["role"] == "system" for m in chat):
            chat = [{"role": "system", "content": self.system}, *chat]
        messages = tuple(Message(m["role"], m["content"]) for m in chat)
        record = Record(messages, kind="preference", rejected=messages[-1:])
        return tokenize(self.tokenizer, [record])[0]

    @torch.no_grad()
    def scores(self, chats: Sequence[Chat]) -> list[float]:
        """The score of each dialogue's last answer; only the order of two scores means anything.

        Raises TL-SERVE-NO-ANSWER, and TL-SERVE-CONTEXT for a dialogue that is too long.
        """
        self._module.eval()
        device = next(self.model.parameters()).device
        out = []
        for chat in chats:
            sample = self._sample(chat)
            if len(sample.ids) > self.context:
                raise ServeError("TL-SERVE-CONTEXT", tokens=len(sample.ids), context=self.context)
            require_rows(self.model, self.tokenizer, [sample.ids.tolist()])
            score = self._module.scores(pack([sample]).to(device))
            out.append(float(score[0, 0]))
        return out

    def count(self, chat: Chat) -> int:
        """Tokens of a dialogue."""
        return len(self._sample(chat).ids)

    def answer(
        self, chats: Sequence[Chat], *, progress: Callable[[int], None] | None = None, **options: Any
    ) -> list[Reply]:
        """The score of each chat's last answer; options of writing change nothing."""
        out = []
        for n, chat in enumerate(chats, 1):
            began = time.perf_counter()
            score = self.scores([chat])[0]
            out.append(Reply(f"{score:.4f}", self.count(chat), 1, "stop", time.perf_counter() - began))
            if progress is not None:
                progress(n)
        return out

    def stream_reply(self, chat: Chat, **options: Any) -> Iterator[str | Reply]:
        """The score, then the whole Reply."""
        reply = self.answer([chat])[0]
        yield reply.text
        yield reply
