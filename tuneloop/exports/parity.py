"""Parity: is what was exported the same model as what was trained?

The trained model (base and adapter) and the exported one, read back from disk, see the same dialogues. Compared are the
logits where the assistant speaks, greedy answers token by token, and the text the chat template renders. This says
nothing about how good the answers are; evaluation does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from tuneloop.base.errors import DataError, RunError, TuneloopError
from tuneloop.base.language import t
from tuneloop.base.records import Message, Record
from tuneloop.data.tokens.encode import tokenize
from tuneloop.data.tokens.templates import Chat, encode, render, stop_ids
from tuneloop.data.version import dataset as datasets
from tuneloop.evaluation import preference
from tuneloop.evaluation.before_after import held_out_loss
from tuneloop.inference.classifier import Classifier
from tuneloop.inference.scorer import Scorer
from tuneloop.model.backbone import unwrap
from tuneloop.model.precision import EXACT, tolerance
from tuneloop.runs.run import Run

NEW_TOKENS = 32
"""Tokens of each greedy answer that is compared."""
HELD, MOST_ROWS = 2048, 64
"""Tokens and number of the held-out rows whose loss is compared, at most."""
PEAK = 10
"""How far the largest number of what a layer multiplies stands out, in root mean squares of it; see `int8_loss`."""
MOST_LOGITS = 1 << 26
"""Numbers kept of one model's logits (256 MiB); of longer dialogues evenly spread positions are taken."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an exported model is from the trained one. Differences are in logits, absolute."""

    max_logit_difference: float
    mean_logit_difference: float
    same_tokens: int
    of: int
    template_equal: bool
    passed: bool
    tolerance: float
    trained_loss: float | None = None
    """Mean loss of a label token on held-out rows, in nats, of the model as it was trained and measured; None where the
    task has none, or there is nothing to measure it on."""
    exported_loss: float | None = None
    loss_tolerance: float | None = None
    rounded: bool = False
    """The trained model also rounds what it computes with (int8): logits are compared without that, losses with it."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """One line for the console."""
        text = self._logits()
        if self.trained_loss is not None and self.exported_loss is not None:
            text += t(
                "; loss on held-out rows {trained:.4f} as trained, {exported:.4f} exported (allowed {tolerance:.2g})",
                trained=self.trained_loss,
                exported=self.exported_loss,
                tolerance=self.loss_tolerance or 0.0,
            )
        if self.rounded:
            text += t(
                "; int8 also rounds what the trained model computes with, which no file can hold: logits are "
                "compared without it, losses with it"
            )
        return text

    def _logits(self) -> str:
        return t(
            "largest logit difference {largest:.2g} (allowed {tolerance:.2g}), {same}/{of} answer tokens the same, "
            "chat template {template}",
            largest=self.max_logit_difference,
            tolerance=self.tolerance,
            same=self.same_tokens,
            of=self.of,
            template=t("equal") if self.template_equal else t("different"),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What one model says to the dialogues.

    `logits` are float32 [positions, vocabulary] per sample, on the CPU; `answers` the greedy token ids per dialogue;
    `texts` and `ids` what the tokenizer makes of each dialogue, whole and as a prompt.
    """

    logits: tuple[Tensor, ...]
    answers: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    loss: float | None = None
    """Mean loss of a label token on held-out rows, in nats; None where there are none."""
    layers: int = 0


def questions(chat: Chat) -> Chat:
    """The chat up to its last assistant turn: what the model is asked.

    >>> questions([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    [{'role': 'user', 'content': 'a'}]
    """
    last = max((i for i, m in enumerate(chat) if m["role"] == "assistant"), default=len(chat))
    return chat[:last]


