"""The language of everything a person reads: English or Simplified Chinese.

English text stands in the code and is the key; `messages/zh/console.json` holds the Chinese. A test walks the code and
fails when a `t("…")` has no Chinese.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

LANGUAGES = ("en", "zh")
_NAMES = {
    "en": {"en", "eng", "english", "英文", "英语"},
    "zh": {"zh", "cn", "zho", "chi", "chs", "cht", "hans", "hant", "chinese", "zhongwen", "中文", "汉语", "简体中文"},
}
_chosen = ""
_default: Callable[[], str] = lambda: "en"  # noqa: E731 - the room `environment`, a later one, puts its own here


def named(text: str) -> str:
    """The language that a word means, in any case and with any region or encoding behind it; "" for none of ours.

    >>> [named(word) for word in ("zh", "zh_CN.UTF-8", "CN", "Chinese", "en-GB", "fr", "")]
    ['zh', 'zh', 'zh', 'zh', 'en', '', '']
    """
    word = re.split(r"[-_.@]", text.strip().lower())[0]
    return next((language for language, names in _NAMES.items() if word in names), "")


def use(language: str) -> None:
    """Choose the language of all later output by one of its names; ValueError for a name that `named` does not know.

    Without a call the environment decides (TUNELOOP_LANG, else the locale).
    """
    global _chosen
    if not named(language):
        raise ValueError(f"{language!r} is no language of {', '.join(LANGUAGES)}")
    _chosen = named(language)


def default(language: Callable[[], str]) -> None:
    """Who is asked for the language while `use` has chosen none."""
    global _default
    _default = language


def current() -> str:
    """The language of what is said now: one of LANGUAGES."""
    return _chosen or named(_default()) or "en"


def is_passing() -> bool:
    """Whether the language was chosen for this process alone: the environment would have another one."""
    return current() != (named(_default()) or "en")


@cache
def _catalogue(language: str) -> dict[str, str]:
    if language == "en":
        return {}
    path = files("tuneloop").joinpath("messages", language, "console.json")
    loaded: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def t(text: str, **facts: Any) -> str:
    """The text in the chosen language, its {placeholders} filled with `facts`.

    >>> t("{n} rows", n=3)
    '3 rows'
    """
    words = _catalogue(current()).get(text, text)
    return words.format(**facts) if facts else words
