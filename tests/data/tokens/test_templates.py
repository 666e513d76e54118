from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import byte_tokenizer
from tuneloop.base.errors import DataError, ModelError
from tuneloop.data.tokens import compiled, templates
from tuneloop.data.tokens.templates import (
    CHATML,
    GEMMA,
    PLAIN,
    Renderer,
    choose_template,
    encode,
    render,
    stop_ids,
)

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


LONG = [*CHAT, {"role": "assistant", "content": "Then I stopped."}, {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning_content": "z"}]  # fmt: skip
ANSWERS = [2, 4, 6]


def loop(inside: str = "") -> str:
    """A template that writes role and content of each message, and something more inside its loop."""
    return "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}" + inside + "{% endfor %}"


# Templates that write their messages one after the other: all beginnings come from one rendering.
ONWARD = {
    "chatml": CHATML,
    "gemma": GEMMA,
    "plain": PLAIN,
    "what was before": loop("{% if loop.first %}F{% endif %}{{ loop.index0 }}{{ loop['index'] }}"),
    "the first message": "{{ messages[0]['role'] }}{% if messages[0].role == 'system' %}S{% endif %}" + loop(""),
    "what it counted": "{% set ns = namespace(n=0) %}" + loop("{% set ns.n = ns.n + 1 %}{{ ns.n }}"),
    "an end of its own": loop("") + "{{ eos_token }}{% if add_generation_prompt %}[assistant]{% else %}.{% endif %}\n",
    "tools and loops inside": "{% if tools %}{{ tools | tojson }}{% endif %}"
    + loop("{% for c in m['content'] %}{{ c }}{% endfor %}"),
}
# Templates that look ahead, in every way there is: each beginning is rendered by itself.
AHEAD = {
    "loop.last": loop("{% if loop.last %}L{% endif %}"),
    "loop['last']": loop("{% if loop['last'] %}L{% endif %}"),
    "loop.length": loop("{{ loop.length }}"),
    "loop.revindex": loop("{{ loop.revindex0 }}"),
    "loop.nextitem": loop("{% if loop.nextitem is defined %}N{% endif %}"),
    "the loop itself": loop("{% set l = loop %}{{ l.last }}"),
    "the number": "{{ messages | length }}" + loop(""),
    "the last": loop("{{ messages[-1].role }}"),
    "the next": loop("{% if messages[loop.index] is defined %}N{% endif %}"),
    "false is 0": "{{ messages[false]['role'] }}" + loop(""),
    "a part": "{% set rest = messages[1:] %}{% for m in rest %}{{ m['content'] }}{% endfor %}",
    "another name": "{% set all = messages %}" + loop("{{ all | length }}"),
    "a name of its own": "{% set messages = messages %}" + loop(""),
    "two loops": loop("") + loop(""),
    "a condition": "{% for m in messages if m['role'] != 'x' %}{{ m['content'] }}{% endfor %}",
    "or else": "{% for m in messages %}{{ m['content'] }}{% else %}none{% endfor %}",
    "backwards": "{% for m in messages | reverse %}{{ m['content'] }}{% endfor %}",
    "a macro": "{% macro f() %}{{ messages | length }}{% endmacro %}" + loop("{{ f() }}"),
    "the prompt inside": loop("{% if add_generation_prompt %}P{% endif %}"),
    "the prompt before": "{% if add_generation_prompt %}P{% endif %}" + loop(""),
    "an end that counts": "{% set ns = namespace(n=0) %}" + loop("{% set ns.n = ns.n + 1 %}") + "{{ ns.n }}",
    "an end that looks": loop("") + "{{ messages[0].role }}",
    "an end it named": "{% set eos_token = 'E' %}" + loop("") + "{{ eos_token }}",
    "it stops": loop("{% if m['role'] == 'assistant' %}{% break %}{% endif %}"),
    "it skips": "{% for m in messages %}{% if m['role'] == 'user' %}{% continue %}{% endif %}{{ m['content'] }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{{ loop.last }}{% endfor %}",
}


def proven(tokenizer: Any) -> bool:
    return compiled.marked(templates._transformers()._compile_jinja_template, tokenizer.chat_template) is not None


def apart(tokenizer: Any, chat: Any, answers: list[int], tools: Any = None) -> list[tuple[str, str]]:
    """What transformers itself renders, beginning by beginning."""

    def own(part: Any, prompt: bool) -> str:
        return str(tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=prompt, tools=tools))

    return [(own(chat[:at], True), own(chat[: at + 1], False)) for at in answers]


@pytest.mark.parametrize("name", [*ONWARD, *AHEAD])
def test_every_beginning_is_what_it_is_alone(name: str) -> None:
    tokenizer = byte_tokenizer(ONWARD.get(name) or AHEAD[name], eos_token="<|im_end|>", bos_token="<|im_start|>")
    assert proven(tokenizer) == (name in ONWARD)
    for tools in (None, [{"type": "function", "function": {"name": "clock"}}]):
        found = Renderer(tokenizer).turns(LONG, ANSWERS, tools or ())
        assert found == apart(tokenizer, LONG, ANSWERS, tools)
    assert Renderer(tokenizer).turns(LONG, []) == []
    assert Renderer(tokenizer).turns(LONG, [4]) == apart(tokenizer, LONG, [4])


def test_a_message_with_our_mark_in_it_is_rendered_all_the_same() -> None:
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>")
    chat = [{"role": "user", "content": f"a{compiled.MARK}b"}, {"role": "assistant", "content": "c"}]
    assert Renderer(tokenizer).turns(chat, [1]) == apart(tokenizer, chat, [1])


# What a sandbox must not give, and what it gives in its own way: the short cut must change neither.
REACH = [
    "{{ messages[0].items }}", "{{ messages[0].update({'role': 'x'}) }}", "{{ messages.append(1) }}", "{{ ''.__class__ }}",
    "{{ messages[0].__class__ }}", "{{ '{0.__class__}'.format(1) }}", "{{ '{a}'.format_map({'a': 1}) }}",
    "{{ 'a'.upper() + ' b '.strip() + 'c,d'.split(',')[1] }}", "{{ messages[0].nothing is defined }}",
    "{{ messages[0].role.nothing is defined }}", "{{ messages[0]['role'].upper().lower() }}", "{{ messages[0].keys | list }}",
    "{% set ns = namespace(a='x', f='{}'.format) %}{{ ns.a }}{{ ns.f('{0.__class__}') }}{{ ns.b is defined }}",
    "{% set ns = namespace(a=messages[0]) %}{{ ns.a.role }}{{ ns.__dict__ }}", "{% set ns = namespace() %}{{ ns._x }}",
    "{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ loop.cycle('a', 'b') }}{{ loop._iterable }}{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined }}{{ loop.changed(m.role) }}{% endfor %}",
    "{{ messages[0].content.format }}", "{{ strftime_now('%Y') }}", "{{ {'get': 1}.get }}", "{{ {'items': 'x'}.items }}",
]  # fmt: skip


@pytest.mark.parametrize("template", REACH)
def test_the_sandbox_is_the_sandbox(template: str) -> None:
    tokenizer = byte_tokenizer(template, eos_token="<|im_end|>")
    told: list[str] = []
    for way in (
        lambda: tokenizer.apply_chat_template(CHAT, tokenize=False),
        lambda: render(tokenizer, CHAT),
    ):
        try:
            told.append(str(way()))
        except DataError as error:
            told.append(str(error.facts["error"]))
        except Exception as error:
            told.append(" ".join(str(error).split())[:200])
    hex_number = re.compile("0x[0-9a-f]+")
    assert hex_number.sub("", told[0]) == hex_number.sub("", told[1])


def test_what_a_chat_may_hold_is_rendered_as_transformers_does() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}{{ m.content if m.content is defined else 'none' }}{{ m.thinking }}"
        "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{{ c.function.name }}{% endfor %}{% endfor %}"
    )
    tokenizer = byte_tokenizer(template, eos_token="<|im_end|>")
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1.5, "b": None, "c": ["é", True]}}}
    chat: list[dict[str, Any]] = [
        {"role": "user", "content": None},
        {"role": "assistant", "content": "x", "reasoning_content": "why", "tool_calls": [call]},
    ]
    assert Renderer(tokenizer).turns(chat, [1]) == apart(tokenizer, chat, [1])
    assert "why" in render(tokenizer, chat)


