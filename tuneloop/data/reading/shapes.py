"""What a row means: which of its columns plays which role, and what kind of record that makes.

`layout` says it of a row's columns, `recognise` of some rows of a file. Files, encodings and turns are not known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

from tuneloop.base.language import t
from tuneloop.base.records import Kind
from tuneloop.data.reading.keys import CONTENT, SPEAKER, THOUGHT

Fields = dict[str, tuple[str, ...]]

TURNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "dialogs")
"""Columns that hold a list of turns."""

PAIRS: dict[str, Fields] = {
    "question_cot_response": {
        "user": ("Question", "question", "问题"),
        "reasoning": ("Complex_CoT", "complex_cot", "reasoning", "cot"),
        "assistant": ("Response", "response", "Answer", "answer"),
    },
    "alpaca": {"user": ("instruction",), "assistant": ("output", "response")},
    "query_response": {"user": ("query",), "assistant": ("response",)},
    "prompt_completion": {"user": ("prompt",), "assistant": ("completion", "response")},
    "question_answer": {"user": ("question", "问题", "提问"), "assistant": ("answer", "response", "回答", "答案")},
    "input_output": {"user": ("input",), "assistant": ("output",)},
    "user_assistant": {"user": ("user", "human"), "assistant": ("assistant",)},
    "pair": {
        "user": ("question", "questions", "q", "ask", "query", "prompt", "instruction", "input", "user", "human",
                 "user_message", "user_input", "user_query", "user_question", "user_text", "customer_question",
                 "customer_message", "customer_query", "inquiry", "post", "context", "问题", "提问", "问", "问句",
                 "用户问题", "用户提问", "用户输入", "用户消息", "客户问题", "客户提问", "客户咨询", "顾客问题",
                 "顾客提问", "咨询", "咨询问题", "咨询内容", "患者问题", "患者提问", "学生问题", "常见问题", "输入",
                 "指令", "问題", "問題", "提問"),
        "assistant": ("answer", "answers", "a", "reply", "response", "responses", "output", "completion",
                      "assistant", "gpt", "bot", "assistant_message", "assistant_response", "assistant_reply",
                      "bot_response", "bot_reply", "bot_message", "agent_response", "agent_reply", "agent_message",
                      "support_reply", "model_response", "expected_answer", "expected_output", "reference_answer",
                      "best_answer", "gold_answer", "回答", "答案", "答复", "回复", "答", "解答", "应答",
                      "客服回复", "客服回答", "客服答复", "助手回复", "助手回答", "机器人回复", "机器人回答",
                      "人工回复", "标准答案", "标准回复", "标准回答", "参考答案", "参考回复", "医生回答",
                      "医生回复", "老师回答", "回答内容", "回复内容", "输出", "期望输出", "答覆", "回覆"),
    },
    "speakers": {
        "user": ("customer", "client", "visitor", "patient", "caller", "用户", "客户", "顾客", "访客", "患者",
                 "病人", "学生", "来访者", "买家"),
        "assistant": ("agent", "support", "representative", "doctor", "therapist", "counselor", "assistant", "bot",
                      "客服", "助手", "机器人", "医生", "老师", "咨询师", "卖家", "商家"),
    },
}  # fmt: skip
"""One question and one answer a row, tried in this order; all of a shape's columns are needed."""

OPTIONAL: Fields = {
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "input": ("input", "context"),
    # not `analysis`: beside a question it is what somebody says of the answer
    "reasoning": ("reasoning", "reasoning_content", *(name for name in THOUGHT if name != "analysis")),
}
"""Columns that are read beside a pair or a list of turns, where they exist."""

CHOSEN = ("chosen", "chosen_messages", "chosen_response")
REJECTED = ("rejected", "rejected_messages", "rejected_response")
PROMPT = ("prompt", "instruction", "query", "question", "input")
VERDICT = ("kto_tag", "label")
"""Beside a dialogue, a column of yes and no may say whether its answer is a good one. `kto_tag` is there for nothing
else; a `label` says so by itself only beside `prompt` and `completion`, in words (TRL's shape for KTO): beside other
answers, and as 0 and 1, it may mean anything."""
VERDICTS = {**dict.fromkeys(("true", "1", "1.0", "good", "desirable"), "good"),
            **dict.fromkeys(("false", "0", "0.0", "bad", "undesirable"), "bad")}  # fmt: skip
