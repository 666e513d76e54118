"""Preparing speed: raw JSON lines -> packed batches with masks, ours beside TRL's, LLaMA-Factory's and a bound.

    python -m benchmarks prepare [--rows 2000] [--tokenizers smollm2-135m-instruct,qwen3-tokenizer]

Each way runs in a process of its own, the peers' in environments of their own: TUNELOOP_BENCH_TRL and
TUNELOOP_BENCH_LLAMAFACTORY name their Python interpreters; a peer without one is left out. The rows are made from the
sample data (TUNELOOP_BENCH_DATA, by default ../shared/data) by varying them, and never kept. Counted are CPU seconds of
the process and its children, without imports and the loading of the tokenizer; and the peak of its memory, imports and
all.

The bound is written by hand for the two templates and makes the same samples as ours (their tokens and labels are
compared): f-strings in place of a template, one call of the tokenizer for all pieces of a thousand rows, numpy for the
rest. It knows nothing of tools, thoughts, other templates or formats, and checks nothing.

Where a template rewrites history (Qwen3: an answer without a thought has an empty one, in its own turn only), ours and
the bound make a sample a turn, each in the context it is served in; LLaMA-Factory makes one sample, TRL trains the last
answer alone. Rows count alike, tokens do not: both are shown.

The peers' interpreters run this file alone: at its top stands the standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LENGTH = 2048
"""Tokens of a forward pass, for all."""
SOURCES = {
    "emollm/data.json": "conversation", "llamafactory/alpaca_en_demo.json": "alpaca",
    "alpaca_cot_en/strategyqa_train.json": "alpaca", "llamafactory/alpaca_zh_demo.json": "alpaca",
}  # fmt: skip
NAMES = ("bound", "tuneloop", "llamafactory", "trl")
_CLAUSE = re.compile(r"[一-鿿]{2,}")
_SENTENCE = re.compile(r"[^.!?。！？\n]*[.!?。！？\n]*")


def dialogues(data: Path) -> list[list[dict[str, str]]]:
    """The sample data's dialogues as lists of messages; multi-turn Chinese and single-turn ones, half and half."""
    out: list[list[dict[str, str]]] = []
    for name, shape in SOURCES.items():
        for row in json.loads((data / name).read_text(encoding="utf-8")):
            turns = row["conversation"] if shape == "conversation" else [row]
            system = turns[0].get("system")
            chat = [{"role": "system", "content": system}] if system else []
            for turn in turns:
                asked = turn.get("instruction", "") + ("\n" if turn.get("instruction") and turn["input"] else "")
                chat.append({"role": "user", "content": asked + turn["input"]})
                chat.append({"role": "assistant", "content": turn["output"]})
            out.append(chat)
    return out


def varied(text: str, rng: random.Random) -> str:
    """A text as long as this one and not the same: its sentences in turn from another one on, Chinese clauses changed.

    Chinese clauses are words to most tokenizers, and they remember words. So in each clause two neighbours change
    places, else the repetition of the rows would make the later ones quicker.
    """

    def swapped(clause: re.Match[str]) -> str:
        letters = list(clause.group())
        at = rng.randrange(len(letters) - 1)
        letters[at], letters[at + 1] = letters[at + 1], letters[at]
        return "".join(letters)

    parts = [part for part in _SENTENCE.findall(text) if part.strip()]
    at = rng.randrange(len(parts)) if parts else 0
    return _CLAUSE.sub(swapped, "".join([*parts[at:], *parts[:at]])).strip() + f" {rng.randrange(10_000)}"


def write_rows(folder: Path, data: Path, count: int) -> None:
    """`count` rows as messages (ours, the bound's, LLaMA-Factory's) and as prompt and completion (TRL's)."""
    every = dialogues(data)
    with (
        (folder / "rows.jsonl").open("w", encoding="utf-8") as chats,
        (folder / "trl.jsonl").open("w", encoding="utf-8") as pairs,
    ):
        for n in range(count):
            rng = random.Random(n)
            chat = [
                {"role": m["role"], "content": m["content"] if m["role"] == "system" else varied(m["content"], rng)}
                for m in every[rng.randrange(len(every))]
            ]
            chats.write(json.dumps({"messages": chat}, ensure_ascii=False) + "\n")
            pairs.write(json.dumps({"prompt": chat[:-1], "completion": chat[-1:]}, ensure_ascii=False) + "\n")


