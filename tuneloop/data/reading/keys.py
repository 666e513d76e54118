"""What the keys inside a turn mean: thoughts, marks not to train, calls, names; and what a row has that is not read.

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
"""Who says a turn."""
SAID = ("content", "value", "text", "message", "utterance", "message_text", "msg", "内容", "消息", "消息内容",
        "发言内容", "聊天内容", "对话内容", "发言", "文本")  # fmt: skip
"""What is said in it."""
THOUGHT = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "think", "cot", "chain_of_thought",
           "complex_cot", "analysis", "reasoning_details", "thinking_content", "reasoning_text", "thought_process",
           "思考", "思考过程", "思考内容", "思维链", "推理过程")  # fmt: skip
"""The thought before an answer."""
TRAINED = ("weight", "loss_weight", "loss", "loss_scale", "train", "training", "trainable", "trained", "loss_mask",
           "output_with_loss")  # fmt: skip
"""Whether an answer is learned: 1, true or not given says yes; 0 or false makes it context."""
MASKED = ("masked", "ignore_loss", "no_loss")
"""The same the other way round."""
CALLS = ("tool_calls", "function_calls", "function_call", "tool_call")
CALL_ID = ("tool_call_id", "tool_use_id", "call_id")
PARTLY = ("train_detail", "training_detail")
"""Parts of an answer that are learned, which cannot be done here."""
MEDIA = ("image", "images", "video", "videos", "audio", "audios", "picture", "pictures", "image_url", "image_urls",
         "image_path", "image_paths", "image_file", "image_files", "video_path", "audio_path", "video_url", "audio_url",
         "图片", "图像", "视频", "音频")  # fmt: skip
_MEANING = {
    **dict.fromkeys(THOUGHT, "thought"), **dict.fromkeys(TRAINED, "trained"), **dict.fromkeys(MASKED, "masked"),
    **dict.fromkeys(CALLS, "calls"), **dict.fromkeys(CALL_ID, "call_id"), **dict.fromkeys(PARTLY, "partly"),
    **dict.fromkeys(MEDIA, "media"), "name": "name",
}  # fmt: skip
PICTURES = frozenset(name for one in MEDIA for name in (one, one.capitalize(), one.upper()))
"""Columns of a row that hold pictures, sound or film."""


@dataclass(slots=True)
class Notes:
    """What is to be told of a row that is read all the same."""

    unread: dict[str, None] = field(default_factory=dict)
    """Keys of its turns that are not known, in order."""
    made: dict[str, None] = field(default_factory=dict)
    """Values that were no texts and became one: "answer: int"."""
    nulls: dict[str, None] = field(default_factory=dict)
    """Keys of tool calls that were null and are left out."""
    filled: dict[str, None] = field(default_factory=dict)
    """Columns whose cell is merged with the one above."""
    thoughts: dict[tuple[str, str], None] = field(default_factory=dict)
    """Thoughts in the text of an answer: "open" or "", and the mark that begins them."""

    def entries(self, file: str, line: int) -> tuple[LedgerEntry, ...]:
        if not (self.unread or self.made or self.nulls or self.thoughts or self.filled):
            return ()
        told: tuple[tuple[Any, str, Iterable[str]], ...] = (
            ("marked", "turn keys not used", self.unread),
            ("changed", "value made text", self.made),
            ("changed", "null left out", self.nulls),
            ("changed", "merged cell", self.filled),
            ("changed", "inline thought", [mark for state, mark in self.thoughts if not state]),
            ("changed", "open thought", [mark for state, mark in self.thoughts if state]),
        )
        return tuple(
            LedgerEntry(action, "read", reason, file, line, detail=", ".join(found)[:200])
            for action, reason, found in told if found
        )  # fmt: skip


@dataclass(slots=True)
class Extras:
    """What a turn has beside speaker and text."""

    reasoning: str = ""
    calls: Any = None
    trained: bool = True
    name: str = ""
    call_id: str = ""


def empty(value: Any) -> bool:
    """Whether a value says nothing: null, blanks, and lists and objects of nothing else.

    >>> [empty(v) for v in (None, " ", [], [None, ""], {"a": None}, "[]", 0, False)]
    [True, True, True, True, True, True, False, False]
    """
    return value.strip() in ("", "[]", "{}", "null") if isinstance(value, str) else _void(value)


def _void(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_void, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_void, value))
    return value is None or (isinstance(value, str) and not value.strip())


def text(value: Any, what: str, notes: Notes) -> str:
    """The value as text, a number or a truth value as JSON writes it; raises BadRow for lists, objects and bytes.

    >>> text(2.5, "answer", Notes()), text(7.0, "answer", Notes()), text(False, "answer", Notes())
    ('2.5', '7', 'false')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow("NaN or infinity", what)
    if not isinstance(value, int | float | Decimal | date | time):
        raise BadRow("not text", f"{what}: {type(value).__name__}")
    notes.made[f"{what}: {type(value).__name__}"] = None
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def thought(value: Any) -> str:
    """The thought in any of its forms: a text, or texts in parts such as {"type": "reasoning.text", "text": …}.

    >>> thought([{"type": "reasoning.text", "text": "So."}, {"type": "reasoning.encrypted", "data": "x"}])
    'So.'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        names = ("text", "thinking", "reasoning", "content", "summary", "value")
        return next((found for name in names if (found := thought(value.get(name)))), "")
    if isinstance(value, list):
        return "\n".join(found for one in value if (found := thought(one)))
    return ""


_WORDS = {"true": True, "1": True, "1.0": True, "yes": True, "false": False, "0": False, "0.0": False, "no": False}


def learned(value: Any, key: str) -> bool:
    """What a mark says, as yes or no; raises BadRow for anything between. In a table a mark is a text."""
    said = _WORDS.get(value.strip().casefold()) if isinstance(value, str) else value
    if isinstance(said, int | float) and said in (0, 1):
        return bool(said)
    raise BadRow("loss weight", f"{key}: {value}"[:80])


_BASIC = frozenset((*SPEAKER, *SAID))


def extras(
    turn: Mapping[str, Any], role: str | None, notes: Notes, read: tuple[str, ...] = (), *said: Any
) -> Extras:  # fmt: skip
    """All of a turn but what stands under the keys `read`, and but who speaks and what is `said`.

    Keys that mean nothing here are noted.

    Raises BadRow for pictures, and for a mark that is neither yes nor no.
    """
    out = Extras()
    answer = role in ("assistant", "call")
    for key, value in turn.items():
        if key in read or (key in _BASIC and value in said) or empty(value):
            continue
        meaning = _MEANING.get(key) or _MEANING.get(str(key).casefold(), "")
        if meaning == "media":
            raise BadRow("part not text", key)
        if meaning == "partly" and answer:
            raise BadRow("loss weight", key)
        if meaning in ("trained", "masked") and (answer or not _asks(value, meaning)):
            out.trained = out.trained and learned(value, key) is (meaning == "trained")
        elif meaning == "thought" and answer and (found := thought(value)).strip():
            if out.reasoning and found.strip() != out.reasoning.strip():
                notes.unread[key] = None
            out.reasoning = out.reasoning or found
        elif meaning == "calls" and role == "assistant" and out.calls in (None, value):
            out.calls = value
        elif meaning == "call_id" and role == "tool" and isinstance(value, str | int):
            out.call_id = out.call_id or str(value)
        elif meaning == "name" and isinstance(value, str):
            out.name = value
        else:
            notes.unread[str(key)] = None
    return out


def _asks(value: Any, meaning: str) -> bool:
    """Whether a mark on what is no answer asks for it to be trained, which is never done."""
    try:
        return learned(value, "") is (meaning == "trained")
    except BadRow:
        return True
