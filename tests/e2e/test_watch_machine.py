"""What the machine does to a run: it is out of memory and the kernel kills, or its disk is full. All of it is real."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import confined
from tests.cgroups import MemoryGroup, memory_group
from tests.e2e import watch_faults
from tests.e2e.watch_runs import (
    ALONE,
    MINILM,
    SEEDS,
    Ended,
    Ground,
    Job,
    chat,
    close_to,
    finished,
    lines,
    nothing,
    raised,
    sentiment,
)
from tests.lives import assert_same, events, fork, metrics, wait
from tests.real import pulled
from tuneloop import pipeline
from tuneloop.model import checkpoint
from tuneloop.recipe.recipe import dump
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.real_model, pytest.mark.timeout(1200)]
MB = 1 << 20


def killed(recipe: Recipe, workspace: Path, group: MemoryGroup) -> Ended:
    """`tuneloop train` of a recipe in a group that loses memory while it trains, as if other programs had taken it.

    From the third step on the group has 40 MB less than the steps before have needed, so that the kernel kills a later
    step. (A plan would refuse a run that does not fit from the beginning.)
    """
    workspace.mkdir(parents=True)
    file, log, run = workspace / "recipe.yaml", workspace / "log", Run(workspace / "runs" / f"{recipe.name}-1")
    file.write_text(dump(recipe), encoding="utf-8")
    words = [sys.executable, "-m", "tuneloop", "train", str(file), "--workspace", str(workspace), "--number", "1"]
    with log.open("w", encoding="utf-8") as out:
        child = subprocess.Popen(words, stdout=out, stderr=out, preexec_fn=group.enter, env=os.environ | {"CI": ""})
        most, limited = 0, False
        while child.poll() is None:
            most = max(most, group.own())
            if not limited and run.metrics.exists() and len(lines(run.metrics)) >= 3:
                with contextlib.suppress(OSError):  # version 1 refuses while more than that is in use
                    group.limit(most - 40 * MB)
                    limited = True
            time.sleep(0.01)
    return Ended(run, child.returncode, log.read_text(encoding="utf-8"))


def test_a_run_that_the_kernel_kills_for_memory_goes_on_with_smaller_passes(
    ground: Ground, healthy: list[Ended], tmp_path: Path
) -> None:
    ended = []
    for seed in SEEDS:
        with memory_group(f"killed{seed}") as group:
            ended.append(killed(chat("persona", seed), tmp_path / f"killed{seed}", group))
            assert group.kills() > 0, "the kernel killed it"
    finished(ended)
    for one, whole in zip(ended, healthy, strict=True):
        assert events(one.run, "killed")
        done = one.remedies()
        print("changes:", [line["amendment"] for line in done])
        assert [line["remedy"] for line in done] == ["memory"] * len(events(one.run, "killed"))
        assert done[0]["amendment"]["micro_batch_size"] == 2
        raised(one, "memory", done[0]["facts"]["at"], "bad")
        batches = [[line["batch"] for line in metrics(run) if "batch" in line] for run in (one.run, whole.run)]
        assert batches[0] == batches[1], "the rows of each step are what they were"
    close_to(healthy, ended, within=0.01)


def test_memory_that_nearly_runs_out_is_told_before_it_does(ground: Ground) -> None:
    """From step 20 on another part of the process takes what is free of the group's memory up to 7 %; at step 50 it lets
    go, since what is written at the end needs some."""
    pulled(MINILM)
    size = 3 << 30
    with memory_group("full") as group:
        group.limit(size)
        taken: list[bytes] = []

        def take(step: int) -> None:
            while step == 20 and group.used() < 0.93 * size:
                taken.append(b"\1" * (8 * MB))
            if step == 50:
                taken.clear()

        def plant() -> None:
            group.enter()
            watch_faults.now(take)

        (ended,) = ground.train([Job("memory-alert", sentiment("freeze", 1, watch=ALONE), plant)])
    finished([ended])
    raised(ended, "memory", 20)


def within_disk(megabytes: int, at: Path, work: Callable[[], None], log: Path) -> None:
    """Do this in a child that has a disk of its own of this size at `at`, which nobody else sees."""
    confined.require_mounts()

    def inside() -> None:
        confined.small_disk(at, megabytes, nothing, full=False)
        work()

    at.mkdir(parents=True, exist_ok=True)
    assert wait(fork(inside, log)) == 0, log.read_text(encoding="utf-8")[-3000:]


def test_a_disk_that_fills_is_told_before_it_is_full(ground: Ground, tmp_path: Path) -> None:
    """From step 25 on another program has taken the disk, but for less than a checkpoint and the result need."""
    pulled(MINILM)
    recipe = sentiment("freeze", 1, watch=ALONE)
    dataset, plan = ground.prepared(recipe)
    disk, out = tmp_path / "disk", tmp_path / "out"

    def fill(step: int) -> None:
        if step == 25:
            free = shutil.disk_usage(disk).free
            (disk / "filler").write_bytes(bytes(max(0, free - 40 * MB)))
        if step == 50:
            (disk / "filler").unlink()

    def work() -> None:
        watch_faults.now(fill)
        run = pipeline.train(recipe, dataset, workspace=disk, foreseen=plan, number=1)
        shutil.copytree(run.path, out, ignore=shutil.ignore_patterns("checkpoints", "model"))

    within_disk(900, disk, work, tmp_path / "log")
    raised(Ended(Run(out), 0, ""), "disk", 25)


def _status(words: list[str], plant: Callable[[], None]) -> tuple[int, str]:
    """`tuneloop` with these words in a child of its own: its exit status, and what it wrote on stderr."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 2)
        os.close(read)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        os.environ["TUNELOOP_LANG"] = "en"
        code = 99
        try:
            from tuneloop.cli.main import main

            plant()
            sys.argv = ["tuneloop", *words]
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 98
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(write)
    said: list[str] = []

    def listen() -> None:
        with os.fdopen(read, encoding="utf-8", errors="replace") as pipe:
            said.append(pipe.read())

    reader = threading.Thread(target=listen)
    reader.start()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    reader.join()
    return status, said[0]


