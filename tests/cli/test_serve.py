"""tuneloop serve as a process: what it prints works as printed, and Ctrl-C ends it cleanly."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.serving.ggufs import tiny_gguf
from tuneloop.base.errors import TuneloopError
from tuneloop.cli.serve import _examples

SERVE = [sys.executable, "-W", "ignore", "-m", "tuneloop", "serve"]


def start(run: Path | str, *options: str) -> tuple[subprocess.Popen[str], str]:
    """A server process and its address, once it answers."""
    process = subprocess.Popen(
        [*SERVE, str(run), "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, encoding="utf-8", env={**os.environ, "TUNELOOP_LANG": "en", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return process, found[0]
    raise AssertionError(process.communicate()[1])


def healthy(url: str) -> bool:
    import httpx

    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
        except httpx.TransportError:
            time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and rights")
def test_a_run_whose_recipe_has_a_key_file(tiny_run: Path, tmp_path: Path) -> None:
    """The key locks the server, what is printed runs with it, and Ctrl-C during an answer ends it cleanly."""
    import httpx

    run = tmp_path / "runs" / tiny_run.name
    shutil.copytree(tiny_run, run)
    key = run / "key.txt"
    key.write_text("letters-and-digits-1\n", encoding="utf-8")
    key.chmod(0o644)
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    assert "  key_file: null\n" in recipe
    (run / "recipe.yaml").write_text(recipe.replace("key_file: null", "key_file: key.txt"), encoding="utf-8")
    process, url = start(run)
    try:
        assert healthy(url)
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer letters-and-digits-1"}
        reply = httpx.get(f"{url}/v1/models", headers=headers)
        assert reply.status_code == 200
        name = reply.json()["data"][0]["id"]
        the_printed_runs(_examples(url, name, key))
        body = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 400, "stream": True,
                "temperature": 2.0}  # fmt: skip
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30) as stream:
            assert stream.status_code == 200
            pieces = stream.iter_raw()
            next(pieces)
            process.send_signal(signal.SIGINT)
            # Whole or cut, as fast as the model is; but it must end.
            with contextlib.suppress(httpx.HTTPError):
                list(pieces)
        began = time.monotonic()
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - began < 15
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    assert "stopped" in out
    assert "Traceback" not in err
    assert "every user of this machine can read" in err


def the_printed_runs(code: str) -> None:
    """The Python program and the curl command that `tuneloop serve` prints are answered."""
    program = code[code.index("from openai") :]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    command = next(line for line in code.splitlines() if line.startswith("curl "))
    asked = subprocess.run(["bash", "-c", f"{command} -s"], capture_output=True, text=True, timeout=60)
    assert '"chat.completion"' in asked.stdout, asked.stderr


def test_a_port_in_use_costs_no_loading(tiny_run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([*SERVE, str(tiny_run), "--port", port], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "TL-MACHINE-PORT" in done.stderr
    assert "loading" not in done.stderr


def test_examples_quote_what_a_shell_would_read() -> None:
    code = _examples("http://127.0.0.1:8000", "it's $HOME", None)
    command = next(line for line in code.splitlines() if line.startswith("curl "))
    shown = subprocess.run(["bash", "-c", command.replace("curl", "printf '%s\\n'", 1)], capture_output=True, text=True)
    assert '"model": "it\'s $HOME"' in shown.stdout
    compile(code[code.index("from openai") :], "example", "exec")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_export_is_served_by_llama_cpp_and_that_by_a_proxy(tmp_path: Path) -> None:
    """Each prints a program that runs; the proxy's client is answered by llama.cpp, and Ctrl-C ends all of it."""
    import httpx

    gguf, _ = tiny_gguf(tmp_path)
    key = tmp_path / "key.txt"
    key.write_text("letters-and-digits-1\n", encoding="utf-8")
    key.chmod(0o600)
    processes = []
    try:
        process, llama = start(gguf, "--api-key-file", str(key))
        processes.append(process)
        process, url = start("--engine=proxy", "--upstream", f"{llama}/v1", "--upstream-key-file", str(key))
        processes.append(process)
        assert healthy(url)
        listed = httpx.get(f"{url}/v1/models", timeout=30).json()["data"]
        assert {one["id"]: one["parent"] for one in listed} == {"tiny": None, "shop": "tiny"}
        assert httpx.get(f"{llama}/v1/models", timeout=30).status_code == 401, "it wants the key of its file"
        code = _examples(url, "shop", None)
        done = subprocess.run(
            [sys.executable, "-c", code[code.index("from openai") :]], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert httpx.get(f"{url}/ready", timeout=30).status_code == 200
        refused = httpx.post(
            f"{url}/v1/completions", json={"model": "tiny", "prompt": "x", "echo": True, "logprobs": 1}
        )
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "echo")
        for one in processes:
            maps = Path(f"/proc/{one.pid}/maps")
            assert not maps.exists() or "libtorch" not in maps.read_text(encoding="utf-8")
    finally:
        for one in reversed(processes):
            one.send_signal(signal.SIGINT)
        outcomes = [(*one.communicate(timeout=60), one.returncode) for one in processes]
    assert [code for *_, code in outcomes] == [0, 0], outcomes
    assert all("stopped" in out for out, *_ in outcomes)
    assert all("Traceback" not in errors for _, errors, _ in outcomes)


@pytest.mark.parametrize(("words", "code"), [
    ([], "TL-RECIPE-USAGE"), (["x", "--engine", "fast"], "TL-RECIPE-USAGE"),
    (["x", "--engine", "gguf", "--upstream", "http://h/v1"], "TL-RECIPE-USAGE"),
    (["no-such-file.gguf"], "TL-SERVE-GGUF"), (["--upstream", "gopher://h"], "TL-SERVE-UPSTREAM-URL"),
    (["--engine", "proxy"], "TL-SERVE-UPSTREAM-URL"), (["x", "--engine", "vllm"], "TL-SERVE-VLLM"),
])  # fmt: skip
def test_what_cannot_be_served_is_told_before_a_port_opens(words: list[str], code: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tuneloop.cli.main import app

    outcome = CliRunner().invoke(app, ["serve", *words, "--port", "0", "--workspace", str(tmp_path)])
    assert isinstance(outcome.exception, TuneloopError)
    assert outcome.exception.code == code
    assert "serving" not in outcome.stdout
