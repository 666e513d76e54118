"""The certificate of an export: the trained model's evidence held against a form that was read back from the disk.

The form is given the very tokens that the trained model was given, so its weights are judged apart from its tokenizer;
template, token ids and end tokens are compared by themselves. What is past its limit is looked into (`causes.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tuneloop.exports.causes import causes_of
from tuneloop.exports.forms import Form
from tuneloop.exports.limits import LIMITED_AS, NEAR_TIE, Limits, limits_of
from tuneloop.exports.parity import EXACT, NEW_TOKENS, Evidence, Parity, int8_loss, places_equal, questions
from tuneloop.model.precision import tolerance

BLOCK = 16
"""Positions whose distributions are compared at a time, in float64."""


def certify(reference: Evidence, form: Form, target: str, measured: Evidence | None = None) -> Parity:
    """How far `form`, read back from the disk as `target`, is from the trained model, and whether that is allowed.

    `measured` is the trained model's own evidence where `reference` is of its weights alone; see `parity.compare`.
    """
    limits = limits_of(target, form.dtype, reference.dtype)
    parity = _measured(reference, form, target, limits)
    parity = _with_held(parity, reference, form, measured)
    texts, ids = _rendered(reference, form), form.ids(reference.texts)
    parity = replace(
        parity,
        template_equal=texts == reference.texts and not reference.template_changed,
        ids_equal=[tuple(row) for row in ids] == list(reference.ids),
        missing_ends=tuple(sorted(_missing_ends(reference, form))),
    )
    if parity.template_equal and parity.ids_equal and not parity.missing_ends and not parity.past_limits():
        return replace(parity, passed=True)
    causes = causes_of(reference, form, parity, texts, ids)
    return replace(
        parity,
        cause=causes[0].name,
        why=" ".join(cause.why for cause in causes),
        remedy=causes[0].remedy,
    )


def _missing_ends(reference: Evidence, form: Form) -> frozenset[int]:
    """The trained model's end tokens at which some program that reads the form goes on: all where none is named."""
    named = not reference.ends or reference.ends & form.named_ends()
    return reference.ends - form.ends() if named else reference.ends


def _rendered(reference: Evidence, form: Form) -> tuple[str | None, ...]:
    """`reference.texts` as the form renders them."""
    return (
        *(form.template(chat) for chat in reference.chats),
        *(form.template(questions(chat), prompt=True) for chat in reference.chats),
        *reference.texts[2 * len(reference.chats) :],
    )


def _with_held(parity: Parity, reference: Evidence, form: Form, measured: Evidence | None) -> Parity:
    """With the loss on held-out rows, where the form can be asked for it."""
    trained, allowed = (measured or reference).loss, parity.tolerance
    answerable = trained is not None and allowed is not None and _knows_all(reference, form)
    exported = form.loss(reference.held) if answerable else None
    parity = replace(parity, rounded=measured is not None)
    if trained is None or exported is None or allowed is None:
        return parity
    near = int8_loss(trained, measured.layers) if measured else max(EXACT, allowed)
    return replace(parity, trained_loss=trained, exported_loss=exported, loss_tolerance=near)


@dataclass(slots=True)
class _Sums:
    """What is added up over positions."""

    largest: float = 0.0
    total: float = 0.0
    numbers: int = 0
    size: float = 0.0
    kld: float = 0.0
    noise: float = 0.0
    spread: float = 0.0
    same_top: int = 0
    positions: int = 0
    trained_loss: float = 0.0
    exported_loss: float = 0.0
    labels: int = 0

    def add(self, trained: Tensor, exported: Tensor, labels: Tensor) -> None:
        """Logits [positions, vocabulary] of both; labels int64 [at most positions]: the tokens that follow the first.

        What is no number makes the sums it goes into none. With p the trained model's distribution and Z the sums of
        the exponentials, the divergence is log Z' - log Z - p (exported - trained).
        """
        ours, theirs = trained.double(), exported.double()
        difference = theirs - ours
        shares, ours_sum = _shares(ours)
        theirs_sum = _shares(theirs)[1]
        self.kld += float((theirs_sum - ours_sum).sum() - (shares * difference).sum())
        picked, rows = labels[:, None], len(labels)
        self.trained_loss += float((ours_sum[:rows] - ours[:rows].gather(1, picked)[:, 0]).sum())
        self.exported_loss += float((theirs_sum[:rows] - theirs[:rows].gather(1, picked)[:, 0]).sum())
        self.labels += rows
        self.same_top += int(((trained.argmax(-1) == exported.argmax(-1)) | _near_ties(ours)).sum())
        self.positions += len(trained)
        distance = difference.abs()
        self.largest = max(self.largest, float(distance.max().nan_to_num(nan=math.inf)))
        self.total += float(distance.sum())
        self.numbers += difference.numel()
        self.size = max(self.size, float(trained.abs().max()))
        self.noise += float(_squares(difference).sum())
        self.spread += float(_squares(ours).sum())

    def relative_noise(self) -> float | None:
        """None where there is nothing, or nothing to compare a noise with; infinite where something was no number."""
        share = self.mean(self.noise, 1) if self.positions else None
        return None if share is None or not self.spread else math.sqrt(share / self.spread)

    def mean(self, total: float, of: int) -> float | None:
        """None where there is nothing; infinite where something was no number."""
        mean = total / of if of else None
        return math.inf if mean is not None and math.isnan(mean) else mean


