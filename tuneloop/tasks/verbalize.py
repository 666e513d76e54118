"""Task classify_prompt: a template asks for a word, and each label has words of its own (template and verbalizer).

Source: Schick and Schütze 2021, "Exploiting Cloze Questions" (PET, arXiv:2001.07676); the words of a label are averaged
as OpenPrompt's ManualVerbalizer does (Ding et al. 2022, arXiv:2111.01998), and so are the tokens of a word.

A masked language model is asked at {mask}; a model that writes is asked for the next token behind the template. No
head is new, so the model answers before any training (zero-shot), and training starts from what it knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING

from tuneloop.base.errors import DataError, RecipeError
from tuneloop.base.language import listed, t
from tuneloop.base.records import Record
from tuneloop.data.batches.examples import Examples
from tuneloop.data.batches.pack import Batch
from tuneloop.data.tokens.control_tokens import control_tokens
from tuneloop.data.tokens.samples import Sequences, labels_of, starts_of
from tuneloop.data.tokens.templates import encode, encode_guarded
from tuneloop.model.backbone import callable_model, states, unwrap
from tuneloop.model.head import Head
from tuneloop.recipe.schema import TrainPart
from tuneloop.tasks.classify import class_weights, label_losses, labelled, ordered, probe
from tuneloop.tasks.heads import filler
from tuneloop.tasks.loss import LossModel, head_is_exact
from tuneloop.tasks.objective import Losses, Objective
from tuneloop.tasks.task import SplitView, Task, TaskContext

TEXT, MASK = "{text}", "{mask}"
FIELDS = (TEXT, "{text_a}", "{text_b}")
"""Where a row's text stands; of a pair {text} is both, one a line, and the others are each for itself."""
_GUESSES = {
    "pos": "great", "positive": "great", "1": "great", "good": "good",
    "neg": "terrible", "negative": "terrible", "0": "terrible", "bad": "bad",
}  # fmt: skip
_NO_BLANK = re.compile(r"[\s\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]")


def example(labels: Sequence[str], masked: bool = True) -> str:
    """A template and words for these labels, to write into a recipe.

    >>> example(["neg", "pos"])
    'classify: {template: "{text} It was {mask}.", words: {"neg": ["terrible"], "pos": ["great"]}}'
    """
    template = "{text} It was {mask}." if masked else "{text} It was"
    return f'classify: {{template: "{template}", {_words(labels)}}}'


def _words(labels: Sequence[str]) -> str:
    own = ", ".join(f'"{label}": ["{_GUESSES.get(label.lower(), label)}"]' for label in labels)
    return f"words: {{{own}}}"


def fills_masks(config: Any, tokenizer: Any) -> bool:
    """Whether the model with this configuration fills masks. Its head says it: a tokenizer may have a mask token
    (Gemma's has) though the model writes, and an encoder that was published without a head can be given one."""
    if getattr(tokenizer, "mask_token_id", None) is None:
        return False
    heads = [str(name) for name in getattr(config, "architectures", None) or ()]
    if any(name.endswith(("ForMaskedLM", "ForPreTraining")) for name in heads):
        return True
    if any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in heads):
        return False
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING


def is_masked(setting: TaskContext) -> bool:
    """Whether the model of a task fills masks; where nobody has asked its head, its tokenizer tells."""
    if setting.masked is not None:
        return setting.masked
    return getattr(setting.tokenizer, "mask_token_id", None) is not None


def parts(setting: TaskContext) -> tuple[str, str]:
    """The template before and behind the mask; behind is "" where the next token is asked for.

    Raises TL-RECIPE-PROMPT.
    """
    part, masked = setting.train.classify, is_masked(setting)
    template = part.template or ""

    def wrong(why: str) -> RecipeError:
        shown = example(setting.labels or sorted(part.words), masked)
        return RecipeError("TL-RECIPE-PROMPT", where="train.classify.template", error=why, example=shown)

    if not template.strip():
        raise wrong(t("there is none"))
    if [template.count(field) for field in FIELDS] not in ([1, 0, 0], [0, 1, 1]):
        raise wrong(
            t("{part} must stand in it once", part=t("{a}, or {b} and {c}", a=FIELDS[0], b=FIELDS[1], c=FIELDS[2]))
        )
    if masked:
        if template.count(MASK) != 1:
            raise wrong(t("{part} must stand in it once", part=MASK))
        before, behind = template.split(MASK)
        return before.rstrip(), behind
    before = template.rstrip()
    before = before.removesuffix(MASK).rstrip()  # the end of the text is where a model that writes is asked
    if MASK in before:
        raise wrong(t("a model that writes is asked at the end: nothing may stand behind {part}", part=MASK))
    if not _has_text(before):
        raise wrong(t("{part} must stand in it once", part=TEXT))
    return before, ""


