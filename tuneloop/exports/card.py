"""The model card: README.md of an exported model, from the files of its run. It measures nothing itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from tuneloop.base.language import t
from tuneloop.evaluation import compare
from tuneloop.exports.parity import Parity
from tuneloop.hub.provenance import base_name, licence, licence_fields
from tuneloop.planning.cautions import nothing_held
from tuneloop.recipe.choices import task_choice
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import Run
from tuneloop.training.adapter_card import method_text


def card(run: Path, recipe: Recipe, base: Path, parity: Parity, *, dtype: str) -> str:
    """README.md in the chosen language, with the front matter that model hubs read."""
    name, terms = base_name(recipe, base), licence(base)
    sections = [
        _front_matter(name, terms, recipe.train.task),
        f"# {recipe.name}\n",
        t("{name} is {base}, fine-tuned with tuneloop.", name=recipe.name, base=name) + "\n",
        _origin(run, recipe, name, terms, dtype),
        _scores(Run(run).read("evaluation.json")),
        _parity(parity),
        _use(recipe.train.task),
    ]
    return "\n".join(s for s in sections if s)


def _front_matter(base: str, terms: str, task: str) -> str:
    does = "text-classification" if task_choice(task).head else "text-generation"
    fields: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": does, "base_model": base}
    fields |= licence_fields(terms) | {"tags": ["tuneloop"]}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    lines = ("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) + " |" for row in cells)
    return "\n".join(lines) + "\n"


def _origin(run: Path, recipe: Recipe, base: str, terms: str, dtype: str) -> str:
    train, data = recipe.train, Run(run).read("dataset.json")
    rows = [
        [t("Base model"), base + (f" @ {recipe.model.revision}" if recipe.model.revision else "")],
        [t("Licence of the base model"), terms or t("not recorded: look it up before you pass the model on")],
        [t("Method"), method_text(recipe)],
        [
            t("Epochs, batch size, learning rate"),
            f"{_epochs(run, recipe):.3g}, {train.batch_size}, {train.learning_rate:g}",
        ],
        [t("Seed"), str(recipe.seed)],
        [t("Dataset"), str(data.get("hash") or t("not recorded"))],
    ]
    rows.append([t("Type of the weights"), dtype])
    return f"## {t('How it was made')}\n\n{_table(['', ''], rows)}"


def _epochs(run: Path, recipe: Recipe) -> float:
    """Passes over the data that were made; max_steps may have ended them before train.epochs."""
    data = Run(run).read("plan.json").get("data", {})
    if not data.get("dialogues") or not data.get("steps"):
        return recipe.train.epochs
    per_epoch = math.ceil(int(data["dialogues"]) / recipe.train.batch_size)
    return int(data["steps"]) / per_epoch


def _scores(evaluation: dict[str, Any]) -> str:
    """Before and after on the held-out dialogues; a probe that failed is said as plainly as one that passed."""
    before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
    if not evaluation:
        return f"## {t('Measured')}\n\n{t('This run was not evaluated.')}\n"
    rows = [
        [name, _number(before.get(m)), _number(after.get(m))]
        for m, name in compare.labels().items()
        if before.get(m) is not None or after.get(m) is not None
    ]
    text = f"## {t('Measured')}\n\n"
    if rows:
        facts = {"labels": after.get("label_tokens", "?"), "n": after.get("rows", "?"), "base": t("the base model")}
        said = t(
            "Loss and perplexity over {labels} held-out label tokens, BLEU and ROUGE over {n} answers; {base} before, "
            "this model after.",
            **facts,
        )
        text += f"{said}\n\n{_table([t('Measure'), t('before'), t('after')], rows)}"
    elif not after.get("label_tokens"):
        text += nothing_held() + "\n"
    probes = evaluation.get("probes") or []
    if probes:
        results = {True: t("passed"), False: t("failed")}
        lines = [
            [p["name"], f"{p['before']}/{p['total']}", f"{p['after']}/{p['total']}", results[bool(p["passed"])]]
            for p in probes
        ]
        text += "\n" + _table([t("Probe"), t("before"), t("after"), t("Result")], lines)
    return text


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _parity(parity: Parity) -> str:
    return f"## {t('Checked against the trained model')}\n\n{parity.line()}\n"


def _use(task: str) -> str:
    code = {"labels": _classify, "score": _reward, "": _write}[task_choice(task).head]()
    return (
        f"## {t('How to use it')}\n\n{t('With transformers, in this folder:')}\n\n```python\n{code}```\n\n"
        f"{t('With tuneloop, in this folder:')}\n\n```bash\ntuneloop chat .\ntuneloop serve .\n```\n"
    )


def _classify() -> str:
    return (
        "from transformers import pipeline\n\n"
        'classify = pipeline("text-classification", ".")\n'
        'print(classify("' + t("A film I will not forget.") + '"))\n'
    )


def _reward() -> str:
    return (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        'folder = "."\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForSequenceClassification.from_pretrained(folder)\n"
        'chat = [{"role": "user", "content": "' + t("Who are you?") + '"}, {"role": "assistant", "content": "?"}]\n'
        'inputs = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)\n'
        "print(model(**inputs).logits.item())\n"
    )


def _write() -> str:
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        'chat = [{"role": "user", "content": "' + t("Who are you?") + '"}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True\n)\n'
        "answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)\n"
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))\n'
    )
