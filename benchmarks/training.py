"""Training beside the peers: python -m benchmarks train [--only lora,full] [--ways tuneloop,trl-packing] [--rows 40].

Every way runs in a process of its own, in turn, on all cores, on the same rows; a way that fails says why and the
others go on. Results are kept (results.py), so that a session can be taken up where it stopped (--session last), and
`python -m benchmarks table` makes pages of them. What is measured, and how, stands in the pages.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import rows, starting
from benchmarks.environments import ROOT, VARIABLES, home, interpreter
from benchmarks.machine import machine
from benchmarks.results import begin, read, write

CHAT, ENCODER = "smollm2-135m-instruct", "all-minilm-l6-v2"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do a section's work: whose, and how. `whole` is a cold run instead of steady steps."""

    section: str
    name: str
    peer: str = ""
    mode: str = "defaults"
    matmul: str = "float32"
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """What the ways of a section have in common."""

    rows: Callable[[int], tuple[list[rows.Row], list[rows.Row]]]
    count: int
    epochs: int = 1
    rate: float = 2e-4
    batch: int = 8
    model: str = CHAT


SECTIONS = {
    "lora": Section(rows.alpaca, 40),
    "whole": Section(rows.alpaca, 200),
    "full": Section(rows.alpaca, 40, rate=2e-5),
    "freeze": Section(rows.alpaca, 40, epochs=10, rate=2e-5),
    "classify": Section(rows.reviews, 200, epochs=5, rate=1e-3, model=ENCODER),
    "dpo": Section(rows.pairs, 24),
}
OTHERS = ("floor", "products", "start", "flat")

WAYS = [
    Way("lora", "tuneloop"),
    Way("lora", "tuneloop-reduced", matmul="auto"),
    Way("lora", "trl", "trl"),
    Way("lora", "trl-no-checkpointing", "trl", "no-checkpointing"),
    Way("lora", "trl-padding-free", "trl", "padding-free"),
    Way("lora", "trl-packing", "trl", "packing"),
    Way("lora", "llamafactory", "llamafactory"),
    Way("lora", "tutorial", "trl", "tutorial"),
    Way("full", "tuneloop"),
    Way("full", "trl-no-checkpointing", "trl", "no-checkpointing"),
    Way("full", "trl-packing", "trl", "packing"),
    Way("freeze", "tuneloop"),
    Way("freeze", "trl-packing", "trl", "packing"),
    Way("freeze", "llamafactory", "llamafactory", "no-checkpointing"),
    Way("classify", "tuneloop"),
    Way("classify", "trainer", "trl"),
    Way("dpo", "tuneloop"),
    Way("dpo", "trl", "trl"),
    Way("dpo", "trl-no-checkpointing", "trl", "no-checkpointing"),
    Way("whole", "tuneloop", whole=True),
    Way("whole", "trl", "trl", whole=True),
]


def threads() -> int:
    """All cores that this process may use; OMP_NUM_THREADS, where it is set, says fewer."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(os.environ.get("OMP_NUM_THREADS") or usable)


def environment(cold: Path | None = None) -> dict[str, str]:
    """What every way's process is told. `cold` is an empty folder in place of every cache."""
    kept = cold or home() / "cache"
    kept.mkdir(parents=True, exist_ok=True)
    own = {
        "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error", "DISABLE_VERSION_CHECK": "1", "OMP_NUM_THREADS": str(threads()),
        "PYTHONUNBUFFERED": "1", "TUNELOOP_HOME": str(kept / "tuneloop"), "HF_HOME": str(kept / "hub"),
        "TORCHINDUCTOR_CACHE_DIR": str(kept / "inductor"), "TRITON_CACHE_DIR": str(kept / "triton"),
        "XDG_CACHE_HOME": str(kept / "others"),
    }  # fmt: skip
    return {k: v for k, v in os.environ.items() if k not in VARIABLES.values()} | own


def model(name: str) -> str:
    """The folder of a model, pulled if need be."""
    from tuneloop.hub.resolve import resolve

    return str(resolve(name))


def command(way: Way, job: Path) -> list[str]:
    if not way.peer:
        return [sys.executable, "-m", "benchmarks.ours", str(job)]
    return [interpreter(way.peer), str(ROOT / "benchmarks" / "peers" / f"with_{way.peer}.py"), str(job)]


