"""The model card: README.md of an exported model, from the files of its run. It measures nothing itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from tuneloop.base.language import listed, t
from tuneloop.evaluation.evaluation import Evaluation, Scores
from tuneloop.evaluation.intervals import Estimate
from tuneloop.evaluation.metrics import METRICS
from tuneloop.evaluation.paired import Paired, separations
from tuneloop.exports.composition import AddedAdapter
from tuneloop.exports.loading import Exportation, loading
from tuneloop.exports.parity import Parity
from tuneloop.hub.provenance import base_name, licence, licence_fields
from tuneloop.model.head import CAUSAL, Answers, Head
from tuneloop.planning.cautions import nothing_held
from tuneloop.recipe.schema import Recipe
from tuneloop.report import gains
from tuneloop.runs.run import Run
from tuneloop.training.adapter_card import method_text


def card(
    run: Path,
    recipe: Recipe,
    base: Path,
    parity: Parity,
    *,
    dtype: str,
    head: Head = CAUSAL,
    target: str = "merged",
    folder: Path | None = None,
    stops: Sequence[str] = (),
    more: Sequence[AddedAdapter] = (),
) -> str:
    """README.md in the chosen language, with the front matter that model hubs read.

    `target` is a name of the export's TARGETS, `folder` where it lies, for the names of its files; `stops` are the
    tokens that end an answer; `more` are adapters that were added after the run's own: no figure of the run is then
    one of this model.
    """
    name, terms = base_name(recipe, base), licence(base)
    sentence = t("{name} is {base}, fine-tuned with tuneloop.", name=recipe.name, base=name)
    if more:
        sentence += " " + t("After it were added: {names}.", names=listed([one.name for one in more]))
    sections = [
        _front_matter(name, terms, head, target),
        f"# {recipe.name}\n",
        sentence + "\n",
        _history(run, recipe, name, terms, _weights(target, dtype), stops, more),
        _trained_on(run, recipe),
        _unmeasured() if more else _scores(Evaluation.read(run)),
        _parity(parity, composed=bool(more)),
        _use(Exportation(run.name, target, folder, recipe, name, USES[head.answers].code(), head, bool(more))),
    ]
    return "\n".join(s for s in sections if s)


def _front_matter(base: str, terms: str, head: Head, target: str) -> str:
    library, relation = HUB.get(target.partition("-")[0], ("transformers", ""))
    if target == "gguf-lora":
        relation = "adapter"
    fields: dict[str, Any] = {
        "library_name": library, "pipeline_tag": USES[head.answers].pipeline, "base_model": base,
    }  # fmt: skip
    fields |= {"base_model_relation": relation} if relation else {}
    fields |= licence_fields(terms) | {"tags": ["tuneloop"]}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _weights(target: str, dtype: str) -> str:
    """The type of the weights: of the target where that names one."""
    kind = target.removeprefix("gguf-")
    return dtype if target in ("merged", "adapter", "gguf-lora") else kind.upper() if kind != target else kind


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    lines = ("| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in row) + " |" for row in cells)
    return "\n".join(lines) + "\n"


def _history(
    run: Path,
    recipe: Recipe,
    base: str,
    terms: str,
    dtype: str,
    stops: Sequence[str],
    more: Sequence[AddedAdapter],
) -> str:
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
    if more:
        adapters = ", ".join(t("{name} (weights {digest})", name=one.name, digest=one.weights) for one in more)
        rows.append([t("Adapters added after it, with data and licences of their own"), adapters])
    rows.append([t("Type of the weights"), dtype])
    if stops:
        rows.append([t("Tokens that end an answer"), " ".join(f"`{stop}`" for stop in stops)])
    return f"## {t('How it was made')}\n\n{_table(['', ''], rows)}"


def _trained_on(run: Path, recipe: Recipe) -> str:
    """The data: where its files are named, how many rows of it were trained on and held out, and its licence."""
    dataset = Run(run).read("dataset.json")
    counts, tokens = dataset.get("counts") or {}, dataset.get("tokens") or {}
    rows = [[t("Files"), ", ".join(dict.fromkeys(_file_name(file.path) for file in recipe.data)) or t("not recorded")]]
    if counts:
        shares = {side: f"{counts.get(side) or 0:,}" for side in ("train", "validation", "test")}
        rows.append([t("Rows to train on, to validate, to test"), ", ".join(shares.values())])
    if tokens.get("longest"):
        length = t("{n} tokens", n=f"{tokens['longest']:,}")
        rows.append([t("Longest row"), length])
    unknown = t("not recorded: what may be done with the model depends on it, too")
    rows.append([t("Licence of the data"), unknown])
    return f"## {t('Data')}\n\n{_table(['', ''], rows)}"


def _file_name(path: str) -> str:
    """A data file without the folders of the machine that trained; a data set of a hub by its full name."""
    return path if re.match(r"\w\w+:", path) else PurePath(path).name or path


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
    after = evaluation.after
    rows, head = _figures(evaluation), [t("Measure"), t("before"), t("after")]
    text = f"## {t('Measured')}\n\n"
    if rows:
        text += f"{_basis(after)}\n\n"
        if len(rows[0]) > len(head):
            head.append(t("change"))
            text += t("In brackets: the 95 % interval of a figure, and of the change on the same rows.") + "\n\n"
        text += _table(head, rows)
    elif not after.measured_on:
        text += nothing_held() + "\n"
    if evaluation.probes:
        verdicts = {True: t("passed"), False: t("failed")}
        lines = [
            [p.name, f"{p.before}/{p.total}", f"{p.after}/{p.total}", verdicts[p.passed]] for p in evaluation.probes
        ]
        text += "\n" + _table([t("Probe"), t("before"), t("after"), t("Result")], lines)
    return text


def _unmeasured() -> str:
    """Of a model that more adapters were added to."""
    text = t("This model was not evaluated: the run was, without the adapters that were added after it.")
    return f"## {t('Measured')}\n\n{text}\n"


def _figures(evaluation: Evaluation) -> list[list[str]]:
    """Each metric of the held-out rows before and after; where intervals were measured, with them and the change."""
    before, after = evaluation.before, evaluation.after
    pairs = {pair.metric: pair for pair in evaluation.paired if not pair.section}
    rows = []
    for name, metric in METRICS.items():
        if before[name] is None and after[name] is None:
            continue
        pair = pairs.get(name)
        sides = [(before[name], pair.before if pair else None), (after[name], pair.after if pair else None)]
        row = [metric.label(), *(_with_interval(_number(x), estimate, metric.digits) for x, estimate in sides)]
        if pairs:
            row.append(_change(pair) if pair else "-")
        rows.append(row)
    return rows


def _with_interval(figure: str, estimate: Estimate | None, digits: int) -> str:
    return f"{figure} {gains.interval(estimate, digits)}".strip() if estimate else figure


def _change(pair: Paired) -> str:
    """By how much, within which bounds, and whether that is more than chance."""
    digits = METRICS[pair.metric].digits
    figure = gains.signed(pair.difference.estimate, digits) or "-"
    words = "" if METRICS[pair.metric].higher_is_better is None else separations()[pair.separation]
    return " ".join(part for part in (_with_interval(figure, pair.difference, digits), words) if part)


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


def _parity(parity: Parity, *, composed: bool) -> str:
    against = t("Checked against base and adapters") if composed else t("Checked against the trained model")
    return f"## {against}\n\n{parity.line()}\n"


def _use(one: Exportation) -> str:
    return f"## {t('How to use it')}\n\n{loading(one)}"


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


HUB = {
    "adapter": ("peft", "adapter"), "gguf": ("gguf", "quantized"), "nf4": ("transformers", "quantized"),
    "int8": ("transformers", "quantized"),
}  # fmt: skip
"""Target, up to its first hyphen -> what model hubs list it under: library, and what it is of its base."""
USES: dict[Answers, Use] = {
    "text": Use("text-generation", _write),
    "label": Use("text-classification", _classify),
    "score": Use("text-classification", _reward),
}
"""How an exported model answers by its head -> its use."""
