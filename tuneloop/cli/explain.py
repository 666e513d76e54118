"""tuneloop explain: more about an error code, in English or Chinese."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from tuneloop import language
from tuneloop.cli import show
from tuneloop.errors import FAMILIES, RecipeError, catalogue
from tuneloop.language import t


def explain(
    code: Annotated[str, typer.Argument(help="A code such as TL-DATA-JSON; without one, all codes.")] = "",
    lang: Annotated[str, typer.Option(help="en or zh.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Tell more about an error: why it happens, how to look, what to do.

    Examples: tuneloop explain TL-DATA-JSON | tuneloop explain TL-RECIPE-KEY --lang zh
    """
    if lang:
        language.use(lang)
    known = {k: v for family in FAMILIES for k, v in catalogue(family, language.current()).items()}
    if not code:
        if json:
            show.as_json(known)
        else:
            show.table(t("Error codes"), [t("code"), t("what it says")], [(k, v["what"]) for k, v in known.items()])
        return
    entry = known.get(code.upper())
    if entry is None:
        near = difflib.get_close_matches(code.upper(), known, 1, 0.3)
        raise RecipeError("TL-RECIPE-CODE", where=code, guess=near[0] if near else "TL-DATA-JSON")
    if json:
        show.as_json({"code": code.upper(), **entry})
        return
    print(code.upper())
    for title, part in ((t("What it says"), "what"), (t("What to do"), "do"), (t("More"), "more")):
        print(f"\n{title}\n  " + entry[part].strip().replace("\n", "\n  "))
