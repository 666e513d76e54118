"""Personal data in a text: where it is, and the text without it.

Numbers with check digits are checked, the others are told from order numbers, versions and dates by their form and by
the words before them. Names and street addresses are not looked for: no rule tells them from ordinary words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final, get_args

from tuneloop.recipe.schema import PiiKind
from tuneloop.safety.contacts import emails, mobiles, phones
from tuneloop.safety.documents import cards, ibans, passports, resident_ids, social_security_numbers
from tuneloop.safety.keys import keys
from tuneloop.safety.network import ips, macs
from tuneloop.safety.normalise import fold
from tuneloop.safety.span import Span, disjoint

__all__ = ["KINDS", "Span", "find", "mask"]

KINDS: Final[tuple[PiiKind, ...]] = get_args(PiiKind)

Finder = Callable[[str], Iterator[tuple[int, int]]]

# The most specific first: it wins where two claim the same characters.
_FINDERS: tuple[tuple[PiiKind, Finder], ...] = (
    ("api_key", keys),
    ("email", emails),
    ("iban", ibans),
    ("id_card", resident_ids),
    ("bank_card", cards),
    ("mobile", mobiles),
    ("ssn", social_security_numbers),
    ("mac", macs),
    ("ip", ips),
    ("passport", passports),
    ("phone", phones),
)
_NUMBERS = frozenset({"iban", "id_card", "bank_card", "mobile", "ssn", "passport", "phone"})

_DIGITS = "0123456789"
# Digits of other widths and scripts as well, so that a text without any is let go before it is folded.
_ANY_DIGIT = re.compile("[0-9@\uff10-\uff19\uff20\ufe6b\u0660-\u0669\u06f0-\u06f9\u0966-\u096f\U0001d7ce-\U0001d7ff]")
_LETTER_MAC = re.compile(":[A-Fa-f]{2}:[A-Fa-f]{2}:")
_LONG_NUMBER = re.compile(r"\d(?:[^\d\n]{0,3}\d){5}")


def _clean(text: str) -> bool:
    """Whether nothing in the text can begin any kind: no digit, no @, no private key, no hardware address."""
    if "-----" in text or _LETTER_MAC.search(text):
        return False
    if text.isascii():
        return "@" not in text and not any(digit in text for digit in _DIGITS)
    return _ANY_DIGIT.search(text) is None


def find(text: str, kinds: Collection[str] = ()) -> list[Span]:
    """The personal data in `text`, in order, none overlapping; `kinds` of `KINDS` only, all if empty.

    Offsets are those of `text` as it was given; full-width digits and invisible characters in between are seen through.

    >>> [(s.kind, s.text) for s in find("电话１３８ 1234 5678，邮箱 li@example.com")]
    [('mobile', '１３８ 1234 5678'), ('email', 'li@example.com')]
    """
    unknown = set(kinds).difference(KINDS)
    if unknown:
        raise ValueError(f"no such kind of personal data: {', '.join(sorted(unknown))}")
    if _clean(text):
        return []
    folded = fold(text, case=False)
    # All kinds look even if only some are wanted: else a card number would come out as a telephone number.
    numbers = _LONG_NUMBER.search(folded.text) is not None
    ranges = disjoint(
        (rank, start, end, kind)
        for rank, (kind, finder) in enumerate(_FINDERS)
        if numbers or kind not in _NUMBERS
        for start, end in finder(folded.text)
    )
    spans = []
    for start, end, kind in ranges:
        if not kinds or kind in kinds:
            start, end = folded.original(start, end)
            spans.append(Span(kind, start, end, text[start:end]))
    return spans


def mask(text: str, spans: Iterable[Span]) -> str:
    """`text` with each span replaced by its kind, the same in every language.

    >>> mask("write to li@example.com", find("write to li@example.com"))
    'write to [EMAIL]'
    """
    parts, at = [], 0
    for span in sorted(spans, key=lambda s: s.start):
        parts += [text[at : span.start], f"[{span.kind.upper()}]"]
        at = span.end
    return "".join([*parts, text[at:]])
