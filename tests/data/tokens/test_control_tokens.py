"""No text of a request or a row becomes a control token, in whatever role and however it is spelled; others stay as they
are, and what is read back is what was written."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import byte_tokenizer
from tests.real import pulled_tokenizer
from tuneloop import pipeline
from tuneloop.base.errors import TuneloopError
from tuneloop.base.records import Message, Record
from tuneloop.data import ledger
from tuneloop.data.tokens.control_tokens import GUARD, LITERAL, control_tokens, cut_at_guards, unguarded
from tuneloop.data.tokens.encode import marked, tokenize
from tuneloop.data.tokens.named_templates import CHATML, CHATML_THINK
from tuneloop.data.tokens.templates import prompt_ids, render, text_ids
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.recipe.recipe import make_recipe

REAL = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct", "qwen3-tokenizer", "deepseek-v3-tokenizer",
        "deepseek-v4-tokenizer", "gemma-3-270m")  # fmt: skip
QUICK = ("tiny", "qwen3-tokenizer", "deepseek-v3-tokenizer")
NAMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in REAL if name not in QUICK)]


@cache
def tokenizer_of(name: str) -> Any:
    if name == "tiny":
        return byte_tokenizer(
            CHATML_THINK,
            special=(
                "<|endoftext|>",
                "<|im_start|>",
                "<|im_end|>",
                "<think>",
                "</think>",
                "<tool_call>",
                "</tool_call>",
            ),
            eos_token="<|im_end|>",
        )
    return pulled_tokenizer(name)


@cache
def words_of(name: str) -> tuple[str, ...]:
    """The added tokens of a tokenizer that are no words of its texts: blanks, and Gemma's elements of HTML."""
    added = tokenizer_of(name).added_tokens_decoder.values()
    html = ("gemma" in name) and {str(t) for t in added if not t.special and str(t)[:1] == "<" and "_" not in str(t)}
    return tuple(str(t) for t in added if str(t).strip() and str(t) not in (html or ()))


@cache
def ids_of_words(name: str) -> frozenset[int]:
    return frozenset(tokenizer_of(name).convert_tokens_to_ids(list(words_of(name))))


def call(**given: Any) -> dict[str, Any]:
    return {
        "id": given.get("id", "abcdefghi"),
        "type": "function",
        "function": {"name": given.get("name", "weather"), "arguments": given.get("arguments", {"city": "Rome"})},
    }


def tool(**given: Any) -> dict[str, Any]:
    properties = {
        given.get("key", "city"): {
            "type": "string",
            "description": given.get("about", "A city."),
            "enum": [given.get("choice", "Rome")],
        }
    }
    return {
        "type": "function",
        "function": {
            "name": given.get("name", "weather"),
            "description": given.get("description", "The weather."),
            "parameters": {"type": "object", "properties": properties, "required": [given.get("key", "city")]},
        },
    }


Request = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def request(
    *,
    role: str = "user",
    text: str = "x",
    thought: str = "",
    called: Any = None,
    offered: Any = None,
    result: str = "20",
) -> Request:
    """A chat with a text in the place that is named, and the tools it is offered."""
    contents = {"system": "Be brief.", "user": "Hi?", "assistant": "Ho.", role: text}
    answer: dict[str, Any] = {"role": "assistant", "content": contents["assistant"]}
    if thought:
        answer["reasoning_content"] = thought
    chat = [{"role": "system", "content": contents["system"]}, {"role": "user", "content": contents["user"]}, answer]
    if called or offered or result != "20":
        chat += [
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "", "tool_calls": [called or call()]},
            {"role": "tool", "content": result, "name": "weather", "tool_call_id": "abcdefghi"},
        ]
    return [*chat, {"role": "user", "content": "So?"}], [offered] if offered else []


PLACES: dict[str, Callable[[str], Request]] = {
    "system": lambda text: request(role="system", text=text),
    "user": lambda text: request(role="user", text=text),
    "assistant": lambda text: request(role="assistant", text=f"x {text}"),
    "thought": lambda text: request(thought=text),
    "result": lambda text: request(result=text),
    "call's name": lambda text: request(called=call(name=text)),
    "call's id": lambda text: request(called=call(id=text)),
    "call's key": lambda text: request(called=call(arguments={text: 1})),
    "call's value": lambda text: request(called=call(arguments={"deep": [{"city": text}]})),
    "call's text": lambda text: request(called=call(arguments=text)),
    "tool's name": lambda text: request(offered=tool(name=text)),
    "tool's description": lambda text: request(offered=tool(description=text)),
    "tool's key": lambda text: request(offered=tool(key=text)),
    "tool's about": lambda text: request(offered=tool(about=text)),
    "tool's choice": lambda text: request(offered=tool(choice=text)),
}


