"""Why an evaluation is not of the model that was trained: other weights, another template, another base.

Training records at its end what it wrote (`training/digests.py`) and the held-out loss that it measured. What is there
now is compared with that. Runs of earlier versions recorded less, so of them less can be told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tuneloop.base.errors import TuneloopError
from tuneloop.base.records import Record
from tuneloop.data.tokens.encode import tokenize
from tuneloop.evaluation.evaluation import Evaluation
from tuneloop.evaluation.findings import RunFinding
from tuneloop.hub.provenance import provenance_note
from tuneloop.hub.resolve import model_folder
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import Trained
from tuneloop.methods import adapters
from tuneloop.recipe.choices import METHOD_CHOICES
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run
from tuneloop.training.digests import samples_digest, template_digest, weights_digest

LOSS_TOLERANCE = {"float32": 0.005, "coarse": 0.05}
"""Share by which the held-out loss may differ from the one that training measured: packing and kernels round otherwise,
in half precision and on 4-bit weights more."""


def ended(run: Run) -> dict[str, Any]:
    """What the run recorded when it finished; {} where it says nothing."""
    return next((e for e in reversed(list(Journal(run.events).lines())) if e.get("event") == "finished"), {})


def diagnose(
    run: Run, trained: Trained, held: Sequence[Record] | None, evaluation: Evaluation
) -> tuple[RunFinding, ...]:
    """The faults of a run, each with its cause. `held` are the rows that its dataset held out, None where others
    were measured. A loss that differs is a finding only where no cause is known: else it is what the cause does."""
    folder = run.trained_folder()
    causes = [
        *(_weights(run, folder) if folder is not None else ()),
        *_template(run, trained),
        *(_tokens(run, trained, held) if held is not None else ()),
        *_base(run, trained),
    ]
    if causes or held is None:
        return tuple(causes)
    return tuple(_loss(run, trained, evaluation))


def _weights(run: Run, folder: Path) -> Iterator[RunFinding]:
    """Weights that are no numbers, that are all zero, or that training did not write."""
    broken, changes = _look(folder)
    recorded, there = ended(run).get("weights"), weights_digest(folder)
    if broken:
        yield RunFinding(
            "TL-RUN-WEIGHTS-NAN", {"path": str(folder), "names": ", ".join(broken[:3]), "n": str(len(broken))}
        )
    elif not changes:
        yield RunFinding("TL-RUN-WEIGHTS-ZERO", {"path": str(folder)})
    if recorded and there != recorded:
        other = _owner(run, there)
        if other:
            yield RunFinding("TL-RUN-WEIGHTS-OTHER", {"path": str(folder), "other": other})
        elif not broken and changes:
            yield RunFinding("TL-RUN-WEIGHTS-CHANGED", {"path": str(folder)})


def _look(folder: Path) -> tuple[list[str], bool]:
    """Names of the tensors that hold no numbers, and whether an adapter changes anything: LoRA's B begins as zero."""
    broken, moved = [], []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - no dict
                tensor = weights.get_tensor(name)
                if not tensor.is_floating_point():
                    continue
                if not bool(torch.isfinite(tensor).all()):
                    broken.append(name)
                moved.append((("lora_B" in name), bool(tensor.any())))
    second = [there for is_b, there in moved if is_b] or [there for _, there in moved]
    return broken, any(second) or not moved


def _owner(run: Run, digest: str) -> str:
    """The run beside this one that these weights belong to, by what it recorded; "" where none did."""
    for other in sorted(run.path.parent.glob("*/events.jsonl")):
        if other.parent.resolve() != run.path.resolve() and ended(Run(other.parent)).get("weights") == digest:
            return other.parent.name
    return ""


def _template(run: Run, trained: Trained) -> Iterator[RunFinding]:
    """A chat template that is not the one that was trained: the run's own, or its base's."""
    own, recorded = template_digest(trained.tokenizer), ended(run).get("template")
    folder = run.trained_folder()
    try:
        base = template_digest(load_tokenizer(model_folder(trained.recipe.model), trained.recipe.model.template))
    except TuneloopError:  # a base that is gone; the run has a tokenizer of its own
        base = recorded or own
    if own != (recorded or base):
        yield RunFinding("TL-RUN-TEMPLATE", {"path": str(folder)})
    elif base != own:
        yield RunFinding("TL-RUN-TEMPLATE-BASE", {"base": trained.recipe.model.name})


def _tokens(run: Run, trained: Trained, held: Sequence[Record]) -> Iterator[RunFinding]:
    """Held-out rows that the run's tokenizer cuts into other tokens than in training, under the same template."""
    finished = ended(run)
    recorded = finished.get("held")
    if not recorded or not _of_dialogues(trained):
        return
    if finished.get("template") not in {None, template_digest(trained.tokenizer)}:
        return
    now = samples_digest(tokenize(trained.tokenizer, held, empty_thoughts=trained.recipe.prepare.empty_thoughts))
    if now != recorded:
        yield RunFinding("TL-RUN-TOKENS", {"path": str(run.trained_folder())})


def _of_dialogues(trained: Trained) -> bool:
    """Whether training read rows as dialogues and measured the loss of their label tokens; not so of pairs."""
    return trained.task.answers == "text" and trained.task.precompute_reference is None


def _base(run: Run, trained: Trained) -> Iterator[RunFinding]:
    """Base weights that are not those that the adapter was trained on."""
    adapter = run.path / "adapter"
    known = adapters.known_base(adapter).get("mark") if adapter.is_dir() else None
    if known and known != provenance_note(model_folder(trained.recipe.model)):
        yield RunFinding("TL-RUN-BASE", {"base": trained.recipe.model.name})


def _loss(run: Run, trained: Trained, evaluation: Evaluation) -> Iterator[RunFinding]:
    """A held-out loss that differs from the one that training measured of the same weights on the same rows."""
    measured = [line["eval_loss"] for line in Journal(run.metrics).lines() if isinstance(line.get("eval_loss"), float)]
    now = evaluation.after["loss"]
    if not measured or not _of_dialogues(trained) or trained.recipe.train.eval_strategy == "no":
        return
    then = min(measured) if trained.recipe.train.keep_best else measured[-1]
    dtype = next(trained.model.parameters()).dtype
    fine = dtype == torch.float32 and not METHOD_CHOICES[trained.recipe.train.method].quantize
    allowed = LOSS_TOLERANCE["float32" if fine else "coarse"]
    if now is None or abs(now - then) > allowed * max(1.0, abs(then)):
        shown = "NaN" if now is None else f"{now:.4f}"
        yield RunFinding("TL-RUN-LOSS", {"then": f"{then:.4f}", "now": shown})
