"""Frames: what a child prints is none of them, and a broken one is the end."""

from __future__ import annotations

import io
import tempfile

import pytest

from tuneloop.base.frames import exit_words, receive, send, start_child


def test_what_a_child_prints_is_no_frame() -> None:
    with tempfile.TemporaryFile() as errors:
        child = start_child("tests.base.printing_child", errors=errors, environment={"PYTHONUNBUFFERED": "1"})
        assert child.stdin is not None
        assert child.stdout is not None
        with child.stdin, child.stdout:
            for number in range(3):
                send(child.stdin, {"n": number, "text": "你好 \ud800"}, b"\x00\xff")  # type: ignore[arg-type]
                answer = receive(child.stdout)  # type: ignore[arg-type]
                assert answer == ({"again": {"n": number, "text": "你好 \ud800"}}, b"\x00\xff")
            child.stdin.close()
            assert receive(child.stdout) is None  # type: ignore[arg-type]
        assert exit_words(child.wait(20)) == "it ended with 7"
        errors.seek(0)
        assert errors.read().split(b"\n") == [b"a word on standard output", b"and one past Python", b""]


@pytest.mark.parametrize("cut", [0, 5, 12, 20])
def test_a_frame_that_was_cut_off_is_the_end(cut: int) -> None:
    pipe = io.BytesIO()
    send(pipe, {"do": "x"}, b"12345")
    assert receive(io.BytesIO(pipe.getvalue()[:cut])) is None
