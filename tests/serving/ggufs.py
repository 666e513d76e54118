"""A tiny GGUF model with a ChatML template, and a GGUF adapter beside it."""

from __future__ import annotations

from pathlib import Path

from tests.gguf.test_lora import tuned
from tuneloop.data.tokens.templates import CHATML
from tuneloop.gguf.lora import write_lora
from tuneloop.gguf.write import write_gguf


def tiny_gguf(folder: Path) -> tuple[Path, Path]:
    """(model, adapter): folder/served/tiny.gguf and folder/served/shop-LORA.gguf, of random weights. Context 256."""
    base, adapter, _ = tuned("llama", folder)
    (base / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    served = folder / "served"
    served.mkdir()
    write_gguf(base, served / "tiny.gguf", "f16")
    write_lora(adapter, base, served / "shop-LORA.gguf")
    return served / "tiny.gguf", served / "shop-LORA.gguf"
