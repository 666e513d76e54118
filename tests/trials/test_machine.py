"""What any machine can do (case training/12): a full disk, read-only folders, others' files. Every verb says so."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests import confined
from tests.confined import Said
from tuneloop import pipeline
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run

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

    def said(
        self, work: Path, home: Path, limit: Callable[[], None], *lines: list[str],
        before: Callable[[int], None] = lambda n: None, **more: str,
    ) -> Said:  # fmt: skip
        places = {"HOME": str(home), "TUNELOOP_HOME": str(home / "kept"), "XDG_CACHE_HOME": str(home / "cache"),
                  "HF_HOME": str(home / "hub"), "TMPDIR": str(home)} | more  # fmt: skip
        return confined.run(list(lines), work, limit, answers="Who are you?\n", before=before, **places)


@pytest.fixture(scope="module")
def ground(tiny_model: Path, talk_file: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    pipeline.evaluate(Run(tiny_run))
    pipeline.register(Run(tiny_run), workspace=tiny_run.parent.parent)

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
WRITING = {"run", "prepare", "plan", "train", "evaluate", "export", "version", "data export"}
"""Verbs that must write below the workspace; a version is laid out there."""
ANYWHERE = {"list", "where", "explain", "doctor"}
"""Verbs that need nothing of it."""


def expected(limit: str, verb: str) -> set[str]:
    """The codes that a verb may end with; "" for done."""
    if verb == "pull":
        return {"full_home": {"TL-MACHINE-DISK"}, "read_only_home": {"TL-MACHINE-FOLDER"}}.get(
            limit, {"TL-MODEL-OFFLINE"}
        )
    if limit in {"full_home", "read_only_home"} or verb in ANYWHERE:
        return {"TL-RUN-NOTHING"} if verb == "serve" else {""}
    if limit == "others_private":
        return {"TL-MACHINE-FOLDER", "TL-DATA-UNREADABLE"}
    code = "TL-MACHINE-DISK" if limit == "full" else "TL-MACHINE-FOLDER"
    if verb == "serve":  # of a run that is not there, so that it ends; it looks among the versions first
        return {"TL-RUN-NOTHING", code}
    return {code} if verb in WRITING else {""}


def walk(ground: Ground, limit: str, verb: str) -> None:
    if limit not in {"others_work", "others_private"}:
        confined.require_mounts()
    work, home = ground.fresh()
    more = {} if limit in {"full_home", "read_only_home"} else {"TUNELOOP_OFFLINE": "1"}
    said = ground.said(work, home, partial(LIMITS[limit], work, home), verbs(ground)[verb], **more)
    assert "Traceback" not in said.err, said.err
    assert "fault of tuneloop" not in said.err, said.err
    found = re.search(r"^(TL-[A-Z]+-[A-Z-]+)  (.+)", said.err, re.MULTILINE)
    assert (found[1] if found else "") in expected(limit, verb), said
    assert said.status == (2 if found else 0), said
    if found and found[1].startswith("TL-MACHINE"):
        assert str(home if verb == "pull" else work) in found[2], "the folder at fault is named"
        assert "--workspace" in said.err


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("limit", LIMITS)
def test_every_verb_says_what_the_machine_would_not_do(ground: Ground, limit: str, verb: str) -> None:
    walk(ground, limit, verb)


@pytest.mark.parametrize(
    ("limit", "verb"),
    [("full", "train"), ("full", "evaluate"), ("read_only_work", "export"), ("others_work", "data export"),
     ("read_only_home", "prepare"), ("others_private", "inspect")],
)  # fmt: skip
def test_some_verbs_on_some_machines(ground: Ground, limit: str, verb: str) -> None:
    walk(ground, limit, verb)


STEPS = ["--set", "train.epochs=12", "--set", "train.lora.rank=4", "--set", "train.batch_size=7", "--set",
         "train.save_strategy=steps", "--set", "train.save_steps=30", "--set", "train.logging_steps=1"]  # fmt: skip


@pytest.mark.parametrize(("lines", "saved"), [(40, True), (5, False)])
def test_a_disk_that_fills_up_while_it_trains(ground: Ground, lines: int, saved: bool) -> None:
    """Case 12: full in the middle of the metrics. What is not lost goes on with --resume, to the same result."""
    confined.require_mounts()
    work, home = ground.fresh()
    kept = work.with_name("kept")
    train = ["train", "talk.jsonl", "--model", str(ground.model), *STEPS]
    first, spoiled = work / "runs" / "talk-1", "talk-2" if saved else "talk-1"
    if saved:  # what the run that goes on is compared with
        whole = ground.said(work, home, lambda: None, train)
        assert whole.status == 0, whole

    write = Journal.write

    def filling(journal: Journal, entry: dict[str, object]) -> None:
        write(journal, entry)
        if journal.path.name == "metrics.jsonl" and journal.path.read_bytes().count(b"\n") == lines:
            confined.fill_up(work)

    def before(n: int) -> None:
        if n == 0:  # at this very line, however fast the machine is; in the child, which alone it concerns
            Journal.write = filling  # type: ignore[method-assign]
        if n == 1:
            Journal.write = write  # type: ignore[method-assign]
            (work / "filler").unlink()
        if n == 2 and saved:
            shutil.copytree(work / "runs" / spoiled, kept)

    def limit() -> None:
        away = work.with_name("away")
        shutil.copytree(work, away)
        confined.small_disk(work, 160, lambda: shutil.copytree(away, work, dirs_exist_ok=True), full=False)

    again = (
        ["train", "--resume", f"runs/{spoiled}"]
        if saved
        else ["train", "talk.jsonl", "--model", str(ground.model), *STEPS]
    )
    said = ground.said(work, home, limit, train, again, before=before)
    assert "Traceback" not in said.err
    assert "fault of tuneloop" not in said.err
    assert said.each == (2, 0), said.err
    assert f"TL-MACHINE-DISK  {work}/runs/{spoiled}" in said.err
    assert (f"tuneloop train --resume runs/{spoiled}" in said.err) == saved
    if saved:
        result = "adapter/adapter_model.safetensors"
        assert (kept / result).read_bytes() == (first / result).read_bytes()
        assert [one["step"] for one in steps(kept)] == [one["step"] for one in steps(first)]


def steps(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_what_others_have_begun_is_theirs(ground: Ground) -> None:
    """Two users of one workspace: a lock beside the run counts for both, whatever their homes are."""
    from tuneloop.base.errors import RunError
    from tuneloop.runs.run import held_alone

    work, home = ground.fresh()
    (work / "runs" / "tiny-1" / "adapter").rename(work / "adapter")  # an unfinished run
    run = Run(work / "runs" / "tiny-1")
    with held_alone(run):
        said = ground.said(work, home, confined.as_anyone, ["train", "--resume", "runs/tiny-1"])
        assert "TL-RUN-BUSY" in said.err
        with pytest.raises(RunError, match="TL-RUN-BUSY"), held_alone(run):
            pass
    assert not (run.path / ".lock").exists()
    assert not (home / "kept").exists(), "nothing is locked in a home"


LEFT_OVER = [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "4", "RANK": "1"}, {"LOCAL_RANK": "0"},
             {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}]  # fmt: skip


@pytest.mark.parametrize("left", LEFT_OVER, ids=str)
def test_a_launchers_words_left_in_the_environment(ground: Ground, left: dict[str, str]) -> None:
    """Preparing needs no peers; training says which variables to unset."""
    work, home = ground.fresh()
    rows, model = "talk.jsonl", ["--model", str(ground.model)]

    def alone(n: int) -> None:  # whoever has met once has met
        from accelerate import PartialState

        from tuneloop.training import distributed

        distributed.world.cache_clear()
        PartialState._reset_state()
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in left:
                os.environ.pop(name, None)

    said = ground.said(
        work, home, lambda: None, ["prepare", rows, *model], ["train", rows, *model, *SMALL], before=alone, **left
    )
    assert said.each == (0, 2), said.err
    assert "TL-RUN-PEERS" in said.err
    assert f"unset {' '.join(left)}" in said.err
    assert "fault of tuneloop" not in said.err


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_a_folder_whose_name_is_no_utf8(ground: Ground) -> None:
    """GBK bytes in a name: said before anything is done, with the folder; data inside such folders is read."""
    work, home = ground.fresh()
    odd = Path(os.fsdecode(os.fsencode(work.parent) + b"/\xd6\xd0\xce\xc4"))
    work.rename(odd)
    model = ["--model", str(ground.model)]
    shown = str(odd).encode("utf-8", "backslashreplace").decode()
    lines = [["prepare", "talk.jsonl", *model], ["train", "talk.jsonl", *model, *SMALL], ["export", "runs/tiny-1"]]
    for words in lines:
        said = ground.said(home, home, lambda: os.chdir(odd), words, before=lambda n: os.chdir(odd))
        assert said.status == 2, said
        assert f"TL-MACHINE-NAME  {shown}" in said.err
        assert "fault of tuneloop" not in said.err
    away = home / "away"
    done = ground.said(home, home, lambda: None, ["prepare", str(odd / "talk.jsonl"), *model, "--workspace", str(away)])
    assert done.status == 0, done


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [["explain"], ["data", "inspect", "tiny"], ["--help"]])
def test_an_output_that_is_full(ground: Ground, words: list[str]) -> None:
    work, home = ground.fresh()
    with open("/dev/full", "w") as out:
        said = subprocess.run([sys.executable, "-m", "tuneloop", *words], cwd=work, stdout=out, stderr=subprocess.PIPE,
                              text=True, timeout=240,
                              env=os.environ | {"TUNELOOP_HOME": str(home), "TUNELOOP_LANG": "en"})  # fmt: skip
    assert said.returncode == 2, said.stderr
    assert said.stderr.startswith("TL-MACHINE-DISK  standard output: ")
    assert "Exception ignored" not in said.stderr
