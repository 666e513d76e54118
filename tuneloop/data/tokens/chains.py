"""Records as text, the way one tokenizer needs it: contexts and answers in turn, and which answers cannot be said."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from tuneloop.base.errors import DataError
from tuneloop.base.records import Message, Record
from tuneloop.data.kinds import KINDS, Encoding, dialogues
from tuneloop.data.tokens.answers import NO_THOUGHT, carried, unsaid
from tuneloop.data.tokens.control_tokens import ControlTokens, control_tokens, unguarded
from tuneloop.data.tokens.named_templates import fuller
from tuneloop.data.tokens.samples import SPELLED, Unsaid
from tuneloop.data.tokens.templates import Renderer, stop_texts


@dataclass(frozen=True, slots=True)
class Chain:
    """One sample as text, with guards where its messages spell control tokens. `cuts` are the ends of its pieces, in
    characters: context, answer, context, answer, …

    `before` and `after` are ids around the text; `everything`: all its tokens are trained, those behind it too. `cut`:
    the last answer went on where the text ends, so no end token is missing there.
    """

    text: str
    cuts: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    everything: bool = False
    cut: bool = False

    @property
    def pieces(self) -> list[str]:
        return [self.text[a:b] for a, b in pairwise((0, *self.cuts))]

    @property
    def turns(self) -> list[Chain]:
        """The same answers, each in a chain of its own."""
        ends = list(zip(self.cuts[::2], self.cuts[1::2], strict=True))
        return [Chain(self.text[:end], (begin, end), cut=self.cut and end == ends[-1][1]) for begin, end in ends]


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer as text: from `begin` on it is trained, what stands before is the context in which it is served."""

    text: str
    begin: int
    cut: bool = False


