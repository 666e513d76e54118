from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tuneloop import pipeline
from tuneloop.model import checkpoint
from tuneloop.recipe.recipe import dump, make_recipe
from tuneloop.runs.run import Run
from tuneloop.training.interrupt import Interrupt

posix = pytest.mark.skipif(os.name != "posix", reason="a process cannot send itself SIGINT there")


@posix
def test_the_first_signal_asks_and_the_second_ctrl_c_stops() -> None:
    said: list[str] = []
    with Interrupt(lambda: said.append("stopping")) as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        assert said == ["stopping"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert said == ["stopping"]


@posix
def test_a_request_to_end_is_polite_too_and_never_in_a_hurry() -> None:
    """torchrun answers Ctrl-C by a SIGTERM on top of the terminal's SIGINT; a service manager may repeat its own."""
    with Interrupt(lambda: None) as interrupt:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_was_there_before_is_there_again() -> None:
    def mine(*_: Any) -> None: ...

    def fail() -> None:
        with Interrupt(lambda: None):
            assert signal.getsignal(signal.SIGINT) is not mine
            raise ZeroDivisionError

    before = {n: signal.signal(n, mine) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(ZeroDivisionError):
            fail()
        assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is mine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_outside_the_main_thread_nothing_is_touched() -> None:
    seen: list[Any] = []
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with Interrupt(lambda: None) as interrupt:
            seen.append((signal.getsignal(signal.SIGINT), interrupt.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@posix
def test_ctrl_c_leaves_a_run_that_goes_on_bit_for_bit(tiny_model: Path, talk_file: Path, tmp_path: Path) -> None:
    """A terminal sends SIGINT to the whole process group: the data workers get it as well."""
    recipe, _ = make_recipe(
        {
            "name": "stop", "model": str(tiny_model), "data": str(talk_file),
            "train": {"epochs": 12, "batch_size": 6, "learning_rate": 5e-3, "save_steps": 1000, "save_strategy": "steps",
                      "workers": 1, "lora": {"rank": 4, "dropout": 0.2}},
        }
    )  # fmt: skip
    file = tmp_path / "stop.yaml"
    file.write_text(dump(recipe), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "tuneloop", "train", str(file), "--workspace", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    run = Run(tmp_path / "runs" / "stop-1")
    try:
        until = time.monotonic() + 100
        while not (run.events.exists() and b'"started"' in run.events.read_bytes()):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.3)  # the data workers are starting now, and the first step waits for them
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"tuneloop train --resume {run.path}" in err, "says how to go on"
    stopped = [e for e in lines(run.events) if e["event"] == "stopped"]
    last = lines(run.metrics)[-1]["step"]
    assert [e["step"] for e in stopped] == [last]
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    assert newest.name == f"step-{last}"
    assert run.trained_folder() is None

    assert pipeline.resume(run, ["train.workers=0"]).finished
    whole = pipeline.train(recipe, pipeline.prepare(recipe, workspace=tmp_path), workspace=tmp_path, number=2)
    for name in ("metrics.jsonl",):
        ours, theirs = (
            [{k: v for k, v in m.items() if k != "clock"} for m in lines(r.path / name)] for r in (run, whole)
        )
        assert ours == theirs
    a, b = (load_file(r.path / "adapter" / "adapter_model.safetensors") for r in (run, whole))
    assert all(a[k].equal(b[k]) for k in a)
