from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tuneloop.base import language
from tuneloop.base.errors import MachineError, ModelError, RunError
from tuneloop.cli.main import app
from tuneloop.methods.table import METHODS
from tuneloop.model.kernels import varlen
from tuneloop.selftest import costs, device, kernels, parity, prove, quantised, speed, subject, training
from tuneloop.selftest.lines import FailedError, Line, Lines, NotRunError
from tuneloop.selftest.prove import Proof
from tuneloop.selftest.report import Report
from tuneloop.selftest.sections import REAL, SECTIONS
from tuneloop.selftest.training import Ground
from tuneloop.tasks.table import TASKS


def silent() -> Lines:
    return Lines(lambda text: None)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    folder = tmp_path_factory.mktemp("proof")
    return Ground(folder, subject.model_folder(folder / "tiny"))


@pytest.mark.parametrize(
    ("raised", "verdict", "detail"),
    [
        (NotRunError("no card"), "not run", "no card"),
        (FailedError("off by 1"), "failed", "off by 1"),
        (ModelError("TL-MODEL-MODULE"), "refused", "TL-MODEL-MODULE"),
        (RunError("TL-RUN-NAN", where="step 1", loss="nan", norm="1"), "failed", "TL-RUN-NAN"),
        (MachineError("TL-MACHINE-PACKAGE"), "not run", "TL-MACHINE-PACKAGE"),
        (ValueError("what?"), "failed", "ValueError: what?"),
    ],
    ids=repr,
)  # fmt: skip
def test_how_a_claim_ends(raised: Exception, verdict: str, detail: str) -> None:
    def look() -> str:
        raise raised

    lines = silent()
    lines.claim("x", "y", look, may_refuse=True)
    lines.claim("x", "y", look)
    assert lines.lines[0].verdict == verdict
    assert lines.lines[0].detail.startswith(detail)
    assert lines.lines[1].verdict == ("failed" if verdict == "refused" else verdict)


