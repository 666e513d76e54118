"""tuneloop explain: more about the code of an error, an alert or a remedy, in English or Chinese."""

from __future__ import annotations

import difflib
import string
from typing import Annotated

import typer

from tuneloop.base import language
from tuneloop.base.errors import FAMILIES, NOTICES, RecipeError, catalogue
from tuneloop.base.language import t
from tuneloop.cli import show

ADDED = frozenset({"near", "detail", "then"})
"""Facts that add a whole clause to a sentence, or nothing."""


def explain(
    code: Annotated[str, typer.Argument(help="A code such as TL-DATA-JSON; without one, all codes.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Tell more about an error code: why it happens, how to look, what to do.

    Examples: tuneloop explain TL-DATA-JSON | tuneloop explain TL-RECIPE-KEY --lang zh
    """
    known = {k: v for family in (*FAMILIES, *NOTICES) for k, v in catalogue(family, language.current()).items()}
    if not code:
        if json:
            show.as_json(known)
        else:
            rows = [(k, open_facts(v["what"])) for k, v in known.items()]
            show.table(t("Error codes"), [t("code"), t("what it says")], rows)
        return
    texts = known.get(code.upper())
    if texts is None:
        near = difflib.get_close_matches(code.upper(), known, 1, 0.3)
        raise RecipeError("TL-RECIPE-CODE", where=code, guess=near[0] if near else "TL-DATA-JSON")
    if json:
        show.as_json({"code": code.upper(), **texts})
        return
    print(code.upper())
    titles = {"what": t("What it says"), "why": t("Why it matters"), "do": t("What to do")}
    parts = [(title, open_facts(texts[part])) for part, title in titles.items() if part in texts]
    for title, text in (*parts, (t("More"), texts["more"])):
        print(f"\n{title}\n  " + text.strip().replace("\n", "\n  "))


def open_facts(text: str) -> str:
    """A text with its facts still open, for a reader: their places are marked, not filled, those of ADDED left out.

    >>> open_facts("{n} of {of:,} rows of {name!r}: {{x}}")
    '‹n› of ‹of› rows of ‹name›: {x}'
    """
    shown = []
    for literal, name, _, _ in string.Formatter().parse(text):
        clause = name in ADDED and not literal.endswith((" ", "："))
        shown.append(literal if not name or clause else f"{literal}‹{name}›")
    return "".join(shown)
