"""python -m benchmarks table [SESSION] [--to FOLDER]: docs/*/benchmarks.md, from results alone."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.environments import ROOT
from benchmarks.ratios import OURS, Found, rate, step, targets
from benchmarks.words import COLUMNS, FACTS, LANGUAGES, PAGE, TARGETS, VERDICT, WAYS, WITHIN, say

Result = dict[str, Any]
Cell = Callable[[Result], str]


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; its numbers stand to the right, its first column to the left.

    >>> print(grid(["a", "b"], [["x", "1"]]))
    | a | b |
    |---|--:|
    | x | 1 |
    """
    line = "|" + "|".join(["---", *["--:"] * (len(head) - 1)]) + "|"
    return "\n".join([*("| " + " | ".join(row) + " |" for row in [head]), line,
                      *("| " + " | ".join(row) + " |" for row in rows)])  # fmt: skip


class Page:
    """One page in one language."""

    def __init__(self, session: str, found: Found, failed: list[Result], language: str) -> None:
        self.session, self.found, self.failed, self.language = session, found, failed, language

    def words(self, key: str, **values: object) -> str:
        return say(PAGE[key], self.language, **values)

    def column(self, key: str, **values: object) -> str:
        return say(COLUMNS[key], self.language, **values)

    def way(self, name: str) -> str:
        return say(WAYS[name], self.language) if name in WAYS else name

    def text(self) -> str:
        parts = [f"# {self.words('title')}", self.words("intro"), self.words("measured", session=self.session)]
        parts += [self.machine(), self.targets()]
        parts += [self.lora(), self.whole(), self.full(), self.freeze(), self.classify(), self.dpo(), self.start()]
        parts += [self.products(), self.prepare(), self.near()]
        if self.failed:
            ways = ", ".join(f"{one['section']}/{one['way']}" for one in self.failed)
            parts.append(self.words("failed", ways=ways))
        return "\n\n".join(filter(None, parts)) + "\n"

    def chapter(self, name: str, *parts: str, **values: object) -> str:
        intro = self.words(f"{name}_intro", **values) if f"{name}_intro" in PAGE else ""
        return "\n\n".join(filter(None, [f"## {self.words(name)}", intro, *parts]))

    def machine(self) -> str:
        one = self.found.one("machine") or {}
        rows = []
        if one:
            rows = [
                [say(FACTS["cpu"], self.language), one["cpu"]],
                [say(FACTS["cores"], self.language), str(one["threads"])],
                [say(FACTS["can"], self.language), ", ".join(one["can"]) or "-"],
                [say(FACTS["memory"], self.language), f"{one['memory_gb']} GB"],
                [say(FACTS["system"], self.language), f"{one['system']}, Python {one['python']}"],
            ]
        versions = {
            "tuneloop" if one["way"].startswith(OURS) else "llamafactory" if one["way"] == "llamafactory" else "trl":
            one["versions"] for one in self.found.all if "versions" in one
        }  # fmt: skip
        for name in ("tuneloop", "trl", "llamafactory"):
            if name in versions:
                every = ", ".join(f"{package} {version}" for package, version in versions[name].items())
                rows.append([say(FACTS[name], self.language), every])
        return self.chapter("machine", grid([self.column("what"), ""], rows)) if rows else ""

    def targets(self) -> str:
        rows = []
        for one in targets(self.found):
            within = say(WITHIN, self.language, n=f"{one.limit:.0%}")
            wanted = within if one.sign == "~" else f"{'≥' if one.sign == '>=' else '≤'} {one.limit:g}"
            value = "-" if one.value is None else f"{one.value:.{4 if one.sign == '~' else 2}f}"
            rows.append([say(TARGETS[one.key], self.language), wanted, value, say(VERDICT[one.reached], self.language)])
        head = [self.column(key) for key in ("target", "wanted", "reached", "good")]
        return self.chapter("targets", grid(head, rows))

    def section(self, name: str, columns: dict[str, Cell], *more: str) -> str:
        """A chapter with a line a way; nothing where nothing was measured."""
        ways = self.found.ways(name)
        if not ways:
            return ""
        rows = [[self.way(way), *(cell(one) for cell in columns.values())] for way, one in ways.items()]
        table = grid([self.column("way"), *columns], rows)
        most = {key: max(one[key] for one in ways.values()) for key in ("rows", "held_rows")}
        return self.chapter(name, table, *more, rows=most["rows"], held=most["held_rows"])

    def _used(self) -> dict[str, Cell]:
        return {
            self.column("wall"): lambda one: f"{one['whole']:.1f}",
            self.column("cpu"): lambda one: f"{one['whole_cpu']:.1f}",
            self.column("peak"): lambda one: f"{one['peak_gb']:.2f}",
            self.column("held"): lambda one: f"{one['held']:.4f}",
        }

    def _over(self, section: str, measure: Callable[[Result], float]) -> dict[str, Cell]:
        """How many times as much it takes, or as fast ours is: `measure` is seconds of the same work."""
        ours = self.found.one(section, OURS)
        return {self.column("ours"): lambda one: f"{measure(one) / measure(ours):.2f}" if ours else "-"}

    def _steady(self, section: str) -> dict[str, Cell]:
        return {
            self.column("rate"): lambda one: f"{rate(one):.0f}",
            **self._over(section, lambda one: 1 / rate(one)),
            self.column("step"): lambda one: f"{step(one):.2f}",
            **self._used(),
        }

    def lora(self) -> str:
        floor = self.found.one("floor")
        words = ""
        if floor:
            words = self.words("floor", tflop=f"{floor['flops'] / 1e12:.2f}", gflops=f"{floor['rate'] / 1e9:.0f}",
                               rate=f"{floor['tokens_per_second']:.0f}")  # fmt: skip
        return self.section("lora", self._steady("lora"), words)

    def full(self) -> str:
        return self.section("full", self._steady("full"))

    def whole(self) -> str:
        return self.section("whole", {**self._over("whole", lambda one: one["whole"]), **self._used()})

    def _epochs(self, section: str, *counts: int) -> dict[str, Cell]:
        def until(n: int) -> Cell:
            return lambda one: f"{one['epoch_ends'][n - 1]:.1f}" if len(one["epoch_ends"]) >= n else "-"

        return {self.column("epochs", n=n): until(n) for n in counts}

    def freeze(self) -> str:
        last = self._over("freeze", lambda one: one["epoch_ends"][-1])
        return self.section("freeze", {**self._epochs("freeze", 1, 3, 10), **last, **self._used()})

    def classify(self) -> str:
        last = self._over("classify", lambda one: one["epoch_ends"][-1])
        right: dict[str, Cell] = {self.column("accuracy"): lambda one: f"{one['accuracy']:.2f}"}
        return self.section("classify", {**self._epochs("classify", 1, 5), **last, **self._used(), **right})

    def dpo(self) -> str:
        work: dict[str, Cell] = {self.column("work"): lambda one: f"{one['work']:.1f}"}
        return self.section("dpo", {**work, **self._over("dpo", lambda one: one["work"]), **self._used()})

    def start(self) -> str:
        start, flat = self.found.one("start"), self.found.one("flat")
        parts = []
        if start:
            parts.append(self.words("start_words", **{k: f"{start[k]:.1f}" for k in ("start", "imports", "help")}))
        if flat:
            head = [self.column(key) for key in ("samples", "plan", "pack")]
            rows = [[f"{int(n):,}", *(f"{x:.1f}" for x in parts)] for n, parts in flat["nanoseconds"].items()]
            parts += [self.words("flat_words"), grid(head, rows)]
        return self.chapter("start", *parts) if parts else ""

    def products(self) -> str:
        one = self.found.one("products")
        if not one:
            return ""
        rows = [
            [p["shape"], *(f"{p[k]:.2f}" for k in ("float32", "bfloat16", "int8_product", "int8")),
             *(f"{100 * p[k]:.2f} %" for k in ("bfloat16_error", "int8_error"))]
            for p in one["products"]
        ]  # fmt: skip
        keys = ("shape", "float32", "bfloat16", "int8_product", "int8", "bfloat16_error", "int8_error")
        return self.chapter("products", grid([self.column(key) for key in keys], rows))

    def prepare(self) -> str:
        every = [row for one in self.found.ways("prepare").values() for row in one["found"]]
        if not every:
            return ""
        ours = {one["tokenizer"]: one["cpu"] for one in every if one["way"] == OURS}
        rows = [
            [one["tokenizer"], self.way(one["way"]), f"{one['rows'] / one['cpu']:.0f}",
             f"{one['cpu'] / ours[one['tokenizer']]:.2f}", f"{one['peak_mb'] / 1e3:.2f}"]
            for one in every
        ]  # fmt: skip
        head = [self.column(key) for key in ("tokenizer", "way", "rows_s", "ours", "peak")]
        return self.chapter("prepare", grid(head, rows))

    def near(self) -> str:
        every = list(self.found.ways("near").values())
        if not every:
            return ""
        rows = [
            [one["way"], f"{one['seconds']:.1f}", f"{one['gigabytes']:.2f}", f"{one['recall']:.4f}",
             f"{one['precision']:.4f}"]
            for one in every
        ]  # fmt: skip
        head = [self.column(key) for key in ("rows", "seconds", "peak", "recall", "precision")]
        return self.chapter("near", grid(head, rows))


def write(session: str, every: list[Result], folder: Path) -> list[Path]:
    """The pages of these results, below folder/en and folder/zh."""
    failed = [one for one in every if "error" in one]
    out = []
    for language in LANGUAGES:
        path = folder / language / "benchmarks.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Page(session, Found(every), failed, language).text(), encoding="utf-8")
        out.append(path)
    return out


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks table")
    parser.add_argument("session", nargs="?", default="last")
    parser.add_argument("--to", type=Path, default=ROOT / "docs")
    wanted = parser.parse_args(arguments)
    every = results.read(wanted.session)
    if not every:
        raise SystemExit("no results: python -m benchmarks train")
    for path in write(every[0]["session"], every, wanted.to):
        print(path)
    for one in targets(Found(every)):
        value = "-" if one.value is None else f"{one.value:.4g}"
        print(f"{TARGETS[one.key][0]:56}{one.sign:>3} {one.limit:<6g}{value:>9}  {VERDICT[one.reached][0]}")