def test_of_several_templates_the_one_for_tools_is_taken_with_tools() -> None:
    tokenizer = byte_tokenizer(None, eos_token="<|im_end|>")
    tokenizer.chat_template = {"default": "plain", "tool_use": "tools"}
    assert render(tokenizer, CHAT) == "plain"
    assert render(tokenizer, CHAT, tools=({"name": "clock"},)) == "tools"
    assert Renderer(tokenizer).turns(CHAT, [2], ({"name": "clock"},)) == [("tools", "tools")]


def test_a_tokenizer_with_a_method_of_its_own_is_asked_by_it() -> None:
    class Own(type(byte_tokenizer(CHATML))):  # type: ignore[misc]
        def apply_chat_template(self, chat: Any, **_: Any) -> str:
            return f"{len(chat)} messages"

    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>")
    tokenizer.__class__ = Own
    assert render(tokenizer, CHAT) == "4 messages"
    assert Renderer(tokenizer).turns(CHAT, [2]) == [("2 messages", "3 messages")]


def test_an_answer_without_anything_before_it_is_refused_as_ever() -> None:
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>")
    with pytest.raises(DataError) as caught:
        Renderer(tokenizer).turns([{"role": "assistant", "content": "x"}], [0])
    assert caught.value.code == "TL-DATA-TEMPLATE"


