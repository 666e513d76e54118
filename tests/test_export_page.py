"""The commands of docs/*/export.md: run one after the other in a workspace that has a run demo-1."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.exports import modelfiles

ROOT = Path(__file__).parents[1]
LANGUAGES = ("en", "zh")
ABSENT = ("ollama", "vllm")
"""Programs that are not on our machines, and cannot be installed here: the page says that their commands were not run."""


def page(tongue: str) -> str:
    return (ROOT / "docs" / tongue / "export.md").read_text(encoding="utf-8")


def blocks(tongue: str) -> list[tuple[str, str]]:
    """(language, code) of each block, in order."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", page(tongue), re.MULTILINE | re.DOTALL)


def lines(tongue: str) -> list[str]:
    return [line for kind, block in blocks(tongue) if kind == "bash" for line in block.splitlines()]


def without_words(code: str) -> str:
    """Code without what is asked, which each language says in its own words."""
    return re.sub(r'"(Who are you\?|你是谁？)"', '"…"', code)


def test_both_languages_have_the_same_code() -> None:
    english, chinese = ([(kind, without_words(block)) for kind, block in blocks(tongue)] for tongue in LANGUAGES)
    assert english == chinese
    assert len(english) > 6


@pytest.mark.parametrize("tongue", LANGUAGES)
def test_the_page_says_of_each_program_whether_its_commands_were_run(tongue: str) -> None:
    programs = {line.split()[0] for line in lines(tongue)} - {"curl"}
    assert programs == {"tuneloop", "llama-server", *ABSENT}
    table = dict(re.findall(r"^\| `([\w-]+)(?: export)?` \| (\w+)", page(tongue), re.MULTILINE))
    assert set(table) >= programs
    for program in programs:
        no = {"en": "no", "zh": "否"}[tongue]
        assert table[program].startswith(no) == (program in ABSENT), program


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_commands_of_the_page_run(tiny_model: Path, talk_file: Path, tmp_path: Path) -> None:
    """In order, in one workspace; a server of llama.cpp is asked what the page asks it."""
    pytest.importorskip("xllamacpp")
    workspace(tmp_path, tiny_model, talk_file)
    ports: dict[str, int] = {}
    answered = 0
    with ExitStack() as servers:
        for kind, block in blocks("en"):
            if kind == "python":
                done([sys.executable, "-c", block], tmp_path)
                continue
            for line in block.splitlines():
                program, *words = shlex.split(line)
                if program == "llama-server":
                    port = words[words.index("--port") + 1]
                    ports[port] = servers.enter_context(served(words, tmp_path))
                elif program == "curl":
                    answered += asked(words, ports)
                elif program == "tuneloop":
                    done([sys.executable, "-m", "tuneloop", *words], tmp_path)
                else:
                    absent(program, words, tmp_path)
    assert answered == 2
    for card in sorted(tmp_path.glob("exports/**/README.md")):
        code = re.findall(r"^```python\n(.*?)^```$", card.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        assert bool(code) == (card.parent.name != "demo-lora"), card
        for block in code:
            block = re.sub('^base = "[^"]*"', f"base = {str(tiny_model)!r}", block, flags=re.MULTILINE)  # as it says
            done([sys.executable, "-c", block], card.parent)


def workspace(folder: Path, model: Path, data: Path) -> None:
    """A finished run demo-1, and BASE.gguf, which is its base."""
    from tuneloop import pipeline
    from tuneloop.gguf.write import write_gguf
    from tuneloop.recipe.recipe import make_recipe

    recipe, _ = make_recipe({
        "name": "demo", "model": str(model), "data": str(data),
        "train": {"epochs": 1, "learning_rate": 0.01, "lora": {"rank": 4}},
        "evaluate": {"rows": 2, "max_new_tokens": 8},
    })  # fmt: skip
    run = pipeline.train(recipe, pipeline.prepare(recipe, workspace=folder), workspace=folder)
    assert run.path.name == "demo-1"
    write_gguf(model, folder / "BASE.gguf", "f16")


def done(command: list[str], folder: Path) -> str:
    ended = subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, encoding="utf-8", timeout=400
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}


@contextmanager
def served(words: list[str], folder: Path) -> Iterator[int]:
    """llama.cpp's server with the options of the page, at a free port, which it gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = words.index("--port") + 1
    words = [*words[:place], str(port), *words[place + 1 :]]
    with (folder / f"server-{port}.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.llama_server", *words],
            cwd=folder, env=_environment(), stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            assert str(port) in server.stdout.readline(), (folder / f"server-{port}.log").read_text()
            yield port
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)
            server.stdout.close()


def asked(words: list[str], ports: dict[str, int]) -> int:
    """Ask as the page does; 1 where a server of the page answered, 0 where it is one that was not started."""
    port = re.search(r"localhost:(\d+)", words[0])
    assert port is not None
    if port[1] not in ports or shutil.which("curl") is None:
        return 0
    command = ["curl", "-sS", words[0].replace(port[1], str(ports[port[1]])), *words[1:]]
    reply = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout)
    assert isinstance(reply["choices"][0]["message"]["content"], str), reply
    assert reply["usage"]["prompt_tokens"] > 5
    return 1


def absent(program: str, words: list[str], folder: Path) -> None:
    """A program that is not here: at least the files that its command names are, and Ollama can read the Modelfile."""
    assert program in ABSENT
    for word in words:
        if word.partition("=")[2].startswith("exports/") or word.startswith("exports/"):
            file = folder / (word.partition("=")[2] or word)
            assert file.exists(), word
            if file.name == "Modelfile":
                commands = dict(modelfiles.read(file.read_text(encoding="utf-8")))
                if commands["from"].endswith("BASE.gguf"):  # the page says that it is to be put there
                    shutil.copyfile(folder / "BASE.gguf", file.parent / commands["from"])
                assert (file.parent / commands["from"]).is_file()
                assert commands["template"].endswith("<|im_start|>assistant\n")
