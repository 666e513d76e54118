"""Texts that look damaged and are not, and texts whose damage is undone whole or not at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.made import build, recipe
from tests.real import load
from tuneloop.base.records import LedgerEntry, Message, Record
from tuneloop.cli.losses import much_changed
from tuneloop.data.cleaning.clean import clean
from tuneloop.data.cleaning.repair import mojibake, normalised
from tuneloop.data.reading import formats
from tuneloop.recipe.schema import DataFile

CASES = Path(__file__).parents[1] / "cases"


def rows(name: str) -> list[Record]:
    items = list(formats.read(DataFile(path=str(CASES / name))))
    return [i for i in items if isinstance(i, Record)]


def chat(question: str, answer: str, system: str = "") -> Record:
    head = (Message("system", system),) if system else ()
    return Record((*head, Message("user", question), Message("assistant", answer)), "f", 1)


def touched(record: Record) -> list[LedgerEntry]:
    return [e for e in clean(record)[1] if e.action != "marked"]


# --- what stays ---


@pytest.mark.parametrize("name", ["07-markup-meant", "32-about-encodings"])
def test_a_case_stays_as_it_is(name: str) -> None:
    for record in rows(f"{name}/rows.jsonl"):
        assert not touched(record), record.line
        assert clean(record)[0] == record


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Answer with the key word in <strong>.", "Water boils at <strong>100 °C</strong>."),
        ("把结果用表格列出来：茶2元。", "<table><tr><td>茶</td><td>2元</td></tr></table>"),
        ("用列表回答：早餐吃什么？", "<ul><li>粥</li><li>蛋</li></ul>"),
        ("标注人名：李雷去了北京。", "<span class='person'>李雷</span>去了北京。"),
        ("Tag the places: Anna is in Rome.", "<p>Anna is in <a href='#'>Rome</a>.</p>"),
        ("Translate: <li>bread</li>", "<li>Brot</li>"),
        ("请转义：3 < 5 & 5 > 3", "3 &lt; 5 &amp; 5 &gt; 3"),
        ("Fish & Chips, please, for a web form", "Fish &amp; Chips, please, for a web form"),
        ("Read this out slowly.", '<speak><p>one</p><break time="1s"/><p>two</p></speak>'),
        ("Dialogue for the game", "<npc name='Tom'><p>Hello.</p></npc>"),
        ("Speak of the sale.", "Only <b>today</b>: <i>two</i> for one."),
        ("Which day?", "<h2>Monday</h2>"),
        ("What does &nbsp; do?", "&nbsp; is a blank that does not break."),
        ("Compare: a &lt; b", "It says a < b."),
        ("用红色写出警告", "<font color='red'>警告</font>"),
        ("Erkläre <b>fett</b>", "Der Text zwischen <b> und </b> wird fett."),
    ],
)
def test_markup_that_was_asked_for_stays(question: str, answer: str) -> None:
    assert not touched(chat(question, answer))


def test_markup_that_the_system_prompt_defines_stays() -> None:
    assert not touched(chat("We open at nine.", "<p>We open at <b>nine</b>.</p>", "Write <p> and <b> only."))


@pytest.mark.parametrize(
    ("question", "answer", "left"),
    [
        ("How are you?", "Fine.<br><br>And you?", "Fine.\n\nAnd you?"),
        ("怎么退货？", "<p>请联系客服。</p><p>我们会处理&nbsp;的。</p>", "请联系客服。\n\n我们会处理 的。"),
        ("Where is it?", "Look <a href='http://a.example'>here</a> &quot;now&quot;.", 'Look here "now".'),
        ("Hi<br>there", "Hello<br>you", "Hello\nyou"),
    ],
)
def test_left_over_markup_still_goes(question: str, answer: str, left: str) -> None:
    record, entries = clean(chat(question, answer))
    assert record is not None
    assert record.messages[-1].content == left
    assert [e.reason for e in entries] == ["markup removed"]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("网页上出现“Ã©”是什么？", "那是 é 的乱码。"),
        ("Fix: MÃ¼nchen", "München"),
        ("请修复：æ\x88\x91们", "“æ\x88\x91们”应为“我们”，是编码问题。"),
        ("What went wrong with MÃ¼nchen?", "Its charset: München was stored twice."),
        ("Spell it", "VOILÃ is not a word; Ã is a letter."),
        ("What is Ã©?", "It is é, misread."),
        ("Which signs?", "Ã¼ is ü, Ã¶ is ö."),
        ("Signs", "Â and Ê are letters of Romanian: Â Î"),
        ("Tiếng Việt", "ĐÃ, LÀ, NGÃ NĂM"),
        ("Which file?", "naÃ¯ve.txt is the bad copy of naïve.txt"),
    ],
)
def test_texts_about_encodings_stay(question: str, answer: str) -> None:
    assert not touched(chat(question, answer))


@pytest.mark.parametrize(
    ("broken", "meant"), [("Over MÃ¼nchen", "Over München"), ("浣犲ソ", "你好"), ("donâ€™t", "don’t")]
)
def test_what_is_broken_by_accident_is_still_repaired(broken: str, meant: str) -> None:
    record, entries = clean(chat("How was it?", broken))
    assert record is not None
    assert record.messages[-1].content == meant
    assert [e.reason for e in entries] == ["wrong encoding repaired"]


def test_sentences_about_templates_stay() -> None:
    records = rows("data/braces.jsonl")
    assert len(records) == 12
    assert [clean(r)[0] for r in records] == records
    marks = {r.line: e.detail for r in records for e in clean(r)[1] if e.reason == "placeholder left"}
    assert marks == {6: "{{customer_name}}", 10: "{{char}}"}


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        ("{{name}}", False), (" {{ user_name }} ", False), ("我是{{name}}，由{{author}}开发。", False), ("I'm {{bot_name}}.", False),
        ("In Angular you show it with {{ name }}.", True), ("模板里的 {{name}} 会换成名字。", True),
        ("写 {{ name }} 就会显示名字", True), ("You can put {{author}} in the footer.", True),
        ("Your order {{order_number}} is on its way.", True), ("亲爱的{{customer}}，您好！", True),
    ],
)  # fmt: skip
def test_placeholders(text: str, stays: bool) -> None:
    record, _ = clean(chat("q", text))
    assert (record is not None) == stays


# --- bytes ---

RARE = "囍嗯啰喆囧煲饸饹咗媢呷哦芦镕"


def chinese_texts(encoding: str, count: int, chance: random.Random) -> list[str]:
    """Real sentences, whole and short, some with a rarer character; only what the encoding has."""
    real = [m.content for r in load("waimai/waimai_10k.csv") for m in r.messages]
    out: list[str] = []
    while len(out) < count:
        text = chance.choice(real)
        text = text[: chance.choice([6, 12, 200])]
        for _ in range(chance.randint(0, 2)):
            at = chance.randrange(len(text) + 1)
            text = text[:at] + chance.choice(RARE) + text[at:]
        text = text.encode(encoding, "ignore").decode(encoding).strip()
        if not text.isascii():
            out.append(text)
    return out


@pytest.mark.parametrize("reader", ["latin-1", "sloppy-windows-1252"])
@pytest.mark.parametrize("encoding", ["gbk", "big5"])
def test_bytes_come_back_exactly_or_stay(encoding: str, reader: str) -> None:
    """200 texts of each encoding; most of the long ones come back."""
    import ftfy  # noqa: F401  (brings the codec)

    chance, exact = random.Random(encoding), 0
    for text in chinese_texts(encoding, 200, chance):
        broken = text.encode(encoding).decode(reader)
        record, _ = clean(Record((Message("user", broken),), "f", 1, kind="label", label="x"))
        assert record is not None
        got = record.messages[0].content
        assert got in (text, broken), (text, broken, got)
        exact += got == text
    assert exact > 120, exact


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Привет, как дела? Всё хорошо, спасибо.", "cp1251"), ("Καλημέρα κόσμε, τι κάνεις;", "cp1253"),
        ("お元気ですか。今日はとても良い天気ですね。", "shift_jis"), ("お元気ですか。今日はとても良い天気ですね。", "euc_jp"),
        ("안녕하세요. 오늘은 날씨가 참 좋습니다.", "euc_kr"), ("Привет, как дела?", "koi8_r"),
    ],
)  # fmt: skip
def test_bytes_of_other_encodings_stay(text: str, encoding: str) -> None:
    broken = text.encode(encoding).decode("latin-1")
    assert normalised(mojibake(broken)) == broken


def test_the_case_of_gbk_comes_back_whole() -> None:
    meant = [
        "嗯，我问过他是不是有什么难过的事，但他总说没事，我真的担心这样下去会越来越糟。",
        "外卖送得慢，寿司咸得齁人，还少给了一份辣酱，以后不会再点这家店的东西了。",
        "老板娘很热情，泡菜饼和紫菜包饭都很好吃，就是停车不太方便。",
        "西葫芦锅贴很好吃，下次还来。",
    ]
    got = [clean(r)[0] for r in rows("data/gbk_as_latin1.jsonl")]
    assert [r.messages[0].content for r in got if r] == meant


# --- breaks, colours, indentation ---


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("one\x0btwo", "one\ntwo"), ("one\x0ctwo", "one\ntwo"), ("one\x85two", "one\ntwo"), ("一\x85二", "一\n二"),
        ("a\x1cb\x1dc\x1ed", "a\nb\nc\nd"), ("key\x1fvalue", "key value"), ("键\x1f值\x0c页", "键 值\n页"),
        ("\x1b[31mred\x1b[0m", "red"), ("\x1b[1;38;5;9m红\x1b[m", "红"), ("\x1b]0;title\x07text", "text"),
        ("\x1b(Bplain\x1b[2K", "plain"), ("so\x85 and \x93so\x94", "so… and “so”"), ("a\x00b\x08", "ab"),
        ("one\u2028two", "one\u2028two"), ("one_x000D_\ntwo_x000D_", "one\ntwo"), ("_x000D_ is a return", "_x000D_ is a return"),
    ],
)  # fmt: skip
def test_signs_become_what_they_stand_for(before: str, after: str) -> None:
    record, entries = clean(chat("q", before))
    assert record is not None
    assert record.messages[-1].content == after
    assert bool(entries) == (before != after)


def test_the_cases_of_line_separators() -> None:
    got = {
        r.messages[0].content: c.messages[1].content
        for r in rows("08-line-separators/rows.jsonl")
        if (c := clean(r)[0])
    }
    assert got["Say nel"] == got["Say vt"] == "first line\nsecond line"
    assert (got["Say ff"], got["Say rs"], got["Say us"]) == ("page one\npage two", "a\nb", "key value")
    assert (got["Say ansi"], got["Say tab"]) == ("red", "a\tb")
    cells = [clean(r)[0] for r in rows("08-line-separators/cells.csv")]
    answers = [r.messages[1].content for r in cells if r]
    assert answers == ["Hold the button\nthen let go", "Main Street 5\n12345 Town"]
    record, _ = clean(rows("data/formfeed.jsonl")[0])
    assert record is not None
    assert record.messages[0].content == "end of page one\nStart of page two\nthird line\nfourth"


def test_code_keeps_its_indentation(tmp_path: Path) -> None:
    made = build(recipe(CASES / "data" / "code.txt", validation=0), tmp_path)
    text = "\n".join(r.messages[0].content for r in made.records("train"))
    assert text == (CASES / "data" / "code.txt").read_text(encoding="utf-8").rstrip()


METHOD = "class A:\n\n    def f(self):\n        return 1\n\n\ndef g():\n    return A().f()\n"
PAGE = "# How to\n\nFirst do this.\n\n```\nx = 1\n\ny = 2\n```\n\nThen that,\nand that.\n"
SONG = "A poem\nof lines\n\nand\nanother\n"


@pytest.mark.parametrize(("name", "text", "unit", "records"), [
    ("a.py", METHOD, None, [METHOD]), ("a.txt", METHOD, None, [METHOD]), ("b.md", PAGE, None, [PAGE]),
    ("c.txt", SONG, None, ["A poem\nof lines", "and\nanother"]), ("c.txt", SONG, "file", [SONG]),
    ("c.txt", SONG, "line", ["A poem", "of lines", "and", "another"]),
    ("d.txt", "One.\nTwo.\n", None, ["One.", "Two."]), ("d.txt", "One.\n\nTwo.\n", None, ["One.", "Two."]),
    ("d.txt", "One.\n\nTwo.\n", "file", ["One.\n\nTwo."]), ("e.txt", "#1 One.\n#tag Two.\n", None, ["#1 One.", "#tag Two."]),
    ("a.py", METHOD, "paragraph", ["class A:", "    def f(self):\n        return 1", "def g():\n    return A().f()"]),
])  # fmt: skip
def test_what_one_text_is(name: str, text: str, unit: str | None, records: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    file = DataFile.model_validate({"path": str(tmp_path / name), "unit": unit})
    got = [i for i in formats.read(file) if isinstance(i, Record)]
    assert [r.messages[0].content for r in got] == [one.rstrip() for one in records]
    assert ("unit: " in formats.sources(file)[0].guess.why) == (unit is None)


def test_a_file_of_code_keeps_its_blank_lines_in_the_version(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(METHOD, encoding="utf-8")
    made = build(recipe(tmp_path / "a.py", validation=0), tmp_path)
    assert [r.messages[0].content for r in made.records("train")] == [METHOD.rstrip()]


def test_a_file_of_code_that_is_too_long_for_one_text_ends_at_the_margin(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(METHOD * 20_000, encoding="utf-8")
    records = formats.read(DataFile(path=str(tmp_path / "a.py")))
    first = next(i for i in records if isinstance(i, Record))
    assert first.messages[0].content == "class A:\n\n    def f(self):\n        return 1"


def test_blank_lines_inside_code_and_first_blanks_of_a_line(tmp_path: Path) -> None:
    code = "def f():\n    a = 1\n\n    return a\n\n\ndef g():\n    return 2\n"
    (tmp_path / "code.txt").write_text(code, encoding="utf-8")
    got = [i for i in formats.read(DataFile(path=str(tmp_path / "code.txt"))) if isinstance(i, Record)]
    assert [(r.line, r.messages[0].content) for r in got] == [
        (1, code.rstrip()),
    ]  # fmt: skip
    (tmp_path / "prose.txt").write_text("  First.\n  Second.\n\n  Third.\n", encoding="utf-8")
    got = [i for i in formats.read(DataFile(path=str(tmp_path / "prose.txt"))) if isinstance(i, Record)]
    assert [r.messages[0].content for r in got] == ["  First.", "  Second.", "  Third."]


def test_a_repair_of_most_rows_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("question,answer\n" + "".join(f"q {n},one<br>two {n}\n" for n in range(12)), encoding="utf-8")
    made = build(recipe(path, validation=0), tmp_path)
    told = much_changed(made.manifest["counts"], made.manifest["steps"], "ledger")
    assert len(told) == 1
    assert "12 of 12" in told[0]
    assert "prepare.clean.html: false" in told[0]
    path.write_text("question,answer\n" + "".join(f"q {n},one two {n}\n" for n in range(12)), encoding="utf-8")
    made = build(recipe(path, validation=0), tmp_path)
    assert much_changed(made.manifest["counts"], made.manifest["steps"], "ledger") == []
