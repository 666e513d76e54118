"""The metrics of an evaluation: pure functions, and `METRICS`, the one table of their names, directions and digits.

They know no model and no file; nothing here asks a network.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

from tuneloop.base.language import t
from tuneloop.base.segmenter import segmenter

UNSPACED = r"\p{Hiragana}\p{Katakana}\u30fc\uff70\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""The inside of a character class of the module regex: scripts that put no blanks between words, Chinese aside."""
MARKS = r"\p{M}\u200c\u200d"
"""The same: what belongs to the letter before it (vowel signs, accents, joiners)."""


def perplexity(loss: float) -> float:
    """exp(loss): of a mean cross entropy in nats a token, how many tokens the model hesitates between on average.

    Source: Jelinek et al. 1977, "Perplexity - a measure of the difficulty of speech recognition tasks".

    >>> perplexity(0.0)
    1.0
    >>> perplexity(1e6)
    inf
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def matches(pattern: str, text: str) -> bool:
    """Whether a regular expression occurs in a text, case ignored. Raises re.error for a broken pattern.

    >>> matches("lumi|露米", "I am LUMI."), matches("^no", "yes, no")
    (True, False)
    """
    return re.search(pattern, text, re.IGNORECASE) is not None


@cache
def _pattern(text: str) -> Any:
    """A pattern of the module regex, which knows scripts and combining marks."""
    return import_module("regex").compile(text)


def words(text: str) -> list[str]:
    """The words ROUGE counts, in lower case: letters and digits with the marks that belong to them.

    Chinese is cut by jieba, and what else is written without blanks (kana, Thai, Lao, Khmer, Burmese) into characters.
    On plain English this is what rouge_score does by itself.

    >>> words("It's Tuneloop 2_0!")
    ['it', 's', 'tuneloop', '2', '0']
    >>> words("我来到北京清华大学 today")
    ['我', '来到', '北京', '清华大学', 'today']
    >>> words("सुबह की कॉफ़ी"), words("お茶"), words("ดื่มชา")
    (['सुबह', 'की', 'कॉफ़ी'], ['お', '茶'], ['ดื่', 'ม', 'ช', 'า'])
    """
    letter = rf"[\p{{L}}\p{{N}}--\p{{Han}}--[{UNSPACED}]]"
    piece = _pattern(rf"(?V1)(\p{{Han}}+)|([{UNSPACED}][{MARKS}]*)|({letter}(?:{letter}|[{MARKS}])*)")
    out: list[str] = []
    # NFC: a letter and its accent are the same word whether they are one character or two.
    for chinese, character, word in piece.findall(unicodedata.normalize("NFC", text)):
        out += segmenter().lcut(chinese) if chinese else [character or word.lower()]
    return out


def tokens(text: str, unspaced: bool) -> str:
    """The tokens BLEU counts, with blanks between them: sacrebleu's "13a", or "zh" for texts written without blanks.

    "zh" cuts Chinese into characters and leaves Western words as 13a has them; characters of the other scripts without
    blanks, which it does not know, are parted here, each with its marks.

    >>> tokens("It's 3.5%, no?", False)
    "It's 3.5 % , no ?"
    >>> tokens("私は AI です。", True), tokens("ดื่มชา", True)
    ('私 は AI で す 。', 'ดื่ ม ช า')
    """
    if unspaced:
        text = _pattern(rf"([\p{{Han}}{UNSPACED}][{MARKS}]*)").sub(r" \1 ", text)
    return str(_tokenizer("zh" if unspaced else "13a")(text))


@cache
def _tokenizer(name: str) -> Any:
    """One of sacrebleu's tokenizers, by the name it has there."""
    return getattr(import_module(f"sacrebleu.tokenizers.tokenizer_{name}"), f"Tokenizer{name.capitalize()}")()


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU, 0-100 (Papineni et al. 2002; sacrebleu, Post 2018, arXiv:1804.08771), one reference each.

    sacrebleu's defaults, but each pair has its own tokenizer: characters where the reference is of a script without
    blanks between words (Chinese, kana, Thai, Lao, Khmer, Burmese), "13a" elsewhere. So a set of several languages is
    scored in each of them. N-gram orders that no answer is long enough for are left out, so that right answers of one
    word score 100 and not 0. Raises ValueError for no pairs or lists of unequal length.

    >>> round(bleu(["the cat sat on the mat"], ["the cat sat on the mat"]), 6)
    100.0
    >>> round(bleu(["今天天气很好"], ["今天天气不好"]), 1)
    53.7
    >>> bleu([""], ["the cat"])
    0.0
    """
    _check(hypotheses, references)
    unspaced = [bool(_pattern(rf"[\p{{Han}}{UNSPACED}]").search(reference)) for reference in references]
    answers, wanted = (
        [tokens(*one) for one in zip(texts, unspaced, strict=True)] for texts in (hypotheses, references)
    )
    corpus_bleu = import_module("sacrebleu").corpus_bleu
    # `force` only silences the advice that the texts look tokenized, which they are.
    scored = corpus_bleu(answers, [wanted], tokenize="none", use_effective_order=True, force=True)
    return float(scored.score)


ROUGE = ("rouge1", "rouge2", "rougeL")


def rouge(hypotheses: Sequence[str], references: Sequence[str], kinds: Sequence[str] = ROUGE) -> dict[str, float]:
    """ROUGE-1, -2 and -L F-measure, 0-100, averaged over the pairs (Lin 2004, "ROUGE: a package for automatic
    evaluation of summaries"; rouge_score without stemming). Raises ValueError as `bleu` does.

    >>> {k: round(v, 1) for k, v in rouge(["the cat sat"], ["the cat ran"]).items()}
    {'rouge1': 66.7, 'rouge2': 50.0, 'rougeL': 66.7}
    >>> rouge(["我爱北京"], ["我爱北京"])["rougeL"]
    100.0
    """
    _check(hypotheses, references)
    scorer = import_module("rouge_score.rouge_scorer").RougeScorer(list(kinds), tokenizer=_Tokenizer())
    scores = [scorer.score(reference, answer) for answer, reference in zip(hypotheses, references, strict=True)]
    return {kind: 100.0 * math.fsum(s[kind].fmeasure for s in scores) / len(scores) for kind in kinds}


class _Tokenizer:
    """What rouge_score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses but {len(references)} references")
    if not references:
        raise ValueError("no pairs to score")


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Texts of one class, and how well they are told from the others."""

    texts: int
    precision: float
    recall: float
    f1: float


def accuracy(matrix: Sequence[Sequence[int]]) -> float | None:
    """Share of right answers in a confusion matrix (row: class, column: answer); None of no texts.

    >>> accuracy([[1, 1], [0, 1]]), accuracy([[0, 0], [0, 0]])
    (0.6666666666666666, None)
    """
    total = sum(map(sum, matrix))
    return sum(row[k] for k, row in enumerate(matrix)) / total if total else None


def by_class(matrix: Sequence[Sequence[int]]) -> list[ClassScore]:
    """Precision, recall and F1 of each class; 0 where a quotient has nothing below its line, as scikit-learn has it.

    >>> [round(c.f1, 3) for c in by_class([[1, 1], [0, 1]])]
    [0.667, 0.667]
    """
    scores = []
    for k, row in enumerate(matrix):
        right, texts, answers = row[k], sum(row), sum(other[k] for other in matrix)
        precision, recall = right / answers if answers else 0.0, right / texts if texts else 0.0
        total = precision + recall
        scores.append(ClassScore(texts, precision, recall, 2 * precision * recall / total if total else 0.0))
    return scores


def macro_f1(matrix: Sequence[Sequence[int]]) -> float | None:
    """Mean F1 of the classes that occur, in the texts or in the answers; None of no texts.

    >>> round(macro_f1([[1, 1], [0, 1]]), 3)
    0.667
    """
    present = [one.f1 for k, one in enumerate(by_class(matrix)) if one.texts or any(row[k] for row in matrix)]
    return sum(present) / len(present) if present else None


Need = Literal["rows", "tokens", "labels", "pairs", "leads", "answers"]
"""What a metric is measured on. rows: the mean loss of held-out rows in nats, float; tokens: the same, where it is a
label token's; labels: a confusion matrix; pairs: by how much the better answer of each pair is ahead, float64 [pairs];
leads: the same, or of judged answers the one lead of the good over the bad; answers: written texts and references."""
ALWAYS: frozenset[Need] = frozenset({"rows", "tokens", "answers"})
"""Metrics of these are listed even where they were not measured; the others where the task has them."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of every table of scores. `digits` are decimals in the report; `measure` takes what `needs` says."""

    label: Callable[[], str]
    """Its name in the reader's language."""
    higher_is_better: bool
    digits: int
    needs: Need
    measure: Callable[..., float | None]


def _rouge(kind: str) -> Callable[[Sequence[str], Sequence[str]], float]:
    return lambda hypotheses, references: rouge(hypotheses, references, [kind])[kind]


METRICS: dict[str, Metric] = {
    "loss": Metric(lambda: t("held-out loss"), False, 3, "rows", lambda loss: loss),
    "accuracy": Metric(lambda: t("accuracy"), True, 3, "labels", accuracy),
    "macro_f1": Metric(lambda: t("macro F1"), True, 3, "labels", macro_f1),
    "perplexity": Metric(lambda: t("perplexity"), False, 1, "tokens", perplexity),
    "preferred": Metric(lambda: t("better answer preferred, % of pairs"), True, 1, "pairs",
                        lambda leads: 100 * float((leads > 0).mean())),
    "margin": Metric(lambda: t("lead of the better answer"), True, 3, "leads", lambda leads: float(leads.mean())),
    "bleu": Metric(lambda: "BLEU", True, 1, "answers", bleu),
    "rouge1": Metric(lambda: "ROUGE-1", True, 1, "answers", _rouge("rouge1")),
    "rouge2": Metric(lambda: "ROUGE-2", True, 1, "answers", _rouge("rouge2")),
    "rougeL": Metric(lambda: "ROUGE-L", True, 1, "answers", _rouge("rougeL")),
}  # fmt: skip
"""The metrics, in the order of all tables. A new one is a line here, and a row of the table in docs/*/files.md."""


def measured(need: Need, *evidence: Any) -> dict[str, float | None]:
    """The metrics of one need, by name; None where evidence is missing (None)."""
    missing = any(piece is None for piece in evidence)
    return {
        name: None if missing else metric.measure(*evidence) for name, metric in METRICS.items() if metric.needs == need
    }
