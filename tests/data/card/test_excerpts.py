"""Rows as they are trained: which ones, what is marked, what is left out, and nothing that acts on a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.versions_on_disk import KEY, build, chat, view
from tuneloop.data.card import excerpts


def test_the_trained_tokens_are_those_that_the_training_marks(tmp_path: Path) -> None:
    made = build(tmp_path, [chat(f"question {n}?", f"answer {n}.") for n in range(9)], validation=0)
    shown = excerpts.excerpts(made, KEY, view())
    assert [one["line"] for one in shown] == [1, 3, 5, 7, 9]
    first = shown[0]["parts"][0]
    assert first["runs"] == [
        ("<|im_start|>user\nquestion 0?<|im_end|>\n<|im_start|>assistant\n", False, 0),
        ("answer 0.<|im_end|>", True, 0),
        ("\n", False, 0),
    ]
    assert 0 < first["trained"] < first["tokens"]


def test_rows_that_are_repeated_still_show_their_own_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import versions_on_disk
    from tuneloop.data import arrow
    from tuneloop.data.card import page
    from tuneloop.data.tokens.encode import encode_records
    from tuneloop.data.version import builder
    from tuneloop.recipe.recipe import make_recipe

    made = build(tmp_path, [chat(f"question {n}?", f"answer {n}.") for n in range(5)], validation=0)
    path = tmp_path / "talk.jsonl"
    recipe, _ = make_recipe({"name": "often", "data": {"path": str(path), "repeat": 3}, "prepare": {"validation": 0}})
    tokenizer = versions_on_disk._tokenizer()
    made = builder.build(recipe, tmp_path, lambda records: encode_records(tokenizer, records), KEY)
    page.write(made, KEY, view())
    monkeypatch.setattr(arrow, "BATCH", 2)  # several batches
    shown = excerpts.excerpts(made, KEY, view())
    assert len(shown) == 5
    for one in shown:
        assert f"question {one['line'] - 1}?" in one["parts"][0]["runs"][0][0]


def test_both_answers_of_a_pair_are_shown(tmp_path: Path) -> None:
    pair = {"prompt": "What is the capital?", "chosen": "Paris, of course.", "rejected": "I do not know it."}
    made = build(tmp_path, [pair], validation=0)
    for shown, last in ((excerpts.excerpts(made, KEY, view()), "<|im_end|>"), (excerpts.excerpts(made), "")):
        better, worse = shown[0]["parts"]
        assert (better["name"], worse["name"]) == ("better", "worse")
        assert [text for text, trained, _ in better["runs"] if trained] == [f"Paris, of course.{last}"]
        assert [text for text, trained, _ in worse["runs"] if trained] == [f"I do not know it.{last}"]


def test_without_a_tokenizer_the_turns_are_shown_as_they_stand(tmp_path: Path) -> None:
    row = chat("one?", "1", "two?", "2")
    row["messages"][1]["weight"] = 0
    made = build(tmp_path, [row], validation=0)
    (shown,) = excerpts.excerpts(made)
    assert not shown["rendered"]
    assert [text for text, trained, _ in shown["parts"][0]["runs"] if trained] == ["2"]
    (gone,) = excerpts.excerpts(made, "another tokenizer", view())
    assert not gone["rendered"]


def test_a_label_is_nothing_that_the_model_writes(tmp_path: Path) -> None:
    made = build(tmp_path, [{"text": f"a fine day {n}", "label": "good"} for n in range(3)], validation=0)
    for shown in (excerpts.excerpts(made, KEY, view()), excerpts.excerpts(made)):
        assert shown[0]["label"] == "good"
        assert not any(trained for _, trained, _ in shown[0]["parts"][0]["runs"])


@pytest.mark.parametrize("size", [1, 599, 600, 601, 5000])
def test_what_is_left_out_of_a_long_text_is_counted(size: int) -> None:
    runs = excerpts.shortened([("x" * size, True), ("end", False)])
    assert sum(len(text) + gap for text, _, gap in runs) == size + 3
    assert all(trained for _, trained, _ in runs[:-1])
    assert sum(len(text) for text, _, _ in runs) <= 603


def test_of_many_runs_the_first_and_the_last_are_shown() -> None:
    runs = [(f"{n:3}", n % 2 == 1) for n in range(100)]
    out = excerpts.shortened(runs)
    assert len(out) == excerpts.RUNS
    assert (out[0][0], out[-1][0]) == ("  0", " 99")
    assert sum(len(text) + gap for text, _, gap in out) == 300


def test_nothing_that_acts_on_a_terminal_or_a_page_is_shown() -> None:
    harmful = "\x1b]0;title\x07 \x9b31m \u202e \u2066 \r \x00"
    shown = excerpts.visible(harmful)
    assert shown.isprintable()
    assert "title" in shown
    assert excerpts.visible("好\t好\n👍🏽 e\u0301") == "好\t好\n👍🏽 e\u0301"
