"""Every file of ../shared/data read as it lies, against what was counted by hand (json, csv and grep alone)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.real import DATA, shared
from tuneloop.base.errors import DataError
from tuneloop.base.records import LedgerEntry, Record
from tuneloop.data.reading import formats
from tuneloop.recipe.schema import DataFile


@dataclass
class Told:
    """Container, encoding, shape, kind; then turns by role in messages and in rejected, labels, and what was dropped."""

    container: str
    shape: str
    kind: str
    rows: int
    roles: dict[str, int]
    labels: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    calls: int = 0
    thoughts: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    encoding: str = "utf-8"


def chat(container: str, shape: str, rows: int, user: int, assistant: int, **more: int) -> Told:
    extra = {key: more.pop(key) for key in ("calls", "thoughts") if key in more}
    return Told(container, shape, "chat", rows, {"user": user, "assistant": assistant, **more}, **extra)


def labelled(container: str, rows: int, **labels: int) -> Told:
    counts = {name.strip("_"): n for name, n in labels.items()}
    return Told(container, "labelled", "label", rows, {"user": rows}, counts)


def prose(container: str, rows: int, encoding: str = "utf-8") -> Told:
    return Told(container, "text", "text", rows, {"assistant": rows}, encoding=encoding)


MCQ = chat("object", "question_answer", 90, 90, 90)
HOTEL = Told("csv", "labelled", "label", 60, {"user": 60}, {"1": 60})
FILES: dict[str, Told] = {
    "emollm/data.json": chat("json", "input_output_turns", 500, 1582, 1582, system=500),
    "emollm/aiwei.json": chat("json", "input_output_turns", 400, 1066, 1066, system=400),
    "emollm/tiangou.json": chat("json", "input_output_turns", 301, 798, 798, system=300),
    "emollm/self_cognition_EmoLLM.json": chat("json", "alpaca", 58, 58, 58),
    "emollm/processed_self_cognition_EmoLLM.json": chat("json", "input_output_turns", 58, 58, 58, system=58),
    "emollm/ruozhiba_raw.jsonl": chat("jsonl", "alpaca", 174, 174, 174),
    "emollm/ruozhiba_format_emo.jsonl": chat("json", "input_output_turns", 174, 174, 174, system=174),
    "emollm/aiwei_swift.jsonl": chat("jsonl", "query_response", 80, 125, 125),
    "emollm/converted.json": chat("jsonl", "alpaca", 100, 100, 100),
    "smilechat/dialogs.jsonl": chat("jsonl", "client_counselor", 150, 851, 824),
    "huatuo_o1/demo_data.json": chat("json", "question_cot_response", 147, 147, 147, thoughts=147),
    "huatuo_o1/sft_en.json": chat("json", "question_cot_response", 147, 147, 147, thoughts=147),
    "gaokao_zh/2010-2022_Biology_MCQs.json": MCQ,
    "gaokao_zh/2010-2022_Chemistry_MCQs.json": MCQ,
    "gaokao_zh/2010-2022_History_MCQs.json": MCQ,
    "gaokao_zh/2010-2022_Math_I_MCQs.json": MCQ,
    "gaokao_zh/2010-2022_Physics_MCQs.json": chat("object", "question_answer", 48, 48, 48),
    "gaokao_zh/derived_cot_zh.json": chat("json", "question_cot_response", 408, 408, 408, thoughts=408),
    "alpaca_cot_en/strategyqa_train.json": chat("json", "alpaca", 200, 200, 200),
    "alpaca_cot_en/aqua_train.json": chat("json", "alpaca", 150, 150, 150),
    "imdb/train.csv": labelled("csv", 800, positive=400, negative=400),
    "imdb/test.csv": labelled("csv", 300, positive=150, negative=150),
    "imdb/aclImdb_dir_sample": labelled("txt", 20, pos=10, neg=10),
    "sst2/train.tsv": labelled("tsv", 1000, _1=505, _0=495),
    "sst2/dev.tsv": labelled("tsv", 250, _1=129, _0=121),
    "chnsenticorp/train.tsv": labelled("tsv", 1200, _0=614, _1=586),
    "chnsenticorp/dev.tsv": labelled("tsv", 200, _0=98, _1=102),
    # "    0" in one row is the label 0
    "chnsenticorp/test.tsv": labelled("tsv", 301, _0=154, _1=147),
    "chnsenticorp_hotel/ChnSentiCorp_htl_all.csv": Told(
        "csv", "labelled", "label", 800, {"user": 800}, {"1": 556, "0": 244}, dropped={"no text": 1}
    ),
    "waimai/waimai_10k.csv": labelled("csv", 1009, _0=680, _1=329),
    "llamafactory/alpaca_zh_demo.json": chat("json", "alpaca", 300, 300, 300),
    "llamafactory/alpaca_en_demo.json": chat("json", "alpaca", 300, 300, 300),
    "llamafactory/identity.json": chat("json", "alpaca", 65, 65, 65),
    "llamafactory/glaive_toolcall_zh_demo.json": chat("json", "sharegpt", 100, 244, 314, tool=70, calls=68),
    "llamafactory/glaive_toolcall_en_demo.json": chat("json", "sharegpt", 100, 252, 323, tool=71, calls=71),
    "llamafactory/dpo_zh_demo.json": Told(
        "json", "preference", "preference", 100, {"system": 18, "user": 100, "assistant": 100},
        rejected={"assistant": 100},
    ),
    "llamafactory/dpo_en_demo.json": Told(
        "json", "preference", "preference", 80, {"system": 19, "user": 152, "assistant": 152},
        rejected={"assistant": 80},
    ),
    # turns beside a label of true and false: only its dataset_info.json says that they are judged
    "llamafactory/kto_en_demo.json": chat("json", "messages", 100, 163, 163),
    "llamafactory/reason_tool_use_demo_50.jsonl": chat(
        "jsonl", "messages", 37, 51, 81, system=37, tool=30, calls=49, thoughts=37
    ),
    "llamafactory/v1_sft_demo.jsonl": chat("jsonl", "messages", 150, 150, 150),
    "llamafactory/v1_dpo_demo.jsonl": Told(
        "jsonl", "preference", "preference", 6, {"system": 6, "user": 6, "assistant": 6}, rejected={"assistant": 6}
    ),
    "llamafactory/c4_demo.jsonl": prose("jsonl", 100),
    "llamafactory/wiki_demo.txt": prose("txt", 8),
    "medicalgpt/sharegpt_zh_1K_format.jsonl": chat("jsonl", "sharegpt", 150, 595, 595),
    "medicalgpt/medical_sft_1K_format.jsonl": chat("jsonl", "sharegpt", 300, 300, 300),
    "medicalgpt/dpo_zh_500.jsonl": Told(
        "jsonl", "preference", "preference", 120, {"system": 24, "user": 120, "assistant": 120},
        rejected={"assistant": 120},
    ),
    "medicalgpt/toolcall_dpo_zh_demo.jsonl": Told(
        "jsonl", "preference", "preference", 3, {"user": 3, "tool": 1, "assistant": 4},
        rejected={"assistant": 3}, calls=1,
    ),
    "medicalgpt/sample.jsonl": chat("jsonl", "question_answer", 23, 23, 23),
    # several answers and scores a question: only a person can say which one to learn
    "ruozhiba_qa/questions.jsonl": Told(
        "jsonl", "mapped", "chat", 200, {"user": 200, "assistant": 200},
        columns={"user": "question", "assistant": "human_answer"},
    ),
    "openai_messages/toy_chat_fine_tuning.jsonl": chat("jsonl", "messages", 5, 7, 8, system=4),
    "openai_messages/drone_training.jsonl": chat("jsonl", "messages", 3, 3, 3, system=3, calls=3),
    "messy/data_juicer/alpaca_cot_zh.jsonl": chat("jsonl", "alpaca", 9, 9, 9),
    "messy/data_juicer/chatml.jsonl": chat("jsonl", "messages", 4, 5, 5, system=4),
    "messy/data_juicer/near_duplicates.jsonl": prose("jsonl", 14),
    "messy/data_juicer/pyrepr_in_csv.csv": prose("csv", 6),
    "messy/data_juicer/redpajama_cc.jsonl": prose("jsonl", 7),
    "messy/data_juicer/stack_exchange.jsonl": prose("jsonl", 48),
    "messy/data_juicer/web_text.jsonl": prose("jsonl", 6),
    "messy/encodings/sample-chinese.txt": prose("txt", 8, "big5"),
    "messy/encodings/sample-english.bom.txt": prose("txt", 7, "utf-8-sig"),
    "messy/encodings/sample-russian.txt": prose("txt", 3, "mac_cyrillic"),
    # PII spans and mojibake pairs are no training data; their texts can be named
    "pii_presidio/synth_dataset_v2.json": Told(
        "json", "mapped", "text", 250, {"assistant": 250}, columns={"text": "full_text"}
    ),
    "messy/mojibake/in-the-wild.json": Told(
        "json", "mapped", "text", 47, {"assistant": 47}, columns={"text": "fixed"}
    ),
}  # fmt: skip
HOTELS = {"gbk": "gb18030", "gb18030": "gb18030", "mixed_utf8_then_gbk": "utf-8+gb18030", "utf16_bom": "utf-16",
          "utf16le_nobom": "utf-16-le", "utf8_bom": "utf-8-sig"}  # fmt: skip
for _name, _encoding in HOTELS.items():
    FILES[f"messy/encodings/derived_hotel_{_name}.csv"] = Told(
        "csv", "labelled", "label", 60, {"user": 60}, {"1": 60}, encoding=_encoding
    )
REFUSED: dict[str, str] = {
    **{f"messy/csv_spectrum/csvs/{name}.csv": "TL-DATA-SHAPE" for name in (
        "comma_in_quotes", "empty", "empty_crlf", "escaped_quotes", "newlines", "simple", "simple_crlf", "utf8")},
    **{f"messy/csv_spectrum/json/{name}.json": "TL-DATA-SHAPE" for name in (
        "comma_in_quotes", "empty", "empty_crlf", "escaped_quotes", "newlines", "simple", "simple_crlf", "utf8")},
    **{f"messy/frictionless/{name}": "TL-DATA-SHAPE" for name in (
        "accent.csv", "blank-cells.csv", "blank-headers.csv", "blank-rows-multiple.csv", "bom.csv",
        "defective-rows.csv", "doublequote.csv", "duplicate-headers.csv", "duplicate-rows.csv", "invalid.csv",
        "issue-905_bad.csv", "latin1.csv", "multiline-headers.xlsx", "table-infer-iso-8859-7.csv",
        "table-infer-missing-values.csv", "table.csv.gz", "table.csv.zip")},
    "messy/frictionless/invalid.json": "TL-DATA-JSON",
}  # fmt: skip


def read(name: str, **settings: object) -> tuple[list[Record], list[LedgerEntry], list[formats.Source]]:
    file = DataFile.model_validate({"path": str(shared(name)), **settings})
    sources = formats.sources(file)
    items = list(formats.read(file, sources))
    return (
        [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, LedgerEntry)], sources,
    )  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_read_as_it_lies(name: str) -> None:
    told = FILES[name]
    records, bad, sources = read(name, columns=told.columns)
    guess = sources[0].guess
    assert (guess.container, guess.encoding, guess.shape) == (told.container, told.encoding, told.shape)
    assert guess.kind == told.kind
    assert {r.kind for r in records} == {told.kind}
    assert len(records) == told.rows
    assert Counter(e.reason for e in bad) == told.dropped
    assert Counter(m.role for r in records for m in r.messages) == told.roles
    assert Counter(m.role for r in records for m in r.rejected) == told.rejected
    assert sum(len(m.tool_calls) for r in records for m in r.messages) == told.calls
    assert sum(any(m.reasoning for m in r.messages) for r in records) == told.thoughts
    if told.labels:
        assert Counter(r.label for r in records) == told.labels
    places = [(r.file, r.line) for r in records]
    assert len(set(places)) == len(places)


def test_judged_turns_where_the_recipe_says_so() -> None:
    records, bad, sources = read("llamafactory/kto_en_demo.json", task="judged")
    assert (sources[0].guess.shape, {r.kind for r in records}, bad) == ("judged", {"judged"}, [])
    assert Counter(r.label for r in records) == {"good": 49, "bad": 51}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_training_data_is_refused_by_name(name: str) -> None:
    with pytest.raises(DataError) as caught:
        read(name)
    assert caught.value.code == REFUSED[name]


def test_no_file_is_forgotten() -> None:
    shared("README.md")
    here = {p.relative_to(DATA).as_posix() for p in DATA.rglob("*") if p.is_file() and not p.name.startswith(".")}
    left = {
        name
        for name in here - set(FILES) - set(REFUSED)
        if not name.startswith(("lexicons/", "messy/json_test_suite/", "imdb/aclImdb_dir_sample/"))
        and Path(name).name not in ("README.md", "LICENSE")
    }
    assert not left


def reviews(name: str) -> list[str]:
    return [r.messages[0].content for r in read(f"messy/encodings/derived_hotel_{name}.csv")[0]]


@pytest.mark.parametrize("name", HOTELS)
def test_the_same_reviews_in_every_encoding(name: str) -> None:
    """The files hold the same or neighbouring rows of one file: each review of theirs is one of its reviews."""
    original = {r.messages[0].content for r in read("chnsenticorp_hotel/ChnSentiCorp_htl_all.csv")[0]}
    assert set(reviews(name)) <= original


def test_big5_and_macintosh_cyrillic_and_greek_by_their_words() -> None:
    assert read("messy/encodings/sample-chinese.txt")[0][0].messages[0].content.startswith("維基大典（Wikipedia）者")
    russian = read("messy/encodings/sample-russian.txt")[0][0].messages[0].content
    assert russian.startswith("В гимназии он не был в числе первых учеников")
    greek = read("messy/frictionless/table-infer-iso-8859-7.csv", columns={"text": "name"})[0]
    assert [r.messages[0].content for r in greek] == ["Λεωνιδας", "Αλεξανδρος", "Μυρων", "Ευστοργιος"]
    latin = read("messy/frictionless/latin1.csv", columns={"text": "name"})[0]
    assert [r.messages[0].content for r in latin] == ["english", "©"]


def test_weights_of_the_new_demo() -> None:
    records = read("llamafactory/v1_sft_demo.jsonl")[0]
    assert all(m.trained for r in records for m in r.messages)


def test_preferences_answer_the_same_question() -> None:
    records = read("llamafactory/v1_dpo_demo.jsonl")[0]
    assert all(r.prompt[-1].role == "user" and r.messages[len(r.prompt) :] != r.rejected for r in records)


def test_the_folder_gives_side_and_label() -> None:
    sources = read("imdb/aclImdb_dir_sample")[2]
    assert {(s.side, s.given, s.path.parent.name) for s in sources} == {
        ("train", "neg", "neg"), ("train", "pos", "pos"),
    }  # fmt: skip


def test_unpacked_tables_are_the_table() -> None:
    for name in ("table.csv.gz", "table.csv.zip"):
        records = read(f"messy/frictionless/{name}", columns={"text": "name"})[0]
        assert [r.messages[0].content for r in records] == ["english", "中国人"]


def suite() -> list[str]:
    return sorted(p.name for p in (DATA / "messy" / "json_test_suite").glob("*.json"))


@pytest.mark.parametrize("name", suite())
def test_json_test_suite(name: str) -> None:
    """Broken JSON never gives a record of dialogue; everything gives rows or a code."""
    refused = None
    try:
        records, bad, sources = read(f"messy/json_test_suite/{name}")
    except DataError as error:
        refused = error
    if refused:
        assert refused.code.startswith("TL-DATA-")
        assert refused.what
        assert refused.do
        return
    assert records or bad
    # what is no JSON at all may be read as plain text; nothing else of it is
    assert name.startswith("n_")
    assert sources[0].guess.container == "txt"
