"""python -m benchmarks methods [--measure SECTION/METHOD …] [--to FOLDER]: docs/*/methods.md, from methods.json alone.

python -m benchmarks methods                          the pages, of what was measured
python -m benchmarks methods --measure sentiment      those runs again, then the pages; `chat`, `chat/lora`, `all`
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from benchmarks import method_runs
from benchmarks.environments import ROOT
from benchmarks.method_words import COLUMNS, METHODS, PAGE
from benchmarks.table import grid
from benchmarks.words import LANGUAGES, say
from tuneloop.base.language import speaking
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.intervals import Estimate
from tuneloop.evaluation.metrics import METRICS
from tuneloop.evaluation.paired import RowScores, compare_rows, separations
from tuneloop.evaluation.run_figures import RunPair, run_pairs
from tuneloop.recipe.schema import ClaimPart
from tuneloop.report import claims, gains
from tuneloop.report.costs import Cost, short

Run = dict[str, Any]
CLAIM = ClaimPart(variant="lora", against="full", cost=0.15, loss=0.03)


def evaluation_of(run: Run) -> Evaluation:
    """A stored run's rows as an evaluation; what they scored before training is not kept."""
    scored = tuple(RowScores(i, "", figures, figures, weight) for i, weight, figures in run["rows"])
    return Evaluation(row_scores=scored)


def estimate(run: Run, metric: str) -> Estimate:
    """A metric of a stored run with its interval."""
    pairs = compare_rows(evaluation_of(run).row_scores)
    return next((pair.after for pair in pairs if pair.metric == metric), Estimate(note="not measured"))


