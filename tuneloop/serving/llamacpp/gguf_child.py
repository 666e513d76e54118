"""llama.cpp's own server in a process of its own, and the prompts for it: chats are rendered with the template in the
file, and texts become tokens, here. It ends with its standard input, so with its parent."""

from __future__ import annotations

import contextlib
import tempfile
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneloop.base.errors import TuneloopError
from tuneloop.gguf.file import GgufFile
from tuneloop.gguf.llamacpp_child import Refusal, answer
from tuneloop.gguf.tokenizer import write_tokenizer
from tuneloop.serving.wire import error_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

ERRORS_ALONE = 1
"""What llama.cpp writes to its log."""
TAIL = 16
"""Tokens at the end of a prompt in which the beginning of a thought is looked for."""
STEP = 512
"""Tokens of one forward pass at most."""


class ServerSession:
    """The server, and what can be asked of the process: the methods without an underscore."""

    def __init__(self) -> None:
        self._server: Any = None
        self._tokenizer: Any = None
        self._own: dict[str, Any] = {}

    def open(
        self,
        gguf: str,
        adapters: list[str],
        templates: dict[str, str],
        context: int,
        slots: int,
        threads: int,
        key: str,
    ) -> dict[str, Any]:
        """Start the server on a free port; its address and what the file says of its vocabulary. `templates` are the
        chat templates of adapters by name, where they have one of their own."""
        import xllamacpp

        with _refusing():
            self._open_tokenizer(Path(gguf))
        for name, template in templates.items():
            self._own[name] = copy(self._tokenizer)
            self._own[name].chat_template = template
        params = xllamacpp.CommonParams()
        params.model.path, params.api_keys, params.port = gguf, [key], 0
        params.n_ctx, params.n_parallel, params.kv_unified = context, slots, True
        params.n_batch = params.n_ubatch = STEP
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_ram_mib, params.cache_idle_slots = 0, False  # what it holds knows no adapter
        params.endpoint_slots = params.ui = params.warmup = False
        params.verbosity = ERRORS_ALONE
        params.lora_adapters = [self._adapter(path) for path in adapters]
        params.lora_init_without_apply = bool(adapters)
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise Refusal(str(error)) from error
        about = {"vocabulary": len(self._tokenizer), "template": self._tokenizer.chat_template}
        return {"address": self._server.listening_address, **about}

    @staticmethod
    def _adapter(path: str) -> Any:
        import xllamacpp

        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = path, 0.0
        return adapter

    def _open_tokenizer(self, gguf: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        from tuneloop.data.tokens.templates import choose_template

        with GgufFile(gguf) as file, tempfile.TemporaryDirectory() as folder:
            write_tokenizer(file.facts, Path(folder))
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        choose_template(self._tokenizer, None)

    def chat(
        self, model: str, chat: list[dict[str, Any]], tools: list[Any], thinking: bool | None, begun: str
    ) -> dict[str, Any]:
        """The tokens of a chat up to where the answer begins, and behind it what it is made to begin with; no text of
        a message is a control token. `tail` is the end of the chat as text."""
        from tuneloop.data.tokens.templates import encode, prompt_ids

        try:
            ids = prompt_ids(self._own.get(model, self._tokenizer), chat, tools=tools, thinking=thinking)
        except TuneloopError as error:
            return {"refused": error_frame(error)}
        tail = self._tokenizer.decode(ids[-TAIL:])
        return {"ids": ids + encode(self._tokenizer, [begun])[0], "tail": tail}

    def text(self, text: str) -> dict[str, Any]:
        """The tokens of a text to be continued, behind the token that begins all texts, where there is one."""
        from tuneloop.data.tokens.templates import text_ids

        return {"ids": [*self._tokenizer("")["input_ids"], *text_ids(self._tokenizer, text)]}

    def written(self, ids: list[int]) -> dict[str, Any]:
        """The text of tokens, special ones written out."""
        return {"text": self._tokenizer.decode(ids)}


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """A coded error while the server starts goes to the parent in its words."""
    try:
        yield
    except TuneloopError as error:
        raise Refusal(error.what) from error


def main() -> None:
    """Answer questions until standard input ends."""
    answer(ServerSession)


if __name__ == "__main__":
    main()
