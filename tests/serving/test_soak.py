"""A server that is asked for a long time: its memory and its open files stay what they were."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serving.scripted import NAME

WARM, REQUESTS, CONNECTIONS = 20_000, 100_000, 16
SETTINGS: dict[str, Any] = {"queue": 64, "cache": {"backend": "memory", "size": 1}}


@contextmanager
def soaked(workspace: Path) -> Iterator[tuple[int, psutil.Process]]:
    """The port of a server, and its process."""
    command = [sys.executable, "-m", "tests.serving.soaked", json.dumps(SETTINGS), str(workspace)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline()), psutil.Process(server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def body_of(number: int) -> tuple[str, bytes, str]:
    """Path, body and extra header of request `number`: new questions, those that were asked, streams, errors."""
    ask: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": f"question {number}"}]}
    kind = number % 10
    if kind == 1:
        ask["stream"] = True
    elif kind == 2:
        ask["messages"][0]["content"] = "the same"
    elif kind == 3:
        ask |= {"stream": True, "messages": [{"role": "user", "content": "the same"}]}
    elif kind == 4:
        ask["temperature"] = 0.7
    elif kind == 5:
        ask["max_tokens"] = -1
    elif kind == 6:
        ask["model"] = "nobody"
    elif kind == 7:
        return "/v1/completions", json.dumps({"model": NAME, "prompt": ["a", f"b {number}"]}).encode(), ""
    return "/v1/chat/completions", json.dumps(ask).encode(), "Cache-Control: no-store\r\n" if kind == 8 else ""


async def ask(port: int, numbers: Iterator[int], statuses: Counter[int]) -> None:
    """Requests one after another over one connection; each thousandth hangs up in the middle and comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in numbers:
        path, body, header = body_of(number)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{header}"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if number % 1000 == 999:
            await reader.readexactly(20)
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            continue
        answer = await reader.readuntil(b"\r\n\r\n")
        statuses[int(answer.split(b" ", 2)[1])] += 1
        lower = answer.lower()
        if b"content-length:" in lower:
            await reader.readexactly(int(lower.split(b"content-length:")[1].split(b"\r\n")[0]))
            continue
        while length := int(await reader.readline(), 16):
            await reader.readexactly(length + 2)
        await reader.readline()
    writer.close()


async def asked(port: int, start: int, stop: int) -> Counter[int]:
    """The statuses of so many requests."""
    numbers, statuses = iter(range(start, stop)), Counter[int]()
    await asyncio.gather(*(ask(port, numbers, statuses) for _ in range(CONNECTIONS)))
    return statuses


def soak(workspace: Path, warm: int, requests: int) -> tuple[float, int, int, Counter[int]]:
    """How many times as much memory is resident at the end as after the warm-up; open files then and at the end."""
    with soaked(workspace) as (port, process):
        asyncio.run(asked(port, 0, warm))
        before, files = process.memory_info().rss, process.num_fds()
        statuses = asyncio.run(asked(port, warm, warm + requests))
        return process.memory_info().rss / before, files, process.num_fds(), statuses


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_and_open_files_do_not_grow(tmp_path: Path) -> None:
    growth, files, files_at_the_end, statuses = soak(tmp_path, WARM, REQUESTS)
    assert growth < 1.05
    assert files_at_the_end <= files + 2
    assert set(statuses) == {200, 400, 404}
    assert statuses[200] > 0.75 * REQUESTS
