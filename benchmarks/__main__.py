"""python -m benchmarks: measure this machine beside the peers, write docs/*/benchmarks.md. It wants a quiet machine.

python -m benchmarks             everything: prepare, near, train, table; some hours with the peers
python -m benchmarks prepare     from raw rows to packed batches (prepare.py)
python -m benchmarks cleaning    what each step of cleaning costs a text (cleaning.py)
python -m benchmarks near        near repetitions among many rows (near.py)
python -m benchmarks train       every method of training (training.py)
python -m benchmarks answering   answers for an evaluation, beside transformers' generate (answering.py)
python -m benchmarks busy        a LoRA step beside another program, before and after (busy.py); three minutes
python -m benchmarks forgetting  what healthy runs and runs that forget do to the general set (forgetting.py); an hour
python -m benchmarks same OUT    what training computes, to compare commits bit for bit (same.py); needs no peers
python -m benchmarks walk        how often a reader turns back who follows a row, the recipe, a question (walk.py)
python -m benchmarks methods     docs/*/methods.md: what each method costs and reaches (methods.py); --measure runs them
python -m benchmarks serving     our server beside transformers', llama.cpp's and a plain one (serving.py); six minutes
python -m benchmarks gateway     the gateway alone: load, what it adds, hits of its cache (gateway.py); five minutes
python -m benchmarks watching    what the meters of a run cost a step, on against off (watching.py)
python -m benchmarks table       the pages, of the last session's results (table.py)
"""

from __future__ import annotations

import sys

from benchmarks import (
    answering,
    busy,
    cleaning,
    environments,
    forgetting,
    gateway,
    methods,
    near,
    prepare,
    results,
    rows,
    same,
    serving,
    table,
    training,
    walk,
    watching,
)

TOKENIZERS = ["smollm2-135m-instruct", "qwen3-tokenizer"]


def everything(torch_args: list[str]) -> None:
    """All of it, as one session. The arguments are pip's, for the peers' torch: --index-url and the like."""
    environments.ready(torch_args)
    session = results.begin("new")
    found = prepare.measure(2000, TOKENIZERS)
    prepare.show(found)
    results.write(session, "prepare", "prepare", {"found": found})
    for count, length in near.SIZES:  # each in a process of its own, so that each has its own peak of memory
        code = (
            f"import json; from benchmarks.near import measure; print('RESULT', json.dumps(measure({count}, {length})))"
        )
        told = training.measured([sys.executable, "-c", code], training.environment())
        print(f"near, {count:,} rows: {training.short(told)}", file=sys.stderr)
        results.write(session, "near", f"{count:,} x {length:,}", told)
    training.main(["--whole", "--session", session])
    table.main([session])


def main() -> None:
    verbs = {
        "prepare": prepare.main,
        "train": training.main,
        "answering": answering.main,
        "busy": busy.main,
        "cleaning": cleaning.main,
        "methods": methods.main,
        "forgetting": forgetting.main,
        "gateway": gateway.main,
        "table": table.main,
        "same": same.main,
        "serving": serving.main,
        "walk": walk.main,
        "watching": watching.main,
    }
    verb, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    if verb not in ("near", "table", "same", "walk", "methods", "gateway") and not rows.data().is_dir():
        raise SystemExit(
            f"{rows.data()} has the rows to measure on, and is not there; TUNELOOP_BENCH_DATA names another"
        )
    if verb in verbs:
        if verb in ("prepare", "train"):
            environments.ready()
        verbs[verb](arguments)
    elif verb == "near":
        sys.argv = sys.argv[1:]
        near.main()
    elif verb and not verb.startswith("-"):
        raise SystemExit(__doc__)
    else:
        everything(sys.argv[1:])


if __name__ == "__main__":
    main()
