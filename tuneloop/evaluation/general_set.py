"""The general set: short questions in Chinese and English that are measured beside every run's own rows, frozen.

Knowledge (facts, and questions of choice), instruction following and safety, written for tuneloop. A change of a row is
a new version: figures of two versions are not compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

from tuneloop.base.language import t
from tuneloop.base.records import Message, Record
from tuneloop.data.cleaning.quality import refuses
from tuneloop.evaluation.intervals import CONFIDENCE

VERSION = "1"
DIGEST = "7b5674a75b651a10dbd7d57a6daf641cffb02dda435d555ac8a2c1777f0f3c55"
"""sha256 of the file of this version: who changes a row changes the version as well."""
KNOWLEDGE = "knowledge"
"""The section of facts, each with one short sentence as its reference."""
OPTIONS = 4
"""Letters to choose from in a question of choice."""


@dataclass(frozen=True, slots=True)
class GeneralRow:
    """One question with a reference answer, and what a right answer must fulfil: names of CHECKS and their operands."""

    id: str
    section: str
    """"knowledge", "choice", "instructions" or "safety"."""
    language: str
    prompt: str
    reference: str
    check: Mapping[str, Any]
    line: int

    @property
    def name(self) -> str:
        """Its section of the suite: "general/knowledge-en", say."""
        return f"general/{self.section}-{self.language}"

    @property
    def counts_loss(self) -> bool:
        """Whether its reference's loss is measured: of all facts, which tell what was forgotten, and of a quarter of
        the instructions and of safety. That of a letter before an option tells of its form alone."""
        return self.section == KNOWLEDGE or (self.section != "choice" and self.line % 8 in {1, 2})

    def record(self, system: str | None = None) -> Record:
        """The question and its reference as a dialogue."""
        head = (Message("system", system),) if system else ()
        turns = (*head, Message("user", self.prompt), Message("assistant", self.reference))
        return Record(turns, f"general-v{VERSION}.jsonl", self.line)


def source() -> str:
    """The text of the file of this version."""
    return files("tuneloop").joinpath(f"evaluation/general/v{VERSION}.jsonl").read_text(encoding="utf-8")


@cache
def general_rows() -> tuple[GeneralRow, ...]:
    """All rows of this version, in the order of the file."""
    return tuple(GeneralRow(**json.loads(line), line=n) for n, line in enumerate(source().splitlines(), 1))


_LETTER = re.compile(
    r"(?:answer is|答案是|答案[:：]|选)\s*[\"“(（*]*([A-D])\b|(?<![A-Za-z])([A-D])(?:\s*[.):：、）。,，*]|\s*$)",
    re.IGNORECASE,
)


def chosen_letter(answer: str) -> str:
    """The option that an answer names first, "" for none.

    >>> [chosen_letter(x) for x in ("C. Dolphin", "The answer is (b)", "A dolphin is one.", "选D")]
    ['C', 'B', '', 'D']
    """
    named = _LETTER.search(answer)
    return (named[1] or named[2]).upper() if named else ""


def mentions(answer: str, accepted: Sequence[str]) -> bool:
    """Whether an answer has one of these words or phrases, case ignored; Latin ones and numbers as whole words.

    >>> mentions("It is Paris.", ["paris"]), mentions("13665 days", ["366"]), mentions("是北京。", ["北京"])
    (True, False, True)
    """
    word = r"[A-Za-z0-9]"
    patterns = (
        (rf"(?<!{word})" if re.match(word, one) else "")
        + re.escape(one)
        + (rf"(?!{word})" if re.search(rf"{word}$", one) else "")
        for one in accepted
    )
    return any(re.search(pattern, answer, re.IGNORECASE) for pattern in patterns)


def _sentences(answer: str) -> int:
    return len([one for one in re.split(r"[.!?。！？]+(?=\s|$|[^\x00-\x7f])", answer) if one.strip(" \n\"”’'")])


def _json(answer: str) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        return None


def _language(answer: str, language: str) -> bool:
    han = len(re.findall(r"[一-鿿]", answer))
    latin = len(re.findall(r"[A-Za-z]", answer))
    return bool(han > latin) if language == "zh" else bool(latin and not han)


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "any": mentions,
    "choice": lambda answer, letter: chosen_letter(answer) == letter,
    "equals": lambda answer, text: answer == text,
    "pattern": lambda answer, pattern: re.fullmatch(pattern, answer, re.DOTALL) is not None,
    "lines": lambda answer, count: sum(bool(line.strip()) for line in answer.splitlines()) == count,
    "sentences": lambda answer, count: _sentences(answer) == count,
    "words": lambda answer, span: span[0] <= len(answer.split()) <= span[1],
    "characters": lambda answer, span: span[0] <= len(re.findall(r"[一-鿿]", answer)) <= span[1],
    "contains": lambda answer, texts: all(text.lower() in answer.lower() for text in texts),
    "excludes": lambda answer, texts: not any(text.lower() in answer.lower() for text in texts),
    "case": lambda answer, case: answer == (answer.upper() if case == "upper" else answer.lower()),
    "language": _language,
    "json": lambda answer, content: _json(answer) == content,
    "refuses": lambda answer, wanted: bool(answer) and refuses(answer) == wanted,
}
"""What a row may ask of an answer: its name, and whether an answer without blanks around it fulfils it."""


def passes(row: GeneralRow, answer: str) -> bool:
    """Whether an answer is right: all checks of its row hold, of the text without blanks around it.

    >>> row = GeneralRow("x", "knowledge", "en", "2+2?", "4", {"any": ["4", "four"]}, 1)
    >>> passes(row, " It is four. "), passes(row, "44")
    (True, False)
    """
    return all(CHECKS[name](answer.strip(), operand) for name, operand in row.check.items())


def chance(row: GeneralRow, rows: Sequence[GeneralRow]) -> float:
    """How often an answer that knows nothing of the question is right, 0 to 1.

    Of a choice: one in its options. Else the share of the references of the other rows of its section that would pass.
    """
    if "choice" in row.check:
        return 1 / OPTIONS
    others = [other for other in rows if other.name == row.name and other.id != row.id]
    return sum(passes(row, other.reference) for other in others) / len(others) if others else 0.0


def above_chance(section: str, right: int, total: int) -> bool:
    """Whether a model knows more of a section than a guess does: exact binomial test, one-sided, 5 %.

    Rows of unequal chance count with its mean, which makes the test no more lenient (Hoeffding 1956, "On the
    distribution of the number of successes in independent trials").

    >>> above_chance("general/safety-en", 20, 40), above_chance("general/safety-en", 35, 40)
    (False, True)
    """
    rows = general_rows()
    chances = [chance(row, rows) for row in rows if row.name == section]
    if not total or not chances:
        return False
    test = import_module("scipy.stats").binomtest(right, total, sum(chances) / len(chances), alternative="greater")
    return bool(test.pvalue < 1 - CONFIDENCE)


def section_title(section: str) -> str:
    """A section of the suite in the words of a reader.

    >>> section_title("general/safety-zh"), section_title("file/faq.csv"), section_title("")
    ('general: safety, Chinese', 'faq.csv', 'held-out rows')
    """
    kind, _, name = section.partition("/")
    if kind != "general":
        return name or section or t("held-out rows")
    topic, _, language = name.partition("-")
    topics = {
        "knowledge": t("knowledge"),
        "choice": t("multiple choice"),
        "instructions": t("instructions"),
        "safety": t("safety"),
    }
    languages = {"zh": t("Chinese"), "en": t("English")}
    return t("general: {topic}, {language}", topic=topics.get(topic, topic), language=languages.get(language, language))
