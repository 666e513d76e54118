"""The text of an answer taken apart: in each form of calls, however it is cut, and with nothing lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chat_templates import TEMPLATES
from tuneloop.base.errors import ServeError
from tuneloop.data.tokens.named_templates import DEFAULTS
from tuneloop.evaluation.calls import written_calls
from tuneloop.serving.answers.call_formats import FORMATS
from tuneloop.serving.answers.parsing import (
    AnswerParser,
    CallFormat,
    answer_parser,
    call_format,
    forced_call,
    markers,
    thinks,
)
from tuneloop.serving.engine import Query

FORM = {one.name: one for one in FORMATS}
B, E, CB, CE, SEP = FORM["deepseek-v3"].markers[0], *FORM["deepseek-v3"].markers[1:]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
        },
    }
    for name in ("f", "g")
]

Answer = tuple[str, str, list[tuple[str, str]]]


def taken(pieces: list[str], calls: CallFormat | None = None, **options: Any) -> Answer:
    """Text, thought and calls of an answer that comes in pieces."""
    parser = AnswerParser(calls, **({"names": ["f", "g"]} | options))
    text, thought, names, arguments = "", "", {}, {}
    ids = set()
    for delta in [*map(parser.feed, pieces), parser.end()]:
        text, thought = text + delta.text, thought + delta.thought
        for piece in delta.calls:
            if piece.name:
                assert piece.id
                ids.add(piece.id)
                names[piece.index] = piece.name
            arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    assert list(names) == list(range(len(names))) == list(arguments)
    assert len(ids) == len(names)
    assert parser.called == bool(names)
    return text, thought, [(names[k], arguments[k]) for k in names]


def of(text: str, form: str, **options: Any) -> Answer:
    return taken([text], FORM[form], **options)


F = [("f", '{"x": 1}')]
CASES: list[tuple[str, str, Answer]] = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', ("", "", F)),
    ("hermes", 'Sure.\n<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>\n', ("Sure.", "", F)),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1}}', ("", "", F)),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>\n<tool_call>{"arguments": {"y": "</tool_call>"}, "name": "g"}</tool_call>', ("", "", [*F, ("g", '{"y": "</tool_call>"}')])),
    ("hermes", 'a <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call> b', ("a b", "", F)),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', ("", "", F)),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1e999, "y": 12345678901234567890.10}}</tool_call>', ("", "", [("f", '{"x": 1e999, "y": 12345678901234567890.10}')])),
    ("hermes", '<tool_call><tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', ("<tool_call>", "", F)),
    ("hermes", '```json\n{"name": "f", "arguments": {"x": 1}}\n```', ("", "", F)),
    ("hermes", '{"name": "f", "arguments": {"x": 1}}\n', ("", "", F)),
    ("hermes", 'So: {"name": "f", "arguments": {"x": 1}}', ('So: {"name": "f", "arguments": {"x": 1}}', "", [])),
    ("llama", '{"name": "f", "parameters": {"x": 1}}', ("", "", F)),
    ("llama", '<|python_tag|>{"name": "f", "parameters": {"x": 1}}', ("", "", F)),
    ("llama", ' {"type": "function", "name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}}', ("", "", [*F, ("g", "{}")])),
    ("llama", '{"type": "function", "function": "f", "parameters": {"x": 1}}\n', ("", "", F)),
    ("llama", '{"name": "Bob", "parameters": {}}', ('{"name": "Bob", "parameters": {}}', "", [])),
    ("llama", '{"a": {"b": 1}} is JSON', ('{"a": {"b": 1}} is JSON', "", [])),
    ("llama", 'Call {"name": "f", "parameters": {"x": 1}}', ('Call {"name": "f", "parameters": {"x": 1}}', "", [])),
    ("deepseek-v3", f'{B}{CB}function{SEP}f\n```json\n{{"x": 1}}\n```{CE}{E}', ("", "", F)),
    ("deepseek-v3", f'Let me see.\n{B}{CB}function{SEP}f\n```json\n{{"x": 1}}\n```{CE}\n{CB}function{SEP}g\n```json\n{{}}\n```{CE}{E}', ("Let me see.", "", [*F, ("g", "{}")])),
    ("deepseek-v3", f'{B}{CB}function{SEP}f\n```json\n{{"x": 1}}', ("", "", F)),
    ("deepseek-v3.1", f'{B}{CB}f{SEP}{{"x": 1}}{CE}{CB}g{SEP}{{}}{CE}{E}', ("", "", [*F, ("g", "{}")])),
    ("deepseek-v3.1", f'{B} and {CB}f{SEP}{{x}}{CE}', (f"{B} and {CB}f{SEP}{{x}}{CE}", "", [])),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]', ("", "", [*F, ("g", "{}")])),
    ("mistral", '[TOOL_CALLS] {"name": "f", "arguments": {"x": 1}}', ("", "", F)),
    ("mistral-args", '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}', ("", "", [*F, ("g", "{}")])),
    ("mistral-args", 'Yes[TOOL_CALLS]f{"x": 1}', ("Yes", "", F)),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_calls_in_each_form(form: str, text: str, expected: Answer) -> None:
    assert of(text, form) == expected
    assert taken(list(text), FORM[form]) == expected, "character by character"


BROKEN = [
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1}</tool_call> and more'),
    ("hermes", "<tool_call>f(1)</tool_call>"),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "\\ud83d", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": NaN}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "cut o'),
    ("hermes", " <tool_ca"),
    ("hermes", '```json\n{"a": 1}\n```'),
    ("hermes", "```json\n[1]\n```"),
    ("hermes", "```python\nprint()\n```"),
    ("hermes", '{"name": "h", "arguments": {}}'),
    ("hermes", "\n\n"),
    ("hermes", "<tool_call>" + '{"a":' * 500),
    ("llama", '{"name": "f", "parameters": {"x": tru'),
    ("llama", "<|python_tag|>print(1)"),
    ("deepseek-v3", f"{B}{CB}function{SEP}f\n```python\nf(1)```{CE}{E}"),
    ("deepseek-v3", f"{B} nothing"),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": 1}]'),
    ("mistral-args", "[TOOL_CALLS]f and then some words"),
]


@pytest.mark.parametrize(("form", "text"), BROKEN)
def test_what_is_no_call_is_text_to_the_last_character(form: str, text: str) -> None:
    assert of(text, form) == (text, "", [])
    assert taken(list(text), FORM[form]) == (text, "", [])


def test_a_broken_call_does_not_hide_the_next() -> None:
    text = '<tool_call>{"name" f}</tool_call>\n<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    assert of(text, "hermes") == ('<tool_call>{"name" f}</tool_call>', "", F)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nhm\n</think>\n\nYes.", False, ("Yes.", "hm")),
        ("\n<think>a <b> </thi c</think>Yes.", False, ("Yes.", "a <b> </thi c")),
        ("hm\n</think>\n\nYes.", True, ("Yes.", "hm")),
        ("<think>hm</think>Yes.", True, ("Yes.", "hm")),
        ("<think>\n\n</think>\n\nYes.", False, ("Yes.", "")),
        ("<think>cut off", False, ("", "cut off")),
        ("cut off \n", True, ("", "cut off \n")),
        ("\nYes, <think>.", False, ("\nYes, <think>.", "")),
        ("Yes </think> no", False, ("Yes </think> no", "")),
        ("", False, ("", "")),
    ],
)
def test_thoughts(text: str, opened: bool, expected: tuple[str, str]) -> None:
    for pieces in ([text], list(text)):
        assert taken(pieces, thoughts=True, opened=opened)[:2] == expected


def test_a_thought_goes_before_calls_and_may_speak_of_them() -> None:
    text = '<think>\nI use <tool_call>.\n</think>\n\n<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    assert of(text, "hermes", thoughts=True) == ("", "I use <tool_call>.", F)


def test_text_streams_as_soon_as_it_is_certain() -> None:
    parser = AnswerParser(FORM["hermes"])
    assert [parser.feed(x).text for x in ("Hel", "lo ", "wor", "ld <", "b", "> ")] == [
        "Hel",
        "lo",
        " wor",
        "ld",
        " <b",
        ">",
    ]
    assert parser.end().text == " "


def test_one_call_where_one_is_wanted() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
    for pieces in ([text * 2], list(text * 2)):
        assert taken(pieces, FORM["hermes"], parallel=False) == ("", "", F)
    parser = AnswerParser(FORM["hermes"], parallel=False)
    parser.feed(text[:-14])
    assert not parser.done
    parser.feed(text[-14:])
    assert parser.done


def test_ids_are_what_the_template_takes() -> None:
    for form, length in (("mistral", 9), ("hermes", 29)):
        parser = AnswerParser(FORM[form])
        begins = FORM[form].begins
        call = parser.feed(begins + '{"name": "f", "arguments": {}}').calls[0]
        assert len(call.id) == length
        assert call.id.removeprefix("call_").isalnum()


_WORDS = ["<tool_call>", "</tool_call>", "<think>", "</think>", '{"name": "f", "arguments": {"x": 1}}', "[TOOL_CALLS]", "[ARGS]", "f", '{"x": ', "1}", "}", B, E, CB, CE, SEP, "function", "\n", "```json\n", "```", "<|python_tag|>", "; ", "[", "]", " Yes ", "<", "你好", '"', "\\"]  # fmt: skip
ANSWERS = st.lists(st.one_of(st.sampled_from(_WORDS), st.text(max_size=3)), max_size=14).map("".join)
LETTERS = st.text(st.characters(codec="utf-8"), max_size=5)


@settings(max_examples=400, deadline=None)
@given(ANSWERS, st.sampled_from([*FORMATS, None]), st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_any_cut_gives_the_same(text: str, calls: CallFormat | None, thoughts: bool, opened: bool, random: Any) -> None:
    at = sorted(random.randrange(len(text) + 1) for _ in range(random.randrange(9)))
    pieces = [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
    once = taken([text], calls, thoughts=thoughts, opened=opened)
    assert taken(pieces, calls, thoughts=thoughts, opened=opened) == once
    assert taken(list(text), calls, thoughts=thoughts, opened=opened) == once
    if not thoughts and not opened and not once[2]:
        assert once[0] == text


@settings(max_examples=200, deadline=None)
@given(LETTERS, st.dictionaries(LETTERS, st.recursive(st.one_of(st.integers(), LETTERS, st.booleans(), st.none()), lambda x: st.lists(x, max_size=3))))  # fmt: skip
def test_evaluation_reads_the_same_calls(text: str, arguments: Any) -> None:
    written = json.dumps(arguments, ensure_ascii=False)
    answer = f'<tool_call>\n{{"name": "f", "arguments": {written}}}\n</tool_call>'
    if "<" not in text:
        got = of(text + answer, "hermes")
        assert got[2] == [("f", written)]
        assert got[0] == text.rstrip()
    if "</tool_call>" not in written:
        assert [call and (call.name, call.arguments) for call in written_calls(answer)] == [("f", arguments)]


def test_no_character_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often an answer begins calls that are none, the work is a few looks a character."""
    looks = 0
    accept = AnswerParser._accept

    def counted(self: AnswerParser, literal: str) -> Any:
        nonlocal looks
        looks += 1
        return accept(self, literal)

    monkeypatch.setattr(AnswerParser, "_accept", counted)
    for text in ('<tool_call>{"a":"', "<tool_call>", B + CB, "[TOOL_CALLS][", "\n" * 10 + "<", "[TOOL_CALLS]f" * 2):
        for form in FORMATS:
            looks = 0
            assert taken(list(text * 300), form) == (text * 300, "", [])
            assert looks <= 4 * len(text * 300)


