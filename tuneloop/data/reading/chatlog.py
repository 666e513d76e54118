"""Chat logs, exported by a messenger or typed by a person: speakers, mostly timestamps, and messages.

WeChat (copied, or sent as a mail), QQ and WhatsApp exports, and transcripts such as "客服：您好". A pause of an hour
begins a new dialogue. Who the model is to learn from is known by names such as 客服 and 我; else the recipe says it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from tuneloop.data.reading.containers import Blob
from tuneloop.data.reading.encodings import lines

_DATE = r"(?P<date>\d{4}[-/.年]\d{1,2}[-/.月]\d{1,2}日?|\d{1,2}[/.]\d{1,2}[/.]\d{2,4})"
_TIME = r"(?P<time>(?:上午|下午|早上|中午|晚上|凌晨)?\s?\d{1,2}:\d{2}(?::\d{2})?(?:\s?[AaPp]\.?[Mm]\.?)?)"
_WHEN = rf"{_DATE}[,，]?\s+(?:星期.\s+|周.\s+)?{_TIME}"
_NAME = r"(?P<name>[^\s:：\[\]|,，。！？!?\d][^:：\[\]|,，。！？!?\t]{0,30}?)"
_ID = r"(?:\s?[(（<][\w.@+-]{3,40}[)）>])?"
_KNOWN = (
    r"(?P<name>用户|客户|顾客|访客|患者|病人|学生|来访者|买家|客服|在线客服|人工客服|助手|机器人|医生|老师|咨询师|心理咨询师|卖家|商家|问|答|提问|回答"
    r"|Q|A|User|Assistant|Human|AI|Bot|Customer|Agent|Support|Client|Counselor|Patient|Doctor)"
)
FORMS = tuple(
    re.compile(form)
    for form in (
        rf"\[?{_WHEN}\]?\s*[-–]?\s*{_NAME}{_ID}\s?[:：]\s*(?P<text>\S.*)",
        rf"{_NAME}{_ID}\s+\[?{_WHEN}\]?\s*[:：]?",
        rf"\[?{_WHEN}\]?\s+{_NAME}{_ID}\s*[:：]?",
        rf"{_NAME}{_ID}\s+{_TIME}",
        rf"{_KNOWN}\s?[:：]\s*(?P<text>\S.*)",
        rf"{_NAME}{_ID}\s?[:：]",
    )
)
"""Header lines of a message, matched as a whole. Without a group `text` the message stands on the lines below."""
_DAY = re.compile(rf"[\s—–=-]*{_DATE}[\s—–=-]*(?:星期.|周.)?[\s—–=-]*")
_LEVELS = frozenset(("info", "warn", "warning", "error", "debug", "trace", "fatal", "critical", "notice"))
_SERVICE = re.compile(
    r"客服|机器人|助手|助理|小秘|管家|售后|售前|官方|医生|咨询师|老师|卖家|商家|^答$|^回答$|^a$"
    r"|(?<![a-z])(?:assistant|bot|chatbot|ai|agent|support|service|helpdesk|counselor|doctor)(?![a-z])",
    re.IGNORECASE,
)
_SELF = frozenset(("我", "本人", "自己", "me", "myself", "you"))
"""Names that exports give the owner of the chat."""
PAUSE = timedelta(hours=1)
LEAST = 4
"""Fewest messages that make a chat log."""


def _header(form: re.Pattern[str], line: str) -> re.Match[str] | None:
    match = form.fullmatch(line.strip("\ufeff \t\r\n"))
    return match if match and match["name"].strip().casefold() not in _LEVELS else None


def recognise(head: Sequence[str], named: str = "") -> tuple[int, tuple[str, ...]] | None:
    """The index in FORMS of these lines' headers, and the speakers, most frequent first; None where it is no chat log.

    Without times, headings of any text look like names: one must be `named` by the recipe, or be an assistant's.
    """
    full = [line for line in head if line.strip("\ufeff \t\r\n")]
    for n, form in enumerate(FORMS):
        at = [k for k, line in enumerate(full) if _header(form, line)]
        names = Counter(_header(form, full[k])["name"].strip() for k in at)  # type: ignore[index]
        if len(at) < LEAST or len(names) < 2 or max(names.values()) < 2:
            continue
        beside = "text" not in form.groupindex
        timed = "time" in form.groupindex
        with_text = sum(b - a > 1 for a, b in pairwise([*at, len(full)])) if beside else len(at)
        dense = len(at) >= (0.2 if beside else 0.6) * len(full)
        certain = timed or (len(names) * 2 <= len(at) and (named in names or bool(learner(names))))
        if dense and with_text >= 0.8 * len(at) and certain:
            return n, tuple(name for name, _ in names.most_common())
    return None


def learner(speakers: Iterable[str]) -> tuple[str, ...]:
    """The speakers to train as the assistant: service staff, else the owner of the chat; () where neither is known.

    >>> learner(["小王", "客服小美"]), learner(["妈妈", "我"]), learner(["张三", "李四"])
    (('客服小美',), ('我',), ())
    """
    names = tuple(speakers)
    service = tuple(name for name in names if _SERVICE.search(name))
    if service and len(service) < len(names):
        return service
    return tuple(name for name in names if name.casefold() in _SELF)


def rows(blob: Blob, encoding: str, form: int, ours: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The dialogues, each with the line where it starts, as {"messages": turns}.

    `ours` are the assistant's names; where one of them is a service's, all speakers with a service's name count.
    """
    serves = any(map(_SERVICE.search, ours))
    start, turns, last = 0, list[dict[str, str]](), None
    day = ""
    for number, line in enumerate(lines(blob, encoding), 1):
        header = _header(FORMS[form], line)
        if not header:
            if form == 3 and (date := _DAY.fullmatch(line.rstrip("\r\n"))):
                day = date["date"]
            elif turns:
                turns[-1]["content"] += line
            continue
        parts = header.groupdict()
        now = _moment(parts.get("date") or day, parts.get("time") or "")
        if turns and now and last and abs(now - last) > PAUSE:
            yield start, _dialogue(turns)
            turns = []
        last = now or last
        start = start if turns else number
        name = parts["name"].strip()
        mine = name in ours or (serves and _SERVICE.search(name) is not None)
        turns.append({"role": "assistant" if mine else "user", "content": (parts.get("text") or "") + "\n"})
    if turns:
        yield start, _dialogue(turns)


