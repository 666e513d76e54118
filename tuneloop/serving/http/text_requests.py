"""What requests may say that give texts and no chat: /v1/completions, /v1/embeddings, /v1/classify."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from tuneloop.base.errors import ServeError
from tuneloop.base.language import t
from tuneloop.serving.engine import Query
from tuneloop.serving.http.errors import Places
from tuneloop.serving.http.schemas import GenerationRequest, ModelName, Neutral, RequestBody

MOST_PROMPTS = 2048
DEFAULT_TOKENS = 16
"""Of a completion that names no length, as OpenAI's API has it."""
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


def _kind(content: Any) -> str | None:
    """What a prompt is: a text, texts, token ids, or several of them; by its first entry."""
    if isinstance(content, str):
        return "text"
    if not isinstance(content, list):
        return None
    first = content[0] if content else ""
    return "texts" if isinstance(first, str) else "token ids" if isinstance(first, int) else "lists of token ids"


Texts: TypeAlias = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True), Tag("texts")]
    | Annotated[TokenIds, Tag("token ids")]
    | Annotated[
        list[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True), Tag("lists of token ids")
    ],
    Discriminator(
        _kind,
        custom_error_type="texts",
        custom_error_message="a text, a list of texts, or token ids are wanted",
    ),
]
"""A text, several, token ids, or several lists of these."""


def prompts(texts: Any) -> Iterator[str | tuple[int, ...]]:
    """Each text or list of token ids.

    >>> list(prompts("a")), list(prompts(["a", "b"])), list(prompts([1, 2])), list(prompts([[1], [2, 3]]))
    (['a'], ['a', 'b'], [(1, 2)], [(1,), (2, 3)])
    """
    several = [texts] if isinstance(texts, str) or isinstance(texts[0], int) else texts
    for one in several:
        yield one if isinstance(one, str) else tuple(one)


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    neutral: ClassVar[Neutral] = {"best_of": (None, 1), "suffix": (None, "")}

    prompt: Texts
    echo: bool | None = None
    max_tokens: int | None = Field(None, ge=0, le=2**31, description="16 where it is left out; 0 only with echo.")
    logprobs: int | None = Field(None, ge=0, le=20, description="How many of the likeliest tokens go with each token.")

    @model_validator(mode="after")
    def _writes_something(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise ServeError(
                "TL-SERVE-REQUEST",
                where="max_tokens",
                param="max_tokens",
                error=t("{field} needs {other}", field="max_tokens: 0", other="echo: true"),
            )
        return self

    def queries(self) -> list[Query]:
        """What is asked of the engine: one query a prompt."""
        return [
            Query(
                "text",
                self.model,
                prompt=prompt,
                max_new_tokens=DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens,
                sampling=self.sampling(),
                n=self.n or 1,
                stop=self.stops,
                logprobs=self.logprobs,
                echo=bool(self.echo),
                user=self.user or "",
            )
            for prompt in prompts(self.prompt)
        ]

    @property
    def places(self) -> Places:
        return {**dict.fromkeys(("TL-SERVE-CONTEXT", "TL-SERVE-TOKEN"), "prompt"), "TL-SERVE-ROOM": "max_tokens"}


class EmbeddingRequest(RequestBody):
    """POST /v1/embeddings."""

    neutral: ClassVar[Neutral] = {"dimensions": (None,)}

    model: ModelName
    input: Texts
    encoding_format: Literal["float", "base64"] | None = Field(None, description="float where it is left out.")
    user: str | None = None

    def queries(self) -> list[Query]:
        """What is asked of the engine: one query a text."""
        return [Query("vector", self.model, prompt=text, user=self.user or "") for text in prompts(self.input)]

    @property
    def places(self) -> Places:
        return dict.fromkeys(("TL-SERVE-CONTEXT", "TL-SERVE-TOKEN", "prompt"), "input")


class ClassifyRequest(RequestBody):
    """POST /v1/classify: a text, and the label it has."""

    model: ModelName
    input: Annotated[str, StringConstraints(min_length=1)]
    user: str | None = None

    def query(self) -> Query:
        """What is asked of the engine."""
        return Query("label", self.model, chat=[{"role": "user", "content": self.input}], user=self.user or "")

    @property
    def places(self) -> Places:
        return dict.fromkeys(("TL-SERVE-CONTEXT", "TL-SERVE-TOKEN", "TL-DATA-TEMPLATE", "messages", "prompt"), "input")
