"""What an answer has in common with its reference: BLEU, chrF, ROUGE, exact match and token F1, in any language.

Pure functions of texts; nothing here asks a network.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

from tuneloop.base.segmenter import segmenter

UNSPACED = r"\p{Hiragana}\p{Katakana}\u30fc\uff70\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""The inside of a character class of the module regex: scripts that put no blanks between words, Chinese aside."""
MARKS = r"\p{M}\u200c\u200d"
"""The same: what belongs to the letter before it (vowel signs, accents, joiners)."""


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
    pairs = [tokenized(answer, reference) for answer, reference in zip(hypotheses, references, strict=True)]
    answers, wanted = ([pair[k] for pair in pairs] for k in (0, 1))
    corpus_bleu = import_module("sacrebleu").corpus_bleu
    # `force` only silences the advice that the texts look tokenized, which they are.
    scored = corpus_bleu(answers, [wanted], tokenize="none", use_effective_order=True, force=True)
    return float(scored.score)


def tokenized(answer: str, reference: str) -> tuple[str, str]:
    """The tokens of a pair for BLEU, cut as the script of its reference wants."""
    unspaced = bool(_pattern(rf"[\p{{Han}}{UNSPACED}]").search(reference))
    return tokens(answer, unspaced), tokens(reference, unspaced)


@cache
def bleu_scorer() -> Any:
    """sacrebleu's BLEU of tokenized texts, as `bleu` has it."""
    return import_module("sacrebleu.metrics").BLEU(tokenize="none", effective_order=True, force=True)


@lru_cache(maxsize=2048)
def bleu_counts(answer: str, reference: str) -> tuple[float, ...]:
    """What sacrebleu counts of a pair for BLEU: lengths, n-grams that match, n-grams there are."""
    answer, reference = tokenized(answer, reference)
    counts: tuple[float, ...] = tuple(bleu_scorer()._extract_corpus_statistics([answer], [[reference]])[0])
    return counts


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2, 0-100 (Popovic 2015, "chrF: character n-gram F-score for automatic MT evaluation"; sacrebleu).

    Characters up to six in a row, blanks left out: it needs no words, so it is the same in every language.
    Raises ValueError as `bleu` does.

    >>> round(chrf(["the cat sat"], ["the cat sat"]), 6), chrf([""], ["the cat"])
    (100.0, 0.0)
    >>> round(chrf(["今天天气很好"], ["今天天气不好"]), 1)
    37.8
    """
    _check(hypotheses, references)
    counts = [chrf_counts(answer, reference) for answer, reference in zip(hypotheses, references, strict=True)]
    return float(chrf_scorer()._compute_score_from_stats([sum(column) for column in zip(*counts, strict=True)]).score)


@cache
def chrf_scorer() -> Any:
    """sacrebleu's chrF2."""
    return import_module("sacrebleu.metrics").CHRF()


@lru_cache(maxsize=2048)
def chrf_counts(answer: str, reference: str) -> tuple[float, ...]:
    """What sacrebleu counts of a pair for chrF: n-grams of the answer, of the reference, and of both."""
    counts: tuple[float, ...] = tuple(chrf_scorer()._extract_corpus_statistics([answer], [[reference]])[0])
    return counts


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
    rows = rouge_rows(hypotheses, references, kinds)
    return {kind: 100.0 * math.fsum(scores) / len(scores) for kind, scores in rows.items()}


def rouge_rows(
    hypotheses: Sequence[str], references: Sequence[str], kinds: Sequence[str] = ROUGE
) -> dict[str, list[float]]:
    """The F-measures, 0-1, of each pair."""
    pairs = list(zip(hypotheses, references, strict=True))
    return {kind: [_rouge(kind, answer, reference) for answer, reference in pairs] for kind in kinds}


@lru_cache(maxsize=2048)
def _rouge(kind: str, answer: str, reference: str) -> float:
    if kind == "rougeL":
        wanted, written = words(reference), words(answer)
        if len(wanted) * len(written) > LONG:
            common = common_subsequence(wanted, written)
            scoring = import_module("rouge_score.scoring")
            return float(scoring.fmeasure(common / len(written), common / len(wanted)))
    scorer = import_module("rouge_score.rouge_scorer").RougeScorer([kind], tokenizer=_Tokenizer())
    return float(scorer.score(reference, answer)[kind].fmeasure)


LONG = 1_000_000
"""Words of an answer times words of its reference from which ROUGE-L is computed here: rouge_score fills a table of
that size in Python, which takes minutes and gigabytes for texts of 100 kB."""


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, exact, by bit-parallel additions.

    Source: Hyyro 2004, "Bit-parallel LCS-length computation revisited".

    >>> common_subsequence("the cat sat".split(), "the old cat".split()), common_subsequence([], ["a"])
    (2, 0)
    """
    places: dict[str, int] = {}
    for k, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << k
    every = (1 << len(first)) - 1
    row = every
    for word in second:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & every
    return len(first) - row.bit_count()


class _Tokenizer:
    """What rouge_score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses but {len(references)} references")
    if not references:
        raise ValueError("no pairs to score")


def exact_match(answer: str, reference: str) -> float:
    """100 where an answer is its reference but for case, blanks, width and final punctuation, else 0.

    >>> exact_match(" Paris!", "paris"), exact_match("北 京。", "北京"), exact_match("Paris, TX", "Paris")
    (100.0, 100.0, 0.0)
    """
    return 100.0 * (_normal(answer) == _normal(reference))


def _normal(text: str) -> str:
    """NFKC, in lower case, one blank for many and none beside scripts without blanks, without final punctuation."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    unspaced = rf"[\p{{Han}}{UNSPACED}]"
    text = _pattern(rf"(?<={unspaced}) | (?={unspaced})").sub("", text)
    return text.rstrip(" .,;:!?…。、") or text


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words that an answer and its reference share, 0-100 (Rajpurkar et al. 2016, arXiv:1606.05250, SQuAD).

    On English it is SQuAD's own: in lower case, without punctuation and articles. Chinese is cut by jieba, other
    scripts without blanks into characters, and punctuation is of every script, as MLQA has it (arXiv:1910.07475).

    >>> round(token_f1("The Eiffel Tower, in Paris", "Eiffel Tower"), 1), round(token_f1("我爱北京", "北京"), 1)
    (66.7, 50.0)
    >>> token_f1("", "Paris"), token_f1("!", "?")
    (0.0, 100.0)
    """
    written, wanted = _answer_words(answer), _answer_words(reference)
    if not written or not wanted:
        return 100.0 * (written == wanted)
    common = sum((Counter(written) & Counter(wanted)).values())
    precision, recall = common / len(written), common / len(wanted)
    return 100.0 * (2 * precision * recall / (precision + recall)) if common else 0.0


def _answer_words(text: str) -> list[str]:
    text = _pattern(r"[\p{P}$+<=>^`|~]").sub("", unicodedata.normalize("NFC", text).lower())
    text = _pattern(r"\b(a|an|the)\b").sub(" ", text)
    unspaced = _pattern(rf"[\p{{Han}}{UNSPACED}]")
    return [word for piece in text.split() for word in (words(piece) if unspaced.search(piece) else [piece])]
