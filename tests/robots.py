"""A server on this machine that takes what notifications are sent to, for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Robots(ThreadingHTTPServer):
    """What chat services' robots are: each POST is kept, its body and its path, and answered as they answer."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []
        self.status, self.delay = 200, 0.0
        super().__init__(("127.0.0.1", 0), Robot)
        self.at = f"http://127.0.0.1:{self.server_address[1]}"


class Robot(BaseHTTPRequestHandler):
    server: Robots

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        time.sleep(self.server.delay)
        self.server.got.append((self.path, body))
        answer = b"ok" if self.path.startswith("/slack") else b'{"errcode": 0, "StatusCode": 0, "code": 0}'
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def listening() -> Iterator[Robots]:
    with Robots() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()
