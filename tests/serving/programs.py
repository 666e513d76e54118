"""The server in a process of its own, under each program that may run it, in front of a scripted upstream."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

PROGRAMS = ("tuneloop", "uvicorn", "gunicorn")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Program:
    process: subprocess.Popen[bytes]
    url: str
    errors: Path

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged as JSON."""
        text = self.errors.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def until_logged(self, event: str, count: int = 1) -> None:
        end = time.monotonic() + 120
        while sum(line["event"] == event for line in self.lines()) < count:
            assert time.monotonic() < end, self.errors.read_text(encoding="utf-8")
            time.sleep(0.05)


def command_of(program: str, port: int) -> list[str]:
    asgi = "tuneloop.serving.asgi:create"
    return {
        "uvicorn": ["-m", "uvicorn", "--factory", asgi, "--port", str(port)],
        "gunicorn": ["-m", "gunicorn", "-k", "uvicorn_worker.UvicornWorker", "--workers", "2", "--bind",
                     f"127.0.0.1:{port}", "--graceful-timeout", "120", "--timeout", "120", f"{asgi}()"],
    }[program]  # fmt: skip


@contextmanager
def running(program: str, folder: Path, upstream: str, *, serve: str = "", **variables: str) -> Iterator[Program]:
    """A program that serves `upstream`, with these more lines of its section `serve`; its log lies in `folder`."""
    port, config, errors = free_port(), folder / "serve.yaml", folder / f"{program}.log"
    write_config(config, upstream, serve)
    command = (
        ["-m", "tuneloop", "serve", "--config", str(config), "--port", str(port)]
        if program == "tuneloop"
        else command_of(program, port)
    )
    here = {**os.environ, "TUNELOOP_SERVE_CONFIG": str(config), "TUNELOOP_SERVE_WORKSPACE": str(folder), **variables}
    with errors.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=here,
            cwd=folder,
            start_new_session=True,
        )
        one = Program(process, f"http://127.0.0.1:{port}", errors)
        try:
            _until_ready(one)
            yield one
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def write_config(config: Path, upstream: str, serve: str = "") -> None:
    config.write_text(f"serve:\n  engine: proxy\n  upstreams: [{upstream}/v1]\n{serve}", encoding="utf-8")


def _until_ready(one: Program) -> None:
    end = time.monotonic() + 180
    while True:
        try:
            if httpx.get(f"{one.url}/ready", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert one.process.poll() is None, one.errors.read_text(encoding="utf-8")
        assert time.monotonic() < end, one.errors.read_text(encoding="utf-8")
        time.sleep(0.1)
