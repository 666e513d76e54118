"""README.md of an adapter folder: what it is, what it was made with, how to load it. Short, and nothing made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tuneloop.base.language import t
from tuneloop.hub.provenance import base_name, licence, licence_fields
from tuneloop.methods.table import METHODS
from tuneloop.methods.wrap import bits_of
from tuneloop.model.load import pick_dtype
from tuneloop.recipe.schema import Recipe

FORM = """from peft import {model}
from transformers import AutoTokenizer{more}

folder = "."
tokenizer = AutoTokenizer.from_pretrained(folder)
{bits}model = {model}.from_pretrained(folder{given})
"""
CODE = FORM.format(model="AutoPeftModelForCausalLM", more="", bits="", given="")
"""For a model that writes, on weights held as they are."""


def code(recipe: Recipe, scores: int = 0, skipped: Sequence[str] = ()) -> str:
    """Python that loads the adapter with peft on its base, held as in training: on other weights it answers otherwise.

    `scores`: so many it gives a text; `skipped` are the modules that are not quantised, where transformers would not
    find that by itself.
    """
    kind = "AutoPeftModelForSequenceClassification" if scores else "AutoPeftModelForCausalLM"
    given = f", num_labels={scores}" if scores else ""
    text, settings = bits(recipe, skipped)
    return FORM.format(model=kind, more=", BitsAndBytesConfig" if text else "", bits=text, given=given + settings)


def bits(recipe: Recipe, skipped: Sequence[str] = ()) -> tuple[str, str]:
    """Python that says how a quantised base was held in training, and the arguments that pass it on; "" for a base that
    was held as it is. `skipped` as in `code`."""
    part = bits_of(recipe.train)
    if part is None:
        return "", ""
    dtype = str(pick_dtype(recipe.model.dtype)).removeprefix("torch.")
    how = (
        ["load_in_8bit=True"]
        if part.bits == "int8"
        else [
            "load_in_4bit=True",
            'bnb_4bit_quant_type="nf4"',
            f"bnb_4bit_use_double_quant={part.double}",
            f'bnb_4bit_compute_dtype="{dtype}"',
        ]
    )
    if skipped:
        how.append(f"llm_int8_skip_modules={list(skipped)}")
    lines = "".join(f"    {one},\n" for one in how)
    return f"bits = BitsAndBytesConfig(\n{lines})\n", f', quantization_config=bits, dtype="{dtype}"'


def adapter_card(
    run: Path,
    recipe: Recipe,
    base: Path,
    *,
    steps: int,
    dataset: str,
    hub: bool,
    scores: int = 0,
    skipped: Sequence[str] = (),
) -> str:
    """The card in the chosen language. `hub`: the base model's name is one of a model hub, which may go into its head.

    `dataset` is the hash of the dataset version, "" where it is not known. `scores` and `skipped` as in `code`.
    """
    name, terms, train = base_name(recipe, base), licence(base), recipe.train
    head: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": "text-classification" if scores else "text-generation",
    }
    head |= ({"base_model": name} if hub else {}) | licence_fields(terms) | {"tags": [train.method, "tuneloop"]}
    facts = [
        (t("Base model"), name + (f" @ {recipe.model.revision}" if recipe.model.revision else "")),
        (t("Licence of the base model"), terms or t("not recorded: look it up before you pass the model on")),
        (t("Method"), method_text(recipe)),
        (t("Steps, batch size, learning rate"), f"{steps:,}, {train.batch_size}, {train.learning_rate:g}"),
        (t("Seed"), str(recipe.seed)),
        (t("Dataset"), f"{recipe.name} {dataset}".strip()),
        (t("Run"), run.name),
    ]
    lines = "".join(f"- {what}: {text}\n" for what, text in facts)
    sentence = t("The adapter of {run}: it changes {base} and does not work without it.", run=run.name, base=name)
    more = t("How well it does stands in report.html of the run, once the run is evaluated.")
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n# {recipe.name}\n\n"
        f"{sentence}\n\n{lines}\n"
        f"{more}\n\n{t('With tuneloop:')}\n\n```bash\ntuneloop chat {run.name}\ntuneloop export {run.name}\n```\n\n"
        f"{t('With peft, in this folder, on a machine that has the base model:')}\n\n"
        f"```python\n{code(recipe, scores, skipped)}```\n"
    )


def method_text(recipe: Recipe) -> str:
    """The method with what belongs to it."""
    train = recipe.train
    settings = METHODS[train.method].describe(train)
    return f"{train.method} ({settings})" if settings else train.method