def test_texts_are_encoded_as_the_tokenizer_encodes_them() -> None:
    """Whatever was set on it before: padding and cutting are not of a training text."""
    tokenizer = byte_tokenizer(CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    texts = ["<|im_start|>user\nHi", "a", "a much longer text than the others"]
    expected = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert encode(tokenizer, texts) == expected
    tokenizer(texts, padding=True, truncation=True, max_length=3)
    assert encode(tokenizer, texts) == expected
    tokenizer.split_special_tokens = True
    assert encode(tokenizer, texts) == tokenizer(texts, add_special_tokens=False)["input_ids"] != expected


def test_the_template_of_a_folder(tmp_path: Path) -> None:
    assert templates.template_of(tmp_path) is None
    tokenizer = byte_tokenizer(None, eos_token="<|im_end|>")
    tokenizer.save_pretrained(tmp_path)
    assert templates.template_of(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "a"}', encoding="utf-8")
    assert templates.template_of(tmp_path) == "a"
    several = '{"chat_template": [{"name": "default", "template": "b"}, {"name": "tool_use", "template": "c"}]}'
    (tmp_path / "tokenizer_config.json").write_text(several, encoding="utf-8")
    assert templates.template_of(tmp_path) == "b"
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path)
    assert templates.template_of(tmp_path) == CHATML


def test_ranges_in_ranges_end() -> None:
    """Each alone is within the sandbox's bound; together they would count for hours."""
    tokenizer = chatml()
    tokenizer.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(DataError) as caught:
        render(tokenizer, [{"role": "user", "content": "a"}])
    assert caught.value.code == "TL-DATA-TEMPLATE"
    tokenizer.chat_template = "{% for a in range(99999) %}{% endfor %}{{ range(3) | list }}"
    for _ in range(60):  # what one rendering has counted is no debt of the next
        assert render(tokenizer, [{"role": "user", "content": "a"}]) == "[0, 1, 2]"
