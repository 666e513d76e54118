"""The figures of a comparison of an exported model with the trained one, and what is past its limit, in words."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from tuneloop.base.errors import RunError
from tuneloop.base.language import listed, t
from tuneloop.exports.limits import Limits, fewest, most
from tuneloop.model.precision import EXACT

ON_THE_LINE = ("kld", "same_top", "greedy")
"""Measures of a certificate that the console shows of an export that passed; parity.json has all of them."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an exported model is from the trained one. Differences are in logits, absolute.

    What stands below `rounded` is of the certificate of a model that writes (`certificate.py`); `limits` is None where
    there is none.
    """

    max_logit_difference: float
    mean_logit_difference: float
    same_tokens: int
    """Greedy tokens at the same place of both; where they do not decide, each behind the trained model's own."""
    of: int
    template_equal: bool
    passed: bool
    tolerance: float | None
    """Largest logit difference allowed; None where rounding moves single logits. With a certificate it decides in
    float32 alone: below that the distributions do."""
    trained_loss: float | None = None
    """Mean loss of a label token on held-out rows, in nats, of the model as it was trained and measured; None where the
    task has none, or there is nothing to measure it on."""
    exported_loss: float | None = None
    loss_tolerance: float | None = None
    rounded: bool = False
    """The trained model also rounds what it computes with (int8): logits are compared without that, losses with it."""
    target: str = "merged"
    answer_tokens: int = 0
    """Tokens at which next-token distributions were compared."""
    kld: float | None = None
    """Mean Kullback-Leibler divergence of the exported model's next token from the trained one's, in nats."""
    noise: float | None = None
    """Size of the difference of both models' logits over the size of the trained one's, each without its mean."""
    same_top: int = 0
    """Of `answer_tokens`, those at which both hold the same token for the most likely one; near ties count."""
    trained_answer_loss: float | None = None
    """Mean loss of the answer tokens, in nats; None where no dialogue has any."""
    exported_answer_loss: float | None = None
    greedy_same: int = 0
    """Of `greedy_of` greedy tokens before each answer's first near tie, those before the first that differs."""
    greedy_of: int = 0
    near_ties: int = 0
    """Greedy answers that come to a near tie."""
    ids_equal: bool = True
    missing_ends: tuple[int, ...] = ()
    """Tokens that end the trained model's answers, and not the exported one's."""
    limits: Limits | None = None
    cause: str | None = None
    """The likely cause of a difference past its limit, one of `causes.CAUSES` or "unknown"."""
    why: str = ""
    """The facts that speak for that cause, in words."""
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For parity.json: what is no finite number is None."""
        return {name: _plain_json(field) for name, field in asdict(self).items()} | {"allowed": self.allowed()}

    def allowed(self) -> dict[str, float | int | None]:
        """The limits as they were applied to so many tokens: the mean of few may be further off (`limits.most`)."""
        if self.limits is None:
            return {}
        limits, of = self.limits, self.answer_tokens
        return {
            "kld": most(limits.kld, of),
            "noise": limits.noise,
            "same_top": fewest(limits.same_top, of),
            "loss": most(limits.loss, of),
            "greedy": None if limits.greedy is None else fewest(limits.greedy, self.greedy_of),
        }

    def line(self) -> str:
        """One line for the console."""
        text = self._logits() if self.limits is None else t("; ").join(self._certified())
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
            tolerance=self.tolerance or 0.0,
            same=self.same_tokens,
            of=self.of,
            template=t("equal") if self.template_equal else t("different"),
        )

    def _certified(self) -> list[str]:
        """What a certificate says on one line; parity.json has all of it."""
        measures = self._measures()
        parts = [measures[name] for name in ON_THE_LINE if name in measures]
        equal = self.template_equal and self.ids_equal and not self.missing_ends
        return [
            *parts,
            t("chat template, token ids and end tokens equal") if equal else t("; ").join(self._text_faults()),
        ]

    def _measures(self) -> dict[str, str]:
        """Name of a measure -> its figure and its limit, in words; of a certificate."""
        limits, of = self.limits, self.answer_tokens
        out: dict[str, str] = {}
        if self.tolerance is not None and self.tolerance <= EXACT:
            out["logits"] = t(
                "largest logit difference {largest} (allowed {tolerance})",
                largest=_figure(self.max_logit_difference),
                tolerance=_figure(self.tolerance),
            )
        if limits is None:
            return out
        out["kld"] = t(
            "mean KL divergence over {of} answer tokens {kld} nats (allowed {limit})",
            of=of,
            kld=_figure(self.kld),
            limit=_figure(most(limits.kld, of)),
        )
        out["noise"] = t(
            "logits off by {noise} of their spread (allowed {limit})",
            noise=_figure(self.noise),
            limit=_figure(limits.noise),
        )
        out["same_top"] = t(
            "the same most likely token at {same} of {of} (at least {limit})",
            same=self.same_top,
            of=of,
            limit=fewest(limits.same_top, of),
        )
        if self.trained_answer_loss is not None:
            out["loss"] = t(
                "loss of an answer token {trained} as trained, {exported} exported (apart at most {limit})",
                trained=_figure(self.trained_answer_loss, ".4f"),
                exported=_figure(self.exported_answer_loss, ".4f"),
                limit=_figure(most(limits.loss, of)),
            )
        if limits.greedy is None:
            out["greedy"] = t(
                "greedy answers the same for {same} of {of} tokens", same=self.greedy_same, of=self.greedy_of
            )
        else:
            out["greedy"] = t(
                "greedy answers up to the first near tie the same for {same} of {of} tokens (at least {limit})",
                same=self.greedy_same,
                of=self.greedy_of,
                limit=fewest(limits.greedy, self.greedy_of),
            )
        return out

    def _text_faults(self) -> list[str]:
        ends = listed(map(str, self.missing_ends))
        return [
            *([] if self.template_equal else [t("the chat template renders another text")]),
            *([] if self.ids_equal else [t("texts become other token ids")]),
            *([t("end tokens {ids} are missing", ids=ends)] if ends else []),
        ]

    def past_limits(self) -> list[str]:
        """The names of the measures of a certificate that are past their limits; [] where none is.

        What is no number is past any limit.
        """
        if self.limits is None:
            return []
        limits, of = self.limits, self.answer_tokens
        apart = abs((self.trained_answer_loss or 0.0) - (self.exported_answer_loss or 0.0))
        held = abs((self.trained_loss or 0.0) - (self.exported_loss or 0.0))
        within = {
            "logits": self.tolerance is None or self.tolerance > EXACT or self.max_logit_difference <= self.tolerance,
            "kld": of > 0 and self.kld is not None and self.kld <= most(limits.kld, of),
            "noise": of > 0 and (self.noise is None or self.noise <= limits.noise),
            "same_top": self.same_top >= fewest(limits.same_top, of),
            "loss": self.trained_answer_loss is None or apart <= most(limits.loss, of),
            "greedy": limits.greedy is None or self.greedy_same >= fewest(limits.greedy, self.greedy_of),
            "held": self.loss_tolerance is None or held <= self.loss_tolerance,
        }
        return [name for name, is_within in within.items() if not is_within]

    def differences(self) -> str:
        """What differs, by how much, and what is allowed, in words."""
        if self.limits is None:
            return self.line()
        measures, past = self._measures(), self.past_limits()
        words = [*self._text_faults(), *(measures[name] for name in past if name in measures)]
        if "held" in past:
            words.append(
                t(
                    "loss on held-out rows {trained} as trained, {exported} exported (apart at most {limit})",
                    trained=_figure(self.trained_loss, ".4f"),
                    exported=_figure(self.exported_loss, ".4f"),
                    limit=_figure(self.loss_tolerance),
                )
            )
        return t("; ").join(words)


def _figure(number: float | None, form: str = ".3g") -> str:
    """
    >>> _figure(0.12345), _figure(float("nan"))
    ('0.123', 'no number')
    """
    return t("no number") if number is None or not math.isfinite(number) else format(number, form)


def _plain_json(field: Any) -> Any:
    """
    >>> _plain_json({"a": (1, float("inf"))})
    {'a': [1, None]}
    """
    if isinstance(field, dict):
        return {name: _plain_json(inner) for name, inner in field.items()}
    if isinstance(field, list | tuple):
        return [_plain_json(inner) for inner in field]
    return None if isinstance(field, float) and not math.isfinite(field) else field


def require(parity: Parity, where: str) -> None:
    """Raise TL-RUN-PARITY unless it passed: what differs, by how much, which limit, the likely cause, what to do."""
    if not parity.passed:
        raise RunError(
            "TL-RUN-PARITY",
            where=where,
            target=parity.target,
            differences=parity.differences(),
            cause=parity.why or t("not known"),
            remedy=parity.remedy or t("set model.dtype to float32 in a copy of the run's recipe and export again"),
        )
