"""Parity: is what was exported the same model as what was trained?

The trained model (base and adapter) and the exported one, read back from disk, see the same dialogues. Compared are the
logits where the assistant speaks, greedy answers token by token, and the text the chat template renders. This says
nothing about how good the answers are; evaluation does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from tuneloop.data.templates import Chat, encode, render, stop_ids
from tuneloop.data.tokens import tokenize
from tuneloop.errors import RunError
from tuneloop.language import t
from tuneloop.model.classifier import Classifier
from tuneloop.model.scorer import Scorer
from tuneloop.model.trunk import plain
from tuneloop.records import Message, Record

NEW_TOKENS = 32
"""Tokens of each greedy answer that is compared."""
EXACT = 1e-3
"""Largest logit difference that float32 weights may show: adding the adapter first or last only reorders sums."""
ROUNDINGS = 8
"""For lower precision, how many units in the last place of the largest logit may differ; see `tolerance`."""
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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """One line for the console."""
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


def questions(chat: Chat) -> Chat:
    """The chat up to its last assistant turn: what the model is asked.

    >>> questions([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    [{'role': 'user', 'content': 'a'}]
    """
    last = max((i for i, m in enumerate(chat) if m["role"] == "assistant"), default=len(chat))
    return chat[:last]


@torch.no_grad()
def measure(model: nn.Module, tokenizer: Any, chats: Sequence[Chat]) -> Evidence:
    """What `model` says to `chats`, each with at least one assistant turn, whose positions are looked at."""
    model.eval()
    device = next(model.parameters()).device
    records = [Record(tuple(Message(m["role"], m["content"]) for m in chat)) for chat in chats]
    samples = tokenize(tokenizer, records)
    vocabulary = int(plain(model).config.get_text_config().vocab_size)
    most = max(1, MOST_LOGITS // (vocabulary * max(1, len(samples))))
    logits = []
    for sample in samples:
        # The logits at position i - 1 choose the token at i.
        places = torch.from_numpy(sample.trained[1:]).nonzero().flatten()
        if len(places) > most:
            places = places[torch.linspace(0, len(places) - 1, most).long()]
        ids = torch.from_numpy(sample.ids).long()[None].to(device)
        out = model(input_ids=ids, use_cache=False, logits_to_keep=places.to(device))
        logits.append(out.logits[0].float().cpu())
    prompts = [render(tokenizer, questions(chat), prompt=True) for chat in chats]
    texts = (*(render(tokenizer, chat) for chat in chats), *prompts)
    ids_of_texts = encode(tokenizer, list(texts))
    return Evidence(
        logits=tuple(logits),
        answers=tuple(_greedy(model, tokenizer, ids, device) for ids in ids_of_texts[len(chats) :]),
        texts=texts,
        ids=tuple(tuple(ids) for ids in ids_of_texts),
        dtype=next(plain(model).parameters()).dtype,
    )


def measure_labels(classifier: Classifier, texts: Sequence[str]) -> Evidence:
    """What a classifier says to texts: the logarithms of its probabilities, and its labels by number."""
    found = classifier.classify(texts)
    logits = [torch.tensor([list(of.values())], dtype=torch.float64).clamp_min(1e-30).log().float() for of in found]
    return Evidence(
        logits=tuple(logits),
        answers=tuple((int(row.argmax()),) for row in logits),
        texts=tuple(texts),
        ids=tuple(tuple(ids) for ids in encode(classifier.tokenizer, list(texts))),
        dtype=next(plain(classifier.model).parameters()).dtype,
    )


def measure_scores(scorer: Scorer, chats: Sequence[Chat]) -> Evidence:
    """What a reward model says to dialogues."""
    texts = [render(scorer.tokenizer, chat) for chat in chats]
    return Evidence(
        logits=tuple(torch.tensor([[score]]) for score in scorer.scores(chats)),
        answers=(),
        texts=tuple(texts),
        ids=tuple(tuple(ids) for ids in encode(scorer.tokenizer, texts)),
        dtype=next(plain(scorer.model).parameters()).dtype,
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


def tolerance(dtype: torch.dtype, largest: float) -> float:
    """The largest logit difference allowed for weights of `dtype` when logits reach `largest` in size.

    float32: 1e-3. Below that, merging rounds every weight once more, by up to half a unit in the last place (eps / 2,
    relative). Each layer passes on such an error in its output, independent of the others', so over n layers of two
    blocks each they add up to about sqrt(2 n) * eps / 2 of a logit: 4 to 6 eps for 30 to 80 layers. 8 leaves room.
    SmolLM2-135M and a random adapter showed 0.94 of 1.98 allowed in bfloat16, 0.13 of 0.25 in float16. An adapter that
    moves no logit by more than that is below what the type resolves, and cannot be told from none at all.

    >>> tolerance(torch.float32, 30.0), round(tolerance(torch.bfloat16, 16.0), 3)
    (0.001, 1.0)
    """
    if dtype in (torch.float32, torch.float64):
        return EXACT
    return max(EXACT, ROUNDINGS * torch.finfo(dtype).eps * largest)


def compare(trained: Evidence, exported: Evidence) -> Parity:
    """Hold the exported model's evidence against the trained one's, taken with the same chats.

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
    return Parity(
        max_logit_difference=largest,
        mean_logit_difference=total / max(1, count),
        same_tokens=same,
        of=of,
        template_equal=template_equal,
        passed=bool(largest <= allowed and template_equal and (same == of or not exact)),
        tolerance=allowed,
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
