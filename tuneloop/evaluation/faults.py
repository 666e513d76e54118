"""What is wrong with the form of an answer, whatever it says: it does not end, or it repeats itself."""

from __future__ import annotations

from typing import Literal

from tuneloop.base.language import t
from tuneloop.base.records import Reply
from tuneloop.data.cleaning.clean import REPEATS
from tuneloop.data.cleaning.quality import loops, repetition

Fault = Literal["", "unfinished", "repeats"]


def fault(reply: Reply) -> Fault:
    """What is wrong with a reply; "" for one that ends by itself and does not repeat itself.

    >>> fault(Reply("I am Pebble.", 5, 5, "stop")), fault(Reply("I am Pebble, the", 5, 5, "length"))
    ('', 'unfinished')
    >>> fault(Reply("I am Pebble Pebble Pebble Pebble", 5, 9, "length"))
    'repeats'
    """
    if loops(reply.text) or repetition(reply.text) >= REPEATS:
        return "repeats"
    return "" if reply.finish == "stop" else "unfinished"


def words(fault: str) -> str:
    """A fault for the reader; "" for none."""
    return {"unfinished": t("cut off, it did not end"), "repeats": t("repeats itself")}.get(fault, "")
