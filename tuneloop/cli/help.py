"""Help pages in the chosen language: what a verb does, its examples one a line, and what it takes.

English stands where the verb is written; `messages/zh/help.json` holds the Chinese. It is looked up when a page is
asked for and not when a verb is defined: only then is the language known.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from tuneloop.base import language
from tuneloop.base.language import t

_CLOSING = "，。；：、！？）》”…"


@cache
def _table(tongue: str) -> dict[str, str]:
    if tongue == "en":
        return {}
    path = files("tuneloop").joinpath("messages", tongue, "help.json")
    loaded: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def translated(text: str) -> str:
    """A help text in the chosen language."""
    return _table(language.current()).get(text, text)


def parts(text: str | None) -> tuple[list[str], str]:
    """A verb's help text -> (its paragraphs, its examples with " | " between them), each on one line.

    >>> parts("Do it.\\n\\nExamples: tuneloop do it | tuneloop do\\nmore")
    (['Do it.'], 'tuneloop do it | tuneloop do more')
    """
    joined = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text or "") if part.strip()]
    examples = [part for part in joined if re.match(r"Examples?: ", part)]
    return [p for p in joined if p not in examples], " | ".join(e.partition(": ")[2] for e in examples)


def page(command: Any, ctx: Any) -> str:
    """The help page of a verb or of a group of verbs."""
    width = min(max(shutil.get_terminal_size().columns, 50), 100)
    what, examples = parts(command.help)
    called = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    for bare, word in (("[OPTIONS]", t("[options]")), ("COMMAND [ARGS]...", t("VERB …")), ("{", ""), ("}", "")):
        called = called.replace(bare, word)
    lines = [t("Usage: {usage}", usage=called), ""]
    for paragraph in what:
        lines += [*_wrapped(translated(paragraph), width, "  "), ""]
    if examples:
        lines += [t("Examples:"), *(f"  {one}" for one in translated(examples).split(" | ")), ""]
    shown = [(p.param_type_name, _row(p, ctx)) for p in command.get_params(ctx) if not getattr(p, "hidden", False)]
    sections = [(t("Arguments:"), [row for kind, row in shown if kind == "argument"])]
    if hasattr(command, "list_commands"):
        sections.append((t("Verbs:"), [(n, _first(command.get_command(ctx, n))) for n in command.list_commands(ctx)]))
    sections.append((t("Options:"), [row for kind, row in shown if kind == "option"]))
    for title, rows in sections:
        if rows:
            lines += [title, *_columns(rows, width), ""]
    return "\n".join(lines).rstrip()


def _first(command: Any) -> str:
    """The first sentence of a verb's help."""
    what, _ = parts(command.help)
    return re.split(r"(?<=\.) |(?<=。)", translated(what[0]))[0] if what else ""


def _row(param: Any, ctx: Any) -> tuple[str, str]:
    """(what to write, what it means) of an argument or option."""
    left, right = param.get_help_record(ctx) or ("", "")
    left = re.sub(r" / --no-[\w-]+", "", left)  # a switch that is off by default needs no other switch
    left = re.sub(r"<(?:list\[)?(\w+)[^>]*>", lambda match: f"<{_kind(match[1])}>", left)
    if not param.help:
        return left, right
    extra = right.removeprefix(param.help).strip()
    extra = re.sub(r"\[?default: no-[\w-]+\]?", "", extra)
    extra = re.sub(r"default: ([^;\]]*)", lambda match: t("default: {value}", value=match[1]), extra)
    extra = extra.replace("required", t("required"))
    return left, f"{translated(param.help)} {extra}".strip()


def _kind(word: str) -> str:
    return {"int": t("number"), "float": t("number"), "path": t("path")}.get(word, t("text"))


def _columns(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    """Two columns, the right one wrapped; a left cell that is too long has a line of its own."""
    rows = list(rows)
    left_width = min(max(_cells(left) for left, _ in rows), width // 3)
    for left, right in rows:
        wrapped = _wrapped(right, width - left_width - 4, "")
        if _cells(left) > left_width:
            yield f"  {left}"
        else:
            first = wrapped.pop(0) if wrapped else ""
            yield f"  {left}{' ' * (left_width - _cells(left))}  {first}".rstrip()
        yield from (" " * (left_width + 4) + line for line in wrapped)


def _cells(text: str) -> int:
    """How many columns of a terminal a text takes.

    >>> _cells("run 运行")
    8
    """
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    """Lines of at most `width` columns. Chinese may break between any two signs, but not before a closing one.

    >>> _wrapped("训练，然后 evaluate。", 10, "")
    ['训练，然后', 'evaluate。']
    """
    # Blanks, a bracket of defaults, a Chinese sign, or a word; signs that close something stay with what they close.
    wide = r"\u2e80-\u9fff\uf900-\uffef"
    pieces = re.findall(rf"\s+|\[[^\]]*\]|[{wide}][{_CLOSING}]*|[^\s{wide}]+[{_CLOSING}]*", text)
    lines, line = [], ""
    for piece in pieces:
        if _cells(indent + line + piece.rstrip()) > width and line.strip():
            lines.append(indent + line.rstrip())
            line = ""
        line += piece if line or not piece.isspace() else ""
    return [*lines, indent + line.rstrip()] if line.strip() else lines
