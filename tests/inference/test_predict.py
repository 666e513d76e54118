"""A file in, a file out: every row, in order, whatever is in it; and a killed process goes on where it was."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TALK
from tests.lives import fork, rows, wait
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.base.errors import TuneloopError
from tuneloop.inference.classifier import Classifier
from tuneloop.inference.open import answerer as opened
from tuneloop.inference.output import Output
from tuneloop.recipe.recipe import make_recipe

SHORT: dict[str, Any] = {"max_new_tokens": 6, "batch_size": 2}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def trained(model: Path, folder: Path, task: str, kind: str) -> Path:
    recipe, _ = make_recipe(
        {
            "name": task, "model": str(model), "data": str(rows(folder, kind)), "prepare": {"dedupe": "off"},
            "train": {"task": task, "max_steps": 2, "learning_rate": 0.01, "lora": {"rank": 4}},
        }
    )  # fmt: skip
    return pipeline.train(recipe, pipeline.prepare(recipe, workspace=folder), workspace=folder).path


@pytest.fixture(scope="module")
def labelling(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_model, tmp_path_factory.mktemp("label"), "classify", "label")


@pytest.fixture(scope="module")
def scoring(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny_model, tmp_path_factory.mktemp("score"), "reward", "preference")


def test_each_row_is_answered_in_order_whatever_is_in_it(tiny_run: Path, tmp_path: Path) -> None:
    given: list[Any] = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "id": n}
        for n, (q, a) in enumerate(TALK[:3])
    ]
    given += [
        {"messages": [{"role": "user", "content": "Who are you? 👩‍🚀 مرحبا بالعالم"}]},
        {"question": "What is the capital of France?"},
        {"question": "Name a colour.", "answer": "Blue."},
        {},
        {"question": "  "},
        {"messages": [{"role": "user", "content": "Why? " * 2000}], "line": "mine"},
        {"question": "Long?", "answer": "x" * 100_000},
        {"question": "Empty?", "answer": ""},
        {"other": 1},
    ]
    source = jsonl(tmp_path / "in.jsonl", given)
    with source.open("a", encoding="utf-8") as file:
        file.write('{"question": broken\n')
    done = pipeline.predict(source, run=tiny_run, to=tmp_path / "out.jsonl", **SHORT)
    out = lines(done.path)
    assert [row["line"] for row in out] == list(range(1, len(given) + 2))
    assert {row["file"] for row in out} == {"in.jsonl"}
    assert [row.get("id") for row in out[:3]] == [0, 1, 2]
    assert [row["messages"] for row in out[:4]] == [row["messages"] for row in given[:4]]
    assert [row.get("reference") for row in out[:6]] == [*(a for _, a in TALK[:3]), None, None, "Blue."]
    bad = {n for n, row in enumerate(out) if "error" in row}
    assert bad == {6, 7, 8, 11, 12}
    assert all(row["error"] and "prediction" not in row for n, row in enumerate(out) if n in bad)
    assert "2" in out[8]["error"]
    assert out[8]["input_line"] == "mine"
    assert len(out[9]["reference"]) == 100_000
    assert "reference" not in out[10]
    answerer = opened(tiny_run)
    for n in set(range(len(out))) - bad:
        chat = (
            given[n]["messages"][:1] if "messages" in given[n] else [{"role": "user", "content": given[n]["question"]}]
        )
        (reply,) = answerer.answer([chat], max_new_tokens=6)
        assert (out[n]["prediction"], out[n]["finish"], out[n]["tokens"]) == (reply.text, reply.finish, reply.tokens)
    assert (done.rows, done.failed, done.resumed) == (len(out), len(bad), 0)
    assert done.counts["tokens"] == sum(row.get("tokens", 0) for row in out)


def test_a_table_comes_out_as_a_table(labelling: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text(
        'no,review,label\n1,"a dull, long film",bad\n2,"fine ""words""",good\n3,,good\n4,"two\nlines",\n',
        encoding="utf-8",
    )
    done = pipeline.predict(source, run=labelling, to=tmp_path / "out.csv", batch_size=2)
    with done.path.open(encoding="utf-8-sig", newline="") as file:
        out = list(csv.DictReader(file))
    assert [row["no"] for row in out] == ["1", "2", "3", "4"]
    assert [row["review"] for row in out] == ["a dull, long film", 'fine "words"', "", "two\nlines"]
    assert [row["reference"] for row in out] == ["bad", "good", "", ""]
    assert [bool(row["error"]) for row in out] == [False, False, True, False]
    classifier = opened(labelling)
    assert isinstance(classifier, Classifier)
    for row in out[:2]:
        (chances,) = classifier.classify([row["review"]])
        assert row["prediction"] == max(chances, key=chances.__getitem__)
        assert {label: float(row[f"probability_{label}"]) for label in chances} == pytest.approx(chances)
        assert float(row["probability"]) == pytest.approx(max(chances.values()))
    assert done.counts["labelled"] == 2
    assert done.counts["right"] == sum(row["prediction"] == row["reference"] for row in out[:2])


