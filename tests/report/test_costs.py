from __future__ import annotations

from pathlib import Path

from tests.report.test_report import make_run
from tuneloop.report import costs
from tuneloop.report.run_view import read


def test_the_cost_of_a_run_is_what_its_files_tell(tmp_path: Path) -> None:
    paid = costs.cost(read(make_run(tmp_path)))
    assert (paid.seconds, paid.memory_gb, paid.trained, paid.parameters) == (59.5, 2.1, 2442240, 134515008)
    assert paid.tokens == 30 * 800
    assert paid.epochs is None


def test_steps_without_a_line_make_no_sum_of_tokens(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    text = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "metrics.jsonl").write_text("\n".join(text[1::2]) + "\n", encoding="utf-8")
    assert costs.cost(read(run)).tokens is None


def test_a_run_without_files_cost_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "runs" / "x-1").mkdir(parents=True)
    paid = costs.cost(read(tmp_path / "runs" / "x-1"))
    assert set(paid.as_dict().values()) == {None}
    assert costs.planned(read(tmp_path / "runs" / "x-1")) == []
