"""Tables as people have them: a stray quote, line breaks in cells, no header, something above it, an index, Excel."""

from __future__ import annotations

import random
import zipfile
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from tests.made import build, recipe
from tuneloop.base.errors import DataError
from tuneloop.base.records import LedgerEntry, Record
from tuneloop.data.ledger import entries
from tuneloop.data.reading import formats
from tuneloop.data.version.dataset import Dataset
from tuneloop.recipe.schema import DataFile

CASES = Path(__file__).parents[1] / "cases"
WORDS = ["good", "food", "慢", "very, very", 'a "so" called', "fine", "味道很好", "3", "; and", "tea"]


def read(path: Path, **settings: object) -> tuple[list[Record], list[LedgerEntry]]:
    items = list(formats.read(DataFile.model_validate({"path": str(path), **settings})))
    return [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, LedgerEntry)]


def prepared(path: Path, folder: Path, **prepare: object) -> tuple[Dataset, list[LedgerEntry]]:
    made = build(recipe(path, **{"validation": 0, "dedupe": "off", **prepare}), folder)
    return made, list(entries(made.path / "ledger.jsonl"))


def quoted(cell: str, delimiter: str, always: bool) -> str:
    """A cell as csv writers write it."""
    if always or any(c in cell for c in (delimiter, '"', "\n", "\r")):
        return '"' + cell.replace('"', '""') + '"'
    return cell


def with_stray(line: str, delimiter: str, kind: str, chance: random.Random) -> str:
    """A line with one quote too many: before a cell, behind it, or doubled."""
    starts = [0, *(n + 1 for n, c in enumerate(line) if c == delimiter)]
    ends = [*(n for n, c in enumerate(line) if c == delimiter), len(line)]
    if kind == "opening":
        at = chance.choice(starts)
    elif kind == "closing":
        at = chance.choice(ends)
    else:
        quotes = [n for n, c in enumerate(line) if c == '"'] or starts
        at = chance.choice(quotes)
    return line[:at] + '"' + line[at:]


