"""What any machine can do (case training/12): a full disk, read-only folders, others' files. Every verb says so."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests import confined
from tests.confined import Said
from tuneloop import pipeline
from tuneloop.runs import Run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

SMALL = ["--set", "train.epochs=1", "--set", "train.lora.rank=4", "--set", "evaluate.rows=2",
         "--set", "evaluate.max_new_tokens=8", "--set", "evaluate.show=[]"]  # fmt: skip


class Ground:
    """A workspace with a dataset and a finished, registered run, a home with a model, and copies of both to spoil."""

    def __init__(self, folder: Path, model: Path, talk: Path, run: Path) -> None:
        self.folder, self.model, self.talk, self.made = folder, model, talk, run.parent.parent
        self.count = 0

    def fresh(self) -> tuple[Path, Path]:
        """A workspace and a home."""
        self.count += 1
        work, home = self.folder / f"{self.count}" / "work", self.folder / f"{self.count}" / "home"
        home.mkdir(parents=True)
        shutil.copytree(self.made, work)
        shutil.copy(self.talk, work / "talk.jsonl")
        return work, home

    def said(self, words: list[str], work: Path, home: Path, limit: Callable[[], None], **more: str) -> Said:
        places = {"HOME": str(home), "TUNELOOP_HOME": str(home / "kept"), "XDG_CACHE_HOME": str(home / "cache"),
                  "HF_HOME": str(home / "hub"), "TMPDIR": str(home)} | more  # fmt: skip
        return confined.run(words, work, limit, answers="Who are you?\n", **places)


@pytest.fixture(scope="module")
def ground(tiny_model: Path, talk_file: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    pipeline.evaluate(Run(tiny_run))
    pipeline.register(Run(tiny_run), workspace=tiny_run.parent.parent)
    import tuneloop.cli.main
    import tuneloop.serve.load  # noqa: F401 - all is loaded before the first fork

    return Ground(tmp_path_factory.mktemp("ground"), tiny_model, talk_file, tiny_run)


def verbs(ground: Ground) -> dict[str, list[str]]:
    """A command line a verb; each would succeed on a machine that lets it."""
    model = ["--model", str(ground.model)]
    return {
        "run": ["run", "talk.jsonl", *model, *SMALL, "--name", "new"],
        "prepare": ["prepare", "talk.jsonl", *model, "--set", "seed=7"],
        "plan": ["plan", "talk.jsonl", *model, *SMALL, "--set", "seed=8"],
        "train": ["train", "talk.jsonl", *model, *SMALL, "--set", "seed=9"],
        "resume": ["train", "--resume", "runs/tiny-1"],
        "evaluate": ["evaluate", "runs/tiny-1"],
        "compare": ["compare", "runs/tiny-1", "--prompt", "Who are you?"],
        "export": ["export", "runs/tiny-1"],
        "chat": ["chat", "runs/tiny-1", "--max-tokens", "4"],
        "version": ["chat", "tiny:v1", "--max-tokens", "4"],
        "serve": ["serve", "runs/none-9", "--port", "0"],
        "pull": ["model", "pull", "smollm2"],
        "list": ["model", "list"],
        "where": ["model", "where", str(ground.model)],
        "sniff": ["data", "sniff", "talk.jsonl"],
        "inspect": ["data", "inspect", "tiny"],
        "data export": ["data", "export", "tiny", "out.jsonl"],
        "explain": ["explain", "TL-MACHINE-DISK"],
        "doctor": ["doctor"],
    }  # fmt: skip


VERBS = ("run", "prepare", "plan", "train", "resume", "evaluate", "compare", "export", "chat", "version", "serve", "pull",
         "list", "where", "sniff", "inspect", "data export", "explain", "doctor")  # fmt: skip


def sane(said: Said, words: list[str]) -> None:
    """Done, or refused in words of ours with a place."""
    assert "Traceback" not in said.err, said.err
    assert "fault of tuneloop" not in said.err, said.err
    assert said.status in (0, 2), (words, said)
    if said.status == 2:
        assert re.search(r"^TL-[A-Z]+-[A-Z-]+  \S", said.err, re.MULTILINE), said.err


@pytest.mark.proof
@pytest.mark.parametrize("verb", VERBS)
def test_look(ground: Ground, verb: str) -> None:
    for name, limit in LIMITS.items():
        work, home = ground.fresh()
        words = verbs(ground)[verb]
        said = ground.said(words, work, home, partial(limit, work, home))
        print(f"--- {name} {verb}: {said.status}", file=sys.stderr)
        print("\n".join(said.err.splitlines()[-4:])[:600], file=sys.stderr)
        print("OUT", said.out[-200:], file=sys.stderr)


def full(work: Path, home: Path) -> None:
    away = work.with_name("away")
    shutil.copytree(work, away)

    def fill() -> None:
        shutil.copytree(away, work, dirs_exist_ok=True)

    confined.small_disk(work, 90, fill)


def full_home(work: Path, home: Path) -> None:
    confined.small_disk(home, 1, lambda: None)


def read_only_home(work: Path, home: Path) -> None:
    confined.read_only(home)


def read_only_work(work: Path, home: Path) -> None:
    confined.read_only(work)


def others_work(work: Path, home: Path) -> None:
    confined.given_away(work)
    confined.as_anyone()


def others_private(work: Path, home: Path) -> None:
    confined.given_away(work / "datasets", private=True)
    confined.given_away(work / "runs", private=True)
    confined.given_away(work / "talk.jsonl", private=True)
    confined.as_anyone()


LIMITS = {f.__name__: f for f in (full, full_home, read_only_home, read_only_work, others_work, others_private)}
