"""The model card: README.md of an exported model, from the files of its run. It measures nothing itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuneloop.base.language import t
from tuneloop.evaluation.evaluation import Evaluation, Scores
from tuneloop.evaluation.metrics import METRICS
from tuneloop.exports.parity import Parity
from tuneloop.hub.provenance import base_name, licence, licence_fields
from tuneloop.model.head import CAUSAL, Answers, Head
from tuneloop.planning.cautions import nothing_held
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.run import Run
from tuneloop.training.adapter_card import method_text


def card(run: Path, recipe: Recipe, base: Path, parity: Parity, *, dtype: str, head: Head = CAUSAL) -> str:
    """README.md in the chosen language, with the front matter that model hubs read."""
    name, terms = base_name(recipe, base), licence(base)
    sections = [
        _front_matter(name, terms, head),
        f"# {recipe.name}\n",
        t("{name} is {base}, fine-tuned with tuneloop.", name=recipe.name, base=name) + "\n",
        _history(run, recipe, name, terms, dtype),
        _scores(Evaluation.read(run)),
        _parity(parity),
        _use(head),
    ]
    return "\n".join(s for s in sections if s)


def _front_matter(base: str, terms: str, head: Head) -> str:
    fields: dict[str, Any] = {
        "library_name": "transformers", "pipeline_tag": USES[head.answers].pipeline, "base_model": base,
    }  # fmt: skip
    fields |= licence_fields(terms) | {"tags": ["tuneloop"]}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    lines = ("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) + " |" for row in cells)
    return "\n".join(lines) + "\n"


def _history(run: Path, recipe: Recipe, base: str, terms: str, dtype: str) -> str:
    train, dataset = recipe.train, Run(run).read("dataset.json")
    rows = [
        [t("Base model"), base + (f" @ {recipe.model.revision}" if recipe.model.revision else "")],
        [t("Licence of the base model"), terms or t("not recorded: look it up before you pass the model on")],
        [t("Method"), method_text(recipe)],
        [
            t("Epochs, batch size, learning rate"),
            f"{_epochs(run, recipe):.3g}, {train.batch_size}, {train.learning_rate:g}",
        ],
        [t("Seed"), str(recipe.seed)],
        [t("Dataset"), str(dataset.get("hash") or t("not recorded"))],
    ]
    rows.append([t("Type of the weights"), dtype])
    return f"## {t('How it was made')}\n\n{_table(['', ''], rows)}"


def _epochs(run: Path, recipe: Recipe) -> float:
    """Passes over the data that were made; max_steps may have ended them before train.epochs."""
    planned = Run(run).read("plan.json").get("data", {})
    if not planned.get("dialogues") or not planned.get("steps"):
        return recipe.train.epochs
    per_epoch = math.ceil(int(planned["dialogues"]) / recipe.train.batch_size)
    return int(planned["steps"]) / per_epoch


def _scores(evaluation: Evaluation | None) -> str:
    """Before and after on the held-out dialogues; a probe that failed is said as plainly as one that passed."""
    if evaluation is None:
        return f"## {t('Measured')}\n\n{t('This run was not evaluated.')}\n"
    before, after = evaluation.before, evaluation.after
    rows = [
        [metric.label(), _number(before[name]), _number(after[name])]
        for name, metric in METRICS.items()
        if before[name] is not None or after[name] is not None
    ]
    text = f"## {t('Measured')}\n\n"
    if rows:
        text += f"{_basis(after)}\n\n{_table([t('Measure'), t('before'), t('after')], rows)}"
    elif not after.measured_on:
        text += nothing_held() + "\n"
    if evaluation.probes:
        verdicts = {True: t("passed"), False: t("failed")}
        lines = [
            [p.name, f"{p.before}/{p.total}", f"{p.after}/{p.total}", verdicts[p.passed]] for p in evaluation.probes
        ]
        text += "\n" + _table([t("Probe"), t("before"), t("after"), t("Result")], lines)
    return text


def _basis(after: Scores) -> str:
    """What the scores were measured on."""
    if after.texts is not None:
        return t("Loss, accuracy and F1 over {n} held-out texts.", n=after.texts)
    labels, answers = ("?" if count is None else count for count in (after.label_tokens, after.rows))
    return t(
        "Loss and perplexity over {labels} held-out label tokens, BLEU and ROUGE over {n} answers; {base} before, "
        "this model after.",
        labels=labels,
        n=answers,
        base=t("the base model"),
    )


def _number(number: float | None) -> str:
    return "-" if number is None else f"{number:.4g}"


def _parity(parity: Parity) -> str:
    return f"## {t('Checked against the trained model')}\n\n{parity.line()}\n"


def _use(head: Head) -> str:
    code = USES[head.answers].code()
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


@dataclass(frozen=True, slots=True)
class Use:
    """The task that a model hub lists a model under, and Python code that asks it."""

    pipeline: str
    code: Callable[[], str]


USES: dict[Answers, Use] = {
    "text": Use("text-generation", _write),
    "label": Use("text-classification", _classify),
    "score": Use("text-classification", _reward),
}
"""How an exported model answers by its head -> its use."""
