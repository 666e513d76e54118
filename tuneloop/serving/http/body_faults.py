"""What is wrong with the body of a request, in the chosen language: pydantic's own words are English only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tuneloop.base.language import alternatives, t

FAULTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda c: t("it is missing"),
    "extra_forbidden": lambda c: t("there is no such field"),
    "json_invalid": lambda c: t("it is not JSON ({error})", error=c["error"]),
    "too_short": lambda c: t("entries: {got}, wanted: {least} at least", got=c["actual_length"], least=c["min_length"]),
    "too_long": lambda c: t("entries: {got}, wanted: {most} at most", got=c["actual_length"], most=c["max_length"]),
    "string_too_short": lambda c: t("the text is too short; characters at least: {n}", n=c["min_length"]),
    "string_too_long": lambda c: t("the text is too long; characters at most: {n}", n=c["max_length"]),
    "string_pattern_mismatch": lambda c: t("it does not match {pattern}", pattern=c["pattern"]),
    "string_unicode": lambda c: t("half of a surrogate pair is no character"),
    "texts": lambda c: t("a text, a list of texts, or token ids are wanted"),
    "none_required": lambda c: t("null is wanted"),
    "union_tag_invalid": lambda c: t("one of {choices}", choices=alternatives(c["expected_tags"])),
    "union_tag_not_found": lambda c: t("{field} is missing", field=str(c["discriminator"]).replace("'", "")),
    "greater_than": lambda c: t("wanted: {bounds}", bounds=f"> {c['gt']:g}"),
    "greater_than_equal": lambda c: t("wanted: {bounds}", bounds=f">= {c['ge']:g}"),
    "less_than": lambda c: t("wanted: {bounds}", bounds=f"< {c['lt']:g}"),
    "less_than_equal": lambda c: t("wanted: {bounds}", bounds=f"<= {c['le']:g}"),
    "literal_error": lambda c: t("one of {choices}", choices=alternatives(c["expected"])),
    "finite_number": lambda c: t("a finite number"),
    "value_error": lambda c: str(c["error"]),
    "string": lambda c: t("a text is wanted"),
    "list": lambda c: t("a list is wanted"),
    "int": lambda c: t("a whole number is wanted"),
    "float": lambda c: t("a number is wanted"),
    "bool": lambda c: t("true or false is wanted"),
    "dict": lambda c: t("a JSON object is wanted"),
    "model": lambda c: t("a JSON object is wanted"),
}
"""A fault of pydantic, or how its name begins -> its words."""


def fault_words(fault: Mapping[str, Any]) -> str:
    """One of pydantic's faults for the reader; its own words where the kind is not known here.

    >>> fault_words({"type": "too_short", "ctx": {"actual_length": 0, "min_length": 1}, "msg": "List should have"})
    'entries: 0, wanted: 1 at least'
    >>> fault_words({"type": "list_type", "msg": ""}), fault_words({"type": "odd", "msg": "Odd."})
    ('a list is wanted', 'Odd.')
    """
    kind = str(fault["type"])
    words = FAULTS.get(kind) or FAULTS.get(kind.split("_")[0])
    return words(fault.get("ctx") or {}) if words else str(fault["msg"])
