"""Lists of words from files: plain text, tables and JSON, as they are found.

A text file has one word a line, # for a comment and ! for a phrase that makes a word inside it harmless. A table has a
column of words and, if it likes, one of categories; JSON holds a list of words, of objects, or one list a category.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.base.errors import DataError, os_words
from tuneloop.base.language import t

ALLOWED = ""
"""The category of a phrase that makes a word inside it harmless."""
MOST_BYTES = 64 << 20
_WORD = (
    "word",
    "words",
    "keyword",
    "term",
    "text",
    "pattern",
    "词",
    "词语",
    "词汇",
    "敏感词",
    "关键词",
    "单词",
    "内容",
)
_CATEGORY = ("category", "kind", "type", "label", "class", "tag", "类别", "分类", "类型", "标签", "种类")


@dataclass(frozen=True, slots=True)
class ListedWord:
    """A word as its list spells it, and its category; `ALLOWED` for a harmless phrase."""

    text: str
    category: str


def read_words(path: Path) -> list[ListedWord]:
    """The words of a file: .txt, .csv, .tsv, .json or .jsonl, in UTF-8, UTF-16 or GB 18030.

    Where the file names no category it is the file's own name up to its first dot. Raises TL-DATA-LEXICON for a file
    that cannot be read or has no word of two letters or more.
    """
    category = path.name.split(".")[0]
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(t("it is larger than {most} MiB", most=MOST_BYTES >> 20))
        text = decoded(path.read_bytes())
        words = list(_PARSERS.get(path.suffix.lower(), _lines)(text, category))
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise DataError("TL-DATA-LEXICON", where=str(path), error=_fault(error)) from error
    if not any(word.category != ALLOWED and len(word.text) > 1 for word in words):
        raise DataError("TL-DATA-LEXICON", where=str(path), error=t("no word of two characters or more"))
    return words


def _fault(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return t("it is not JSON (line {line})", line=error.lineno)
    return os_words(error) or type(error).__name__


def decoded(content: bytes) -> str:
    """The text of a word list, whose encoding nobody wrote down.

    >>> decoded("词".encode("gb18030")), decoded("词\\n".encode("utf-16")), decoded(b"\\xef\\xbb\\xbfa")
    ('词', '词\\n', 'a')
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") and len(content) % 2 == 0:
        text = content.decode("utf-16")
        if "\n" in text:  # else any bytes would do
            return text
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("gb18030")
        if "\0" in text:
            raise
        return text


def _word(text: str, category: str) -> Iterator[ListedWord]:
    word = text.strip().rstrip(",，").strip()
    if word.startswith("!"):
        yield ListedWord(word[1:].strip(), ALLOWED)
    elif word:
        yield ListedWord(word, category)


def _lines(text: str, category: str) -> Iterator[ListedWord]:
    for line in text.splitlines():
        if not line.lstrip().startswith("#"):
            yield from _word(line, category)


def _table(text: str, category: str) -> Iterator[ListedWord]:
    sample = text[:4096].partition("\n")[0]
    delimiter = "\t" if "\t" in sample else ";" if ";" in sample and "," not in sample else ","
    lines = [line for line in csv.reader(io.StringIO(text), delimiter=delimiter) if any(cell.strip() for cell in line)]
    head = [cell.strip().lower() for cell in lines[0]] if lines else []
    word = next((k for k, name in enumerate(head) if name in _WORD), None)
    kind = next((k for k, name in enumerate(head) if name in _CATEGORY), None)
    body = lines[1:] if word is not None else lines
    for line in body:
        place = word or 0
        column = kind if word is not None else 1
        named = line[column].strip() if column is not None and column < len(line) else ""
        if place < len(line) and not line[place].lstrip().startswith("#"):
            yield from _word(line[place], named or category)


def _json(text: str, category: str) -> Iterator[ListedWord]:
    yield from _tree(json.loads(text), category)


def _json_lines(text: str, category: str) -> Iterator[ListedWord]:
    for line in text.splitlines():
        if line.strip():
            yield from _tree(json.loads(line), category)


def _tree(content: Any, category: str) -> Iterator[ListedWord]:
    if isinstance(content, str):
        yield from _word(content, category)
    elif isinstance(content, list):
        for inner in content:
            yield from _tree(inner, category)
    elif isinstance(content, dict):
        lowered = {str(key).strip().lower(): inner for key, inner in content.items()}
        word = next((lowered[name] for name in _WORD if name in lowered), None)
        if isinstance(word, str):
            named = next((lowered[name] for name in _CATEGORY if isinstance(lowered.get(name), str)), "")
            yield from _word(word, named.strip() or category)
        else:
            for key, inner in content.items():
                yield from _tree(inner, category if str(key).strip().lower() in _WORD else str(key).strip() or category)


_PARSERS = {".csv": _table, ".tsv": _table, ".json": _json, ".jsonl": _json_lines}
