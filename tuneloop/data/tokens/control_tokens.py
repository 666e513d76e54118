"""Control tokens: the added tokens of a tokenizer. A chat template writes them, and no text of a message becomes one.

A tokenizer finds an added token wherever it is spelled, whoever wrote it: `<|im_end|>` in a question would end it. So
each spelling in a message gets a guard behind its first character before the message is rendered. The template sees
its texts, and may trim, split or escape them; the tokenizer does not find the token. `templates.encode_guarded` takes
the guards out, and tokenises what stood between two tokens of the template by a tokenizer that knows no control tokens.

No control tokens are, since a text has them as well: blanks, single characters, and the elements of HTML that Gemma
has as words. An assistant may write what its turn could say in fields of its own: the thought (or thoughts) at its
beginning, `<think>…</think>`, and a call, `<tool_call>{a JSON object with a name}</tool_call>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from tuneloop.base.records import Message, Record
from tuneloop.data.kinds import KINDS

GUARD, LITERAL = "\ufdd0", "\ufdd1"
"""Two of the characters that Unicode never assigns. A guard stands by itself; `GUARD + LITERAL` is one of the text."""
_GUARDS = re.compile(f"{GUARD}({LITERAL}?)")
_HTML = re.compile(
    r"</?(?:table|caption|thead|tbody|tfoot|t[rhd]|h[1-6]|blockquote|strong|em|[biusa]|su[bp]|code|html|body|img|span"
    r"|bbox|[uo]l|li|div|iframe|footer)>"
)
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_STRUCTURE = frozenset({
    "type", "function", "name", "description", "parameters", "properties", "required", "object", "string", "integer",
    "number", "boolean", "array", "null", "items", "enum", "default", "id", "arguments", "text", "title", "format",
})  # fmt: skip
"""Words that a template may look for in tools and calls."""
_THOUGHT, _CALL = ("<think>", "</think>"), ("<tool_call>", "</tool_call>")


def unguarded(text: str) -> str:
    """The text as it was before its guards.

    >>> unguarded(f"<{GUARD}|im_end|> {GUARD}{LITERAL}") == f"<|im_end|> {GUARD}"
    True
    """
    return _GUARDS.sub(lambda match: GUARD if match[1] else "", text) if GUARD in text else text


def cut_at_guards(text: str) -> list[str]:
    """The text without its guards, cut where they were.

    >>> cut_at_guards(f"a <{GUARD}|im_end|>")
    ['a <', '|im_end|>']
    """
    out = [""]
    for n, part in enumerate(text.split(GUARD)):
        if n and not part.startswith(LITERAL):
            out.append(part)
        else:
            out[-1] += (GUARD if n else "") + part.removeprefix(LITERAL if n else "")
    return out


@lru_cache(maxsize=8)
def word_pattern(words: tuple[str, ...], flags: int = 0) -> re.Pattern[str]:
    """Finds the leftmost of the words, and of those that begin there the longest, as the tokenizer does.

    >>> word_pattern(("<a>", "<a><b>", "</a>")).findall("x<a><b></a><a>")
    ['<a><b>', '</a>', '<a>']
    """
    tree: dict[str, Any] = {}
    for word in words:
        node = tree
        for letter in word:
            node = node.setdefault(letter, {})
        node[""] = {}
    return re.compile(_branches(tree) or r"(?!)", flags)


def _branches(node: dict[str, Any]) -> str:
    ways = [re.escape(letter) + _branches(below) for letter, below in node.items() if letter]
    if not ways:
        return ""
    choice = ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"
    return f"(?:{choice})?" if "" in node else choice


def control_tokens(tokenizer: Any) -> ControlTokens:
    """The control tokens of a tokenizer as it is now."""
    return _control_tokens(tokenizer, len(tokenizer))


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: Any, size: int) -> ControlTokens:
    return ControlTokens(tokenizer)


class ControlTokens:
    """Guards texts against the control tokens of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        added = dict(getattr(tokenizer, "added_tokens_decoder", None) or {})
        self.added = {str(token): token for token in added.values() if _is_control(str(token), token.special)}
        """Spelling -> the token."""
        named = [str(token) for token in tokenizer.all_special_tokens if _is_control(str(token), True)]
        words = tuple(dict.fromkeys([*self.added, *named]))
        ids = {int(tokenizer.convert_tokens_to_ids(word)) for word in words if not _BYTE.fullmatch(word)}
        self.ids = frozenset(ids - {_unknown(tokenizer)})
        """Ids that no text has. A text may have those of single bytes, and the one for what a model does not know."""
        self.pattern = word_pattern(words)
        """Finds them where a tokenizer finds them."""
        lower = sorted({word.lower() for word in words})
        self._spelling = word_pattern(words, re.IGNORECASE)  # a template may write a text in other letters
        self._firsts = sorted({letter for word in words for letter in (word[0], word[0].lower(), word[0].upper())})
        self._longest = max(map(len, words), default=0)
        self._beginnings = frozenset(word[:n] for word in lower for n in range(1, len(word)))
        self._endings = frozenset(word[n:] for word in lower for n in range(1, len(word)))
        self._insides = "\n".join(word[1:] for word in lower)
        self._normalizer = _normalizer(tokenizer, self.added)
        self._normal = word_pattern(
            tuple(self._normalizer.normalize_str(word) for word in words) if self._normalizer else ()
        )

    def begins(self, text: str) -> bool:
        """Whether a control token may begin where a text ends, so that what follows could complete it."""
        tail = text[-self._longest :].lower()
        return any(tail[at:] in self._beginnings for at in range(len(tail)))

    def guarded(self, text: str, continues: bool = False) -> str:
        """The text with a guard in all that could become a control token, with what a template writes beside it:
        before it as well where it `continues` what the template has begun."""
        if GUARD in text:
            text = text.replace(GUARD, GUARD + LITERAL)
        if self._may_begin(text):
            while self._spelling.search(text):
                text = self._spelling.sub(_with_guard, text)
            for at in range(len(text) - 1, max(-1, len(text) - self._longest), -1):
                if text[at] in self._firsts and text[at:].lower() in self._beginnings:
                    text = text[: at + 1] + GUARD + text[at + 1 :]
        if self._normalizer:
            text = self._guarded_as_normalised(text)
        if continues and text not in _STRUCTURE and self._may_complete(text[: self._longest].lower()):
            text = GUARD + text
        return text

    def _may_begin(self, text: str) -> bool:
        for letter in self._firsts:  # noqa: SIM110 - this is all that is done to most texts
            if letter in text:
                return True
        return False

    def needs_none(self, content: Any, continues: bool = False) -> bool:
        """Whether no text or key in whatever JSON can hold may need a guard; False where it must be looked at."""
        if type(content) is str:
            return not (continues or GUARD in content or self._normalizer or self._may_begin(content))
        if isinstance(content, Mapping):
            return all(self.needs_none(x, continues) and self.needs_none(y, continues) for x, y in content.items())
        if isinstance(content, list | tuple):
            return all(self.needs_none(inner, continues) for inner in content)
        return not isinstance(content, str)

    def _may_complete(self, head: str) -> bool:
        return bool(head) and (head in self._insides or any(head[:n] in self._endings for n in range(1, len(head) + 1)))

    def _guarded_as_normalised(self, text: str) -> str:
        """The text with a guard in what a normaliser would make a control token of (full-width letters, say)."""
        out = []
        for part in text.split(GUARD):
            while len(part) > 1 and self._normal.search(self._normalizer.normalize_str(part)):
                low, high = 1, len(part)  # the shortest beginning of the text that has one
                while low < high:
                    middle = (low + high) // 2
                    has = self._normal.search(self._normalizer.normalize_str(part[:middle]))
                    low, high = (low, middle) if has else (middle + 1, high)
                at = max(1, low - 1)
                out.append(part[:at])
                part = part[at:]
            out.append(part)
        return GUARD.join(out)

    def message(self, message: Mapping[str, Any], continues: bool = False) -> Mapping[str, Any]:
        """A message with its texts guarded; the same object where nothing in it needs a guard."""
        if self.needs_none(message, continues):
            return message
        out: dict[str, Any] = {}
        same = True
        for key, content in message.items():
            if key == "role":
                safe = self.guarded(content) if isinstance(content, str) else content
            elif key == "content" and isinstance(content, str) and message.get("role") == "assistant":
                free = enumerate(self.free_parts(content))
                safe = "".join(self.guarded(part, continues) if n % 2 == 0 else part for n, part in free)
            else:
                safe = self.deep(content, continues)
            same = same and (safe is content or safe == content)
            out[key] = safe
        return message if same else out

    def deep(self, content: Any, continues: bool = False) -> Any:
        """Whatever JSON can hold, with its texts and keys guarded."""
        if isinstance(content, str):
            return self.guarded(content, continues)
        if isinstance(content, Mapping):
            return {self.deep(key, continues): self.deep(inner, continues) for key, inner in content.items()}
        if isinstance(content, list | tuple):
            return [self.deep(inner, continues) for inner in content]
        return content

    def free_parts(self, answer: str) -> list[str]:
        """An assistant's text in turn: what is guarded, and a mark of a thought or a call that it may write."""
        if not self._may_begin(answer):
            return [answer]
        cuts = [*_thought_marks(answer), *_call_marks(answer)] if "<t" in answer or "</t" in answer else []
        out, begin = [], 0
        for a, b in sorted(cuts):
            if a >= begin:
                out += [answer[begin:a], answer[a:b]]
                begin = b
        return [*out, answer[begin:]]

    def spelled(self, record: Record) -> Iterator[tuple[int, str]]:
        """(turn, the first control token that its text spells) of the turns of a record that spell one; the turn counts
        from 1 and is 0 for its tools."""
        if record.tools and not self.needs_none(record.tools) and (token := self._first(_strings(record.tools))):
            yield 0, token
        answers = KINDS[record.kind].dialogue
        for n, message in enumerate((*record.messages, *record.rejected), 1):
            if token := self._first(self._texts(message, answers and message.role == "assistant")):
                yield n, token

    def _texts(self, message: Message, answers: bool) -> Iterator[str]:
        yield from self.free_parts(message.content)[::2] if answers else (message.content,)
        yield message.reasoning
        if message.tool_calls and not self.needs_none(message.tool_calls):
            yield from _strings(message.tool_calls)

    def _first(self, texts: Iterable[str]) -> str:
        matches = (self.pattern.search(text) for text in texts if self._may_begin(text))
        return next((match.group() for match in matches if match), "")