class MethodsPage:
    """One page in one language."""

    def __init__(self, content: dict[str, Any], digest: str, language: str) -> None:
        self.content, self.digest, self.language = content, digest, language

    def words(self, key: str, **facts: object) -> str:
        return say(PAGE[key], self.language, **facts)

    def head(self, *keys: str) -> list[str]:
        return [say(COLUMNS[key], self.language) for key in keys]

    def name(self, run: Run) -> str:
        return f"{run['model']} {say(METHODS[run['method']], self.language)}"

    def text(self) -> str:
        here = self.content["machine"]
        facts = {"cpu": here["cpu"], "cores": here["cores"], "memory": here["memory_gb"], "date": self.content["date"]}
        other = "zh" if self.language == "en" else "en"
        link = f"[{'中文' if other == 'zh' else 'English'}](../{other}/methods.md)"
        parts = [f"# {self.words('title')}", link, self.words("intro"), self.words("measured", **facts), self.choose()]
        parts += [self.section("sentiment", "accuracy"), self.section("chat", "loss"), self.claim()]
        parts.append(f"<!-- methods.json sha256 {self.digest} -->")
        return "\n\n".join(filter(None, parts)) + "\n"

    def runs(self, section: str) -> list[Run]:
        return [run for run in self.content["runs"] if run["section"] == section]

    def choose(self) -> str:
        lines = [f"- {line}" for section, metric in (("sentiment", "accuracy"), ("chat", "loss"))
                 if (line := self.best(section, metric))]  # fmt: skip
        return "\n\n".join([f"## {self.words('choose')}", "\n".join(lines)])

    def best(self, section: str, metric: str) -> str:
        """Which is best, what cannot be told from it, and what of these is cheapest."""
        runs = self.runs(section)
        if len(runs) < 2:
            return ""
        sign = 1 if METRICS[metric].higher_is_better else -1
        place = max(range(len(runs)), key=lambda k: sign * (estimate(runs[k], metric).estimate or 0.0))
        pairs = run_pairs([evaluation_of(run) for run in runs])
        level = [runs[place]]
        for pair in pairs:
            if place in (pair.left, pair.right) and pair.pair.separation == "not separable":
                level.append(runs[pair.left if pair.right == place else pair.right])

        def least(cost: str) -> str:
            return self.name(
                min(
                    level if len(level) > 1 else runs,
                    key=lambda run: run["cpu"] if cost == "cpu" else run["cost"][cost],
                )
            )

        title = self.words(section).rstrip("?\uff1f")
        comma, stop = ("、", "：") if self.language == "zh" else ("; ", ":")
        facts = {"best": self.name(runs[place]), "others": comma.join(self.name(run) for run in level[1:]),
                 "quick": least("cpu"), "lean": least("memory_gb"), "few": least("trained"),
                 "section": f"**{title}**{stop}"}  # fmt: skip
        return self.words("best" if len(level) > 1 else "alone", **facts)

    def section(self, section: str, metric: str) -> str:
        runs = self.runs(section)
        if not runs:
            return ""
        chat = section == "chat"
        rows = [
            [self.name(run), self.figure(run, metric), *([self.probe(run), self.forgot(run)] if chat else []),
             f"{run['cpu']:,.0f}", f"{run['cost']['memory_gb']:.2f}",
             f"{short(run['cost']['trained'])} ({100 * run['cost']['trained'] / run['cost']['parameters']:.3g} %)"]
            for run in runs
        ]  # fmt: skip
        keys = ("way", metric, *(("probe", "forgetting") if chat else ()), "cpu", "memory", "trained")
        commands = "\n".join(run["command"] for run in runs)
        parts = [f"## {self.words(section)}", self.words(f"{section}_intro"), grid(self.head(*keys), rows)]
        parts += [self.words("pairs"), self.pairs(runs), self.words("commands"), f"```sh\n{commands}\n```"]
        return "\n\n".join(parts)

    def figure(self, run: Run, metric: str) -> str:
        one, digits = estimate(run, metric), METRICS[metric].digits
        if one.estimate is None:
            return "–"
        return f"{gains.shown(one.estimate, digits)} {gains.interval(one, digits)}".strip()

    def probe(self, run: Run) -> str:
        return next((f"{after}/{total}" for _, after, total in run["probes"]), "–")

    def forgot(self, run: Run) -> str:
        if run["forgetting"] is None:
            return "–"
        one = Estimate.from_dict(run["forgetting"])
        return f"{gains.signed(one.estimate, 2)} {gains.interval(one, 2)}".strip()

    def pairs(self, runs: list[Run]) -> str:
        rows = [self.pair(one, runs) for one in run_pairs([evaluation_of(run) for run in runs])]
        return grid(self.head("pair", "difference", "p", "word"), rows)

    def pair(self, one: RunPair, runs: list[Run]) -> list[str]:
        pair, digits = one.pair, METRICS[one.pair.metric].digits
        names = f"{self.name(runs[one.left])} → {self.name(runs[one.right])}"
        change = f"{gains.signed(pair.difference.estimate, digits)} {gains.interval(pair.difference, digits)}".strip()
        with speaking(self.language):
            word = separations()[pair.separation]
        return [names, change, "–" if pair.p is None else f"{pair.p:.2g}", word]

    def claim(self) -> str:
        runs = {run["method"]: run for run in self.runs("chat")}
        if not {"lora", "full"} <= runs.keys():
            return ""
        mine, other = runs["lora"], runs["full"]
        costs = Cost(**mine["cost"]), Cost(**other["cost"])
        found = claims.finding(CLAIM, costs, (evaluation_of(mine), evaluation_of(other)))
        with speaking(self.language):
            rows = [list(row[:4]) for row in claims.rows(found)]
            ruling = claims.rulings()[found.ruling]
        table = grid(self.head("what", "claimed", "came", "word"), rows)
        intro = self.words("claim_intro", ruling=ruling)
        note = self.words("claim_note", cpu=f"{100 * mine['cpu'] / other['cpu']:.0f}")
        return "\n\n".join([f"## {self.words('claim')}", intro, table, note])


def digest() -> str:
    """sha256 of methods.json: what the page says it was made from."""
    return hashlib.sha256(method_runs.FILE.read_bytes()).hexdigest()


def pages() -> dict[str, str]:
    """Language -> the page of what methods.json holds."""
    content = method_runs.read()
    return {language: MethodsPage(content, digest(), language).text() for language in LANGUAGES}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks methods")
    parser.add_argument("--measure", nargs="+", default=[])
    parser.add_argument("--to", type=Path, default=ROOT / "docs")
    wanted = parser.parse_args(arguments)
    chosen = [run for run in method_runs.RUNS
              if {"all", run.section, f"{run.section}/{run.method}"} & set(wanted.measure)]  # fmt: skip
    if wanted.measure and not chosen:
        raise SystemExit("nothing of this name: all, sentiment, chat, chat/lora …")
    method_runs.measure(chosen)
    if not method_runs.read()["runs"]:
        raise SystemExit("no results: python -m benchmarks methods --measure all")
    for language, text in pages().items():
        path = wanted.to / language / "methods.md"
        path.write_text(text, encoding="utf-8")
        print(path)