# Which form a template teaches


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (DEFAULTS["chatml-think"], "hermes"),
        (DEFAULTS["plain-think"], "hermes"),
        (DEFAULTS["chatml"], None),
        (TEMPLATES["qwen2.5"][0], "hermes"),
        (TEMPLATES["llama3"][0], None),
        ("{{ tools }}{'name': 'x'} {\"name\": function, \"parameters\": dictionary}<|python_tag|>", "llama"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", "mistral"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]f[ARGS]", "mistral-args"),
        (f"{{{{ tools }}}}{B}```json", "deepseek-v3"),
        (f"{{{{ tools }}}}{B}", "deepseek-v3.1"),
        ("{{ tools }}<tool_call>\n<function=f>", None),
        ("", None),
    ],
)
def test_the_form_is_recognised_by_the_template(template: str, name: str | None) -> None:
    got = call_format(template)
    assert (got and got.name) == name


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("model", "name", "thoughts"),
    [
        ("qwen3-tokenizer", "hermes", True),
        ("qwen2.5-coder-0.5b-instruct", "hermes", False),
        ("smollm2-135m-instruct", None, False),
        ("deepseek-v3-tokenizer", None, False),  # writes calls, but takes no tools
    ],
)
def test_templates_that_were_pulled(model: str, name: str | None, thoughts: bool) -> None:
    from tuneloop.data.tokens.templates import template_of

    folder = Path.home() / ".cache/tuneloop/models" / model
    if not folder.is_dir():
        pytest.skip(f"tuneloop pull {model}")
    template = template_of(folder)
    got = call_format(template)
    assert (got and got.name, thinks(template)) == (name, thoughts)