@torch.no_grad()
def measure(model: nn.Module, tokenizer: Any, chats: Sequence[Chat], held: Sequence[Record] = ()) -> Evidence:
    """What `model` says to `chats`, each with at least one assistant turn, whose positions are looked at; and what it
    loses on the rows `held`. Where no answer of a chat can be trained, the position is looked at where one would begin.
    """
    model.eval()
    device = next(model.parameters()).device
    prompts = [render(tokenizer, questions(chat), prompt=True) for chat in chats]
    texts = (*(render(tokenizer, chat) for chat in chats), *prompts)
    ids_of_texts = encode(tokenizer, list(texts))
    samples = [
        one
        for chat, prompt in zip(chats, ids_of_texts[len(chats) :], strict=True)
        for one in _answer_positions(tokenizer, chat) or [(torch.tensor(prompt), torch.tensor([len(prompt) - 1]))]
    ]
    vocabulary = int(unwrap(model).config.get_text_config().vocab_size)
    most = max(1, MOST_LOGITS // (vocabulary * max(1, len(samples))))
    logits = []
    for ids, places in samples:
        if len(places) > most:
            places = places[torch.linspace(0, len(places) - 1, most).long()]
        out = model(input_ids=ids[None].to(device), use_cache=False, logits_to_keep=places.to(device))
        logits.append(out.logits[0].float().cpu())
    return Evidence(
        logits=tuple(logits),
        answers=tuple(_greedy(model, tokenizer, ids, device) for ids in ids_of_texts[len(chats) :]),
        texts=texts,
        ids=tuple(tuple(ids) for ids in ids_of_texts),
        dtype=_dtype(model),
        loss=_loss(model, tokenizer, held),
        layers=int(unwrap(model).config.get_text_config().num_hidden_layers),
    )


def _answer_positions(tokenizer: Any, chat: Chat) -> list[tuple[Tensor, Tensor]]:
    """The samples of a chat that have an answer: their ids, and the positions whose logits choose its tokens.

    [] where none has: a model may answer with its end token, with a thought that its template leaves out, or with what
    the template hides. None of that is trained, but it may not end an export either.
    """
    try:
        samples = tokenize(tokenizer, [Record(tuple(Message(m["role"], m["content"]) for m in chat))])
    except DataError as error:
        if error.code != "TL-DATA-MASK":
            raise
        return []
    # The logits at position i - 1 choose the token at i.
    positions = [(torch.from_numpy(s.ids).long(), torch.from_numpy(s.trained[1:]).nonzero().flatten()) for s in samples]
    return [(ids, places) for ids, places in positions if len(places)]


def _dtype(model: nn.Module) -> torch.dtype:
    """The type that the model computes in; bitsandbytes' weights are bytes."""
    return next(p.dtype for p in unwrap(model).parameters() if p.is_floating_point())


def _loss(model: nn.Module, tokenizer: Any, held: Sequence[Record]) -> float | None:
    total, tokens = held_out_loss(model, tokenizer, HELD)(list(held)) if held else (0.0, 0)
    return total / tokens if tokens else None


def held_rows(run: Path, tokenizer: Any) -> list[Record]:
    """Rows that the run has held out, of at most `HELD` tokens together; [] where its dataset is gone."""
    folder = Run(run).dataset()
    if folder is None:
        return []
    try:
        held = datasets.open_dataset(folder).records("validation")
    except TuneloopError:
        return []
    rows, tokens = list[Record](), 0
    for record in preference.dialogues(held[:MOST_ROWS]):
        length = sum(len(sample.ids) for sample in tokenize(tokenizer, [record]))
        if tokens + length <= HELD:
            rows.append(record)
            tokens += length
    return rows


def measure_labels(classifier: Classifier, texts: Sequence[str]) -> Evidence:
    """What a classifier says to texts: the logarithms of its probabilities, and its labels by number."""
    chances = classifier.classify(texts)
    logits = [torch.tensor([list(of.values())], dtype=torch.float64).clamp_min(1e-30).log().float() for of in chances]
    return Evidence(
        logits=tuple(logits),
        answers=tuple((int(row.argmax()),) for row in logits),
        texts=tuple(texts),
        ids=tuple(tuple(ids) for ids in encode(classifier.tokenizer, list(texts))),
        dtype=_dtype(classifier.model),
    )


def measure_scores(scorer: Scorer, chats: Sequence[Chat]) -> Evidence:
    """What a reward model says to dialogues."""
    texts = [render(scorer.tokenizer, chat) for chat in chats]
    return Evidence(
        logits=tuple(torch.tensor([[score]]) for score in scorer.scores(chats)),
        answers=(),
        texts=tuple(texts),
        ids=tuple(tuple(ids) for ids in encode(scorer.tokenizer, texts)),
        dtype=_dtype(scorer.model),
    )


def _greedy(model: nn.Module, tokenizer: Any, prompt: list[int], device: torch.device) -> tuple[int, ...]:
    stops = sorted(stop_ids(tokenizer))
    # Never ended early: a model that has learned to answer briefly would be compared on next to nothing.
    how = cast(Any, GenerationConfig)(
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=stops or None,
        pad_token_id=stops[0] if stops else 0,
    )
    ids = torch.tensor([prompt], device=device)
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how)  # type: ignore[operator]
    return tuple(int(token) for token in out[0, len(prompt) :])


