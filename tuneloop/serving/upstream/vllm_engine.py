"""The engine that starts vLLM with an exported model, and passes requests on to it.

vLLM pins its own torch and transformers and lives in an environment of its own; here it is a program. `vllm serve` was
not run with vLLM itself where this was written: its options are those of vLLM's documentation.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tuneloop.base.errors import ServeError, os_words
from tuneloop.base.language import t
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.engine import AnswerStream, Query
from tuneloop.serving.identity import folder_digest, identity_of
from tuneloop.serving.llamacpp.gguf_files import ABOUT, read_json, require_verified
from tuneloop.serving.supervisor import Supervisor, log
from tuneloop.serving.upstream.proxy_engine import ProxyEngine
from tuneloop.serving.upstream.upstream import Upstream

PATIENCE = 1800.0
"""Seconds that vLLM may take to load a model."""
RESTART_SECONDS = 30.0
_LEASH = Path(__file__).with_name("leash.py")
_LAST_LINES = 6
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "TUNELOOP_UPSTREAM_KEY", "TUNELOOP_ENDPOINT_KEY")
"""Variables of this process that are none of vLLM's business: its environment is another."""


class VllmChild:
    """`vllm serve` on a port of this machine. It ends with this process."""

    def __init__(self, command: list[str], port: int, key: str, patience: float = PATIENCE) -> None:
        self._url, self._patience, self._closed = f"http://127.0.0.1:{port}/health", patience, threading.Event()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        environment = {name: text for name, text in {**os.environ}.items() if name not in _OURS}
        self._process = subprocess.Popen(
            [sys.executable, str(_LEASH), *command],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**environment, "VLLM_API_KEY": key},
            start_new_session=True,  # Ctrl-C is ours
        )

    def begin(self) -> None:
        """Wait until it is healthy. Raises TL-SERVE-VLLM with the end of its log."""
        end = time.monotonic() + self._patience
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise self._error(t("it ended with {name}", name=self._process.returncode))
            try:
                opener.open(self._url, timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                self._closed.wait(0.2)
        raise self._error(t("no answer within {seconds:g} seconds", seconds=self._patience))

    def wait(self) -> str:
        code = self._process.wait()
        return "\n".join([t("it ended with {name}", name=code), *self._lines()])

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _error(self, words: str) -> ServeError:
        return ServeError("TL-SERVE-VLLM", where="vllm", error="\n".join([words, *self._lines()]))

    def _lines(self) -> list[str]:
        """The last lines of its log."""
        if self._log.closed:
            return []
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 8192, max(0, size - 8192)) if hasattr(os, "pread") else b""
        return [line for line in text.decode("utf-8", "replace").splitlines() if line.strip()][-_LAST_LINES:]


class VllmEngine(ProxyEngine):
    """A ProxyEngine over the vLLM that it has started with `make`, behind `upstream`."""

    def __init__(
        self,
        name: str,
        make: Callable[[], VllmChild],
        upstream: Upstream,
        notice: Callable[[str], None] = log.warning,
        *,
        folder: Path | None = None,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__([upstream], notice)
        self.name = name
        self._folder, self._options, self._identity = folder, options, ""
        self._supervisor = Supervisor(make, notice)
        self._supervisor.start()

    @property
    def ready(self) -> bool:
        return self._supervisor.ready and super().ready

    async def identity(self, model: str) -> str | None:
        if self._folder is None or model != self.name:
            return None
        if not self._identity:
            digest = await asyncio.to_thread(folder_digest, self._folder)
            self._identity = identity_of("vllm", digest, list(self._options))
        return self._identity

    async def submit(self, query: Query) -> AnswerStream:
        await self._supervisor.running(RESTART_SECONDS)
        return await super().submit(query)

    def close(self, grace: float = 0.0) -> None:
        super().close(grace)
        self._supervisor.close()


def vllm_engine(ref: str | Path, settings: ServePart, workspace: Path, say: Callable[[str], None]) -> VllmEngine:
    """vLLM over the merged export in the folder `ref`, started and healthy.

    Raises TL-SERVE-VLLM where it is not installed, does not start, or `ref` is no such folder; TL-SERVE-EXPORT.
    """
    folder = merged_folder(ref, say)
    program, *options = _command(settings.vllm_command)
    port, key = _free_port(), secrets.token_urlsafe(24)
    name = str((read_json(folder / ABOUT) or {}).get("name") or folder.name)
    address = ["--host", "127.0.0.1", "--port", str(port)]
    command = [program, "serve", str(folder), *address, "--served-model-name", name, *options]
    say(t("starting {command}", command=shlex.join(command)))
    upstream = Upstream(f"http://127.0.0.1:{port}/v1", key)
    return VllmEngine(name, partial(VllmChild, command, port, key), upstream, say, folder=folder, options=options)


def merged_folder(ref: str | Path, notice: Callable[[str], None]) -> Path:
    """The folder of a whole model, its weights verified. Raises TL-SERVE-VLLM, TL-SERVE-EXPORT."""
    folder = Path(ref).expanduser()
    if (folder / "merged" / "config.json").is_file():  # one target of several
        folder = folder / "merged"
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        words = t("{path} holds no merged model; write one with: tuneloop export RUN --to FOLDER", path=ref)
        raise ServeError("TL-SERVE-VLLM", where=str(ref), error=words)
    for file in weights:
        require_verified(file, notice)
    return folder.resolve()


def _command(configured: str | None) -> list[str]:
    """The program and options of its own. Raises TL-SERVE-VLLM where there is no such program."""
    try:
        program, *options = shlex.split(configured) if configured else ["vllm"]
    except ValueError as error:
        raise ServeError("TL-SERVE-VLLM", where="serve.vllm_command", error=str(error)) from error
    where = shutil.which(os.path.expanduser(program))
    if where is None:
        words = t("there is no program {name}", name=program)
        raise ServeError("TL-SERVE-VLLM", where="serve.vllm_command", error=words)
    return [where, *options]


def _free_port() -> int:
    try:
        with socket.create_server(("127.0.0.1", 0)) as bound:
            return int(bound.getsockname()[1])
    except OSError as error:
        raise ServeError("TL-SERVE-VLLM", where="127.0.0.1", error=os_words(error)) from error
