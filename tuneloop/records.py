"""The frozen types that pass between rooms. They import nothing and know no file format."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `reasoning` is the thought before the answer; `tool_calls` are OpenAI-shaped call objects."""

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()

    def as_chat(self) -> dict[str, Any]:
        """The dict a chat template takes."""
        out: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning:
            out["reasoning_content"] = self.reasoning
        if self.tool_calls:
            out["tool_calls"] = list(self.tool_calls)
        return out


@dataclass(frozen=True, slots=True)
class Record:
    """One dialogue, and where it came from. `tools` are the JSON schemas offered to the model."""

    messages: tuple[Message, ...]
    file: str = ""
    line: int = 0
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def id(self) -> str:
        """12 hex digits of the content alone: the same dialogue has the same id wherever it lay."""
        body = json.dumps([[m.as_chat() for m in self.messages], list(self.tools)], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    def chat(self) -> list[dict[str, Any]]:
        """The list of dicts that a chat template takes."""
        return [m.as_chat() for m in self.messages]

    def with_messages(self, messages: tuple[Message, ...]) -> Record:
        return Record(messages, self.file, self.line, self.tools)


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One row that was dropped or changed: nothing is lost in silence."""

    action: Literal["dropped", "changed"]
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


@dataclass(frozen=True, slots=True)
class Answer:
    """One prompt answered before and after training."""

    prompt: str
    before: str
    after: str
    reference: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How often a pattern occurs in the answers to a set of prompts."""

    name: str
    expect: str
    total: int
    before: int
    after: int
    passed: bool
    at_least: int | None = None
    at_most: int | None = None
    answers: tuple[Answer, ...] = field(default=())
