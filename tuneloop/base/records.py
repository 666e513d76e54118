"""The frozen types that pass between rooms. They import nothing and know no file format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Kind = Literal["chat", "text", "label", "preference", "judged"]
"""What a record teaches: a dialogue; a text to go on writing; a text and its label; a better and a worse answer; a
dialogue and whether its answer is good."""


@dataclass(frozen=True, slots=True)
class Text:
    """A part of a turn that is text."""

    text: str


MessagePart = Text
"""What a turn is made of. Another type of part is a class here, a member of this union, and a field of `Message`."""


def content_of(parts: Iterable[MessagePart]) -> str:
    """The `Message.content` of these parts: here alone it is decided what each type of part is to a reader of text.

    >>> content_of([Text("How far is "), Text("the Moon?")])
    'How far is the Moon?'
    """
    return "".join([part.text for part in parts])


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is its text, and `parts` are the same, typed.

    `reasoning` is the thought before the answer; `tool_calls` are OpenAI-shaped call objects.

    An answer that is not `trained` (weight 0) is only context. `name` is the speaker's, or the tool's of a result;
    `tool_call_id` says which call a result answers. `cut`: its text went on, so it has no end to learn.
    """

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    trained: bool = True
    name: str = ""
    tool_call_id: str = ""
    cut: bool = field(default=False, compare=False)

    @property
    def parts(self) -> tuple[MessagePart, ...]:
        """What the turn is made of, in order; `content_of` them is `content`. Computed when asked for."""
        return (Text(self.content),) if self.content else ()

    def as_chat(self) -> dict[str, Any]:
        """The dict a chat template takes."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            out["reasoning_content"] = self.reasoning
        if self.tool_calls:
            out["tool_calls"] = list(self.tool_calls)
        if self.name:
            out["name"] = self.name
        if self.tool_call_id:
            out["tool_call_id"] = self.tool_call_id
        return out


@dataclass(frozen=True, slots=True)
class Record:
    """One row, and where it came from. `tools` are the JSON schemas offered to the model.

    chat: `messages` are the dialogue. text: one assistant message, the text. label: one user message, the text, and
    `label`; two user messages where the label is of a pair of texts. preference: `messages` end with the better answer,
    `rejected` are the turns that would stand in its place. judged: a dialogue whose `label` is "good" or "bad".
    `parent` is the id of the record that this one was made from. `notes` is what the reader has to tell of the row; it
    goes into the ledger and is no part of the record.
    """

    messages: tuple[Message, ...]
    file: str = ""
    line: int = 0
    tools: tuple[dict[str, Any], ...] = ()
    kind: Kind = "chat"
    label: str = ""
    rejected: tuple[Message, ...] = ()
    parent: str = ""
    notes: tuple[LedgerEntry, ...] = field(default=(), compare=False, repr=False)

    @property
    def id(self) -> str:
        """12 hex digits of the content alone: the same row has the same id wherever it lay."""
        parts: list[Any] = [[_marked(m) for m in self.messages], list(self.tools)]
        if self.kind != "chat":
            parts += [self.kind, self.label, [_marked(m) for m in self.rejected]]
        body = json.dumps(parts, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last answer; of a preference pair, what both answers reply to."""
        end = len(self.messages)
        while end and self.messages[end - 1].role == "assistant":
            end -= 1
        return self.messages[:end]

    def chat(self) -> list[dict[str, Any]]:
        """The list of dicts that a chat template takes."""
        return [m.as_chat() for m in self.messages]

    def without_cuts(self) -> Record:
        """The record without the marks of what was cut off: no other format knows them."""
        if not any(m.cut for m in self.messages + self.rejected):
            return self
        messages, rejected = (tuple(replace(m, cut=False) for m in turns) for turns in (self.messages, self.rejected))
        return replace(self, messages=messages, rejected=rejected)

    def with_messages(self, messages: tuple[Message, ...]) -> Record:
        return replace(self, messages=messages)


def _marked(message: Message) -> dict[str, Any]:
    out = message.as_chat()
    if not message.trained:
        out["trained"] = False
    if message.cut:
        out["cut"] = True
    return out


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What happened to one row: nothing is lost in silence.

    dropped: it is gone; changed: it stays, other than it was; marked: it stays as it is, and somebody should know;
    added: it was made from another row.
    """

    action: Literal["dropped", "changed", "marked", "added"]
    step: str
    reason: str
    file: str
    line: int
    id: str = ""
    detail: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Reply:
    """A generated answer. `finish` is "stop" (end token) or "length"."""

    text: str
    prompt_tokens: int
    tokens: int
    finish: Literal["stop", "length"]
    seconds: float = 0.0
    scores: dict[str, float] | None = None
    """Of a classifier: label -> its probability."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen: greedy at temperature 0, else sampling from what the limits leave.

    `top_k` 0 and `min_p` 0 are no limit; `min_p` is a share of the likeliest token's probability (arXiv:2407.01082).
    `frequency_penalty` and `presence_penalty` are subtracted from logits as OpenAI's API defines it, over the answer's
    own tokens; `repetition_penalty` divides (arXiv:1909.05858) over prompt and answer, None takes the model's own.
    `logit_bias` is (token id, what is added to its logit).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
