"""Which GGUF a path means, and that nothing else is served than what was proven."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.serving.ggufs import tiny_gguf
from tuneloop.base.errors import ModelError, ServeError, TuneloopError
from tuneloop.base.files import sha256_of
from tuneloop.serving.llamacpp.gguf_files import gguf_model, is_gguf


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("files"))[0].parent


@pytest.fixture
def folder(served: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(served, tmp_path / "exports"))


def described(file: Path, kind: str, passed: Any = True, digest: str | None = None, **more: Any) -> None:
    (file.parent / "parity.json").write_text(json.dumps({"passed": passed}), encoding="utf-8")
    about = {"kind": kind, "files": {file.name: digest or sha256_of(file)}, **more}
    (file.parent / "tuneloop.json").write_text(json.dumps(about), encoding="utf-8")


def test_a_file_and_its_folder_mean_the_model_with_what_lies_beside_it(folder: Path) -> None:
    for ref in (folder, folder / "tiny.gguf", str(folder)):
        model = gguf_model(ref, print)
        assert (model.path, model.name, model.context) == (folder / "tiny.gguf", "tiny", 256)
        assert dict(model.adapters) == {"shop": folder / "shop-LORA.gguf"}
        assert model.token_bytes == 4 * 3 * 2 * 64  # layers, groups, numbers of a head
        assert model.penalty == 1.0
        assert is_gguf(ref)
    assert not is_gguf(folder.parent)


def test_another_model_beside_the_one_that_is_named_is_no_adapter(folder: Path) -> None:
    shutil.copy(folder / "tiny.gguf", folder / "other.gguf")
    model = gguf_model(folder / "tiny.gguf", print)
    assert (model.name, list(model.adapters)) == ("tiny", ["shop"])
    with pytest.raises(ServeError, match="there are several"):
        gguf_model(folder, print)


def test_what_training_has_set_is_taken_along(folder: Path) -> None:
    described(folder / "tiny.gguf", "gguf-f16", system="Be brief.")
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.2}', encoding="utf-8")
    model = gguf_model(folder, print)
    assert model.penalty == 1.2
    assert dict(model.systems) == {"tiny": "Be brief."}


def test_an_exported_adapter_brings_its_chat_template(folder: Path) -> None:
    """The file lies beside adapters of GGUF alone; beside a whole model it is of the tokenizer there."""
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    described(folder / "shop-LORA.gguf", "gguf-f16")
    assert dict(gguf_model(folder, print).templates) == {}
    (folder / "lora").mkdir()
    for name in ("shop-LORA.gguf", "chat_template.jinja"):
        (folder / name).rename(folder / "lora" / name)
    (folder / "tuneloop.json").unlink()
    (folder / "parity.json").unlink()
    described(folder / "lora" / "shop-LORA.gguf", "gguf-lora")
    assert dict(gguf_model(folder, print).templates) == {"shop": "{{ messages[0]['content'] }}"}


def test_an_adapter_is_not_laid_on_an_export_that_has_one_in_it(folder: Path) -> None:
    for name, file, kind in (("f16", "tiny.gguf", "gguf-f16"), ("lora", "shop-LORA.gguf", "gguf-lora")):
        (folder / name).mkdir()
        (folder / file).rename(folder / name / file)
        described(folder / name / file, kind)
    notes: list[str] = []
    model = gguf_model(folder, notes.append)
    assert (model.name, dict(model.adapters)) == ("tiny", {})
    assert len(notes) == 1
    assert "base model" in notes[0]
    with pytest.raises(ServeError, match="adapters"):
        gguf_model(folder / "lora", print)
    with pytest.raises(ServeError, match="TL-SERVE-GGUF"):
        gguf_model(folder / "lora" / "shop-LORA.gguf", print)


@pytest.mark.parametrize(("change", "code"), [
    ({"passed": False}, "TL-SERVE-EXPORT"), ({"passed": "yes"}, "TL-SERVE-EXPORT"), ({"digest": "0" * 64}, "TL-SERVE-EXPORT"),
])  # fmt: skip
def test_an_export_that_does_not_verify_is_not_served(folder: Path, change: dict[str, Any], code: str) -> None:
    described(folder / "tiny.gguf", "gguf-f16")
    assert gguf_model(folder, print)
    described(folder / "tiny.gguf", "gguf-f16", **change)
    with pytest.raises(ServeError) as caught:
        gguf_model(folder, print)
    assert caught.value.code == code


def test_one_flipped_bit_of_a_weight_is_found(folder: Path) -> None:
    file = folder / "tiny.gguf"
    described(file, "gguf-f16")
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(ServeError, match="TL-SERVE-EXPORT"):
        gguf_model(folder, print)


def test_what_is_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(50))
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("name: x", encoding="utf-8")
    shutil.copy(folder / "tiny.gguf", folder / "other.gguf")
    for ref in (folder, tmp_path / "empty", tmp_path / "none", tmp_path / "none.gguf", tmp_path / "run", "shop:v1"):
        with pytest.raises(ServeError, match="TL-SERVE-GGUF"):
            gguf_model(ref, print)
    with pytest.raises(TuneloopError) as caught:
        gguf_model(tmp_path / "bad.gguf", print)
    assert isinstance(caught.value, ModelError)
    (folder / "parity.json").write_text("{", encoding="utf-8")
    with pytest.raises(ServeError, match="TL-SERVE-EXPORT"):
        gguf_model(folder / "tiny.gguf", print)
