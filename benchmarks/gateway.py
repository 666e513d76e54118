"""The gateway alone: python -m benchmarks gateway [--seconds 60]. It needs wrk, and redis-server for the last cache.

A mock upstream, the gateway and wrk are processes of their own on the same cores; wrk offers a rate (offered.lua). Told
are: what is served of 500 requests a second and how late, what the gateway adds to an answer at 50 a second, how late a
hit of the cache is, what limits and guard add to an answer and to a stream, and the gateway's resident memory.

Wanted: of 500 a second at least 250 served, the 99th percentile below 2 s, no error but 429 and 503, below 250 MB and
no torch in the process; at 50 a second less than 5 ms added at the median; a hit below 5 ms at the median; limits and
guard below 1 ms together, and below 2 % of a stream.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("offered.lua")
MODEL = "mock"
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "limits": {"limits": {"requests": 100_000_000, "tokens": 100_000_000, "streams": 100_000}},
    "guard": {"safety": {"policy": "default"}},
    "cache memory": {"cache": {"backend": "memory"}},
    "cache sqlite": {"cache": {"backend": "sqlite"}},
    "cache redis": {"cache": {"backend": "redis"}},
}
"""What is set in the section `serve`. A way whose keys this tuneloop does not have is left out."""
LINE = "{:<26}{:>10}{:>10}{:>10}{:>10}{:>9}  {}"


def serve(settings: dict[str, Any], port: int, workspace: str) -> None:
    """A gateway, in this process."""
    from tuneloop.recipe.serve import ServePart
    from tuneloop.serving.application import application
    from tuneloop.serving.http import api

    bound = api.listen("127.0.0.1", port)
    api.run(application("", workspace=Path(workspace), settings=ServePart(**settings)), bound)


def known(settings: dict[str, Any]) -> bool:
    """Whether this tuneloop has these keys."""
    from pydantic import ValidationError

    from tuneloop.recipe.serve import ServePart

    try:
        ServePart(**settings)
    except ValidationError:
        return False
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def process(*command: str, log: Any = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def until_ready(url: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@contextmanager
def mock(pieces: int = 16, seconds: float = 0.0) -> Iterator[str]:
    port = free_port()
    with process(sys.executable, "-m", "benchmarks.mock_upstream", str(port), str(pieces), str(seconds)):
        until_ready(f"http://127.0.0.1:{port}/v1/models")
        yield f"http://127.0.0.1:{port}"


class Gateway:
    """A gateway that runs: its address and process."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self.pid = url, pid

    def memory(self) -> float:
        """Megabytes (1e6) that are resident."""
        import psutil

        return float(psutil.Process(self.pid).memory_info().rss / 1e6)

    def seconds(self) -> float:
        """Of processor time that it has taken."""
        import psutil

        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def torch(self) -> bool:
        """Whether torch is loaded."""
        maps = Path(f"/proc/{self.pid}/maps")
        return maps.is_file() and "libtorch" in maps.read_text(encoding="utf-8", errors="replace")


@contextmanager
def gateway(upstream: str, settings: dict[str, Any]) -> Iterator[Gateway]:
    """A gateway in a process of its own, in a workspace of its own."""
    port = free_port()
    every = {"engine": "proxy", "upstreams": [f"{upstream}/v1"], **settings}
    with tempfile.TemporaryDirectory() as workspace, tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "benchmarks.gateway", "--serve", json.dumps(every), str(port), workspace]
        with process(*command, log=log) as running:
            try:
                until_ready(f"http://127.0.0.1:{port}/ready")
            except OSError as error:
                log.seek(0)
                raise RuntimeError(log.read().decode("utf-8", "replace")[-1500:]) from error
            yield Gateway(f"http://127.0.0.1:{port}", running.pid)


def wrk(url: str, *, rate: int, seconds: int, questions: int = 0, stream: bool = False) -> dict[str, Any]:
    """What wrk measures of so many requests a second: times in ms, counts by status."""
    connections = min(1000, max(16, rate))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(SCRIPT)]
    arguments = [f"{url}/v1/chat/completions", "--", str(rate), str(questions), str(int(stream))]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    line = next((one for one in done.stdout.splitlines() if one.startswith("RESULT ")), "")
    if not line:
        raise RuntimeError(done.stdout[-500:] + done.stderr[-500:])
    told: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    told["served"] = told["statuses"].get("200", 0) / told["seconds"]
    return told


def show(name: str, told: dict[str, Any], more: str = "") -> None:
    errors = {code: count for code, count in told["statuses"].items() if code != "200"} | (
        {"lost": told["lost"]} if told["lost"] else {}
    )
    cells = [f"{told['served']:.1f}/s", *(f"{told[key]:.1f} ms" for key in ("p50", "p99", "max"))]
    print(LINE.format(name, *cells, "", f"{errors or ''} {more}"), flush=True)