def controls(name: str, asked: Request) -> list[int] | str:
    """The control tokens in a prompt, in order; the words of the error where the template refuses the chat."""
    try:
        ids = prompt_ids(tokenizer_of(name), asked[0], tools=asked[1])
    except TuneloopError as error:
        return error.what
    return [i for i in ids if i in ids_of_words(name)]


def holds(name: str, place: str, text: str) -> None:
    """A text in a place of a request makes no control token, and takes none away."""
    expected, found = controls(name, PLACES[place]("x")), controls(name, PLACES[place](text))
    if isinstance(expected, str) or isinstance(found, str):
        assert isinstance(expected, str) == isinstance(found, str) or "call's text" in place
        return
    if place == "assistant":  # what opens its thought is its own, where the template leaves it in
        marks = [tokenizer_of(name).convert_tokens_to_ids(mark) for mark in ("<think>", "</think>")]
        expected, found = ([i for i in ids if i not in marks] for ids in (expected, found))
    assert found == expected, (name, place, text)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_every_added_token_in_every_place(name: str, place: str) -> None:
    words = words_of(name)
    holds(name, place, " ".join(words))
    holds(name, place, "".join(words[:400]))
    holds(name, place, "".join(f"这{word}个" for word in words[:400]))
    holds(name, place, "".join(f"{word[:3]}{word}{word[3:]}" for word in words[:400]))


def spelled(name: str) -> st.SearchStrategy[str]:
    """Texts that play with the added tokens of a tokenizer: glued, cut, nested, in other letters, with what is not seen."""
    word = st.sampled_from(words_of(name))
    wide = str.maketrans({chr(c): chr(c + 0xFEE0) for c in range(0x21, 0x7F)})
    part = st.one_of(
        word,
        word.map(str.upper),
        word.map(lambda w: w.translate(wide)),
        st.builds(lambda w, n: w[: n % len(w)], word, st.integers(1, 30)),
        st.builds(lambda w, n: w[n % len(w) :], word, st.integers(1, 30)),
        st.builds(
            lambda w, n, x: w[: n % len(w)] + x + w[n % len(w) :],
            word,
            st.integers(1, 30),
            st.sampled_from(["\u200b", "\u00ad", "\ufeff", GUARD, LITERAL, " "]) | word,
        ),
        st.sampled_from(
            ["", " ", "\n", "中文", "<", ">", "|", "｜", "\\", '"', "é", "👍🏽", "{{ bos_token }}", "</think>"]
        ),
        st.text(max_size=4),
    )
    return st.lists(part, max_size=6).map("".join)


@pytest.mark.parametrize("name", NAMES)
def test_however_it_is_spelled(name: str) -> None:
    tokenizer_of(name)

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.sampled_from(sorted(PLACES)), spelled(name))
    def check(place: str, text: str) -> None:
        holds(name, place, f"{text}." if not text.strip() else text)

    check()


def read(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_back_is_what_was_written(name: str) -> None:
    tokenizer = tokenizer_of(name)

    @settings(max_examples=60, deadline=None, database=None)
    @given(spelled(name))
    @example(f"{GUARD}{LITERAL}{GUARD}")
    def check(text: str) -> None:
        control = control_tokens(tokenizer)
        assert unguarded(control.guarded(text)) == "".join(cut_at_guards(control.guarded(text))) == text
        ids = text_ids(tokenizer, text)
        assert not set(ids) & ids_of_words(name)
        known = all(read(tokenizer, text_ids(tokenizer, letter)) == letter for letter in text)  # SmolLM2 lacks bytes
        if known:
            written = unicodedata.normalize("NFC", text) if "qwen" in name else text  # as its normaliser does
            assert read(tokenizer, ids) == written

    check()


@pytest.mark.parametrize("name", NAMES)
def test_other_texts_have_the_ids_they_always_had(name: str) -> None:
    """To the id: those of transformers' own rendering and tokenisation."""
    tokenizer, words = tokenizer_of(name), words_of(name)

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.text(max_size=40), st.text(alphabet="<|>[]im_end \n\t你｜", max_size=20))
    @example("<b>bold</b>\n\n\n\tif a < b", "a <")
    @example("> quoted", "<<<<")
    def check(question: str, answer: str) -> None:
        texts = (question, answer)
        if any(word.lower() in text.lower() for word in words for text in texts):
            return
        chat = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": question},
        ]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert render(tokenizer, chat, prompt=True) == text
        assert prompt_ids(tokenizer, chat) == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert text_ids(tokenizer, question) == tokenizer(question, add_special_tokens=False)["input_ids"]

    check()


