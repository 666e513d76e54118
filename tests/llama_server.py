"""llama-server out of the package xllamacpp: llama.cpp's own server, with the options of it that our documents name.

    python -m tests.llama_server --jinja -m MODEL.gguf [--lora ADAPTER.gguf] [--chat-template-file FILE] --port 8080 [--parallel 4] [--alias NAME]

It prints its address once it listens, and serves until it is ended.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("-m", required=True)
    options.add_argument("--jinja", action="store_true")
    options.add_argument("--lora")
    options.add_argument("--chat-template-file", type=Path)
    options.add_argument("--port", type=int, default=8080)
    options.add_argument("--parallel", type=int, default=1)
    options.add_argument("--alias")
    given = options.parse_args()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.use_jinja = given.m, given.port, given.jinja
    params.n_ctx, params.n_parallel, params.warmup = 512, given.parallel, False
    params.kv_unified = True
    if given.chat_template_file:
        params.chat_template = given.chat_template_file.read_text(encoding="utf-8")
    if given.alias:
        params.model_alias = {given.alias}
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if given.lora:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = given.lora, 1.0
        params.lora_adapters = [adapter]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
