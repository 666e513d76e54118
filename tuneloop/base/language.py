"""The language of everything a person reads: English or Simplified Chinese.

English text stands in the code and is the key; `messages/zh/console.json` holds the Chinese. A test walks the code and
fails when a `t("…")` has no Chinese.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

from tuneloop.base.environment import named, spoken

LANGUAGES = ("en", "zh")
Spoken = TypeVar("Spoken")
_chosen = ""


def use(language: str) -> None:
    """Choose the language of all later output by one of its names; ValueError for a name that `named` does not know.

    Without a call the environment decides (TUNELOOP_LANG, else the locale).
    """
    global _chosen
    if not named(language):
        raise ValueError(f"{language!r} is no language of {', '.join(LANGUAGES)}")
    _chosen = named(language)


@contextmanager
def speaking(language: str) -> Iterator[None]:
    """The language of what is said inside the block; afterwards it is as it was. ValueError as `use` has it.

    >>> with speaking("zh"):
    ...     current()
    'zh'
    """
    global _chosen
    before = _chosen
    use(language)
    try:
        yield
    finally:
        _chosen = before


def in_each(make: Callable[[], Spoken]) -> dict[str, Spoken]:
    """What `make` gives in each language: what a file must hold to be read in another one than it was written in.

    >>> in_each(lambda: t("{n} rows", n=3))
    {'en': '3 rows', 'zh': '3 行'}
    """
    out = {}
    for language in LANGUAGES:
        with speaking(language):
            out[language] = make()
    return out


def current() -> str:
    """The language of what is said now: one of LANGUAGES."""
    return _chosen or named(spoken()) or "en"


def is_passing() -> bool:
    """Whether the language was chosen for this process alone: the environment would have another one."""
    return current() != (named(spoken()) or "en")


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


def listed(names: Iterable[object]) -> str:
    """Names in a row, with the comma of the reader's language.

    >>> listed(["a.csv", "b.csv"])
    'a.csv, b.csv'
    """
    return ("、" if current() == "zh" else ", ").join(map(str, names))


def alternatives(expected: str) -> str:
    """The choices that pydantic lists, in the reader's language.

    >>> alternatives("'off', 'sampled' or 'full'")
    'off, sampled or full'
    """
    choices = expected.replace("'", "")
    return choices.replace(" or ", ", ").replace(", ", "、") if current() == "zh" else choices


def sentences(*texts: str) -> str:
    """Sentences in a row, empty ones left out: Chinese has no blank between them.

    >>> sentences("It is gone.", "", "Pull it again.")
    'It is gone. Pull it again.'
    """
    return ("" if current() == "zh" else " ").join(text for text in texts if text)
