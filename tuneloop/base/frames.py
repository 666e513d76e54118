"""A child process that runs a module of the package, and frames to and from it: two lengths, a JSON object, bytes."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import IO, Any, BinaryIO

from tuneloop.base.language import t

_ROOT = Path(__file__).parents[2]
_START = "import sys, importlib; sys.path.insert(0, sys.argv[1]); sys.exit(importlib.import_module(sys.argv[2]).main())"

HEAD = struct.Struct(">IQ")
"""Lengths of the two parts of a frame: JSON, bytes."""


def send(pipe: BinaryIO, header: dict[str, Any], payload: bytes = b"") -> None:
    """Write one frame."""
    pipe.write(frame(header, payload))
    pipe.flush()


def frame(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """One frame as it is written."""
    text = json.dumps(header).encode()
    return b"".join((HEAD.pack(len(text), len(payload)), text, payload))


def receive(pipe: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame; None where the other side has ended.

    >>> import io
    >>> pipe = io.BytesIO()
    >>> send(pipe, {"do": "x"}, b"12"), pipe.seek(0), receive(pipe), receive(pipe)
    (None, 0, ({'do': 'x'}, b'12'), None)
    """
    head = pipe.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    length, size = HEAD.unpack(head)
    text, payload = pipe.read(length), pipe.read(size)
    return (json.loads(text), payload) if len(text) == length and len(payload) == size else None


def answers_pipe() -> BinaryIO:
    """The pipe for a child's frames, which is its standard output; whatever a library prints from now on goes to
    standard error, for it is no frame."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


def start_child(
    module: str, *, errors: IO[bytes] | None = None, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A child that runs `main` of a module, with pipes for frames; it ends with its standard input, if it reads it.

    `errors` is where its standard error goes: by default to where this process's does.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _START, str(_ROOT), module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**os.environ, **(environment or {})},
        start_new_session=True,  # Ctrl-C is the parent's; the child ends with its standard input
    )


def exit_words(code: int) -> str:
    """How a child ended, by its exit code, in the chosen language.

    >>> exit_words(-9), exit_words(3)
    ('it ended with SIGKILL', 'it ended with 3')
    """
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(code)
    return t("it ended with {name}", name=name)
