"""A GGUF file asked by llama.cpp itself, in a child process: an abort of ggml ends the child, and here it is an error.

Logits are compared, so the cache of keys and values is float32 and attention is not the fused one; llama.cpp's own
default is a float16 cache. Weights are used as the file has them. What llama.cpp does to activations for a type of
weights (float16 for F16, 8 bits in blocks for the quantised ones) it does here as well: that is how the file is served.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuneloop.base.environment import cores
from tuneloop.base.language import t
from tuneloop.gguf.child import LlamaChild
from tuneloop.gguf.llamacpp_child import STEP

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PATIENCE = 1800.0
"""Seconds that llama.cpp may take for one answer: loading, or one forward pass of at most STEP tokens."""


class LlamaCpp(LlamaChild):
    """llama.cpp with a GGUF file loaded, and LoRA adapters (`--lora`, scale 1) on it. Use it in a `with`.

    `context` is in tokens; `threads` are all cores that may be used where None. With `vocab_only` no weights are read
    and only texts can be asked about. `facts` is the file's metadata as llama.cpp reports it, text by key ("general.…",
    "tokenizer.chat_template"; no lists), `vocabulary` its number of tokens, `context` what it opened.

    Raises TL-MACHINE-EXTRA without the extra `gguf`, TL-MODEL-LLAMACPP for whatever llama.cpp does not do, with
    the last lines of its log.
    """

    def __init__(
        self,
        gguf: Path,
        *,
        adapters: Sequence[Path] = (),
        context: int = 4096,
        threads: int | None = None,
        vocab_only: bool = False,
        patience: float = PATIENCE,
    ) -> None:
        super().__init__(gguf, "tuneloop.gguf.llamacpp_child", patience)
        try:
            about, _ = self._ask(
                "load",
                gguf=str(gguf.resolve()),
                adapters=[str(adapter.resolve()) for adapter in adapters],
                context=context,
                threads=threads or cores(),
                vocab_only=vocab_only,
            )
        except BaseException:
            self.close()
            raise
        self.facts: dict[str, str] = about["facts"]
        self.vocabulary: int = about["vocabulary"]
        self.context: int = about["context"]
        self._ends: list[int] = about["ends"]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts; special tokens in a text are read as such, and none are added."""
        ids: list[list[int]] = self._ask("tokenize", texts=list(texts))[0]["ids"]
        return ids

    def detokenize(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Texts of token ids, special tokens written out."""
        texts: list[str] = self._ask("detokenize", ids=[[int(n) for n in row] for row in ids])[0]["texts"]
        return texts

    def ends(self) -> list[int]:
        """The tokens at which llama.cpp ends an answer."""
        return list(self._ends)

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        """Logits [positions, vocabulary] that `ids` have at `positions`; at i are those of the token at i + 1."""
        import numpy as np

        if outside := [p for p in positions if not 0 <= p < len(ids)]:
            raise self._error(t("position {n} of {count} tokens", n=outside[0], count=len(ids)))
        wanted = sorted({int(p) for p in positions})
        rows = [np.empty((0, self.vocabulary), np.float32)]
        for start in range(0, wanted[-1] + 1 if wanted else 0, STEP):
            outputs = [p - start for p in wanted if start <= p < start + STEP]
            rows.append(self._decode(ids[start : start + STEP], start, outputs))
        return np.concatenate(rows)[np.searchsorted(wanted, positions)]

    def greedy(
        self, ids: Sequence[int], new_tokens: int, *, banned: Collection[int] = ()
    ) -> tuple[list[int], list[float]]:
        """The likeliest continuation of `ids`: `new_tokens` tokens, and how sure each is.

        How sure: the gap between the two highest logits, over the standard deviation of that step's logits. It does not
        end at an end token; `banned` ids are never chosen (with `ends()` an answer goes on to its full length).
        """
        import numpy as np

        tokens, gaps = list[int](), list[float]()
        row = self.logits(ids, [len(ids) - 1])[0]
        for place in range(len(ids), len(ids) + new_tokens):
            spread = float(row.std(dtype=np.float64)) or 1.0
            row[list(banned)] = -np.inf
            second, first = np.argpartition(row, -2)[-2:]
            gaps.append(float(row[first] - row[second]) / spread)
            tokens.append(int(row.argmax()))
            if len(tokens) < new_tokens:
                row = self._decode(tokens[-1:], place, [0])[0]
        return tokens, gaps

    def _decode(self, ids: Sequence[int], start: int, outputs: list[int]) -> NDArray[np.float32]:
        import numpy as np

        _, payload = self._ask("decode", ids=[int(n) for n in ids], start=start, outputs=outputs)
        return np.frombuffer(payload, np.float32).reshape(len(outputs), self.vocabulary).copy()
