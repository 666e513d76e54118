"""Columns that people call a question and its answer by are found without help."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tuneloop.base.errors import DataError
from tuneloop.base.records import LedgerEntry, Record
from tuneloop.data.reading import formats
from tuneloop.recipe.schema import DataFile

PAIRS = [
    ("客户问题", "客服回复"), ("context", "response"), ("Context", "Response"), ("问题", "回复"), ("用户问题", "标准答案"),
    ("提问", "答复"), ("问", "答"), ("客户", "客服"), ("顾客", "客服"), ("输入", "输出"), ("指令", "输出"), ("患者", "医生"),
    ("Q", "A"), ("q", "a"), ("query", "answer"), ("prompt", "reply"), ("question", "output"), ("input", "response"),
    ("User question", "Bot reply"), ("customer", "agent"), ("user", "bot"), ("human", "gpt"), ("instruction", "answer"),
    ("咨询内容", "回复内容"), ("常见问题", "解答"), ("Question", "Expected answer"), ("user-input", "expected-output"),
]  # fmt: skip


def table(path: Path, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([names, *rows])
    return path


def read(path: Path) -> tuple[list[Record], list[LedgerEntry]]:
    items = list(formats.read(DataFile(path=str(path))))
    return [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, LedgerEntry)]


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_natural_names_of_a_pair(tmp_path: Path, names: tuple[str, str]) -> None:
    rows = [(f"怎么退货，第{n}次？", f"点订单 {n}。") for n in range(6)]
    for order in (1, -1):
        path = table(
            tmp_path / "f.csv", ("id", *names[::order]), [(str(n), *row[::order]) for n, row in enumerate(rows)]
        )
        records, bad = read(path)
        assert not bad
        assert [tuple(m.content for m in r.messages) for r in records] == rows
        assert {r.kind for r in records} == {"chat"}


def test_a_question_with_its_context(tmp_path: Path) -> None:
    records, _ = read(table(tmp_path / "f.csv", ("context", "question", "reply"), [("Rome.", "Where?", "There.")] * 3))
    assert [m.content for m in records[0].messages] == ["Where?\nRome.", "There."]


def test_who_spoke_is_not_what_was_said(tmp_path: Path) -> None:
    rows = [("李雷", "小美", f"很好 {n}", "好" if n % 2 else "坏") for n in range(12)]
    records, _ = read(table(tmp_path / "f.csv", ("客户", "客服", "内容", "标签"), rows))
    assert {r.kind for r in records} == {"label"}


@pytest.mark.parametrize("names", [("a", "b"), ("name", "age"), ("title", "author"), ("answer", "score")])
def test_other_columns_are_no_pair(tmp_path: Path, names: tuple[str, str]) -> None:
    with pytest.raises(DataError) as caught:
        read(table(tmp_path / "f.csv", names, [("x y", "z w")] * 3))
    assert caught.value.code == "TL-DATA-SHAPE"


@pytest.mark.parametrize(
    "columns",
    [{"user": "said", "assistant": "said"}, {"text": "said", "label": "said"},
     {"prompt": "n", "chosen": "said", "rejected": "said"}],
)  # fmt: skip
def test_one_column_for_two_roles_is_refused(tmp_path: Path, columns: dict[str, str]) -> None:
    path = table(tmp_path / "f.csv", ("said", "n"), [(f"x {n}", str(n)) for n in range(3)])
    with pytest.raises(DataError) as caught:
        list(formats.read(DataFile(path=str(path), columns=columns)))
    assert caught.value.code == "TL-DATA-COLUMNS"
    assert "at once" in caught.value.what