def measured(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    """What a process tells in its line RESULT. Raises RuntimeError with the end of its words."""
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    told = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not told:
        raise RuntimeError((done.stderr or done.stdout)[-3000:].strip())
    found: dict[str, Any] = json.loads(told[-1])
    return found


def once(way: Way, count: int, epochs: int, most: int | None) -> dict[str, Any]:
    """One way in a process and a folder of its own."""
    section = SECTIONS[way.section]
    train, held = section.rows(count)
    folder = Path(tempfile.mkdtemp(prefix=f"{way.section}-{way.name}-", dir=home()))
    try:
        (folder / "train.json").write_text(json.dumps(train), encoding="utf-8")
        (folder / "held.json").write_text(json.dumps(held[:most]), encoding="utf-8")
        job = {
            "section": "lora" if way.whole else way.section, "mode": way.mode, "matmul": way.matmul,
            "model": model(section.model), "epochs": epochs, "rate": section.rate, "batch": section.batch,
        }  # fmt: skip
        called, env = command(way, folder / "job.json"), environment(folder / "cold" if way.whole else None)
        (folder / "job.json").write_text(json.dumps({**job, "began": time.time()}), encoding="utf-8")
        return {"rows": count, "epochs": epochs, "held_rows": len(held[:most]), **measured(called, env)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def floor(count: int) -> dict[str, Any]:
    """The arithmetic that the LoRA section needs, and the rate of this machine, measured now."""
    with tempfile.TemporaryDirectory(dir=home()) as made:
        path = Path(made) / "rows.json"
        path.write_text(json.dumps(rows.alpaca(count)[0]), encoding="utf-8")
        return measured([sys.executable, "-m", "benchmarks.floor", model(CHAT), str(path)], environment())


def work(wanted: argparse.Namespace) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """(section, way, how to measure it), in turn."""
    only = [*SECTIONS, *OTHERS] if not wanted.only else wanted.only.split(",")
    if not wanted.only and not wanted.whole:
        only.remove("whole")
    named = wanted.ways.split(",") if wanted.ways else []
    if unknown := set(only) - {*SECTIONS, *OTHERS} | set(named) - {way.name for way in WAYS}:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}")

    def job(way: Way) -> Callable[[], dict[str, Any]]:
        section = SECTIONS[way.section]
        count = section.count if way.whole else wanted.rows or section.count
        return lambda: once(way, count, wanted.epochs or section.epochs, wanted.held)

    if "floor" in only:
        yield "floor", "floor", lambda: floor(wanted.rows or SECTIONS["lora"].count)
    for way in WAYS:
        if way.section in only and (not named or way.name in named):
            yield way.section, way.name, job(way)
    if "products" in only:
        yield "products", "products", lambda: measured([sys.executable, "-m", "benchmarks.products"], environment())
    if "start" in only:
        yield "start", "start", lambda: starting.measure(model(CHAT), environment())
    if "flat" in only:
        yield "flat", "flat", lambda: measured([sys.executable, "-m", "benchmarks.flat"], environment())


def short(told: dict[str, Any]) -> str:
    """One line of a result for the screen."""
    words = {k: v for k, v in told.items() if isinstance(v, int | float) and k not in {"at", "epochs"}}
    return ", ".join(f"{k} {v:.4g}" for k, v in words.items())


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks train")
    parser.add_argument("--only", default="", help=f"sections: {', '.join([*SECTIONS, *OTHERS])}")
    parser.add_argument(
        "--ways", default="", help=f"of these sections: {', '.join(dict.fromkeys(w.name for w in WAYS))}"
    )
    parser.add_argument("--rows", type=int, help="rows of a section; default 40 chats, 200 reviews, 24 pairs")
    parser.add_argument("--epochs", type=int, help="epochs of a section; default 10 for freeze, 5 for classify, else 1")
    parser.add_argument("--held", type=int, help="fewer held-out rows, for a trial; default 50 chats")
    parser.add_argument("--whole", action="store_true", help="a cold run of one epoch of 200 rows as well")
    parser.add_argument("--session", default="new", help="new, last, or the name of one: its missing ways are measured")
    parser.add_argument("--redo", action="store_true", help="in a session that is there, measure again what it has")
    wanted = parser.parse_args(arguments)
    session = begin(wanted.session)
    there = set() if wanted.redo else {(one["section"], one["way"]) for one in read(session) if "error" not in one}
    write(session, "machine", "machine", {"threads": threads(), **machine()})
    failed = 0
    for section, way, measure in work(wanted):
        if (section, way) in there:
            continue
        print(f"{section}/{way} ...", file=sys.stderr, flush=True)
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        if load and load > 1.5 * threads():
            print(f"  other programs run (load {load}): these figures are worth little", file=sys.stderr, flush=True)
        try:
            told = measure()
        except (RuntimeError, ValueError, OSError, subprocess.CalledProcessError) as error:
            failed += 1
            told = {"error": str(error)}
            print(f"  failed: {error}", file=sys.stderr, flush=True)
        else:
            print(f"  {short(told)}", file=sys.stderr, flush=True)
        write(session, section, way, {"threads": threads(), "load": load, **told})
    if failed:
        print(f"{failed} ways failed; the table leaves them out", file=sys.stderr)
