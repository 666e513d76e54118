"""The guard: listed words that are found under each disguise, and harmless texts that are blocked or touched."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def found() -> Iterator[tuple[str, int, int, list[str]]]:
    """(disguise, words found, words, some that are not found)."""
    from tests.safety.disguises import all_disguises
    from tuneloop.safety.lexicon import Lexicon, shipped

    lexicon, chance = Lexicon.load(), random.Random(0)
    words = sorted({word.text for word in shipped() if word.category})
    frames = ("{}", "you know {} now", "我觉得{}这样")
    for name, disguise in all_disguises().items():
        missed = []
        for k, word in enumerate(words):
            text = frames[k % 3].format(disguise(word, chance))
            if not lexicon.find(text):
                missed.append(disguise(word, chance))
        yield name, len(words) - len(missed), len(words), missed[:6]


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def harmless(shared: Path) -> Iterator[tuple[str, str]]:
    """(set, turn) of real conversations and reviews."""
    for name in ("data", "aiwei", "tiangou"):
        for row in json.loads((shared / f"emollm/{name}.json").read_text(encoding="utf-8")):
            for turn in row["conversation"]:
                yield f"emollm {name}", turn["input"]
                yield f"emollm {name}", turn["output"]
    for side in ("train", "test"):
        with (shared / f"imdb/{side}.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield f"imdb {side}", row["review"]
    yield from others(shared)


def others(shared: Path) -> Iterator[tuple[str, str]]:
    """(set, turn) of sets that no word or phrase was chosen by."""
    for line in lines_of(shared / "smilechat/dialogs.jsonl"):
        yield from (("smilechat", turn["content"]) for turn in json.loads(line)["dialog"])
    for name in ("medical_sft_1K_format", "sharegpt_zh_1K_format"):
        for line in lines_of(shared / f"medicalgpt/{name}.jsonl"):
            yield from ((name, turn["value"]) for turn in json.loads(line)["conversations"])
    for name, path in (
        ("sst2", "sst2/train.tsv"),
        ("chnsenticorp", "chnsenticorp/train.tsv"),
        ("waimai", "waimai/waimai_10k.csv"),
    ):
        yield from ((name, line) for line in lines_of(shared / path))
    for name in ("llamafactory/alpaca_en_demo", "llamafactory/alpaca_zh_demo", "alpaca_cot_en/aqua_train"):
        for row in json.loads((shared / f"{name}.json").read_text(encoding="utf-8")):
            yield name, row["instruction"] + "\n" + row["output"]


def main() -> None:
    from tuneloop.safety.guard import TextGuard

    for name, hits, words, missed in found():
        print(f"{name:26} {hits:4} of {words}  {hits / words:7.2%}  {missed if missed else ''}", flush=True)
    guard = TextGuard.load()
    turns, touched, blocked = Counter[str](), Counter[str](), Counter[str]()
    for name, text in harmless(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data")):
        turns[name] += 1
        spans = guard.words(text)
        touched[name] += bool(spans)
        blocked[name] += guard.filter(text, "input").blocked or guard.filter(text, "output").blocked
        for span in spans:
            print(f"  {name}: {span.kind}: {text[max(0, span.start - 8) : span.end + 8]!r} <- {span.text!r}")
    for name in turns:
        print(
            f"{name:30} of {turns[name]:5} turns: a listed word "
            f"{touched[name]:3} {touched[name] / turns[name]:.2%}, "
            f"blocked {blocked[name]:3} {blocked[name] / turns[name]:.2%}"
        )


if __name__ == "__main__":
    main()
