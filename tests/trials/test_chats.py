"""Chats that a messenger exported are dialogues, or are refused with the line that makes them some."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneloop.base.errors import DataError
from tuneloop.base.records import LedgerEntry, Record
from tuneloop.data.reading import formats
from tuneloop.recipe.schema import DataFile

TALK = [
    ("顾客小王", "你好，在吗？"),
    ("客服小美", "在的，您请说。"),
    ("顾客小王", "怎么退货？\n包装拆了"),
    ("客服小美", "七天内都可以退。"),
]
TIMES = ["10:23:45", "10:24:01", "10:24:30", "10:25:12"]


def mail() -> str:
    head = "微信聊天记录\n\n—————  2024-05-01  —————\n\n\n"
    return head + "\n\n\n".join(f"{name}  {time[:5]}\n\n{text}" for (name, text), time in zip(TALK, TIMES, strict=True))


FORMS = {
    "WeChat, copied": "\n\n".join(f"{n} 2024-05-01 {at}\n{x}" for (n, x), at in zip(TALK, TIMES, strict=True)),
    "WeChat, slashes": "\n".join(f"{n} 2024/5/1 {at[:5]}\n{x}" for (n, x), at in zip(TALK, TIMES, strict=True)),
    "WeChat, by mail": mail(),
    "QQ": "消息记录（此消息记录为文本格式，不支持重新导入）\n\n====\n消息对象:小美\n====\n\n"
    + "\n\n".join(f"2024-05-01 {at} {n}(12345678)\n{x}" for (n, x), at in zip(TALK, TIMES, strict=True)),
    "one line": "\n".join(f"2024-05-01 {at} {n}: {x}" for (n, x), at in zip(TALK, TIMES, strict=True)),
    "one line in brackets": "\n".join(f"[2024-05-01 {at}] {n}：{x}" for (n, x), at in zip(TALK, TIMES, strict=True)),
    "WhatsApp": "\n".join(f"01/05/24, {at[:5]} - {n}: {x}" for (n, x), at in zip(TALK, TIMES, strict=True)),
    "names alone": "\n\n".join(f"{n}:\n{x}" for n, x in TALK),
    "Chinese dates": "\n".join(f"2024年5月1日 上午{at[:5]} {n}\n{x}" for (n, x), at in zip(TALK, TIMES, strict=True)),
}


def read(path: Path, **settings: object) -> tuple[list[Record], list[LedgerEntry]]:
    items = list(formats.read(DataFile.model_validate({"path": str(path), **settings})))
    return [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, LedgerEntry)]


@pytest.mark.parametrize("name", FORMS)
def test_an_exported_chat_is_a_dialogue(tmp_path: Path, name: str) -> None:
    path = tmp_path / "chat.txt"
    path.write_text(FORMS[name] + "\n", encoding="utf-8")
    records, bad = read(path)
    assert not bad
    assert [[(m.role, m.content) for m in r.messages] for r in records] == [
        [("assistant" if "客服" in who else "user", text) for who, text in TALK]
    ]


def test_a_pause_begins_a_new_dialogue_and_messages_in_a_row_are_one_turn(tmp_path: Path) -> None:
    path = tmp_path / "chat.txt"
    text = (
        "妈妈 2024-05-01 10:00\n吃了吗？\n我 2024-05-01 10:01\n吃了\n我 2024-05-01 10:01\n面条\n"
        "妈妈 2024-05-02 09:00\n早\n我 2024-05-02 09:30\n早！\n"
    )
    path.write_text(text, encoding="utf-8")
    records, _ = read(path)
    assert [(r.line, [m.content for m in r.messages]) for r in records] == [
        (1, ["吃了吗？", "吃了\n面条"]), (7, ["早", "早！"]),
    ]  # fmt: skip


def test_who_is_not_known_is_asked_for_and_can_be_said(tmp_path: Path) -> None:
    path = tmp_path / "chat.txt"
    path.write_text(
        "\n".join(f"{n} 2024-05-01 10:0{k}\nhello {k}" for k, n in enumerate(["张三", "李四"] * 3)), encoding="utf-8"
    )
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.code == "TL-DATA-CHAT"
    assert "张三" in caught.value.what
    assert "columns: {assistant: " in caught.value.do
    records, _ = read(path, columns={"assistant": "李四"})
    assert [m.role for m in records[0].messages] == ["user", "assistant"] * 3
    assert {r.kind for r in read(path, task="text")[0]} == {"text"}
    with pytest.raises(DataError) as caught:
        read(path, columns={"assistant": "王五"})
    assert caught.value.code == "TL-DATA-COLUMNS"


def test_questions_and_answers_of_a_transcript(tmp_path: Path) -> None:
    path = tmp_path / "faq.txt"
    path.write_text("问：几点开门？\n答：九点。\n\n问：几点关门？\n答：六点。\n", encoding="utf-8")
    records, _ = read(path)
    assert [m.content for r in records for m in r.messages] == ["几点开门？", "九点。", "几点关门？", "六点。"]


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"2024-05-01 10:00:0{n} {'INFO' if n % 2 else 'ERROR'}: step {n}\n" for n in range(8)),
        "Note: one\nThis is a long text.\nNote: two\nIt goes on.\nAlso: three\n",
        "He came at 10:23 and said: hello.\nThey left at 11:00.\n" * 4,
        "Ingredients:\nflour\nSteps:\nmix\nServes:\ntwo\nTime:\nan hour\n",
        "Ingredients:\nflour\nMethod:\nmix it\n\nIngredients:\nsugar\nMethod:\nstir it\n" * 2,
        "第一章 2024\n他说：你好。\n她说：再见。\n",
    ],
)
def test_other_texts_are_no_chats(tmp_path: Path, text: str) -> None:
    path = tmp_path / "f.txt"
    path.write_text(text, encoding="utf-8")
    assert {r.kind for r in read(path)[0]} == {"text"}
