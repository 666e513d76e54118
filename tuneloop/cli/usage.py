"""What is wrong with a command line, in the chosen language: the words of the parser below us are English only."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import typer

from tuneloop.base.errors import RecipeError
from tuneloop.base.language import listed, t
from tuneloop.cli import show

# The parser's own class of such errors is not public in typer; this is its public child's parent.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def no_verb(got: str, known: Sequence[str], path: str) -> RecipeError:
    """TL-RECIPE-VERB for a word that is none of the verbs `known` below the command `path`."""
    near = difflib.get_close_matches(got.lower(), known, 1, 0.5)
    guess = (
        t("Did you mean {near}?", near=f"{_short(path)} {near[0]}")
        if near
        else t("They are: {all}.", all=listed(known))
    )
    return RecipeError("TL-RECIPE-VERB", where=_short(path), got=got, guess=guess, help=_help(path))


def as_ours(error: Any) -> RecipeError:
    """TL-RECIPE-USAGE for an error of the parser."""
    path = _short(error.ctx.command_path) if getattr(error, "ctx", None) else "tuneloop"
    return wrong(path, _problem(error).rstrip(". "))


def wrong(verb: str, problem: str) -> RecipeError:
    """TL-RECIPE-USAGE; `problem` says, without a full stop, what is wrong with a line of `verb` ("tuneloop chat")."""
    return RecipeError("TL-RECIPE-USAGE", where=verb, problem=problem, help=_help(verb))


def _help(path: str) -> str:
    return show.command(*_short(path).split()[1:], "--help")


def _problem(error: Any) -> str:
    """What is wrong, without a full stop at its end. An error of a kind not known here keeps the parser's words."""
    kind, words = type(error).__name__, str(error.format_message())
    option = getattr(error, "option_name", "") or ""
    if kind == "NoSuchOption":
        return t("there is no option {name}", name=option) + _instead(option, _options(error))
    if kind == "MissingParameter" and error.param is not None:
        name = error.param.name if error.param.param_type_name == "argument" else error.param.opts[0]
        return t("{name} is missing", name=name)
    if kind == "BadOptionUsage":
        if "does not take" in words:
            return t("{name} is a switch and takes no value", name=option)
        return t("the value of {name} is missing", name=option)
    if kind == "BadParameter" and error.param is not None:
        return _bad_value(error, words)
    if "unexpected extra argument" in words:
        extra = words[words.find("(", words.find("argument(s)") + 11) + 1 :].rstrip(")")
        return t("there is a word too many: {words}", words=extra)
    return words


def _instead(option: str, known: Sequence[str]) -> str:
    """What to write for an option that does not exist: a key of the recipe, or the nearest option."""
    near = difflib.get_close_matches(option, known, 1, 0.7)
    if "--set" in known and not (near and near[0].replace("-", "") == option.replace("-", "").replace("_", "")):
        from tuneloop.recipe.recipe import nearest

        key = nearest(option.lstrip("-").replace("-", "_"))
        if key and not (near and difflib.SequenceMatcher(None, option, near[0]).ratio() > 0.85):
            return t(" (the recipe has {key}: --set {key}=VALUE)", key=key)
    return t(" (did you mean {near}?)", near=near[0]) if near else ""


def _bad_value(error: Any, words: str) -> str:
    """What an option takes, where that is a number; else the parser's words."""
    param = error.param
    name = param.opts[0] if param.param_type_name == "option" else param.name
    annotation = str(getattr(getattr(param, "type_descriptor", None), "annotation", ""))
    integer = "int" in annotation
    if not integer and "float" not in annotation:
        return t("the value of {name} does not fit: {error}", name=name, error=error.message)
    low, high = getattr(param, "min", None), getattr(param, "max", None)
    need = t("a whole number") if integer else t("a number")
    if low is not None and high is not None:
        need += t(" ({low} to {high})", low=low, high=high)
    elif low is not None:
        need += t(" ({low} or more)", low=low)
    return t("{name} takes {need}", name=name, need=need)


def _options(error: Any) -> list[str]:
    """Every option of the verb that the error is about."""
    if getattr(error, "ctx", None) is None:
        return []
    return [o for p in error.ctx.command.get_params(error.ctx) for o in p.opts if o.startswith("--")]


def _short(path: str) -> str:
    """The command as a person writes it, however it was started.

    >>> _short("python -m tuneloop model")
    'tuneloop model'
    """
    return "tuneloop" + path.rpartition("tuneloop")[2] if "tuneloop" in path else path
