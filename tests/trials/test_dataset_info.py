"""LLaMA-Factory's recipe with its dataset_info.json beside it: files, columns, tags and kinds as that list says them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tuneloop.base.errors import RecipeError
from tuneloop.base.records import Record
from tuneloop.data.reading import formats
from tuneloop.recipe.peers.translate import translate
from tuneloop.recipe.recipe import make_recipe, read_recipe
from tuneloop.recipe.schema import DataFile

CASE = Path(__file__).parents[1] / "cases" / "first-user" / "llamafactory"


def rows(file: DataFile) -> list[Record]:
    found = list(formats.read(file))
    assert all(isinstance(one, Record) for one in found), found
    return [one for one in found if isinstance(one, Record)]


def recipe(**keys: Any) -> Any:
    return make_recipe({"stage": "sft", **keys}, folder=CASE)[0]


def test_the_yaml_is_read_with_the_list_beside_it() -> None:
    made, notes = read_recipe(CASE / "train.yaml")
    assert [(Path(d.path).name, d.split) for d in made.data] == [
        ("service.json", "auto"), ("tools.json", "auto"), ("alpaca.jsonl", "auto"), ("held.json", "validation"),
    ]  # fmt: skip
    assert sum("dataset_info.json" in note for note in notes) == 4
    service, tools, own, held = (rows(file) for file in made.data)
    assert [len(service), len(tools), len(own), len(held)] == [6, 3, 2, 3]
    first = service[0].messages
    assert [m.role for m in first] == ["system", "user", "assistant", "user", "assistant"], "columns.system and history"
    assert service[1].messages[1].content == "第 1 号订单到哪里了？\n地址在城东", "prompt and query, as they join them"
    assert Counter(m.role for m in tools[0].messages) == {"user": 1, "assistant": 2, "tool": 1}
    assert tools[0].messages[1].tool_calls[0]["function"]["arguments"] == {"city": "杭州"}
    assert tools[0].tools
    assert held[0].messages[0].role == "system"


@pytest.mark.parametrize(
    ("name", "kind", "count"), [("pairs", "preference", 3), ("verdicts", "judged", 4), ("prose", "text", 4)]
)
def test_the_kind_of_the_rows_is_what_the_list_says(name: str, kind: str, count: int) -> None:
    (file,) = recipe(dataset=name).data
    found = rows(file)
    assert (len(found), {one.kind for one in found}) == (count, {kind})


def test_names_of_their_own_for_turns_and_speakers_are_carried_over() -> None:
    out, _, problems = translate({"dataset": "strange"}, CASE)
    assert not problems
    assert out["data"] == [
        {"path": str(CASE / "data" / "strange.json"), "speakers": {"guest": "user", "host": "assistant"},
         "columns": {"messages": "talk", "role": "speaker", "content": "utterance"}}
    ]  # fmt: skip


@pytest.mark.parametrize("place", ["", "data", "lists", "../elsewhere"])
def test_the_list_is_found_where_it_lies(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the recipe, in data/, in dataset_dir; and so from the current folder, as their tool looks for it."""
    project = tmp_path / "project"
    (project / "examples").mkdir(parents=True)
    folder = project / place
    folder.mkdir(exist_ok=True)
    (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "mine.json"}}), encoding="utf-8")
    (folder / "mine.json").write_text('[{"instruction": "a", "input": "", "output": "b"}]', encoding="utf-8")
    line = f"dataset_dir: {place}\n" if place not in ("", "data") else ""
    for recipe_file in (project / "a.yaml", project / "examples" / "b.yaml"):
        recipe_file.write_text(f"dataset: mine\n{line}", encoding="utf-8")
        monkeypatch.chdir(project if "examples" in str(recipe_file) else tmp_path)
        (file,) = read_recipe(recipe_file)[0].data
        assert Path(file.path).samefile(folder / "mine.json")
        assert len(rows(file)) == 1


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [("zhservice", "TL-RECIPE-DATASET", "zh_service"), ("nothing_near", "TL-RECIPE-DATASET", "dataset_info.json"),
     ("scripted", "TL-RECIPE-UNSUPPORTED", "script")],
)  # fmt: skip
def test_what_cannot_be_read_is_told(name: str, code: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(dataset=name)
    (cause,) = caught.value.causes
    assert cause.code == code
    assert words in str(caught.value)


def test_the_smaller_of_two_limits_holds(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(
        '{"mine": {"file_name": "a.json", "num_samples": 500}}', encoding="utf-8"
    )
    for limit, wanted in ((100, (100, None)), (1000, (500, "[:1000]"))):
        (file,) = make_recipe({"dataset": "mine", "max_samples": limit}, folder=tmp_path)[0].data
        assert (file.sample, file.rows) == wanted


def test_a_hub_stands_for_a_file_that_is_not_there() -> None:
    assert recipe(dataset="online").data[0].path == "hub:org/talk:zh"


def test_a_list_that_is_broken_is_told(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json",}}', encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        make_recipe({"dataset": "mine"}, folder=tmp_path)
    assert "TL-RECIPE-DATASET-INFO" in {cause.code for cause in caught.value.causes}


def test_a_list_of_the_datasets_library_is_not_theirs(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"builder_name": "json", "features": {"a": {}}}', encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        make_recipe({"dataset": "features"}, folder=tmp_path)
    assert [cause.code for cause in caught.value.causes] == ["TL-RECIPE-DATASET"]
