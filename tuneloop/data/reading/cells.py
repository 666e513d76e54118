"""A cell of a spreadsheet as the text that is shown in it: its number format applied to its value.

The formats are those of ECMA-376 (18.8.31), as far as texts need them: percent, decimals, thousands, signs around a
number, dates and times. What is not known here is shown as a plain number or date.
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from fractions import Fraction
from functools import lru_cache
from typing import Any

ERRORS = frozenset(("#N/A", "#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "#SPILL!", "#CALC!",
                    "#GETTING_DATA", "#FIELD!", "#BLOCKED!", "#CONNECT!", "#UNKNOWN!"))  # fmt: skip
"""What a spreadsheet shows in a cell that has no value because something is wrong; also in its CSV export."""
_ESCAPE = re.compile("_x([0-9A-Fa-f]{4})_")
_LOCAL = frozenset(("mm-dd-yy", "m/d/yy", "m/d/yyyy", "m/d/yy h:mm", "m/d/yyyy h:mm"))
"""Date formats that Excel shows in the order of its locale; they are written as ISO 8601."""


def shown(content: Any, code: str = "General") -> str:
    r"""The text of a cell: its value in its number format.

    >>> [shown(v) for v in (None, 1.0, 2.5, True, "x")]
    ['', '1', '2.5', 'TRUE', 'x']
    >>> shown(0.25, "0%"), shown(19.9, '0.00 "EUR"'), shown(-1234.5, "#,##0.00")
    ('25%', '19.90 EUR', '-1,234.50')
    >>> shown(datetime(2026, 5, 4), "DD.MM.YYYY"), shown(time(9, 30), "h:mm AM/PM"), shown("a_x000D_b")
    ('04.05.2026', '9:30 AM', 'a\nb')
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return _unescaped(content)
    if isinstance(content, bool):
        return "TRUE" if content else "FALSE"
    if isinstance(content, datetime | date | time):
        return _moment(content, "" if code in _LOCAL or "[$-F" in code else _sections(code)[0])
    if isinstance(content, timedelta):
        return _span(content, _sections(code)[0])
    if isinstance(content, int | float):
        return _number(content, code) or _general(content)
    return str(content)


def _unescaped(text: str) -> str:
    """Characters that XML cannot hold are written as _xHHHH_; a carriage return is a line break."""
    if "_x" in text:
        text = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _general(number: int | float) -> str:
    if isinstance(number, float) and number.is_integer() and abs(number) < 1e15:
        return str(int(number))
    return f"{number:.15g}" if isinstance(number, float) else str(number)  # Excel keeps 15 digits


@lru_cache(maxsize=512)
def _sections(code: str) -> tuple[str, ...]:
    """The sections of a number format, for positive, negative and zero, without colours, conditions and locales."""
    bare = re.sub(r"\[\$([^\]-]*)[^\]]*\]", r'"\1"', code)
    bare = re.sub(r"\[(?!h+\]|m+\]|s+\])[^\]]*\]", "", bare, flags=re.IGNORECASE)
    parts, quoted = [""], False
    for n, c in enumerate(bare):
        if c == '"' and bare[n - 1 : n] != "\\":
            quoted = not quoted
        if c == ";" and not quoted:
            parts.append("")
        else:
            parts[-1] += c
    return tuple(parts)


_PIECE = re.compile(r'"([^"]*)"|\\(.)|_.|\*.|([0#?.,]*[0#?][0#?.,]*)|([^0#?"\\_*]+)')


def _number(number: int | float, code: str) -> str:
    """A number in a decimal, scientific or fraction format; "" where the format is another one (General)."""
    parts = _sections(code)
    negative = number < 0
    part = parts[1] if negative and len(parts) > 1 else parts[2] if number == 0 and len(parts) > 2 else parts[0]
    outside = re.sub(r'"[^"]*"|\\.', "", part)
    if part and not outside.strip():
        return re.sub(r'["\\]', "", part)
    if special := _POWER.fullmatch(part) or _FRACTION.fullmatch(part):
        text = (_power if special.re is _POWER else _fraction)(abs(number), special)
        return ("-" if negative and len(parts) < 2 else "") + text
    if not re.search("[0#]", outside) or re.search(r"[Ee][+-]|/|General|@", outside):
        return ""
    try:
        amount = abs(Decimal(repr(number)))
    except InvalidOperation:
        return ""
    amount *= Decimal(100) ** outside.count("%")
    out, done = "", False
    for piece in _PIECE.finditer(part):
        text, escaped, digits, sign = piece.groups()
        if digits and not done:
            out, done = out + _digits(amount, digits), True
        elif digits:
            return ""
        else:
            out += text or escaped or sign or ""
    sign = "-" if negative and len(parts) < 2 and any(c in "123456789" for c in out) else ""
    return sign + out.strip()


_POWER = re.compile(r"([0#]+)(?:\.([0#]*))?[Ee]([+-])(0+)")
_FRACTION = re.compile(r"(?:([#0?]+) +)?([#0?]+) ?/ ?([#0?]+|[1-9]\d*)")


def _power(number: int | float, form: re.Match[str]) -> str:
    """A number in scientific notation; n digits before the format's point make the exponent a multiple of n.

    >>> shown(1e-5, "0.00E+00"), shown(12345.0, "##0.0E+0"), shown(-0.5, "0E-0")
    ('1.00E-05', '12.3E+3', '-5E-1')
    """
    step, places = len(form[1]), len(form[2] or "")
    power = 0 if not number else Decimal(repr(number)).adjusted() // step * step
    amount = Decimal(repr(number)).scaleb(-power)
    rounded = amount.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    if rounded >= Decimal(10) ** step:
        power, rounded = power + step, rounded.scaleb(-step).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    sign = "-" if power < 0 else "+" if form[3] == "+" else ""
    return f"{rounded:f}E{sign}{abs(power):0{len(form[4])}}"


