"""The text of an answer, taken apart: thoughts, what is said, and tool calls. Pure: no tokenizer, no model, no HTTP.

The text comes in pieces of any size, and what comes out does not depend on how it was cut: the parser reads character
by character and decides nothing that the next characters could change. A call is handed on once its JSON is whole; what
begins like a call and is none is given back as text, and nothing is lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from typing import TypeAlias

from tuneloop.base.errors import ServeError
from tuneloop.serving.answers.call_formats import THOUGHT, CallFormat, Form, call_format, forced_call, markers, thinks
from tuneloop.serving.answers.call_json import MOST_NAME, calls_in, named_call
from tuneloop.serving.engine import CallPiece, Query

__all__ = ["AnswerParser", "CallFormat", "Delta", "answer_parser", "call_format", "forced_call", "markers", "thinks"]

MOST_DEPTH = 64
"""Deepest nesting of a call's JSON; what is deeper is text."""
_PYTHON_TAG = "<|python_tag|>"
_OUTSIDE = frozenset('{}[]:,"+-.0123456789eEtrufalsn \t\r\n')
"""What JSON has outside of its texts."""

_TEXT = re.compile(r"[^\s<\[]+")
"""What neither begins a marker nor is white space."""
_QUOTED = re.compile(r'[^"\\]+')