def _shares(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(probabilities, logarithm of the sum of the exponentials) of float64 [positions, vocabulary]."""
    highest = logits.amax(-1, keepdim=True)
    powers = (logits - highest).exp_()
    total = powers.sum(-1, keepdim=True)
    return powers.div_(total), (highest + total.log())[:, 0]


def _squares(logits: Tensor) -> Tensor:
    """Sum of squares of each row, float64 [positions], without its mean."""
    return (logits - logits.mean(-1, keepdim=True)).square_().sum(-1)


def _near_ties(logits: Tensor) -> Tensor:
    """Whether the two highest of each row are as good as one, bool [positions]."""
    first = logits.topk(2).values
    return (first[:, 0] - first[:, 1]) / (_squares(logits) / (logits.shape[-1] - 1)).sqrt() < NEAR_TIE


def _knows_all(reference: Evidence, form: Form) -> bool:
    """Whether every token that the trained model was given is one that the form knows."""
    texts = [*reference.prompts, *(ids.tolist() for ids, _ in reference.samples)]
    return max((max(ids) for ids in texts), default=0) < form.vocabulary


def _measured(reference: Evidence, form: Form, target: str, limits: Limits) -> Parity:
    sums = _Sums()
    known = _knows_all(reference, form)
    for (ids, places), trained in zip(reference.samples, reference.logits, strict=True):
        exported = torch.full_like(trained, math.nan)
        if known and form.vocabulary >= trained.shape[-1]:
            exported = form.logits(ids.tolist(), places.tolist())[:, : trained.shape[-1]]
        labels = ids[places[places + 1 < len(ids)] + 1]
        for start in range(0, len(places), BLOCK):
            block = slice(start, start + BLOCK)
            sums.add(trained[block], exported[block], labels[block])
    greedy = _answers(reference, form, limits) if known else [[] for _ in reference.prompts]
    equal, compared = places_equal(reference.answers, greedy)
    same, of, near = agreement(reference, greedy, limits.tie)
    exact = LIMITED_AS.get(target) == ""
    return Parity(
        max_logit_difference=sums.largest if sums.positions else math.inf,
        mean_logit_difference=sums.mean(sums.total, sums.numbers) if sums.positions else math.inf,  # type: ignore[arg-type]
        same_tokens=equal,
        of=compared,
        template_equal=False,
        passed=False,
        tolerance=tolerance(form.dtype, sums.size) if exact else None,
        target=target,
        answer_tokens=sums.positions,
        kld=sums.mean(sums.kld, sums.positions),
        noise=sums.relative_noise(),
        same_top=sums.same_top,
        trained_answer_loss=sums.mean(sums.trained_loss, sums.labels),
        exported_answer_loss=sums.mean(sums.exported_loss, sums.labels),
        greedy_same=same,
        greedy_of=of,
        near_ties=near,
        limits=limits,
    )


def _answers(reference: Evidence, form: Form, limits: Limits) -> list[list[int]]:
    """Greedy tokens behind each prompt. Where they decide, the form writes them one by one; else it is given those of
    the trained model and says in one pass what it would write next: up to the first that differs, which is what is
    counted, that is the same."""
    if limits.greedy is not None:
        return [tokens for tokens, _ in form.greedy(reference.prompts, NEW_TOKENS)]
    out = []
    for prompt, tokens in zip(reference.prompts, reference.answers, strict=True):
        places = range(len(prompt) - 1, len(prompt) - 1 + len(tokens))
        out.append(form.logits([*prompt, *tokens[:-1]], list(places)).argmax(-1).tolist())
    return out


def agreement(reference: Evidence, greedy: Sequence[Sequence[int]], tie: float) -> tuple[int, int, int]:
    """(tokens that are the same, tokens that count, answers that come to a near tie) of greedy answers.

    Counted are the trained model's tokens before its first near tie, its end token the last of them: behind a token
    that differs, or behind the end, the texts are others.
    """
    same = counted = near = 0
    for tokens, gaps, theirs in zip(reference.answers, reference.gaps, greedy, strict=True):
        end = next((k + 1 for k, token in enumerate(tokens) if token in reference.ends), len(tokens))
        first = next((k for k, gap in enumerate(gaps[:end]) if gap < tie), None)
        upto = end if first is None else first
        near += first is not None
        counted += upto
        pairs = zip(tokens[:upto], theirs, strict=False)
        same += next((k for k, (a, b) in enumerate(pairs) if a != b), min(upto, len(theirs)))
    return same, counted, near