@pytest.mark.parametrize("kind", ["opening", "closing", "doubled"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_one_stray_quote_costs_one_line_at_most(tmp_path: Path, delimiter: str, end: str, kind: str) -> None:
    """56 tables for each of the 18 ways: 1,008 in all."""
    for seed in range(56):
        chance = random.Random(f"{delimiter}{end}{kind}{seed}")
        always = chance.random() < 0.3
        rows = [(str(n % 2), f"review {n} " + " ".join(chance.sample(WORDS, 3))) for n in range(40)]
        lines = [delimiter.join(quoted(cell, delimiter, always) for cell in row) for row in rows]
        touched = chance.randrange(40)
        lines[touched] = with_stray(lines[touched], delimiter, kind, chance)
        path = tmp_path / f"{seed}.csv"
        path.write_bytes(end.join(["label" + delimiter + "review", *lines, ""]).encode())
        records, bad = read(path)
        assert len(records) + len(bad) == 40, (seed, lines[touched])
        got = {r.line: (r.label, r.messages[0].content) for r in records}
        sound = {n + 2: row for n, row in enumerate(rows) if n != touched}
        assert {line: row for line, row in got.items() if line != touched + 2} == sound, (seed, lines[touched])
        assert {e.line for e in bad} <= {touched + 2}
        assert (touched + 2 in got) != bool(bad)


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_line_breaks_in_cells_stay(tmp_path: Path, delimiter: str, end: str) -> None:
    """34 tables for each of the 6 ways: 204 in all, of 2 or 3 columns, with few or many line breaks."""
    for seed in range(34):
        chance = random.Random(f"{delimiter}{end}{seed}")
        always, share, three = chance.random() < 0.3, chance.choice([0.03, 0.2, 0.8]), chance.random() < 0.5
        rows = []
        for n in range(40):
            answer = f"answer {n} " + " ".join(chance.sample(WORDS, 2))
            for _ in range(chance.choice([1, 2, 5]) if chance.random() < share or n == 17 else 0):
                answer += chance.choice(["\n", "\n\n"]) + " ".join(chance.sample(WORDS, 3))
            rows.append((f"question {n}", answer, *([f"topic {n % 3}"] if three else [])))
        names = ("question", "answer", *(["topic"] if three else []))
        text = end.join(
            delimiter.join(quoted(cell, delimiter, always) for cell in row).replace("\n", end) for row in (names, *rows)
        )
        path = tmp_path / f"{seed}.csv"
        path.write_bytes(text.encode())
        records, bad = read(path)
        assert not bad, (seed, bad)
        got = [(r.messages[0].content, r.messages[1].content.replace("\r\n", "\n")) for r in records]
        assert got == [row[:2] for row in rows], seed


def test_a_stray_quote_among_line_breaks(tmp_path: Path) -> None:
    """200 tables in which every fifth row runs over lines, and a row of one line has a quote too many."""
    for seed in range(200):
        chance = random.Random(seed)
        delimiter, kind = chance.choice(",;\t"), chance.choice(["opening", "closing", "doubled"])
        always = chance.random() < 0.3
        rows = []
        for n in range(60):
            answer = f"answer {n} " + " ".join(chance.sample(WORDS, 2))
            for _ in range(chance.choice([1, 3]) if n % 5 == 3 else 0):
                answer += "\n" + " ".join(chance.sample(WORDS, 2))
            rows.append((f"question {n}", answer))
        lines = [delimiter.join(quoted(cell, delimiter, always) for cell in row) for row in rows]
        touched = chance.choice([n for n in range(60) if n % 5 != 3])
        lines[touched] = with_stray(lines[touched], delimiter, kind, chance)
        path = tmp_path / f"{seed}.csv"
        path.write_text("\n".join([f"question{delimiter}answer", *lines]), encoding="utf-8", newline="")
        records, bad = read(path)
        got = {r.messages[0].content: r.messages[1].content for r in records}
        assert [row for n, row in enumerate(rows) if n != touched and got.get(row[0]) != row[1]] == [], seed
        assert len(records) + len(bad) == 60


def test_an_open_quote_in_a_case(tmp_path: Path) -> None:
    made, told = prepared(CASES / "data" / "open_quote_small.csv", tmp_path)
    assert made.manifest["counts"]["rows_in"] == 25
    assert len(made.records("train")) == 24
    assert [(e.action, e.reason, e.line) for e in told] == [("dropped", "broken CSV", 14)]


def test_two_stray_quotes_merge_no_rows(tmp_path: Path) -> None:
    """The second one, an inch mark at the end of a cell, would close what the first one opened."""
    path = tmp_path / "f.csv"
    lines = [f"{n % 2},review {n}" for n in range(30)]
    lines[10], lines[13] = '0,"open', '1,a screen of 15"'
    path.write_text("\n".join(["label,review", *lines]), encoding="utf-8")
    records, bad = read(path)
    assert [(e.reason, e.line) for e in bad] == [("broken CSV", 12)]
    assert len(records) == 29
    assert records[12].messages[0].content == 'a screen of 15"'


@pytest.mark.parametrize("header", ['"label,review', 'label,"review', 'la"bel,review"'])
def test_a_stray_quote_in_the_header(tmp_path: Path, header: str) -> None:
    path = tmp_path / "f.csv"
    path.write_text("\n".join([header, *(f"{n % 2},review {n}" for n in range(30))]), encoding="utf-8")
    records, bad = read(path)
    assert not bad
    assert Counter(r.label for r in records) == {"0": 15, "1": 15}


REVIEWS = [(f"第{n}家店{'很好吃' if n % 2 else '太难吃了'}", "正面" if n % 2 else "负面") for n in range(20)]


def table(*above: str, delimiter: str = ",", index: bool = False) -> str:
    rows = [delimiter.join([*([str(n)] if index else []), *row]) for n, row in enumerate(REVIEWS)]
    return "\n".join([*above, *rows, ""])


TABLES = {
    "no header": table(),
    "no header, tab": table(delimiter="\t"),
    "no header, index": table(index=True),
    "Excel's separator line": table("sep=;", "文本;标签", delimiter=";"),
    "quoted separator line, tab": table('"sep=\t"', "文本\t标签", delimiter="\t"),
    "a separator line and no header": table("SEP=;", delimiter=";"),
    "a comment": table("# exported 2024-05-01, by the shop", "文本,标签"),
    "a comment without separators": table("# exported by the shop", "文本,标签"),
    "comments and no header": table("# exported by the shop", "# for May"),
    "a header that is a comment": table("# 文本,标签"),
    "a title": table("五月的评论", "", "文本,标签"),
    "pandas' index": table(",文本,标签", index=True),
    "pandas' index, other names": table(",句,类", index=True),
    "R's row names": table("文本,标签", index=True),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_as_people_mean_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f.csv"
    path.write_text(TABLES[name], encoding="utf-8")
    records, bad = read(path)
    assert not bad
    assert [(r.messages[0].content, r.label) for r in records] == REVIEWS
    assert [r.line for r in records] == list(range(records[0].line, records[0].line + 20))


def test_cases_without_a_plain_header() -> None:
    records, bad = read(CASES / "data" / "headerless_zh.csv")
    assert (len(records), bad, {r.label for r in records}) == (40, [], {"正面", "负面"})
    records, bad = read(CASES / "data" / "sep.csv")
    assert (len(records), bad, {r.label for r in records}) == (20, [], {"0", "1"})


def test_the_recipe_says_where_the_header_is(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("shop,May\nsaid,what\n" + "so good,pos\nbad,neg\n" * 6, encoding="utf-8")
    columns = {"text": "said", "label": "what"}
    assert len(read(path, header=2, columns=columns)[0]) == 12
    assert read(path, header=2, columns=columns)[0][0].line == 3
    assert len(read(path, header=0, columns={"text": "column_1", "label": "column_2"})[0]) == 14


def test_columns_that_have_numbers_only_are_of_a_table_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("什么是月亮,一颗卫星\n什么是太阳,一颗恒星\n", encoding="utf-8")
    records, _ = read(path, columns={"user": "column_1", "assistant": "column_2"})
    assert [r.messages[0].content for r in records] == ["什么是月亮", "什么是太阳"]


def test_labels_1_and_1_0_are_one(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("label,text\n" + "1,good\n1.0,fine\n0,bad\n0.0,poor\n" * 3, encoding="utf-8")
    assert Counter(r.label for r in read(path)[0]) == {"1": 6, "0": 6}


def test_a_header_in_the_middle_is_still_a_header_at_the_top(tmp_path: Path) -> None:
    """Two exports glued together: the second header is a row of its own, and no reason to take the first one for data."""
    path = tmp_path / "f.csv"
    path.write_text(("text,label\n" + "so good,pos\nbad,neg\n" * 6) * 2, encoding="utf-8")
    assert len(read(path)[0]) == 25


THREE = [
    ("id, text, label", [(f"r{7 * n % 40}", f"this is the text {n}", "pos" if n % 2 else "neg") for n in range(40)], 1),
    ("text, text, label", [(f"how is it {n}", f"it is so {n}", str(n % 2)) for n in range(40)], 2),
    ("label, text, text", [(str(n % 3), f"怎么退货{n}次", f"在订单里点{n}次") for n in range(40)], 2),
    ("number, text, label", [(str(n), f"the text {n}", str(n % 2)) for n in range(40)], 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "texts"), [(rows, texts) for _, rows, texts in THREE], ids=[name for name, _, _ in THREE]
)
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_three_columns_without_names(rows: list[tuple[str, ...]], texts: int, delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows), encoding="utf-8")
    records, bad = read(path)
    assert (len(records), bad) == (40, [])
    assert {(r.kind, len(r.messages)) for r in records} == {("label", texts)}
    assert [r.messages[0].content for r in records] == [next(cell for cell in row if "text" in cell or " " in cell or "退" in cell)
                                                        for row in rows]  # fmt: skip


@pytest.mark.parametrize("rows", [
    [(f"name{n}", f"city {n}", f"street {n}") for n in range(40)], [("a", f"some text {n}", "b") for n in range(40)],
    [(str(n % 5), f"some text {n}", str(n % 2)) for n in range(40)],
])  # fmt: skip
def test_three_columns_that_may_mean_anything_are_refused(rows: list[tuple[str, ...]], tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("".join(",".join(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.code == "TL-DATA-SHAPE"


# --- Excel ---


def workbook(path: Path, *sheets: list[list[object]], formats_of: dict[str, str] | None = None) -> Path:
    """An .xlsx with these sheets; `formats_of`: cell of the first sheet -> its number format."""
    import openpyxl

    book = openpyxl.Workbook()
    for n, rows in enumerate(sheets):
        sheet = book.active if n == 0 else book.create_sheet(f"表{n}")
        for row in rows:
            sheet.append(row)
    for place, code in (formats_of or {}).items():
        book.worksheets[0][place].number_format = code
    book.save(path)
    return path


@pytest.mark.parametrize(("value", "code", "shown"), [
    (timedelta(hours=30), "[h]:mm", "30:00"), (timedelta(hours=30), "[h]:mm:ss", "30:00:00"),
    (timedelta(hours=1, minutes=30), "[mm]:ss", "90:00"), (timedelta(minutes=-90), "[h]:mm", "-1:30"),
    (1e-5, "0.00E+00", "1.00E-05"), (123456, "0.0E+0", "1.2E+5"), (-2500, "0.00E+00", "-2.50E+03"), (0, "0.00E+00", "0.00E+00"),
    (9.999e9, "0.0E+00", "1.0E+10"), (0.5, "# ?/?", "1/2"), (1.75, "# ?/?", "1 3/4"), (2, "# ?/?", "2"), (-0.25, "# ?/?", "-1/4"),
    (0.333, "# ??/??", "1/3"), (0.5, "# ?/8", "4/8"),
])  # fmt: skip
def test_lengths_of_time_powers_and_fractions_as_excel_shows_them(
    value: object, code: str, shown: str, tmp_path: Path
) -> None:
    path = workbook(tmp_path / "f.xlsx", [["question", "answer"], ["q", value]], formats_of={"B2": code})
    assert [r.messages[-1].content for r in read(path)[0]] == [shown]


def merge(path: Path, *ranges: str) -> Path:
    import openpyxl

    book = openpyxl.load_workbook(path)
    for one in ranges:
        book.active.merge_cells(one)
    book.save(path)
    return path


def test_a_merged_question_stands_in_each_of_its_rows(tmp_path: Path) -> None:
    records, bad = read(CASES / "09-excel" / "merged_question.xlsx")
    assert bad == []
    assert [tuple(m.content for m in r.messages) for r in records] == [
        ("How long?", "Four weeks."), ("How long?", "You may renew it twice."), ("Fees?", "None."),
    ]  # fmt: skip
    assert [[(n.action, n.reason, n.detail) for n in r.notes] for r in records] == [
        [], [("changed", "merged cell", "question")], [],
    ]  # fmt: skip
    rows: list[list[object]] = [["question", "answer"], ["a", "one"], ["", "two"], ["", "three"], ["b", "same"], ["c", ""],
                                ["", ""], ["d", "x"], ["", "y"]]  # fmt: skip
    path = merge(workbook(tmp_path / "f.xlsx", rows), "A2:A4", "B5:B6", "A8:A9")
    records, bad = read(path)
    assert [(r.line, *(m.content for m in r.messages)) for r in records] == [
        (2, "a", "one"), (3, "a", "two"), (4, "a", "three"), (5, "b", "same"), (6, "c", "same"), (8, "d", "x"),
        (9, "d", "y"),
    ]  # fmt: skip
    assert bad == []


def test_merged_names_and_titles_are_no_rows(tmp_path: Path) -> None:
    rows: list[list[object]] = [["question", "answer"], ["", ""], ["a", "one"], ["b", "two"]]
    records, bad = read(merge(workbook(tmp_path / "f.xlsx", rows), "A1:A2", "B1:B2"))
    assert [r.line for r in records] == [3, 4]
    rows = [["Our questions", ""], ["question", "answer"], ["a", "one"], ["b", "two"]]
    records, more = read(merge(workbook(tmp_path / "g.xlsx", rows), "A1:B1"))
    assert [r.line for r in records] == [3, 4]
    assert bad == more == []


@pytest.mark.parametrize("name", ["cells.xlsx", "x000d.xlsx"])
def test_cells_as_excel_shows_them(tmp_path: Path, name: str) -> None:
    made, told = prepared(CASES / "09-excel" / name, tmp_path)
    answers = {r.messages[0].content: r.messages[1].content for r in made.records("train")}
    assert answers == {
        "How do I reset it?": "Hold the button\nfor three seconds.", "Which share is paid?": "25%",
        "When do you open?": "9:00:00", "When is the fair?": "04.05.2026", "Your phone?": "0151-000", "How many?": "3",
        "Price?": "19.90 EUR",
    }  # fmt: skip
    dropped = {e.line: (e.reason, e.detail) for e in told if e.action == "dropped"}
    assert dropped[10] == ("error cell", "answer: #N/A")
    assert made.manifest["counts"]["rows_in"] == 9


@pytest.mark.parametrize(
    ("value", "code", "shown"),
    [
        (0.125, "0.0%", "12.5%"), (1234567.5, "#,##0.00", "1,234,567.50"), (-3, "0.0", "-3.0"), (5, "General", "5"),
        (1999, "¥#,##0", "¥1,999"), (12, '[$€-407] #,##0.00', "€ 12.00"), (7, "000", "007"), (0.1 + 0.2, "General", "0.3"),
        (-5, "0;(0)", "(5)"), (0, '0;-0;"none"', "none"), (2.5, '0.0"℃"', "2.5℃"), (1500000, '0.0,,"M"', "1.5M"),
        (13800138000, "0", "13800138000"), (1e-7, "0.00E+00", "1.00E-07"),
    ],
)  # fmt: skip
def test_numbers_as_excel_shows_them(tmp_path: Path, value: float, code: str, shown: str) -> None:
    path = workbook(tmp_path / "f.xlsx", [["question", "answer"], ["q", value]], formats_of={"B2": code})
    assert read(path)[0][0].messages[1].content == shown


def test_dates_as_excel_shows_them(tmp_path: Path) -> None:
    from datetime import date, datetime, time

    rows = [
        (date(2026, 5, 4), "yyyy-mm-dd", "2026-05-04"), (datetime(2026, 5, 4), "General", "2026-05-04"),
        (datetime(2026, 5, 4, 9, 5), "yyyy/m/d h:mm", "2026/5/4 9:05"), (time(9, 30), "h:mm AM/PM", "9:30 AM"),
        (date(2026, 5, 4), 'yyyy"年"m"月"d"日"', "2026年5月4日"), (datetime(2026, 5, 4, 0, 7), "mm:ss", "07:00"),
        (date(2026, 5, 4), "d. mmmm yyyy", "4. May 2026"), (date(2026, 5, 4), "mm-dd-yy", "2026-05-04"),
        (datetime(2026, 5, 4, 9, 5), "m/d/yy h:mm", "2026-05-04 09:05:00"),
        (date(2026, 5, 4), "[$-F800]dddd, mmmm dd, yyyy", "2026-05-04"),
    ]  # fmt: skip
    cells = [["question", "answer"], *([f"q{n}", value] for n, (value, _, _) in enumerate(rows))]
    codes = {f"B{n + 2}": code for n, (_, code, _) in enumerate(rows)}
    records, _ = read(workbook(tmp_path / "f.xlsx", cells, formats_of=codes))
    # openpyxl reads a value without a date's format as a number: its second row is one
    got = [r.messages[1].content for r in records]
    want = [shown for _, _, shown in rows]
    assert got[:1] + got[2:] == want[:1] + want[2:]


def test_an_error_in_a_column_that_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("question,answer,price\nq,a,#REF!\np,#N/A,1\nr,see #N/A there,2\n", encoding="utf-8")
    records, bad = read(path)
    assert [r.messages[0].content for r in records] == ["q", "r"]
    assert [(e.line, e.reason) for e in bad] == [(3, "error cell")]


def test_a_title_above_the_header(tmp_path: Path) -> None:
    records, bad = read(CASES / "09-excel" / "title.xlsx")
    assert [(r.line, r.messages[1].content) for r in records] == [
        (3, "At nine."),
        (4, "Yes, for free."),
        (5, "Only water."),
    ]
    assert not bad
    rows: list[list[object]] = [
        ["五月的评论"],
        [],
        ["句", "类"],
        *([f"句 {n}", "好" if n % 2 else "坏"] for n in range(12)),
    ]
    records, _ = read(workbook(tmp_path / "f.xlsx", rows))
    assert Counter(r.label for r in records) == {"好": 6, "坏": 6}
    assert records[0].line == 4


def test_a_sheet_without_a_header(tmp_path: Path) -> None:
    rows: list[list[object]] = [[f"句 {n}", "好" if n % 2 else "坏"] for n in range(12)]
    assert len(read(workbook(tmp_path / "f.xlsx", rows))[0]) == 12
    rows = [["note", "of May"], ["said", "what"], ["good", "pos"]]
    path = workbook(tmp_path / "g.xlsx", rows)
    columns = {"text": "said", "label": "what"}
    assert [r.line for r in read(path, header=2, columns=columns)[0]] == [3]


def test_one_sheet_by_its_name(tmp_path: Path) -> None:
    pairs: list[list[object]] = [["question", "answer"], ["q", "a"]]
    path = workbook(tmp_path / "f.xlsx", pairs, [*pairs, ["p", "b"]], [["note"]])
    records, _ = read(Path(f"{path}!/表1"))
    assert [(r.file, r.line) for r in records] == [("f.xlsx!/表1", 2), ("f.xlsx!/表1", 3)]
    assert len(read(Path(f"{path}!/表1"), rows="[:1]")[0]) == 1
    assert len(read(path)[0]) == 3
    with pytest.raises(DataError) as caught:
        read(Path(f"{path}!/表3"))
    assert caught.value.code == "TL-DATA-INSIDE"
    assert "表1" in caught.value.what
    one = workbook(tmp_path / "g.xlsx", pairs)
    assert read(Path(f"{one}!/Sheet"))[0][0].file == "g.xlsx!/Sheet"


def test_one_member_of_a_zip_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "f.zip"
    with zipfile.ZipFile(path, "w") as out:
        for name, count in (("d/a.csv", 1), ("d/b.csv", 2)):
            out.writestr(name, "question,answer\n" + "q,a\n" * count)
    assert len(read(Path(f"{path}!/d/b.csv"))[0]) == 2
    with pytest.raises(DataError) as caught:
        read(Path(f"{path}!/b.csv"))
    assert caught.value.code == "TL-DATA-INSIDE"


def test_the_name_of_an_error_is_a_path(tmp_path: Path) -> None:
    """What the error calls a sheet can be written in a recipe."""
    path = workbook(tmp_path / "f.xlsx", [["what", "where"], ["x", "y"]], [["what", "where"], ["x", "y"]])
    with pytest.raises(DataError) as caught:
        read(path)
    records, _ = read(Path(caught.value.where), columns={"user": "what", "assistant": "where"})
    assert len(records) == 1
