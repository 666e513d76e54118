"""Serving, beside other servers: python -m benchmarks serving. About six minutes on two quiet cores; --rounds for more.

SmolLM2-135M-Instruct answers the same real prompts greedily, at most 32 tokens each, at 1, 8 and 32 streams: our
server over HTTP; transformers' `generate` alone and padded; a FastAPI server around it as the guides write it;
`transformers serve`; llama.cpp's own server with F16 and Q8_0 weights, and ours over the same files; and the linear
layers alone at that batch, their weights laid out as well as possible: what float32 on this processor could reach at
best. They read no prompts, so what is held to them is our rate while that many streams are all being written. Each
server is started once a round, and the ways take turns; of each the median of the rounds counts. Processors differ, so
only the ratios say something.

Wanted: at 1 stream 1.3 times `generate`; writing 8 streams 0.65 and 32 streams 0.6 of the linear layers alone, at 8 1.3
times padded `generate`; llama.cpp behind our server 0.9 of itself at 8 streams; the first token of a prompt of 100
tokens with 8 streams running at most twice as late as with none; slow readers cost others less than a tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.answering import prompts
from benchmarks.clients import Chat, Clients

MODEL = "smollm2-135m-instruct"
STREAMS = (1, 8, 32)
LENGTH, MOST, PROMPT = 32, 160, 100
LONG = 160
"""Tokens of an answer that is written beside others: the first has not ended when the last begins."""
START = 180.0
"""Seconds in which a server must be there."""
SERVERS = (
    "tuneloop",
    "plain",
    "transformers serve",
    "llama.cpp F16",
    "llama.cpp Q8_0",
    "tuneloop F16",
    "tuneloop Q8_0",
)
OTHERS = ("plain", "transformers serve", "llama.cpp F16", "llama.cpp Q8_0")
WAYS = (*SERVERS, "generate", "linear")
LINE = "{:<22}" + "{:>12}" * len(STREAMS)
Rates = dict[int, float]


def _commands(way: str, folder: Path, files: dict[str, Path], port: int) -> list[str]:
    """How a server is started."""
    name, _, kind = way.partition(" ")
    if name == "tuneloop":
        return [sys.executable, "-m", "tuneloop", "serve", str(files[kind] if kind else folder), "--port", str(port)]
    if name == "plain":
        return [sys.executable, "-m", "benchmarks.plain_server", str(folder), "--port", str(port)]
    if name == "transformers":
        program = shutil.which("transformers") or "transformers"
        return [program, "serve", str(folder), "--port", str(port), "--dtype", "float32", "--device", "cpu"]
    return [sys.executable, "-m", "benchmarks.serving", "--llama", str(files[kind]), "--port", str(port)]


@contextmanager
def served(way: str, folder: Path, files: dict[str, Path], length: int) -> Iterator[Clients]:
    """Clients of a server that runs as long as they are used."""
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            _commands(way, folder, files, port),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TUNELOOP_LANG": "en"},
            start_new_session=True,
        )
        try:
            base, began = f"http://127.0.0.1:{port}", time.monotonic()
            answers = "ready" if way.startswith("tuneloop") else "health"
            while True:
                try:
                    if httpx.get(f"{base}/{answers}", timeout=5, trust_env=False).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                if process.poll() is not None or time.monotonic() - began > START:
                    log.seek(0)
                    raise RuntimeError(log.read().decode("utf-8", "replace")[-1500:])
                time.sleep(0.2)
            yield Clients(f"{base}/v1", _model(way, folder, base), length)
        finally:
            with_children = process.pid  # of a session of its own
            for kind in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(with_children, kind)
                    process.wait(15)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


def _model(way: str, folder: Path, base: str) -> str:
    import httpx

    if not way.startswith("tuneloop"):
        return str(folder)
    return str(httpx.get(f"{base}/v1/models", timeout=30, trust_env=False).json()["data"][0]["id"])


def llama(file: str, port: int) -> None:
    """llama.cpp's own server, as its documents start it for several clients at once."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.use_jinja = file, port, True
    params.n_parallel, params.n_ctx, params.cont_batching = max(STREAMS), max(STREAMS) * 512, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _cores()
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def generate(folder: Path, chats: dict[int, list[Chat]], length: int) -> Rates:
    """Tokens a second of transformers' `generate`: one prompt at a time, and padded together."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out: Rates = {}
    for streams, own in chats.items():
        texts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in own]
        began, tokens = time.perf_counter(), 0
        for start in range(0, len(texts), streams):
            rows = tokenizer(
                texts[start : start + streams], padding=True, return_tensors="pt", add_special_tokens=False
            )
            new = model.generate(**rows, max_new_tokens=length, do_sample=False)[:, rows["input_ids"].shape[1] :]
            stops = [(row == tokenizer.eos_token_id).nonzero() for row in new]
            tokens += sum(int(at[0]) + 1 if len(at) else new.shape[1] for at in stops)
        out[streams] = tokens / (time.perf_counter() - began)
    return out


def linear(folder: Path, times: int = 8) -> Rates:
    """Tokens a second of a model's linear layers alone: random numbers through weights of its shapes, those with one
    input as one, laid out by oneDNN or as they are, whichever is faster."""
    import torch
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder)
    heads, width = config.num_attention_heads + 2 * config.num_key_value_heads, config.hidden_size
    size = getattr(config, "head_dim", None) or width // config.num_attention_heads
    shapes = [(heads * size, width), (width, config.num_attention_heads * size),
              (2 * config.intermediate_size, width), (width, config.intermediate_size)]  # fmt: skip
    weights = [torch.randn(shape) / 30 for _ in range(config.num_hidden_layers) for shape in shapes]
    weights.append(torch.randn(config.vocab_size, width) / 30)
    ops: Any = torch.ops.mkldnn
    out: Rates = {}
    with torch.inference_mode():
        for rows in STREAMS:
            inputs = {n: torch.randn(rows, n) for n in {w.shape[1] for w in weights}}
            packed = [ops._reorder_linear_weight(w, rows) for w in weights]
            seconds: tuple[list[float], list[float]] = ([], [])
            for _ in range(times):
                for laid_out in (False, True):
                    began = time.perf_counter()
                    for weight, own in zip(weights, packed, strict=True):
                        x = inputs[weight.shape[1]]
                        if laid_out:
                            ops._linear_pointwise(x, own, None, "none", [], "")
                        else:
                            torch.nn.functional.linear(x, weight)
                    seconds[laid_out].append(time.perf_counter() - began)
            out[rows] = rows / min(map(statistics.median, seconds))
    return out


def files_of(folder: Path, target: Path, kinds: set[str]) -> dict[str, Path]:
    """GGUF files of a model, of the types that are asked for; made once."""
    from tuneloop.gguf.write import write_gguf

    out = {}
    for kind in sorted(kinds):
        out[kind] = target / f"{folder.name}-{kind}.gguf"
        if not out[kind].is_file():
            write_gguf(folder, out[kind], kind.lower())
    return out


def once(way: str, folder: Path, files: dict[str, Path], chats: dict[int, list[Chat]], length: int) -> dict[str, Any]:
    """A way's rates at each number of streams; of our server over torch what crowds and slow readers cost as well."""
    if way not in SERVERS:
        command = [sys.executable, "-m", "benchmarks.serving", "--way", way, "--length", str(length)]
        done = subprocess.run(
            command, input=json.dumps(list(chats.items())), capture_output=True, text=True, check=False
        )
        line = next((one for one in done.stdout.splitlines() if one.startswith("RESULT ")), None)
        if line is None:
            raise RuntimeError(done.stderr[-1500:])
        return {"rates": {int(n): rate for n, rate in json.loads(line.removeprefix("RESULT ")).items()}}
    with served(way, folder, files, length) as clients:
        clients.rate(chats[STREAMS[1]][: STREAMS[1]], STREAMS[1])  # what is made at the first request is not counted
        out: dict[str, Any] = {"rates": {streams: clients.rate(own, streams) for streams, own in chats.items()}}
        if way == "tuneloop":
            out["writing"] = {n: clients.writing(_stories(n), LONG) for n in STREAMS}
            long = _of_length(folder, chats[max(STREAMS)][0])
            out["first token"] = clients.first_token(long, chats[STREAMS[1]], 5)
            out["slow readers"] = clients.slow_readers(chats[max(STREAMS)])
    return out