def test_what_the_templates_write_is_read_back() -> None:
    """The form that training teaches is the form that serving reads: rendered with real templates, parsed again."""
    from tests.conftest import byte_tokenizer
    from tuneloop.data.tokens.templates import render

    call = {"type": "function", "function": {"name": "f", "arguments": {"城市": "北京", "x": [1, None, 'a"b\n']}}}
    for template in (DEFAULTS["chatml-think"], DEFAULTS["plain-think"], TEMPLATES["qwen2.5"][0]):
        tokenizer = byte_tokenizer(template, eos_token="<|im_end|>")
        question = {"role": "user", "content": "?"}
        answer = {"role": "assistant", "content": "Yes.", "tool_calls": [call, call]}
        if template != TEMPLATES["qwen2.5"][0]:
            answer["reasoning_content"] = "hm"
        asked = render(tokenizer, [question], prompt=True, tools=TOOLS)
        text = render(tokenizer, [question, answer], tools=TOOLS).removeprefix(asked)
        text = text.partition("<|im_end|>")[0]
        parser = answer_parser(template, asked, Query("chat", "m", tools=tuple(TOOLS)))
        delta = parser.feed(text)
        assert (delta.text, delta.thought) == ("Yes.", answer.get("reasoning_content", ""))
        assert [json.loads(piece.arguments) for piece in delta.calls if piece.arguments] == [
            call["function"]["arguments"]
        ] * 2


