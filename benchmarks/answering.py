"""Answers for an evaluation: python -m benchmarks answering. About an hour on one quiet core; --prompts 40 for a look.

200 real prompts of 30 to 384 tokens in Chinese and English, answered greedily in float32 by SmolLM2-135M-Instruct, at
most 64 tokens each, in processes of their own: transformers' `generate` one prompt at a time; `generate` on padded
batches of 4 to 64, in the order of the files and sorted by length; and tuneloop. The processes take turns, --rounds
times, and of each way the least CPU seconds count: a busy machine lengthens the wall clock first. Printed are rows a
second of either clock, peak memory, how many answers are those of `generate` one by one, and the ratios. Wanted: at
least 5 times `generate` one by one, and 1.3 times padded `generate` at its best.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import rows

MODEL = "smollm2-135m-instruct"
SIZES = (4, 8, 16, 32, 64)
LONGEST, MOST = 64, 384
ALONE, BEST = 5.0, 1.3
FILES = ("llamafactory/alpaca_zh_demo.json", "llamafactory/alpaca_en_demo.json", "emollm/data.json",
         "alpaca_cot_en/strategyqa_train.json", "medicalgpt/medical_sft_1K_format.jsonl", "huatuo_o1/sft_en.json",
         "smilechat/dialogs.jsonl", "llamafactory/identity.json")  # fmt: skip
LINE = "{:<28}{:>12}{:>12}{:>12}{:>12}{:>10}"
Chat = list[dict[str, Any]]


def prompts(count: int, length: Callable[[Chat], int]) -> list[Chat]:
    """Prompts of real rows of at most MOST tokens, one file after the other in turn: what stands before the last
    answer."""
    from tuneloop.base.records import Record
    from tuneloop.data.reading import formats
    from tuneloop.recipe.schema import DataFile

    queues: list[Iterator[Any]] = [iter(list(formats.read(DataFile(path=str(rows.data() / name))))) for name in FILES]
    out: list[Chat] = []
    while queues and len(out) < count:
        for queue in list(queues):
            chats = ([m.as_chat() for m in one.prompt] for one in queue if isinstance(one, Record) and one.prompt)
            chat = next((one for one in chats if length(one) <= MOST), None)
            if chat is None:
                queues.remove(queue)
            elif len(out) < count:
                out.append(chat)
    return out


def _generated(model: Any, tokenizer: Any, ids: list[list[int]], size: int, stops: list[int]) -> list[str]:
    """What transformers' `generate` answers, `size` prompts at a time, padded on the left."""
    import torch

    texts = []
    for start in range(0, len(ids), size):
        group = ids[start : start + size]
        longest = max(map(len, group))
        padded = torch.tensor([[stops[0]] * (longest - len(one)) + one for one in group])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in group])
        out = model.generate(padded, attention_mask=mask, do_sample=False, max_new_tokens=LONGEST, eos_token_id=stops,
                             pad_token_id=stops[0])[:, longest:]  # fmt: skip
        texts += [str(tokenizer.decode(one, skip_special_tokens=True)) for one in out]
    return texts


def once(way: str, count: int) -> dict[str, Any]:
    """One way in this process, from prompts to texts; the model is loaded, and has answered two prompts, before."""
    from tuneloop.hub import resolve
    from tuneloop.inference.generate import Answerer
    from tuneloop.inference.tokenizer import load_tokenizer
    from tuneloop.model.load import load_model

    folder = resolve.resolve(MODEL)
    model: Any = load_model(folder, "float32")
    tokenizer = load_tokenizer(folder)
    answerer = Answerer(model, tokenizer)
    chats = prompts(count, answerer.count)
    ids = [answerer.prompt(chat) for chat in chats]
    stops = sorted(answerer.stops)
    name, _, size = way.partition(" ")

    def work(chats: list[Chat], ids: list[list[int]]) -> list[str]:
        if name == "tuneloop":
            return [one.text for one in answerer.answer(chats, max_new_tokens=LONGEST, **_size(size))]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n])) if name == "sorted" else list(range(len(ids)))
        texts = _generated(model, tokenizer, [ids[n] for n in order], int(size or 1), stops)
        by_number = dict(zip(order, texts, strict=True))
        return [by_number[n] for n in range(len(ids))]

    if name != "tuneloop":
        model.set_attn_implementation("sdpa")
    work(chats[:2], ids[:2])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    texts = work(chats, ids)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"way": way, "rows": len(texts), "wall": wall, "cpu": cpu, "peak": peak / 1e6, "model": before / 1e6,
            "texts": texts, "prompt_tokens": sum(map(len, ids)), "longest": max(map(len, ids))}  # fmt: skip


