"""Frames between a process and its child, over pipes: two lengths, a JSON object, bytes."""

from __future__ import annotations

import json
import os
import struct
from typing import Any, BinaryIO

HEAD = struct.Struct(">IQ")
"""Lengths of the two parts of a frame: JSON, bytes."""


def send(pipe: BinaryIO, header: dict[str, Any], payload: bytes = b"") -> None:
    """Write one frame."""
    text = json.dumps(header).encode()
    pipe.write(HEAD.pack(len(text), len(payload)) + text)
    pipe.write(payload)
    pipe.flush()


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
