"""Names of languages, and detection of a text's script."""

from __future__ import annotations

import unicodedata
from collections import Counter

from tuneloop.base.language import t


def script(text: str) -> str:
    """The script of most letters: latin, cyrillic, arabic, han, other; "none" where there are no letters.

    >>> script("naïve 1"), script("Привет"), script("42")
    ('latin', 'cyrillic', 'none')
    """
    seen: Counter[str] = Counter()
    for c in text[:1000]:
        if c.isalpha():
            first = "latin" if c.isascii() else unicodedata.name(c, "OTHER").split(" ", 1)[0].lower()
            seen["han" if first == "cjk" else first if first in ("latin", "cyrillic", "arabic") else "other"] += 1
    return seen.most_common(1)[0][0] if seen else "none"


def name(code: str) -> str:
    """The name of a language or script; an unknown code stays as it is.

    >>> name("zh"), name("latin"), name("xx")
    ('Chinese', 'not sure, Latin letters', 'xx')
    """
    return _names().get(code, code)


def _names() -> dict[str, str]:
    return {
        "zh": t("Chinese"),
        "en": t("English"),
        "ja": t("Japanese"),
        "ko": t("Korean"),
        "de": t("German"),
        "fr": t("French"),
        "es": t("Spanish"),
        "pt": t("Portuguese"),
        "it": t("Italian"),
        "nl": t("Dutch"),
        "ru": t("Russian"),
        "uk": t("Ukrainian"),
        "pl": t("Polish"),
        "cs": t("Czech"),
        "sv": t("Swedish"),
        "da": t("Danish"),
        "no": t("Norwegian"),
        "fi": t("Finnish"),
        "hu": t("Hungarian"),
        "ro": t("Romanian"),
        "el": t("Greek"),
        "tr": t("Turkish"),
        "ar": t("Arabic"),
        "fa": t("Persian"),
        "he": t("Hebrew"),
        "ur": t("Urdu"),
        "hi": t("Hindi"),
        "bn": t("Bengali"),
        "ta": t("Tamil"),
        "th": t("Thai"),
        "vi": t("Vietnamese"),
        "id": t("Indonesian"),
        "ms": t("Malay"),
        "km": t("Khmer"),
        "lo": t("Lao"),
        "my": t("Burmese"),
        "mn": t("Mongolian"),
        "bo": t("Tibetan"),
        "ug": t("Uyghur"),
        "kk": t("Kazakh"),
        "latin": t("not sure, Latin letters"),
        "cyrillic": t("not sure, Cyrillic letters"),
        "arabic": t("not sure, Arabic letters"),
        "han": t("not sure, Chinese characters"),
        "other": t("not sure, other letters"),
        "none": t("no letters"),
    }
