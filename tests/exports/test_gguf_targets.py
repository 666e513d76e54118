"""Targets for llama.cpp: written, read back by llama.cpp, with a certificate and a Modelfile."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from tests.conftest import byte_tokenizer
from tuneloop import pipeline
from tuneloop.data.tokens.named_templates import CHATML, PLAIN
from tuneloop.exports import llamacpp
from tuneloop.exports.composition import composition
from tuneloop.exports.export import export
from tuneloop.exports.figures import Parity
from tuneloop.exports.proof import prove_gguf
from tuneloop.exports.reference import reference
from tuneloop.gguf.write import write_gguf
from tuneloop.recipe.recipe import make_recipe

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

    def scaled(folder: Path, path: Path, kind: str, base: Path | None = None) -> list[str]:
        file = folder / "model.safetensors"
        save_file({n: w * 1.5 if "down_proj" in n else w for n, w in load_file(file).items()}, file, {"format": "pt"})
        return whole(folder, path, kind, base)

    monkeypatch.setattr(write, "write_gguf", scaled)
    with pytest.raises(RunError) as caught:
        export(tiny_run, tmp_path / "out", ["gguf-f16"])
    assert caught.value.code == "TL-RUN-PARITY"
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_on_a_base_without_a_chat_template(tiny_model: Path, talk_file: Path, tmp_path: Path) -> None:
    """The run's own template goes along with the adapter, for llama.cpp and for Ollama, and is what was certified."""
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "chat_template.jinja").unlink()
    assert "chat_template" not in (base / "tokenizer_config.json").read_text(encoding="utf-8")
    recipe, _ = make_recipe(
        {
            "name": "plain", "model": str(base), "data": str(talk_file),
            "train": {"max_steps": 4, "learning_rate": 0.01, "lora": {"rank": 4}}, "evaluate": {"rows": 0, "show": []},
        }
    )  # fmt: skip
    run = pipeline.train(recipe, pipeline.prepare(recipe, workspace=tmp_path), workspace=tmp_path).path
    one = export(run, tmp_path / "out", ["gguf-lora"])["gguf-lora"]
    assert one.parity.passed
    # The tokenizer has no beginning token; llama.cpp always has one, and would write it.
    assert (one.path / "chat_template.jinja").read_text(encoding="utf-8") == "{% set bos_token = '' %}" + PLAIN
    assert f"--chat-template-file {one.path}/chat_template.jinja" in one.command
    assert "--chat-template-file chat_template.jinja" in (one.path / "README.md").read_text(encoding="utf-8")
    modelfile = (one.path / "Modelfile").read_text(encoding="utf-8")
    assert "User:\n" in modelfile
    assert "ADAPTER ./plain-1-LORA.gguf" in modelfile or "ADAPTER ./plain-LORA.gguf" in modelfile
    for template in (PLAIN, "{% set bos_token = '' %}" + PLAIN.replace("User", "Human")):
        (one.path / "chat_template.jinja").write_text(template, encoding="utf-8")
        changed = prove_changed(run, base, one.path)
        assert (changed.passed, changed.cause) == (False, "template")


def prove_changed(run: Path, base: Path, folder: Path) -> Parity:
    """The certificate of an adapter on its base, once more."""
    write_gguf(base, folder / "base.gguf", "f16")
    (lora,) = folder.glob("*-LORA.gguf")
    one = reference(composition(run))
    return prove_gguf(one, "gguf-lora", folder / "base.gguf", lora, folder / "chat_template.jinja")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (PLAIN, ""),
        (CHATML, "begins each prompt with <|endoftext|>"),
        (PLAIN.replace("eos_token or ''", "'<|stop|>'"), "do not end an answer at <|stop|>"),
    ],
)
def test_a_base_that_would_open_or_end_otherwise(template: str, said: str, tmp_path: Path) -> None:
    """Known from the tokenizers alone: what its GGUF says of beginning and end holds whatever template is given."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|stop|>")
    tokenizer = byte_tokenizer(None, special=special, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    first = ("<|endoftext|>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first[0]} $A", pair=f"{first[0]} $A $B", special_tokens=[first]
    )
    tokenizer.save_pretrained(tmp_path / "base")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "run")
    parts: Any = SimpleNamespace(weights=tmp_path / "base", adapters=(tmp_path / "run",))
    reason = llamacpp.base_refusal(parts)
    assert said in reason
    assert bool(reason) == bool(said)
