"""Verbs: commands of the parser with our help pages, our words for errors, and --lang anywhere in the line."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from tuneloop.base import language
from tuneloop.base.environment import named
from tuneloop.base.errors import RecipeError
from tuneloop.base.language import t
from tuneloop.cli import help, usage
from tuneloop.cli.signals import status


def speak(lang: str) -> None:
    """Choose the language by one of its names. Raises TL-RECIPE-LANGUAGE for any other word."""
    if not named(lang):
        raise RecipeError("TL-RECIPE-LANGUAGE", got=lang)
    language.use(lang)


def spoken(words: list[str]) -> tuple[list[str], str]:
    """The words of a command line without --lang, and its last value; what stands behind a -- is left as it is.

    >>> spoken(["doctor", "--lang", "zh", "--", "--lang=en"])
    (['doctor', '--', '--lang=en'], 'zh')
    """
    rest: list[str] = []
    lang = ""
    left = iter(words)
    for word in left:
        if word == "--":
            return [*rest, word, *left], lang
        if word == "--lang":
            lang = next(left, "") or "?"
        elif word.startswith("--lang="):
            lang = word.removeprefix("--lang=") or "?"
        else:
            rest.append(word)
    return rest, lang


def _heard(words: list[str]) -> list[str]:
    """The words without --lang, its language chosen."""
    rest, lang = spoken(words)
    if lang:
        speak(lang)
    return rest


class Verb(TyperCommand):
    """A verb."""

    def get_help(self, ctx: Any) -> str:
        return help.page(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, _heard(args))
        except usage.UsageError as error:
            if getattr(error, "ctx", None) is None:  # some of the parser's errors do not say which verb they are about
                error.ctx = ctx  # type: ignore[attr-defined]
            raise


class Verbs(TyperGroup):
    """A group of verbs, which knows the nearest to a wrong one."""

    def get_help(self, ctx: Any) -> str:
        return help.page(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _heard(args))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise usage.no_verb(args[0], self.list_commands(ctx), ctx.command_path)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            with suppress(OSError):  # after SIGHUP there may be no terminal
                typer.echo(t("Stopped."), err=True)
            raise typer.Exit(status(stop)) from None
