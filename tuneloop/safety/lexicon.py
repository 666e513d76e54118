"""Words that a text should be looked at for: pornography, abuse, spam, weapons, and lists of your own.

The shipped lists, their sources and licences: `lexicons/README.md`. They are for marking training data, so words that
are as often harmless (of the body, of illness, of the news) are not in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from ahocorasick_rs import AhoCorasick, MatchKind

from tuneloop.base.errors import DataError
from tuneloop.safety.normalise import fold
from tuneloop.safety.span import Span, disjoint

_ALLOWED = ""  # the kind of a phrase that makes a word inside it harmless


def _entries(text: str, kind: str) -> Iterator[tuple[str, str]]:
    """(folded word, kind) of a list: one word a line, # a comment, ! a phrase that makes words in it harmless."""
    for line in text.splitlines():
        word = line.strip().rstrip(",，").strip()
        if word and not word.startswith("#"):
            allowed = word.startswith("!")
            folded = " ".join(fold(word.removeprefix("!")).text.split())
            if len(folded) > 1:  # one character alone says nothing: 性 stands in every fourth counselling turn
                yield folded, _ALLOWED if allowed else kind


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        entries = list(_entries(path.read_text(encoding="utf-8-sig"), path.name.split(".")[0]))
    except (OSError, UnicodeError) as error:
        raise DataError("TL-DATA-LEXICON", where=str(path), error=error) from error
    if not any(kind != _ALLOWED for _, kind in entries):
        raise DataError("TL-DATA-LEXICON", where=str(path), error="no word of two characters or more")
    return entries


def _latin(char: str) -> bool:
    """A letter or digit of a script that writes words apart; Chinese, Japanese and Korean ones are not."""
    return char.isalnum() and char < "\u2e80"


class Lexicon:
    """Words by kind, searched for all at once (Aho-Corasick over the folded text)."""

    def __init__(self, entries: Sequence[tuple[str, str]]) -> None:
        """`entries` are (folded word, kind); the first kind of a word counts."""
        words: dict[str, str] = {}
        for word, kind in entries:
            words.setdefault(word, kind)
        self._kinds = list(words.values())
        self._automaton = AhoCorasick(list(words), matchkind=MatchKind.Standard)

    @classmethod
    def load(cls, paths: Sequence[str | Path] = (), *, packaged: bool = True) -> Lexicon:
        """The lists at `paths`, whose words are of the kind that the file is named, and the shipped ones.

        A list is UTF-8, one word a line. Raises DataError TL-DATA-LEXICON for one that cannot be read or has no word.
        """
        entries = [word for path in paths for word in _read(Path(path))]
        if packaged:
            for file in sorted(files("tuneloop").joinpath("safety", "lexicons").iterdir(), key=lambda i: i.name):
                if file.name.endswith(".txt"):
                    entries += _entries(file.read_text(encoding="utf-8"), file.name.split(".")[0])
        return cls(entries)

    def __len__(self) -> int:
        return sum(kind != _ALLOWED for kind in self._kinds)

    def find(self, text: str) -> list[Span]:
        """The words in `text`, in order, none overlapping, the longest where several begin.

        A Latin word counts only as a whole word, a Chinese one anywhere; none that touches an allowed phrase.

        >>> [(s.kind, s.text) for s in Lexicon.load().find("代开发票，Ｆuck! 路口交通")]
        [('ads', '代开发票'), ('profanity', 'Ｆuck')]
        """
        folded = fold(text)
        hits = []
        for n, start, end in self._automaton.find_matches_as_indexes(folded.text, overlapping=True):
            kind = self._kinds[n]
            if kind == _ALLOWED or _at_word_bounds(folded.text, start, end):
                hits.append((int(kind != _ALLOWED), start, end, kind))
        spans = []
        for start, end, kind in disjoint(hits):
            if kind != _ALLOWED:
                start, end = folded.original(start, end)
                spans.append(Span(kind, start, end, text[start:end]))
        return spans


def _at_word_bounds(text: str, start: int, end: int) -> bool:
    if _latin(text[start]) and start and _latin(text[start - 1]):
        return False
    return not (_latin(text[end - 1]) and end < len(text) and _latin(text[end]))
