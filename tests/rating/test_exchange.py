"""JSON lines in and out: what goes out comes in again, and what is malformed is named with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.rating.made import answers, run_with, simulated, study_of
from tuneloop.base.errors import DataError
from tuneloop.base.language import use
from tuneloop.cli.main import app
from tuneloop.rating.exchange import read_gold, read_ratings, write_ratings
from tuneloop.rating.results import results
from tuneloop.rating.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_of(run_with(tmp_path, answers(8)), repeats=0)


def line(study: Study, **more: Any) -> dict[str, Any]:
    pair = next(iter(study.pairs))
    return {"pair": pair, "rater": "Li", "model_a": "demo-1", "model_b": "demo-1:before", "choice": "A", **more}


def written(folder: Path, *lines: Any) -> Path:
    file = folder / "in.jsonl"
    file.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines), encoding="utf-8")
    return file


def test_what_goes_out_comes_in_again(study: Study, tmp_path: Path) -> None:
    simulated(study, ["Li", "小李 👩‍🏫"], lambda draw, pair: draw.choice(["first", "second", "tie", "both_bad"]))
    file = tmp_path / "out.jsonl"
    assert write_ratings(file, study) == 16
    assert read_ratings(file, study) == study.ratings()
    first = json.loads(file.read_text(encoding="utf-8").splitlines()[0])
    shown = study.pairs[first["pair"]]
    assert (first["answer_a"] == shown.second) == (first["model_a"] == "demo-1")


def test_scores_and_safety_may_be_left_out_and_a_pair_be_named_by_its_texts(study: Study, tmp_path: Path) -> None:
    bare = line(study, choice="both_bad")
    texts = {"prompt": "question 3", "answer_a": "after 3", "answer_b": "before 3"}
    by_text = {k: v for k, v in line(study).items() if k != "pair"} | texts
    taken = read_ratings(written(tmp_path, bare, by_text), study)
    assert [one.chosen(study.models) for one in taken] == ["both_bad", "second"]
    assert taken[0].a.scores == (None, None, None)
    assert study.pairs[taken[1].pair].prompt == "question 3"


@pytest.mark.parametrize("tongue", ["en", "zh"])
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pair": "0123456789ab"}, "pair"), ({"pair": 7}, "pair"), ({"rater": " "}, "rater"), ({"rater": "x" * 65}, "rater"),
        ({"model_a": "gpt"}, "model_a"), ({"choice": "C"}, "choice"), ({"choice": None}, "choice"),
        ({"relevance_a": 6}, "relevance_a"), ({"fluency_b": "4"}, "fluency_b"), ({"fluency_b": True}, "fluency_b"),
        ({"safety_a": "maybe"}, "safety_a"), ({"safety_reason_b": 3}, "safety_reason_b"), ({"kind": "other"}, "kind"),
        ({"seconds": -1}, "seconds"), ({"seconds": float("nan")}, "seconds"), ({"seconds": float("inf")}, "seconds"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_named(
    study: Study, tmp_path: Path, tongue: str, change: dict[str, Any], word: str
) -> None:
    use(tongue)
    file = written(tmp_path, line(study), "", line(study, **change))
    with pytest.raises(DataError) as caught:
        read_ratings(file, study)
    assert caught.value.code == "TL-DATA-RATINGS"
    assert f"{file}:3" in str(caught.value)
    assert word in str(caught.value)
    assert not study.ratings()


@pytest.mark.parametrize("text", ["not json", "[1]", '"text"', "{" * 5000, '{"pair": '])
def test_a_line_that_is_no_object_is_named(study: Study, tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"in\.jsonl:1"):
        read_ratings(written(tmp_path, text), study)


def test_other_files_are_coded_errors(study: Study, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="TL-DATA-MISSING"):
        read_ratings(tmp_path / "none.jsonl", study)
    with pytest.raises(DataError, match="TL-DATA-EMPTY"):
        read_ratings(written(tmp_path, ""), study)
    (tmp_path / "in.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_ratings(tmp_path / "in.jsonl", study)


def test_gold_rows(tmp_path: Path) -> None:
    good = {"prompt": "2+2?", "answer_a": "4", "answer_b": "5", "choice": "A"}
    odd = {"prompt": "half \ud83d a pair", "answer_a": "", "answer_b": "x\x00y", "choice": "both_bad"}
    first, second = read_gold(written(tmp_path, good, odd))
    assert (first.prompt, first.first, first.second, first.right) == ("2+2?", "4", "5", "first")
    assert (second.prompt, second.second, second.right) == ("half ? a pair", "x?y", "both_bad")
    with pytest.raises(DataError, match=r"in\.jsonl:2"):
        read_gold(written(tmp_path, good, {**good, "choice": "first"}))


def test_the_verb_takes_ratings_in_and_prints_and_writes_them(tmp_path: Path) -> None:
    run_with(tmp_path, answers(8))
    common = ["rate", "demo-1", "-w", str(tmp_path)]
    runner = CliRunner()

    def called(*more: str) -> Any:
        return runner.invoke(app, [*common, *more])

    assert called("--results").exception.code == "TL-RUN-NO-RATINGS"
    pairs = [{"prompt": f"question {n}", "answer_a": f"before {n}", "answer_b": f"after {n}"} for n in range(8)]
    who = {"model_a": "demo-1:before", "model_b": "demo-1"}
    lines = [{**pair, **who, "rater": name, "choice": "B" if n else "A", "relevance_a": 2, "relevance_b": 4}
             for n, pair in enumerate(pairs) for name in ("Li", "Ana")]  # fmt: skip
    file = written(tmp_path, *lines)
    assert called("--from", str(file)).exit_code == 0
    shown = called("--results")
    assert shown.exit_code == 0, shown.exception
    assert "8 rows rated, 8 of them by two raters or more" in shown.stdout
    assert "Win rate of demo-1 where one was better: 88 %" in shown.stdout
    assert "few rows, so the interval may be too narrow" in shown.stdout
    assert "nan" not in shown.stdout.lower()
    content = json.loads(called("--results", "--json").stdout)
    assert content["choices"] == {"first": 1, "second": 7, "tie": 0, "both_bad": 0}
    assert content["scores"]["relevance"]["difference"]["estimate"] == 2.0
    assert content["alpha"]["choice"]["estimate"] == 1.0
    out = tmp_path / "out.jsonl"
    assert called("--to", str(out)).exit_code == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 16
    chinese = called("--results", "--lang", "zh")
    assert "胜率" in chinese.stdout
    from tuneloop.runs.run import Run

    study = Study.read(Study.at(Run(tmp_path / "runs" / "demo-1"), None))
    assert study is not None
    assert results(study).ratings == 16
