from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tuneloop.base.errors import ModelError
from tuneloop.hub.folder_check import check, check_safetensors, check_tokenizer, weight_files


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A fresh copy of the tiny model, to be broken."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def code(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check(folder)
    assert caught.value.what, "the error has no words"
    assert caught.value.do
    return caught.value.code


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(content), encoding="utf-8")


def shard(folder: Path, *names: str) -> None:
    """Give the folder an index that names these shards, the first of which is the whole model."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    table = {f"w{i}": name for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def test_a_whole_model_passes(folder: Path) -> None:
    check(folder)
    assert [f.name for f in weight_files(folder)] == ["model.safetensors"]


def test_no_folder(tmp_path: Path) -> None:
    assert code(tmp_path / "none") == "TL-MODEL-PATH"


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"hidden_size": 8}', '{"model_type": 3}', "[" * 100_000, "\udcff"], ids=range(7)
)
def test_a_broken_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert code(folder) == "TL-MODEL-CONFIG"


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert code(folder) == "TL-MODEL-CONFIG"


def test_an_adapter_is_named_with_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "smollm2"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="smollm2") as caught:
        check(tmp_path)
    assert caught.value.code == "TL-MODEL-ADAPTER"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_alone_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert code(folder) == "TL-MODEL-PICKLE"


def test_a_pickle_beside_safetensors_is_no_matter(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    check(folder)


@pytest.mark.parametrize("left", [[], ["model.gguf"], ["training_args.bin"], ["model.fp16.safetensors"]])
def test_no_weights(folder: Path, left: list[str]) -> None:
    (folder / "model.safetensors").unlink()
    for name in left:
        (folder / name).write_bytes(b"")
    assert code(folder) == "TL-MODEL-WEIGHTS"


def test_all_shards_are_wanted(folder: Path) -> None:
    shard(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    with pytest.raises(ModelError, match="model-00002-of-00002") as caught:
        check(folder)
    assert caught.value.code == "TL-MODEL-WEIGHTS"
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")
    check(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "sub/model.safetensors"])
def test_a_shard_is_a_name_and_never_a_path(folder: Path, name: str) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    (folder / "sub").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "sub" / "model.safetensors")
    shard(folder, "model-00001-of-00002.safetensors", name)
    assert code(folder) == "TL-MODEL-WEIGHTS"


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": {}}', '{"weight_map": [1]}', '{"weight_map": {"a": 1}}',
              '{"weight_map": {"a": ["b"]}}', "x"]
)  # fmt: skip
def test_a_broken_index(folder: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    assert code(folder) == "TL-MODEL-WEIGHTS"


def test_every_cut_of_the_weights_is_noticed(folder: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for length in (0, 4, 8, 9, 8 + header // 2, 8 + header, len(whole) - 1):
        file.write_bytes(whole[:length])
        assert code(folder) == "TL-MODEL-TRUNCATED", length
    file.write_bytes(whole + b"\0")
    assert code(folder) == "TL-MODEL-TRUNCATED"


@pytest.mark.parametrize(
    "header",
    [b"null", b"[]", b"{", b'{"a": 1}', b'{"a": {}}', b'{"a": {"data_offsets": []}}', b'{"a": {"data_offsets": "xy"}}',
     b"\xff\xfe", b"[" * 100_000, b'{"a": {"data_offsets": [0, -1]}}'],
    ids=range(10),
)  # fmt: skip
def test_a_strange_header(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError) as caught:
        check_safetensors(file)
    assert caught.value.code == "TL-MODEL-TRUNCATED"


def test_a_git_lfs_pointer_is_no_weights_file(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert code(folder) == "TL-MODEL-TRUNCATED"


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert code(folder) == "TL-MODEL-TOKENIZER"


@pytest.mark.parametrize("files", [("tokenizer.model",), ("vocab.json", "merges.txt"), ("vocab.txt",)])
def test_older_tokenizers_count(folder: Path, files: tuple[str, ...]) -> None:
    (folder / "tokenizer.json").unlink()
    for name in files:
        (folder / name).write_text("")
    check(folder)


def test_half_a_tokenizer_does_not_count(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    assert code(folder) == "TL-MODEL-TOKENIZER"


def test_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": ')
    assert code(folder) == "TL-MODEL-TOKENIZER"


def test_code_of_an_unknown_architecture_is_refused(folder: Path) -> None:
    edit(folder / "config.json", model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    assert code(folder) == "TL-MODEL-CODE"


def test_code_of_an_unknown_class_is_refused(folder: Path) -> None:
    auto = {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    edit(folder / "config.json", architectures=["MineForCausalLM"], auto_map=auto)
    with pytest.raises(ModelError, match="MineForCausalLM"):
        check(folder)


def test_code_of_a_native_architecture_is_ignored(folder: Path) -> None:
    auto = {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"}
    edit(folder / "config.json", model_type="deepseek_v3", architectures=["DeepseekV3ForCausalLM"], auto_map=auto)
    check(folder)


def test_a_tokenizer_that_needs_code_is_refused(folder: Path) -> None:
    auto = {"AutoTokenizer": ["tokenization_mine.Mine", None]}
    edit(folder / "tokenizer_config.json", auto_map=auto)
    check(folder)  # tokenizer.json is enough without it
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    assert code(folder) == "TL-MODEL-CODE"


def test_a_tokenizer_alone(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        check_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    check_tokenizer(tmp_path)


def test_a_shard_that_leads_nowhere(folder: Path) -> None:
    shard(folder, "model-00001-of-00002.safetensors", "gone")
    (folder / "gone").symlink_to(folder / "deleted-blob")
    assert code(folder) == "TL-MODEL-TRUNCATED"
    (folder / "gone").unlink()
    (folder / "gone").mkdir()
    assert code(folder) == "TL-MODEL-TRUNCATED"
