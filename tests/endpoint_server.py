"""A server over a real socket that speaks OpenAI's chat API and has the bad days a test plans for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

Serving = TypeVar("Serving", bound=ThreadingHTTPServer)


class Server(ThreadingHTTPServer):
    """Speaks OpenAI's chat API and LibreTranslate's. `plan` holds replies to give first: (status, headers, body)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[tuple[int, dict[str, str], bytes]] = []
        self.seen: list[tuple[str, dict[str, Any], str]] = []
        self.times: list[float] = []
        self.silent = 0.0
        self.finish: str | None = "stop"
        self.models: list[dict[str, Any]] | None = None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        listed = self.server.models if self.path.endswith("/models") else None
        self.send_response(404 if listed is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": listed}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.path, body, self.headers.get("Authorization") or ""))
            self.server.times.append(time.monotonic())
            planned = self.server.plan.pop(0) if self.server.plan else None
        if self.server.silent:
            time.sleep(self.server.silent)
        status, headers, content = planned or (200, {}, json.dumps(self.reply(body)).encode())
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        with suppress(BrokenPipeError):  # who did not want to wait
            self.end_headers()
            self.wfile.write(content)

    def reply(self, body: dict[str, Any]) -> Any:
        if self.path == "/translate":
            return {"translatedText": f"{body['source']}>{body['target']}: {body['q']}"}
        last = body["messages"][-1]["content"]
        choice = {"message": {"role": "assistant", "content": f"You said: {last}"}, "finish_reason": self.server.finish}
        return {"choices": [choice]}

    def log_message(self, *args: Any) -> None:
        """No lines among those of pytest."""


@contextmanager
def running(server: Serving) -> Iterator[Serving]:
    """The server answers meanwhile, in a thread of its own."""
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
