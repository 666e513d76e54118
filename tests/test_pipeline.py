from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import tuneloop
from tests import encoders
from tests.conftest import TALK
from tests.made import jsonl
from tuneloop import pipeline
from tuneloop.base.errors import DataError, ModelError, RecipeError, RunError
from tuneloop.data.version.dataset import open_dataset
from tuneloop.recipe.overrides import changed
from tuneloop.recipe.recipe import make_recipe, read_recipe
from tuneloop.recipe.schema import Recipe
from tuneloop.registry.versions import locate
from tuneloop.runs.run import Run, open_run

HELD = "What do you hold out?"


def recipe_of(base: Path | str, data: Path | str, **more: Any) -> Recipe:
    recipe, _ = make_recipe(
        {
            "name": "talk", "model": str(base), "data": str(data),
            "train": {"epochs": 1, "learning_rate": 0.01, "lora": {"rank": 4}},
            "evaluate": {"rows": 2, "max_new_tokens": 6, "show": ["Who are you?"]}, **more,
        }
    )  # fmt: skip
    return recipe


def evaluated(recipe: Recipe, workspace: Path) -> Run:
    run = pipeline.train(recipe, pipeline.prepare(recipe, workspace=workspace), workspace=workspace)
    pipeline.evaluate(run)
    return run