def _stories(count: int) -> list[Chat]:
    """Short prompts with long answers."""
    return [[{"role": "user", "content": f"Tell me a long story about the number {n + 2}."}] for n in range(count)]


def _of_length(folder: Path, chat: Chat) -> Chat:
    """A prompt of `PROMPT` tokens: words of a chat, as many as it takes."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = (" ".join(str(m["content"]) for m in chat) + " Tell me more about this, please.").split() * PROMPT
    count = 1
    while True:
        longer = [{"role": "user", "content": " ".join(words[:count])}]
        ids = tokenizer.apply_chat_template(longer, add_generation_prompt=True, return_dict=True)["input_ids"]
        if len(ids) >= PROMPT:
            return longer
        count += 1


def medians(rounds: list[dict[str, Any]]) -> Rates:
    """
    >>> medians([{"rates": {1: 2.0}}, {"rates": {1: 4.0}}, {"rates": {1: 3.0}}])
    {1: 3.0}
    """
    return {n: statistics.median(one["rates"][n] for one in rounds) for n in rounds[0]["rates"]}


def ratios(found: dict[str, Rates]) -> list[tuple[str, float, float | None]]:
    """(what, the ratio, what is wanted of it) of the ways that were measured.

    >>> ratios({"tuneloop": {1: 26.0, 8: 90.0}, "generate": {1: 20.0, 8: 60.0}})
    [('1 stream / generate', 1.3, 1.3), ('8 streams / padded generate', 1.5, 1.3)]
    """
    wanted: list[tuple[str, str, int, str, float | None]] = [
        ("1 stream / generate", "tuneloop", 1, "generate", 1.3),
        ("8 streams / padded generate", "tuneloop", 8, "generate", 1.3),
        ("writing 8 streams / linear layers", "writing", 8, "linear", 0.65),
        ("writing 32 streams / linear layers", "writing", 32, "linear", 0.6),
        ("8 streams, prompts too / linear layers", "tuneloop", 8, "linear", None),
        *((f"{n} streams / {other}", "tuneloop", n, other, None) for other in OTHERS for n in STREAMS),
        ("1 stream, 8-bit weights / generate", "tuneloop Q8_0", 1, "generate", None),
        ("8 streams, F16 / llama.cpp F16", "tuneloop F16", 8, "llama.cpp F16", 0.9),
        ("8 streams, Q8_0 / llama.cpp Q8_0", "tuneloop Q8_0", 8, "llama.cpp Q8_0", 0.9),
    ]  # fmt: skip
    return [
        (what, round(found[own][n] / found[other][n], 2), least)
        for what, own, n, other, least in wanted
        if n in found.get(own, {}) and n in found.get(other, {})
    ]


def _chats(folder: Path, requests: dict[int, int]) -> dict[int, list[Chat]]:
    """For each number of streams as many real prompts of at most `MOST` tokens."""
    from tuneloop.data.tokens.templates import prompt_ids
    from tuneloop.inference.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    every = prompts(max(requests.values()), lambda chat: 0 if len(prompt_ids(tokenizer, chat)) <= MOST else 1 << 20)
    return {streams: [every[k % len(every)] for k in range(count)] for streams, count in requests.items()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ways", default=",".join(WAYS), help=", ".join(WAYS))
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of an answer")
    parser.add_argument("--requests", default="4,24,64", help=f"at {STREAMS} streams")
    parser.add_argument("--json", type=Path, help="a file for all that was measured")
    for hidden in ("--way", "--llama"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left running
    if given.llama:
        return llama(given.llama, given.port)
    from tuneloop.hub import resolve

    folder = resolve.resolve(MODEL)
    if given.way:
        chats = {int(n): own for n, own in json.loads(sys.stdin.read())}
        rates = linear(folder) if given.way == "linear" else generate(folder, chats, given.length)
        print("RESULT " + json.dumps(rates))
        return None
    os.environ["OMP_NUM_THREADS"] = str(_cores())
    ways = [way.strip() for way in given.ways.split(",")]
    chats = _chats(folder, dict(zip(STREAMS, map(int, given.requests.split(",")), strict=True)))
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as target:
        files = files_of(folder, Path(target), {way.split()[1] for way in ways if way.endswith(("F16", "Q8_0"))})
        for turn in range(given.rounds):
            for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                began = time.monotonic()
                try:
                    found.setdefault(way, []).append(once(way, folder, files, chats, given.length))
                except RuntimeError as error:
                    print(f"{way}: left out: {error}", file=sys.stderr)
                print(f"round {turn + 1}, {way}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    found = {way: rounds for way, rounds in found.items() if rounds}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    _show(found, chats, given.length)
    return None


def _show(found: dict[str, list[dict[str, Any]]], chats: dict[int, list[Chat]], length: int) -> None:
    rates = {way: medians(rounds) for way, rounds in found.items()}
    if "tuneloop" in found:
        rates["writing"] = medians([{"rates": one["writing"]} for one in found["tuneloop"]])
    counts = ", ".join(str(len(own)) for own in chats.values())
    print(f"tokens/s at so many streams; answers of at most {length} tokens, {counts} requests")
    print(LINE.format("", *STREAMS))
    for way, own in rates.items():
        print(LINE.format("tuneloop, writing" if way == "writing" else way, *(f"{own[n]:.1f}" for n in STREAMS)))
    for what, ratio, wanted in ratios(rates):
        print(f"{what}: {ratio:.2f}" + (f" (wanted: {wanted:g})" if wanted else ""))
    for name, least in (("first token", 2.0), ("slow readers", 1.1)):
        pairs = [one[name] for one in found.get("tuneloop", []) if name in one]
        if pairs:
            ratio = statistics.median(b / a for a, b in pairs)
            print(f"{name}: {ratio:.2f} of the time without (wanted: at most {least:g}); seconds {pairs[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
