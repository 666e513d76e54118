"""Words that a text should be looked at for: pornography, abuse, spam, weapons, and lists of your own.

The shipped lists, their sources and licences: `lexicons/README.md`. Words that are as often harmless (of the body, of
illness, of the news) are not in them. A word is found in any disguise that `skeleton` undoes, and with blanks, signs or
digits between its letters where no ordinary text would have them (`gaps`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

from ahocorasick_rs import AhoCorasick, MatchKind

from tuneloop.safety import gaps, glyphs
from tuneloop.safety.normalise import Folded
from tuneloop.safety.skeleton import LetterView, ViewName, shortened, skeleton, views
from tuneloop.safety.span import Span, disjoint
from tuneloop.safety.wordlists import ALLOWED, ListedWord, read_words

_SAME_NUMBER = {**glyphs.CHINESE_DIGITS, **{digit: digit for digit in "0123456789"}}


@dataclass(frozen=True, slots=True)
class _Pattern:
    """A listed word: its letters, after which of them its list has a blank or sign, and its category.

    `view` is the only one in which it counts, None for all; `hidden`: only where something stands between its letters;
    `least`: how often each letter is there at least, where repeated ones are written once.
    """

    letters: str
    parted: frozenset[int]
    category: str
    view: ViewName | None = None
    hidden: bool = False
    least: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """A word, or a harmless phrase, at [start, end) of a base."""

    category: str
    start: int
    end: int


def shipped() -> list[ListedWord]:
    """The words of the lists that come with tuneloop."""
    folder = Path(str(files("tuneloop").joinpath("safety", "lexicons")))
    return [word for path in sorted(folder.glob("*.txt")) for word in read_words(path)]


class Lexicon:
    """Words by category, searched for all at once (Aho-Corasick over the letters of the text)."""

    def __init__(self, words: Sequence[ListedWord]) -> None:
        """The first category of a word counts; a word of one letter says nothing and is left out."""
        patterns: dict[str, dict[tuple[bool, str, bool, tuple[int, ...]], _Pattern]] = {}
        self._words: set[str] = set()
        for word in words:
            for number, (classes, pattern) in enumerate(_patterns(word)):
                key = (pattern.category == ALLOWED, pattern.letters, pattern.hidden, pattern.least)
                patterns.setdefault(classes, {}).setdefault(key, pattern)
                if number == 0 and pattern.category != ALLOWED:
                    self._words.add(pattern.letters)
        self._patterns = [list(same.values()) for same in patterns.values()]
        self._automaton = AhoCorasick(list(patterns), matchkind=MatchKind.Standard)
        self._begun = {word[:k] for word in patterns for k in range(1, len(word))}
        # A Latin word counts where no letter follows, and so may one of two letters: it waits for what follows.
        self._begun |= {word for word in patterns if gaps.is_latin(word[-1]) or len(word) == 2}
        self._longest = max(map(len, self._begun), default=0)

    @classmethod
    def load(cls, paths: Sequence[str | Path] = (), *, packaged: bool = True) -> Lexicon:
        """The lists at `paths` (`wordlists.read_words`), and the shipped ones.

        Raises DataError TL-DATA-LEXICON for a list that cannot be read or has no word.
        """
        words = [word for path in paths for word in read_words(Path(path))]
        return cls(words + shipped() if packaged else words)

    def __len__(self) -> int:
        return len(self._words)

    @property
    def categories(self) -> list[str]:
        """The categories of the words, sorted."""
        return sorted({word.category for same in self._patterns for word in same} - {ALLOWED})

    def find(self, text: str) -> list[Span]:
        """The words in `text`, in order, none overlapping, the longest where several begin.

        A Latin word counts only as a whole word, a Chinese one anywhere; none that touches an allowed phrase.

        >>> [(s.kind, s.text) for s in Lexicon.load().find("代*开*发*票，Ｆuck! 路口交通")]
        [('ads', '代*开*发*票'), ('profanity', 'Ｆuck')]
        """
        folded = skeleton(text)
        return [span_of(folded, text, hit) for hit in without_overlap(self.hits(folded.text))]

    def hits(self, base: str) -> list[Hit]:
        """All words and harmless phrases in a base, in no order; they may overlap."""
        hits: set[Hit] = set()
        for view in views(base):
            matches = self._automaton.find_matches_as_indexes(view.letters, overlapping=True)
            for number, start, end in matches:
                for word in self._patterns[number]:
                    if _is_word(base, view, start, end, word):
                        hits.add(Hit(word.category, view.first[start], view.last[end - 1] + 1))
                        break
        return list(hits)

    def begun(self, base: str) -> int:
        """Where a word begins that the end of a base may have cut; the base's length where none does."""
        at = len(base)
        for view in views(base):
            if view.letters and len(base) - view.last[-1] - 1 <= gaps.LONGEST:
                for length in range(min(self._longest, len(view.letters)), 0, -1):
                    if view.letters[-length:] in self._begun:
                        at = min(at, view.first[-length])
                        break
        return at


