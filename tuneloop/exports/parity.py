"""Parity: is what was exported the same model as what was trained?

The trained model (base and adapter) and the exported one, read back from disk, see the same dialogues. Compared are the
logits where the assistant speaks, greedy answers token by token, and the text the chat template renders. This says
nothing about how good the answers are; evaluation does. Of models that write, `certificate.py` says more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tuneloop.base.errors import DataError
from tuneloop.base.records import Message, Record
from tuneloop.data.tokens.encode import Sequences, tokenize
from tuneloop.data.tokens.templates import Chat, encode, render, stop_ids
from tuneloop.exports.figures import Parity, require
from tuneloop.exports.forms import computing_dtype, greedy_tokens, logits_at, mean_loss
from tuneloop.exports.tensors import TrainedWeights, source_of
from tuneloop.model.backbone import longest, unwrap
from tuneloop.model.precision import EXACT, tolerance

__all__ = ["EXACT", "Evidence", "Parity", "compare", "measure", "questions", "require", "tolerance"]

NEW_TOKENS = 32
"""Tokens of each greedy answer that is compared."""
MOST_ROWS = 64
"""Held-out rows whose loss is compared, at most; of `HELD` tokens together."""
PEAK = 10
"""How far the largest number of what a layer multiplies stands out, in root mean squares of it; see `int8_loss`."""
MOST_LOGITS = 1 << 26
"""Numbers kept of one model's logits (256 MiB); of longer dialogues evenly spread positions are taken."""
ANSWER_TOKENS = 256
"""Answer tokens whose logits are compared, where the dialogues and the held-out rows have so many."""
LONGEST = 2048
"""Tokens of a dialogue that are read at a time; of a longer one those around the beginning of its answer."""
TEXTS = (
    "In 2024, 1234567 people paid $3.50 each; it's what they'd've called \"cheap\".",
    "今天是2024年5月1日，天气很好，气温25℃。你好！请问“词元”是什么意思？",
    "def add(a, b):\n    return a + b  # 12 + 345 = 357\n\n\nprint(add(1, 22))\n",
    "  Two spaces,\ttabs\tand\n\n  indented lines.   HTTPServer isn't CamelCase_42.",
    "Größe, naïve, Ελληνικά, русский, 日本語テスト, 한국어, 🙂👍🏽 …",
)
"""Digits, contractions, spaces, code and scripts: what pre-tokenizers cut differently. Tokenised beside the dialogues.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What one model says to the dialogues.

    `logits` are float32 [positions, vocabulary] per sample, on the CPU; `answers` the greedy token ids per dialogue;
    `texts` and `ids` what the tokenizer makes of each dialogue, whole and as a prompt, and of texts without a template.
    """

    logits: tuple[Tensor, ...]
    answers: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    loss: float | None = None
    """Mean loss of a label token on held-out rows, in nats; None where there are none."""
    layers: int = 0
    samples: tuple[tuple[Tensor, Tensor], ...] = ()
    """The tokens, int64 [length], and the positions of each of `logits`."""
    prompts: tuple[tuple[int, ...], ...] = ()
    gaps: tuple[tuple[float, ...], ...] = ()
    """How far the best token of each greedy step is ahead of the second, in standard deviations of its logits."""
    chats: tuple[Chat, ...] = ()
    held: tuple[Record, ...] = ()
    ends: frozenset[int] = frozenset()
    """Tokens at which the trained model's answers end."""
    source: TrainedWeights | None = None
    template_changed: bool = False
    """The chat template is not the one that the run recorded when it ended."""

    @property
    def plain_texts(self) -> int:
        """Of `texts`, those at the end that no template has touched."""
        return len(self.texts) - 2 * len(self.chats)

    @property
    def context(self) -> int:
        """Tokens that a program must be able to hold to be asked the same."""
        lengths = [*(len(ids) for ids, _ in self.samples), *(len(ids) + NEW_TOKENS for ids in self.prompts)]
        return max(lengths, default=0)


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
    Where the chats have few answer tokens, positions of `held` are looked at as well.
    """
    model.eval()
    texts = (
        *(render(tokenizer, chat) for chat in chats),
        *(render(tokenizer, questions(chat), prompt=True) for chat in chats),
        *(m["content"] for chat in chats for m in chat if isinstance(m["content"], str) and m["content"]),
        *TEXTS,
    )
    ids_of_texts = encode(tokenizer, list(texts))
    at_once = max(2, min(LONGEST, longest(model) - NEW_TOKENS))
    prompts = [ids[-at_once:] for ids in ids_of_texts[len(chats) : 2 * len(chats)]]
    samples = _spread(_samples(tokenizer, chats, prompts, held), model, at_once)
    greedy = greedy_tokens(model, prompts, NEW_TOKENS)
    return Evidence(
        logits=tuple(logits_at(model, ids, places) for ids, places in samples),
        answers=tuple(tuple(tokens) for tokens, _ in greedy),
        texts=texts,
        ids=tuple(tuple(ids) for ids in ids_of_texts),
        dtype=computing_dtype(model),
        loss=mean_loss(model, tokenizer, held),
        layers=int(unwrap(model).config.get_text_config().num_hidden_layers),
        samples=tuple(samples),
        prompts=tuple(tuple(ids) for ids in prompts),
        gaps=tuple(tuple(gaps) for _, gaps in greedy),
        chats=tuple(chats),
        held=tuple(held),
        ends=stop_ids(tokenizer),
        source=source_of(model),
    )


def _samples(
    tokenizer: Any, chats: Sequence[Chat], prompts: Sequence[list[int]], held: Sequence[Record]
) -> list[tuple[Tensor, Tensor]]:
    """Tokens and positions of all chats, and of held-out rows until there are `ANSWER_TOKENS` positions."""
    out = [
        one
        for chat, prompt in zip(chats, prompts, strict=True)
        for one in _answer_positions(tokenizer, chat) or [(torch.tensor(prompt), torch.tensor([len(prompt) - 1]))]
    ]
    for record in held:
        if sum(len(places) for _, places in out) >= ANSWER_TOKENS:
            break
        out += _positions(tokenize(tokenizer, [record]))
    return out


def _spread(samples: list[tuple[Tensor, Tensor]], model: nn.Module, at_once: int) -> list[tuple[Tensor, Tensor]]:
    """The samples cut to `at_once` tokens around the beginning of their answers, and so many positions, evenly spread,
    that the logits of all are at most `MOST_LOGITS` numbers."""
    vocabulary = int(unwrap(model).config.get_text_config().vocab_size)
    positions = max(1, MOST_LOGITS // (vocabulary * max(1, len(samples))))
    out = []
    for ids, places in samples:
        if len(ids) > at_once:
            start = max(0, int(places[0]) + 1 - at_once // 2)
            ids, places = ids[start : start + at_once], places[places < start + at_once] - start
        if len(places) > positions:
            places = places[torch.linspace(0, len(places) - 1, positions).long()]
        out.append((ids, places))
    return out


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
    return _positions(samples)


def _positions(samples: Sequences) -> list[tuple[Tensor, Tensor]]:
    """Tokens of each sample, and the positions whose logits choose its answer: those at i - 1 choose the token at i."""
    pairs = [(torch.from_numpy(s.ids).long(), torch.from_numpy(s.trained[1:]).nonzero().flatten()) for s in samples]
    return [(ids, places) for ids, places in pairs if len(places)]


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
    ids_equal = trained.ids == exported.ids
    template_equal = trained.texts == exported.texts and ids_equal and not trained.template_changed
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
    same, of = places_equal(trained.answers, exported.answers)
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
        ids_equal=ids_equal,
    )


def places_equal(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> tuple[int, int]:
    """(tokens at the same place that are equal, tokens of the longer answer), over all answers.

    >>> places_equal([[1, 2, 3], [4]], [[1, 9], [4]])
    (2, 4)
    """
    same = sum(x == y for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=False))
    return same, sum(max(len(left), len(right)) for left, right in zip(a, b, strict=True))