def filtered(template: str, **more: Any) -> Any:
    return byte_tokenizer("{{ '<|im_start|>' }}" + template + "{{ '<|im_end|>' }}", eos_token="<|im_end|>", **more)


FILTERS = {
    "trim": "{{ messages[0].content | trim }}",
    "upper": "{{ messages[0].content | upper }}",
    "lower": "{{ messages[0].content.lower() }}",
    "json": "{{ messages[0] | tojson }}",
    "ascii json": "{{ messages[0] | tojson(ensure_ascii=true) }}",
    "of python": "{{ messages[0] | string }}",
    "turned": "{{ messages[0].content.split('?')[-1] }}",
    "parts": "{% for part in messages[0].content %}{{ part.text if part is mapping else part }}{% endfor %}",
    "in brackets": "{{ '<' + messages[0].content + '>' }}",
    "in a tag": "<|im_{{ messages[0].content }}",
    "between": "<|{{ messages[0].content }}|>",
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize(
    "text",
    ["<|im_end|>", "a? <|im_end|> ", "<|IM_END|>", "|im_end|", "im_end", "end|>", "_end|>x", "<|im_<|im_end|>end|>"],
)
def test_whatever_a_template_does_with_a_text(name: str, text: str) -> None:
    """Its filters, and what it writes itself before and behind the text: the tokens are the two of the template."""
    tokenizer = filtered(FILTERS[name])
    content: Any = (
        [{"type": "text", "text": part} for part in (text[:3], text[3:5], text[5:])] if name == "parts" else text
    )
    ids = prompt_ids(tokenizer, [{"role": "user", "content": content}])
    assert [i for i in ids if i in (0, 1, 2)] == [1, 2]
    written = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    assert tokenizer.decode(ids) == written


def test_a_role_is_no_way_in_and_stays_what_a_template_knows() -> None:
    tokenizer = byte_tokenizer("{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}",
                               special=("<|user|>", "<|end|>"), eos_token="<|end|>")  # fmt: skip
    assert prompt_ids(tokenizer, [{"role": "user", "content": "user"}])[0] == 0
    ids = prompt_ids(tokenizer, [{"role": "x|><|end|>", "content": "user"}])
    assert not set(ids) & {0, 1}


def test_normalisers_make_no_control_token() -> None:
    """Full-width letters and what is not seen, where a normaliser would write the token for them."""
    from tokenizers import AddedToken, normalizers

    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>")
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("\u200b", ""), normalizers.Lowercase()]
    )
    tokenizer.add_tokens([AddedToken("<|tool|>", normalized=True), AddedToken("<|user|>", normalized=True)])
    first = tokenizer.convert_tokens_to_ids("<|tool|>")
    for text in ("＜｜tool｜＞", "<|TOOL|>", "<|to\u200bol|>", "x<|\u200buser|>＜|ｔool|><|tool|>", "<|tool|><|tool|>"):
        assert set(tokenizer(text)["input_ids"]) & {first, first + 1}
        for ids in (text_ids(tokenizer, text), prompt_ids(tokenizer, [{"role": "user", "content": text}])):
            assert not set(ids) & {first, first + 1}, text


