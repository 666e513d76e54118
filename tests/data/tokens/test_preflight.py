from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import TALK, byte_tokenizer
from tuneloop.base.errors import DataError
from tuneloop.base.records import Message, Record
from tuneloop.data.tokens import preflight as looking
from tuneloop.data.tokens.encode import Sample, tokenize
from tuneloop.data.tokens.preflight import leaked, other_template, preflight, stray, thoughtless, unrendered
from tuneloop.data.tokens.samples import Sequences
from tuneloop.data.tokens.templates import CHATML, PLAIN


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


def test_samples_on_the_disk_are_looked_at_as_those_in_a_list(tmp_path: Path) -> None:
    tokenizer = chatml()
    samples = tokenize(tokenizer, records(8))
    assert isinstance(samples, Sequences)
    looked = preflight(tokenizer, samples, 500)
    assert preflight(tokenizer, list(samples), 500) == looked
    assert preflight(tokenizer, samples.write(tmp_path / "s"), 500) == looked
    longest = looked.longest
    for held in (list(samples), samples):
        with pytest.raises(DataError) as caught:
            preflight(tokenizer, held, longest - 1)
        (cause,) = caught.value.causes
        worst = max(samples, key=lambda s: len(s.ids))
        assert (cause.facts["n"], cause.facts["length"], cause.facts["example"]) == (1, longest, worst.record)


def test_labelled_texts_need_no_trained_token() -> None:
    tokenizer = chatml()
    rows = [Record((Message("user", q),), kind="label", label="x") for q, _ in TALK[:4]]
    samples = tokenize(tokenizer, rows)
    assert preflight(tokenizer, samples, 500, rows).label_tokens == 0
    assert codes(tokenizer, samples) == ["TL-DATA-NO-LABEL"], "nobody has said that they are labelled texts"


def test_texts_and_pairs_are_looked_at() -> None:
    tokenizer = chatml()
    rows = [
        Record((Message("assistant", TALK[0][1]),), kind="text"),
        Record(
            (Message("user", "a"), Message("assistant", "b")), kind="preference", rejected=(Message("assistant", "c"),)
        ),
    ]
    looked = preflight(tokenizer, tokenize(tokenizer, rows), 500, rows)
    assert looked.samples == 3
    assert looked.warnings == ()


def test_a_special_token_in_the_text_is_told() -> None:
    tokenizer = chatml()
    rows = records(4)
    assert stray(tokenizer, rows) == []
    rows[1] = Record((Message("user", "What is <|im_end|>?"), Message("assistant", "An end: <|im_end|>.")))
    (said,) = stray(tokenizer, rows)
    assert said.startswith("1 of 4 dialogues looked at have <|im_end|> in their text")


def test_only_some_are_looked_at_and_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chatml()
    rendered = []

    class Counted(looking.ChainWriter):
        def write(self, records: Any) -> Any:
            rendered.extend(records)
            return super().write(records)

    monkeypatch.setattr(looking, "ChainWriter", Counted)
    rows = [
        Record((Message("user", f"Why {n}?"), Message("assistant", "So <|im_end|>.", reasoning="Because.")))
        for n in range(1000)
    ]
    (said,) = unrendered(tokenizer, rows)
    assert said.startswith(
        f"of {looking.RENDERED} dialogues with thoughts or tools that were looked at, {len(rendered)} "
    )
    assert len(rendered) == looking.RENDERED < len(rows)
    monkeypatch.setattr(looking, "LOOKED", 10)
    rows = [Record((Message("user", f"Why {n}?"), Message("assistant", "So <|im_end|>."))) for n in range(40)]
    told = preflight(tokenizer, tokenize(tokenizer, rows), 500, rows).warnings
    assert any(w.startswith("10 of 10 dialogues looked at have <|im_end|>") for w in told)
    seen = looking._spread(range(40), 10)  # type: ignore[arg-type]
    assert (seen[0], seen[-1], len(set(seen))) == (0, 39, 10)


def test_a_thinking_model_that_meets_no_thought_is_told() -> None:
    tokenizer = chatml()
    assert thoughtless(tokenizer, records(4)) == []
    tokenizer.chat_template = "{# <think> #}" + CHATML
    (said,) = thoughtless(tokenizer, records(4))
    assert "none of 4 dialogues looked at has a thought" in said
    apart = Record((Message("user", "a"), Message("assistant", "b", reasoning="c")))
    inside = Record((Message("user", "a"), Message("assistant", "<think>c</think>b")))
    assert thoughtless(tokenizer, [*records(4), apart]) == thoughtless(tokenizer, [*records(4), inside]) == []
    assert thoughtless(tokenizer, [Record((Message("assistant", "b"),), kind="text")]) == []


def test_an_answer_that_stands_in_its_prompt_is_told() -> None:
    said = "The capital of France is Paris."
    copied = Record((Message("user", f"Repeat: {said}"), Message("assistant", said)))
    choice = Record((Message("user", "Answer positive or negative."), Message("assistant", "positive")))
    assert leaked(records(8)) == []
    assert leaked([choice] * 5) == [], "a choice stands in its question"
    assert leaked([copied, *records(8)]) == [], "one is not most"
    (told,) = leaked([copied] * 3 + [choice])
    assert told.startswith("3 of 3 answers looked at stand word for word")


def test_a_label_that_stands_in_its_text_is_told() -> None:
    def text(content: str, label: str) -> Record:
        return Record((Message("user", content),), kind="label", label=label)

    assert leaked([text("A fine room.", "positive"), text("positively bad", "positive")]) == []
    assert leaked([text("1 star, 1 night", "1")] * 3) == [], "one letter is anywhere"
    (told,) = leaked([text("Label: Positive. A fine room.", "positive")] * 2 + [text("Bad.", "negative")])
    assert told.startswith("2 of 3 texts looked at have their own label")


def test_a_template_that_is_not_the_models_own_is_told(tmp_path: Path) -> None:
    tokenizer = chatml()
    tokenizer.save_pretrained(tmp_path / "own")
    assert other_template(tokenizer, tmp_path / "own") == []
    assert other_template(tokenizer) == [], "no folder is known"
    tokenizer.chat_template = PLAIN
    (said,) = other_template(tokenizer, tmp_path / "own")
    assert said == "the chat template is not the model's own but plain; the model has learned its own"
    tokenizer.chat_template = "{{ messages }}"
    assert "another one" in other_template(tokenizer, tmp_path / "own")[0]


def test_a_base_model_is_told_which_template_it_gets(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from tuneloop.data.tokens.templates import choose_template

    base = chatml()
    base.chat_template = None
    base.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert choose_template(tokenizer, None) == "plain"
    looked = preflight(tokenizer, tokenize(tokenizer, records(4)), 500, records(4))
    assert looked.warnings == ("this model has no chat template of its own and gets the default one, plain",)
    tokenizer.chat_template = "{{ 'somebody chose this' }}"
    assert other_template(tokenizer) == []