class Meter:
    """CPU seconds of this process and its children, and the peak of the memory of the larger."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), self._used()
        self._before = self._peak()

    @staticmethod
    def _used() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(u.ru_utime + u.ru_stime for u in both)

    @staticmethod
    def _peak() -> int:
        """In kilobytes. Linux counts in ru_maxrss what the process that started this one held; VmHWM begins anew."""
        status = Path("/proc/self/status")
        found = re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="ascii")) if status.is_file() else None
        own = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)

    def done(self, **facts: Any) -> dict[str, Any]:
        return {
            **facts, "cpu": round(self._used() - self._cpu, 2), "wall": round(time.perf_counter() - self._began, 2),
            "peak_mb": self._peak() // 1024, "peak_before_mb": self._before // 1024,
        }  # fmt: skip


def run_tuneloop(model: Path, folder: Path) -> dict[str, Any]:
    """As a run does it: read, render, tokenise, mask onto the disk, plan and pack every step of an epoch."""
    from tuneloop.base.records import Record
    from tuneloop.data.batches.loader import Steps
    from tuneloop.data.batches.plan import BatchPlan
    from tuneloop.data.reading.formats import read
    from tuneloop.data.tokens import samples as stored
    from tuneloop.data.tokens.encode import encode_parts
    from tuneloop.inference.tokenizer import load_tokenizer
    from tuneloop.recipe.schema import DataFile

    tokenizer = load_tokenizer(model)
    meter = Meter()
    records = (item for item in read(DataFile(path=str(folder / "rows.jsonl"))) if isinstance(item, Record))
    samples = stored.write(folder / "samples", encode_parts(tokenizer, records))
    read_and_tokenised = meter.done()["cpu"]
    plan = BatchPlan(samples.lengths, 8, max(LENGTH, int(samples.lengths.max())), seed=0)
    steps = Steps(plan, samples, 0, plan.steps_per_epoch)
    passes = sum(len(steps[k].micros) for k in range(len(steps)))
    return meter.done(
        samples=len(samples), tokens=samples.tokens, labels=int(samples.labels.sum()), passes=passes,
        tokenise_cpu=read_and_tokenised,
    )  # fmt: skip


def run_bound(model: Path, folder: Path) -> dict[str, Any]:
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    lay_out = lay_out_smollm if "smollm" in model.name else lay_out_qwen3
    meter = Meter()
    ids_of, trained_of, lengths = [], [], []
    with (folder / "rows.jsonl").open(encoding="utf-8") as file:
        for batch in _batches(file, 1000):
            pieces: dict[str, int] = {}
            order: list[int] = []
            trained: list[bool] = []
            ends: list[int] = []
            for line in batch:
                lay_out(json.loads(line)["messages"], pieces, order, trained, ends)
            found = tokenizer.encode_batch_fast(list(pieces), add_special_tokens=False)
            arrays = [np.array(one.ids, np.int32) for one in found]
            sizes = np.array([len(ids) for ids in arrays])[order]
            ids_of.append(np.concatenate([arrays[k] for k in order]))
            trained_of.append(np.repeat(np.array(trained), sizes))
            lengths.append(np.diff(np.cumsum(sizes)[np.array(ends) - 1], prepend=0))
    passes = _packed(np.concatenate(ids_of), np.concatenate(trained_of), np.concatenate(lengths))
    return meter.done(
        samples=sum(map(len, lengths)), tokens=sum(map(len, ids_of)), labels=sum(int(x.sum()) for x in trained_of),
        passes=passes,
    )  # fmt: skip


Chat = list[dict[str, str]]


def lay_out_smollm(chat: Chat, pieces: dict[str, int], order: list[int], trained: list[bool], ends: list[int]) -> None:
    """A dialogue as pieces of text, each with whether it is trained: what SmolLM2's template writes, by hand."""
    context = ""
    if chat[0]["role"] != "system":
        context = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    for message in chat:
        if message["role"] != "assistant":
            context += f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
            continue
        for text in (f"{context}<|im_start|>assistant\n", f"{message['content']}<|im_end|>"):
            order.append(pieces.setdefault(text, len(pieces)))
        trained += [False, True]
        context = "\n"
    order.append(pieces.setdefault("\n", len(pieces)))
    trained.append(False)
    ends.append(len(order))