def full_from(disk: Path, step: int) -> None:
    """A fault: before each step from this one on, somebody else leaves no byte free on the disk."""
    watch_faults.now(lambda at: confined.fill_up(disk) if at >= step else None)


def test_a_full_disk_pauses_a_run_whole_and_it_goes_on_bit_for_bit(healthy: list[Ended], tmp_path: Path) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    recipe = chat("persona", 1, save_steps=4)
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(recipe), encoding="utf-8")
    run = Run(disk / "runs" / f"{recipe.name}-1")

    def work() -> None:
        words = ["train", str(file), "--workspace", str(disk), "--number", "1"]
        paused = _status(words, lambda: full_from(disk, 11))
        kept = [path.name for path in run.checkpoints.iterdir() if checkpoint.verified(path)]
        broken = [path.name for path in run.checkpoints.iterdir() if not checkpoint.verified(path)]
        whole = all(json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines(keepends=True)[:-1])
        (disk / "filler").unlink()
        resumed = _status(["train", "--resume", str(run.path)], nothing)
        shutil.copytree(run.path, out / run.name)
        (tmp_path / "seen.json").write_text(json.dumps([paused, kept, broken, whole, resumed]), encoding="utf-8")

    within_disk(400, disk, work, tmp_path / "log")
    paused, kept, broken, whole, resumed = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))
    print(paused[1][-1500:], kept, resumed[0])
    assert paused[0] not in (0, 98, 99), paused
    assert "TL-MACHINE-DISK" in paused[1]
    assert f"tuneloop train --resume {run.path}" in paused[1]
    assert kept == ["step-8"], "the older one was removed, the newest is whole"
    assert not broken
    assert whole
    assert resumed[0] == 0, resumed[1][-2000:]
    copy = Run(out / run.name)
    (remedy,) = events(copy, "remedy")
    assert (remedy["remedy"], remedy["facts"]["n"]) == ("disk", 1)
    assert_same(healthy[0].run, copy)
    assert len(lines(copy.metrics)) == len(lines(healthy[0].run.metrics))


def test_old_checkpoints_make_room_for_new_ones(healthy: list[Ended], tmp_path: Path) -> None:
    """From step 25 on half a checkpoint fits on the disk: each new one takes the place of an older one."""
    recipe = chat("persona", 1)
    given = pipeline.prepare(recipe, workspace=tmp_path)
    plan, _ = pipeline.plan(recipe, given, workspace=tmp_path)
    size = sum(path.stat().st_size for path in (healthy[0].run.checkpoints / "step-40").iterdir())
    disk, out = tmp_path / "disk", tmp_path / "out"

    def fill(step: int) -> None:
        if step == 25 and not (disk / "filler").exists():
            (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - size // 2))

    def work() -> None:
        watch_faults.now(fill)
        run = pipeline.train(recipe, given, workspace=disk, foreseen=plan, number=1)
        shutil.copytree(run.path, out / run.name)

    within_disk(400, disk, work, tmp_path / "log")
    copy = Run(out / f"{recipe.name}-1")
    done = events(copy, "remedy")
    assert [(line["remedy"], line["resume_at"]) for line in done] == [("disk", 20), ("disk", 30)]
    raised(Ended(copy, 0, ""), "disk", 25)
    assert_same(healthy[0].run, copy)
