"""VllmEngine as far as it goes without vLLM: a program of that name that speaks OpenAI's API, which is llama.cpp's."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.serving.ggufs import tiny_gguf
from tests.serving.upstreams import collect, text_of
from tuneloop.base.errors import ServeError
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.engine import Query
from tuneloop.serving.upstream import leash
from tuneloop.serving.upstream.vllm_engine import VllmChild, vllm_engine

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a script as a program")
PROGRAM = """#!{python}
import os, signal, sys, xllamacpp
options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
assert sys.argv[1] == "serve" and os.path.isfile(sys.argv[2] + "/config.json"), sys.argv
assert "PYTHONPATH" not in os.environ
params = xllamacpp.CommonParams()
params.model.path, params.port, params.model_alias = "{gguf}", int(options["--port"]), {{options["--served-model-name"]}}
params.hostnames, params.api_keys = [options["--host"]], [os.environ["VLLM_API_KEY"]]
params.n_ctx, params.warmup, params.verbosity = 256, False, 0
server = xllamacpp.Server(params)
print(os.getpid(), file=open("{pid}", "w"), flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program `vllm`, and a merged model beside it."""
    folder = tmp_path_factory.mktemp("vllm")
    gguf, _ = tiny_gguf(folder)
    (folder / "vllm").write_text(PROGRAM.format(python=sys.executable, gguf=gguf, pid=folder / "pid"), encoding="utf-8")
    (folder / "vllm").chmod(0o755)
    return folder


def gone(pid: int) -> bool:
    """Whether a process ends within some seconds."""
    for _ in range(300):
        try:
            if Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_it_is_started_asked_started_again_and_ended(place: Path) -> None:
    notes: list[str] = []
    engine = vllm_engine(place / "base", ServePart(vllm_command=str(place / "vllm")), place, notes.append)
    pid = int((place / "pid").read_text())

    async def ask() -> str:
        return text_of(await collect(await engine.submit(Query("text", "base", prompt=(9, 8, 7), max_new_tokens=4))))

    async def run() -> None:
        first = await ask()
        assert engine.ready
        assert [model.name for model in await engine.models()] == ["base"]
        os.kill(pid, signal.SIGKILL)
        assert gone(pid)
        again = ""
        for _ in range(200):
            with suppress(ServeError):
                again = await ask()
                break
            await asyncio.sleep(0.1)
        assert again == first
        assert int((place / "pid").read_text()) != pid
        await asyncio.to_thread(engine.close)

    asyncio.run(run())
    assert gone(int((place / "pid").read_text()))
    assert any("vllm serve" in note for note in notes)


def test_what_keeps_it_from_starting_is_told(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for ref, command, words in (
        (place / "base", None, "there is no program vllm"),
        (place / "base", "no-such-program --x", "no-such-program"),
        (place / "base", "'", "quotation"),
        (place / "served", None, "no merged model"),
        ("shop:v1", None, "no merged model"),
    ):
        with pytest.raises(ServeError, match="TL-SERVE-VLLM") as caught:
            vllm_engine(ref, ServePart(vllm_command=command), tmp_path, print)
        assert words in str(caught.value)
    broken = tmp_path / "vllm"
    broken.write_text(f"#!{sys.executable}\nraise SystemExit('CUDA is not there')\n", encoding="utf-8")
    broken.chmod(0o755)
    with pytest.raises(ServeError, match="CUDA is not there"):
        vllm_engine(place / "base", ServePart(), tmp_path, print)
    child = VllmChild(["/bin/sleep", "60"], 9, "key", patience=0.3)
    with pytest.raises(ServeError, match=r"0\.3 seconds"):
        child.begin()
    child.close()


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc, and asks the kernel")
@pytest.mark.parametrize("how", ["input", "killed"])
def test_the_program_does_not_outlive_who_started_it(how: str) -> None:
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    leashed = subprocess.Popen(
        [sys.executable, leash.__file__, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert leashed.stdin is not None
    assert leashed.stdout is not None
    grandchild = int(leashed.stdout.readline())
    program = int(Path(f"/proc/{grandchild}/stat").read_text().split(") ")[1].split()[1])
    if how == "input":
        leashed.stdin.close()
        assert gone(grandchild)
    else:
        leashed.kill()
    assert gone(program)
    leashed.kill()
    leashed.wait()
    leashed.stdout.close()
    if how == "killed":
        os.kill(grandchild, signal.SIGKILL)
