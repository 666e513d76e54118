"""A cache on disk of the model calls of augmentation: a finished call is not made again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Memory:
    """Cached calls in one file of JSON lines: hash of the request, response.

    A last line that a crash left incomplete is cut off.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._answers: dict[str, Any] = {}
        complete = 0
        if file.is_file():
            content = file.read_bytes()
            complete = content.rfind(b"\n") + 1
            for line in content[:complete].split(b"\n")[:-1]:
                key, back = json.loads(line)
                self._answers[key] = back
            os.truncate(file, complete)

    def call(self, name: str, request: Any, make: Callable[[], Any]) -> Any:
        """The response of `make()` to `request` (both JSON data), from the cache where it is there."""
        key = hashlib.sha256(json.dumps([name, request]).encode()).hexdigest()[:32]
        if key not in self._answers:
            back = make()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(json.dumps([key, back]) + "\n")
            self._answers[key] = back
        return self._answers[key]
