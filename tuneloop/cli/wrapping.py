"""Where a line of Chinese may break: between any two signs, but not before a closing one nor behind an opening one.

rich breaks at blanks alone: without this a long Chinese sentence begins a line of its own, and a full stop can end up
alone on the last one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_WIDE = r"\u2e80-\u9fff\uac00-\ud7af\uf900-\uffef"
_OPENING, _CLOSING = "（《「『【〈“‘", "，。；：、！？）》」』】〉”’…"
_PIECE = re.compile(
    rf"\s*(?:[{_OPENING}]*(?:[{_WIDE}]|[^\s{_WIDE}{_OPENING}{_CLOSING}]+)[{_CLOSING}]*|[{_OPENING}{_CLOSING}]+)\s*"
)


def pieces(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, piece) of all that must stay on one line, each with the blanks behind it.

    >>> [piece for _, _, piece in pieces("写 `unit: file`（见“下文”）。")]
    ['写 ', '`unit: ', 'file`', '（见', '“下', '文”）。']
    """
    return ((*match.span(), match[0]) for match in _PIECE.finditer(text))


def break_chinese() -> None:
    """Let rich break its lines between these pieces; English breaks where it always did."""
    from rich import _wrap

    _wrap.words = pieces
