"""tuneloop chat: through a pipe, once, in a terminal; histories, commands, and text of any language."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tuneloop.base import language
from tuneloop.base.errors import TuneloopError
from tuneloop.base.records import Reply
from tuneloop.cli import chat
from tuneloop.cli.chat import _printable, _Speaker, _Talk
from tuneloop.cli.main import app
from tuneloop.inference.generate import Answerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import load_trained
from tuneloop.model.load import load_model

COMMAND = [sys.executable, "-W", "ignore", "-m", "tuneloop", "chat"]


def run_chat(run: Path, *options: str, given: bytes = b"") -> Result:
    """The verb in this process, with `given` as its standard input."""
    return CliRunner().invoke(app, ["chat", str(run), "--max-tokens", "12", *options], input=given)


def code(result: Result) -> str:
    assert isinstance(result.exception, TuneloopError), result.exception
    return result.exception.code


def answer(run: Path, *turns: dict[str, str]) -> str:
    trained = load_trained(run)
    return Answerer(trained.model, trained.tokenizer).answer([list(turns)], max_new_tokens=12)[0].text


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_each_line_of_a_pipe_is_a_turn(tiny_run: Path) -> None:
    first = answer(tiny_run, user("你是谁？"))
    second = answer(tiny_run, user("你是谁？"), {"role": "assistant", "content": first}, user("Hi"))
    # The C locale: what is read and written is UTF-8 whatever the machine is set to.
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [*COMMAND, str(tiny_run), "--max-tokens", "12"], input="你是谁？\r\n\nHi\n".encode(), capture_output=True,
        timeout=120, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode("utf-8") == f"{first}\n{second}\n"


def test_commands_through_a_pipe(tiny_run: Path) -> None:
    kind = {"role": "system", "content": "Be kind."}
    expected = [answer(tiny_run, kind, user("Hi")), answer(tiny_run, kind, user("Hi"))]
    done = run_chat(tiny_run, given=b"/system Be kind.\nHi\n/reset\nHi\n/quit\nnever asked\n")
    assert done.stdout == "".join(f"{e}\n" for e in expected)


def test_once(tiny_run: Path) -> None:
    done = run_chat(tiny_run, "--once", "Who are you?")
    assert done.stdout == answer(tiny_run, user("Who are you?")) + "\n"


def test_compare_lets_the_base_model_speak_too(tiny_run: Path, tiny_model: Path) -> None:
    untrained = Answerer(load_model(tiny_model), load_tokenizer(tiny_model))
    base = untrained.answer([[user("Hi")]], max_new_tokens=12)[0].text
    done = run_chat(tiny_run, "--once", "Hi", "--compare")
    assert done.stdout == f"[base] {base}\n[tuned] {answer(tiny_run, user('Hi'))}\n"


def test_compare_needs_a_run(tiny_model: Path) -> None:
    done = run_chat(tiny_model, "--once", "Hi", "--compare")
    assert code(done) == "TL-RUN-NO-BASE"


def test_input_that_is_not_utf8(tiny_run: Path) -> None:
    done = run_chat(tiny_run, given="你好\n".encode("gb18030"))
    assert code(done) == "TL-DATA-STDIN"


def test_too_long_a_turn_ends_a_pipe_with_a_code(tiny_run: Path) -> None:
    done = run_chat(tiny_run, given=b"word " * 3000 + b"\n")
    assert code(done) == "TL-SERVE-CONTEXT"


def test_escape_sequences_do_not_reach_a_terminal() -> None:
    assert _printable("a\x1b[31mb\x07\x9b\r\n\t你🪨") == "a[31mb\n\t你🪨"


class Parrot:
    """An answerer that says the last question back, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, Any]]] = []

    def stream_reply(self, messages: list[dict[str, Any]], **_: Any) -> Iterator[str | Reply]:
        self.asked.append(messages)
        text = messages[-1]["content"]
        if text == "too long":
            raise TuneloopError("TL-SERVE-CONTEXT")
        if text == "stop me":
            yield "half"
            raise KeyboardInterrupt
        yield text
        yield Reply(text, 1, 1, "stop")


def talk_with(parrot: Parrot) -> _Talk:
    import contextlib

    return _Talk([_Speaker("", parrot, contextlib.nullcontext, {})], "")  # type: ignore[arg-type]


def test_in_a_terminal_an_error_forgets_only_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_interactive", lambda: True)
    parrot = Parrot()
    talk = talk_with(parrot)
    for line in ("one", "too long", "two"):
        talk.safe_turn(line)
    assert [m["content"] for m in parrot.asked[-1]] == ["one", "one", "two"]


def test_in_a_terminal_ctrl_c_keeps_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_interactive", lambda: True)
    parrot = Parrot()
    talk = talk_with(parrot)
    for line in ("stop me", "two"):
        talk.safe_turn(line)
    assert [m["content"] for m in parrot.asked[-1]] == ["stop me", "half", "two"]


def test_words_that_only_look_like_commands() -> None:
    talk = talk_with(Parrot())
    assert not talk.command("/etc/passwd is a file")
    assert not talk.command("reset")
    assert talk.command("/quit")
    assert talk.over


@pytest.mark.parametrize("word", ["/退出", "／退出", "/exit", " /quit "])
def test_every_way_out(word: str) -> None:
    talk = talk_with(Parrot())
    assert talk.command("/帮助")
    assert not talk.over
    assert talk.command(word)
    assert talk.over


@pytest.mark.parametrize("tongue", ["en", "zh"])
def test_help_names_the_commands(tongue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setattr(chat, "_note", notes.append)
    language.use(tongue)
    talk_with(Parrot()).command("/help")
    wanted = ("/帮助", "/重置", "/系统", "/退出") if tongue == "zh" else ("/help", "/reset", "/system", "/quit")
    assert all(word in notes[0] and word in chat.COMMANDS for word in wanted)


def test_a_pipe_hears_that_the_model_loads_but_not_among_the_answers(tiny_run: Path) -> None:
    done = run_chat(tiny_run, given="你是谁？\n".encode())
    assert f"loading {tiny_run} …" in done.stderr
    assert "loading" not in done.stdout


@pytest.mark.parametrize("asked", ["", "  "])
def test_once_without_a_question_is_refused(asked: str, tmp_path: Path) -> None:
    done = run_chat(tmp_path / "never-opened", "--once", asked)
    assert code(done) == "TL-RECIPE-USAGE"
    assert "--once" in str(done.exception)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_in_a_real_terminal(tiny_run: Path) -> None:
    import pty
    import select

    leader, follower = pty.openpty()
    env = {**os.environ, "TUNELOOP_LANG": "en", "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    process = subprocess.Popen(
        [*COMMAND, str(tiny_run), "--max-tokens", "5"], stdin=follower, stdout=follower, stderr=follower, env=env
    )
    os.close(follower)
    seen = b""

    def wait_for(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            ready, _, _ = select.select([leader], [], [], 60)
            assert ready, seen
            seen += os.read(leader, 4096)

    wait_for(b"> ")
    os.write(leader, "你是谁？\n".encode())
    wait_for(b"a second")
    seen = b""
    os.write(leader, b"/reset\n")
    wait_for(b"forgotten")
    os.write(leader, b"/quit\n")
    assert process.wait(30) == 0
    os.close(leader)