def lay_out_qwen3(chat: Chat, pieces: dict[str, int], order: list[int], trained: list[bool], ends: list[int]) -> None:
    """The same for Qwen3's template: a sample a turn, because an answer without a thought has an empty one, once."""

    def place(text: str) -> int:
        return pieces.setdefault(text, len(pieces))

    line, empty, head = place("\n"), place("<think>\n\n</think>\n\n"), place("<|im_start|>assistant\n")
    history: list[int] = []
    for message in chat:
        if message["role"] != "assistant":
            history.append(place(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"))
            continue
        answer = place(f"{message['content']}<|im_end|>")
        order += [*history, head, empty, answer, line]
        trained += [*[False] * len(history), False, True, True, False]
        ends.append(len(order))
        history += [head, answer, line]


def _packed(ids: Any, trained: Any, lengths: Any) -> int:
    """Bins of whole samples, one behind the other, with positions and targets; how many."""
    import numpy as np

    starts = np.concatenate([[0], np.cumsum(lengths)])
    order = np.random.default_rng(0).permutation(len(lengths))
    passes, at = 0, 0
    while at < len(order):
        room, members = max(LENGTH, lengths[order[at]]), []
        while at < len(order) and lengths[order[at]] <= room:
            members.append(order[at])
            room -= lengths[order[at]]
            at += 1
        row = np.concatenate([ids[starts[i] : starts[i + 1]] for i in members]).astype(np.int64)
        places = np.concatenate([np.arange(lengths[i]) for i in members])
        mask = np.concatenate([trained[starts[i] : starts[i + 1]] for i in members])
        targets = row[np.flatnonzero(mask)]
        passes += len(row) == len(places) and len(targets) > 0
    return passes


def _batches(lines: Any, size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for line in lines:
        batch.append(line)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def run_trl(model: Path, folder: Path) -> dict[str, Any]:
    """SFTTrainer's own preparation, called by its constructor on a model of one tiny layer."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tiny = LlamaConfig(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                       num_attention_heads=1, num_key_value_heads=1)  # fmt: skip
    args = SFTConfig(output_dir=str(folder / "out"), packing=True, max_length=LENGTH, report_to="none", use_cpu=True,
                     bf16=False, gradient_checkpointing=False, disable_tqdm=True,
                     completion_only_loss=True)  # fmt: skip
    network = LlamaForCausalLM(tiny)
    meter = Meter()
    rows = load_dataset("json", data_files=str(folder / "trl.jsonl"), split="train")
    made = SFTTrainer(model=network, args=args, train_dataset=rows, processing_class=tokenizer).train_dataset
    tokens = sum(len(ids) for batch in made.iter(1000) for ids in batch["input_ids"])
    return meter.done(samples=len(rows), tokens=tokens, passes=len(made))


def run_llamafactory(model: Path, folder: Path) -> dict[str, Any]:
    """get_dataset with packing, as its trainer calls it."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    columns = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
               "system_tag": "system"}  # fmt: skip
    info = {"rows": {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"},
                     "tags": columns}}  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    smol = "smollm" in model.name
    settings: dict[str, Any] = {
        "model_name_or_path": str(model), "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "dataset": "rows", "dataset_dir": str(folder), "template": "chatml" if smol else "qwen3", "cutoff_len": LENGTH,
        "packing": True, "neat_packing": True, "output_dir": str(folder / "out"), "report_to": "none",
        "preprocessing_num_workers": 1, "overwrite_cache": True,
    }  # fmt: skip
    if smol:
        settings["default_system"] = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    model_args, data_args, training_args, _, _ = get_train_args(settings)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    meter = Meter()
    made = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
    return meter.done(samples=None, tokens=sum(sum(b) for batch in made.iter(100) for b in
                                               ([m > 0 for m in row] for row in batch["attention_mask"])),
                      passes=len(made))  # fmt: skip


WAYS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "bound": run_bound, "tuneloop": run_tuneloop, "llamafactory": run_llamafactory, "trl": run_trl,
}  # fmt: skip


def interpreters() -> dict[str, str]:
    """Way -> the Python that runs it. This is the only place that reads the benchmark's variables."""
    peers = {
        "trl": os.environ.get("TUNELOOP_BENCH_TRL", ""),
        "llamafactory": os.environ.get("TUNELOOP_BENCH_LLAMAFACTORY", ""),
    }
    return {name: peers.get(name, sys.executable) for name in NAMES if peers.get(name, sys.executable)}


def once(name: str, python: str, model: Path, folder: Path) -> dict[str, Any]:
    """One way in its own process; its caches lie in `folder` and are gone with it."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false",
             "DISABLE_VERSION_CHECK": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error",
             "OMP_NUM_THREADS": "1"}  # fmt: skip
    inside = ["-m", "benchmarks.prepare"] if python == sys.executable else [__file__]
    done = subprocess.run(
        [python, *inside, "--one", name, "--model", str(model), "--folder", str(folder)],
        env=os.environ | quiet, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def measure(rows: int, tokenizers: list[str]) -> list[dict[str, Any]]:
    """What each way takes for each tokenizer, in turn."""
    from tuneloop.hub.resolve import resolve

    data = Path(os.environ.get("TUNELOOP_BENCH_DATA") or Path(__file__).parents[2] / "shared" / "data")
    out = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_rows(folder, data, rows)
        for tokenizer in tokenizers:
            model = resolve(tokenizer, weights=False)
            for name, python in interpreters().items():
                found = once(name, python, model, folder)
                out.append({"tokenizer": tokenizer, "way": name, "rows": rows, **found})
                print(json.dumps(out[-1]), file=sys.stderr, flush=True)
    return out


def show(found: list[dict[str, Any]]) -> None:
    """A table: rows for each second of CPU, ours over each, peak memory."""
    for tokenizer in dict.fromkeys(one["tokenizer"] for one in found):
        own = {one["way"]: one for one in found if one["tokenizer"] == tokenizer}
        ours = own["tuneloop"]["cpu"]
        rows, tokens = own["tuneloop"]["rows"], own["tuneloop"]["tokens"]
        print(f"\n{rows} chat rows, {tokens / rows:.0f} tokens a row, tokenizer {tokenizer}\n")
        print(f"{'':16}{'rows/CPU s':>12}{'ours over it':>14}{'tokens/CPU s':>14}{'wall s':>9}{'peak MB':>9}"
              f"{'of it imports':>15}")  # fmt: skip
        for name, one in own.items():
            cpu = one["cpu"]
            print(f"{name:16}{one['rows'] / cpu:12.0f}{cpu / ours:14.2f}{one['tokens'] / cpu:14.0f}"
                  f"{one['wall']:9.1f}{one['peak_mb']:9}{one['peak_before_mb']:15}")  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks prepare")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--tokenizers", default="smollm2-135m-instruct,qwen3-tokenizer")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    wanted = parser.parse_args(arguments)
    if wanted.one:
        print("RESULT", json.dumps(WAYS[wanted.one](wanted.model, wanted.folder)))
    else:
        show(measure(wanted.rows, wanted.tokenizers.split(",")))


if __name__ == "__main__":
    main(sys.argv[1:])
