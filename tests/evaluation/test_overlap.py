"""BLEU, chrF, ROUGE and F1 are those of the reference libraries, on real rows."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from tests.real import load
from tuneloop.base.segmenter import segmenter
from tuneloop.evaluation import overlap, suite

FILES = {"en": "llamafactory/alpaca_en_demo.json", "zh": "llamafactory/alpaca_zh_demo.json"}


def texts(language: str, rows: int = 40) -> tuple[list[str], list[str]]:
    """References of real rows, and answers that share something with them: half of each, then half of another."""
    every = [suite.reference(r) for r in load(FILES[language])]
    references = [text for text in every if len(text) < 600][:rows]
    others = references[1:] + references[:1]
    return [a[: len(a) // 2] + b[len(b) // 2 :] for a, b in zip(references, others, strict=True)], references


@pytest.mark.parametrize(("language", "cut"), [("en", "13a"), ("zh", "zh")])
def test_bleu_is_sacrebleus(language: str, cut: str) -> None:
    answers, references = texts(language)
    if language == "zh":  # a reference without a Chinese character has the other tokenizer
        chosen = [k for k, text in enumerate(references) if re.search(r"[\u4e00-\u9fff]", text)]
        answers, references = [answers[k] for k in chosen], [references[k] for k in chosen]
    else:
        chosen = [k for k, text in enumerate(references) if not re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", text)]
        answers, references = [answers[k] for k in chosen], [references[k] for k in chosen]
    own = sacrebleu.corpus_bleu(answers, [references], tokenize=cut, use_effective_order=True).score
    assert overlap.bleu(answers, references) == pytest.approx(own, abs=1e-6)
    assert own > 10
    one = sacrebleu.BLEU(tokenize=cut, effective_order=True).sentence_score(answers[0], [references[0]]).score
    summed = [sum(column) for column in zip(*[overlap.bleu_counts(answers[0], references[0])], strict=True)]
    assert overlap.bleu_scorer()._compute_score_from_stats(summed).score == pytest.approx(one, abs=1e-6)


@pytest.mark.parametrize("language", FILES)
def test_chrf_is_sacrebleus(language: str) -> None:
    answers, references = texts(language)
    assert overlap.chrf(answers, references) == pytest.approx(
        sacrebleu.corpus_chrf(answers, [references]).score, abs=1e-6
    )
    for answer, reference in zip(answers[:10], references[:10], strict=True):
        own = sacrebleu.sentence_chrf(answer, [reference]).score
        assert overlap.chrf([answer], [reference]) == pytest.approx(own, abs=1e-6)


class Words:
    """The tokenizer of a reference implementation: what rouge_score does with ASCII, jieba for the rest."""

    def tokenize(self, text: str) -> list[str]:
        out: list[str] = []
        for piece in re.findall(r"[\u4e00-\u9fff]+|[a-z0-9]+", unicodedata.normalize("NFC", text).lower()):
            out += segmenter().lcut(piece) if piece[0] > "z" else [piece]
        return out


@pytest.mark.parametrize("language", FILES)
def test_rouge_is_rouge_scores(language: str) -> None:
    answers, references = texts(language)
    tokenizer = None if language == "en" else Words()
    plain = re.compile(r"[\x00-\x7f\u3000-\u303f\u4e00-\u9fff\uff00-\uff65‘’“”—…]*")
    pairs = [(a, r) for a, r in zip(answers, references, strict=True) if plain.fullmatch(a + r)]
    assert len(pairs) > 20
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=tokenizer)
    scores = [scorer.score(r, a) for a, r in pairs]
    for kind, score in overlap.rouge(*map(list, zip(*pairs, strict=True))).items():  # type: ignore[arg-type]
        assert score == pytest.approx(100 * sum(s[kind].fmeasure for s in scores) / len(scores), abs=1e-6)
        assert score > 10


def test_the_rouge_of_long_texts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, references = texts("zh", 12)
    expected = overlap.rouge_rows(answers, references)["rougeL"]
    monkeypatch.setattr(overlap, "LONG", 0)
    overlap._rouge.cache_clear()
    assert overlap.rouge_rows(answers, references)["rougeL"] == expected
    overlap._rouge.cache_clear()


def squad_f1(answer: str, reference: str) -> float:
    """SQuAD's F1 as its paper and script have it, written anew."""

    def normal(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    got, wanted = normal(answer), normal(reference)
    common = sum((Counter(got) & Counter(wanted)).values())
    if not common:
        return 100.0 * (got == wanted)
    p, r = common / len(got), common / len(wanted)
    return 100 * 2 * p * r / (p + r)


def chinese_f1(answer: str, reference: str) -> float:
    """The F1 of the words of both, cut by jieba, written anew."""

    def normal(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P") and c not in "$+<=>^`|~")
        pieces = [p for piece in text.split() for p in re.findall(r"[\u4e00-\u9fff]+|[^\u4e00-\u9fff]+", piece)]
        return [w for p in pieces for w in (segmenter().lcut(p) if "\u4e00" <= p[0] <= "\u9fff" else [p])]

    got, wanted = normal(answer), normal(reference)
    common = 0
    for word in set(got):
        common += min(got.count(word), wanted.count(word))
    return 100 * 2 * common / (len(got) + len(wanted)) if common else 100.0 * (got == wanted)


def test_token_f1_is_squads_on_english_and_that_of_words_on_chinese() -> None:
    english = [(a, r) for a, r in zip(*texts("en", 80), strict=True) if (a + r).isascii()]
    chinese = [(a, r) for a, r in zip(*texts("zh", 80), strict=True)
               if not re.search(r"[a-z]", (a + r).lower()) and re.search(r"[\u4e00-\u9fff]", r)]  # fmt: skip
    assert min(len(english), len(chinese)) > 20
    for pairs, reference in ((english, squad_f1), (chinese, chinese_f1)):
        scores = [overlap.token_f1(*pair) for pair in pairs]
        assert scores == pytest.approx([reference(*pair) for pair in pairs], abs=1e-6)
        assert len(set(scores)) > 10


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ("Paris", "paris.", True), ("ＰＡＲＩＳ！", "Paris", True), ("Paris  is\nit", "paris is it", True),
        ("北京 。", "北京", True), ("北京", "南京", False), ("3.5", "35", False), ("Paris", "Paris, France", False),
        ("?", "!", False), ("", "", True), ("", "Paris", False), ("Straße", "STRASSE", True), ("お茶 です", "お茶です", True),
    ],
)  # fmt: skip
def test_exact_match_forgives_only_the_outside(answer: str, reference: str, equal: bool) -> None:
    assert overlap.exact_match(answer, reference) == 100.0 * equal
