"""A gateway as a process of its own, killed in the middle of a batch; and a person forgotten while it serves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_serve import healthy, start
from tests.serving.batches.test_batches import ended, line, sent
from tests.serving.recorded import PLANTED, USER
from tests.serving.scripted import ScriptedEngine, Served
from tests.serving.scripted import serving as upstream
from tuneloop.serving.engine import Piece, Query


def echoing(query: Query) -> Iterator[Piece]:
    yield Piece(text=f"You said {query.chat[-1]['content']}", finish="stop", tokens=3)


@pytest.mark.slow  # the killed process's hold on the batch must end first
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_batch_outlives_a_kill_and_its_person_does_not(tmp_path: Path) -> None:
    engine = ScriptedEngine(echoing, capacity=8)
    engine.seconds = 0.1
    lines = [
        line(f"q-{k}", {"user": USER if k % 2 else "else", "messages": [{"role": "user", "content": words(k)}]})
        for k in range(60)
    ]
    said = []
    with upstream(engine) as behind:
        options = ["--engine=proxy", "--upstream", f"{behind.url}/v1", "-w", str(tmp_path)]
        process, url = start("", *options)
        try:
            assert healthy(url)
            with Served(url, engine).client() as client:
                batch = sent(client, *lines)
                Served(url, engine).until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 10, 60)
        finally:
            process.send_signal(signal.SIGKILL)
            said += process.communicate(timeout=30)
        process, url = start("", *options)
        try:
            assert healthy(url)
            with Served(url, engine).client() as client:
                done = ended(client, batch.id, 90)
                assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 60, 0)
                out = [json.loads(one) for one in client.files.content(done.output_file_id).text.splitlines()]
                assert [one["custom_id"] for one in out] == [f"q-{k}" for k in range(60)]
                assert 60 <= len(engine.queries) <= 60 + 4, "only what was under way is asked twice"
                assert PLANTED.encode() in files_of(tmp_path)
                forget = [sys.executable, "-m", "tuneloop", "forget", "--user", USER, "-w", str(tmp_path), "--json"]
                forgotten = subprocess.run(forget, capture_output=True, text=True, timeout=120)
                assert json.loads(forgotten.stdout)["lines"] == 60, forgotten.stderr
                assert PLANTED.encode() not in files_of(tmp_path)
                assert client.files.content(done.output_file_id).text.count("harmless") == 30
                time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGINT)
            said += process.communicate(timeout=60)
    assert PLANTED not in "".join(said)
    assert USER not in "".join(said)


def words(number: int) -> str:
    return f"{PLANTED} {number}" if number % 2 else f"harmless {number}"


def files_of(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
