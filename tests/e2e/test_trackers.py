"""The five trackers get a real run's figures without a network; each is read back by its own reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.tracked import tracked

pytestmark = pytest.mark.slow
NAMES = ["trackio", "swanlab", "tensorboard", "wandb", "mlflow"]
Read = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def run(tiny_model: Path, talk_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that five trackers have followed: stopped after step 3 of 6 and taken up, in a process each."""
    missing = [name for name in NAMES if find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra dev-slow is not installed: {', '.join(missing)}")
    return tracked(tiny_model, talk_file, tmp_path_factory.mktemp("tracked"), NAMES)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def by_step(run: Path, key: str) -> dict[int, float]:
    return {line["step"]: line[key] for line in lines(run) if key in line}


def holds_the_run(read: Read, run: Path) -> None:
    """What a reader found is what metrics.jsonl says, to the digits of a float32."""
    for name, key in [("train/loss", "loss"), ("train/grad_norm", "grad_norm"), ("eval/loss", "eval_loss")]:
        wanted = by_step(run, key)
        assert len(wanted) >= 2
        assert read[name] == pytest.approx(wanted, rel=1e-6), name
    assert read["train/learning_rate"] == pytest.approx(by_step(run, "learning_rate"), rel=1e-6)
    assert set(read["clock/seconds"]) == set(by_step(run, "loss"))


def test_tensorboard_reads_its_event_files(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "trackers" / "tensorboard" / run.name)).Reload()
    holds_the_run({n: {e.step: e.value for e in events.Scalars(n)} for n in events.Tags()["scalars"]}, run)


def test_trackio_reads_its_database(run: Path) -> None:
    script = """
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps(SQLiteStorage.get_logs("tuneloop", sys.argv[1])))
"""
    read: Read = {}
    for row in _asked(script, run.name, TRACKIO_DIR=str(run / "trackers" / "trackio")):
        for name, value in row.items():
            if isinstance(value, int | float):
                read.setdefault(name, {})[row["step"]] = value
    holds_the_run(read, run)


def test_wandb_reads_its_offline_file(run: Path) -> None:
    """W&B has no reader of its own in Python any more: the file's framing is read by SwanLab's, its records by W&B's."""
    script = """
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record
from swanlab.converter.wb.wbdatastore import WBDataStoreReader
found = []
for file in sorted(Path(sys.argv[1]).rglob("*.wandb")):
    reader = WBDataStoreReader()
    reader.open(str(file))
    while (data := reader.scan()) is not None:
        record = Record(); record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            found.append({(one.key or "/".join(one.nested_key)): json.loads(one.value_json) for one in record.history.item})
print(json.dumps(found))
"""
    read: Read = {}
    for row in _asked(script, str(run / "trackers" / "wandb")):
        for name, value in row.items():
            if isinstance(value, int | float):
                read.setdefault(name, {})[row["_step"]] = value
    holds_the_run(read, run)


def test_swanlab_reads_its_record(run: Path) -> None:
    script = """
from pathlib import Path
from swanlab.sdk.internal.core_python.store import DataStoreReader
from swanlab.proto.swanlab.record.v1.record_pb2 import Record
found = []
for file in sorted(Path(sys.argv[1]).rglob("*.swanlab")):
    reader = DataStoreReader()
    reader.open(file)
    for data in reader:
        record = Record(); record.ParseFromString(data)
        if record.WhichOneof("record_type") == "scalar":
            found.append([record.scalar.key, record.scalar.step, record.scalar.value.number])
print(json.dumps(found))
"""
    read: Read = {}
    for name, step, value in _asked(script, str(run / "trackers" / "swanlab")):
        read.setdefault(name, {})[step] = value
    holds_the_run(read, run)


def test_mlflow_reads_its_store(run: Path) -> None:
    script = """
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
(one,) = client.search_runs([e.experiment_id for e in client.search_experiments(filter_string="name = 'tuneloop'")])
found = {name: {m.step: m.value for m in client.get_metric_history(one.info.run_id, name)} for name in one.data.metrics}
print(json.dumps([one.info.run_name, one.info.status, one.data.params, found]))
"""
    address = f"sqlite:///{run / 'trackers' / 'mlflow' / 'mlflow.db'}"
    name, status, settings, found = _asked(script, address, MLFLOW_DISABLE_TELEMETRY="true")
    assert (name, status) == (run.name, "FINISHED")
    assert settings["train.method"] == "lora"
    holds_the_run({name: {int(step): value for step, value in each.items()} for name, each in found.items()}, run)


def _asked(script: str, *words: str, **variables: str) -> Any:
    """What a reader prints as JSON, in a process of its own: trackers ask the environment when they are imported."""
    done = subprocess.run(
        [sys.executable, "-c", "import json, sys\n" + script, *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
