"""The model card: what it says is in the run's files, in both languages, and its code runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.evaluations import evaluation, probe, scores, texts
from tuneloop.base import language
from tuneloop.evaluation.evaluation import Scores
from tuneloop.evaluation.intervals import Estimate
from tuneloop.evaluation.paired import Paired
from tuneloop.exports.card import card
from tuneloop.exports.export import export
from tuneloop.exports.parity import Parity
from tuneloop.hub.provenance import base_name, licence
from tuneloop.model.head import Head
from tuneloop.recipe.recipe import make_recipe, read_recipe
from tuneloop.recipe.schema import Recipe

PARITY = Parity(2e-6, 1e-7, 64, 64, True, True, 1e-3)
SCORES = {"perplexity": 8.0, "bleu": 4.5, "rouge1": 0.2, "rouge2": None, "rougeL": 0.2, "rows": 16, "label_tokens": 900}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "demo-1"
    run.mkdir(parents=True)
    (run / "dataset.json").write_text(json.dumps({"hash": "0123456789ab"}), encoding="utf-8")
    identity = probe("identity", False, 5, total=6)
    evaluation(scores(3.21, **SCORES), scores(2.1, **SCORES), probes=(identity,)).write(run)
    return run


@pytest.fixture
def base(tmp_path: Path) -> Path:
    base = tmp_path / "base"
    base.mkdir()
    (base / "tuneloop.json").write_text(json.dumps({"name": "smol", "licence": "Apache-2.0"}), encoding="utf-8")
    return base


def recipe(**model: str) -> Recipe:
    return make_recipe({"name": "demo", "model": {"name": "smol", **model}})[0]


def front_matter(text: str) -> dict[str, object]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_it_says_where_the_model_is_from(run: Path, base: Path) -> None:
    text = card(run, recipe(revision="v1.1"), base, PARITY, dtype="float32")
    assert front_matter(text) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "base_model": "smol",
        "license": "apache-2.0", "tags": ["tuneloop"],
    }  # fmt: skip
    for said in ("smol @ v1.1", "Apache-2.0", "0123456789ab", "lora (rank 8, alpha 16)", "float32", "64/64"):
        assert said in text
    assert "| held-out loss | 3.21 | 2.1 |" in text
    assert "| ROUGE-1 | 0.2 | 0.2 |" in text
    assert "| identity | 0/6 | 5/6 | failed |" in text
    assert "ROUGE-2" not in text  # not measured is not zero


def test_an_unknown_licence_is_said_to_be_unknown(run: Path, tmp_path: Path) -> None:
    text = card(run, recipe(), tmp_path, PARITY, dtype="float32")
    assert "license" not in front_matter(text)
    assert "look it up" in text


def test_the_licence_of_a_hub_models_own_card(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    assert licence(tmp_path) == ""
    readme.write_text("---\nlicense: mit\n---\n# x\n")
    assert licence(tmp_path) == "mit"
    readme.write_text("---\nlicense: other\nlicense_name: deepseek\n---\n")
    assert licence(tmp_path) == "deepseek"
    for text in ("# no front matter", "---\n[broken\n---\n", "---\n- a list\n---\n"):
        readme.write_text(text)
        assert licence(tmp_path) == ""


def test_terms_that_are_no_licence_id(run: Path, base: Path) -> None:
    (base / "tuneloop.json").write_text(json.dumps({"name": "g", "licence": "Gemma Terms of Use"}), encoding="utf-8")
    head = front_matter(card(run, recipe(), base, PARITY, dtype="float32"))
    assert (head["license"], head["license_name"]) == ("other", "Gemma Terms of Use")


def test_no_path_of_this_machine(run: Path, tmp_path: Path) -> None:
    named = recipe().model_copy(update={"model": recipe().model.model_copy(update={"name": str(tmp_path / "my-base")})})
    assert base_name(named, tmp_path / "my-base") == "my-base"
    assert str(tmp_path) not in card(run, named, tmp_path / "my-base", PARITY, dtype="float32")


def test_a_run_without_evaluation(run: Path, base: Path) -> None:
    (run / "evaluation.json").unlink()
    assert "not evaluated" in card(run, recipe(), base, PARITY, dtype="float32")


def test_in_chinese(run: Path, base: Path) -> None:
    language.use("zh")
    text = card(run, recipe(), base, PARITY, dtype="float32")
    assert "## How it was made" not in text
    assert re.search(r"[\u4e00-\u9fff]", text)
    assert front_matter(text)["license"] == "apache-2.0"
    assert "验证集损失" in text
    assert not re.search(r"\|[^|]*(held-out|perplexity)[^|]*\|", text)


def test_nothing_held_out_is_said_and_the_probes_stay(run: Path, base: Path) -> None:
    nothing = scores(**dict.fromkeys(SCORES) | {"loss": None, "rows": 0, "label_tokens": 0})
    evaluation(nothing, nothing, probes=(probe("identity", True, 5, total=6),)).write(run)
    text = card(run, recipe(), base, PARITY, dtype="float32")
    assert "Nothing was held out" in text
    assert "| identity | 0/6 | 5/6 | passed |" in text
    assert "| held-out loss" not in text


def test_a_classifiers_scores_are_over_texts(run: Path, base: Path) -> None:
    evaluation(texts(0.7, 0.5, 0.4), texts(0.3, 0.9, 0.8)).write(run)
    text = card(run, recipe(), base, PARITY, dtype="float32", head=Head("classifier", ("bad", "good")))
    assert front_matter(text)["pipeline_tag"] == "text-classification"
    assert "Loss, accuracy and F1 over 10 held-out texts." in text
    assert "| accuracy | 0.5 | 0.9 |" in text
    assert "label tokens" not in text
    assert "Nothing was held out" in card_of_nothing(run, base)


def card_of_nothing(run: Path, base: Path) -> str:
    nothing = Scores({"loss": None}, texts=0)
    evaluation(nothing, nothing).write(run)
    return card(run, recipe(), base, PARITY, dtype="float32")


def test_it_says_what_was_trained_on(run: Path, base: Path) -> None:
    counts = {"train": 1234, "validation": 30, "test": 0}
    (run / "dataset.json").write_text(
        json.dumps({"hash": "0123456789ab", "counts": counts, "tokens": {"longest": 812}})
    )
    data = [{"path": "/home/me/private/chats.jsonl"}, {"path": "hub:org/chats"}]
    text = card(
        run, make_recipe({"name": "demo", "model": {"name": "smol"}, "data": data})[0], base, PARITY, dtype="float32"
    )
    for said in (
        "| Files | chats.jsonl, hub:org/chats |",
        "1,234, 30, 0",
        "812 tokens",
        "| Licence of the data | not recorded",
    ):
        assert said in text
    assert "/home/me" not in text


def test_figures_have_their_intervals(run: Path, base: Path) -> None:
    """Of the whole evaluation, with the change and whether it is more than chance; of older ones there are none."""
    sides = [Estimate(x, x - 0.25, x + 0.25, 40, "bootstrap") for x in (3.21, 2.1)]
    paired = Paired("loss", "", *sides, Estimate(-1.11, -1.25, -1.0, 40, "bootstrap"), "better")
    evaluation(scores(3.21, **SCORES), scores(2.1, **SCORES), paired=(paired,)).write(run)
    text = card(run, recipe(), base, PARITY, dtype="float32")
    assert "| held-out loss | 3.21 [2.960, 3.460] | 2.1 [1.850, 2.350] | −1.110 [−1.250, −1.000] better |" in text
    assert "| ROUGE-1 | 0.2 | 0.2 | - |" in text
    assert "95 % interval" in text


def test_stop_tokens_are_named(run: Path, base: Path) -> None:
    assert r"| Tokens that end an answer | `<\|im_end\|>` `</s>` |" in card(
        run, recipe(), base, PARITY, dtype="float32", stops=("<|im_end|>", "</s>")
    )


COMMANDS = {
    "merged": ["vllm serve .", "tuneloop chat .", "AutoModelForCausalLM", "tuneloop export demo-1 --as gguf-q4_k_m"],
    "nf4": ["vllm serve .", "tuneloop chat .", "AutoModelForCausalLM"],
    "int8": ["vllm serve .", "tuneloop chat .", "AutoModelForCausalLM"],
    "adapter": ["vllm serve smol --enable-lora --lora-modules demo=. --max-lora-rank 64", "PeftModel.from_pretrained(model, folder)"],
    "gguf-q4_k_m": ["ollama create demo -f Modelfile", "llama-server --jinja -m demo-1-Q4_K_M.gguf", 'file = ".", "demo-1-Q4_K_M.gguf"'],
    "gguf-lora": ["llama-server --jinja -m BASE.gguf --lora demo-1-LORA.gguf", "ollama create demo -f Modelfile"],
}  # fmt: skip
FILES = {"gguf-q4_k_m": ("demo-1-Q4_K_M.gguf", "Modelfile"), "gguf-lora": ("demo-1-LORA.gguf", "Modelfile")}


@pytest.mark.parametrize("target", COMMANDS)
def test_each_target_says_how_it_is_loaded(target: str, run: Path, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in FILES.get(target, ()):
        (folder / name).touch()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 40, "peft_type": "LORA"}))
    text = card(run, recipe(), base, PARITY, dtype="float32", target=target, folder=folder)
    blocks = re.findall(r"```(python|bash)\n(.*?)```", text, re.DOTALL)
    code = "\n".join(block for _, block in blocks)
    for said in COMMANDS[target]:
        assert said in code
    for program in ("ollama ", "llama-server ", "vllm ", "tuneloop chat"):
        assert (program in code) == any(program in said for said in COMMANDS[target])
    for kind, block in blocks:
        if kind == "python":
            compile(block, target, "exec")
    relations = {"merged": None, "adapter": "adapter", "gguf-lora": "adapter"}
    assert front_matter(text).get("base_model_relation") == relations.get(target, "quantized")


def test_without_a_modelfile_it_is_said_why(run: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "demo-1-Q8_0.gguf").touch()
    text = card(run, recipe(), base, PARITY, dtype="float32", target="gguf-q8_0", folder=tmp_path)
    assert "ollama create" not in text
    assert "There is no Modelfile for Ollama" in text
    assert "| Type of the weights | Q8_0 |" in text


@pytest.mark.parametrize(
    ("head", "said"),
    [(Head(), "AutoModelForCausalLM"), (Head("masked"), "AutoModelForCausalLM"),
     (Head("classifier", ("bad", "good")), "text-classification"),
     (Head("classifier", ("reward",)), "AutoModelForSequenceClassification")],
)  # fmt: skip
def test_its_code_asks_what_its_head_answers(head: Head, said: str, run: Path, base: Path) -> None:
    text = card(run, recipe(), base, PARITY, dtype="float32", head=head)
    assert said in text.split("```python\n")[1].split("```")[0]


def test_the_code_in_it_runs(tiny_run: Path, tmp_path: Path) -> None:
    """The card of a real export, its Python run in the exported folder by another process."""
    target = tmp_path / "tiny"
    export(tiny_run, target, chats=[[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]])
    text = (target / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=target, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert base_name(read_recipe(tiny_run / "recipe.yaml")[0], tiny_run) in text


def test_the_licence_goes_with_the_export(tiny_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (base / "tuneloop.json").write_text(json.dumps({"name": "tiny", "licence": "MIT"}), encoding="utf-8")
    run = Path(shutil.copytree(tiny_run, tmp_path / "run-1"))
    text = (run / "recipe.yaml").read_text(encoding="utf-8").replace(str(tiny_model), str(base))
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    export(run, tmp_path / "out", chats=[[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]])
    assert licence(tmp_path / "out") == "MIT"
