"""The numbers of an evaluation, as pure functions. They know no model and no file; nothing here asks a network."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib import import_module

from tuneloop.data.cutter import cutter

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
"""The inside of a character class: all Chinese characters (Unicode blocks CJK Unified Ideographs and extensions)."""

_HAN = re.compile(f"[{HAN}]")
_PIECE = re.compile(rf"([{HAN}]+)|([^\W_{HAN}]+)")
_KANA = re.compile("[\u3040-\u30ff]")


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


def is_chinese(text: str) -> bool:
    """Whether a text is mostly Chinese: more Chinese characters than words of other scripts (a kana counts as a word).

    >>> is_chinese("我用 Python 写代码"), is_chinese("the word 你好 means hello"), is_chinese("")
    (True, False, False)
    >>> is_chinese("これはペンです、私の")
    False
    """
    others = sum(1 for _, word in _PIECE.findall(text) if word) + len(_KANA.findall(text))
    return len(_HAN.findall(text)) > others


def matches(pattern: str, text: str) -> bool:
    """Whether a regular expression occurs in a text, case ignored. Raises re.error for a broken pattern.

    >>> matches("lumi|露米", "I am LUMI."), matches("^no", "yes, no")
    (True, False)
    """
    return re.search(pattern, text, re.IGNORECASE) is not None


def words(text: str) -> list[str]:
    """The words ROUGE counts: Chinese cut by jieba, the rest at whatever is no letter or digit, in lower case.

    On plain English this is what rouge_score does by itself.

    >>> words("It's Tuneloop 2_0!")
    ['it', 's', 'tuneloop', '2', '0']
    >>> words("我来到北京清华大学 today")
    ['我', '来到', '北京', '清华大学', 'today']
    """
    out: list[str] = []
    for chinese, word in _PIECE.findall(text):
        out += cutter().lcut(chinese) if chinese else [word.lower()]
    return out


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU, 0-100 (Papineni et al. 2002; sacrebleu, Post 2018, arXiv:1804.08771), one reference each.

    sacrebleu's defaults, with the tokenizer "zh" where the references are mostly Chinese and "13a" elsewhere. N-gram
    orders that no answer is long enough for are left out, so that right answers of one word score 100 and not 0.
    Raises ValueError for no pairs or lists of unequal length.

    >>> round(bleu(["the cat sat on the mat"], ["the cat sat on the mat"]), 6)
    100.0
    >>> round(bleu(["今天天气很好"], ["今天天气不好"]), 1)
    53.7
    >>> bleu([""], ["the cat"])
    0.0
    """
    _check(hypotheses, references)
    tokenizer = "zh" if is_chinese("\n".join(references)) else "13a"
    corpus_bleu = import_module("sacrebleu").corpus_bleu
    # `force` only silences the advice that a text which ends in " ." looks tokenized.
    scored = corpus_bleu(list(hypotheses), [list(references)], tokenize=tokenizer, use_effective_order=True, force=True)
    return float(scored.score)


def rouge(hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L F-measure, 0-100, averaged over the pairs (Lin 2004, "ROUGE: a package for automatic
    evaluation of summaries"; rouge_score without stemming). Raises ValueError as `bleu` does.

    >>> {k: round(v, 1) for k, v in rouge(["the cat sat"], ["the cat ran"]).items()}
    {'rouge1': 66.7, 'rouge2': 50.0, 'rougeL': 66.7}
    >>> rouge(["我爱北京"], ["我爱北京"])["rougeL"]
    100.0
    """
    _check(hypotheses, references)
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = import_module("rouge_score.rouge_scorer").RougeScorer(kinds, tokenizer=_Words())
    scores = [scorer.score(reference, said) for said, reference in zip(hypotheses, references, strict=True)]
    return {kind: 100.0 * math.fsum(s[kind].fmeasure for s in scores) / len(scores) for kind in kinds}


class _Words:
    """What rouge_score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses but {len(references)} references")
    if not references:
        raise ValueError("no pairs to score")
