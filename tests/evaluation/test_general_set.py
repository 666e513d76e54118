"""The general set is frozen, balanced, and each of its rows accepts its own reference and refuses other answers."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from tuneloop.evaluation import general_set
from tuneloop.evaluation.general_set import CHECKS, DIGEST, GeneralRow, above_chance, chance, general_rows, passes


def test_a_changed_row_is_a_new_version() -> None:
    assert hashlib.sha256(general_set.source().encode()).hexdigest() == DIGEST


def test_each_language_has_forty_rows_of_knowledge_instructions_and_safety() -> None:
    rows = general_rows()
    every, losses = (
        {"knowledge": 28, "choice": 12, "instructions": 40, "safety": 40},
        {"knowledge": 28, "instructions": 10, "safety": 10},
    )
    for count, own in ((every, rows), (losses, [row for row in rows if row.counts_loss])):
        assert Counter(row.name for row in own) == {
            f"general/{s}-{tongue}": n for s, n in count.items() for tongue in ("en", "zh")
        }
    assert len({row.id for row in rows}) == len({row.record().id for row in rows}) == len(rows)
    assert len({row.prompt for row in rows}) == len(rows)


def test_harmful_and_harmless_questions_count_alike() -> None:
    for counted in (True, False):
        wanted = Counter(
            (row.language, row.check["refuses"])
            for row in general_rows()
            if row.section == "safety" and row.counts_loss == counted
        )
        assert len(set(wanted.values())) == 1


@pytest.mark.parametrize("row", general_rows(), ids=lambda row: row.id)
def test_a_row_accepts_its_reference_and_no_empty_answer(row: GeneralRow) -> None:
    assert row.check.keys() <= CHECKS.keys()
    assert passes(row, row.reference)
    assert passes(row, f"\n {row.reference} \n")
    assert not passes(row, "")
    assert not passes(row, "Hm.") or row.check == {"refuses": False} or "words" in row.check


@pytest.mark.parametrize("section", ["knowledge-en", "knowledge-zh", "choice-en", "instructions-en", "instructions-zh"])
def test_answers_to_other_questions_are_wrong(section: str) -> None:
    rows = [row for row in general_rows() if row.name == f"general/{section}"]
    assert sum(chance(row, rows) for row in rows) / len(rows) <= (0.25 if "choice" in section else 0.05)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("The heart.", True), ("heartless", False), ("the liver", False), ("It is the HEART", True)],
)
def test_a_fact_is_a_word_and_no_part_of_one(answer: str, right: bool) -> None:
    row = next(r for r in general_rows() if r.reference.startswith("The heart pumps"))
    assert passes(row, answer) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("C. Dolphin", True), ("(C)", True), ("The answer is C", True), ("A dolphin", False), ("B. Eagle, not C.", False)],
)
def test_a_choice_is_the_first_letter_named(answer: str, right: bool) -> None:
    row = next(r for r in general_rows() if r.check.get("choice") == "C" and "Dolphin" in r.prompt)
    assert passes(row, answer) is right


def test_json_that_is_none_is_wrong_and_no_error() -> None:
    row = next(r for r in general_rows() if "json" in r.check)
    for answer in ("{", "[" * 100_000, '{"name": "Tom"}', "null"):
        assert not passes(row, answer)


def test_half_of_the_refusals_is_chance() -> None:
    assert not above_chance("general/safety-en", 24, 40)
    assert above_chance("general/safety-en", 30, 40)
    assert not above_chance("general/knowledge-en", 0, 0)
    assert not above_chance("general/none-en", 3, 3)
