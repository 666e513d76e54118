"""The language of everything a person reads: English or Simplified Chinese.

English text stands in the code and is the key; `messages/zh/console.json` holds the Chinese. A test walks the code and
fails when a `t("…")` has no Chinese.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

LANGUAGES = ("en", "zh")
_chosen = "en"


def use(language: str) -> None:
    """Choose the language of all later output: "en" or "zh" (anything that starts with zh counts)."""
    global _chosen
    _chosen = "zh" if language.lower().startswith("zh") else "en"


def current() -> str:
    return _chosen


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
    return (_catalogue(_chosen).get(text, text)).format(**facts) if facts else _catalogue(_chosen).get(text, text)
