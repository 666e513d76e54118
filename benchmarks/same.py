"""What training computes, exactly, so that two commits can be compared bit for bit. Ten minutes on one core at most.

python -m benchmarks same OUT.json                 the demo recipe, shortened, and every method x task of tiny models
python -m benchmarks same OUT.json --only bert/,demo   those whose names hold one of these words
python -m benchmarks same OUT.json --seed 7        another seed: what a difference looks like
python -m benchmarks same --compare A.json B.json  names each difference; the exit status is 1 where there is one

Of each run: what metrics.jsonl holds but for the clock (losses, gradient norms, tokens, label tokens, …), the rows of
each forward pass in order, digests of its ids, positions, label places and targets, the weights of the result,
evaluation.json and the parity of the export; of each dataset its rows and tokens. Floats are written as float.hex.

Only what outlives a change inside tuneloop is used: the names in `tuneloop.__all__` and files on the disk. Passes are
on no disk: they are looked at where torch's DataLoader hands them on, by the names of FIELDS. A name that changes is
added there. Two threads, whatever the environment says.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from dataclasses import fields, is_dataclass
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import tiny

FIXED = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_DYNAMIC": "FALSE", "TUNELOOP_LANG": "en",
         "TUNELOOP_OFFLINE": "1", "TUNELOOP_SAME": "1", "PYTHONHASHSEED": "0"}  # fmt: skip
"""The environment in which it runs; TUNELOOP_SAME says that it is so already."""
FIELDS = {
    "ids": ("input_ids",), "places": ("position_ids",), "labels at": ("positions", "label_positions"),
    "targets": ("targets",), "segments": ("segments",), "columns": ("columns",),
}  # fmt: skip
"""What is looked at of a pass -> what it is or was called."""
MEMBERS = ("members",)
"""Which samples a pass holds, counted in the dataset."""
SETTINGS: dict[str, Any] = {"max_steps": 6, "batch_size": 12, "learning_rate": 2e-3, "save_strategy": "no"}
DECODERS = ("qwen2", "qwen3", "deepseek_v3", "gemma3_text")
WAYS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "one a pass": ("llama", "lora", "chat", {"packing": False}),
    "small passes": ("llama", "full", "chat", {"micro_batch_size": 3, "token_budget": 256}),
    "computed again": ("llama", "lora", "chat", {"checkpointing": True, "optimizer": "adafactor"}),
    "noise": ("llama", "lora", "chat", {"neftune_alpha": 5, "schedule": "linear"}),
    "dora": ("llama", "lora", "chat", {"lora": {"rank": 4, "dora": True, "init": "pissa"}}),
    "whole epochs": ("llama", "freeze", "prefer", {"max_steps": None, "epochs": 3, "keep_trunk": "on"}),
    "ipo": ("llama", "lora", "prefer", {"prefer": {"loss": "ipo"}}),
    "simpo": ("llama", "lora", "prefer", {"prefer": {"loss": "simpo", "beta": 2.0, "sft": 0.1}}),
    "class weights": ("bert", "lora", "classify", {"classify": {"weights": {"bad": 1.0, "good": 3.0}}}),
}
"""Name of a way -> a family, method and task, and what else is set."""


def cases() -> dict[str, tuple[str, str, str, dict[str, Any]]]:
    """Every method with every task of a Llama, with chat of other decoders, and with what an encoder learns."""
    pairs = [*product(["llama"], tiny.OF_METHOD, tiny.KIND), *product(DECODERS, tiny.OF_METHOD, ["chat"]),
             *product(["bert"], tiny.OF_METHOD, ["classify", "classify_prompt"])]  # fmt: skip
    return {"/".join(pair): (*pair, {}) for pair in pairs} | {f"way/{name}": way for name, way in WAYS.items()}


def measure(out: Path, only: list[str], seed: int) -> None:
    """All runs, written to `out`."""
    began, found = time.perf_counter(), dict[str, Any]()
    with tempfile.TemporaryDirectory(prefix="tuneloop-same-") as folder:
        ground = Ground(Path(folder), seed)
        for name, (family, method, task, more) in cases().items():
            if chosen(name, only):
                found[name] = ground.run(family, method, task, more)
                print(f"{name:<40} {digest(found[name])}", flush=True)
        if chosen("demo", only):
            found["demo"] = ground.demo()
            print(f"{'demo':<40} {digest(found['demo'])}", flush=True)
        found = {f"dataset {name}": told for name, told in ground.datasets.items()} | found
    about = {"commit": commit(), "processor": tiny.processor(), "seconds": round(time.perf_counter() - began),
             "cpu_seconds": round(time.process_time())}  # fmt: skip
    text = json.dumps({"about": about, "digest": digest(found), "runs": found}, indent=1, ensure_ascii=False)
    out.write_text(text + "\n", encoding="utf-8")
    print(f"{len(found)} runs and datasets in {about['seconds']} s ({about['cpu_seconds']} s of the processor), all "
          f"together {digest(found)}: {out}")  # fmt: skip


def chosen(name: str, only: list[str]) -> bool:
    return not only or any(word in name for word in only)


class Ground:
    """Models and datasets, each made once, and the runs on them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.datasets: dict[str, dict[str, Any]] = {}

    def run(self, family: str, method: str, task: str, more: dict[str, Any]) -> dict[str, Any]:
        """A run of a tiny model; the code of the error where the pair is refused."""
        import tuneloop

        kind, model = tiny.KIND[task], self.folder / family
        if not model.is_dir():
            tiny.model(model, family)
            for each in sorted(set(tiny.KIND.values())):
                tiny.rows(self.folder / "rows", each)
        settings = {"task": task, "method": method, **SETTINGS, **tiny.OF_METHOD[method], **tiny.OF_TASK.get(task, {})}
        recipe, _ = tuneloop.make_recipe({
            "name": f"{family}-{kind}", "seed": self.seed, "model": str(model),
            "data": {"path": str(self.folder / "rows" / f"{kind}.jsonl"), "task": kind},
            "prepare": {"validation": 4, "dedupe": "off"}, "train": settings | more,
            "evaluate": {"rows": 2, "max_new_tokens": 4},
        })  # fmt: skip
        return self.lived(recipe)

    def demo(self) -> dict[str, Any]:
        """The demo recipe, with few steps and answers."""
        import tuneloop

        recipe, _ = tuneloop.read_recipe(Path(str(tuneloop.__file__)).parent / "recipes" / "demo.yaml")
        train = recipe.train.model_copy(update={"max_steps": 5})
        evaluate = recipe.evaluate.model_copy(
            update={"rows": 3, "max_new_tokens": 8, "show": ["Who are you?"], "probes": []}
        )
        return self.lived(recipe.model_copy(update={"seed": self.seed, "train": train, "evaluate": evaluate}))

    def lived(self, recipe: Any) -> dict[str, Any]:
        """Prepared, planned, trained, measured and exported."""
        import tuneloop

        told: dict[str, Any] = {}
        try:
            with redirect_stderr(StringIO()), passes() as seen:
                dataset = tuneloop.prepare(recipe, workspace=self.folder)
                self.datasets.setdefault(recipe.name, of_dataset(Path(dataset.path)))
                foreseen, _ = tuneloop.plan(recipe, dataset, workspace=self.folder)
                run = tuneloop.train(recipe, dataset, workspace=self.folder, foreseen=foreseen)
                told |= of_run(Path(run.path)) | {"steps": seen}
                tuneloop.evaluate(run)
                told["evaluation"] = exact(json.loads((run.path / "evaluation.json").read_text(encoding="utf-8")))
                target = run.path / "exported"
                tuneloop.export(run.path, target, workspace=self.folder)
                told["export"] = of_export(target)
        except tuneloop.TuneloopError as error:
            told["refused"] = error.code
        gc.collect()
        return told