@contextmanager
def redis() -> Iterator[str]:
    """The address of a Redis of our own; "" where there is no redis-server."""
    program = shutil.which("redis-server")
    if program is None:
        yield ""
        return
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        with process(*command):
            time.sleep(1)
            yield f"redis://127.0.0.1:{port}/0"


def stream_seconds(url: str, times: int) -> float:
    """Median seconds of a stream from the request to its end."""
    import httpx

    body = {"model": MODEL, "temperature": 0, "stream": True}
    seconds = []
    with httpx.Client(timeout=60, trust_env=False) as client:
        for number in range(times):
            chat = [{"role": "user", "content": f"{time.time_ns()} {number}"}]
            began = time.perf_counter()
            client.post(f"{url}/v1/chat/completions", json={**body, "messages": chat}).raise_for_status()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def loaded(upstream: str, seconds: int, rate: int) -> dict[str, Any]:
    """The gateway under more than it may take, and its memory then."""
    with gateway(upstream, {}) as one:
        at_rest, before = one.memory(), one.seconds()
        told = wrk(one.url, rate=rate, seconds=seconds)
        took = 1000 * (one.seconds() - before) / max(1, told["requests"])
        told |= {"rss_mb": one.memory(), "rss_mb_at_rest": at_rest, "torch": one.torch(), "cpu_ms": took}
    words = f"{told['rss_mb']:.0f} MB ({at_rest:.0f} at rest), torch: {told['torch']}, {took:.1f} ms of a core each"
    show(f"{rate}/s offered", told, words)
    return told


def answered(upstream: str, ways: dict[str, dict[str, Any]], seconds: int, rate: int) -> dict[str, Any]:
    """What each way adds at a rate that it takes easily. The ways run side by side and take turns."""
    out: dict[str, list[dict[str, Any]]] = {name: [] for name in ("upstream alone", *ways)}
    with ExitStack() as stack:
        urls = {"upstream alone": upstream}
        urls |= {name: stack.enter_context(gateway(upstream, settings)).url for name, settings in ways.items()}
        for _ in range(3):
            for name, url in urls.items():
                questions = 10 if name.startswith("cache") else 0
                if questions:
                    wrk(url, rate=rate, seconds=1, questions=questions)
                out[name].append(wrk(url, rate=rate, seconds=max(1, seconds // 3), questions=questions))
    told = {name: sorted(rounds, key=lambda one: float(one["p50"]))[1] for name, rounds in out.items()}
    for name, one in told.items():
        than = "upstream alone" if name == "plain" or name.startswith("cache") else "plain"
        show(name, one, f"{one['p50'] - told[than]['p50']:+.2f} ms beside {than}" if name in ways else "")
    return told


def streamed(ways: dict[str, dict[str, Any]], times: int) -> dict[str, float]:
    """Seconds of a stream of 200 pieces, 5 ms between two, by way; they take turns."""
    with ExitStack() as stack:
        upstream = stack.enter_context(mock(200, 0.005))
        urls = {name: stack.enter_context(gateway(upstream, settings)).url for name, settings in ways.items()}
        rounds: dict[str, list[float]] = {name: [] for name in urls}
        for _ in range(times):
            for name, url in urls.items():
                rounds[name].append(stream_seconds(url, 3))
    told = {name: statistics.median(seconds) for name, seconds in rounds.items()}
    for name, seconds in told.items():
        print(f"stream, {name:<18}{seconds:>9.3f} s {seconds / told['plain'] - 1:+8.2%} beside plain", flush=True)
    return told


def main(arguments: list[str]) -> None:
    """All of it, as a table; the last line is JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gateway")
    parser.add_argument("--seconds", type=int, default=60, help="of the load; the other parts take a third each")
    parser.add_argument("--rate", type=int, default=500, help="offered requests a second")
    options = parser.parse_args(arguments)
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{cores} cores\n" + LINE.format("", "served", "p50", "p99", "longest", "", "errors"))
    with mock() as upstream, redis() as url:
        ways = {name: settings for name, settings in WAYS.items() if known(settings)}
        if url:
            ways["cache redis"] = {"redis": url, **WAYS["cache redis"]}
        else:
            ways.pop("cache redis", None)
        third = max(3, options.seconds // 3)
        found = {
            "load": loaded(upstream, options.seconds, options.rate),
            "answers": answered(upstream, ways, third, 50),
        }
    found["streams"] = streamed({name: one for name, one in ways.items() if not name.startswith("cache")}, 5)
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        main(sys.argv[1:])