@pytest.fixture(scope="module")
def made(tiny_model: Path, talk_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return evaluated(recipe_of(tiny_model, talk_file), tmp_path_factory.mktemp("pipeline"))


def workspace_of(run: Run) -> Path:
    return run.path.parent.parent


def test_a_run_folder_holds_what_was_promised(made: Run, tiny_model: Path) -> None:
    names = {p.name for p in made.path.iterdir()}
    assert names == {
        "recipe.yaml", "plan.json", "dataset.json", "events.jsonl", "metrics.jsonl", "held.jsonl", "rows.jsonl", "loss_curve.png",
        "evaluation.json", "checkpoints", "adapter", "report.html",
    }  # fmt: skip
    events = [json.loads(line)["event"] for line in made.events.read_text(encoding="utf-8").splitlines()]
    assert events == ["plan", "started", "checkpoint", "finished", "evaluated"]
    dataset = open_dataset(Path(made.read("dataset.json")["path"]))
    assert made.read("dataset.json")["hash"] == dataset.hash
    assert made.read("plan.json")["data"]["dialogues"] == len(dataset.records("train"))
    assert made.read("evaluation.json")["after"]["loss"] < made.read("evaluation.json")["before"]["loss"]
    recipe, notes = read_recipe(made.recipe)
    assert notes == []
    assert recipe.model.name == str(tiny_model)


def test_plan_looks_and_starts_nothing(made: Run, tiny_model: Path, talk_file: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_model, talk_file)
    foreseen, looked = pipeline.plan(recipe, pipeline.prepare(recipe, workspace=tmp_path))
    assert foreseen.data["dialogues"] == looked.samples == 35, "a question in its five wordings is held out whole"
    assert any(trained for _, trained in looked.sample)
    assert [p.name for p in tmp_path.iterdir()] == ["datasets"]


@pytest.mark.parametrize("key", ["adapter", "merge"])
def test_plan_knows_an_adapter_by_its_run_and_by_its_version(
    made: Run, tiny_model: Path, talk_file: Path, key: str
) -> None:
    workspace = workspace_of(made)
    pipeline.register(made, workspace=workspace)
    for name in (made.path.name, "talk:latest"):
        settings = [f"train.{key}={name if key == 'adapter' else [name]}", "train.max_steps=1"]
        recipe = changed(recipe_of(tiny_model, talk_file), settings)
        dataset = pipeline.prepare(recipe, workspace=workspace)
        foreseen, _ = pipeline.plan(recipe, dataset, workspace=workspace)
        assert foreseen.data["steps"] == 1
        with pytest.raises(ModelError) as caught:
            pipeline.plan(recipe, dataset, workspace=workspace / "elsewhere")
        assert caught.value.code == "TL-MODEL-NO-ADAPTER"


def test_a_faulty_plan_makes_no_run(tiny_model: Path, talk_file: Path, tmp_path: Path) -> None:
    template = tmp_path / "endless.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}", encoding="utf-8")
    recipe = recipe_of(tiny_model, talk_file, model={"name": str(tiny_model), "template": str(template)})
    dataset = pipeline.prepare(recipe, workspace=tmp_path)
    with pytest.raises(DataError) as caught:
        pipeline.train(recipe, dataset, workspace=tmp_path)
    assert [c.code for c in caught.value.causes] == ["TL-DATA-NO-END"]
    bad = recipe_of(tiny_model, talk_file, evaluate={"probes": [{"name": "p", "prompts": ["a"], "expect": "("}]})
    with pytest.raises(RecipeError):
        pipeline.train(bad, pipeline.prepare(bad, workspace=tmp_path), workspace=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_a_run_made_with_relative_paths_is_read_from_anywhere(
    tiny_model: Path, talk_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "models" / "tiny")
    shutil.copy(talk_file, tmp_path / "talk.jsonl")
    (tmp_path / "show.txt").write_text("Who are you?\n", encoding="utf-8")
    for model in ("./models/tiny", "models/tiny"):
        monkeypatch.chdir(tmp_path)
        recipe = recipe_of(model, "talk.jsonl", evaluate={"rows": 1, "max_new_tokens": 4, "show": "show.txt"})
        run = Run(pipeline.train(recipe, pipeline.prepare(recipe), workspace=Path()).path.resolve())
        monkeypatch.chdir(tmp_path.parent)
        assert pipeline.evaluate(run)["show"][0]["prompt"] == "Who are you?"
        assert pipeline.resume(run).finished
        again, _ = read_recipe(run.recipe)
        assert again.data[0].path == str(tmp_path / "talk.jsonl")


def test_a_finished_run_is_resumed_to_nothing_and_an_unknown_setting_is_refused(made: Run) -> None:
    adapter = made.path / "adapter" / "adapter_model.safetensors"
    before = adapter.read_bytes()
    assert pipeline.resume(made, ["train.workers=0"]).finished
    assert adapter.read_bytes() == before
    with pytest.raises(RunError) as caught:
        pipeline.resume(made, ["train.epochs=5"])
    assert caught.value.code == "TL-RUN-RESUME"


def test_a_run_that_lacks_its_files_is_told(made: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "talk-1")
    run.path.mkdir()
    shutil.copy(made.recipe, run.recipe)
    for call in (pipeline.resume, pipeline.evaluate):
        with pytest.raises(RunError) as caught:
            call(run)
        assert caught.value.code in {"TL-RUN-DAMAGED", "TL-RUN-UNFINISHED"}


def test_compare_before_and_after_or_two_runs(made: Run, tiny_model: Path, talk_file: Path) -> None:
    one = pipeline.compare(made, max_new_tokens=6).as_dict()
    shown = made.read("evaluation.json")["show"][0]
    assert one["answers"] == [shown]
    assert set(shown) == {"prompt", "before", "after", "reference", "before_fault", "after_fault"}
    assert one["metrics"]
    asked = pipeline.compare(made, prompts=["Count.", "Why?"], max_new_tokens=4)
    assert [a.prompt for a in asked.answers] == ["Count.", "Why?"]
    with_itself = pipeline.compare(made, made, ["Count."], max_new_tokens=6)
    assert with_itself.answers[0].before == with_itself.answers[0].after
    assert with_itself.metrics
    assert all(m.before == m.after for m in with_itself.metrics)


def test_compare_warns_where_the_held_out_rows_differ(made: Run, tmp_path: Path) -> None:
    measured = made.read("evaluation.json")
    assert measured["held"] == [
        r.id for r in open_dataset(Path(made.read("dataset.json")["path"])).records("validation")
    ]
    assert pipeline.compare(made, made, ["Count."], max_new_tokens=2).warning == ""
    assert pipeline.compare(made, None, ["Count."], max_new_tokens=2).warning == ""
    other = Run(Path(shutil.copytree(made.path, tmp_path / "runs" / "talk-9")))
    other.write("evaluation.json", {**measured, "held": [*measured["held"][1:], "0123456789ab"]})
    n = len(measured["held"])
    warning = pipeline.compare(made, other, ["Count."], max_new_tokens=2).warning
    assert f"({n} and {n}, {n - 1} of them in both)" in warning
    del measured["held"]  # as earlier versions wrote it: then the dataset says it
    other.write("evaluation.json", measured)
    assert pipeline.compare(made, other, ["Count."], max_new_tokens=2).warning == ""
    other.write("dataset.json", {"path": str(tmp_path / "gone")})
    assert "not known" in pipeline.compare(made, other, ["Count."], max_new_tokens=2).warning


def test_what_is_loaded_answers_as_it_was_measured(made: Run) -> None:
    shown = made.read("evaluation.json")["show"][0]
    chat = [{"role": "user", "content": "Who are you?"}]
    version = pipeline.register(made, workspace=workspace_of(made))
    for ref in (made.path, made.name, version.ref):
        answerer = pipeline.load(ref, workspace=workspace_of(made))
        assert answerer.answer([chat], max_new_tokens=6)[0].text.strip() == shown["after"].strip()
    assert locate(workspace_of(made), version.ref) is not None
    assert open_run("latest", workspace_of(made)).name == made.name


def test_the_package_offers_the_pipeline(made: Run) -> None:
    for name in tuneloop.__all__:
        assert getattr(tuneloop, name) is not None
    assert tuneloop.evaluate is pipeline.evaluate
    with pytest.raises(AttributeError, match="no_such"):
        _ = tuneloop.no_such


def talk(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for question, answer in rows:
            file.write(json.dumps({"query": question, "response": answer}, ensure_ascii=False) + "\n")
    return path


@pytest.mark.parametrize("validation", [pytest.param(0.2, marks=pytest.mark.slow), 8], ids=["a share", "a number"])
def test_an_improved_run_is_judged_on_rows_it_has_not_learned(
    tiny_model: Path, tmp_path: Path, validation: float
) -> None:
    old_rows = [(f"{q} {n}", a) for n in range(5) for q, a in TALK]
    new_rows = [(f"{q} And {n}?", f"{a} Again.") for n in range(5) for q, a in TALK]
    old, new = talk(tmp_path / "old.jsonl", old_rows), talk(tmp_path / "new.jsonl", new_rows)
    run = evaluated(recipe_of(tiny_model, old, prepare={"validation": validation}), tmp_path)
    measured = run.read("evaluation.json")
    assert measured["after"]["label_tokens"] > 0

    improved, verdict = pipeline.improve(run, [new], workspace=tmp_path)
    assert improved.name == "talk-2"
    assert [Path(d.path).name for d in read_recipe(improved.recipe)[0].data] == ["old.jsonl", "new.jsonl"]
    held = {r.id for r in open_dataset(Path(run.read("dataset.json")["path"])).records("validation")}
    learned = {r.id for r in open_dataset(Path(improved.read("dataset.json")["path"])).records("train")}
    judged = improved.read("evaluation.json")["after"]
    assert held
    assert not held & learned
    assert verdict.old_loss == measured["after"]["loss"]
    assert judged["label_tokens"] == measured["after"]["label_tokens"]
    assert run.read("evaluation.json") == measured, "what was measured once stays"
    assert verdict.new_loss == judged["loss"]
    registered = locate(tmp_path, "talk")
    assert (registered is not None) == verdict.better


def test_a_held_out_row_that_must_be_learned_is_no_witness(tmp_path: Path) -> None:
    """A new label stands only in rows that belong with one that was held out: training has to have it."""
    old_rows = [{"text": f"{' '.join(encoders.WORDS[n % 7 : n % 7 + 9])} {n}", "label": ["bad", "good"][n % 2]}
                for n in range(40)]  # fmt: skip
    model, old = encoders.folder(tmp_path / "bert", "bert"), jsonl(tmp_path / "old.jsonl", old_rows)
    recipe, _ = make_recipe({
        "name": "labels", "model": str(model), "data": str(old), "train": {"task": "classify", "max_steps": 1},
        "prepare": {"validation": 0.2, "dedupe": "off"},
    })  # fmt: skip
    run = evaluated(recipe, tmp_path)
    before = open_dataset(Path(run.read("dataset.json")["path"])).records("validation")
    measured = run.read("evaluation.json")
    new = jsonl(tmp_path / "new.jsonl", [{"text": before[0].messages[0].content, "label": "neither"}])
    improved, verdict = pipeline.improve(run, [new], workspace=tmp_path)
    learned = {r.id for r in open_dataset(Path(improved.read("dataset.json")["path"])).records("train")}
    assert before[0].id in learned
    judged = improved.read("evaluation.json")
    assert judged["held"] == [r.id for r in before if r.id not in learned]
    assert 0 < len(judged["held"]) < len(before)
    assert verdict.old_loss not in {None, measured["after"]["loss"]}
    assert run.read("evaluation.json") == measured, "what was measured once stays"
