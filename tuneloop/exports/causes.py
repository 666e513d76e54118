"""Causes of a failed certificate: what is measured only then, and which fact each cause goes by.

A cause is a function of the case: a `Cause` where its fact holds, None where it does not. Those of the text come by
what the form renders and cuts; those of the weights read both models' tensors, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from safetensors import SafetensorError

from tuneloop.base.errors import TuneloopError
from tuneloop.base.language import listed, t
from tuneloop.exports.differing import TensorComparison, TensorDifference, compare_tensors, is_permuted, is_transposed
from tuneloop.exports.forms import Form
from tuneloop.exports.limits import LIMITS, rounding_of
from tuneloop.exports.parity import Evidence, Parity

BEFORE, SHOWN = 10, 40
"""Characters of a text that a message shows, before the first difference and from there on."""
ALIKE = 0.5
"""Share of the adapted weights that must be scaled by the same factor to speak of the adapter's scale."""
LARGE = 0.3
"""Difference from a weight, over its size, from which on it is another weight and not a rounded one."""


@dataclass(frozen=True, slots=True)
class Cause:
    """A likely cause by its name, the facts that speak for it, and what to do, in words."""

    name: str
    why: str
    remedy: str


@dataclass
class Case:
    """A certificate that failed: what causes are sought in."""

    reference: Evidence
    form: Form
    parity: Parity
    texts: Sequence[str | None]
    ids: Sequence[Sequence[int]]

    @cached_property
    def comparison(self) -> TensorComparison | None:
        """Both models' tensors held against each other; None where one's are not known, or cannot be read."""
        source = self.reference.source
        with suppress(TuneloopError, OSError, SafetensorError):
            return None if source is None else compare_tensors(source, self.form.tensors())
        return None


def template(case: Case) -> Cause | None:
    """Another rendering, or a template that is not the one that the run recorded."""
    if case.parity.template_equal:
        return None
    remedy = t("put the chat template back that the run was trained with, then export again")
    if case.reference.template_changed:
        return Cause("template", t("the run's chat template was changed after training"), remedy)
    if None in case.texts:
        return Cause("template", t("the export brings no chat template"), remedy)
    ours, theirs = next((a, b) for a, b in zip(case.reference.texts, case.texts, strict=True) if a != b)
    at = next((k for k, (a, b) in enumerate(zip(ours, theirs or "", strict=False)) if a != b), 0)
    words = t(
        "the chat template was changed after training: it writes {theirs} where the trained one writes {ours}",
        theirs=repr((theirs or "")[max(0, at - BEFORE) : at + SHOWN]),
        ours=repr(ours[max(0, at - BEFORE) : at + SHOWN]),
    )
    return Cause("template", words, remedy)


def special_tokens(case: Case) -> Cause | None:
    """Texts without a template's tokens are cut alike, rendered ones are not."""
    first = _first_other(case)
    if first is None or _plain_differ(case):
        return None
    words = t(
        "a special token of the chat template is cut like ordinary text: {shown} becomes other ids",
        shown=repr(first[:SHOWN]),
    )
    return Cause("special-tokens", words, t("report it with the line above: the tokenizer was written wrongly"))