def _has_text(part: str) -> bool:
    return any(field in part for field in FIELDS)


def _filled(part: str, texts: Sequence[str]) -> str:
    """A part of the template with a row's texts; a single text is its first of two, and the second is empty."""
    values = dict(zip(FIELDS, ("\n".join(texts), texts[0], "".join(texts[1:])), strict=True))
    return _FIELD.sub(lambda field: values[field[0]], part)


_FIELD = re.compile("|".join(map(re.escape, FIELDS)))


def word_ids(setting: TaskContext) -> list[list[list[int]]]:
    """Label -> word -> its token ids, as they follow the template.

    Raises TL-RECIPE-WORDS where a label has no word, or a word is unknown to the model or stands for two labels.
    """
    words, before = setting.train.classify.words, parts(setting)[0]
    unknown = getattr(setting.tokenizer, "unk_token_id", None)
    out, seen = [], dict[tuple[int, ...], str]()
    for label in setting.labels:
        own = []
        for word in words.get(label, ()):
            ids, why = _following(setting.tokenizer, before, word), ""
            if not ids:
                why = t("'{word}' has no token", word=word)
            elif unknown is not None and unknown in ids:
                why = t("'{word}' is not in the model's vocabulary", word=word)
            elif (one := seen.setdefault(tuple(ids), label)) != label:
                why = t("'{word}' stands for two labels, {one} and {two}", word=word, one=one, two=label)
            if why:
                raise RecipeError(
                    "TL-RECIPE-WORDS", where=f"train.classify.words.{label}", error=why, example=_words(setting.labels)
                )
            own.append(ids)
        out.append(own)
    return out


def _following(tokenizer: Any, before: str, word: str) -> list[int]:
    """The ids of a word behind the text `before`, with the blank between them.

    A tokenizer may begin each text with a blank of its own, so that the word alone is not the word in its sentence.
    """
    blank = "" if not before or _NO_BLANK.match(word[:1] or " ") else " "
    text = _filled(before, ["a", "a"])
    context, joined, alone = encode(tokenizer, [text, text + blank + word, blank + word])
    return joined[len(context) :] if joined[: len(context)] == context else alone


