"""Two texts under one label are both read; a label beside answers is no verdict unless a person says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import encoders
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.base.errors import DataError
from tuneloop.base.records import Record
from tuneloop.data.reading import formats
from tuneloop.data.reading.shapes import TEXT_PAIRS
from tuneloop.data.version.export import row
from tuneloop.recipe.recipe import make_recipe
from tuneloop.recipe.schema import DataFile, Recipe

CASES = Path(__file__).parents[1] / "cases" / "data"


def records(path: Path, **more: Any) -> list[Record]:
    return [i for i in formats.read(DataFile.model_validate({"path": str(path), **more})) if isinstance(i, Record)]


def test_both_texts_of_the_case() -> None:
    found = records(CASES / "pair.tsv")
    assert {(r.kind, len(r.messages)) for r in found} == {("label", 2)}
    assert [m.content for m in found[1].messages] == ["how do i get to room 0", "is lunch 0 free"]
    assert (found[0].label, found[1].label) == ("1", "0")


@pytest.mark.parametrize("names", TEXT_PAIRS)
def test_a_pair_under_any_of_its_names(names: tuple[str, str], tmp_path: Path) -> None:
    rows = [{"id": n, names[0]: f"a{n}", names[1]: f"b{n}", "label": n % 2} for n in range(20)]
    found = records(jsonl(tmp_path / "f.jsonl", rows))
    assert [(tuple(m.content for m in r.messages), r.label) for r in found] == [
        ((f"a{n}", f"b{n}"), str(n % 2)) for n in range(20)
    ]
    assert all(row(r, "label") == {"text_a": f"a{n}", "text_b": f"b{n}", "label": str(n % 2)}
               for n, r in enumerate(found))  # fmt: skip
    assert all(len(r.messages) == 2 for r in records(jsonl(tmp_path / "h.jsonl", [
        {names[0]: f"a{n}", names[1]: f"b{n}", "gold_label": n % 2} for n in range(20)
    ])))  # fmt: skip
    # without a label they are no texts to go on writing
    with pytest.raises(DataError) as caught:
        records(jsonl(tmp_path / "g.jsonl", [{name: one[name] for name in names} for one in rows]))
    assert caught.value.code == "TL-DATA-SHAPE"
    named = {"text": names[1], "text_pair": names[0], "label": "label"}
    assert records(tmp_path / "f.jsonl", columns=named)[0].messages == found[0].messages[::-1]


def recipe(data: Path, model: Path, **train: Any) -> Recipe:
    settings = {"epochs": 1, "learning_rate": 0.01, "lora": {"rank": 2}, **train}
    return make_recipe({"name": "pairs", "model": str(model), "data": str(data), "train": settings})[0]


def test_an_encoder_is_trained_on_both_texts_and_plan_names_the_task(tmp_path: Path) -> None:
    model = encoders.folder(tmp_path / "bert", "bert")
    words = encoders.WORDS
    rows = [{"sentence1": f"the film was {words[n % 7]}", "sentence2": f"i saw {words[n % 5]}", "label": n % 2}
            for n in range(40)]  # fmt: skip
    wanted = recipe(jsonl(tmp_path / "f.jsonl", rows), model)
    dataset = pipeline.prepare(wanted, workspace=tmp_path)
    samples = dataset.records("train")
    assert all(len(r.messages) == 2 for r in samples)
    foreseen, _ = pipeline.plan(wanted, dataset, workspace=tmp_path)
    assert (foreseen.choices[0].what, foreseen.choices[0].value) == ("task", "classify")
    run = pipeline.train(wanted, dataset, workspace=tmp_path)
    assert pipeline.evaluate(run)["after"]["texts"] > 0
    answerer = pipeline.load(run.path, workspace=tmp_path)
    one, both = (answerer.answer([chat])[0].scores for chat in (
        [{"role": "user", "content": "i saw the"}],
        [{"role": "user", "content": "the film was good"}, {"role": "user", "content": "i saw the"}],
    ))  # fmt: skip
    assert one != both


def shaped(folder: Path, shape: str, yes: Any, no: Any) -> Path:
    """Ten answers, each beside yes or no."""
    asked = [(f"Which number is {n}?", f"It is {n}.", no if n % 2 else yes) for n in range(10)]
    if shape == "csv":
        path = folder / "rows.csv"
        path.write_text("question,answer,label\n" + "".join(f"{q},{a},{v}\n" for q, a, v in asked), encoding="utf-8")
        return path
    make = {
        "alpaca": lambda q, a: {"instruction": q, "output": a},
        "messages": lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
        "prompt": lambda q, a: {"prompt": q, "response": a},
        "trl": lambda q, a: {"prompt": q, "completion": a},
    }[shape]
    return jsonl(folder / "rows.jsonl", [{**make(q, a), "label": v} for q, a, v in asked])


@pytest.mark.parametrize(("yes", "no"), [(1, 0), (True, False), ("True", "False"), ("1", "0"), ("good", "bad")])
@pytest.mark.parametrize("shape", ["alpaca", "csv", "messages", "prompt"])
def test_a_label_beside_answers_of_any_shape_is_no_verdict(shape: str, yes: Any, no: Any, tmp_path: Path) -> None:
    path = shaped(tmp_path, shape, yes, no)
    source = formats.sources(DataFile(path=str(path)))[0]
    one, other = {"1": "01", "true": ("true", "false"), "good": ("good", "bad")}[str(yes).casefold()]
    assert (source.guess.kind, source.guess.doubt, source.guess.holds) == ("chat", "label", f"{one} and {other}")
    assert {r.kind for r in records(path)} == {"chat"}
    assert [r.label for r in records(path, task="judged")] == ["good", "bad"] * 5


@pytest.mark.slow
def test_answers_beside_true_and_false_are_told(tiny_model: Path, tmp_path: Path) -> None:
    def told(path: Path, *more: str) -> tuple[set[str], str]:
        done = subprocess.run([sys.executable, "-m", "tuneloop", "prepare", str(path), "--model", str(tiny_model), "--json",
                               *more], cwd=tmp_path, capture_output=True, text=True, check=True,
                              stdin=subprocess.DEVNULL)  # fmt: skip
        return set(json.loads(done.stdout)["kinds"]), done.stderr

    kinds, said = told(shaped(tmp_path, "alpaca", True, False))
    assert kinds == {"chat"}
    assert "`label` holds true and false beside answers" in said
    assert "--set train.task=prefer" in said
    kinds, said = told(shaped(tmp_path, "trl", True, False))
    assert kinds == {"judged"}
    assert "that is learned (KTO)" in said
    assert "`task: chat` beside the path" in said


def test_answers_beside_0_and_1_are_trained_as_they_are(tiny_model: Path, tmp_path: Path) -> None:
    path = CASES / "sft_label.jsonl"
    dataset = pipeline.prepare(recipe(path, tiny_model), workspace=tmp_path)
    assert set(dataset.manifest["kinds"]) == {"chat"}
    assert [s["doubt"] for s in dataset.manifest["sources"]] == ["label"]
    for train in ({"task": "prefer"}, {"prefer": {"loss": "kto"}}):
        judged = pipeline.prepare(recipe(path, tiny_model, **train), workspace=tmp_path)
        assert set(judged.manifest["kinds"]) == {"judged"}
        assert [s["doubt"] for s in judged.manifest["sources"]] == [""]


def command(folder: Path, model: Path, name: str) -> list[str]:
    return [sys.executable, "-m", "tuneloop", "prepare", str(CASES / name), "--model", str(model), "--json"]


def test_where_nobody_can_be_asked_it_is_said(tiny_model: Path, tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, tiny_model, "sft_label.jsonl"), cwd=tmp_path, capture_output=True, text=True,
                          check=True, stdin=subprocess.DEVNULL)  # fmt: skip
    assert set(json.loads(done.stdout)["kinds"]) == {"chat"}
    assert "`label` holds 0 and 1 beside answers" in done.stderr
    assert "--set train.task=prefer" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pseudo-terminal")
@pytest.mark.parametrize(("said", "kind"), [("y\n", "judged"), ("n\n", "chat")])
def test_on_a_terminal_a_person_decides(said: str, kind: str, tiny_model: Path, tmp_path: Path) -> None:
    import pty

    there, here = pty.openpty()
    child = subprocess.Popen(command(tmp_path, tiny_model, "sft_label.jsonl"), cwd=tmp_path, stdin=here, stderr=here,
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    os.close(here)
    os.write(there, said.encode())
    out = ""
    while chunk := _read(there):
        out += chunk
    stdout, _ = child.communicate()
    assert "learn from that (KTO)?" in out
    assert set(json.loads(stdout)["kinds"]) == {kind}


def _read(there: int) -> str:
    try:
        return os.read(there, 4096).decode("utf-8", "replace")
    except OSError:  # the other end is closed
        return ""