TEXT = ("text", "text_a", "review", "sentence", "content", "comment", "raw_content", "document", "tweet",
        "文本", "内容", "评论", "正文")  # fmt: skip
LABEL = ("label", "labels", "sentiment", "class", "category", "rating", "stars", "polarity", "标签", "类别", "情感")
TEXT_PAIRS = (
    ("text_a", "text_b"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"),
    ("text1", "text2"), ("text_1", "text_2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question_1", "question_2"), ("question", "sentence"), ("query", "passage"),
    ("question", "passage"), ("query", "document"), ("query1", "query2"), ("s1", "s2"), ("句子1", "句子2"),
    ("文本1", "文本2"), ("句子一", "句子二"), ("文本一", "文本二"), ("问题1", "问题2"), ("前提", "假设"),
)  # fmt: skip
"""Two texts that a label is of."""
DIALOGUE = ("conversation_id", "dialogue_id", "dialog_id", "session_id", "chat_id", "thread_id", "conv_id",
            "conversationid", "dialogueid", "dialogid", "sessionid", "chatid", "threadid", "ticket_id",
            "conversation", "dialogue", "dialog", "session", "thread", "会话id", "会话编号", "会话", "对话id",
            "对话编号", "对话", "会话号", "聊天id", "聊天编号", "room_id", "chat_session_id",
            "工单号", "工单编号", "工单id", "会话_id", "对话_id")  # fmt: skip
"""Where each row is one turn: columns of the dialogue's id."""
MAY_BE_DIALOGUE = ("chat", "conv", "conversation_no", "dialogue_no", "dialog_no", "session_no", "chat_no", "thread_no",
                   "topic_id", "topic", "ticket", "ticket_no", "case_id", "case", "call", "call_id", "episode",
                   "episode_id", "interaction_id", "group_id", "dialogue_index", "dialog_index", "conversation_index",
                   "工单", "聊天", "通话id", "通话编号", "案例id", "话题id", "对话序号", "会话序号")  # fmt: skip
"""The same where neighbouring rows have the same in it; else these names may mean anything."""
ORDER = ("turn_index", "turn_id", "turn_number", "turn_no", "turn", "round", "seq", "sequence", "order", "position",
         "message_index", "timestamp", "created_at", "create_time", "sent_at", "time", "datetime", "date", "轮次",
         "序号", "顺序", "时间", "发送时间", "消息时间", "日期时间", "时间戳")  # fmt: skip
"""Where each row is one turn: columns by which the turns of a dialogue are sorted."""
INSIDE = ("role", "content")
"""Roles that name keys of a turn, not columns, where `messages` is named too; so does `reasoning` then."""
ROLE_NAMES = ("messages", "user", "assistant", *OPTIONAL, "prompt", "chosen", "rejected", "text", "text_pair", "label",
              *INSIDE, "conversation", "order")  # fmt: skip
"""The roles that `columns:` of a recipe can name."""


@dataclass(frozen=True, slots=True)
class RowShape:
    """The layout of a row: its name, record kind, column roles (role -> column), and the share of rows that have it."""

    name: str
    kind: Kind | None
    roles: Mapping[str, str]
    share: float = 1.0


UNKNOWN = RowShape("unknown", None, {}, 0.0)


def recognise(rows: Iterable[Any], kind: Kind | None = None) -> RowShape:
    """The shape of most rows; `unknown` where there is none. `kind` is what the recipe says that they are.

    >>> recognise([{"instruction": "1+1", "output": "2"}]).name
    'alpaca'
    """
    held = [row for row in map(as_row, rows) if isinstance(row, dict)]
    shapes = [shape_of(row, kind) for row in held]
    if not shapes:
        return UNKNOWN
    (name, what), count = Counter((shape.name, shape.kind) for shape in shapes).most_common(1)[0]
    roles: dict[str, str] = {}
    for shape in shapes:
        roles |= shape.roles if shape.name == name else {}
    shape = RowShape(name, what, roles, count / len(held))
    if name == TURN_ROWS:
        return replace(shape, roles=_by_dialogue(roles, held))
    if shape.kind == "chat" and kind is None:
        return _judged(shape, held)
    if shape.kind == "label" and kind is None and not _is_label([row.get(roles["label"]) for row in held]):
        return UNKNOWN
    return shape


TURN_ROWS = "turn_rows"
"""The shape of rows that are one turn each."""


def as_row(row: Any) -> Any:
    """A bare list of turns as a row that has them in a column; anything else as it is.

    >>> as_row([{"role": "user", "content": "q"}])
    {'messages': [{'role': 'user', 'content': 'q'}]}
    """
    if isinstance(row, list) and row and all(isinstance(turn, dict) for turn in row):
        return {"messages": row}
    return row


def _by_dialogue(roles: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The roles of rows of one turn each. A column `id` is that of the dialogue where several rows have the same."""
    if "conversation" not in roles:
        for column in ("id", "ID", "Id", "编号"):
            values = [row[column] for row in rows if row.get(column) is not None]
            if values and len(set(map(str, values))) < len(values):
                return {**roles, "conversation": column}
        keys = {key: None for row in rows for key in row if key not in roles.values()}
        for name in MAY_BE_DIALOGUE:
            if (column := find_column(keys, (name,))) and _groups([row.get(column) for row in rows], []):
                return {**roles, "conversation": column}
    return dict(roles)


def _groups(identifiers: Sequence[Any], speakers: Sequence[Any]) -> bool:
    """Whether a column holds the same id in neighbouring rows; of `speakers`, if given, most ids have several."""
    if any(
        not isinstance(identifier, str | int) or isinstance(identifier, bool) or identifier == ""
        for identifier in identifiers
    ):
        return False
    runs = [key for key, _ in groupby(identifiers)]
    if speakers:
        of: dict[Any, set[str]] = {}
        for identifier, speaker in zip(identifiers, speakers, strict=True):
            of.setdefault(identifier, set()).add(str(speaker))
        return 1 < len(of) == len(runs) and 2 * sum(len(names) > 1 for names in of.values()) > len(of)
    return 2 * len(runs) <= len(identifiers) + 1


def like_dialogue(roles: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> str:
    """A column that none of the roles has and that divides rows of one turn each as the id of a dialogue would."""
    speakers = [row.get(roles["role"]) for row in rows]
    for column in {key: None for row in rows for key in row if key not in roles.values()}:
        if not find_column((column,), ORDER) and _groups([row.get(column) for row in rows], speakers):
            return column
    return ""


def _judged(shape: RowShape, rows: Sequence[Mapping[str, Any]]) -> RowShape:
    """The shape as `judged` (KTO), where a column holds a verdict, good or bad, in every row and nothing else."""
    column, verdicts = _verdicts(rows)
    if not verdicts or not all(verdict in VERDICTS for verdict in verdicts):
        return shape
    names = {role: shape.roles.get(role, "").casefold() for role in ("user", "assistant")}
    if column == "label" and (names != TRL or set(verdicts) <= NUMBERS):
        return shape
    return replace(shape, name=JUDGED, kind="judged", roles={**shape.roles, "label": column})


JUDGED = "judged"
"""The shape of answers beside a column that says by itself which of them are good."""
TRL = {"user": "prompt", "assistant": "completion"}


NUMBERS = {"0", "1", "0.0", "1.0"}


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    column = next((name for name in VERDICT if any(name in row for row in rows)), "")
    return column, [
        str(row[column]).strip().casefold() for row in rows if row.get(column) is not None
    ] if column else []


def doubtful_verdict(rows: Iterable[Any]) -> str:
    """The column beside answers that may hold verdicts, and is not read as such; "" for none."""
    column, verdicts = _verdicts([row for row in rows if isinstance(row, dict)])
    return column if column == "label" and verdicts and all(verdict in VERDICTS for verdict in verdicts) else ""


def verdict_words(rows: Iterable[Any]) -> str:
    """The pair of values in a column of verdicts, in words.

    >>> verdict_words([{"label": 1}, {"label": 0}]), verdict_words([{"label": True}])
    ('0 and 1', 'true and false')
    """
    _, values = _verdicts([row for row in rows if isinstance(row, dict)])
    one, other = next((pair for pair in _WORDS if not set(pair).isdisjoint(values)), ("0", "1"))
    return t("{one} and {other}", one=one, other=other)


_WORDS = (("0", "1"), ("true", "false"), ("good", "bad"), ("desirable", "undesirable"))


def _is_label(labels: Sequence[Any]) -> bool:
    """Whether values repeat as labels do; fewer than ten always count."""
    known = [str(label).strip() for label in labels if label is not None]
    return len(known) < 10 or len(set(known)) <= len(known) / 2


MANY_LABELS = "many_labels"
"""The shape of rows that would be labelled texts, if their labels repeated as labels do."""


def many_labels(rows: Sequence[Any]) -> int:
    """How many labels rows have that are texts and labels by their columns, but whose labels hardly repeat; else 0.

    >>> many_labels([{"text": f"a text {n}", "label": f"intent {n}"} for n in range(50)])
    50
    """
    held = [row for row in rows if isinstance(row, dict)]
    roles = [shape.roles for row in held if (shape := shape_of(row)).kind == "label"]
    if len(roles) <= len(held) / 2:
        return 0
    labels = [row.get(roles[0]["label"]) for row in held]
    return 0 if _is_label(labels) else len({str(label).strip() for label in labels if label is not None})


def shape_of(row: Mapping[str, Any], kind: Kind | None = None) -> RowShape:
    """The shape of one row. A column that is null counts only if nothing else fits."""
    shape = layout(tuple(k for k, v in row.items() if v is not None), kind)
    if shape.kind is None:
        shape = layout(tuple(row), kind)
    if shape.name == "messages":
        return replace(shape, name=_style(row[shape.roles["messages"]]))
    return shape


@lru_cache(maxsize=4096)
def layout(keys: tuple[str, ...], kind: Kind | None = None) -> RowShape:
    """The shape that these columns have, or that they have if their rows are of `kind`."""
    chosen, rejected = find_column(keys, CHOSEN), find_column(keys, REJECTED)
    dialogue = _dialogue(keys)
    if kind not in ("text", "label") and rejected and (chosen or dialogue.kind):
        # With `task: chat` the better answer is learned, and the worse one is not read.
        return RowShape("preference", kind or "preference", _preference(keys, chosen, rejected, dialogue))
    if kind in (None, "chat"):
        turns = _turn_rows(keys) if dialogue.name in ("unknown", "messages") else {}
        if "conversation" in turns or (turns and not dialogue.kind and not find_column(keys, LABEL)):
            return RowShape(TURN_ROWS, "chat", turns)
        if dialogue.kind:
            return dialogue
    verdict = find_column(keys, VERDICT)
    if kind == "judged" and dialogue.kind and verdict:
        return RowShape("judged", "judged", {**dialogue.roles, "label": verdict})
    text, label = find_column(keys, TEXT), find_column(keys, LABEL)
    label_of_two = label or find_column(keys, ("is_duplicate", "gold_label"))
    first, second = next(
        (two for names in TEXT_PAIRS if all(two := tuple(find_column(keys, (n,)) for n in names))), ("", "")
    )
    if first and kind in (None, "label"):
        roles = {"text": first, "text_pair": second, "label": label_of_two}
        return RowShape("labelled_pair", "label", roles) if label_of_two else UNKNOWN
    if text and label and kind in (None, "label"):
        return RowShape("labelled", "label", {"text": text, "label": label})
    if text and kind in (None, "text"):
        return RowShape("text", "text", {"text": text})
    return UNKNOWN


def _turn_rows(keys: tuple[str, ...]) -> dict[str, str]:
    """The roles of rows that are one turn each; none where they are something else."""
    if find_column(keys, ("messages", "conversations", "dialogs")):
        return {}
    roles = {"role": find_column(keys, SPEAKER), "content": find_column(keys, CONTENT)}
    if not all(roles.values()):
        return {}
    also = {"conversation": find_column(keys, DIALOGUE), "order": find_column(keys, ORDER)}
    return roles | {role: column for role, column in also.items() if column and column not in roles.values()}


def _dialogue(keys: tuple[str, ...]) -> RowShape:
    optional = {role: column for role, names in OPTIONAL.items() if (column := find_column(keys, names))}
    turns = find_column(keys, TURNS)
    if turns:
        # `input` and `reasoning` belong to one question; beside a list of turns they mean something else
        extras = {role: column for role, column in optional.items() if role in ("system", "tools")}
        return RowShape("messages", "chat", {"messages": turns, **extras})
    for name, fields in PAIRS.items():
        if name == "speakers" and find_column(keys, TEXT):
            continue  # who spoke, beside what was said
        roles = {role: column for role, names in fields.items() if (column := find_column(keys, names))}
        if len(roles) == len(fields):
            used = set(roles.values())
            rest = {role: column for role, column in optional.items() if role not in roles and column not in used}
            return RowShape(name, "chat", roles | rest)
    return UNKNOWN


def _preference(keys: tuple[str, ...], chosen: str, rejected: str, dialogue: RowShape) -> dict[str, str]:
    """The roles of a pair of answers: what both reply to lies in a column of its own, or is what both begin with."""
    roles = {role: column for role in ("system", "tools", "history") if (column := find_column(keys, OPTIONAL[role]))}
    if not chosen:
        return {**dialogue.roles, "rejected": rejected}
    turns, prompt = find_column(keys, TURNS), find_column(keys, PROMPT)
    if turns:
        roles["messages"] = turns
    if prompt:
        roles["prompt"] = prompt
        extra = find_column(keys, OPTIONAL["input"])
        roles |= {"input": extra} if extra and extra != prompt else {}
    return {**roles, "chosen": chosen, "rejected": rejected}


def find_column(keys: Collection[str], names: Sequence[str]) -> str:
    """The first of `names` among `keys`, as written if possible, else whatever its case, "User question" too."""
    for name in names:
        if name in keys:
            return name
    folded = {k.casefold().strip().replace(" ", "_").replace("-", "_"): k for k in reversed(list(keys))}
    return next((folded[n.casefold()] for n in names if n.casefold() in folded), "")


PAIR_TURNS = (("input", "output"), ("human", "assistant"), ("query", "response"), ("user", "assistant"),
              ("question", "answer"), ("prompt", "response"))  # fmt: skip
"""Turns that are a question and an answer in one object."""


def _style(cell: Any) -> str:
    """The format of a list of turns, for the report only: `turns.py` reads them all."""
    turns = [turn for turn in cell[:8] if isinstance(turn, dict)] if isinstance(cell, list) else []
    keys = set(turns[0]) if turns else set()
    if "from" in keys:
        return "sharegpt"
    if "role" in keys:
        speakers = {turn.get("role") for turn in turns if isinstance(turn.get("role"), str)}
        return "client_counselor" if speakers & {"client", "counselor"} else "messages"
    return next((f"{a}_{b}_turns" for a, b in PAIR_TURNS if {a, b} <= keys), "messages")


def mapped(roles: Mapping[str, str], kind: Kind | None = None) -> Kind | None:
    """The record kind of rows with these roles, or `kind` if they have what it needs; None where roles are missing.

    >>> mapped({"text": "a", "label": "b"}), mapped({"text": "a", "label": "b"}, "text"), mapped({"user": "a"})
    ('label', 'text', None)
    """
    has = set(roles)
    answers = "messages" in has or {"role", "content"} <= has or ({"user", "prompt"} & has and "assistant" in has)
    possible: dict[Kind, bool] = {
        "preference": "rejected" in has and ("chosen" in has or bool(answers)),
        "judged": bool(answers) and "label" in has,
        "chat": bool(answers) or ("chosen" in has and bool({"prompt", "user"} & has)),
        "label": {"text", "label"} <= has,
        "text": "text" in has,
    }
    if kind:
        return kind if possible[kind] else None
    return next((known for known, fits in possible.items() if fits), None)


def known(columns: Collection[str]) -> bool:
    """Whether these names look like the header of a table of dialogues, answers or labelled texts."""
    return layout(tuple(columns)).kind not in (None, "text")


def unused(shape: RowShape, columns: Iterable[str]) -> list[str]:
    return [c for c in columns if c not in shape.roles.values()]