def classes(
    counts: Mapping[str, int], train: TrainPart, known: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The labels that have words, in order; the rows may have fewer. Raises TL-RECIPE-WORDS, TL-RECIPE-WEIGHTS."""
    words = train.classify.words
    labels = ordered(label for label, own in words.items() if own)
    lacking = sorted(set(counts) - set(labels))
    if lacking or len(labels) < 2:
        why = t("no words for {labels}", labels=listed(lacking)) if lacking else t("two labels are needed at least")
        shown = _words(sorted({*counts, *labels}))
        raise RecipeError("TL-RECIPE-WORDS", where="train.classify.words", error=why, example=shown)
    if train.classify.weights == "balanced":
        there = class_weights(train, {label: counts[label] for label in labels if counts.get(label)})
        of = dict(zip([label for label in labels if counts.get(label)], there, strict=True))
        return labels, tuple(of.get(label, 1.0) for label in labels)
    return labels, class_weights(train, dict.fromkeys(labels, 1))


def _texts(record: Record) -> list[str]:
    return [m.content for m in record.messages]


def samples(rows: SplitView, setting: TaskContext) -> Sequences:
    """The rows in the template, tokenised; the last token, or the mask, is where the word is asked for."""
    before, behind = parts(setting)
    tokenizer = setting.tokenizer
    guarded = control_tokens(tokenizer).guarded
    texts = [[guarded(text) for text in _texts(record)] for record in rows.records()]
    first = encode_guarded(tokenizer, [_filled(before, text) for text in texts])
    head, tail = _frame(tokenizer)
    if is_masked(setting):
        mask = [int(tokenizer.mask_token_id)]
        second = encode_guarded(tokenizer, [_filled(behind, text) for text in texts])
        ids = [[*head, *a, *mask, *b, *tail] for a, b in zip(first, second, strict=True)]
    else:
        ids = [[*head, *a] for a in first]
    flat = np.array([token for one in ids for token in one], np.int32)
    starts = starts_of(np.array([len(one) for one in ids], np.int64))
    n, trained = len(ids), np.zeros(len(flat), np.bool_)
    names = np.zeros(n, "S12")
    names[:] = [record.id for record in rows.records()]
    return Sequences(
        flat, trained, starts, labels_of(trained, starts), np.ones(n, np.bool_), np.arange(n, dtype=np.int32), names, n
    )


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and behind a text by itself."""
    inner, framed = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    at = next((k for k in range(len(framed)) if framed[k : k + len(inner)] == inner), len(framed))
    return framed[:at], framed[at + len(inner) :]


def _place(setting: TaskContext) -> int | None:
    """Where the word is asked for, counted from the side without a text: from a sample's start, below 0 from its end.

    None where a text stands on both sides of the mask.
    """
    before, behind = parts(setting)
    head, tail = _frame(setting.tokenizer)
    if not is_masked(setting):
        return -1
    if _has_text(before) and _has_text(behind):
        return None
    if _has_text(behind):
        return len(head) + len(encode(setting.tokenizer, [before])[0])
    return -1 - len(encode(setting.tokenizer, [behind])[0]) - len(tail)


class PromptModel(Objective):
    """Class-weighted cross entropy of the labels' words, by the language head at one position a text."""

    def __init__(self, model: nn.Module, ids: Tensor, setting: TaskContext) -> None:
        """`ids` int64 [1, length] is a text on which the way to the head is proven."""
        super().__init__(model)
        self.place = _place(setting)
        self.mask = getattr(setting.tokenizer, "mask_token_id", None)
        words = word_ids(setting)
        self.columns = sorted({token for own in words for word in own for token in word})
        place = {token: k for k, token in enumerate(self.columns)}
        share = torch.zeros(len(self.columns), len(words))
        for label, own in enumerate(words):
            for word in own:
                for token in word:
                    share[place[token], label] += 1 / (len(own) * len(word))
        self.share = share
        masked = is_masked(setting)
        self.fill = filler(model, ids) if masked else None
        self.own = self.fill is None and (masked or not head_is_exact(model, ids))

    def _at(self, segments: tuple[int, ...], ids: Tensor) -> list[int]:
        """Where each text of the row `ids` int64 [1, length] is asked, counted in the row."""
        ends = np.cumsum(segments)
        if self.place is None:
            masks = [(own[0] == self.mask).int().argmax() for own in ids.split(segments, 1)]
            return [int(end - size + mask) for end, size, mask in zip(ends, segments, masks, strict=True)]
        edge = ends if self.place < 0 else ends - segments
        at: list[int] = (edge + self.place).tolist()
        return at

    @property
    def chance(self) -> float | None:
        return math.log(self.share.shape[1])

    def scores(self, batch: Batch) -> Tensor:
        """Scores of the labels of each text of a batch, float32 [n, labels]: the mean logit of their words."""
        ids, segments = batch.input_ids, batch.segments
        if self.own:
            texts = ids.split(segments, 1)
            places = [self._at((text.shape[1],), text)[0] for text in texts]
            logits = torch.stack(
                [
                    callable_model(self.model)(input_ids=text).logits[0, at]
                    for text, at in zip(texts, places, strict=True)
                ]
            )
        else:
            at = torch.tensor(self._at(segments, ids), device=ids.device)
            hidden = states(self.model, ids, batch.position_ids, segments, batch.members).index_select(0, at)
            base = unwrap(self.model)
            logits = LossModel(self.model).head(hidden) if self.fill is None else self.fill(base, hidden)
        return logits[:, self.columns].float() @ self.share.to(logits.device)

    def forward(self, batch: Batch) -> Losses:
        return label_losses(self.scores(batch), batch)


def _head(setting: TaskContext, config: Any) -> Head:
    masked = fills_masks(config, setting.tokenizer)
    return Head("masked" if masked else "causal")


def _items(rows: SplitView, setting: TaskContext) -> Examples:
    budget = setting.train.token_budget
    if len(rows.samples) and (longest := int(rows.samples.lengths.max())) > budget:
        raise DataError("TL-DATA-TOO-LONG", where="train.token_budget", length=longest, budget=budget)
    return labelled(rows.samples, rows, setting)


def _objective(model: nn.Module, items: Examples, setting: TaskContext) -> PromptModel:
    return PromptModel(model, probe(items, model), setting)


CLASSIFY_PROMPT = Task(
    kinds=frozenset({"label"}),
    head=_head,
    items=_items,
    objective=_objective,
    answers="label",
    classes=classes,
    samples=samples,
)
