"""Two answers to one question with the words marked that only one of them has."""

from __future__ import annotations

import difflib
import unicodedata

from markupsafe import Markup, escape

from tuneloop.evaluation import overlap

LONGEST = 20_000
"""Characters of an answer that a page shows; evaluation.json holds all."""
WORDS = 400
"""Words of an answer that are compared; what comes later is not marked."""
COMMON = 0.2
"""Answers with a smaller share of common words have nothing marked: all of it would be."""

Span = tuple[int, int]


def bounded(text: str) -> tuple[str, int]:
    """The text as far as a page shows it, and how many characters were left out.

    >>> bounded("short"), bounded("x" * 20_007)[1]
    (('short', 0), 7)
    """
    return text[:LONGEST], max(0, len(text) - LONGEST)


def marked_words(before: str, after: str) -> tuple[Markup, Markup]:
    """Both texts, escaped, with what only the first has in <del> and what only the second has in <ins>.

    Words are those of ROUGE (`overlap.words`), so Chinese is compared word by word, too; case does not count.

    >>> marked_words("I am a model.", "I am a <cat>.")
    (Markup('I am a <del>model</del>.'), Markup('I am a &lt;<ins>cat</ins>&gt;.'))
    >>> marked_words("我来到北京", "我来到上海")[1]
    Markup('我来到<ins>上海</ins>')
    """
    before, after = (unicodedata.normalize("NFC", text) for text in (before, after))
    first, last = _words(before), _words(after)
    lists = [word for word, _ in first], [word for word, _ in last]
    matcher = difflib.SequenceMatcher(None, *lists, autojunk=False)
    if not (first and last) or matcher.ratio() < COMMON:
        return escape(before), escape(after)
    changes = [change for change in matcher.get_opcodes() if change[0] != "equal"]
    gone = [(first[i][1][0], first[j - 1][1][1]) for _, i, j, _, _ in changes if j > i]
    new = [(last[i][1][0], last[j - 1][1][1]) for _, _, _, i, j in changes if j > i]
    return _tagged(before, gone, "del"), _tagged(after, new, "ins")


def _words(text: str) -> list[tuple[str, Span]]:
    """The first words of a text in lower case, and where each of them stands."""
    lower = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)
    out: list[tuple[str, Span]] = []
    end = 0
    for word in overlap.words(text[: 8 * WORDS])[:WORDS]:
        start = lower.find(word.lower(), end)
        if start >= 0:
            end = start + len(word)
            out.append((word, (start, end)))
    return out


def _tagged(text: str, spans: list[Span], tag: str) -> Markup:
    out, end = Markup(""), 0
    for start, stop in spans:
        out += escape(text[end:start]) + Markup(f"<{tag}>{{}}</{tag}>").format(text[start:stop])
        end = stop
    return out + escape(text[end:])
