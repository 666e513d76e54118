"""Generation, one loop shared by evaluation, chat and serving: many at once, or streamed.

Stops at the tokenizer's end token and at the token its template puts after an answer, so that what is generated is what
was trained.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import nn

from tuneloop.base.errors import ServeError
from tuneloop.base.records import Reply
from tuneloop.data.tokens.templates import Chat, prompt_ids, stop_ids
from tuneloop.inference.batch import MOST, DecodeBatch, Generation
from tuneloop.inference.decode import Decoder
from tuneloop.inference.sampling import Sampling
from tuneloop.inference.text_stream import PIECE, TextStream, decoding, first_stop
from tuneloop.model.backbone import has_sliding_window, longest, unwrap, virtual_tokens
from tuneloop.model.kernels.prepacked import prepacked
from tuneloop.model.vocabulary import require_rows

PACKED = 4096
"""Tokens of prompts and answers from which it is worth while to lay the weights out for them."""


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
        off. No text in it is a control token."""
        if self.system and not any(m["role"] == "system" for m in chat):
            chat = [{"role": "system", "content": self.system}, *chat]
        prefix = self.answer_prefix if thinking is None else ""
        return prompt_ids(self.tokenizer, chat, tools=tools, thinking=thinking, answer_prefix=prefix)

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
        batch_size: int = MOST,
        seed: int | None = None,
        stop: tuple[str, ...] = (),
        progress: Callable[[int], None] | None = None,
        share: Callable[[float], None] | None = None,
        tools: Sequence[Sequence[Any]] = (),
        thinking: bool | None = None,
    ) -> list[Reply]:
        """One reply a chat, in order. Raises TL-SERVE-CONTEXT, TL-SERVE-TOKEN.

        At most `batch_size` are under way at once: an answer that ends makes room for the next prompt, the longest one
        first. With a seed, the answer of chat n is drawn with seed + n, whatever the others are. `tools` are what each
        chat is offered, `thinking` the template's switch (None leaves it as it is).

        `progress` hears whenever answers have ended how many have, `share` after each token which part of the work is
        done at least, from 0 to 1.
        """
        prompts = [self.prompt(c, tools[k] if tools else (), thinking) for k, c in enumerate(chats)]
        how = [Sampling(temperature, top_p, None if seed is None else seed + n) for n in range(len(prompts))]
        replies: list[Reply | None] = [None] * len(prompts)
        done = 0
        batch, waiting = self._batch(prompts, max_new_tokens, how, batch_size, stop)
        numbers = {id(one): n for n, one in enumerate(waiting)}

        def settle(ended: list[Generation]) -> None:
            nonlocal done
            for one in ended:
                n = numbers[id(one)]
                replies[n] = self._reply(one.tokens, len(one.prompt), one.seconds, stop)
            done += len(ended)
            if ended and progress is not None:
                progress(done)
            if share is not None:
                written = sum(len(one.tokens) for one in batch.generations)
                share((done + written / max(1, max_new_tokens)) / len(prompts))

        settle([one for one in waiting if one.most <= 0])
        queue = deque(sorted((one for one in waiting if one.most > 0), key=lambda one: -len(one.prompt)))
        work = sum(len(one.prompt) + one.most for one in queue)
        with prepacked(self.model, batch.slots) if work >= PACKED and batch.slots > 1 else nullcontext():
            while queue or batch.generations:
                while count := batch.admits(queue):
                    settle(batch.join([queue.popleft() for _ in range(count)]))
                settle(batch.step())
        return [r for r in replies if r is not None]

    def _reply(self, tokens: list[int], prompt_tokens: int, seconds: float, stop: tuple[str, ...]) -> Reply:
        ended = bool(tokens) and tokens[-1] in self.stops
        written = tokens[:-1] if ended else tokens
        text = self._text(written)
        if first_stop(text, stop) is not None:
            # A batch writes on behind a stop text; alone, the answer ends with the token that completes it.
            starts = ((k, self._text(written[:k])) for k in range(1, len(written) + 1))
            tokens, text, cut = next((written[:k], x, c) for k, x in starts if (c := first_stop(x, stop)) is not None)
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
        text, sent = TextStream(decoding(self.tokenizer), stop), 0
        for (token,) in self._decode([ids], max_new_tokens, Sampling(temperature, top_p, seed)):
            assert token is not None
            tokens.append(token)
            piece = "" if token in self.stops else text.feed(token)
            if piece and not text.stopped:
                yield piece
                sent += len(piece)
            if text.stopped:
                break
        reply = self._reply(tokens, len(ids), time.perf_counter() - began, stop)
        if len(reply.text) > sent:
            yield reply.text[sent:]
        yield reply

    def _batch(
        self, prompts: list[list[int]], most: int, how: list[Sampling], slots: int, stop: tuple[str, ...] = ()
    ) -> tuple[DecodeBatch, list[Generation]]:
        """An empty batch for these prompts, and what is to join it. Raises TL-SERVE-CONTEXT, TL-SERVE-TOKEN."""
        longest = max(map(len, prompts), default=0)
        if longest >= self.context:
            raise ServeError("TL-SERVE-CONTEXT", tokens=longest, context=self.context)
        require_rows(self.model, self.tokenizer, prompts)
        stopped = (lambda tokens: first_stop(self._text(tokens), stop) is not None) if any(stop) else None
        waiting = [
            Generation(p, min(most, self.context - len(p)), sampling, stopped)
            for p, sampling in zip(prompts, how, strict=True)
        ]
        columns = max((len(one.prompt) + one.most for one in waiting), default=0) + virtual_tokens(self.model)
        batch = DecodeBatch(
            Decoder(self.model, self.context),
            self.stops,
            penalty=self.penalty,
            slots=max(1, min(slots, len(prompts))),
            columns=columns,
            alone=self.alone,
        )
        return batch, waiting

    def _decode(self, prompts: list[list[int]], most: int, how: Sampling) -> Iterator[list[int | None]]:
        """One list of tokens a step, one a prompt; None for a prompt that has ended."""
        each = [replace(how, seed=None if how.seed is None else how.seed + n) for n in range(len(prompts))]
        batch, waiting = self._batch(prompts, most, each, len(prompts))
        if not max(one.most for one in waiting):
            return
        queue = deque(waiting)
        while count := batch.admits(queue):
            batch.join([queue.popleft() for _ in range(count)])
        written = 1
        while True:
            yield [one.tokens[-1] if len(one.tokens) == written else None for one in waiting]
            if not batch.generations:
                return
            batch.step()
            written += 1


def _repetition_penalty(model: nn.Module) -> float:
    """What the model's own generation_config.json asks for, as its publisher tuned it; 1 where it asks for none.

    transformers and vLLM obey it too: what is measured here is what is served there.
    """
    config = getattr(unwrap(model), "generation_config", None)
    return float(getattr(config, "repetition_penalty", None) or 1.0)
