"""llama.cpp in a process of its own: it answers the questions that `llamacpp.LlamaCpp` puts to it over pipes.

A question and its answer are one frame each: two lengths, a JSON object, bytes. llama.cpp writes its log, and the
reason of an abort, to standard error, which the parent has in a file. The process ends when its standard input does, so
also with its parent, in the middle of a computation too.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from tuneloop.base.frames import answers_pipe, receive, send
from tuneloop.gguf.binding import F32_CACHE, NO_FLASH_ATTENTION, TokenBatch, llama_cpp

STEP = 512
"""Tokens of one forward pass at most (n_batch and n_ubatch)."""


class Refusal(Exception):
    """What llama.cpp, or this process, cannot do; its words go to the parent, and the process lives on."""


class Session:
    """A loaded model with a context, and what can be asked of it: the methods without an underscore."""

    def __init__(self) -> None:
        self._library = llama_cpp()
        self._library.llama_backend_init()
        self._model = self._vocab = self._context = 0
        self._batch = TokenBatch()
        self._tokens = 0

    def load(self, gguf: str, adapters: list[str], context: int, threads: int, vocab_only: bool) -> dict[str, Any]:
        """Load a model, and what it says of itself."""
        api = self._library
        how = api.llama_model_default_params()
        how.n_gpu_layers, how.vocab_only = 0, vocab_only
        self._model = api.llama_model_load_from_file(os.fsencode(gguf), how) or 0
        if not self._model:
            raise Refusal("llama_model_load_from_file")
        self._vocab = api.llama_model_get_vocab(self._model)
        self._tokens = api.llama_vocab_n_tokens(self._vocab)
        if not vocab_only:
            self._open(adapters, context, threads)
        ends = [n for n in range(self._tokens) if api.llama_vocab_is_eog(self._vocab, n)]
        size = api.llama_n_ctx(self._context) if self._context else 0
        return {"facts": self._facts(), "vocabulary": self._tokens, "context": size, "ends": ends}

    def _open(self, adapters: Sequence[str], context: int, threads: int) -> None:
        api = self._library
        how = api.llama_context_default_params()
        how.n_ctx, how.n_batch, how.n_ubatch = context, STEP, STEP
        how.n_outputs_max_per_seq = STEP
        how.n_threads = how.n_threads_batch = threads
        how.type_k = how.type_v = F32_CACHE
        how.flash_attn_type = NO_FLASH_ATTENTION
        how.offload_kqv = how.op_offload = False  # a build for a graphics card computes here, too
        self._context = api.llama_init_from_model(self._model, how) or 0
        if not self._context:
            raise Refusal("llama_init_from_model")
        self._batch = api.llama_batch_init(STEP, 0, 1)
        loaded = [api.llama_adapter_lora_init(self._model, os.fsencode(adapter)) for adapter in adapters]
        if not all(loaded):
            raise Refusal("llama_adapter_lora_init")
        handles, scales = (ctypes.c_void_p * len(loaded))(*loaded), (ctypes.c_float * len(loaded))(*[1.0] * len(loaded))
        if loaded and api.llama_set_adapters_lora(self._context, handles, len(loaded), scales):
            raise Refusal("llama_set_adapters_lora")

    def _facts(self) -> dict[str, str]:
        api = self._library
        count = api.llama_model_meta_count(self._model)
        keys = [_text(api.llama_model_meta_key_by_index, self._model, n) for n in range(count)]
        return {k: _text(api.llama_model_meta_val_str_by_index, self._model, n) for n, k in enumerate(keys)}

    def tokenize(self, texts: list[str]) -> dict[str, Any]:
        """The ids of texts: special tokens in them are read as such, and none is added."""
        return {"ids": [self._ids(text.encode("utf-8", "surrogatepass")) for text in texts]}

    def _ids(self, text: bytes) -> list[int]:
        room_for = len(text) + 8
        ids = (ctypes.c_int32 * room_for)()
        count = self._library.llama_tokenize(self._vocab, text, len(text), ids, room_for, False, True)
        if count < 0:
            raise Refusal("llama_tokenize")
        return list(ids[:count])

    def detokenize(self, ids: list[list[int]]) -> dict[str, Any]:
        """The texts of ids, special tokens written out; bytes that are no UTF-8 are shown as U+FFFD."""
        return {"texts": [self._written(row) for row in ids]}

    def _written(self, row: list[int]) -> str:
        numbers = (ctypes.c_int32 * len(row))(*self._known(row))
        size = self._library.llama_detokenize(self._vocab, numbers, len(row), None, 0, False, True)
        text = ctypes.create_string_buffer(abs(size) + 1)
        size = self._library.llama_detokenize(self._vocab, numbers, len(row), text, abs(size), False, True)
        return text.raw[: max(0, size)].decode("utf-8", "replace")

    def _known(self, row: list[int]) -> list[int]:
        if unknown := [n for n in row if not 0 <= n < self._tokens]:
            raise Refusal(f"token {unknown[0]} of {self._tokens}")
        return row

    def decode(self, ids: list[int], start: int, outputs: list[int]) -> tuple[dict[str, Any], bytes]:
        """Logits at the places `outputs` of `ids`, which follow the `start` tokens decoded before (0: none)."""
        api, batch = self._library, self._batch
        if not self._context:
            raise Refusal("vocab_only")
        if not ids or len(ids) > STEP or any(not 0 <= n < len(ids) for n in outputs):
            raise Refusal(f"{len(ids)} tokens, positions {outputs[:3]}")
        if start + len(ids) > api.llama_n_ctx(self._context):
            raise Refusal(f"{start + len(ids)} tokens in a context of {api.llama_n_ctx(self._context)}")
        if start == 0:
            api.llama_memory_clear(api.llama_get_memory(self._context), True)
        batch.n_tokens = len(ids)
        for n, token in enumerate(self._known(ids)):
            batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.logits[n] = token, start + n, 1, 0
            batch.seq_id[n][0] = 0
        for n in outputs:
            batch.logits[n] = 1
        if code := api.llama_decode(self._context, batch):
            raise Refusal(f"llama_decode {code}")
        size = 4 * self._tokens
        payload = [ctypes.string_at(api.llama_get_logits_ith(self._context, n), size) for n in outputs]
        return {}, b"".join(payload)


def _text(function: Callable[..., int], model: int, number: int) -> str:
    """What a function of llama.cpp writes into a buffer, which is made as large as it asks for."""
    size = function(model, number, None, 0)
    text = ctypes.create_string_buffer(max(0, size) + 1)
    function(model, number, text, len(text))
    return text.value.decode("utf-8", "replace")


def _listen(pipe: BinaryIO, questions: queue.SimpleQueue[tuple[dict[str, Any], bytes]]) -> None:
    while (frame := receive(pipe)) is not None:
        questions.put(frame)
    os._exit(0)  # whatever the main thread is computing: nobody is there to hear it


def answer(session: Callable[[], Any]) -> None:
    """Answer questions with the methods of a session until standard input ends."""
    answers = answers_pipe()
    questions: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, questions), daemon=True).start()
    try:
        methods = session()
    except (OSError, ValueError, AttributeError) as error:
        questions.get()
        return send(answers, {"error": str(error)})
    while True:
        question, _ = questions.get()
        try:
            reply = getattr(methods, question.pop("do"))(**question)
        except Refusal as error:
            reply = {"error": str(error)}
        send(answers, *(reply if isinstance(reply, tuple) else (reply,)))


def main() -> None:
    """Answer questions about a model with a context."""
    answer(Session)


if __name__ == "__main__":
    main()
