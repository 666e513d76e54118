"""Synonym substitution: words of a text replaced by others of the same meaning, where no context is needed.

Quotations, code, addresses and names stay as they are; so does a text about words. Whether the new sentence is likely
is for a language model to say (`reword.py`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from tuneloop.base.errors import DataError, os_words
from tuneloop.base.language import t
from tuneloop.base.segmenter import segmenter

Table = Mapping[str, tuple[str, ...]]
"""Word, in lower case -> its synonyms."""
MOST = 2
"""Words that change in one text."""
_JOINED = 4
"""Segments of the word segmenter that together may be one word of the table."""
VERBATIM = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|\S+@\S+|\{[^{}]*\}|<[^<>]*>|\$[^$\n]*\$|\[[^\[\]]*\]|【[^】]*】"
    r"|“[^”]*”|‘[^’]*’|\"[^\"]*\"|「[^」]*」|『[^』]*』|《[^》]*》|(?<!\w)'[^'\n]+'(?!\w)",
    re.DOTALL,
)
"""Spans that stay verbatim: code, addresses, formulas, markup, quotations, titles."""
_ABOUT_WORDS = re.compile(
    r"\b(?:synonyms?|antonyms?|rhymes?|translat\w*|spell\w*|grammar|sentences?|words?|phrases?|paraphrase|rewrite|rephrase"
    r"|meaning|define|definition|summari[sz]e|classify|poem|lyrics)\b"
    r"|近义|同义|反义|词|翻译|译成|造句|改写|润色|续写|扩写|缩写|拼音|成语|句子|语法|病句|摘要|总结|分类|歌词|诗",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r".+?(?:[。！？!?；;\n]+|\.(?=\s)|\Z)", re.DOTALL)
_RUN = re.compile(r"[\u4e00-\u9fff]+|[A-Za-z]+|[^A-Za-z\u4e00-\u9fff]+")
_NO_WORD_BESIDE = set("-_'’/\\.@#&0123456789")
"""A Latin word that touches one of these is part of something longer (a full stop behind it is none of these)."""
_AN = re.compile(r"(?!us(?:e|ual)|uni|eu|one\b)(?:[aeiou]|hour|honest)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Changed:
    """A text with other words, and the one sentence that changed, before and after."""

    text: str
    before: str
    after: str


def synonym_tables() -> list[Path]:
    """The packaged words, a file a language."""
    folder = Path(str(resources.files("tuneloop.data.augmenting") / "synonyms"))
    return [folder / name for name in ("zh.txt", "en.txt")]


@lru_cache(maxsize=4)
def groups(path: str | None = None) -> Table:
    """The synonyms of the file `path`, by default of the packaged tables.

    "a b" on a line means that each may stand for the other, "a b > c d" that c and d may stand for a and for b. Raises
    TL-DATA-SYNONYMS for a file that cannot be read or has no such line.
    """
    if path:
        try:
            texts = [Path(path).read_text(encoding="utf-8-sig")]
        except (OSError, UnicodeError) as error:
            raise DataError("TL-DATA-SYNONYMS", where=path, error=os_words(error)) from error
    else:
        texts = [table.read_text(encoding="utf-8") for table in synonym_tables()]
    out: dict[str, tuple[str, ...]] = {}
    for line in "\n".join(texts).splitlines():
        left, arrow, right = ("" if line.startswith("#") else line.lower()).partition(">")
        others = (right if arrow else left).split()
        for word in left.split():
            out[word] = tuple(dict.fromkeys([*out.get(word, ()), *(w for w in others if w != word)]))
    table = {word: new for word, new in out.items() if new}
    if not table:
        raise DataError("TL-DATA-SYNONYMS", where=path or "", error=t("no line has two words"))
    return table


def words(text: str) -> list[str]:
    """The text segmented into words and separators; joined they are the text.

    >>> words("How do I begin?")
    ['How', ' ', 'do', ' ', 'I', ' ', 'begin', '?']
    """
    out: list[str] = []
    for run in _RUN.findall(text):
        out += segmenter().lcut(run, HMM=False) if "\u4e00" <= run[0] <= "\u9fff" else [run]
    return out


def substituted(text: str, table: Table, rng: random.Random, most: int = MOST) -> Changed | None:
    """The text with up to `most` words of one sentence replaced; None where nothing may be.

    >>> substituted("Hello. How do I begin?", {"begin": ("start",)}, random.Random(0))
    Changed(text='Hello. How do I start?', before='How do I begin?', after='How do I start?')
    >>> substituted("What does 'begin' mean?", {"begin": ("start",)}, random.Random(0))
    """
    if _ABOUT_WORDS.search(text):
        return None
    verbatim = [match.span() for match in VERBATIM.finditer(text)]
    spans = [match.span() for match in _SENTENCE.finditer(text)]
    sentences = [(span, places) for span in spans if (places := list(_places(text, span, verbatim, table)))]
    if not sentences:
        return None
    (begin, end), places = rng.choice(sentences)
    new, at = "", begin
    for start, stop in sorted(rng.sample(places, min(most, len(places)))):
        old = text[start:stop]
        word = rng.choice(table[old.lower()])
        new = _with_article(new + text[at:start], word) + (word.capitalize() if old[:1].isupper() else word)
        at = stop
    new += text[at:end]
    return Changed(text[:begin] + new + text[end:], text[begin:end].strip(), new.strip())


def _places(
    text: str, span: tuple[int, int], verbatim: list[tuple[int, int]], table: Table
) -> Iterator[tuple[int, int]]:
    """The spans of replaceable words in a sentence; the longest word of the table at each place."""
    begin, end = span
    parts = words(text[begin:end])
    starts = [begin]
    for part in parts:
        starts.append(starts[-1] + len(part))
    n = 0
    while n < len(parts):
        width = next((w for w in range(_JOINED, 0, -1) if "".join(parts[n : n + w]).lower() in table), 0)
        start, stop = starts[n], starts[min(n + width, len(parts))]
        n += width or 1
        if width and not any(a < stop and start < b for a, b in verbatim) and _free(text, start, stop, begin):
            yield start, stop


def _free(text: str, start: int, stop: int, begin: int) -> bool:
    """Whether a span is a word by itself and no name: a capital inside a sentence makes one."""
    word = text[start:stop]
    if not word.isascii():
        return True
    if word[:1].isupper() and (text[begin:start].strip() or not word[1:].islower()):
        return False
    before, after = text[start - 1 : start], text[stop : stop + 2]
    full_stop = after[:1] == "." and not after[1:2].isalnum()
    return before not in _NO_WORD_BESIDE and (full_stop or after[:1] not in _NO_WORD_BESIDE)


def _with_article(text: str, word: str) -> str:
    """What stands before the word, with the article that fits it.

    >>> _with_article("Is this an ", "mistake"), _with_article("a ", "issue"), _with_article("an ", "useful")
    ('Is this a ', 'an ', 'a ')
    """
    article = re.search(r"(?<![A-Za-z'’])(a)n?(\s+)$", text, re.IGNORECASE)
    if not article or not word.isascii():
        return text
    return text[: article.start()] + article[1] + ("n" if _AN.match(word) else "") + article[2]
