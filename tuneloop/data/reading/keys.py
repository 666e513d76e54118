"""The meaning of a turn's keys: reasoning, loss weights, tool calls, names; and notes on what is not read.

No key is passed over in silence: one that is not known and not empty is noted, and the note goes into the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from typing import Any

from tuneloop.base.records import LedgerEntry


class BadRow(ValueError):
    """A row that cannot be a record; `reason` is a phrase of `ledger.words()`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


SPEAKER = ("role", "from", "speaker", "sender", "sender_role", "sender_type", "speaker_role", "角色", "说话人",
           "发言人", "发送者", "发送人", "发送方", "身份")  # fmt: skip
"""Keys of a turn's speaker."""
CONTENT = ("content", "value", "text", "message", "utterance", "message_text", "msg", "内容", "消息", "消息内容",
        "发言内容", "聊天内容", "对话内容", "发言", "文本")  # fmt: skip
"""Keys of a turn's text."""
THOUGHT = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "think", "cot", "chain_of_thought",
           "complex_cot", "analysis", "reasoning_details", "thinking_content", "reasoning_text", "thought_process",
           "思考", "思考过程", "思考内容", "思维链", "推理过程")  # fmt: skip
"""Keys of the reasoning before an answer."""
TRAINED = ("weight", "loss_weight", "loss", "loss_scale", "train", "training", "trainable", "trained", "loss_mask",
           "output_with_loss")  # fmt: skip
"""Keys of an answer's loss weight: 1, true or no key trains it; 0 or false makes it context."""
MASKED = ("masked", "ignore_loss", "no_loss")
"""Keys of an answer's loss mask: 1 or true makes it context."""
CALLS = ("tool_calls", "function_calls", "function_call", "tool_call")
CALL_ID = ("tool_call_id", "tool_use_id", "call_id")
PARTLY = ("train_detail", "training_detail")
"""Keys of loss weights for parts of an answer, which are not supported."""
MEDIA = ("image", "images", "video", "videos", "audio", "audios", "picture", "pictures", "image_url", "image_urls",
         "image_path", "image_paths", "image_file", "image_files", "video_path", "audio_path", "video_url", "audio_url",
         "图片", "图像", "视频", "音频")  # fmt: skip
_MEANING = {
    **dict.fromkeys(THOUGHT, "thought"), **dict.fromkeys(TRAINED, "trained"), **dict.fromkeys(MASKED, "masked"),
    **dict.fromkeys(CALLS, "calls"), **dict.fromkeys(CALL_ID, "call_id"), **dict.fromkeys(PARTLY, "partly"),
    **dict.fromkeys(MEDIA, "media"), "name": "name",
}  # fmt: skip
PICTURES = frozenset(name for one in MEDIA for name in (one, one.capitalize(), one.upper()))
"""Columns of a row that hold images, audio or video."""


@dataclass(slots=True)
class Notes:
    """Ledger notes on a row that is read all the same."""

    unread: dict[str, None] = field(default_factory=dict)
    """Keys of its turns that are not known, in order."""
    coerced: dict[str, None] = field(default_factory=dict)
    """Values that were no texts and became one: "answer: int"."""
    nulls: dict[str, None] = field(default_factory=dict)
    """Keys of tool calls that were null and are left out."""
    filled: dict[str, None] = field(default_factory=dict)
    """Columns whose cell is merged with the one above."""
    thoughts: dict[tuple[str, str], None] = field(default_factory=dict)
    """Reasoning in the text of an answer: "open" or "", and its opening tag."""

    def entries(self, file: str, line: int) -> tuple[LedgerEntry, ...]:
        if not (self.unread or self.coerced or self.nulls or self.thoughts or self.filled):
            return ()
        notes: tuple[tuple[Any, str, Iterable[str]], ...] = (
            ("marked", "turn keys not used", self.unread),
            ("changed", "value made text", self.coerced),
            ("changed", "null left out", self.nulls),
            ("changed", "merged cell", self.filled),
            ("changed", "inline thought", [tag for state, tag in self.thoughts if not state]),
            ("changed", "open thought", [tag for state, tag in self.thoughts if state]),
        )
        return tuple(
            LedgerEntry(action, "read", reason, file, line, detail=", ".join(details)[:200])
            for action, reason, details in notes
            if details
        )