Steps: TypeAlias = Generator[None, None, bool]
"""A reading under way: it yields where it needs more text."""
Reading: TypeAlias = Generator[None, None, str]


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in an answer."""

    text: str = ""
    thought: str = ""
    calls: tuple[CallPiece, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.thought or self.calls)


def answer_parser(template: str | None, prompt: str, query: Query) -> AnswerParser:
    """The parser for the answers of a model with this chat template; `prompt` is the rendered text of the chat.

    An answer that is held to a schema, or must call a tool, has no thought, though the prompt has begun one.

    Raises TL-SERVE-UNSUPPORTED for tools where the template takes none, or has them called in an unknown form.
    """
    calls = call_format(template) if query.tools else None
    if query.tools and calls is None:
        raise ServeError("TL-SERVE-UNSUPPORTED", where="tools", param="tools", got=f"[{len(query.tools)}]")
    held = query.schema is not None or (query.tools and query.tool_choice != "auto")
    return AnswerParser(
        calls,
        names=[str(tool["function"]["name"]) for tool in query.tools],
        thoughts=thinks(template),
        opened=not held and thinks(template) and prompt.rstrip().endswith(THOUGHT[0]),
        parallel=query.parallel_tool_calls,
    )


class AnswerParser:
    """Takes the text of one answer apart.

    Parameters: `calls` is the form of calls, None where no tools are offered; `names` the tools' names, which a call
    without a marker must have to be one; `thoughts` whether the model thinks; `opened` whether the prompt has begun the
    thought (R1); with `parallel` False the answer is `done` after its first call, and the rest is left out.

    >>> parser = AnswerParser(call_format("{{ tools }}<tool_call>"), thoughts=True)
    >>> parser.feed("<think>hm</think>Yes. <tool_"), parser.called
    (Delta(text='Yes.', thought='hm', calls=()), False)
    >>> delta = parser.feed('call>{"name": "f", "arguments": {"x": 1}}</tool_call>')
    >>> delta.calls[0].name, delta.calls[1].arguments, parser.end(), parser.called
    ('f', '{"x": 1}', Delta(text='', thought='', calls=()), True)
    """

    def __init__(
        self,
        calls: CallFormat | None = None,
        *,
        names: Collection[str] = (),
        thoughts: bool = False,
        opened: bool = False,
        parallel: bool = True,
    ) -> None:
        self._format, self._names = calls, frozenset(names)
        self._opened, self._parallel = opened, parallel
        self._buffer, self._at, self._ended = "", 0, False
        self._raw: list[str] = []
        """What was read since the last decision."""
        self._blanks = ""
        """White space before what comes next: dropped where that is a call."""
        self._follows_call = False
        """Whether it stands behind a call: dropped at the end, too."""
        self._text: list[str] = []
        self._thought: list[str] = []
        self._pieces: list[CallPiece] = []
        self._count = 0
        self.done = False
        """Whether nothing more is wanted of the answer."""
        self._steps = self._answer(thoughts or opened)

    @property
    def called(self) -> bool:
        """Whether the answer has called a tool: it then finishes by "tool_calls"."""
        return self._count > 0

    def feed(self, text: str) -> Delta:
        """What a further piece of the answer's text brings."""
        self._buffer, self._at = self._buffer[self._at :] + text, 0
        return self._read()

    def end(self) -> Delta:
        """What was held back, at the end of the answer."""
        self._ended = True
        return self._read()

    def _read(self) -> Delta:
        next(self._steps, None)
        delta = Delta("".join(self._text), "".join(self._thought), tuple(self._pieces))
        self._text.clear()
        self._thought.clear()
        self._pieces.clear()
        return delta

    def _answer(self, thinking: bool) -> Generator[None, None, None]:
        if thinking:
            yield from self._think()
        if self._format is not None:
            yield from self._speak(_READERS[self._format.form])
        while not self._ended:
            if not self.done:
                self._text.append(self._buffer[self._at :])
            self._at = len(self._buffer)
            yield
        if not self.done:
            self._text.append(self._buffer[self._at :])

    def _think(self) -> Generator[None, None, None]:
        """The thought at the beginning of an answer, without the blanks around it."""
        blanks = yield from self._white()
        if not (yield from self._accept(THOUGHT[0])) and not self._opened:
            self._text.append(blanks)
            return
        yield from self._white()
        while not (yield from self._accept(THOUGHT[1])):
            blanks = yield from self._white()
            if blanks and (yield from self._accept(THOUGHT[1])):
                break
            self._thought.append(blanks + (self._run(_TEXT) or (yield from self._take())))
            if not (yield from self._peek()):
                return
        yield from self._white()

    def _speak(self, reader: Callable[[AnswerParser, bool], Steps]) -> Generator[None, None, None]:
        """Text and calls, in any order."""
        first = True
        while not self.done:
            blanks = yield from self._white()
            self._blanks += blanks
            if not (yield from self._peek()):
                break
            self._raw.clear()
            if not (yield from reader(self, first)):
                self._say(self._run(_TEXT) or (yield from self._take()))
            first = False
        if not self._follows_call:
            self._say("")

    def _say(self, text: str) -> None:
        """Text, with the white space that was held back before it."""
        self._text.append(self._blanks + text)
        self._blanks, self._follows_call = "", False

    def _give_back(self) -> None:
        """What was read was no call."""
        self._say("".join(self._raw))
        self._raw.clear()

    # Characters

    def _peek(self) -> Reading:
        """The next character, "" at the end; it stays."""
        while self._at >= len(self._buffer) and not self._ended:
            yield
        return self._buffer[self._at : self._at + 1]

    def _take(self) -> Reading:
        """The next character, "" at the end."""
        character = yield from self._peek()
        self._at += len(character)
        self._raw.append(character)
        return character

    def _run(self, pattern: re.Pattern[str]) -> str:
        """Characters that are at hand and that this pattern takes: those that decide nothing, many at a time."""
        run = pattern.match(self._buffer, self._at)
        if run is None:
            return ""
        self._at = run.end()
        self._raw.append(run[0])
        return run[0]

    def _accept(self, literal: str) -> Steps:
        """Whether the text goes on with these words; if so, they are read."""
        for length in range(1, len(literal) + 1):
            while len(self._buffer) - self._at < length and not self._ended:
                yield
            if self._buffer[self._at : self._at + length] != literal[:length]:
                return False
        self._at += len(literal)
        self._raw.append(literal)
        return True

    def _white(self) -> Reading:
        """White space, as much as there is."""
        out: list[str] = []
        while (yield from self._peek()).isspace():
            out.append((yield from self._take()))
        return "".join(out)

    def _until(self, ends: str, most: int) -> Reading:
        """Characters before one of `ends`, at most so many."""
        out: list[str] = []
        while len(out) < most and (character := (yield from self._peek())) and character not in ends:
            out.append((yield from self._take()))
        return "".join(out)

    def _json(self) -> Reading:
        """A JSON object or list, as it stands; "" where the text is none, up to where that shows."""
        out: list[str] = []
        depth, quoted, escaped = 0, False, False
        while True:
            character = yield from self._peek()
            if not character or (not quoted and character not in (_OUTSIDE if depth else "{[")):
                return ""
            if quoted and not escaped and (run := self._run(_QUOTED)):
                out.append(run)
                continue
            out.append((yield from self._take()))
            if quoted:
                quoted = escaped or character != '"'
                escaped = not escaped and character == "\\"
            elif character == '"':
                quoted = True
            elif character in "{[":
                depth += 1
                if depth > MOST_DEPTH:
                    return ""
            elif character in "}]":
                depth -= 1
                if not depth:
                    return "".join(out)

    # Calls

    def _call(self, calls: list[tuple[str, str]]) -> bool:
        """Hand calls on; False where there is none."""
        assert self._format is not None
        for name, arguments in calls if self._parallel else calls[:1]:
            self._pieces.append(CallPiece(self._count, self._format.new_id(), name))
            self._pieces.append(CallPiece(self._count, arguments=arguments))
            self._count += 1
        if calls:
            self._raw.clear()
            self._blanks, self._follows_call = "", True
            self.done = not self._parallel
        return bool(calls)

    def _tagged(self, first: bool) -> Steps:
        """Hermes and Qwen: <tool_call>{"name": …, "arguments": {…}}</tool_call>."""
        if not (yield from self._accept("<tool_call>")):
            return first and (yield from self._untagged())
        yield from self._white()
        if self._call(calls_in((yield from self._json()))):
            self._blanks = yield from self._white()
            if (yield from self._accept("</tool_call>")):
                self._blanks = ""
        else:
            self._give_back()
        return True

    def _untagged(self) -> Steps:
        """The same without its tags, alone or in a fence, as small models of Qwen write it at an answer's beginning."""
        fenced = yield from self._accept("```json")
        if fenced:
            yield from self._white()
        if (yield from self._peek()) != "{":
            if fenced:
                self._give_back()
            return fenced
        calls = calls_in((yield from self._json()))
        if not all(name in self._names for name, _ in calls) or not self._call(calls):
            self._give_back()
        elif fenced:
            self._blanks = yield from self._white()
            if (yield from self._accept("```")):
                self._blanks = ""
        return True

    def _bare(self, first: bool) -> Steps:
        """Llama 3: the answer is {"name": …, "parameters": {…}}, several with ; between them."""
        tagged = yield from self._accept(_PYTHON_TAG)
        if not tagged and not first:
            return False
        if tagged:
            yield from self._white()
        while True:
            if (yield from self._peek()) not in ("{", "["):
                break
            calls = calls_in((yield from self._json()))
            if not all(tagged or name in self._names for name, _ in calls) or not self._call(calls):
                break
            if self.done:
                return True
            self._blanks = yield from self._white()
            self._raw.clear()
            if (yield from self._accept(";")):
                yield from self._white()
            tagged = yield from self._accept(_PYTHON_TAG)
        if not self._raw:
            return self.called
        self._give_back()
        return True

    def _sections(self, first: bool) -> Steps:
        """DeepSeek: V3 and R1 write function<sep>NAME and a fence around the arguments, V3.1 NAME<sep> and these."""
        assert self._format is not None
        all_begin, all_end, begin, end, sep = self._format.markers
        opened = yield from self._accept(all_begin)
        if opened:
            yield from self._white()
        if not (yield from self._accept(begin)):
            if opened:
                self._give_back()
            return opened
        while True:
            name = yield from self._section_name(sep)
            yield from self._white()
            if (yield from self._accept("```json")):
                yield from self._white()
            if not self._call(named_call(name, (yield from self._json()))):
                self._give_back()
                return True
            for closing in ("```", end):
                self._blanks = yield from self._white()
                if (yield from self._accept(closing)):
                    self._blanks = ""
            if self.done:
                return True
            self._blanks += yield from self._white()
            self._raw.clear()
            if not (yield from self._accept(begin)):
                if (yield from self._accept(all_end)):
                    self._blanks = ""
                return True

    def _section_name(self, sep: str) -> Reading:
        """The function's name, before or behind the separator; "" where there is none."""
        name = (yield from self._until("<\n", MOST_NAME)).strip()
        if not (yield from self._accept(sep)):
            return ""
        return name if name != "function" else (yield from self._until("`{\n", MOST_NAME)).strip()

    def _marked(self, first: bool) -> Steps:
        """Mistral: [TOOL_CALLS][{"name": …, "arguments": {…}}], or [TOOL_CALLS]NAME[ARGS]{…}."""
        if not (yield from self._accept("[TOOL_CALLS]")):
            return False
        yield from self._white()
        if (yield from self._peek()) in ("[", "{"):
            calls = calls_in((yield from self._json()))
        else:
            name = (yield from self._until("[{", MOST_NAME)).strip()
            if (yield from self._accept("[CALL_ID]")):
                yield from self._until("[{", MOST_NAME)
            yield from self._accept("[ARGS]")
            calls = named_call(name, (yield from self._json()))
        if not self._call(calls):
            self._give_back()
        return True


_READERS: dict[Form, Callable[[AnswerParser, bool], Steps]] = {
    "tagged": AnswerParser._tagged,
    "bare": AnswerParser._bare,
    "sections": AnswerParser._sections,
    "marked": AnswerParser._marked,
}
