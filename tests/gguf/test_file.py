from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

from tuneloop.base.errors import ModelError
from tuneloop.gguf.file import GgufFile

KINDS = ("F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q8_0")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF written by the gguf package: facts of each type, a tensor of each kind."""
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("a.count", 7)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "你好 😀")
    writer.add_array("a.texts", ["", "a", "字"])
    writer.add_array("a.numbers", [1, -2, 3])
    numbers = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    for name in KINDS:
        kind = GGMLQuantizationType[name]
        writer.add_tensor(f"t.{name}", quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_facts_are_python_values(file: Path) -> None:
    with GgufFile(file) as opened:
        facts = {k: v for k, v in opened.facts.items() if k.startswith("a.")}
    assert facts == {
        "a.count": 7,
        "a.float": 0.5,
        "a.flag": True,
        "a.text": "你好 😀",
        "a.texts": ["", "a", "字"],
        "a.numbers": [1, -2, 3],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_gguf_package(file: Path, kind: str) -> None:
    tensor = next(t for t in GGUFReader(file).tensors if t.name == f"t.{kind}")
    expected = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    with GgufFile(file) as opened:
        assert opened.tensors[tensor.name].shape == (6, 64)
        got = opened.numbers(tensor.name)
    assert got.dtype == np.float32
    assert np.array_equal(got, expected.reshape(6, 64))


def test_every_cut_of_the_header_is_an_error(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    with GgufFile(file) as opened:
        end = opened._start
    for length in [0, 3, 4, 23, *range(24, end - 32, 7)]:
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError) as caught:
            GgufFile(cut).close()
        assert caught.value.code == "TL-MODEL-GGUF", length


def test_a_tensor_that_is_cut_off_is_an_error(file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-100])
    with GgufFile(cut) as opened, pytest.raises(ModelError, match="Q8_0 ends behind"):
        opened.numbers("t.Q8_0")


@pytest.mark.parametrize("name", ["PK\x03\x04", "GGUG"])
def test_another_format_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / "b.gguf"
    path.write_bytes(name.encode() + bytes(40))
    with pytest.raises(ModelError, match="does not begin with GGUF"):
        GgufFile(path)


def test_another_version_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "b.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(ModelError, match="version 1"):
        GgufFile(path)


def test_a_lying_length_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "b.gguf"
    key = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**60)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
    with pytest.raises(ModelError, match="longer than the file"):
        GgufFile(path)


def test_a_file_of_unknown_tensor_kind_is_an_error(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.gguf"
    whole = file.read_bytes()
    name = b"t.F32"
    at = whole.index(name) + len(name) + 4 + 16
    path.write_bytes(whole[:at] + struct.pack("<I", 99) + whole[at + 4 :])
    with GgufFile(path) as opened, pytest.raises(ModelError) as caught:
        opened.numbers("t.F32")
    assert caught.value.code == "TL-MODEL-GGUF"


def test_an_interruption_in_the_middle_is_not_masked(file: Path) -> None:
    opened = GgufFile(file)
    view = memoryview(opened._map)  # what a traceback out of numbers() holds on to
    with pytest.raises(KeyboardInterrupt), opened:
        raise KeyboardInterrupt
    view.release()