def test_tools_without_a_form_are_refused_by_their_name() -> None:
    with pytest.raises(ServeError) as caught:
        answer_parser(DEFAULTS["chatml"], "", Query("chat", "m", tools=tuple(TOOLS)))
    assert (caught.value.code, caught.value.facts["param"]) == ("TL-SERVE-UNSUPPORTED", "tools")
    assert answer_parser(DEFAULTS["chatml"], "", Query("chat", "m")).feed("<think>").text == "<think>"


def test_a_thought_that_the_prompt_has_opened() -> None:
    template, *_ = TEMPLATES["deepseek-r1"]
    parser = answer_parser(template, "<｜Assistant｜><think>\n", Query("chat", "m"))
    assert parser.feed("hm</think>Yes").thought == "hm"
    parser = answer_parser(template, "<｜Assistant｜>", Query("chat", "m"))
    assert parser.feed("hm").text == "hm"
    assert markers(template) == ("<think>", "</think>")


def test_an_answer_that_is_held_to_a_form_has_no_thought() -> None:
    template = DEFAULTS["chatml-think"]
    forced = Query("chat", "m", tools=tuple(TOOLS), tool_choice="required")
    delta = answer_parser(template, "<think>\n", forced).feed('<tool_call>\n{"name": "f", "arguments": {"x": 1}}')
    assert [(piece.name or piece.arguments) for piece in delta.calls] == ["f", '{"x": 1}']
    delta = answer_parser(template, "<think>\n", Query("chat", "m", schema={})).feed('{"a": 1}')
    assert (delta.text, delta.thought) == ('{"a": 1}', "")


# Forced calls


@pytest.mark.parametrize("form", [one.name for one in FORMATS])
def test_a_forced_call_is_read_as_one(form: str) -> None:
    import jsonschema

    begins, schema = forced_call(FORM[form], TOOLS, "g")
    jsonschema.Draft202012Validator.check_schema(schema)
    call = {"name": "g", FORM[form].arguments: {"x": 1}}
    rest: Any = call["arguments"] if FORM[form].names_apart else [call] if FORM[form].listed else call
    assert jsonschema.Draft202012Validator(schema).is_valid(rest)
    for wrong in ({"x": 1, "name": "f"}, {**call, "name": "f"}, [], {**call, FORM[form].arguments: {"x": "a"}}):
        if not FORM[form].names_apart or wrong == []:
            assert not jsonschema.Draft202012Validator(schema).is_valid(wrong)
    assert of(begins + json.dumps(rest), form) == ("", "", [("g", '{"x": 1}')])


def test_any_of_several_tools() -> None:
    import jsonschema

    for form in ("hermes", "llama", "mistral"):
        _, schema = forced_call(FORM[form], TOOLS, "required")
        key = FORM[form].arguments
        for name, good in (("f", True), ("g", True), ("h", False)):
            call: Any = {"name": name, key: {"x": 1}}
            assert jsonschema.Draft202012Validator(schema).is_valid([call] if FORM[form].listed else call) == good
    with pytest.raises(ServeError, match="TL-SERVE-UNSUPPORTED"):
        forced_call(FORM["deepseek-v3"], TOOLS, "required")
    assert forced_call(FORM["deepseek-v3.1"], TOOLS[:1], "required")[0].endswith(f"f{SEP}")


def test_the_grammar_of_a_forced_call_compiles_with_references_of_its_own() -> None:
    llguidance = pytest.importorskip("llguidance")
    parameters = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "required": ["a"], "additionalProperties": False,
                  "$defs": {"A": {"enum": ["x", "y"]}}}  # fmt: skip
    tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("f", "g")]
    for form in ("hermes", "mistral"):
        _, schema = forced_call(FORM[form], tools, "required")
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
        assert not llguidance.LLMatcher.validate_grammar(grammar), form
