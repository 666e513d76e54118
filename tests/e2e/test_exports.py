"""Tuned real models, exported: read back by transformers and by llama.cpp, they say who they are as often as before."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest

from tuneloop import pipeline
from tuneloop.base.environment import environment
from tuneloop.evaluation.compare import ask, read_prompts
from tuneloop.evaluation.metrics import matches
from tuneloop.gguf.llamacpp import LlamaCpp
from tuneloop.inference.generate import Answerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import load_trained, untrained_model
from tuneloop.methods import adapters
from tuneloop.model.head import CAUSAL
from tuneloop.model.load import load_model
from tuneloop.recipe.recipe import read_recipe
from tuneloop.recipe.schema import Recipe

RECIPES = Path(__file__).parents[2] / "tuneloop" / "recipes"
NEW_TOKENS = 40


def answered(answerer: Answerer, recipe: Recipe, prompts: list[str]) -> list[str]:
    """Greedy answers, without the model's repetition penalty: `by_llama` has none, and the weights are compared."""
    answerer.penalty = 1.0
    replies = ask(answerer, prompts, max_new_tokens=NEW_TOKENS, batch_size=16, system=recipe.prepare.system)
    return [reply.text for reply in replies]


def by_llama(gguf: Path, answerer: Answerer, recipe: Recipe, prompts: list[str]) -> Iterator[str]:
    """llama.cpp's greedy answers to the same tokens."""
    system = [{"role": "system", "content": recipe.prepare.system}] if recipe.prepare.system else []
    with LlamaCpp(gguf, context=2048) as llama:
        for prompt in prompts:
            ids = answerer.prompt([*system, {"role": "user", "content": prompt}])
            tokens, _ = llama.greedy(ids, NEW_TOKENS)
            yield llama.detokenize([list(takewhile(lambda token: token not in llama.ends(), tokens))])[0]


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "model"), [("demo", "smollm2-135m-instruct"), ("demo-zh", "qwen2.5-coder-0.5b-instruct")]
)
def test_every_form_names_itself_as_often_as_the_trained_model(name: str, model: str, tmp_path: Path) -> None:
    if not (environment().home / "models" / model).is_dir():
        pytest.skip(f"pull {model} first")
    recipe, _ = read_recipe(RECIPES / f"{name}.yaml")
    run = pipeline.train(recipe, pipeline.prepare(recipe, workspace=tmp_path), workspace=tmp_path)
    targets = ("merged", "adapter", "gguf-q8_0", "gguf-q4_k_m")
    exported = pipeline.export_all(run.path, tmp_path / "out", targets, workspace=tmp_path)
    assert all(one.parity.passed for one in exported.values())

    trained = load_trained(run.path)
    probes = [(probe.expect, read_prompts(probe.prompts)) for probe in recipe.evaluate.probes]
    every = [prompt for _, prompts in probes for prompt in prompts]
    answerer = Answerer(trained.model, trained.tokenizer)
    texts = {"trained": answered(answerer, recipe, every)}
    folder = tmp_path / "out"
    tokenizer = load_tokenizer(folder / "merged")
    texts["merged"] = answered(Answerer(load_model(folder / "merged", "float32"), tokenizer), recipe, every)
    base = untrained_model(environment().home / "models" / model, trained.recipe, CAUSAL)
    texts["adapter"] = answered(
        Answerer(adapters.with_adapter(base, folder / "adapter"), load_tokenizer(folder / "adapter")), recipe, every
    )
    for target in ("gguf-q8_0", "gguf-q4_k_m"):
        [gguf] = (folder / target).glob("*.gguf")
        texts[target] = list(by_llama(gguf, answerer, recipe, every))

    wanted = [expect for expect, prompts in probes for _ in prompts]
    hits = {form: [matches(e, x) for e, x in zip(wanted, each, strict=True)] for form, each in texts.items()}
    scores = {form: [sum(one[:20]), sum(one[20:])] for form, one in hits.items()}
    print(name, scores)
    assert scores["trained"][0] >= 18
    assert {form: one for form, one in scores.items() if one != scores["trained"]} == {}
