"""How a chat template writes tools, as pieces: the form of Hermes and Qwen, which Ollama takes apart again.

Tools stand as JSON, one a line, in the system turn; a call is JSON within <tool_call>, an answer of a tool is
within <tool_response> in a turn of the user. Other forms are not known here: such a model is served without tools.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneloop.data.tokens.templates import Chat

CALL = ('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>")
ANSWER = ("\n<tool_response>\n", "\n</tool_response>")
_CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: tuple[dict[str, Any], ...] = (
    {"type": "function", "function": {"name": "get_weather", "description": "It rains? 天气。", "parameters": _CITY}},
    {"type": "function", "function": {"name": "get_time", "description": 'The "time". 时间。', "parameters": _CITY}},
)
"""What templates are probed with."""

Rendering = Callable[[Chat, Sequence[Any]], str | None]
"""A template's text of a chat with tools, up to where an answer begins; None where it refuses them."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """What stands around the tools in the system turn."""

    after_system: str
    """Between a system text and the first tool."""
    alone: str
    """From the beginning to the first tool, where there is no system text."""
    between: str
    after: str
    """From the last tool to the end of the system turn."""

    def offered(self, tools: Sequence[Any], system: str | None, frame: str) -> str:
        """The system turn with tools; `frame` is what stands before a system text."""
        head = self.alone if system is None else f"{frame}{system}{self.after_system}"
        return head + self.between.join(map(as_json, tools)) + self.after


def as_json(content: Any) -> str:
    """JSON as chat templates write it."""
    return json.dumps(content, ensure_ascii=False)


def calls(turn: Mapping[str, Any]) -> str:
    """The calls of an assistant's turn, to be put behind its text."""
    written = [
        f"{CALL[0]}{call['function']['name']}{CALL[1]}{as_json(call['function']['arguments'])}{CALL[2]}"
        for call in turn.get("tool_calls") or ()
    ]
    return ("\n" if turn["content"] and written else "") + "\n".join(written)


def tool_format(bos: str, frame: tuple[str, str], render: Rendering) -> ToolFormat | None:
    """The pieces of a template, None where it writes tools in another form or not at all.

    `frame` stands around a system text.
    """
    system, question = "Be brief. 简短。", {"role": "user", "content": "Which city?"}
    first, second = map(as_json, TOOLS)
    given = render([{"role": "system", "content": system}, question], TOOLS)
    bare = render([question], TOOLS)
    if given is None or bare is None or not given.startswith(f"{bos}{frame[0]}{system}") or first not in bare:
        return None
    after_system, _, rest = given.removeprefix(f"{bos}{frame[0]}{system}").partition(first)
    between, _, rest = rest.partition(second)
    end = rest.find(frame[1])
    if not between or end < 0:
        return None
    return ToolFormat(after_system, bare.removeprefix(bos).partition(first)[0], between, rest[: end + len(frame[1])])


def tool_probes() -> list[Chat]:
    """Dialogues with calls: one and two at a time, with and without a system text, asked on and not."""
    system, asked_on = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "And then?"}
    question, answer = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Sunny."}
    steps: list[Chat] = [
        [_called("get_weather"), {"role": "tool", "content": '{"c": 20}'}],
        [_called("get_weather", "get_time", content="查。"), *({"role": "tool", "content": x} for x in ("晴", "noon"))],
    ]
    ends: list[Chat] = [[], [answer, asked_on]]
    return [[*start, question, *step, *end] for start in ([], [system]) for step in steps for end in ends]


def _called(*names: str, content: str = "") -> dict[str, Any]:
    arguments = {"city": "北京", "days": 3}
    named = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name in names]
    return {"role": "assistant", "content": content, "tool_calls": named}
