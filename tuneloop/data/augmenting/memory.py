"""What models have answered while rows are derived, on the disk: a finished call is not made again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Memory:
    """The calls in one file, a line each: what was asked (as a hash) and what came back, in JSON.

    A line that a crash tore off is left out and written over.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, Any] = {}
        whole = 0
        if file.is_file():
            content = file.read_bytes()
            whole = content.rfind(b"\n") + 1
            for line in content[:whole].split(b"\n")[:-1]:
                key, back = json.loads(line)
                self._found[key] = back
            os.truncate(file, whole)

    def call(self, name: str, asked: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives for what is `asked` (both as JSON has them): from the file, where it was asked before."""
        key = hashlib.sha256(json.dumps([name, asked]).encode()).hexdigest()[:32]
        if key not in self._found:
            back = make()
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(json.dumps([key, back]) + "\n")
            self._found[key] = back
        return self._found[key]