def test_an_error_that_nobody_expected_keeps_its_traceback(tmp_path: Path) -> None:
    report = Report(tmp_path)
    report.begin()
    lines = Lines(lambda text: None, lambda line: report.line("x", line, 0.0))
    lines.claim("x", "y", lambda: str(1 // 0))
    lines.claim("x", "z", lambda: "fine")
    assert "1 // 0" in report.entries()[0]["trace"]
    assert report.entries()[1]["trace"] == ""
    assert "Traceback" not in report.page.read_text(encoding="utf-8")


def test_kernels_on_a_cpu() -> None:
    """Each type has the plain way and flex's twin, which agree; the kernels of cards are not run, and it says why."""
    lines = silent()
    kernels.prove(lines, torch.device("cpu"))
    kernels.compiled(lines, torch.device("cpu"))
    chosen, each = lines.lines[: len(kernels.TYPES)], lines.lines[len(kernels.TYPES) :]
    assert {line.verdict for line in chosen} == {"passed"}
    assert all("7.5: segments" in line.detail for line in chosen)
    assert "8.0: torch_varlen" in chosen[1].detail
    assert len(each) == len(kernels.TYPES) * len(varlen.KERNELS)
    assert [line.verdict for line in each] == ["not run"] * 6 + ["passed"] * 6


def test_a_kernel_that_leaks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = varlen.by_flex

    def leaky(flex: Any, query: Any, key: Any, value: Any, segments: Any, **how: Any) -> Any:
        return plain(flex, query, key, value, (sum(segments),), **how)

    monkeypatch.setattr(varlen, "by_flex", leaky)
    lines = silent()
    kernels.compiled(lines, torch.device("cpu"))
    assert [line.verdict for line in lines.lines] == ["failed"] * 3


def test_every_task_has_rows() -> None:
    assert {training.kind_for(task) in TASKS[task].kinds for task in TASKS} == {True}


def test_a_combination_trains_is_read_back_and_resumed(ground: Ground) -> None:
    assert "bit for bit" in training.combination(ground, "lora", "chat")


def test_a_result_with_other_weights_is_found(ground: Ground) -> None:
    run = ground.chat(method="lora")
    file = run.path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if "lora_B" in n)
    save_file({**weights, name: weights[name] + 1e-3}, file, {"format": "pt"})
    with pytest.raises(FailedError, match="lora_B"):
        training._read_back(run)


def test_losses_that_differ_are_found(ground: Ground) -> None:
    with pytest.raises(FailedError, match="allowed"):
        training._same(ground.chat(method="lora", learning_rate=5e-3), ground.base("lora"), 1e-4, 1e-3)


def test_parity_with_transformers(ground: Ground) -> None:
    lines = silent()
    parity.prove(lines, ground, torch.device("cpu"), "tiny")
    assert [line.verdict for line in lines.lines] == ["passed", "passed"]


@pytest.mark.parametrize("family", subject.FAMILIES)
def test_every_shape_trains_and_exports(family: str, tmp_path: Path) -> None:
    made = Ground(tmp_path, subject.model_folder(tmp_path / family, family), longest=200)
    lines = silent()
    parity.merged(lines, made, family)
    assert [line.verdict for line in lines.lines] == ["passed"], lines.lines


def test_quantised_weights(ground: Ground) -> None:
    lines = silent()
    quantised.prove(lines, ground)
    assert [line.verdict for line in lines.lines] == ["passed"] * 4, lines.lines
    assert "4.0 bits" in lines.lines[0].detail


def test_quantised_products_that_are_off_are_found(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = quantised._unpacked
    monkeypatch.setattr(quantised, "_unpacked", lambda module, bits: plain(module, bits) * 1.1)
    with pytest.raises(FailedError, match="14 layers"):
        quantised._agrees(ground, "nf4")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ground, speed.Workload]:
    """The ground of speed and costs, small."""
    folder = tmp_path_factory.mktemp("speed")
    made = Ground(folder, subject.model_folder(folder / "tiny", "qwen2"), prepare={"max_length": 256, "validation": 0},
                  rows=lambda: subject.long_rows(8, 256))  # fmt: skip
    return made, speed.Workload(steps=3, rows=8, batch=4, micro=2, budget=512, rank=4)


def test_speed_beside_others(small: tuple[Ground, speed.Workload]) -> None:
    lines = silent()
    speed.measure(lines, small[0], torch.device("cpu"), small[1], "tiny")
    padded, ours, liger = lines.lines
    assert [padded.verdict, ours.verdict] == ["passed", "passed"], lines.lines
    assert (liger.verdict, liger.detail) == ("not run", "the package liger_kernel is not installed")
    assert "times as fast as padded" in ours.detail
    assert "% of the" in ours.detail


def test_trl_walks_the_same_rows(small: tuple[Ground, speed.Workload]) -> None:
    """As with Liger, which needs a card, but for its kernels."""
    ground, work = small
    found = speed.with_trl(ground, torch.device("cpu"), work, parity.samples(ground, work.rows), liger=False)
    assert found.rate > 0


def test_long_rows_are_as_long_as_they_are_asked_to_be(small: tuple[Ground, speed.Workload]) -> None:
    lengths = [len(s.ids) for s in parity.samples(small[0], 8)]
    assert 200 < max(lengths) <= 256
    assert min(lengths) < max(lengths) / 2


def test_what_exact_resume_costs(small: tuple[Ground, speed.Workload]) -> None:
    lines = silent()
    costs.measure(lines, small[0], torch.device("cpu"), small[1])
    assert [line.verdict for line in lines.lines] == ["passed", "passed"], lines.lines
    assert "the same bits" in lines.lines[0].detail
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_report_outlives_a_half_written_line(tmp_path: Path) -> None:
    report = Report(tmp_path)
    report.begin()
    report.facts([("torch", "2\u2028.0")], on_card=True)
    report.line("x", Line("a", "b\u2028c", "passed", "d"), 1.0)
    with report.journal.open("a", encoding="utf-8") as file:
        file.write('{"section": "x", "gro')
    assert [line.what for line in report.lines()] == ["b\u2028c"]
    assert "stopped before its end" in report.page.read_text(encoding="utf-8")


def test_each_section_has_a_name_of_its_own() -> None:
    assert len({section.name for section in SECTIONS}) == len(SECTIONS)


LINES = (Line("a", "b", "passed", "1|2"), Line("a", "c", "not run", "why"))


@pytest.mark.parametrize("tongue", ["en", "zh"])
def test_the_report(tongue: str, tmp_path: Path) -> None:
    language.use(tongue)
    proof = Proof(tuple(device.facts()), LINES, 3.0)
    prove.write(proof, tmp_path / "report.md")
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "1\\|2" in page
    assert torch.__version__ in page
    assert "CPU" in proof.closing()
    assert {len(line.replace("\\|", "").split("|")) for line in page.splitlines() if line.startswith("|")} == {4, 5}


@pytest.mark.parametrize(("lines", "status"), [(LINES, 0), ((*LINES, Line("a", "d", "failed")), 1)])
def test_the_exit_status(
    lines: tuple[Line, ...],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prove, "prove", lambda say: Proof((), lines, 1.0))
    ended = app(["doctor", "--proof", "--json", "--report", str(tmp_path / "r.md")], standalone_mode=False)
    assert (ended or 0) == status
    assert json.loads(capsys.readouterr().out)["held"] is (status == 0)
    assert (tmp_path / "r.md").is_file()


@pytest.mark.slow
def test_the_whole_proof_holds_on_this_machine() -> None:
    """Every method and task as they stand in the tables, so that a new one is proven as it appears."""
    proof = prove.prove(print, [section for section in SECTIONS if section.name != "a real model"])
    assert REAL not in proof.markdown()
    assert proof.held, proof.markdown()
    named = {line.what for line in proof.lines}
    assert {f"{m} x {task}" for m in METHODS for task in TASKS} <= named