@dataclass(slots=True)
class Extras:
    """Fields of a turn beside speaker and text."""

    reasoning: str = ""
    calls: Any = None
    trained: bool = True
    name: str = ""
    call_id: str = ""


def empty(content: Any) -> bool:
    """Whether a value is empty: null, a blank text, or a list or object of nothing else.

    >>> [empty(v) for v in (None, " ", [], [None, ""], {"a": None}, "[]", 0, False)]
    [True, True, True, True, True, True, False, False]
    """
    return content.strip() in ("", "[]", "{}", "null") if isinstance(content, str) else _void(content)


def _void(content: Any) -> bool:
    if isinstance(content, dict):
        return all(map(_void, content.values()))
    if isinstance(content, list | tuple):
        return all(map(_void, content))
    return content is None or (isinstance(content, str) and not content.strip())


def text(content: Any, what: str, notes: Notes) -> str:
    """The value as text, a number or a truth value as JSON writes it; raises BadRow for lists, objects and bytes.

    >>> text(2.5, "answer", Notes()), text(7.0, "answer", Notes()), text(False, "answer", Notes())
    ('2.5', '7', 'false')
    """
    if isinstance(content, str):
        return content
    if isinstance(content, float) and not math.isfinite(content):
        raise BadRow("NaN or infinity", what)
    if not isinstance(content, int | float | Decimal | date | time):
        raise BadRow("not text", f"{what}: {type(content).__name__}")
    notes.coerced[f"{what}: {type(content).__name__}"] = None
    if isinstance(content, bool):
        return str(content).lower()
    return str(int(content)) if isinstance(content, float) and content.is_integer() else str(content)


def thought(content: Any) -> str:
    """The reasoning in any of its forms: a text, or texts in typed parts such as {"type": "reasoning.text", "text": …}.

    >>> thought([{"type": "reasoning.text", "text": "So."}, {"type": "reasoning.encrypted", "data": "x"}])
    'So.'
    """
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        names = ("text", "thinking", "reasoning", "content", "summary", "value")
        return next((reasoning for name in names if (reasoning := thought(content.get(name)))), "")
    if isinstance(content, list):
        return "\n".join(reasoning for one in content if (reasoning := thought(one)))
    return ""


_WORDS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


def learned(weight: Any, key: str) -> bool:
    """A loss weight as a bool, also from a table's text; raises BadRow unless it is 0 or 1."""
    flag = _WORDS.get(weight.strip().casefold()) if isinstance(weight, str) else weight
    if isinstance(flag, int | float) and flag in (0, 1):
        return bool(flag)
    raise BadRow("loss weight", f"{key}: {weight}"[:80])


_BASIC = frozenset((*SPEAKER, *CONTENT))


def extras(turn: Mapping[str, Any], role: str | None, notes: Notes, read: tuple[str, ...] = (), *spoken: Any) -> Extras:
    """The fields of a turn but those under the keys `read` and the values `spoken`, its speaker and text.

    Unknown keys are noted. Raises BadRow for media, and for a loss weight that is neither 0 nor 1.
    """
    out = Extras()
    answer = role in ("assistant", "call")
    for key, content in turn.items():
        if key in read or (key in _BASIC and content in spoken) or empty(content):
            continue
        meaning = _MEANING.get(key) or _MEANING.get(str(key).casefold(), "")
        if meaning == "media":
            raise BadRow("part not text", key)
        if meaning == "partly" and answer:
            raise BadRow("loss weight", key)
        if meaning in ("trained", "masked") and (answer or not _requests_training(content, meaning)):
            out.trained = out.trained and learned(content, key) is (meaning == "trained")
        elif meaning == "thought" and answer and (reasoning := thought(content)).strip():
            if out.reasoning and reasoning.strip() != out.reasoning.strip():
                notes.unread[key] = None
            out.reasoning = out.reasoning or reasoning
        elif meaning == "calls" and role == "assistant" and out.calls in (None, content):
            out.calls = content
        elif meaning == "call_id" and role == "tool" and isinstance(content, str | int):
            out.call_id = out.call_id or str(content)
        elif meaning == "name" and isinstance(content, str):
            out.name = content
        else:
            notes.unread[str(key)] = None
    return out


def _requests_training(weight: Any, meaning: str) -> bool:
    """Whether the loss weight of a turn that is no answer asks for training, which is never done."""
    try:
        return learned(weight, "") is (meaning == "trained")
    except BadRow:
        return True
