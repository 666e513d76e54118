"""Keys inside a turn, pictures, and values that are no texts: what a person's rows say is what is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import byte_tokenizer
from tests.made import jsonl
from tuneloop.base.records import Kind, LedgerEntry, Record
from tuneloop.data.cleaning.clean import clean
from tuneloop.data.reading import formats
from tuneloop.data.reading.keys import CALL_ID, CALLS, MASKED, MEDIA, PARTLY, THOUGHT, TRAINED
from tuneloop.data.reading.rows import convert
from tuneloop.data.reading.shapes import PAIR_TURNS
from tuneloop.data.reading.sniff import look
from tuneloop.data.tokens.encode import marked, tokenize
from tuneloop.recipe.schema import DataFile

CASES = Path(__file__).parents[1] / "cases"
ASKED = {"role": "user", "content": "q"}
Made = Callable[[dict[str, Any]], dict[str, Any]]

# name -> kind, and a row whose answer "a" has these keys beside its text
SHAPES: dict[str, tuple[Kind, Made]] = {
    "openai": ("chat", lambda more: {"messages": [ASKED, {"role": "assistant", "content": "a", **more}]}),
    "sharegpt": ("chat", lambda more: {"conversations": [{"from": "human", "value": "q"},
                                                         {"from": "gpt", "value": "a", **more}]}),
    "counselor": ("chat", lambda more: {"dialog": [{"role": "client", "content": "q"},
                                                   {"role": "counselor", "content": "a", **more}]}),
    "speaker": ("chat", lambda more: {"dialogue": [{"speaker": "用户", "text": "q"},
                                                   {"speaker": "客服", "text": "a", **more}]}),
    "json text": ("chat", lambda more: {"messages": json.dumps([ASKED, {"role": "assistant", "content": "a", **more}])}),
    "nested": ("chat", lambda more: {"messages": [[ASKED, {"role": "assistant", "content": "a", **more}]]}),
    "bare": ("chat", lambda more: [ASKED, {"role": "assistant", "content": "a", **more}]),  # type: ignore[dict-item,return-value]
    "completion": ("chat", lambda more: {"prompt": [ASKED], "completion": [{"role": "assistant", "content": "a", **more}]}),
    **{f"{ask}-{reply}": ("chat", lambda more, ask=ask, reply=reply: {"conversation": [{ask: "q", reply: "a", **more}]})  # type: ignore[misc]
       for ask, reply in PAIR_TURNS},
    "chosen": ("preference", lambda more: {"prompt": "q", "chosen": {"role": "assistant", "content": "a", **more},
                                           "rejected": {"role": "assistant", "content": "b"}}),
    "chosen list": ("preference", lambda more: {"chosen": [ASKED, {"role": "assistant", "content": "a", **more}],
                                                "rejected": [ASKED, {"role": "assistant", "content": "b"}]}),
    "beside rejected": ("preference", lambda more: {"messages": [ASKED, {"role": "assistant", "content": "a", **more}],
                                                    "rejected_response": "b"}),
    "judged": ("judged", lambda more: {"messages": [ASKED, {"role": "assistant", "content": "a", **more}],
                                       "kto_tag": True}),
}  # fmt: skip
CALL = {"name": "f", "arguments": {"x": 1}}
DETAILS = [{"type": "reasoning.text", "text": "why"}, {"type": "reasoning.encrypted", "data": "zz"}]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_keeps_every_known_key_of_a_turn_and_names_the_others(shape: str, tmp_path: Path) -> None:
    kind, made = SHAPES[shape]

    def answer(**more: Any) -> Any:
        record = convert(made(more), kind)
        assert not record.notes
        return record.messages[-1]

    for key in THOUGHT:
        for value in ("why", DETAILS, [{"type": "text", "text": "why"}], {"content": "why"}):
            assert (answer(**{key: value}).reasoning, answer(**{key: value}).content) == ("why", "a"), key
    for keys, yes in ((TRAINED, (1, True, 1.0, "1", "true")), (MASKED, (0, False, "false"))):
        for key in keys:
            assert all(answer(**{key: value}).trained for value in yes), key
            no = tuple(not value if isinstance(value, bool | int | float) else {"1": "0"}.get(value) for value in yes)
            assert not any(answer(**{key: value}).trained for value in no if value is not None), key
    for key in CALLS:
        for value in (CALL, [CALL], json.dumps([CALL]), [{"type": "function", "function": CALL}]):
            assert [c["function"] for c in answer(**{key: value}).tool_calls] == [CALL], key
    assert answer(name="Ann").name == "Ann"
    for key, value in {"zeta": "x", "timestamp": 3, "edited": False, "meta": {"a": 1}}.items():
        record = convert(made({key: value}), kind)
        assert [(n.action, n.reason, n.detail) for n in record.notes] == [("marked", "turn keys not used", key)]
        assert record.id == convert(made({}), kind).id
        assert f"keys of turns not used: {key}" in look(jsonl(tmp_path / "f.jsonl", [made({key: value})] * 2)).why
    for nothing in (None, "", [], {}, {"a": None}):
        assert convert(made({"zeta": nothing, **dict.fromkeys((*THOUGHT, *TRAINED, *CALLS, *MEDIA))}), kind).notes == ()
    for key, value in (*((key, ["x.png"]) for key in MEDIA), *((key, [{"train": False}]) for key in PARTLY)):
        with pytest.raises(ValueError, match="part not text" if key in MEDIA else "loss weight"):
            convert(made({key: value}), kind)


@pytest.mark.parametrize("names", [("instruction", "output"), ("query", "response"), ("prompt", "completion"),
                                   ("question", "answer"), ("问题", "回答"), ("input", "output"), ("user", "assistant")])  # fmt: skip
@pytest.mark.parametrize("key", [key for key in THOUGHT if key != "analysis"])
def test_a_thought_beside_a_question_is_read(names: tuple[str, str], key: str) -> None:
    for value in ("why", DETAILS):
        assert convert({**dict(zip(names, "qa", strict=True)), key: value}).messages[-1].reasoning == "why"


def test_rejected_answers_keep_their_thoughts() -> None:
    row = {"prompt": "q", "chosen": {"role": "assistant", "content": "a", "thinking": "good"},
           "rejected": [{"role": "assistant", "content": "b", "thought": "bad", "zeta": 1}]}  # fmt: skip
    record = convert(row, "preference")
    assert (record.messages[-1].reasoning, record.rejected[0].reasoning) == ("good", "bad")
    assert [n.detail for n in record.notes] == ["zeta"]


def test_a_thought_that_is_none_and_marks_of_questions_are_named() -> None:
    turns = [{**ASKED, "weight": 0, "thinking": "hm"}, {"role": "assistant", "content": "a", "think": True}]
    assert [n.detail for n in convert({"messages": turns}).notes] == ["thinking, think"]
    turns = [{**ASKED, "train": True}, {"role": "assistant", "content": "a", "reasoning": "x", "thinking": "y"}]
    assert [n.detail for n in convert({"messages": turns}).notes] == ["train, thinking"]


@pytest.mark.parametrize("key", CALL_ID)
def test_a_result_keeps_its_call_and_its_name(key: str) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", key: "c1", "name": "f", "content": "3"}, {"role": "assistant", "content": "3"}]  # fmt: skip
    result = convert({"messages": turns}).messages[2]
    assert (result.tool_call_id, result.name) == ("c1", "f")
    assert result.as_chat() == {"role": "tool", "content": "3", "name": "f", "tool_call_id": "c1"}


# --- the cases, through reading, cleaning and a template ---

THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function | tojson + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IDS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'tool' %}"
    "{% if not m.tool_call_id %}{{ raise_exception('a tool result needs its tool_call_id') }}{% endif %}"
    "{{ m.tool_call_id + ':' }}{% endif %}{% for c in m.tool_calls or [] %}{{ c.id + '=' + c.function.name }}{% endfor %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def read(name: str) -> tuple[list[Record], list[LedgerEntry]]:
    """The records of a case after cleaning, and all that was told of its rows."""
    records, told = [], []
    for item in formats.read(DataFile(path=str(CASES / name))):
        if isinstance(item, LedgerEntry):
            told.append(item)
            continue
        told += item.notes
        record, entries = clean(item)
        told += entries
        records += [record] if record else []
    return records, told


def trained(records: list[Record], template: str) -> list[list[str]]:
    """Of each record, the texts that are trained."""
    tokenizer = byte_tokenizer(template, eos_token="<|im_end|>")
    samples = tokenize(tokenizer, records)
    return [[text for text, learnt in marked(tokenizer, sample) if learnt] for sample in samples]


@pytest.mark.parametrize(("name", "thoughts"), [
    ("02-thinking-key/thinking.jsonl", ["Sechs mal ", "La moitié "]),
    ("02-thinking-key/siblings.jsonl", ["Two and two.", "Two and three.", "Two and four.", "Two and five.", "Two and six.",
                                        "Two and seven.", "I must call it."]),
    ("02-thinking-key/pairturns.jsonl", ["Two and two.", "Two and three.", "Two and four.", "Two and five.",
                                         "Two and six."]),
])  # fmt: skip
def test_thoughts_are_trained_under_all_their_names(name: str, thoughts: list[str]) -> None:
    records, told = read(name)
    assert not told
    texts = [one[0].split("</think>")[0] for one in trained(records, THINKING)]
    assert len(texts) == len(thoughts)
    assert all(text.startswith(f"<think>{thought}") for text, thought in zip(texts, thoughts, strict=True))


def test_a_thought_in_front_of_a_call_is_trained_with_it_or_not_at_all() -> None:
    records, _ = read("02-thinking-key/siblings.jsonl")
    called, answered = trained(records[-1:], THINKING)[0]
    assert called.startswith("<think>I must call it.</think><call>{")
    assert called.endswith("}</call><|im_end|>")
    assert '"weather"' in called
    assert '"Bonn"' in called
    assert answered == "3 degrees.<|im_end|>"
    without_calls = THINKING.replace("m.tool_calls or []", "[]")
    assert trained(records[-1:], without_calls) == [["3 degrees.<|im_end|>"]]
    lost = tokenize(byte_tokenizer(without_calls, eos_token="<|im_end|>"), records[-1:]).unsaid
    assert {(one.turn, one.what) for one in lost} == {(2, "call"), (2, "thought")}


@pytest.mark.parametrize("template", [THINKING, IDS])
@pytest.mark.parametrize("name", ["03-loss-flags/flags.jsonl", "data/merge_weight.jsonl"])
def test_what_is_marked_not_to_be_trained_is_only_context(name: str, template: str) -> None:
    records, told = read(name)
    beside = name == "data/merge_weight.jsonl"  # there it has no place of its own: no dialogue is served so
    assert [(e.action, e.reason) for e in told] == [("changed", "untrained answer left out")] * (3 * beside)
    assert len(records) == (3 if beside else 4)
    for record, texts in zip(records, trained(records, template), strict=True):
        assert beside or any("wrong" in m.content and not m.trained for m in record.messages)
        assert len(texts) == 1
        assert texts[0].removeprefix("<think></think>") in ("good answer<|im_end|>", "right answer<|im_end|>")


def test_results_of_tools_stand_in_the_order_of_their_calls_with_their_ids() -> None:
    records, told = read("12-tool-result-id/calls.jsonl")
    assert [(e.action, e.reason, e.line) for e in told] == [
        ("changed", "results put in order", 1), ("dropped", "not text", 2),
    ]  # fmt: skip
    tokenizer = byte_tokenizer(IDS, eos_token="<|im_end|>")
    text = tokenizer.decode(tokenize(tokenizer, records)[0].ids)
    assert "tool\nabc000001:3<|im_end|>\n<|im_start|>tool\nabc000002:21" in text
    tokenizer.chat_template = (CASES / "12-tool-result-id/names.jinja").read_text(encoding="utf-8")
    assert "tool weather\n3<|im_end|>" in tokenizer.decode(tokenize(tokenizer, records)[0].ids)


def test_rows_with_pictures_are_dropped_with_that_reason() -> None:
    for name, dropped in (("13-images/mm.json", [1, 2]), ("13-images/parts.jsonl", [1])):
        records, told = read(name)
        assert [(e.action, e.reason, e.line) for e in told] == [("dropped", "part not text", n) for n in dropped]
        assert [m.content for m in records[0].messages] in (["Say hello.", "Hello."],)


@pytest.mark.parametrize("more", [
    {"image": {"bytes": None, "path": "x.png"}}, {"videos": ["v.mp4"]}, {"audio": "a.wav"}, {"Image": b"\x89PNG"},
    {"images": '["x.png"]'}, {"图片": "x.png"},
])  # fmt: skip
@pytest.mark.parametrize("row", [
    {"instruction": "q", "output": "a"}, {"messages": [ASKED, {"role": "assistant", "content": "a"}]},
    {"text": "t", "label": 1},
])  # fmt: skip
def test_a_picture_beside_a_row_of_any_shape(row: dict[str, Any], more: dict[str, Any]) -> None:
    kind: Kind = "label" if "text" in row else "chat"
    with pytest.raises(ValueError, match="part not text"):
        convert({**row, **more}, kind)
    for nothing in (None, "", [], "[]", {"bytes": None, "path": None}):
        assert convert({**row, next(iter(more)): nothing}, kind)


@pytest.mark.parametrize(("question", "pictured"), [
    ("<image>What is on the table?", True), ("<image>\n<image>Which?", True), ("What is this?\n<image>", True),
    ("<video>What happens?", True), ("<|image|> Describe it.", True), ("<image_1> and <image_2>: which?", True),
    ("What does the tag <image> do in SVG?", False), ("<video> 标签怎么写？", False), ("a < b and c > d", False),
])  # fmt: skip
def test_the_mark_of_a_picture_in_a_question(question: str, pictured: bool) -> None:
    row = {"instruction": question, "output": "A red cup."}
    if not pictured:
        assert convert(row).messages[0].content == question
        return
    with pytest.raises(ValueError, match="part not text"):
        convert(row)


@pytest.mark.parametrize(("name", "answers", "changed", "dropped"), [
    ("data/int_answer.jsonl", [str(2 * n) for n in range(20)], 10, 0),
    ("data/list_answer.jsonl", ["A", "B, D"] * 10, 20, 0),
    ("10-values-not-text/answers.jsonl", ["pear, plum, apple", "red"], 2, 0),
    ("10-values-not-text/mixed.json",
     ["42", "2.5", "false", "pear, plum", "red", "Rhine", "That is a year.", ".", "twelve"], 7, 2),
])  # fmt: skip
def test_values_that_are_no_texts_become_texts_and_are_told(
    name: str, answers: list[str], changed: int, dropped: int
) -> None:
    records, told = read(name)
    assert [r.messages[-1].content for r in records] == answers
    assert sum((e.action, e.reason) == ("changed", "value made text") for e in told) == changed
    assert sum(e.action == "dropped" for e in told) == dropped


INLINE = [
    ("<thinking>aha</thinking>ok", "<think>\naha\n</think>\n\nok", "inline thought"),
    ("<Thought>\naha\n</Thought>\nok", "<think>\naha\n</think>\n\nok", "inline thought"),
    *((f"<{key}>aha</{key}> ok", "<think>\naha\n</think>\n\nok", "inline thought") for key in THOUGHT if key != "think"),
    ("[THINK]aha[/THINK]ok", "<think>\naha\n</think>\n\nok", "inline thought"),
    ("◁think▷aha◁/think▷ok", "<think>\naha\n</think>\n\nok", "inline thought"),
    ("<|begin_of_thought|>\naha\n<|end_of_thought|>\n<|begin_of_solution|>\nok\n<|end_of_solution|>",
     "<think>\naha\n</think>\n\nok\n", "inline thought"),
    ("<think>aha</think>ok", "<think>aha</think>ok", ""),
    ("<think>cut off", "<think>\ncut off\n</think>", "open thought"),
    ("\n<thinking>\ncut off", "<think>\ncut off\n</think>", "open thought"),
    ("<think>one</think>\n<think>two", "<think>one</think><think>\ntwo\n</think>", "open thought"),
    ("The tag <think> opens a thought.", "The tag <think> opens a thought.", ""),
    ("<b>ok</b>", "<b>ok</b>", ""), ("[1] ok", "[1] ok", ""),
]  # fmt: skip


@pytest.mark.parametrize(("written", "read_as", "reason"), INLINE)
def test_a_thought_in_an_answer_is_read_as_one(written: str, read_as: str, reason: str) -> None:
    said = {"role": "assistant", "content": written}
    rows: list[tuple[Kind, dict[str, Any]]] = [
        ("chat", {"messages": [ASKED, said]}), ("chat", {"instruction": "q", "output": written}),
        ("judged", {"prompt": "q", "completion": written, "label": True}),
        ("preference", {"prompt": "q", "chosen": written, "rejected": "b"}),
        ("preference", {"prompt": "q", "chosen": "b", "rejected": written}),
    ]  # fmt: skip
    for kind, row in rows:
        record = convert(row, kind)
        found = [m.content for m in (*record.messages, *record.rejected) if m.role == "assistant" and m.content != "b"]
        assert found == [read_as]
        assert [note.reason for note in record.notes] == ([reason] if reason else [])
    text = convert({"text": written}, "text")
    assert (text.messages[0].content, text.notes) == (written, ())


@pytest.mark.parametrize(("asked", "written"), [
    ("What does <think> do?", "<think> opens a thought."), ("Use <thinking> and <answer>.", "<thinking>so</thinking>4"),
])  # fmt: skip
def test_a_tag_that_is_asked_for_is_the_answer(asked: str, written: str) -> None:
    record = convert({"instruction": asked, "output": written})
    assert (record.messages[-1].content, record.notes) == (written, ())


def test_an_open_thought_beside_a_key_is_no_answer_either() -> None:
    turn = {"role": "assistant", "content": "<think>and so", "reasoning": "first"}
    answer = convert({"messages": [ASKED, turn]}).messages[-1]
    assert (answer.content, answer.reasoning) == ("", "first\nand so")


@pytest.mark.parametrize(
    ("value", "said"), [(["", "b"], "b"), (["a", " ", "b"], "a, b"), (["a", 2], "a, 2"), ([""], "")]
)
def test_a_list_as_an_answer_has_no_empty_parts(value: list[Any], said: str) -> None:
    assert convert({"question": "q", "answer": value}).messages[-1].content == said
