"""Upstreams for tests: llama.cpp's own server in a process, and a socket that answers whatever a test wants."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneloop.serving.engine import AnswerStream, Piece

LOOPS: list[asyncio.AbstractEventLoop] = []


def on_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """An asynchronous test, on a loop that all of them share: engines belong to the loop of their first request."""

    @functools.wraps(test)
    def run(*given: Any, **named: Any) -> None:
        if not LOOPS:
            LOOPS.append(asyncio.new_event_loop())
        LOOPS[0].run_until_complete(asyncio.wait_for(test(*given, **named), 120))

    return run


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LISTED = {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 64}]}


@dataclass
class LlamaServer:
    process: subprocess.Popen[str]
    url: str


@contextmanager
def llama_server(gguf: Path, *options: str) -> Iterator[LlamaServer]:
    """llama.cpp's server on a free port; the model is called "tiny" unless `options` have another --alias."""
    command = [sys.executable, "-m", "tests.llama_server", "-m", str(gguf), "--port", "0", "--parallel", "4"]
    process = subprocess.Popen(
        [*command, "--jinja", "--alias", "tiny", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http"), "llama.cpp did not start"
        yield LlamaServer(process, f"{address}/v1")
    finally:
        process.kill()
        process.communicate()


def head(status: str = "200 OK", kind: str = "text/event-stream", *more: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Connection: close", *more, "", ""]).encode()


def event(content: Any) -> bytes:
    return b"data: " + (content if isinstance(content, bytes) else json.dumps(content).encode()) + b"\n\n"


def delta(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    content = {} if text is None else {"content": text}
    return event({"choices": [{"index": 0, "delta": {**content, **more}, "finish_reason": finish}]})


@dataclass
class Scripted:
    """A server whose list of models is right, and whose answers are `content`, byte by byte what a test says."""

    content: bytes | Answer
    models: Any = None
    port: int = 0
    requests: int = 0
    bodies: list[dict[str, Any]] = None  # type: ignore[assignment]
    heads: list[bytes] = None  # type: ignore[assignment]
    hung_up: asyncio.Event = None  # type: ignore[assignment]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@asynccontextmanager
async def scripted(content: bytes | Answer, models: Any = LISTED) -> AsyncIterator[Scripted]:
    server = Scripted(content, models, bodies=[], heads=[], hung_up=asyncio.Event())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            server.heads.append(request)
            length = next(
                (int(x.split(b":")[1]) for x in request.lower().split(b"\r\n") if x.startswith(b"content-length")), 0
            )
            if request.startswith(b"GET"):
                writer.write(
                    server.models
                    if isinstance(server.models, bytes)
                    else head(kind="application/json") + json.dumps(server.models).encode()
                )
            else:
                server.requests += 1
                server.bodies.append(json.loads(await reader.readexactly(length)))
                if isinstance(server.content, bytes):
                    writer.write(server.content)
                else:
                    await server.content(reader, writer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            server.hung_up.set()
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


async def collect(stream: AnswerStream) -> list[Piece]:
    pieces = [piece async for piece in stream]
    await stream.aclose()
    return pieces


def text_of(pieces: list[Piece], choice: int = 0) -> str:
    return "".join(piece.text for piece in pieces if piece.choice == choice)
