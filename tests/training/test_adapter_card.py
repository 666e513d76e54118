from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneloop.base import language
from tuneloop.recipe.recipe import make_recipe
from tuneloop.training.adapter_card import CODE, adapter_card


def card(base: Path, *, hub: bool = False, **recipe: Any) -> str:
    made = make_recipe({"name": "demo", "model": "smol", **recipe})[0]
    return adapter_card(Path("runs/demo-3"), made, base, steps=1200, dataset="0123456789ab", hub=hub)


def head(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "tuneloop.json").write_text(json.dumps({"name": "smol", "licence": "Apache-2.0"}), encoding="utf-8")
    return tmp_path


def test_it_says_what_the_adapter_is(base: Path) -> None:
    text = card(base, train={"lora": {"rank": 4, "alpha": 8}, "batch_size": 16, "learning_rate": 3e-4}, seed=7)
    for part in ("# demo", "- Base model: smol", "Apache-2.0", "lora (rank 4, alpha 8)", "1,200, 16, 0.0003", "- Seed: 7",
                 "demo 0123456789ab", "demo-3", "tuneloop chat demo-3"):  # fmt: skip
        assert part in text, part
    assert "More Information" not in text
    assert "<!--" not in text


def test_the_head_names_a_hub_model_only(base: Path) -> None:
    assert head(card(base)) == {
        "library_name": "peft", "pipeline_tag": "text-generation", "license": "apache-2.0", "tags": ["lora", "tuneloop"],
    }  # fmt: skip
    assert head(card(base, hub=True))["base_model"] == "smol"


def test_an_unknown_licence_and_a_path_of_this_machine_are_not_made_up(tmp_path: Path) -> None:
    text = card(tmp_path / "none", model=str(tmp_path / "my-base"))
    assert "license" not in head(text)
    assert "look it up" in text
    assert str(tmp_path) not in text
    assert "my-base" in text


def test_in_chinese(base: Path) -> None:
    language.use("zh")
    text = card(base)
    assert "基座模型" in text
    assert not re.search(r"^- (Base model|Method|Seed)", text, re.MULTILINE)


def test_the_card_of_a_real_adapter_and_its_code(tiny_run: Path) -> None:
    text = (tiny_run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "# tiny" in text
    assert json.loads((tiny_run / "dataset.json").read_text(encoding="utf-8"))["hash"] in text
    assert CODE in text
    code = f"import warnings; warnings.simplefilter('ignore')\n{CODE}print(type(model).__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_run / "adapter", capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "PeftModelForCausalLM", done.stderr
