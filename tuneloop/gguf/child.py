"""The parent's end of a process that runs llama.cpp: questions over pipes, its log, and how it ended.

An abort of ggml ends the process, and here it is an error. The process ends with its standard input, so with its
parent.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tuneloop.base.errors import ModelError
from tuneloop.base.frames import exit_words, receive, send, start_child
from tuneloop.base.language import t
from tuneloop.base.optional import need

_LAST_LINES = 6


class LlamaChild:
    """A process that answers questions about `gguf` with the `main` of a module. Use it in a `with`.

    `patience` is how many seconds one answer may take. Raises TL-MACHINE-EXTRA without the extra `gguf`,
    TL-MODEL-LLAMACPP for whatever llama.cpp does not do, with the last lines of its log.
    """

    def __init__(self, gguf: Path, module: str, patience: float) -> None:
        need("xllamacpp", extra="gguf")
        self.path = gguf
        self._patience = patience
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._logged = 0
        self._child = start_child(module, errors=self._log, environment={"GGML_NO_BACKTRACE": "1"})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        return self._child.poll() is not None

    def close(self) -> None:
        """End the child and wait for it."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._log):
            with contextlib.suppress(OSError):  # what was not yet written, to one that reads no more
                if pipe is not None:
                    pipe.close()

    def _ask(self, what: str, **question: Any) -> tuple[dict[str, Any], bytes]:
        """The child's answer. Raises TL-MODEL-LLAMACPP where it gives none, or a refusal."""
        pipe_in, pipe_out = self._child.stdin, self._child.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        if self._child.poll() is None:  # of one that has ended, the words it ended with stay the last
            self._logged = os.fstat(self._log.fileno()).st_size
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._child.kill()

        timer = threading.Timer(self._patience, give_up)
        timer.daemon = True
        timer.start()
        try:
            send(pipe_in, {"do": what, **question})  # type: ignore[arg-type]
            answer = receive(pipe_out)  # type: ignore[arg-type]
        except (OSError, ValueError):  # the pipe broke in the middle, or was closed
            answer = None
        except BaseException:  # Ctrl-C: what it would still say answers no later question
            self._child.kill()
            raise
        finally:
            timer.cancel()
        if answer is None:
            words = t("no answer within {seconds:g} seconds", seconds=self._patience) if late.is_set() else self._end()
            raise self._error(words)
        if error := answer[0].get("error"):
            raise self._error(str(error))
        return answer

    def _end(self) -> str:
        """How the child ended, in words."""
        self._child.kill()  # one that lives and says nothing
        return exit_words(self._child.wait())

    def _error(self, words: str) -> ModelError:
        lines = [words]
        if not self._log.closed:
            self._log.seek(self._logged)
            log = self._log.read().decode("utf-8", "replace").split("\n")
            lines += [line for line in log if line.strip(" .\r")][-_LAST_LINES:]
        return ModelError("TL-MODEL-LLAMACPP", where=str(self.path), error="\n".join(lines))