def _fraction(number: int | float, form: re.Match[str]) -> str:
    """A number as a fraction, a mixed one where the format has an integer part.

    >>> [shown(n, "# ?/?") for n in (0.5, 2.25, 3.0, 0.0)], shown(1.5, "?/?"), shown(0.5, "# ?/8")
    (['1/2', '2 1/4', '3', '0'], '3/2', '4/8')
    """
    exact, below = Fraction(repr(number)), form[3]
    if below.isdecimal() and below.strip("0"):
        last = int(below)
        over = int(exact * last + Fraction(1, 2))
    else:
        near = exact.limit_denominator(10 ** len(below) - 1)
        over, last = near.numerator, near.denominator
    if not form[1]:
        return f"{over}/{last}"
    integer, over = divmod(over, last)
    if not over:
        return str(integer)
    return f"{integer} {over}/{last}" if integer or "0" in form[1] else f"{over}/{last}"


def _digits(amount: Decimal, pattern: str) -> str:
    while pattern.endswith(","):  # a comma behind the digits divides by a thousand
        amount, pattern = amount / 1000, pattern[:-1]
    integer, _, decimals = pattern.partition(".")
    places = sum(c in "0#?" for c in decimals)
    text = f"{amount.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):f}"
    head, _, tail = text.partition(".")
    least = sum(c == "0" for c in decimals)
    while len(tail) > least and tail.endswith("0"):
        tail = tail[:-1]
    head = head.rjust(sum(c == "0" for c in integer), "0") if head != "0" or "0" in integer else ""
    if "," in integer:
        head = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", ",", head)
    return f"{head}.{tail}" if tail or "." in pattern else head


_MOMENT = re.compile(
    r'"([^"]*)"|\\(.)|_.|\*.|(AM/PM|A/P|上午/下午|y+|m+|d+|h+|s+(?:\.0+)?|\[h+\]|\[m+\]|\[s+\])|(.)', re.IGNORECASE
)


def _moment(moment: datetime | date | time, code: str) -> str:
    """A date or time in its format; in ISO 8601 where the format has no date or time token. Midnight is not shown."""
    pieces = [match.groups() for match in _MOMENT.finditer(code)]
    tokens = [token.lower() for _, _, token, _ in pieces if token]
    lacks = isinstance(moment, time) and any(x[0] in "yd" for x in tokens)
    if not any(x[0] in "ymdhs" for x in tokens) or any(x[0] == "[" for x in tokens) or lacks:
        if isinstance(moment, datetime):
            return moment.date().isoformat() if moment.time() == time() else moment.isoformat(" ", "seconds")
        return moment.isoformat()
    day = _instant(moment)
    half = any(x in ("am/pm", "a/p", "上午/下午") for x in tokens)
    out, seen = "", -1
    for text, escaped, token, other in pieces:
        if not token:
            out += text or escaped or other or ""
            continue
        seen += 1
        beside = (tokens[seen - 1][0] if seen else "", tokens[seen + 1][0] if seen + 1 < len(tokens) else "")
        minutes = len(token) <= 2 and (beside[0] == "h" or beside[1] == "s")
        out += _part(day, token.lower(), minutes, half)
    return out.strip()


def _instant(moment: datetime | date | time) -> datetime:
    if isinstance(moment, datetime):
        return moment
    if isinstance(moment, time):
        return datetime.combine(date(1900, 1, 1), moment)
    return datetime.combine(moment, time())


def _part(day: datetime, token: str, minutes: bool, half: bool) -> str:
    """One token of a date's format."""
    letter, size = token[0], len(token)
    if token in ("am/pm", "a/p"):
        return ("AM" if day.hour < 12 else "PM")[: 2 if token == "am/pm" else 1]
    if token == "上午/下午":
        return "上午" if day.hour < 12 else "下午"
    if letter == "y":
        return f"{day.year:04}" if size > 2 else f"{day.year % 100:02}"
    if letter == "m" and not minutes and size > 2:
        return day.strftime("%b" if size == 3 else "%B")
    if letter == "d" and size > 2:
        return day.strftime("%a" if size == 3 else "%A")
    hour = (day.hour % 12 or 12) if half else day.hour
    number = {"m": day.minute if minutes else day.month, "d": day.day, "h": hour, "s": day.second}[letter]
    return f"{number:02}" if size > 1 else str(number)


_PASSED = re.compile(r'"([^"]*)"|\\(.)|_.|(\[[hms]+\]|h+|m+|s+)|(.)', re.IGNORECASE)


def _span(duration: timedelta, code: str) -> str:
    """A duration in its format: a unit in brackets is elapsed time and does not wrap at a day, an hour or a minute.

    >>> _span(timedelta(hours=30), "[h]:mm"), _span(timedelta(hours=30), "[mm]:ss"), _span(timedelta(hours=30), "")
    ('30:00', '1800:00', '30:00:00')
    """
    total = round(duration.total_seconds())
    sign, total = ("-", -total) if total < 0 else ("", total)
    pieces = [match.groups() for match in _PASSED.finditer(code)]
    if not any(token and token[0] == "[" for _, _, token, _ in pieces):
        return f"{sign}{total // 3600}:{total // 60 % 60:02}:{total % 60:02}"
    out = ""
    for text, escaped, token, other in pieces:
        if not token:
            out += text or escaped or other or ""
            continue
        letter, size = token.strip("[]")[0].lower(), len(token.strip("[]"))
        number = total // {"h": 3600, "m": 60, "s": 1}[letter]
        number = number if token[0] == "[" else number % (24 if letter == "h" else 60)
        out += f"{number:0{size}}"
    return sign + out.strip()