def _patterns(word: ListedWord) -> Iterator[tuple[str, _Pattern]]:
    """The ways to look for a word, each with the classes of its letters: as it is listed; as Taiwan says it; with stars
    for its vowels or for all but its ends; and, where digits are a part of it, without them, if other digits stand
    between the rest."""
    base = " ".join(skeleton(word.text).text.split())
    view = views(base)[0]
    if len(view.letters) < 2:
        return
    letters = "".join(base[k] for k in view.first)
    yield view.letters, _Pattern(letters, _parted(view.first), word.category)
    if word.category == ALLOWED:
        return
    if once := shortened(view):
        yield once.letters, _once(base, once, word.category)
    if not word.text.isascii():
        abroad = " ".join(skeleton(glyphs.in_taiwan(word.text)).text.split())
        other = views(abroad)[0]
        if other.letters != view.letters:
            yield other.letters, _Pattern("".join(abroad[k] for k in other.first), _parted(other.first), word.category)
    if len(letters) > 3 and letters.isascii() and letters.isalpha() and len(letters) == len(base):
        for starred in _starred(letters):
            classes = "".join("*" if one == "*" else own for one, own in zip(starred, view.letters, strict=True))
            yield classes, _Pattern(starred, frozenset(), word.category, "stars")
    bare = next((view for view in views(base) if view.name == "digits"), None)
    if bare is not None and len(bare.letters) > 2:
        rest = "".join(base[k] for k in bare.first)
        yield bare.letters, _Pattern(rest, _parted(bare.first), word.category, "digits", hidden=True)


def _once(base: str, view: LetterView, category: str) -> _Pattern:
    """A word whose repeated letters are written once."""
    parted = frozenset(k for k in range(len(view.letters) - 1) if view.first[k + 1] > view.last[k] + 1)
    letters = "".join(base[k] for k in view.first)
    return _Pattern(letters, parted, category, least=tuple(view.counts or ()))


def _parted(places: Sequence[int]) -> frozenset[int]:
    return frozenset(k for k, (one, other) in enumerate(pairwise(places)) if other > one + 1)


def _starred(word: str) -> set[str]:
    """A word as it is printed where it may not be printed.

    >>> sorted(_starred("shit"))
    ['s**t', 'sh*t']
    """
    inner = word[1:-1]
    vowels = [k for k, char in enumerate(inner) if char in "aeiouy"]
    masked = {"*" * len(inner), "".join("*" if char in "aeiouy" else char for char in inner)}
    masked |= {inner[:k] + "*" + inner[k + 1 :] for k in vowels}
    return {word[0] + one + word[-1] for one in masked if "*" in one}


def without_overlap(hits: Sequence[Hit]) -> list[Hit]:
    """Of the words those that touch no harmless phrase, the longer where two overlap; in order."""
    ranked = ((int(hit.category != ALLOWED), hit.start, hit.end, hit.category) for hit in hits)
    return [Hit(category, start, end) for start, end, category in disjoint(ranked) if category != ALLOWED]


def span_of(folded: Folded, text: str, hit: Hit) -> Span:
    """The place of a hit in the original text."""
    start, end = folded.original(hit.start, hit.end)
    return Span(hit.category, start, end, text[start:end])


def _is_word(base: str, view: LetterView, start: int, end: int, word: _Pattern) -> bool:
    """Whether the letters at [start, end) of a view, which are in the classes of the word's, are the word."""
    first, last = view.first[start:end], view.last[start:end]
    seen = [base[k] for k in first]
    if word.category == ALLOWED:
        return seen == list(word.letters) and gaps.as_written(base, first, last, word.parted)
    if word.view not in (None, view.name) or not _often_enough(view, start, end, word.least):
        return False
    if any(a != b for a, b in zip(seen, word.letters, strict=True)) and not _passes(seen, word.letters):
        return False
    if not _at_bounds(base, first[0], last[-1] + 1, word.letters, view.name):
        return False
    return gaps.as_disguise(base, first, last, word.parted, hidden=word.hidden)


def _often_enough(view: LetterView, start: int, end: int, least: Sequence[int]) -> bool:
    """Whether each letter is there as often as in the word, its repetitions close to each other."""
    if view.counts is None:
        return not least
    counts = view.counts[start:end]
    if any(view.last[k] - view.first[k] - view.counts[k] >= gaps.LONGEST for k in range(start, end)):
        return False
    return not least or all(one >= other for one, other in zip(counts, least, strict=True))


def _passes(seen: Sequence[str], letters: str) -> bool:
    """Whether each letter that is seen may stand for the word's: a digit or sign for a Latin one, a numeral for a
    numeral; never so many that no letter is left."""
    latin = true = 0
    for one, letter in zip(seen, letters, strict=True):
        if letter.isascii() and letter.isalpha():
            latin += 1
            true += one.isascii() and one.isalpha()
            if not one.isascii() and one not in glyphs.LETTER_OF_SIGN:
                return False
        elif one != letter:
            if letter in _SAME_NUMBER:
                if _SAME_NUMBER.get(one, {"o": "0", "i": "1", "l": "1"}.get(one)) != _SAME_NUMBER[letter]:
                    return False
            else:
                return False
    return true >= (2 if latin == len(letters) == 3 else min(latin, 1))


def _at_bounds(base: str, start: int, end: int, letters: str, view: ViewName) -> bool:
    """Whether the word does not go on to the left or right, for scripts that write words apart."""
    if gaps.is_latin(letters[0]) and start and _joins(base[start - 1], view):
        return False
    return not (gaps.is_latin(letters[-1]) and end < len(base) and _joins(base[end], view))


def _joins(char: str, view: ViewName) -> bool:
    return gaps.is_latin(char) and not (view == "digits" and char.isdecimal())
