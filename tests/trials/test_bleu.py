"""BLEU and ROUGE over several languages: tests/cases/06-bleu-mixed-languages, a row a language."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import sacrebleu

from tuneloop.evaluation.metrics import bleu, rouge
from tuneloop.evaluation.overlap import words

CASES = Path(__file__).parents[1] / "cases" / "06-bleu-mixed-languages" / "rows.json"
ROWS: dict[str, dict[str, str]] = json.loads(CASES.read_text(encoding="utf-8"))
ENGLISH = [
    f"The parcel number {i} arrives at the front door of the old house on Monday morning before ten." for i in range(10)
]


@pytest.mark.parametrize("language", ROWS)
def test_right_near_and_wrong_answers_are_told_apart(language: str) -> None:
    reference, near, wrong = (ROWS[language][key] for key in ("reference", "near", "wrong"))
    assert bleu([reference], [reference]) == pytest.approx(100)
    assert 20 < bleu([near], [reference]) < 95
    assert bleu([wrong], [reference]) < 10
    assert rouge([reference], [reference])["rougeL"] == pytest.approx(100)
    assert 50 < rouge([near], [reference])["rougeL"] < 100
    assert rouge([wrong], [reference])["rougeL"] < 50


@pytest.mark.parametrize("language", ROWS)
def test_in_a_mixed_set_every_language_counts(language: str) -> None:
    """Ten English rows that are right, and ten of another language."""
    reference, near, wrong = (ROWS[language][key] for key in ("reference", "near", "wrong"))
    right, close, bad = (
        bleu([*ENGLISH, *[said] * 10], [*ENGLISH, *[reference] * 10]) for said in (reference, near, wrong)
    )
    assert right == pytest.approx(100)
    assert right > close + 1
    assert close > bad + 5


def test_the_case_of_the_issue() -> None:
    """sacrebleu's own "zh" over the whole set says the same, since it leaves English as 13a has it."""
    reference, near, wrong = ([ROWS["zh"][key]] * 10 for key in ("reference", "near", "wrong"))
    for said in (near, wrong):
        whole = sacrebleu.corpus_bleu(
            [*ENGLISH, *said], [[*ENGLISH, *reference]], tokenize="zh", use_effective_order=True
        )
        assert bleu([*ENGLISH, *said], [*ENGLISH, *reference]) == pytest.approx(whole.score)
    assert round(bleu([*ENGLISH, *near], [*ENGLISH, *reference]), 1) == 89.3
    assert round(bleu([*ENGLISH, *wrong], [*ENGLISH, *reference]), 1) == 71.6


def test_one_chinese_word_in_a_set_leaves_the_english_rows_as_they_are() -> None:
    said, wanted = ["The cat's mat, isn't it – no?"], ["The cat's mat, is it not – no?"]
    alone = sacrebleu.corpus_bleu(said, [wanted], tokenize="13a", use_effective_order=True).score
    assert bleu(said, wanted) == pytest.approx(alone)
    assert bleu([*said, "好"], [*wanted, "好"]) == pytest.approx(
        sacrebleu.corpus_bleu([*said, "好"], [[*wanted, "好"]], tokenize="13a", use_effective_order=True).score
    )


@pytest.mark.parametrize("text", [row[key] for row in ROWS.values() for key in row])
def test_no_word_begins_with_a_mark_and_no_mark_is_lost(text: str) -> None:
    found = words(text)
    assert not [word for word in found if unicodedata.category(word[0]).startswith("M")]
    kept = [c for c in unicodedata.normalize("NFC", text).lower() if unicodedata.category(c)[0] in "LMN"]
    assert [c for word in found for c in word if unicodedata.category(c)[0] in "LMN"] == kept


def test_a_letter_and_its_accent_are_one_word_however_they_are_written() -> None:
    assert words("cafe\u0301 naïve") == words("café nai\u0308ve") == ["café", "naïve"]
    assert words("می\u200cخواهم بروم") == ["می\u200cخواهم", "بروم"]
