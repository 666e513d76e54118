"""Targets for llama.cpp: written, read back by llama.cpp, with a certificate and a Modelfile."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuneloop.exports.export import export

pytest.importorskip("xllamacpp")


def test_every_gguf_of_a_run(tiny_run: Path, tmp_path: Path) -> None:
    names = ["gguf-f16", "gguf-bf16", "gguf-q8_0", "gguf-q4_0", "gguf-q4_k_m", "gguf-q5_k_m", "gguf-q6_k", "gguf-lora"]
    exported = export(tiny_run, tmp_path / "out", names)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)
    for name, one in exported.items():
        assert one.parity.passed
        (gguf,) = one.path.glob("*.gguf")
        modelfile = (one.path / "Modelfile").read_text(encoding="utf-8")
        assert gguf.name in modelfile
        assert ("ADAPTER" in modelfile) == (name == "gguf-lora")
        assert (one.path / "README.md").is_file()
        assert (one.path / "generation_config.json").is_file()
    sizes = [next(exported[f"gguf-{kind}"].path.glob("*.gguf")).stat().st_size for kind in ("f16", "q8_0", "q4_0")]
    assert sizes == sorted(sizes, reverse=True)


def test_the_certificate_is_of_the_file_that_is_there(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that were scaled on their way into the file are no export."""
    from safetensors.torch import load_file, save_file

    from tuneloop.base.errors import RunError
    from tuneloop.gguf import write

    whole = write.write_gguf

    def scaled(folder: Path, path: Path, kind: str) -> None:
        file = folder / "model.safetensors"
        save_file({n: w * 1.5 if "down_proj" in n else w for n, w in load_file(file).items()}, file, {"format": "pt"})
        whole(folder, path, kind)

    monkeypatch.setattr(write, "write_gguf", scaled)
    with pytest.raises(RunError) as caught:
        export(tiny_run, tmp_path / "out", ["gguf-f16"])
    assert caught.value.code == "TL-RUN-PARITY"
    assert list(tmp_path.iterdir()) == []