class ChainWriter:
    """Writes records as text for one tokenizer."""

    def __init__(self, tokenizer: Any, empty_thoughts: bool = False) -> None:
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer, guarded=True)
        self._control = control_tokens(tokenizer)
        self._stops = stop_texts(tokenizer)
        self._fuller = fuller(tokenizer)
        self._empty_thought = "" if empty_thoughts else empty_thought(tokenizer)

    def write(self, records: Sequence[Record]) -> tuple[list[list[Chain]], tuple[Unsaid, ...]]:
        """The samples of each record, as text; the answers of all that no sample trains, and what they spell of control
        tokens."""
        lost: list[Unsaid] = []
        chains = [ENCODINGS[KINDS[record.kind].encoding](self, row, record, lost) for row, record in enumerate(records)]
        for row, record in enumerate(records):
            lost += [Unsaid(row, turn, SPELLED, token) for turn, token in self._control.spelled(record)]
        return chains, tuple(lost)

    def answers(self, row: int, record: Record, lost: list[Unsaid]) -> list[Chain]:
        """The trained answers; none where the last one matters and cannot be said."""
        trained = [at for at, m in enumerate(record.messages) if m.role == "assistant" and m.trained]
        turns = self._speakable(row, record, trained, lost)
        if KINDS[record.kind].last_answer and any(u.row == row and u.turn == len(record.messages) for u in lost[-1:]):
            return []
        return _chained(turns)

    def alternatives(self, row: int, record: Record, lost: list[Unsaid]) -> list[Chain]:
        """The last answer of each alternative; none at all where one of them cannot be said."""
        before = len(lost)
        chains = [c for turns in dialogues(record) for c in self._last(row, record.with_messages(turns), lost)]
        return [] if len(lost) > before else chains

    def text(self, row: int, record: Record, lost: list[Unsaid]) -> list[Chain]:
        """The text with the end token behind it, unless it was cut off."""
        end = self._tokenizer.eos_token_id
        text = self._control.guarded("".join(m.content for m in record.messages))
        cut = any(m.cut for m in record.messages)
        after: tuple[int, ...] = () if end is None or cut else (int(end),)
        return [Chain(text, before=self._frame()[0], after=after, everything=True, cut=cut)]

    def framed(self, row: int, record: Record, lost: list[Unsaid]) -> list[Chain]:
        """The text, or the pair of texts, as the tokenizer frames it."""
        before, after = self._frame()
        texts = (self._control.guarded(m.content) for m in record.messages)
        return [Chain(self.between.join(texts), before=before, after=after)]

    def turns(self, record: Record, answers: Sequence[int]) -> list[tuple[str, str]]:
        """For each of these messages: the text in which it is served, and that text with the answer behind it.

        Raises TL-DATA-MASK when an answer cannot be told from its context.
        """
        out = []
        for at, (context, full) in self._rendered(record, answers):
            if not full:
                raise DataError("TL-DATA-MASK", where=f"{record.file}:{record.line}", turn=at + 1)
            out.append((context, full))
        return out

    def _rendered(self, record: Record, answers: Sequence[int]) -> list[tuple[int, tuple[str, str]]]:
        """(place, (context, full)); full is "" where an answer cannot be told from its context."""
        out = []
        texts = self._renderer.turns(record.chat(), answers, record.tools)
        for at, (context, full) in zip(answers, texts, strict=True):
            if not full.startswith(context):
                full = _closed(context, full, record.messages[at], self._control)
            out.append((at, (context, full)))
        return out

    def _speakable(self, row: int, record: Record, answers: Sequence[int], lost: list[Unsaid]) -> list[Turn]:
        """The answers that the template can say. Raises TL-DATA-MASK for one without calls that has no context."""
        out = []
        for at, (context, full) in self._rendered(record, answers):
            message = record.messages[at]
            if not full and not message.tool_calls:
                raise DataError("TL-DATA-MASK", where=f"{record.file}:{record.line}", turn=at + 1)
            if full and message.tool_calls:
                full = self._ended(record, at, context, full)
            written = self._until_stop(full, len(context))
            what = unsaid(message, unguarded(written))
            if message.tool_calls and self._stops and len(context) + len(written) == len(full):
                what = carried(message)  # nothing ends its call, or it is none (full is "")
            if what:
                lost += [Unsaid(row, at + 1, one, self._fuller if one in ("call", "thought") else "") for one in what]
                continue
            begin = len(context)
            if self._empty_thought and not (written.startswith(self._empty_thought) or _thinks(message)):
                # Qwen3's template leaves it out where no user has spoken; what serves the prompt does not.
                full, written = context + self._empty_thought + full[begin:], self._empty_thought + written
            if self._empty_thought and written.startswith(self._empty_thought):
                begin += len(self._empty_thought)
            out.append(Turn(full[: len(context)] + written.rstrip(), begin, True) if message.cut else Turn(full, begin))
        return out

    def _until_stop(self, full: str, begin: int) -> str:
        """What is trained of the text from `begin` on, without the token that ends it."""
        ends = [at for stop in self._stops if (at := full.find(stop, begin)) >= 0]
        return full[begin : min(ends, default=len(full))]

    def _ended(self, record: Record, at: int, context: str, full: str) -> str:
        """The text with the end that the template forgets behind a single call, and writes behind two (DeepSeek-V3)."""
        if not self._stops or any(stop in full[len(context) :] for stop in self._stops):
            return full
        chat = record.chat()[: at + 1]
        twice = {**chat[at], "tool_calls": [chat[at]["tool_calls"][-1]] * 2}
        text = self._renderer.text([*chat[:at], twice], tools=record.tools)
        tail = text.rpartition(full[-16:])[2]
        return full + tail if any(stop in tail for stop in self._stops) else full

    def _last(self, row: int, record: Record, lost: list[Unsaid]) -> list[Chain]:
        """One of the answers that are compared: what follows the prompt is trained.

        An answer of several turns, of which the template rewrites the earlier ones, is compared by its last.
        """
        first = len(record.prompt)
        answers = [at for at in range(first, len(record.messages)) if record.messages[at].role == "assistant"]
        return _chained(self._speakable(row, record, answers, lost))[-1:]

    @cached_property
    def between(self) -> str:
        """What the tokenizer itself puts between the two texts of a pair ([SEP], </s></s>); a line break where it puts
        nothing."""
        (before, after), tokenizer = self._frame(), self._tokenizer
        inner = tokenizer("a", add_special_tokens=False)["input_ids"]
        pair = tokenizer("a", "a")["input_ids"]
        ids = pair[len(before) + len(inner) : len(pair) - len(after) - len(inner)]
        marks = tokenizer.convert_ids_to_tokens(ids)
        return "".join(marks) if ids and set(marks) <= set(tokenizer.all_special_tokens) else "\n"

    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the tokenizer itself puts before and behind a text: <s>, or [CLS] and [SEP]."""
        inner = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        with_frame = self._tokenizer("a")["input_ids"]
        at = next((k for k in range(len(with_frame)) if with_frame[k : k + len(inner)] == inner), len(with_frame))
        return tuple(with_frame[:at]), tuple(with_frame[at + len(inner) :])


ENCODINGS: dict[Encoding, Callable[[ChainWriter, int, Record, list[Unsaid]], list[Chain]]] = {
    "answers": ChainWriter.answers,
    "alternatives": ChainWriter.alternatives,
    "text": ChainWriter.text,
    "framed": ChainWriter.framed,
}
"""How a record becomes samples, by the encoding of its kind."""


def _thinks(message: Message) -> bool:
    """Whether a message has a thought, apart or inside its text."""
    return bool(message.reasoning) or "</think>" in message.content


def _closed(context: str, full: str, message: Message, control: ControlTokens) -> str:
    """`full` for a prompt that opens a thought which the written answer leaves out (DeepSeek-R1), else "".

    What the model must write there is the thought, its end, and the answer; without a thought, the end at once.
    """
    before, opened, blank = context.rpartition("<think>")
    answer = full[len(before) :]
    if not opened or blank.strip() or not full.startswith(before) or "<think>" in answer:
        return ""
    thought = message.reasoning or message.content.rpartition("</think>")[0].rpartition("<think>")[2]
    line = "" if blank.endswith("\n") else "\n"
    return f"{context}{line}{control.guarded(thought.strip())}\n</think>\n\n{answer.lstrip()}"


def _chained(turns: Iterable[Turn]) -> list[Chain]:
    """Turns as runs of context and answer; one run where the template leaves history alone."""
    runs: list[tuple[str, tuple[int, ...], bool]] = []
    for turn in turns:
        if runs and turn.text.startswith(runs[-1][0], 0, turn.begin):
            runs[-1] = (turn.text, (*runs[-1][1], turn.begin, len(turn.text)), turn.cut)
        else:
            runs.append((turn.text, (turn.begin, len(turn.text)), turn.cut))
    return [Chain(text, cuts, cut=cut) for text, cuts, cut in runs]


def empty_thought(tokenizer: Any) -> str:
    """The thought without words that a template puts before an answer which has none, "" where it puts none.

    Qwen3's is `<think>`, nothing, `</think>`; of a prompt that has opened the thought (DeepSeek-R1) it is its end.
    """
    chat = (Message("user", "question"), Message("assistant", "answer"))
    record = Record(chat)
    try:
        context, full = turn(tokenizer, record, 1)
    except DataError:
        return ""
    before, separator, _ = full[len(context) :].rpartition("answer")
    return before if separator and NO_THOUGHT.fullmatch(before) else ""


def turn(tokenizer: Any, record: Record, at: int) -> tuple[str, str]:
    """The text in which message `at`, an answer, is served, and that text with the answer behind it.

    Raises TL-DATA-MASK when the answer cannot be told from its context.
    """
    return ChainWriter(tokenizer, empty_thoughts=True).turns(record, [at])[0]
