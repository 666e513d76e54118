"""Language identification: by script where a script has one language, else by py3langid.

py3langid (BSD) is a naive Bayes model over byte n-grams (Lui and Baldwin 2012, "langid.py"); the model is in its wheel.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

LENGTH = 1000
"""Characters of a text that are read."""
_SURE = 0.25
"""Confidence below which a text has no language. What py3langid gets wrong in our samples lies below 0.21."""

_OF_SCRIPT = {
    "ko": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af", "th": "\u0e00-\u0e7f", "lo": "\u0e80-\u0eff",
    "my": "\u1000-\u109f", "km": "\u1780-\u17ff", "he": "\u0590-\u05ff", "el": "\u0370-\u03ff\u1f00-\u1fff",
    "hy": "\u0530-\u058f", "ka": "\u10a0-\u10ff", "ta": "\u0b80-\u0bff", "te": "\u0c00-\u0c7f",
    "kn": "\u0c80-\u0cff", "ml": "\u0d00-\u0d7f", "gu": "\u0a80-\u0aff", "pa": "\u0a00-\u0a7f",
    "or": "\u0b00-\u0b7f", "si": "\u0d80-\u0dff", "bo": "\u0f00-\u0fff",
}  # fmt: skip
"""Languages with a script of their own."""
_OF_MODEL = {
    "latin": "af az bs ca cs cy da de en eo es et eu fi fr ga gl hr hu id is it la lt lv ms mt nb nl no pl pt ro sk sl"
             " sq sv sw tl tr uz vi",
    "cyrillic": "be bg kk ky mk mn ru sr tg uk",
    "arabic": "ar fa ku ps ug ur",
    "devanagari": "hi mr ne sa",
    "bengali": "as bn",
}  # fmt: skip
"""Script -> languages that share it."""
KNOWN = frozenset({"zh", "ja", *_OF_SCRIPT, *(code for codes in _OF_MODEL.values() for code in codes.split())})

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff]+")
_LATIN = re.compile(
    "[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff][A-Za-z\u00c0-\u024f\u1e00-\u1eff'\u2019]+"
)
_OTHER = re.compile(
    "(?P<cyrillic>[\u0400-\u052f]+)|(?P<arabic>[\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufeff]+)"
    "|(?P<devanagari>[\u0900-\u097f]+)|(?P<bengali>[\u0980-\u09ff]+)|"
    + "|".join(f"(?P<{code}>[{letters}]+)" for code, letters in _OF_SCRIPT.items())
)
_ANY_OTHER = re.compile("[\u0370-\u1cff\u1f00-\u1fff\u3130-\u318f\uac00-\ud7af\ufb50-\ufdff\ufe70-\ufefe]")
_NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|\S+@\S+|<[^<>\n]{1,60}>|\$[^$\n]{1,300}\$|\\[A-Za-z]+|\{[a-z]+\}",
    re.DOTALL,
)
_MARKS = re.compile(r"[`<@$\\]|://")
_CHARACTERS_A_WORD = 1.5
"""Chinese characters that weigh as much as one word of another script."""
_ENOUGH = 300
"""Characters that the classifier reads: more make it slower and hardly surer."""


def language(text: str) -> str:
    """The language of most of the text, as its ISO 639-1 code; "" where there is too little to tell.

    Code, addresses and tags do not count. Chinese in either script is zh. Only the first 1000 characters are read.

    >>> language("请用 Python 写一个函数"), language("The weather is nice today."), language("こんにちは、世界")
    ('zh', 'en', 'ja')
    >>> language("Как дела? Всё хорошо, спасибо."), language("안녕하세요"), language("1 + 1 = 2")
    ('ru', 'ko', '')
    """
    prose = text[:LENGTH]
    if _MARKS.search(prose):
        prose = _NO_PROSE.sub(" ", prose)
    words: dict[str, list[str]] = {"latin": _LATIN.findall(prose)}
    han = kana = 0
    if not prose.isascii():
        han, kana = (sum(map(len, letters.findall(prose))) for letters in (_HAN, _KANA))
        if _ANY_OTHER.search(prose):
            for run in _OTHER.finditer(prose):
                words.setdefault(run.lastgroup or "", []).append(run[0])
    script, count = max(((name, len(runs)) for name, runs in words.items()), key=lambda pair: pair[1])
    if han + kana and (han + kana) / _CHARACTERS_A_WORD >= count:
        return "ja" if kana > 0.15 * (han + kana) else "zh"
    if not count:
        return ""
    if script in _OF_SCRIPT:
        return script
    # Only the words of that script: names and quotations in another one would count against it.
    guess, sure = _model(script).classify(" ".join(words[script])[:_ENOUGH])
    return _SAME.get(guess, guess) if sure >= _SURE else ""


_SAME = {"nb": "no"}


@cache
def _model(script: str) -> Any:
    """The classifier restricted to the languages of one script; the first call loads it (1 s, 100 MB)."""
    from py3langid.langid import LanguageIdentifier

    base = _full_model()
    known = set(base.labels)
    narrowed = LanguageIdentifier(
        base.nb_ptc, base.nb_pc, base.nb_classes, base.tk_nextmove, base.tk_output, norm_probs=True, tk_row=base.tk_row
    )
    narrowed.set_languages([code for code in _OF_MODEL[script].split() if code in known])
    return narrowed


@cache
def _full_model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
