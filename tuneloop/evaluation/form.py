"""The form of an answer, whatever it says: how long it is, whether it repeats itself or refuses, and how it thinks."""

from __future__ import annotations

from dataclasses import dataclass

from tuneloop.base.records import Reply
from tuneloop.data.cleaning.quality import refuses
from tuneloop.evaluation.faults import fault
from tuneloop.evaluation.overlap import words

OPENS, CLOSES = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Thought:
    """A reply taken apart: what it thinks, what it answers, and whether both are where they belong."""

    text: str
    answer: str
    well_formed: bool
    """An answer, and before it one thought that is closed, or none. The prompt may have opened the thought."""


def thought(text: str) -> Thought:
    """Take a reply apart.

    >>> thought("<think>2+2</think>4"), thought("2+2</think>4").text, thought("4").well_formed
    (Thought(text='2+2', answer='4', well_formed=True), '2+2', True)
    >>> [thought(x).well_formed for x in ("<think>hm", "<think>hm</think>", "4<think>hm</think>", "")]
    [False, False, False, False]
    """
    before, closed, answer = text.rpartition(CLOSES)
    if not closed:
        answer, _, before = text.partition(OPENS)
        return Thought(before.strip(), visible(text), OPENS not in text and bool(answer.strip()))
    inner = before.strip().removeprefix(OPENS)
    single = OPENS not in inner and CLOSES not in inner and OPENS not in answer
    return Thought(inner.strip(), answer.strip(), single and bool(answer.strip()))


def visible(text: str) -> str:
    """The answer without the thought before it; a thought that never ended leaves nothing.

    >>> visible("<think>2+2</think> 4"), visible("2+2</think>4"), visible("<think>hm"), visible("4")
    ('4', '4', '', '4')
    """
    _, closed, answer = text.rpartition(CLOSES)
    return "" if not closed and OPENS in text else answer.strip()


def length(reply: Reply) -> float:
    """Words of the answer behind its thought, as ROUGE counts them: the same for every tokenizer.

    >>> length(Reply("<think>well</think>Two words.", 1, 1, "stop")), length(Reply("", 1, 1, "stop"))
    (2.0, 0.0)
    """
    return float(len(words(visible(reply.text))))


def repeats(reply: Reply) -> float:
    """100 where a reply repeats itself, else 0.

    >>> repeats(Reply("no no no no no no", 1, 1, "stop")), repeats(Reply("no", 1, 1, "stop"))
    (100.0, 0.0)
    """
    return 100.0 * (fault(reply) == "repeats")


def refused(reply: Reply) -> float:
    """100 where the answer opens with a refusal, else 0.

    >>> refused(Reply("I cannot help with that.", 1, 1, "stop")), refused(Reply("I can.", 1, 1, "stop"))
    (100.0, 0.0)
    """
    return 100.0 * refuses(visible(reply.text))


def thinks(reply: Reply) -> float:
    """100 where a reply thinks before it answers, else 0; a thought without a word is none.

    >>> thinks(Reply("<think>well</think>4", 1, 1, "stop")), thinks(Reply("<think> </think>4", 1, 1, "stop"))
    (100.0, 0.0)
    """
    return 100.0 * bool(thought(reply.text).text)


def thought_length(reply: Reply) -> float:
    """Words of the thought, 0 of a reply that does not think.

    >>> thought_length(Reply("<think>two words</think>4", 1, 1, "stop"))
    2.0
    """
    return float(len(words(thought(reply.text).text)))


def thought_seconds(reply: Reply) -> float:
    """Seconds that the thought took: the share of the reply's time that its share of the characters is.

    >>> thought_seconds(Reply("<think>1</think>", 1, 1, "stop", seconds=2.0))
    2.0
    """
    text = reply.text.strip()
    before, closed, _ = text.rpartition(CLOSES)
    share = len(before) + len(closed) if closed else len(text) - text.find(OPENS) if OPENS in text else 0
    return reply.seconds * share / len(text) if text else 0.0


def well_formed(reply: Reply) -> float:
    """100 where a reply is one closed thought, or none, and then an answer, else 0.

    >>> well_formed(Reply("<think>1</think>2", 1, 1, "stop")), well_formed(Reply("<think>1", 1, 1, "length"))
    (100.0, 0.0)
    """
    return 100.0 * thought(reply.text).well_formed