def of_dataset(folder: Path) -> dict[str, Any]:
    """The rows of a version and their tokens, by file; whatever its tokens' folder is called."""
    import numpy as np
    import pyarrow.parquet as pq

    told: dict[str, Any] = {"hash": folder.name}
    for file in sorted((folder / "data").glob("*.parquet")):
        told[file.name] = digest(pq.read_table(file).to_pylist())
    for file in sorted((folder / "tokens").glob("*/*/*.npy")):
        told[f"{file.parent.name}/{file.name}"] = of_array(np.load(file))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return told | {key: exact(manifest[key]) for key in ("counts", "steps", "tokens", "lengths", "kinds", "labels")}


def of_run(folder: Path) -> dict[str, Any]:
    """Of a run's files: metrics without the clock, what the plan counts, the reference, the weights of the result."""
    import numpy as np
    from safetensors.numpy import load_file

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    result = next(path for path in (folder / "adapter", folder / "model") if path.is_dir())
    weights = {
        f"{file.name} {name}": of_array(array)
        for file in sorted(result.glob("*.safetensors")) for name, array in sorted(load_file(file).items())
    }  # fmt: skip
    metrics = [{k: exact(v) for k, v in json.loads(line).items() if k != "clock"} for line in lines if line]
    return {
        "metrics": metrics, "plan": exact({"data": plan["data"], "trainable": plan["model"]["trainable"]}),
        "reference": {file.name: of_array(np.load(file)) for file in sorted(folder.glob("reference-*.npy"))},
        "result": sorted(file.name for file in result.iterdir()), "weights": weights,
    }  # fmt: skip


