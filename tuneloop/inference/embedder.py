"""Embeddings of texts by an encoder: one vector a text, pooled as the model's own files say (sentence-transformers)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, AutoModel

from tuneloop.base.errors import ModelError, ServeError
from tuneloop.base.language import t
from tuneloop.base.records import Message, Record
from tuneloop.data.tokens.encode import tokenize
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.backbone import longest
from tuneloop.model.load import from_files, require_weights
from tuneloop.model.vocabulary import require_rows

MODULES = "modules.json"
"""sentence-transformers' list of what a text goes through."""
TOKENS = 8192
"""Tokens of a batch, padding counted."""


def _weighted(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask * torch.arange(1, states.shape[1] + 1, device=states.device)[:, None]
    return (states * weights).sum(1) / weights.sum(1)


def _last(states: Tensor, mask: Tensor) -> Tensor:
    return states[torch.arange(len(states), device=states.device), mask[..., 0].long().sum(1) - 1]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pooling_mode_cls_token": lambda states, mask: states[:, 0],
    "pooling_mode_max_tokens": lambda states, mask: states.masked_fill(mask == 0, -torch.inf).amax(1),
    "pooling_mode_mean_tokens": lambda states, mask: (states * mask).sum(1) / mask.sum(1),
    "pooling_mode_mean_sqrt_len_tokens": lambda states, mask: (states * mask).sum(1) / mask.sum(1).sqrt(),
    "pooling_mode_weightedmean_tokens": _weighted,
    "pooling_mode_lasttoken": _last,
}  # fmt: skip
"""Key of 1_Pooling/config.json -> the vectors of a batch: states float32 [n, length, width] and mask float32
[n, length, 1], padded on the right, -> [n, width]. Several that are true stand behind each other, in this order."""


def is_encoder(folder: Path) -> bool:
    """Whether the model in a folder is one that embeds texts: sentence-transformers' files say so, or it fills masks
    and has no head for labels."""
    if (folder / MODULES).is_file():
        return True
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    heads = [str(name) for name in getattr(config, "architectures", None) or ()]
    others = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "Classification", "ForQuestionAnswering")
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not any(name.endswith(others) for name in heads)


def load_embedder(folder: Path) -> Embedder:
    """The embedder of a model folder, on the CPU.

    Raises TL-MODEL-CONFIG, TL-MODEL-TOKENIZER, TL-MODEL-WEIGHTS where a weight is in no file.
    """
    model, info = from_files(AutoModel, folder)
    missing = (name for name in info["missing_keys"] if not name.startswith("pooler."))  # nothing goes through it
    require_weights(folder, sorted(missing))
    return Embedder(model, load_tokenizer(folder))


class Embedder:
    """Embeds texts with an encoder without a head and its tokenizer. Not for several threads at once.

    The folder that the model was loaded from says how its token vectors are pooled and whether the vector is of length
    1; where it says nothing, they are averaged, and it is.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        folder = Path(str(getattr(model, "name_or_path", "") or ""))
        self._poolings, self._normalised = _pooled_as(folder)
        most = _read(folder / "sentence_bert_config.json").get("max_seq_length")
        self.context = min(longest(model), most) if isinstance(most, int) and most > 0 else longest(model)
        """Longest text in tokens."""
        widths: Any = model.config
        self.width = len(self._poolings) * int(widths.hidden_size)
        """Numbers of a vector."""

    def ids(self, text: str | Sequence[int]) -> list[int]:
        """Token ids of a text with those that the tokenizer puts around it; ids are left as they are."""
        if not isinstance(text, str):
            return list(text)
        sample = tokenize(self.tokenizer, [Record((Message("user", text),), kind="label")])[0]
        return [int(token) for token in sample.ids]

    @torch.no_grad()
    def embed(self, texts: Sequence[str | Sequence[int]]) -> NDArray[np.float32]:
        """The vectors of texts, or of their token ids: float32 [n, width].

        Raises TL-SERVE-CONTEXT for one that is too long, TL-SERVE-TOKEN for ids that the model does not have,
        TL-SERVE-REQUEST for one without any.
        """
        rows = [self.ids(text) for text in texts]
        for row in rows:
            if len(row) > self.context:
                raise ServeError("TL-SERVE-CONTEXT", tokens=len(row), context=self.context)
            if not row or min(row) < 0:
                raise ServeError("TL-SERVE-REQUEST", where="input", error=t("there is no text to embed"))
        require_rows(self.model, self.tokenizer, rows)
        out = np.zeros((len(rows), self.width), np.float32)
        for places in _batches([len(row) for row in rows]):
            out[places] = self._vectors([rows[at] for at in places]).cpu().numpy()
        return out

    def _vectors(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """float32 [n, width] of rows that are padded to the longest one."""
        most, pad = max(map(len, rows)), self.tokenizer.pad_token_id or 0
        device = next(self.model.parameters()).device
        ids = torch.tensor([[*row, *[pad] * (most - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (most - len(row)) for row in rows], device=device)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        pooled = torch.cat([POOLINGS[name](states, mask[..., None].float()) for name in self._poolings], -1)
        return nn.functional.normalize(pooled, dim=-1) if self._normalised else pooled


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The places of texts that are padded together, of at most `TOKENS` tokens: neighbours in length.

    >>> list(_batches([3, 5000, 2, 4000]))
    [[2, 0], [3], [1]]
    """
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[at] > TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def _pooled_as(folder: Path) -> tuple[tuple[str, ...], bool]:
    """Keys of `POOLINGS`, and whether the vector is brought to length 1, as the folder's files say.

    Raises TL-MODEL-CONFIG for a step that is not known here.
    """
    if not (folder / MODULES).is_file():
        return ("pooling_mode_mean_tokens",), True
    poolings: tuple[str, ...] = ("pooling_mode_mean_tokens",)
    normalised = False
    for module in json.loads((folder / MODULES).read_text(encoding="utf-8")):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            config = _read(folder / str(module.get("path", "")) / "config.json")
            mode = str(config.get("pooling_mode", ""))  # newer files name it: "mean", "cls", "lasttoken"
            named = (
                {f"pooling_mode_{mode}", f"pooling_mode_{mode}_token", f"pooling_mode_{mode}_tokens"} if mode else set()
            )
            poolings = tuple(name for name in POOLINGS if config.get(name) is True or name in named)
        elif kind == "Normalize":
            normalised = True
        elif kind != "Transformer":
            raise ModelError("TL-MODEL-CONFIG", where=str(folder / MODULES), error=t("the step {kind}", kind=kind))
    if not poolings:
        raise ModelError("TL-MODEL-CONFIG", where=str(folder / MODULES), error=t("no pooling that is known"))
    return poolings, normalised


def _read(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
