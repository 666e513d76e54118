from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.conftest import TALK, byte_tokenizer
from tuneloop.data.preflight import preflight
from tuneloop.data.templates import CHATML
from tuneloop.data.tokens import Sample, tokenize
from tuneloop.errors import DataError
from tuneloop.records import Message, Record


def records(n: int) -> list[Record]:
    return [Record((Message("user", q), Message("assistant", a))) for q, a in TALK[:n]]


def chatml(**named: str) -> Any:
    return byte_tokenizer(CHATML, **({"eos_token": "<|im_end|>"} | named))


def codes(tokenizer: Any, samples: Sequence[Sample], budget: int = 500) -> list[str]:
    with pytest.raises(DataError) as caught:
        preflight(tokenizer, samples, budget)
    assert caught.value.code == "TL-DATA-PREFLIGHT"
    for cause in caught.value.causes:
        assert cause.code in {"TL-DATA-NO-LABEL", "TL-DATA-NO-END", "TL-DATA-DOUBLE-BOS", "TL-DATA-TOO-LONG"}
        assert str(cause.facts["n"]) in cause.what, "says how many"
    return [c.code for c in caught.value.causes]


def test_what_is_right_is_counted_and_shown() -> None:
    tokenizer = chatml()
    samples = tokenize(tokenizer, records(8))
    looked = preflight(tokenizer, samples, 500)
    assert looked.samples == 8
    assert looked.tokens == sum(len(s.ids) for s in samples)
    assert looked.label_tokens == sum(s.labels for s in samples)
    assert looked.longest == max(len(s.ids) for s in samples)
    assert next(text for text, trained in looked.sample if trained) in {f"{a}<|im_end|>" for _, a in TALK}


def test_pad_and_bos_may_be_any_other_special_token() -> None:
    """pad is eos (SmolLM2), bos opens each turn (ChatML of Qwen and SmolLM2): both are right."""
    for named in (
        {"pad_token": "<|im_end|>"},
        {"bos_token": "<|im_start|>"},
        {"bos_token": "<|im_start|>", "pad_token": "<|im_end|>"},
    ):
        tokenizer = chatml(**named)
        samples = tokenize(tokenizer, records(4))
        assert preflight(tokenizer, samples, 500).samples == 4
        assert all(s.ids[np.flatnonzero(s.trained)[-1]] == tokenizer.eos_token_id for s in samples)


def test_an_end_that_stops_nothing_is_found() -> None:
    tokenizer = chatml()
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "</end>")
    assert codes(tokenizer, tokenize(tokenizer, records(3))) == ["TL-DATA-NO-END"]


def test_a_doubled_beginning_is_found() -> None:
    tokenizer = chatml(bos_token="<|endoftext|>")
    tokenizer.chat_template = "{{ bos_token + bos_token }}" + CHATML
    assert codes(tokenizer, tokenize(tokenizer, records(3))) == ["TL-DATA-DOUBLE-BOS"]
    tokenizer.chat_template = "{{ bos_token }}" + CHATML
    assert preflight(tokenizer, tokenize(tokenizer, records(3)), 500).samples == 3


def test_all_findings_come_together() -> None:
    tokenizer = chatml()
    good = tokenize(tokenizer, records(3))
    empty = Sample(good[0].ids, np.zeros_like(good[0].trained), "empty", True)
    only_first = Sample(good[0].ids[:1], np.array([True]), "first", True)
    endless = Sample(good[1].ids, good[1].trained, "endless", False)
    longest = max(len(s.ids) for s in good)
    with pytest.raises(DataError) as caught:
        preflight(tokenizer, [*good, empty, only_first, endless], longest - 1)
    found = {c.code: c.facts for c in caught.value.causes}
    assert set(found) == {"TL-DATA-NO-LABEL", "TL-DATA-NO-END", "TL-DATA-TOO-LONG"}
    assert (found["TL-DATA-NO-LABEL"]["n"], found["TL-DATA-NO-LABEL"]["of"]) == (2, 6)
    assert found["TL-DATA-NO-END"]["example"] == "endless"
    assert found["TL-DATA-TOO-LONG"]["length"] == longest


def test_no_sample_is_no_run() -> None:
    with pytest.raises(DataError) as caught:
        preflight(chatml(), [], 500)
    assert caught.value.code == "TL-DATA-NOTHING-LEFT"
    assert "?" not in caught.value.what


WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"place": "Bern"}}}
THINKING = "{% for m in messages %}{{ m.role + ': ' }}{% if m.reasoning_content and loop.last %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


def test_what_a_template_leaves_out_is_told() -> None:
    user, plain = Message("user", "And the weather?"), Message("assistant", "Sunny.")
    called = Message("assistant", "Let me look.", tool_calls=(CALL,))
    every = [
        Record((user, plain)),
        Record((user, Message("assistant", "Sunny.", reasoning="I look out of the window."))),
        Record((user, called, Message("tool", "sun"), plain), tools=(WEATHER,)),
    ]
    tokenizer = chatml()
    looked = preflight(tokenizer, tokenize(tokenizer, every), 500, every)
    assert len(looked.warnings) == 3
    assert all(w.startswith("of 2 dialogues with thoughts or tools that were looked at, 1 ") for w in looked.warnings)
    assert preflight(tokenizer, tokenize(tokenizer, every[:1]), 500, every[:1]).warnings == ()
    tokenizer.chat_template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role + ': ' + (m.reasoning_content or '') "
        "+ m.content }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert preflight(tokenizer, tokenize(tokenizer, every), 500, every).warnings == ()


def test_a_thought_that_only_later_turns_do_not_see_is_not_left_out() -> None:
    tokenizer = chatml()
    tokenizer.chat_template = THINKING
    user, answer = Message("user", "Why?"), Message("assistant", "So.", reasoning="Because of that.")
    records = [Record((user, answer, user, answer))]
    samples = tokenize(tokenizer, records)
    assert len(samples) == 2
    assert preflight(tokenizer, samples, 500, records).warnings == ()


def test_a_thought_behind_a_prompt_that_opens_one_is_not_left_out() -> None:
    tokenizer = chatml()
    tokenizer.chat_template = CHATML.replace(
        "'<|im_start|>assistant\n' }}{% endif", "'<|im_start|>assistant\n<think>\n' }}{% endif"
    )
    records = [Record((Message("user", "Why?"), Message("assistant", "So.", reasoning="Because of that.")))]
    looked = preflight(tokenizer, tokenize(tokenizer, records), 500, records)
    assert looked.warnings == ()
    assert [text for text, trained in looked.sample if trained] == ["Because of that.\n</think>\n\nSo.<|im_end|>"]