def int8_loss(loss: float, layers: int) -> float:
    """How far the loss of a model that computes in 8 bits may be from that of its weights alone.

    LLM.int8 (Dettmers et al. 2022) rounds each row that a layer multiplies to 127 steps of its largest number: an error
    of 1 / (127 sqrt(12)) of it, and of PEAK times that of the row's usual size. Over n layers of two blocks each such
    errors add up to sqrt(2 n) of one. That share of the loss is allowed; SmolLM2-135M showed 0.072 of 0.19.

    >>> round(int8_loss(1.1, 30), 2), round(int8_loss(0.01, 2), 3)
    (0.19, 0.045)
    """
    return PEAK * math.sqrt(2 * layers) / (127 * math.sqrt(12)) * max(1.0, loss)


def compare(trained: Evidence, exported: Evidence, measured: Evidence | None = None) -> Parity:
    """Hold the exported model's evidence against the trained one's, taken with the same chats.

    `measured` is the trained model's own where `trained` is of its weights alone: of a model whose activations are
    rounded to 8 bits as well, and no file can hold that. Its loss is then the one that is compared, within `int8_loss`.

    float32 must also give the same answers, token by token; below that one near tie may turn a greedy answer without
    any fault, so there the tokens are counted but do not decide.
    """
    template_equal = trained.texts == exported.texts and trained.ids == exported.ids
    same_shape = [x.shape for x in trained.logits] == [x.shape for x in exported.logits]
    largest, total, count, size = 0.0, 0.0, 0, 0.0
    for a, b in zip(trained.logits, exported.logits, strict=True) if same_shape else ():
        difference = (a - b).abs()
        # NaN compares as false with everything: an infinite difference is one that no tolerance admits.
        largest = max(largest, float(difference.max().nan_to_num(nan=float("inf"))) if difference.numel() else 0.0)
        total, count = total + float(difference.double().sum()), count + difference.numel()
        size = max(size, float(a.abs().max()) if a.numel() else 0.0)
    if not same_shape or not count:
        largest = total = float("inf")
    same, of = _agreement(trained.answers, exported.answers)
    allowed = tolerance(exported.dtype, size)
    exact = allowed == EXACT
    before = (measured or trained).loss
    near = (int8_loss(before, measured.layers) if measured else max(EXACT, allowed)) if before is not None else None
    equal = before is exported.loss or (
        before is not None and exported.loss is not None and abs(before - exported.loss) <= (near or 0.0)
    )
    return Parity(
        max_logit_difference=largest,
        mean_logit_difference=total / max(1, count),
        same_tokens=same,
        of=of,
        template_equal=template_equal,
        passed=bool(largest <= allowed and template_equal and equal and (same == of or not exact)),
        tolerance=allowed,
        trained_loss=before,
        exported_loss=exported.loss,
        loss_tolerance=near,
        rounded=measured is not None,
    )


def _agreement(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(tokens at the same place that are equal, tokens of the longer answer), over all answers.

    >>> _agreement([[1, 2, 3], [4]], [[1, 9], [4]])
    (2, 4)
    """
    same = sum(x == y for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=False))
    return same, sum(max(len(left), len(right)) for left, right in zip(a, b, strict=True))


def require(parity: Parity, where: str) -> None:
    """Raise TL-RUN-PARITY unless it passed."""
    if not parity.passed:
        raise RunError(
            "TL-RUN-PARITY",
            where=where,
            largest=f"{parity.max_logit_difference:.3g}",
            tolerance=f"{parity.tolerance:.3g}",
            same=parity.same_tokens,
            of=parity.of,
            template=t("equal") if parity.template_equal else t("different"),
        )
