"""A child process whose libraries print where its frames go."""

from __future__ import annotations

import os
import sys

from tuneloop.base.frames import answers_pipe, receive, send


def main() -> int:
    pipe = answers_pipe()
    print("a word on standard output")
    os.write(1, b"and one past Python\n")
    while (frame := receive(sys.stdin.buffer)) is not None:
        send(pipe, {"again": frame[0]}, frame[1])
    return 7
