"""What goes along with an export: terms, names that others know, and no claim that was not measured."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tuneloop import pipeline
from tuneloop.base.errors import TuneloopError
from tuneloop.exports import llamacpp
from tuneloop.exports.composition import composition
from tuneloop.exports.export import TERMS, Exported, export
from tuneloop.exports.limits import fewest, most
from tuneloop.exports.targets import TARGETS

CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I'm Pebble."}]
LICENCES = ("LICENSE", "NOTICE.txt", "USE_POLICY.md", "GEMMA_TERMS.html")


@pytest.fixture(scope="module")
def moved(tiny_run: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run on a base that has a licence's files."""
    folder = tmp_path_factory.mktemp("licensed")
    base = Path(shutil.copytree(tiny_model, folder / "base"))
    for name in LICENCES:
        (base / name).write_text(name, encoding="utf-8")
    run = Path(shutil.copytree(tiny_run, folder / "tiny-1"))
    text = (run / "recipe.yaml").read_text(encoding="utf-8").replace(str(tiny_model), str(base))
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def exported(moved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    return export(moved, tmp_path_factory.mktemp("exports") / "tiny", ["adapter", "merged"], chats=[CHAT])


@pytest.fixture(scope="module")
def composed(moved: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """An export with an adapter beside the run's own."""
    other = Path(shutil.copytree(moved, moved.parent / "other-7")) / "adapter"
    return export(moved, tmp_path_factory.mktemp("composed") / "two", more=[other], chats=[CHAT])["merged"]


def test_the_terms_of_the_base_go_with_its_weights(exported: dict[str, Exported]) -> None:
    assert all((exported["merged"].path / name).read_text(encoding="utf-8") == name for name in LICENCES)
    assert not [name for name in LICENCES if (exported["adapter"].path / name).exists()]


def test_what_is_no_licence() -> None:
    for name in ("model.safetensors", "tokenizer.json", "README.md", "config.json", "noticeable.txt", "terminal.py"):
        assert not TERMS.search(name), name
    for name in ("LICENCE.txt", "License-MODEL", "UNLICENSE_NOTICE", "COPYING", "Notice"):
        assert TERMS.search(name), name


def test_an_adapter_names_no_folder_of_this_machine(exported: dict[str, Exported], moved: Path) -> None:
    folder = exported["adapter"].path
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "base"
    for file in folder.iterdir():
        if file.suffix in (".json", ".md") and file.name != "tokenizer.json":
            assert str(moved.parent) not in file.read_text(encoding="utf-8"), file.name


def test_the_adapters_card_asks_it(exported: dict[str, Exported], moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the base is named, as the card says, its Python prints an answer."""
    folder = exported["adapter"].path
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "base is what tuneloop calls the base model" in text
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert 'base = "base"' in code
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code.replace('base = "base"', f"base = {str(moved.parent / 'base')!r}"), names)
    assert type(names["model"]).__name__ == "PeftModelForCausalLM"
    assert names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1]


def test_with_more_adapters_no_figure_of_the_run_is_claimed(composed: Exported, moved: Path) -> None:
    assert composed.parity.passed
    text = (composed.path / "README.md").read_text(encoding="utf-8")
    assert "other-7" in text
    assert "This model was not evaluated" in text
    assert "| before | after |" not in text
    assert "Checked against base and adapters" in text
    assert "tuneloop export" not in text
    (added,) = json.loads((composed.path / "tuneloop.json").read_text(encoding="utf-8"))["adapters"]
    assert added["name"] == "other-7"
    assert re.fullmatch(r"[0-9a-f]{12}", added["weights"])
    for name in ("README.md", "tuneloop.json"):
        assert str(moved.parent) not in (composed.path / name).read_text(encoding="utf-8")


def test_limits_stand_as_they_were_applied(composed: Exported) -> None:
    written = json.loads((composed.path / "parity.json").read_text(encoding="utf-8"))
    assert written["allowed"]["kld"] == most(written["limits"]["kld"], written["answer_tokens"])
    assert written["allowed"]["same_top"] == fewest(written["limits"]["same_top"], written["answer_tokens"])
    assert str(written["allowed"]["same_top"]) in composed.parity.line()


def test_a_path_that_begins_with_a_hyphen(tiny_run: Path) -> None:
    parts = composition(tiny_run)
    assert TARGETS["merged"].command(parts, Path("-out")) == "tuneloop chat ./-out"
    assert "-m ./-out" in TARGETS["gguf-q8_0"].command(parts, Path("-out"))


@pytest.mark.parametrize(
    ("to", "code"), [("new/..", "TL-RUN-EXISTS"), ("file/out", "TL-MACHINE-FOLDER"), ("file", "TL-RUN-EXISTS")]
)
def test_places_that_cannot_be_taken(to: str, code: str, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(TuneloopError) as caught:
        pipeline.export_all(tiny_run, Path(f"{tmp_path}/{to}"))
    assert caught.value.code == code
    assert "--to" in caught.value.do
    assert ("it is a file" in str(caught.value)) == (code == "TL-MACHINE-FOLDER")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_types_in_any_case(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(TuneloopError, match="float32, bfloat16, float16"):
        export(tiny_run, tmp_path / "out", dtype="nonsense")
    export(tiny_run, tmp_path / "out", ["adapter"], dtype="FLOAT16", chats=[CHAT])


def test_a_note_on_a_missing_modelfile_says_how_to_serve(tiny_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    """With the adapter where it is one, and without the folder that the export was made in."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!", encoding="utf-8")
    (note,) = llamacpp._modelfile(composition(tiny_run), folder, tmp_path, "BASE.gguf", adapter="tiny-LORA.gguf")
    assert "llama-server --jinja -m BASE.gguf --lora tiny-LORA.gguf" in note
    assert note.startswith("TL-MODEL-OLLAMA")
    assert str(tmp_path) not in note


def test_an_adapter_that_gguf_cannot_hold(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before the model is loaded."""
    pytest.importorskip("xllamacpp")
    run = Path(shutil.copytree(tiny_run, tmp_path / "dora-1"))
    parts = composition(run)
    config = run / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"use_dora": True}), encoding="utf-8")
    monkeypatch.setattr(llamacpp, "require_writable", lambda parts: None)
    with pytest.raises(TuneloopError, match="use_dora") as caught:
        TARGETS["gguf-lora"].refusal(parts)
    assert caught.value.code == "TL-MODEL-GGUF-WRITE"