def pre_tokenizer(case: Case) -> Cause | None:
    """Texts without a template's tokens are cut otherwise."""
    if not _plain_differ(case):
        return None
    first = next(
        (a, b, text)
        for a, b, text in zip(case.reference.ids, case.ids, case.reference.texts, strict=True)
        if list(a) != list(b)
    )
    ours, theirs, text = first
    at = next((k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    words = t(
        "wrong pre-tokenizer: {shown} becomes other ids from token {at} on ({theirs} instead of {ours})",
        shown=repr(text[:SHOWN]),
        at=at,
        theirs=list(theirs[at : at + 3]),
        ours=list(ours[at : at + 3]),
    )
    return Cause("pre-tokenizer", words, t("report it with the line above: the tokenizer was written wrongly"))


def _first_other(case: Case) -> str | None:
    pairs = zip(case.reference.ids, case.ids, case.reference.texts, strict=True)
    return next((text for a, b, text in pairs if list(a) != list(b)), None)


def _plain_differ(case: Case) -> bool:
    """Whether the form cuts a text that no template has touched otherwise."""
    count = case.reference.plain_texts
    return [list(row) for row in case.reference.ids[-count:]] != [list(row) for row in case.ids[-count:]]


def end_token(case: Case) -> Cause | None:
    """The form does not end where the trained model does."""
    if not case.parity.missing_ends:
        return None
    words = t(
        "lost end token: programs that read the export do not end an answer at {ids}",
        ids=listed(map(str, case.parity.missing_ends)),
    )
    return Cause("end-token", words, t("name the template's end token in the tokenizer and the generation config"))


def not_finite(case: Case) -> Cause | None:
    """A tensor holds what is no number."""
    broken = [one.name for one in _tensors(case) if not one.finite]
    if not broken:
        return None
    words = t("{name} holds what is no number (NaN or infinite)", name=broken[0])
    return Cause("not-finite", words, t("export in float32 or bfloat16: the weights are too large for this type"))


def missing(case: Case) -> Cause | None:
    """A tensor of the trained model is not in the export: a bias by its name, or another."""
    names = case.comparison.missing if case.comparison else ()
    if not names:
        return None
    bias = [name for name in names if name.endswith(".bias")]
    name = (bias or list(names))[0]
    more = len(names) - 1
    words = (
        t("{name} and {n} tensors more are missing", name=name, n=more) if more else t("{name} is missing", name=name)
    )
    remedy = t("report it with the line above: this architecture was written wrongly")
    return Cause("missing-bias" if bias else "missing-tensor", words, remedy)


def shape(case: Case) -> Cause | None:
    """A tensor has another shape than in the trained model."""
    others = [one for one in _tensors(case) if one.shape != one.trained_shape]
    if not others:
        return None
    words = t(
        "{name} is of shape {theirs} and not {ours}",
        name=others[0].name,
        theirs=list(others[0].shape),
        ours=list(others[0].trained_shape),
    )
    return Cause("shape", words, t("report it with the line above: this architecture was written wrongly"))


def transposed(case: Case) -> Cause | None:
    """The tensor that differs most is the trained one's transpose, or has its rows in another order."""
    worst = max(_tensors(case), key=lambda one: one.difference, default=None)
    if worst is None or worst.difference < LARGE or case.comparison is None:
        return None
    trained, exported = case.comparison.pair(worst.name)
    remedy = t("report it with the line above: this architecture was written wrongly")
    if is_transposed(trained, exported):
        return Cause("transposed", t("{name} is the transpose of the trained weight", name=worst.name), remedy)
    if is_permuted(trained, exported):
        words = t("{name} has the rows of the trained weight in another order", name=worst.name)
        return Cause("permuted", words, remedy)
    return None


def scale(case: Case) -> Cause | None:
    """What was added to the base is a multiple of the adapter, the same in most of its weights.

    Coarse types round a sum that is small beside their steps up or away, all the more where the base lies on such steps
    itself: a multiple is then no fact while every weight is as near as the type allows.
    """
    if _near_as_allowed(case):
        return None
    factors = [(one.factor, one.spread) for one in _tensors(case) if one.factor is not None]
    if not factors:
        return None
    middle = median(factor for factor, _ in factors)
    room_for = 0.02 + 5 * median(spread for _, spread in factors)
    alike = sum(abs(factor - middle) <= max(0.1 * abs(middle), room_for) for factor, _ in factors)
    if abs(middle - 1) <= max(0.05, room_for) or alike < ALIKE * len(factors):
        return None
    remedy = t("report it with the line above: the adapter was added wrongly")
    if abs(middle - 2) <= max(0.1, room_for):
        words = t("the adapter was applied twice: the weights have {factor:.2f} times what it adds", factor=middle)
        return Cause("applied-twice", words, remedy)
    if abs(middle) <= max(0.05, room_for):
        words = t("the adapter was not applied: the weights have {factor:.2f} times what it adds", factor=middle)
        return Cause("not-applied", words, remedy)
    words = t("wrong scale of the merge: the weights have {factor:.2f} times what the adapter adds", factor=middle)
    return Cause("merge-scale", words, remedy)


def rounding(case: Case) -> Cause | None:
    """All weights are near the trained ones, and further than their type rounds."""
    allowed = _rounding(case)
    others = [one for one in _tensors(case) if one.difference > allowed]
    if not others or max(one.difference for one in others) > LARGE:
        return None
    worst = max(others, key=lambda one: one.difference)
    if abs(worst.lean) > 0.5 * worst.difference:  # a rounding leans to no side: this one is scaled
        return None
    words = t(
        "wrong rounding: {name} is off by {difference:.2%} of its size, this type rounds by at most {allowed:.2%}",
        name=worst.name,
        difference=worst.difference,
        allowed=allowed,
    )
    return Cause("rounding", words, t("report it with the line above: the weights were written in another type"))


def unknown(case: Case) -> Cause:
    """No fact tells; the tensor that differs most is named."""
    worst = max(_tensors(case), key=lambda one: one.difference, default=None)
    remedy = t("set model.dtype to float32 in a copy of the run's recipe and export again, and report it if it stays")
    if worst is None:
        return Cause("unknown", t("not known: the trained weights could not be read again"), remedy)
    if _near_as_allowed(case):
        words = t("every weight is as near as this type allows: this model loses more by it than others")
        return Cause("type", words, t("take a finer type: gguf-q8_0, gguf-q6_k or gguf-q5_k_m lose less"))
    if worst.difference <= _rounding(case):
        words = t("not known: all weights are as near as their type allows, so what reads them computes otherwise")
        return Cause("unknown", words, remedy)
    words = t(
        "not known: {name} differs most, by {difference:.2%} of its size",
        name=worst.name,
        difference=worst.difference,
    )
    return Cause("unknown", words, remedy)


def _tensors(case: Case) -> Sequence[TensorDifference]:
    return case.comparison.tensors if case.comparison else ()


def _near_as_allowed(case: Case) -> bool:
    """Whether the target is of a coarse type, and each tensor within what that rounds."""
    limits, allowed = LIMITS.get(case.parity.target), _rounding(case)
    coarse = limits is not None and limits.greedy is None
    return coarse and all(one.difference <= allowed for one in _tensors(case))


def _rounding(case: Case) -> float:
    source = case.reference.source
    return rounding_of(case.parity.target, case.form.dtype, case.reference.dtype, source.moved if source else 0.0)


OF_THE_TEXT: tuple[Callable[[Case], Cause | None], ...] = (template, special_tokens, pre_tokenizer, end_token)
OF_THE_WEIGHTS: tuple[Callable[[Case], Cause | None], ...] = (
    not_finite, missing, shape, transposed, scale, rounding, unknown,
)  # fmt: skip
"""In the order in which they are tried; the first whose fact holds is named."""


def causes_of(
    reference: Evidence, form: Form, parity: Parity, texts: Sequence[str | None], ids: Sequence[Sequence[int]]
) -> list[Cause]:
    """The likely causes of what is past its limit, at least one: all of the text, the first of the weights.

    `texts` and `ids` are what the form makes of the reference's texts.
    """
    case = Case(reference, form, parity, texts, ids)
    causes = [cause for sought in OF_THE_TEXT if (cause := sought(case)) is not None]
    past = set(parity.past_limits())
    if causes:  # held-out rows are rendered and cut by the form itself
        past.discard("held")
    if past or not causes:
        causes += [next(cause for sought in OF_THE_WEIGHTS if (cause := sought(case)) is not None)]
    return causes