def _size(size: str) -> dict[str, Any]:
    return {"batch_size": int(size)} if size else {}


def measure(ways: list[str], count: int, times: int, show: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Way -> its best round, by CPU seconds."""
    found: dict[str, dict[str, Any]] = {}
    for turn in range(times):
        for way in ways:
            command = [sys.executable, "-m", "benchmarks.answering", "--way", way, "--prompts", str(count)]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONUTF8": "1"})
            line = next((one for one in done.stdout.splitlines() if one.startswith("RESULT ")), None)
            if line is None:
                raise SystemExit(f"{way}: {done.stderr[-2000:]}")
            one = json.loads(line.removeprefix("RESULT "))
            show(f"round {turn + 1}, {way}: {one['wall']:.1f} s, {one['cpu']:.1f} s of CPU")
            if way not in found or one["cpu"] < found[way]["cpu"]:
                found[way] = one
    return found


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Our rows a second over those of `generate` one by one, and over its best padded batch; by CPU seconds.

    >>> ratios({"one": {"cpu": 10}, "padded 4": {"cpu": 4}, "sorted 8": {"cpu": 3}, "tuneloop": {"cpu": 2}})
    {'one': 5.0, 'padded': 2.0, 'sorted': 1.5}
    """
    ours = min(one["cpu"] for way, one in found.items() if way.startswith("tuneloop"))
    groups: dict[str, list[float]] = {}
    for way, one in found.items():
        if not way.startswith("tuneloop"):
            groups.setdefault(way.partition(" ")[0], []).append(one["cpu"] / ours)
    return {name: round(min(each), 2) for name, each in groups.items()}


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """A line a way."""
    alone = found.get("one", next(iter(found.values())))["texts"]
    lines = [LINE.format("way", "rows/s wall", "rows/s CPU", "peak GB", "own GB", "as alone")]
    for way, one in found.items():
        same = sum(a == b for a, b in zip(alone, one["texts"], strict=True)) / len(alone)
        lines.append(
            LINE.format(
                way, f"{one['rows'] / one['wall']:.2f}", f"{one['rows'] / one['cpu']:.2f}", f"{one['peak']:.2f}",
                f"{one['peak'] - one['model']:.2f}", f"{100 * same:.0f}%",
            )
        )  # fmt: skip
    return lines


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks answering", description=__doc__)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ways", default="", help="comma-separated: one, padded 8, sorted 16, tuneloop, tuneloop 32")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.way:
        print("RESULT " + json.dumps(once(given.way, given.prompts)))
        return
    every = ["one", *(f"padded {n}" for n in SIZES), *(f"sorted {n}" for n in SIZES), "tuneloop"]
    ways = [way.strip() for way in given.ways.split(",")] if given.ways else every
    found = measure(ways, given.prompts, given.rounds, lambda text: print(text, file=sys.stderr, flush=True))
    first = next(iter(found.values()))
    print(f"{first['rows']} prompts, {first['prompt_tokens']} tokens, the longest {first['longest']}; "
          f"at most {LONGEST} tokens an answer; best of {given.rounds}")  # fmt: skip
    print("\n".join(table(found)))
    if any(way.startswith("tuneloop") for way in found) and len(found) > 1:
        print("tuneloop's rows/s over those of generate, by CPU seconds: "
              + ", ".join(f"{name} {ratio}" for name, ratio in ratios(found).items())
              + f" (wanted: {ALONE:g} over one, {BEST:g} over the best of padded and sorted)")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
