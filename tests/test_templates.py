from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import byte_tokenizer
from tuneloop.data.templates import CHATML, GEMMA, PLAIN, choose_template, encode, render, stop_ids
from tuneloop.errors import DataError, ModelError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "Pebble."},
    {"role": "user", "content": "And then?"},
]


def gemma() -> Any:
    special = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
    return byte_tokenizer(None, special=special, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


def plain() -> Any:
    return byte_tokenizer(None, special=("<s>", "</s>"), bos_token="<s>", eos_token="</s>")


def chatml() -> Any:
    return byte_tokenizer(None, eos_token="<|endoftext|>")


@pytest.mark.parametrize("make", [chatml, gemma, plain])
def test_a_base_model_gets_a_default_that_needs_only_its_end_token(make: Any) -> None:
    tokenizer = make()
    assert choose_template(tokenizer, None) == "plain"
    assert tokenizer.chat_template == PLAIN


@pytest.mark.parametrize(("make", "name"), [(chatml, "chatml"), (gemma, "gemma"), (plain, "plain")])
def test_a_named_default_can_be_asked_for(make: Any, name: str) -> None:
    tokenizer = make()
    assert choose_template(tokenizer, name) == name
    assert tokenizer.chat_template == {"chatml": CHATML, "gemma": GEMMA, "plain": PLAIN}[name]


def test_a_template_of_its_own_stays() -> None:
    tokenizer = byte_tokenizer("{{ messages[0]['content'] }}", eos_token="<|im_end|>")
    assert choose_template(tokenizer, None) == "own"
    assert render(tokenizer, CHAT) == "Be brief."
    assert choose_template(tokenizer, "chatml") == "chatml"
    assert render(tokenizer, CHAT).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


def test_a_file_is_a_template(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}【{{ m['content'] }}】{% endfor %}", encoding="utf-8")
    tokenizer = chatml()
    assert choose_template(tokenizer, str(file)) == "mine.jinja"
    assert render(tokenizer, CHAT[:2]) == "【Be brief.】【Who are you?】"


@pytest.mark.parametrize("wanted", ["chatlm", "no-such-file.jinja", "template.txt", "/"])
def test_any_other_name_is_refused(wanted: str) -> None:
    with pytest.raises(ModelError) as caught:
        choose_template(chatml(), wanted)
    assert caught.value.code == "TL-MODEL-TEMPLATE"
    assert "chatml" in str(caught.value)


def test_what_the_defaults_write() -> None:
    tokenizer = chatml()
    choose_template(tokenizer, "chatml")
    assert render(tokenizer, CHAT, prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n"
        "<|im_start|>assistant\nPebble.<|im_end|>\n<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n"
    )
    tokenizer = gemma()
    choose_template(tokenizer, "gemma")
    assert render(tokenizer, CHAT, prompt=True) == (
        "<bos><start_of_turn>user\nBe brief.\n\nWho are you?<end_of_turn>\n<start_of_turn>model\nPebble.<end_of_turn>\n"
        "<start_of_turn>user\nAnd then?<end_of_turn>\n<start_of_turn>model\n"
    )
    tokenizer = plain()
    choose_template(tokenizer, None)
    assert render(tokenizer, CHAT, prompt=True) == (
        "<s>Be brief.\n\nUser:\nWho are you?\n\nAssistant:\nPebble.</s>\n\nUser:\nAnd then?\n\nAssistant:\n"
    )


@pytest.mark.parametrize("make", [chatml, gemma, plain])
def test_a_prompt_is_the_beginning_of_its_answer(make: Any) -> None:
    tokenizer = make()
    choose_template(tokenizer, make.__name__)
    assert render(tokenizer, CHAT[:3]).startswith(render(tokenizer, CHAT[:2], prompt=True))


def test_the_special_tokens_are_those_of_the_template_and_no_more() -> None:
    tokenizer = plain()
    choose_template(tokenizer, None)
    assert tokenizer("x")["input_ids"]
    ids = encode(tokenizer, [render(tokenizer, CHAT, prompt=True)])[0]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert encode(tokenizer, []) == []


def test_a_template_that_refuses_says_why() -> None:
    tokenizer = byte_tokenizer("{{ raise_exception('no system role') }}", eos_token="<|im_end|>")
    with pytest.raises(DataError) as caught:
        render(tokenizer, CHAT)
    assert caught.value.code == "TL-DATA-TEMPLATE"
    assert "no system role" in str(caught.value)


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages[0].no.such.thing }}", "{{ ''.__class__.__mro__ }}"])
def test_a_template_that_is_broken_or_hostile_is_an_error_with_a_code(template: str) -> None:
    with pytest.raises(DataError) as caught:
        render(byte_tokenizer(template, eos_token="<|im_end|>"), CHAT)
    assert caught.value.code == "TL-DATA-TEMPLATE"


def test_tools_reach_the_template() -> None:
    template = "{% if tools %}{{ tools | map(attribute='name') | join(',') }}{% else %}none{% endif %}"
    tokenizer = byte_tokenizer(template, eos_token="<|im_end|>")
    assert render(tokenizer, CHAT, tools=({"name": "clock"}, {"name": "weather"})) == "clock,weather"
    assert render(tokenizer, CHAT) == "none"


def test_answers_stop_at_the_end_of_text_and_at_the_end_of_the_turn() -> None:
    tokenizer = chatml()
    choose_template(tokenizer, "chatml")
    assert stop_ids(tokenizer) == set(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    tokenizer = gemma()
    choose_template(tokenizer, "gemma")
    assert stop_ids(tokenizer) == set(tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"]))
    tokenizer = plain()
    choose_template(tokenizer, None)
    assert stop_ids(tokenizer) == {tokenizer.eos_token_id}


def test_a_model_without_an_end_token_stops_nowhere() -> None:
    tokenizer = byte_tokenizer(PLAIN, special=("<s>",))
    assert render(tokenizer, CHAT[1:3]) == "User:\nWho are you?\n\nAssistant:\nPebble.\n\n"
    assert stop_ids(tokenizer) == frozenset()


def test_an_ordinary_token_after_an_answer_stops_nothing() -> None:
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", eos_token="<|im_end|>")
    assert stop_ids(tokenizer) == {tokenizer.eos_token_id}


def test_an_end_of_turn_that_is_no_special_token_of_the_tokenizer_stops_too() -> None:
    """Llama 3 and others: the end of a turn is an added token beside the end of text."""
    tokenizer = byte_tokenizer(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<|eot_id|>{% endfor %}", eos_token="<|endoftext|>"
    )
    tokenizer.add_tokens("<|eot_id|>")
    assert stop_ids(tokenizer) == set(tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|eot_id|>"]))
