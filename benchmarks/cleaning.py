"""What cleaning costs a text: python -m benchmarks cleaning. Microseconds of CPU, the best of three.

On a quiet machine, when this was written: language 150, clean 120 a dialogue, mojibake and plain below 20, quality 10
a turn, and personal data where there is none below 30 for 2,500 characters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.prepare import dialogues
from benchmarks.rows import data

LINE = "{:<12}{:>12}{:>12}"


def cost(task: Callable[[Any], object], items: Sequence[Any]) -> float:
    """CPU microseconds an item, the best of three."""
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        for item in items:
            task(item)
        best = min(best, time.process_time() - began)
    return 1e6 * best / len(items)


def main(arguments: list[str]) -> None:
    """Print a line a step."""
    from tuneloop.base.records import Message, Record
    from tuneloop.data.cleaning.clean import clean
    from tuneloop.data.cleaning.languages import language
    from tuneloop.data.cleaning.quality import lost, noise, refuses, repetition
    from tuneloop.data.cleaning.repair import mojibake, normalised
    from tuneloop.safety.pii import find

    chats = dialogues(data())[:400]
    turns = [message["content"] for chat in chats for message in chat]
    records = [Record(tuple(Message(m["role"], m["content"]) for m in chat)) for chat in chats]  # type: ignore[arg-type]
    language("The model is read by the first call.")
    quality = (lost, repetition, refuses, noise)
    steps: dict[str, tuple[Callable[[Any], object], Sequence[Any]]] = {
        "language": (language, turns),
        "mojibake": (mojibake, turns),
        "plain": (normalised, turns),
        "clean": (clean, records),
        "quality": (lambda text: [sign(text) for sign in quality], turns),
        "pii": (find, turns),
    }
    print(LINE.format("step", "µs", "items"))
    for name, (task, items) in steps.items():
        print(LINE.format(name, f"{cost(task, items):.1f}", len(items)))
