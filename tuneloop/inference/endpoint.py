"""A model behind an OpenAI-compatible address, answering as a model in this process does (`AnswererLike`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event, Lock
from typing import Any

from tuneloop.base.errors import MachineError
from tuneloop.base.language import listed, t
from tuneloop.base.records import Reply
from tuneloop.data.augmenting.endpoint import Endpoint
from tuneloop.data.tokens.templates import Chat

UNTOLD = 1 << 20
"""Context in tokens of a server that does not name its own: it refuses itself what is too long."""
_CONTEXT_KEYS = ("max_model_len", "context_length", "context_window")
"""What vLLM, OpenRouter and others call a model's context in their list of models."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Requests that were answered, and tokens as the server counted them (`estimated`: where it did not, as we do)."""

    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    estimated: bool = False


@dataclass
class EndpointAnswerer:
    """`url` ends before /chat/completions; `model` "" takes the only one that the server lists beside its base; `key`
    is sent as a bearer token and never shown. A request waits `timeout` seconds and is sent up to `retries` times again
    where the server is busy (429, with its Retry-After), fails (5xx) or cannot be reached.
    """

    url: str
    model: str = ""
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    retries: int = 3
    wait: float = 1.0
    """Seconds before the first retry; each further one waits twice as long, or as long as the server asks."""
    usage: Usage = field(default_factory=Usage, init=False)
    _lock: Any = field(default_factory=Lock, init=False, repr=False)

    @cached_property
    def _client(self) -> Endpoint:
        how = {"timeout": self.timeout, "wait": self.wait, "tries": 1 + self.retries}
        asking = Endpoint(self.url, self.model, self.key, **how)  # type: ignore[arg-type]
        asking.require_allowed()
        if self.model:
            return asking
        models = asking.models()
        bases = {str(model.get("parent")) for model in models}
        names = [model["id"] for model in models]
        names = [name for name in names if name not in bases] or names
        if len(names) != 1:
            problem = t("it lists {n} models ({names}): name one", n=len(names), names=listed(names[:8]))
            raise MachineError("TL-MACHINE-ENDPOINT", where=self.url, error=problem)
        return Endpoint(self.url, names[0], self.key, **how)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The model's name on the server. Raises TL-MACHINE-ENDPOINT where none is named and it lists several."""
        return self._client.model

    @cached_property
    def context(self) -> int:
        """Longest prompt and answer together in tokens, as the server lists it; `UNTOLD` where it does not."""
        try:
            models = self._client.models()
        except MachineError:  # many servers have no such list
            return UNTOLD
        mine = next((model for model in models if model["id"] == self._client.model), {})
        lengths = [mine.get(name) for name in _CONTEXT_KEYS]
        return next((n for n in lengths if isinstance(n, int) and n > 0), UNTOLD)

    def count(self, chat: Chat) -> int:
        """Prompt tokens of a chat, estimated: the server has the tokenizer. A token for three bytes of UTF-8, which is
        one for a Chinese character and about 4/3 of what English has, and four for each turn.

        >>> EndpointAnswerer("http://localhost/v1").count([{"role": "user", "content": "你好"}])
        6
        """
        return sum(len(str(turn.get("content") or "").encode("utf-8", "replace")) // 3 + 4 for turn in chat)

    def answer(
        self,
        chats: Sequence[Chat],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 8,
        temperature: float = 0.0,
        progress: Callable[[int], None] | None = None,
        each: Callable[[int, Reply], None] | None = None,
        **options: Any,
    ) -> list[Reply]:
        """One reply a chat, in order, `batch_size` requests at once. Raises TL-MACHINE-ENDPOINT, whose facts have the
        `place` of the chat that failed, and the `status` of a request that was refused.

        `progress` hears how many answers are there, `each` the place and the reply of every one as it comes, on the
        caller's thread: also of those that were under way when another one failed, so that a caller who stores them
        loses nothing. A thought that the server sends apart stands as <think>…</think> before the text. `options` are
        further fields of the request (top_p, seed, stop).
        """
        client, replies = self._client, dict[int, Reply]()
        fields = {"temperature": temperature, "max_tokens": max_new_tokens, **options}
        failed: MachineError | None = None
        stopping = Event()  # one request has failed: those that wait are not sent any more
        pool = ThreadPoolExecutor(max(1, batch_size))
        try:
            pending = {pool.submit(self._reply, client, chat, fields, stopping): n for n, chat in enumerate(chats)}
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    n, error = pending.pop(future), _failure(future)
                    if error is not None and failed is None:
                        error.facts["place"] = n
                        failed = error
                    if error is not None or (reply := future.result()) is None:
                        continue
                    replies[n] = reply
                    if each is not None:
                        each(n, reply)
                    if progress is not None:
                        progress(len(replies))
        finally:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
        if failed is not None:
            raise failed
        return [replies[n] for n in range(len(chats))]

    def _reply(self, client: Endpoint, chat: Chat, fields: dict[str, Any], stopping: Event) -> Reply | None:
        if stopping.is_set():
            return None
        began = time.perf_counter()
        try:
            got = client.complete(chat, **fields)
        except BaseException:
            stopping.set()
            raise
        text = f"<think>\n{got.thought}\n</think>\n\n{got.text}" if got.thought else got.text
        prompt = self.count(chat) if got.prompt_tokens is None else got.prompt_tokens
        tokens = self.count([{"content": text}]) if got.tokens is None else got.tokens
        with self._lock:
            before, estimated = self.usage, got.prompt_tokens is None or got.tokens is None
            self.usage = Usage(
                before.calls + 1,
                before.prompt_tokens + prompt,
                before.tokens + tokens,
                before.estimated or estimated,
            )
        finish = "length" if got.finish == "length" else "stop"
        return Reply(text, prompt, tokens, finish, time.perf_counter() - began)  # type: ignore[arg-type]


def _failure(future: Future[Reply | None]) -> MachineError | None:
    """The coded error that a request ended with; any other exception is raised."""
    error = future.exception()
    if error is not None and not isinstance(error, MachineError):
        raise error
    return error
