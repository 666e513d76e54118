"""One page in both languages: a text that differs stands there twice, and the style sheet hides one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from markupsafe import Markup, escape

from tuneloop.base import language
from tuneloop.base.language import LANGUAGES, in_each

TAGS = {"en": "en", "zh": "zh-CN"}
"""A language -> its name in HTML."""


def in_both(make: Callable[[], Any]) -> Any:
    """What `make` gives in English and in Chinese, as one: see `merged`."""
    return merged(*in_each(make).values())


def merged(english: Any, chinese: Any) -> Any:
    """Two versions of one structure: what is equal stands once, each text that differs as HTML with both.

    Raises ValueError where the structures differ.

    >>> merged({"n": 3, "what": ["loss", "a&b"]}, {"n": 3, "what": ["损失", "a&b"]})["what"]
    [Markup('<span lang="en">loss</span><span lang="zh-CN">损失</span>'), 'a&b']
    """
    if english == chinese:
        return english
    if isinstance(english, str) and isinstance(chinese, str):
        pair = zip(LANGUAGES, (english, chinese), strict=True)
        return Markup("").join(Markup('<span lang="{}">{}</span>').format(TAGS[name], text) for name, text in pair)
    if isinstance(english, dict) and isinstance(chinese, dict) and english.keys() == chinese.keys():
        return {key: merged(english[key], chinese[key]) for key in english}
    if isinstance(english, list | tuple) and isinstance(chinese, list | tuple):
        return type(english)(merged(a, b) for a, b in zip(english, chinese, strict=True))
    if is_dataclass(english) and type(english) is type(chinese):
        return {f.name: merged(getattr(english, f.name), getattr(chinese, f.name)) for f in fields(english)}
    raise ValueError(f"{str(english)[:80]} and {str(chinese)[:80]} are no two versions of one text")


def words(text: str, **facts: Any) -> Any:
    """`t` in both languages, as HTML; facts are escaped, and may be HTML in both languages themselves.

    >>> str(words("wanted: {bounds}", bounds="<3"))
    '<span lang="en">wanted: &lt;3</span><span lang="zh-CN">要求：&lt;3</span>'
    """
    return in_both(lambda: escape(language.t(text)).format(**facts) if facts else escape(language.t(text)))