def test_texts_one_a_line_are_labelled(labelling: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("a fine film\n\ndull words\n# not a heading\n", encoding="utf-8")
    done = pipeline.predict(source, run=labelling, to=tmp_path / "out.jsonl")
    out = lines(done.path)
    assert [(row["line"], row["text"]) for row in out] == [
        (1, "a fine film"),
        (3, "dull words"),
        (4, "# not a heading"),
    ]
    assert all(set(row["probabilities"]) == {"bad", "good"} for row in out)


def test_answers_and_pairs_are_scored(scoring: Path, tmp_path: Path) -> None:
    ask = [{"role": "user", "content": TALK[0][0]}]
    say = [{"role": "assistant", "content": TALK[0][1]}, {"role": "assistant", "content": TALK[1][1]}]
    given = [
        {"messages": [*ask, say[0]]},
        {"prompt": TALK[0][0], "chosen": TALK[0][1], "rejected": TALK[1][1]},
        {"messages": ask},
    ]
    done = pipeline.predict(jsonl(tmp_path / "in.jsonl", given), run=scoring, to=tmp_path / "out.jsonl")
    one, pair, none = lines(done.path)
    scores = opened(scoring).scores([[*ask, answer] for answer in say])  # type: ignore[union-attr]
    assert one["score"] == pytest.approx(scores[0])
    assert [pair["score"], pair["rejected_score"]] == pytest.approx(scores)
    assert none["error"]
    assert "score" not in none


def test_a_finished_file_is_not_done_again_unless_asked(tiny_run: Path, tmp_path: Path) -> None:
    source, out = jsonl(tmp_path / "in.jsonl", [{"question": q} for q, _ in TALK]), tmp_path / "out.jsonl"
    pipeline.predict(source, run=tiny_run, to=out, **SHORT)
    first, before = out.read_bytes(), out.stat().st_mtime_ns
    again = pipeline.predict(source, run=tiny_run, to=out, **SHORT)
    assert (again.rows, again.resumed, out.stat().st_mtime_ns) == (len(TALK), len(TALK), before)
    anew = pipeline.predict(source, run=tiny_run, to=out, again=True, **SHORT)
    assert anew.resumed == 0
    assert out.read_bytes() == first
    assert out.stat().st_mtime_ns > before


def test_what_belongs_to_something_else_is_not_written_over(tiny_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    source, out = jsonl(tmp_path / "in.jsonl", [{"question": q} for q, _ in TALK[:3]]), tmp_path / "out.jsonl"
    pipeline.predict(source, run=tiny_run, to=out, **SHORT)
    first = out.read_bytes()
    other = jsonl(tmp_path / "other.jsonl", [{"question": "Who?"}])
    for code, differs, settings in [
        ("TL-RUN-OUT-OTHER", "input", {"file": other, "run": tiny_run}),
        ("TL-RUN-OUT-OTHER", "model", {"file": source, "run": tiny_model}),
        ("TL-RUN-OUT-OTHER", "max_new_tokens", {"file": source, "run": tiny_run, "max_new_tokens": 7}),
        ("TL-RUN-OUT-OTHER", "input", {"file": other, "run": tiny_run, "again": True}),
    ]:
        with pytest.raises(TuneloopError) as caught:
            pipeline.predict(**{**SHORT, **settings}, to=out)
        assert caught.value.code == code
        assert differs in str(caught.value)
        if differs == "model":
            assert f"({tiny_run} → {tiny_model})" in str(caught.value), "names tell more than digests"
    assert out.read_bytes() == first
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text("mine\n")
    with pytest.raises(TuneloopError) as caught:
        pipeline.predict(source, run=tiny_run, to=theirs, **SHORT)
    assert caught.value.code == "TL-RUN-OUT-EXISTS"
    assert theirs.read_text() == "mine\n"


def test_a_header_alone_is_named(tiny_run: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("question,answer\n", encoding="utf-8")
    with pytest.raises(TuneloopError) as caught:
        pipeline.predict(source, run=tiny_run, to=tmp_path / "out.jsonl", **SHORT)
    assert "header" in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_folder_that_takes_no_file_is_not_said_to_be_busy(tiny_run: Path, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "in.jsonl", [{"question": "Who?"}])
    with pytest.raises(TuneloopError) as caught:
        pipeline.predict(source, run=tiny_run, to=Path("/proc/x.jsonl"), **SHORT)
    assert caught.value.code == "TL-MACHINE-FOLDER"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_killed_process_goes_on_where_it_was(tiny_run: Path, tmp_path: Path, ending: str) -> None:
    """Killed behind the second part, with half a line of the third on the disk."""
    given = [{"question": f"{q} {'Why? ' * n}"} for n in range(3) for q, _ in TALK]
    source, out, whole = jsonl(tmp_path / "in.jsonl", given), tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    options = {**SHORT, "temperature": 0.9, "seed": 3}

    def die() -> None:
        inner = Output.append

        def append(self: Output, *args: Any, **kwargs: Any) -> None:
            inner(self, *args, **kwargs)
            if self.rows == 16:
                with self.part.open("ab") as file:
                    file.write(b'{"file": "in.jso')
                os.kill(os.getpid(), signal.SIGKILL)

        Output.append = append  # type: ignore[method-assign]
        pipeline.predict(source, run=tiny_run, to=out, **options)

    assert wait(fork(die)) == -signal.SIGKILL
    assert not out.exists()
    done = pipeline.predict(source, run=tiny_run, to=out, **options)
    assert (done.resumed, done.rows) == (16, len(given))
    pipeline.predict(source, run=tiny_run, to=whole, **options)
    assert out.read_bytes() == whole.read_bytes()
    assert not out.with_name(f"a.{ending}.part").exists()


def test_no_row_one_row_and_no_question(tiny_run: Path, tmp_path: Path) -> None:
    one = pipeline.predict(
        jsonl(tmp_path / "one.jsonl", [{"question": "Who?"}]), run=tiny_run, to=tmp_path / "1.jsonl", **SHORT
    )
    assert one.rows == len(lines(one.path)) == 1
    (tmp_path / "none.jsonl").write_text("\n")
    for source, code in [
        (tmp_path / "none.jsonl", "TL-DATA-EMPTY"),
        (jsonl(tmp_path / "other.jsonl", [{"x": 1, "y": 2}] * 3), "TL-DATA-QUESTIONS"),
        (tmp_path / "nowhere.jsonl", "TL-DATA-MISSING"),
    ]:
        with pytest.raises(TuneloopError) as caught:
            pipeline.predict(source, run=tiny_run, to=tmp_path / "2.jsonl", **SHORT)
        assert caught.value.code == code
    assert not (tmp_path / "2.jsonl").exists()
    named = pipeline.predict(
        jsonl(tmp_path / "named.jsonl", [{"x": "Who?", "y": "a"}] * 3), run=tiny_run, to=tmp_path / "3.jsonl",
        column="x", **SHORT,
    )  # fmt: skip
    assert named.failed == 0
    assert [row["x"] for row in lines(named.path)] == ["Who?"] * 3


def test_a_seed_makes_drawn_answers_those_of_their_rows(tiny_run: Path, tmp_path: Path) -> None:
    """The same whatever the batch; the same question twice is drawn twice."""
    source = jsonl(tmp_path / "in.jsonl", [{"question": "Who are you?"}] * 9)
    options = {"max_new_tokens": 8, "temperature": 1.5, "seed": 5}
    small = pipeline.predict(source, run=tiny_run, to=tmp_path / "a.jsonl", batch_size=1, **options)
    large = pipeline.predict(source, run=tiny_run, to=tmp_path / "b.jsonl", batch_size=9, **options)
    assert small.path.read_bytes() == large.path.read_bytes()
    assert len({row["prediction"] for row in lines(small.path)}) > 4