def _dialogue(turns: list[dict[str, str]]) -> dict[str, Any]:
    """The dialogue of some messages: neighbouring ones of a role are one turn."""
    out: list[dict[str, str]] = []
    for turn in turns:
        text = turn["content"].strip("\ufeff\r\n \t")
        if out and out[-1]["role"] == turn["role"]:
            out[-1]["content"] += "\n" + text
        elif text:
            out.append({"role": turn["role"], "content": text})
    return {"messages": out}


def _moment(date: str, time: str) -> datetime | None:
    """The timestamp of a message, None if there is none; day and month of 3/4/24 may be exchanged."""
    days = [int(part) for part in re.findall(r"\d+", date)]
    clock = [int(part) for part in re.findall(r"\d+", time)]
    if len(clock) < 2:
        return None
    if len(days) == 3 and days[0] < 100:
        day, month = (days[0], days[1]) if days[1] <= 12 else (days[1], days[0])
        days = [days[2] + (2000 if days[2] < 100 else 0), month, day]
    late = re.search(r"下午|晚上|[Pp]\.?[Mm]", time) is not None and clock[0] < 12
    try:
        return datetime(*(days or [2000, 1, 1]), clock[0] % 24 + 12 * late, *clock[1:])  # type: ignore[call-arg,arg-type]
    except ValueError:
        return None
