"""The protocol of an engine: what computes the answers behind the server, in this process or elsewhere."""

from __future__ import annotations

from typing import Protocol

from tuneloop.base.records import Reply
from tuneloop.data.tokens.templates import Chat


class AnswerStream(Protocol):
    """One answer under way: an asynchronous iterator of text pieces, and last the whole Reply.

    An error of the answer is raised at the iteration. `aclose` cancels the answer, also before its first piece was
    asked for; a step that wraps a stream hands it on.
    """

    def __aiter__(self) -> AnswerStream: ...

    async def __anext__(self) -> str | Reply: ...

    async def aclose(self) -> None: ...


class Engine(Protocol):
    """Answers chats; shared by all requests of a server. Everything but `close` is called on its event loop."""

    @property
    def context(self) -> int:
        """Longest prompt and answer together, in tokens."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a classifier; none of a model that writes."""

    @property
    def open(self) -> bool:
        """False once `close` was called."""

    @property
    def pending(self) -> int:
        """Requests that were submitted and have not ended, the one that is being answered counted."""

    @property
    def retry_after(self) -> int:
        """Whole seconds after which a refused request may find a place."""

    async def count(self, chat: Chat) -> int:
        """Prompt tokens of a chat. Raises TL-DATA-TEMPLATE for one that the chat template refuses."""

    def submit(
        self,
        chat: Chat,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: tuple[str, ...] = (),
    ) -> AnswerStream:
        """Take a chat, at once. Raises TL-SERVE-CLOSING here, so that a streaming server can still send a status."""

    def close(self, grace: float = 0.0) -> None:
        """Refuse what waits, give the answers under way `grace` seconds, and end. Blocks; may be repeated."""
