"""Letters in place of signs, for terminals whose code page has no others."""

from __future__ import annotations

LETTERS = {"✓": "+", "✗": "x", "↻": "~", "–": "-", "…": ".", "·": "."}
"""A sign -> the letter that stands for it; all else that cannot be written becomes a question mark."""


def letters(error: UnicodeError) -> tuple[str, int]:
    """What to write of a text that an encoding cannot hold, and where to go on: a handler for `codecs.register_error`.

    >>> import codecs
    >>> codecs.register_error("letters", letters)
    >>> "✗ bad … 严".encode("ascii", "letters")
    b'x bad . ?'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(LETTERS.get(one, "?") for one in error.object[error.start : error.end]), error.end
