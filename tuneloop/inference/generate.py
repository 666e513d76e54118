"""Generation, one loop shared by evaluation, chat and serving: batched and left-padded, or streamed.

Stops at the tokenizer's end token and at the token its template puts after an answer, so that what is generated is what
was trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from tuneloop.base.errors import ServeError
from tuneloop.base.records import Reply
from tuneloop.data.tokens.templates import Chat, encode, render, stop_ids
from tuneloop.inference.decode import Chooser, Decoder, Sampling
from tuneloop.model.backbone import has_sliding_window, longest, unwrap
from tuneloop.model.vocabulary import require_rows

PIECE = "\ufffd"
"""What a tokenizer decodes an unfinished character to."""


class Answerer:
    """Answers chats with a model and its tokenizer. Not for several threads at once."""

    def __init__(self, model: nn.Module, tokenizer: Any, system: str | None = None, answer_prefix: str = "") -> None:
        """`system` is the prompt a run was trained with (prepare.system): chats that bring none get it here as well.

        `answer_prefix` stands before each answer: the empty thought that a run without thoughts was trained behind.
        """
        self.model, self.tokenizer, self.system = model, tokenizer, system
        self.answer_prefix = answer_prefix
        self.stops = stop_ids(tokenizer)
        self.alone = has_sliding_window(model)
        """Padding would stand between virtual tokens and prompt, and push them out of a sliding window."""
        self.penalty = _repetition_penalty(model)
        self.context = longest(model)
        """Longest prompt and answer together, in tokens."""

    def prompt(self, chat: Chat, tools: Sequence[Any] = (), thinking: bool | None = None) -> list[int]:
        """Token ids of a chat with the generation prompt, with tools, and with the template's thoughts switched on or
        off."""
        if self.system and not any(m["role"] == "system" for m in chat):
            chat = [{"role": "system", "content": self.system}, *chat]
        text = render(self.tokenizer, chat, prompt=True, tools=tools, thinking=thinking)
        return encode(self.tokenizer, [text + (self.answer_prefix if thinking is None else "")])[0]

    def count(self, chat: Chat, tools: Sequence[Any] = ()) -> int:
        """Prompt tokens of a chat."""
        return len(self.prompt(chat, tools))

    def answer(
        self,
        chats: Sequence[Chat],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        batch_size: int = 8,
        seed: int | None = None,
        stop: tuple[str, ...] = (),
        progress: Callable[[int], None] | None = None,
        share: Callable[[float], None] | None = None,
        tools: Sequence[Sequence[Any]] = (),
        thinking: bool | None = None,
    ) -> list[Reply]:
        """One reply a chat, in order. Prompts of like length share a batch. Raises TL-SERVE-CONTEXT, TL-SERVE-TOKEN.

        `tools` are what each chat is offered, `thinking` the template's switch (None leaves it as it is).

        `progress` hears after each batch how many answers are written, `share` after each token which part of the work
        is done at least, from 0 to 1.
        """
        prompts = [self.prompt(c, tools[k] if tools else (), thinking) for k, c in enumerate(chats)]
        replies: list[Reply | None] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        how = Sampling(temperature, top_p, seed)
        if self.alone:
            batch_size = 1
        for start in range(0, len(order), batch_size):
            group = order[start : start + batch_size]
            began = time.perf_counter()
            rows: list[list[int]] = [[] for _ in group]
            for tokens in self._decode([prompts[i] for i in group], max_new_tokens, how):
                for row, token in zip(rows, tokens, strict=True):
                    if token is not None:
                        row.append(token)
                if share is not None:
                    share((start + len(group) * max(map(len, rows)) / max_new_tokens) / len(order))
            seconds = (time.perf_counter() - began) / len(group)
            for i, row in zip(group, rows, strict=True):
                replies[i] = self._reply(row, len(prompts[i]), seconds, stop)
            if progress is not None:
                progress(start + len(group))
        return [r for r in replies if r is not None]

    def _reply(self, tokens: list[int], prompt_tokens: int, seconds: float, stop: tuple[str, ...]) -> Reply:
        ended = bool(tokens) and tokens[-1] in self.stops
        written = tokens[:-1] if ended else tokens
        text = self._text(written)
        if _first_stop(text, stop) is not None:
            # A batch writes on behind a stop text; alone, the answer ends with the token that completes it.
            starts = ((k, self._text(written[:k])) for k in range(1, len(written) + 1))
            tokens, text, cut = next((written[:k], x, c) for k, x in starts if (c := _first_stop(x, stop)) is not None)
            text, ended = text[:cut], True
        else:
            text = text.rstrip(PIECE)  # the first bytes of a character whose others were not written
        return Reply(text, prompt_tokens, len(tokens), "stop" if ended else "length", seconds)

    def _text(self, tokens: list[int]) -> str:
        # Cleaning would take back blanks that a stream has sent already, and write what was not trained.
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def stream(self, chat: Chat, **options: Any) -> Iterator[str]:
        """The answer's text in pieces of whole characters."""
        yield from (piece for piece in self.stream_reply(chat, **options) if isinstance(piece, str))

    def stream_reply(
        self,
        chat: Chat,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: tuple[str, ...] = (),
    ) -> Iterator[str | Reply]:
        """Text pieces, then the whole Reply as last item. Closing the iterator ends the generation."""
        ids = self.prompt(chat)
        began = time.perf_counter()
        tokens: list[int] = []
        sent = 0
        hold = max((len(s) for s in stop if s), default=1) - 1
        for (token,) in self._decode([ids], max_new_tokens, Sampling(temperature, top_p, seed)):
            assert token is not None
            tokens.append(token)
            text = self._text(tokens[:-1] if token in self.stops else tokens)
            if _first_stop(text, stop) is not None:
                break
            # A stop text may be half written, and so may a character: neither goes out before it is clear.
            safe = len(text) - hold if not text.endswith(PIECE) else sent
            if safe > sent:
                yield text[sent:safe]
                sent = safe
        reply = self._reply(tokens, len(ids), time.perf_counter() - began, stop)
        if len(reply.text) > sent:
            yield reply.text[sent:]
        yield reply

    @torch.no_grad()
    def _decode(self, prompts: list[list[int]], most: int, how: Sampling) -> Iterator[list[int | None]]:
        """One list of tokens a step, one a prompt; None for a prompt that has ended."""
        longest = max(len(p) for p in prompts)
        if longest >= self.context:
            raise ServeError("TL-SERVE-CONTEXT", tokens=longest, context=self.context)
        require_rows(self.model, self.tokenizer, prompts)
        budgets = [min(most, self.context - len(p)) for p in prompts]
        decoder = Decoder(self.model, self.context)
        state = decoder.prefill(prompts, pad=next(iter(self.stops), 0))
        choose = Chooser(how, state.mask.device, self.penalty, prompts)
        open_ = [True] * len(prompts)
        for written in range(1, max(budgets) + 1):
            tokens = choose(decoder.step(state))
            chosen: list[int] = tokens.tolist()
            yield [t if o else None for t, o in zip(chosen, open_, strict=True)]
            open_ = [o and t not in self.stops and written < n for t, o, n in zip(chosen, open_, budgets, strict=True)]
            if not any(open_):
                return
            state = decoder.extended(state, tokens)


def _repetition_penalty(model: nn.Module) -> float:
    """What the model's own generation_config.json asks for, as its publisher tuned it; 1 where it asks for none.

    transformers and vLLM obey it too: what is measured here is what is served there.
    """
    config = getattr(unwrap(model), "generation_config", None)
    return float(getattr(config, "repetition_penalty", None) or 1.0)


def _first_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the earliest stop text begins.

    >>> _first_stop("one END two", ("END", "two"))
    4
    """
    places = [text.find(s) for s in stop if s and s in text]
    return min(places) if places else None