def _is_control(spelling: str, special: bool) -> bool:
    """
    >>> [_is_control(word, False) for word in ("<think>", "<b>", "\\n\\n", "ü")], _is_control("<s>", True)
    ([True, False, False, False], True)
    """
    return len(spelling) > 1 and bool(spelling.strip()) and (special or not _HTML.fullmatch(spelling))


def _unknown(tokenizer: Any) -> int | None:
    """The id that the tokenizer's model gives to what it does not know; None where it knows all."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    named = getattr(backend.model, "unk_token", None) if backend is not None else tokenizer.unk_token
    return None if named is None else int(tokenizer.convert_tokens_to_ids(named))


def _with_guard(match: re.Match[str]) -> str:
    return match[0][0] + GUARD + match[0][1:]


def _thought_marks(answer: str) -> Iterator[tuple[int, int]]:
    """Where the marks of the thoughts at the beginning of an answer stand; a prompt may have opened the first one, and
    a cut may have taken the end of the last.

    >>> list(_thought_marks("<think>a</think>b</think>")), list(_thought_marks("a</think>b")), list(_thought_marks("a"))
    ([(0, 7), (8, 16)], [(1, 9)], [])
    """
    opens, closes = _THOUGHT
    at = 0
    while True:
        begin = len(answer) - len(answer[at:].lstrip())
        if answer.startswith(opens, begin):
            yield begin, begin + len(opens)
            begin += len(opens)
        elif at:
            return
        end = answer.find(closes, begin)
        if end < 0 or answer.find(opens, begin, end) >= 0:
            return
        yield end, end + len(closes)
        at = end + len(closes)


def _call_marks(answer: str) -> Iterator[tuple[int, int]]:
    """Where the marks of the calls in an answer stand.

    >>> list(_call_marks('<tool_call>{"name": "f"}</tool_call> <tool_call>'))
    [(0, 11), (24, 36)]
    """
    opens, closes = _CALL
    end = 0
    while (begin := answer.find(opens, end)) >= 0 and (end := answer.find(closes, begin)) >= 0:
        try:
            call = json.loads(answer[begin + len(opens) : end])
        except (ValueError, RecursionError):
            call = None
        if isinstance(call, dict) and isinstance(call.get("name"), str):
            yield begin, begin + len(opens)
            yield end, end + len(closes)


def _strings(content: Any) -> Iterator[str]:
    """The texts and keys of whatever JSON can hold."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, Mapping):
        for key, inner in content.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(content, list | tuple):
        for inner in content:
            yield from _strings(inner)


def _normalizer(tokenizer: Any, added: Mapping[str, Any]) -> Any:
    """The normaliser that could make a control token of another text; None where none does."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = getattr(backend, "normalizer", None)
    if normalizer is None or normalizer.normalize_str(_PROBE) == _PROBE:
        return None
    model = type(backend.model).__name__
    return (
        normalizer if model in ("Unigram", "WordLevel") or any(token.normalized for token in added.values()) else None
    )


_PROBE = "\uff1c\uff5cI\uff5c\uff1e \u200b\u00ad\ufb01 A\u0301 \u00e9 x"
"""Full-width letters, a ligature, accents, capitals, what is not seen."""
