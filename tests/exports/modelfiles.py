"""What Ollama reads in a Modelfile: a reader of its own, after the rules of Ollama's parser.

A value ends at the first line break where it is complete. Three quotes or one enclose it, nothing is escaped, and
characters that are not printable are left out.
"""

from __future__ import annotations

COMMANDS = {"from", "license", "template", "system", "adapter", "parameter", "message"}


def read(text: str) -> list[tuple[str, str]]:
    """(command, value) in order; a parameter's command is its name. Raises ValueError for what Ollama refuses."""
    commands, at = [], 0
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
        elif text[at] == "#":
            at = _line_end(text, at)
        else:
            name, at = _word(text, at)
            if name.lower() not in COMMANDS:
                raise ValueError(f"no command: {name}")
            if name.lower() == "parameter":
                name, at = _word(text, at)
            value, at = _value(text, at)
            commands.append((name.lower(), value))
    return commands


def _line_end(text: str, at: int) -> int:
    return next((k for k in range(at, len(text)) if text[k] in "\r\n"), len(text))


def _word(text: str, at: int) -> tuple[str, int]:
    end = next((k for k in range(at, len(text)) if text[k] in " \t\r\n"), len(text))
    return text[at:end], end + 1


def _value(text: str, at: int) -> tuple[str, int]:
    buffer = ""
    for k in range(at, len(text)):
        one = text[k]
        if one in "\r\n" and (done := _unquoted(buffer.strip())) is not None:
            return done, k + 1
        if one.isprintable() or one in " \t\r\n":
            buffer += one
    done = _unquoted(buffer.strip())
    if done is None:
        raise ValueError("the value does not end")
    return done, len(text)


def _unquoted(text: str) -> str | None:
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            complete = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if complete else None
    return text