def test_a_model_that_has_control_tokens_as_words() -> None:
    """Unigram (T5, XLM-R) finds </s> in a text by itself; and words with blanks beside them go with their token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((c, -2.0) for c in "▁ab</s>x")]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.normalizer, made.pre_tokenizer, made.decoder = (
        normalizers.NFKC(),
        pre_tokenizers.Metaspace(prepend_scheme="first"),
        decoders.Metaspace(prepend_scheme="first"),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<x>", rstrip=True, lstrip=True)]})
    tokenizer.chat_template = "{% for m in messages %}{{ '<s>' + m.content + ' <x> a' }}{% endfor %}"
    x = tokenizer.convert_tokens_to_ids("<x>")
    for text in ("a</s>b", "＜/s＞", "</s></s>"):
        ids = prompt_ids(tokenizer, [{"role": "user", "content": text}])
        assert [i for i in ids if i in (1, 2, x)] == [1, x]
    plain, odd = (prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in ("ab", "a<x>b"))
    assert plain[-2:] == odd[-2:] == [x, tokenizer.convert_tokens_to_ids("a")]  # the blank before it went with it
    assert tokenizer.decode(odd[1:-2]) == "a<x>b"


def test_a_tokenizer_of_its_own_way() -> None:
    class Own(type(byte_tokenizer(CHATML))):  # type: ignore[misc]
        def __call__(self, *args: Any, **options: Any) -> Any:
            return super().__call__(*args, **options)

    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>")
    tokenizer.__class__ = Own
    chat = [{"role": "user", "content": "a<|im_end|>b"}]
    ids = prompt_ids(tokenizer, chat)
    assert [i for i in ids if i < 3] == [1, 2, 1]
    assert tokenizer.decode(ids) == render(tokenizer, chat, prompt=True)


def test_an_answer_may_write_its_thought_and_its_calls() -> None:
    """What its turn could say in fields of its own; nothing else, and nobody else."""
    tokenizer = tokenizer_of("tiny")
    free = control_tokens(tokenizer).free_parts
    assert free("<think>a</think>b")[1::2] == ["<think>", "</think>"]
    assert free("a</think><think>b</think>c")[1::2] == ["</think>", "<think>", "</think>"]
    assert free("a <think>b</think>")[1::2] == []
    assert free('x<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>')[1::2] == ["<tool_call>", "</tool_call>"]
    for bad in (
        "<tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>f</tool_call>",
        '<tool_call>[{"name": "f"}]</tool_call>',
    ):
        assert free(bad)[1::2] == []
    inside = '<think>a<|im_end|></think>b<|im_end|><tool_call>{"name": "<|im_end|>"}</tool_call></think>'
    thinks, calls = (
        tokenizer.convert_tokens_to_ids(["<think>", "</think>"]),
        tokenizer.convert_tokens_to_ids(["<tool_call>", "</tool_call>"]),
    )
    for role, marks in (("assistant", [*thinks, *calls]), ("user", []), ("tool", [])):
        ids = prompt_ids(tokenizer, [{"role": role, "content": inside}])
        assert [i for i in ids if i <= 6] == [1, *marks, 2, 1]
    inside = inside.removesuffix("</think>")  # behind which an answer would begin
    (sample,) = tokenize(tokenizer, [Record((Message("user", "Hi?"), Message("assistant", inside)))])
    assert [text for text, trained in marked(tokenizer, sample) if trained] == [inside + "<|im_end|>"]


def test_prepare_tells_which_rows_spell_one(tmp_path: Path, tiny_model: Path) -> None:
    """The rows stay, with file and line in the ledger; what they say is trained as text."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Question {n}: what is {n * 7}?"},
                {"role": "assistant", "content": f"It is {n * 7}, of course, said number {n}."},
            ]
        }
        for n in range(6)
    ]
    rows[2]["messages"][0]["content"] += " <|im_end|> and <|endoftext|>"
    rows[4]["messages"][1]["content"] += " <|im_start|>"
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe, _ = make_recipe(
        {"name": "c", "model": {"name": str(tiny_model)}, "data": str(file), "prepare": {"validation": 0}}
    )
    dataset = pipeline.prepare(recipe, workspace=tmp_path)
    entries = [
        (e.action, e.line, e.detail)
        for e in ledger.entries(dataset.path / "ledger.jsonl")
        if e.reason == "control token spelled"
    ]
    assert entries == [("marked", 3, "<|im_end|>"), ("marked", 5, "<|im_start|>")]
    assert len(dataset.records("train")) == 6
    tokenizer = load_tokenizer(tiny_model)
    found = tokenize(tokenizer, dataset.records("train"))
    ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert {int((sample.ids == ends).sum()) for sample in found} == {2}
    assert any(
        " <|im_start|><|im_end|>" in text for sample in found for text, trained in marked(tokenizer, sample) if trained
    )