def of_export(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    weights = {
        f"{f.name} {k}": of_array(v) for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()
    }
    parity = json.loads((folder / "parity.json").read_text(encoding="utf-8"))
    return {"parity": exact(parity), "files": sorted(f.name for f in folder.iterdir()), "weights": digest(weights)}


class passes:
    """Inside, the steps that training takes from a DataLoader are noted: of each its passes."""

    def __enter__(self) -> list[list[dict[str, Any]]]:
        from torch.utils.data import DataLoader

        seen: list[list[dict[str, Any]]] = []
        whole = DataLoader.__iter__

        def watched(loader: Any) -> Iterator[Any]:
            names = row_names(loader.dataset)
            for step in whole(loader):
                seen.append([of_pass(one, names) for one in found_passes(step)])
                if not seen[-1]:
                    raise SystemExit(f"no passes in a {type(step).__name__}: what are they called now? See FIELDS.")
                yield step

        self.patch = mock.patch.object(DataLoader, "__iter__", watched)
        self.patch.start()
        return seen

    def __exit__(self, *_: object) -> None:
        self.patch.stop()


def found_passes(value: Any) -> Iterator[Any]:
    """What has input ids, in or below a step, in order."""
    if got(value, FIELDS["ids"]) is not None:
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from found_passes(one)
    elif isinstance(value, Mapping) or is_dataclass(value):
        for _, one in parts(value):
            yield from found_passes(one)


def parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in fields(value))
    else:
        yield from getattr(value, "__dict__", {}).items()


def got(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return next((value[name] for name in names if name in value), None)
    return next((getattr(value, name) for name in names if hasattr(value, name)), None)


def row_names(value: Any, depth: int = 4) -> Any:
    """The ids of the rows that samples were made from: the one array of texts, wherever it lies in the dataset."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return value if value.dtype.kind == "S" else None
    found = (row_names(one, depth - 1) for _, one in parts(value)) if depth else ()
    return next((one for one in found if one is not None), None)


def of_pass(row: Any, names: Any) -> dict[str, Any]:
    """Ids of its rows in order, and a digest of each of FIELDS that it has."""
    members = got(row, MEMBERS)
    if members is None or names is None:
        raise SystemExit("no members of a pass, or no ids of rows: what are they called now? See MEMBERS.")
    told: dict[str, Any] = {"rows": [names[k].decode() for k in members]}
    for field, known in FIELDS.items():
        value = got(row, known)
        if isinstance(value, Mapping):
            if value:
                told[field] = sorted(map(of_array, value.values()))
        elif value is not None:
            told[field] = of_array(value)
        elif field != "columns":
            raise SystemExit(f"no {known[0]} in a pass: what is it called now? See FIELDS.")
    return told


def of_array(value: Any) -> str:
    """Shape and digest. Whole numbers are compared as numbers, whatever holds them; others with their type."""
    import numpy as np

    array = np.ascontiguousarray(value)
    array = array.astype(np.int64) if array.dtype.kind in "iub" else array
    return f"{list(array.shape)} {hashlib.sha256(array.dtype.str.encode() + array.tobytes()).hexdigest()[:16]}"


def exact(value: Any) -> Any:
    """The same with floats as float.hex."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, dict):
        return {key: exact(one) for key, one in value.items()}
    return [exact(one) for one in value] if isinstance(value, list) else value


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Path -> leaf."""
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in pairs:
            yield from flat(one, f"{at}[{key}]" if isinstance(value, list) else f"{at}.{key}" if at else str(key))
    else:
        yield at, value


def shown(value: Any) -> str:
    if isinstance(value, str) and value.lstrip("-").startswith("0x"):
        return f"{value} ({float.fromhex(value):.9g})"
    return json.dumps(value, ensure_ascii=False)


def compare(a: Path, b: Path, most: int) -> int:
    """Name what differs, at most so many of each run. How many differ."""
    one, two = (json.loads(file.read_text(encoding="utf-8")) for file in (a, b))
    if one["about"]["processor"] != two["about"]["processor"]:
        print(f"Other processors: {one['about']['processor']}; {two['about']['processor']}. Bits differ by that alone.")
    every = 0
    for name in dict.fromkeys([*one["runs"], *two["runs"]]):
        if name not in one["runs"] or name not in two["runs"]:
            print(f"{name}: only in {a if name in one['runs'] else b}")
            every += 1
            continue
        left, right = dict(flat(one["runs"][name])), dict(flat(two["runs"][name]))
        keys = [key for key in dict.fromkeys([*left, *right]) if left.get(key, ...) != right.get(key, ...)]
        for key in keys[:most]:
            was, now = (shown(side[key]) if key in side else "nothing" for side in (left, right))
            print(f"{name}: {key}: {was} -> {now}")
        if keys[most:]:
            print(f"{name}: and {len(keys) - most} more")
        every += len(keys)
    print(f"{every} differences in {len(one['runs'])} runs and datasets ({one['about']['commit']}, "
          f"{two['about']['commit']})")  # fmt: skip
    return every


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks same", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"))
    parser.add_argument("--only", default="", help="words, separated by commas")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--most", type=int, default=10, help="differences of a run that are named")
    told = parser.parse_args(arguments)
    if told.compare:
        sys.exit(1 if compare(*told.compare, told.most) else 0)
    if told.out is None:
        parser.error("OUT.json is missing")
    if not os.environ.get("TUNELOOP_SAME"):  # torch reads the number of threads when it is loaded
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "same", *arguments]
        sys.exit(subprocess.run(command, env={**os.environ, **FIXED}, check=False).returncode)
    measure(told.out, [word for word in told.only.split(",") if word], told.seed)
