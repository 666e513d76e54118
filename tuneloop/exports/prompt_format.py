"""The formats of prompts that are known apart from any chat template: what a tokenizer's template writes, as pieces.

Other programs have template languages of their own, in which a tokenizer's Jinja cannot be said. A format is recognised
by what the template writes for a few dialogues, never by a model's name: the pieces that change from model to model (a
system prompt by default, a date before the system text, a thought that is begun) are read off, and all is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tuneloop.base.errors import DataError
from tuneloop.data.tokens.templates import Chat, Renderer
from tuneloop.exports.tool_format import ANSWER, TOOLS, ToolFormat, calls, tool_format, tool_probes

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ChatFamily:
    """What stands before and after the text of each role; `{eos}` is the tokenizer's end token."""

    name: str
    frames: Mapping[Role, tuple[str, str]]
    system: Literal["turn", "top", "question"] = "turn"
    """Where the system text goes. turn: where it stands; top: before everything; question: into the first user turn."""


FAMILIES: tuple[ChatFamily, ...] = (
    ChatFamily("ChatML", {
        role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ROLES
    }),
    ChatFamily("Llama 3", {
        role: (f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>") for role in ROLES
    }),
    ChatFamily("Gemma", {
        "system": ("", "\n\n"),
        "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
        "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n"),
    }, system="question"),
    ChatFamily("DeepSeek-R1", {
        "system": ("", ""),
        "user": ("<｜User｜>", ""),
        "assistant": ("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    }, system="top"),
    ChatFamily("plain", {
        "system": ("", "\n\n"),
        "user": ("User:\n", "\n\n"),
        "assistant": ("Assistant:\n", "{eos}\n\n"),
    }),
)  # fmt: skip
"""The hand-kept table. Qwen3 is ChatML with thoughts, Llama 3.1 is Llama 3 with dates; R1's distills and V3 are R1."""

THOUGHT = ("<think>\n", "\n</think>\n\n")
_S, _Q, _A, _R = "Be brief. 简短。", "What is {{ 1 }}?\n它是什么？", 'It is "one".\n一。', "Let me see."


def _turn(role: str, content: str, **more: str) -> dict[str, str]:
    return {"role": role, "content": content, **more}


PROBES: tuple[Chat, ...] = (
    [_turn("user", _Q)],
    [_turn("user", _Q), _turn("assistant", _A), _turn("user", "好的")],
    [_turn("user", " \n"), _turn("assistant", f"\n {_A} \n"), _turn("user", f"  {_Q}\n")],
    [_turn("user", "a"), _turn("assistant", ""), _turn("user", "b"), _turn("assistant", "c"), _turn("user", "d")],
    [_turn("user", _Q), _turn("assistant", _A, reasoning_content=_R), _turn("user", "好的")],
    [_turn("system", _S), _turn("user", _Q)],
    [_turn("system", ""), _turn("user", _Q)],
    [_turn("system", f" {_S}\n"), _turn("user", f"\n{_Q}"), _turn("assistant", _A), _turn("user", "好的")],
)
"""Dialogues that tell the formats apart. A template that refuses one (Gemma 2 has no system role) is not asked it."""


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """What a chat template writes, as pieces: a family, and what a model has of its own."""

    family: ChatFamily
    frames: Mapping[Role, tuple[str, str]]
    """Of the family, with the tokenizer's end token."""
    bos: str
    """The token that opens a dialogue, "" where the template writes none."""
    default: str
    """What stands in place of a system text where a dialogue has none, with its frame."""
    preamble: str
    """What the template writes before a system text that opens the dialogue: dates, in Llama 3.1."""
    trimmed: frozenset[Role]
    """Roles whose text loses the blanks at its edges."""
    prompt: str
    """What follows the assistant's frame where an answer is to begin: "<think>\\n", in R1."""
    prompt_without: str
    """The same where thoughts are switched off (enable_thinking); the template has no such switch where it is equal."""
    thoughts: Literal["", "dropped", "written"]
    """Of earlier answers. "": the template knows of none; dropped, as in Qwen3 and R1; written before the answer."""
    tools: ToolFormat | None = None
    """How tools are written; None where that is not known."""

    def text(self, chat: Chat, *, thinking: bool | None = None, tools: Sequence[Any] = ()) -> str:
        """The text of a chat up to where the assistant is to begin.

        Raises KeyError for a role that is none of ROLES, and of a tool where the format knows none.
        """
        if self.tools is not None:
            chat = self._with_answers(chat)
            if tools:
                return self._with_tools(chat, tools, thinking)
        system = [turn for turn in chat if turn["role"] == "system"]
        where = self.family.system
        lacks = chat[0]["role"] != "system" if where == "turn" else not system
        held = self.default if lacks else "" if where == "turn" else self._framed("system", self._joined(system))
        out = [self.bos]
        if where != "question":
            out.append(held)
        for at, turn in enumerate(chat):
            role: Role = turn["role"]
            if role == "system":
                if where == "turn":
                    out.append(self._framed(role, turn["content"], self.preamble if at == 0 else ""))
            elif role == "user" and where == "question":
                out.append(self._framed(role, turn["content"], held))
                held = ""
            else:
                out.append(self._framed(role, turn["content"] + calls(turn), self._thought(turn)))
        before = self.frames["assistant"][0]
        return "".join(out) + before + (self.prompt_without if thinking is False else self.prompt)

    def _with_answers(self, chat: Chat) -> Chat:
        """Answers of tools as the user's turns that they are written in: neighbours share one."""
        turns: Chat = []
        for at, turn in enumerate(chat):
            if turn["role"] != "tool":
                turns.append(turn)
                continue
            text = turn["content"].join(ANSWER)
            if at and chat[at - 1]["role"] == "tool":
                turns[-1]["content"] += text
            else:
                turns.append({"role": "user", "content": text.removeprefix("\n")})
        return turns

    def _with_tools(self, chat: Chat, tools: Sequence[Any], thinking: bool | None) -> str:
        assert self.tools is not None
        system = chat[0]["content"] if chat[0]["role"] == "system" else None
        start = self.tools.offered(tools, system, self.frames["system"][0])
        rest = replace(self, bos=self.bos + start, default="")
        return rest.text(chat if system is None else chat[1:], thinking=thinking)

    def _framed(self, role: Role, content: str, first: str = "") -> str:
        before, after = self.frames[role]
        return before + first + (content.strip() if role in self.trimmed else content) + after

    def _joined(self, system: Chat) -> str:
        return "\n\n".join(turn["content"] for turn in system)

    def _thought(self, turn: Mapping[str, Any]) -> str:
        thought = turn.get("reasoning_content") or ""
        return thought.strip().join(THOUGHT) if thought and self.thoughts == "written" else ""


def recognise(tokenizer: Any) -> PromptFormat | None:
    """The format that a tokenizer's chat template writes; None where it is none of FAMILIES."""
    render = _Rendered(tokenizer)
    if render(PROBES[0]) is None:
        return None
    ends = {"{eos}": str(tokenizer.eos_token or "")}
    for family in FAMILIES:
        frames = {role: _filled(frame, ends) for role, frame in family.frames.items()}
        for bos in dict.fromkeys((str(tokenizer.bos_token or ""), "")):
            candidate = _pieces(family, frames, bos, render)
            if candidate is not None and _agrees(candidate, render):
                return _with_tool_format(candidate, render)
    return None


class _Rendered:
    """A tokenizer's own rendering of a chat with the generation prompt; None where the template refuses it."""

    def __init__(self, tokenizer: Any) -> None:
        self._renderer = Renderer(tokenizer)

    def __call__(self, chat: Chat, tools: Sequence[Any] = (), *, thinking: bool | None = None) -> str | None:
        try:
            return self._renderer.text(chat, prompt=True, thinking=thinking, tools=tools)
        except DataError:
            return None


def _filled(frame: tuple[str, str], names: Mapping[str, str]) -> tuple[str, str]:
    before, after = frame
    for name, token in names.items():
        before, after = before.replace(name, token), after.replace(name, token)
    return before, after


def _pieces(
    family: ChatFamily, frames: Mapping[Role, tuple[str, str]], bos: str, render: _Rendered
) -> PromptFormat | None:
    """What a model has of its own, read off a few renderings as if the template were of this family."""
    question, answer = frames["user"], frames["assistant"]
    first = render([_turn("user", _Q)])
    without = render([_turn("user", _Q)], thinking=False)
    asked_for = _Q + question[1] + answer[0]
    if first is None or without is None or not first.startswith(bos) or asked_for not in first:
        return None
    default, _, prompt = first.removeprefix(bos).partition(asked_for)
    if family.system == "question":
        default = default.removeprefix(question[0])
    elif default.endswith(question[0]):
        default = default[: len(default) - len(question[0])]
    instructed = render([_turn("system", _S), _turn("user", _Q)]) or ""
    preamble = ""
    if family.system == "turn" and _S in instructed:
        preamble = instructed.removeprefix(bos).partition(_S)[0].removeprefix(frames["system"][0])
    return PromptFormat(
        family,
        frames,
        bos,
        default,
        preamble,
        frozenset(role for role in ROLES if _trims(role, render)),
        prompt,
        without.rpartition(asked_for)[2],
        _thoughts(render),
    )


def _with_tool_format(candidate: PromptFormat, render: _Rendered) -> PromptFormat:
    """The format with its tools, where they are written in the form that is known and dialogues with calls agree."""
    if candidate.family.system != "turn" or candidate.preamble or candidate.trimmed:
        return candidate
    tools = tool_format(candidate.bos, candidate.frames["system"], render)
    if tools is None:
        return candidate
    full = replace(candidate, tools=tools)
    return full if all(render(chat, TOOLS) == full.text(chat, tools=TOOLS) for chat in tool_probes()) else candidate


def _trims(role: Role, render: _Rendered) -> bool:
    padded = {one: f"  {one[0]}\n" if one == role else one for one in ROLES}
    turns = [_turn(one, padded[one]) for one in ROLES if one != "system" or role == "system"]
    return padded[role] not in (render([*turns, _turn("user", "x")]) or padded[role])


def _thoughts(render: _Rendered) -> Literal["", "dropped", "written"]:
    """How the template treats the thought of an earlier answer, given beside the answer and within it."""
    beside, within = (
        render([_turn("user", _Q), answer, _turn("user", "x")]) or ""
        for answer in (_turn("assistant", _A, reasoning_content=_R), _turn("assistant", _R.join(THOUGHT) + _A))
    )
    if _R in beside:
        return "written"
    return "" if _R in within else "dropped"


def _agrees(candidate: PromptFormat, render: _Rendered) -> bool:
    """Whether a format writes each probe as the template does, with thoughts left as they are and switched off."""
    for chat in PROBES:
        for thinking in (None, False):
            text = render(chat, thinking=thinking)
            if text is not None and text != candidate.text(chat, thinking=thinking):
                return False
    return True
