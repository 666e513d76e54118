"""Translation by local sequence-to-sequence models: one that knows many languages, or one for each direction.

Known are the models of transformers that say the target language by a first token (M2M100, NLLB, mBART-50),
by a mark in front of the text (MADLAD-400), and those of one direction (Marian, Opus-MT). Only safetensors are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM

from tuneloop.base.errors import DataError
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.model.load import from_files, placed, require_weights

BATCH = 16
"""Sentences translated at once."""
LONGEST = 512
"""Tokens of a sentence where the model does not say."""
_CODES = {
    "zh": ("zho_Hans", "zh_CN"), "en": ("eng_Latn", "en_XX"), "ja": ("jpn_Jpan", "ja_XX"), "ko": ("kor_Hang", "ko_KR"),
    "de": ("deu_Latn", "de_DE"), "fr": ("fra_Latn", "fr_XX"), "es": ("spa_Latn", "es_XX"), "ru": ("rus_Cyrl", "ru_RU"),
    "it": ("ita_Latn", "it_IT"), "pt": ("por_Latn", "pt_XX"), "vi": ("vie_Latn", "vi_VN"), "ar": ("arb_Arab", "ar_AR"),
    "nl": ("nld_Latn", "nl_XX"), "pl": ("pol_Latn", "pl_PL"), "tr": ("tur_Latn", "tr_TR"),
    "id": ("ind_Latn", "id_ID"), "hi": ("hin_Deva", "hi_IN"), "uk": ("ukr_Cyrl", "uk_UA"), "sv": ("swe_Latn", "sv_SE"),
}  # fmt: skip
"""Language -> what NLLB and mBART-50 call it."""
_SENTENCE = re.compile(r"\n+|[^\n]+?(?:[。！？!?；;]+|\.(?=\s)|(?=\n)|\Z)")
_UNSPACED = ("zh", "ja", "th")


class Translator:
    """One model for every direction, or two: the first translates into `via`, the second out of it."""

    def __init__(self, folders: Sequence[Path], via: str) -> None:
        """Raises TL-MODEL-CONFIG where a folder's model translates nothing."""
        self.models = [_Model(folder) for folder in folders]
        self.via = via

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str]:
        """The texts in another language, sentence by sentence; "" where a sentence is too long or does not end.

        Raises TL-DATA-TRANSLATOR where the model does not know a language.
        """
        model = self.models[0] if target == self.via or len(self.models) == 1 else self.models[1]
        pieces = [list(_pieces(text)) for text in texts]
        spoken = [piece for parts in pieces for piece in parts if piece.strip()]
        translated = dict(zip(spoken, model.translate(spoken, source, target), strict=True))
        return [_joined([translated.get(p, p) if p.strip() else p for p in parts], target) for parts in pieces]


def _pieces(text: str) -> Iterator[str]:
    """Sentences, and the line breaks between them.

    >>> list(_pieces("Hello. How are you?\\nFine."))
    ['Hello.', 'How are you?', '\\n', 'Fine.']
    """
    for match in _SENTENCE.finditer(text):
        piece = match[0] if match[0].isspace() and "\n" in match[0] else match[0].strip()
        if piece:
            yield piece


def _joined(parts: Sequence[str], tongue: str) -> str:
    """Sentences as one text again; "" where one of them is lost.

    >>> _joined(["Hello.", "How are you?", "\\n", "Fine."], "en"), _joined(["你好。", "再见。"], "zh")
    ('Hello. How are you?\\nFine.', '你好。再见。')
    >>> _joined(["Hello.", ""], "en")
    ''
    """
    if not all(parts):
        return ""
    text = ("" if tongue in _UNSPACED else " ").join(parts)
    return re.sub(r" *(\n+) *", r"\1", text)


class _Model:
    """A sequence-to-sequence model and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer: Any = load_tokenizer(folder)
        model, info = from_files(AutoModelForSeq2SeqLM, folder)
        require_weights(folder, sorted(info["missing_keys"]))
        self.model: Any = placed(model)
        self.longest = int(getattr(model.config, "max_position_embeddings", 0) or LONGEST)

    @torch.inference_mode()
    def translate(self, sentences: Sequence[str], source: str, target: str) -> list[str]:
        """One translation a sentence; "" where it is too long for the model or does not come to an end."""
        prefix, options = self._directed(source, target)
        rows = [self.tokenizer(prefix + s)["input_ids"] for s in sentences]
        out = [""] * len(rows)
        order = sorted((n for n, row in enumerate(rows) if len(row) <= self.longest), key=lambda n: len(rows[n]))
        for at in range(0, len(order), BATCH):
            group = order[at : at + BATCH]
            padded = self.tokenizer.pad({"input_ids": [rows[n] for n in group]}, return_tensors="pt")
            most = min(2 * padded["input_ids"].shape[1] + 32, self.longest - 1)
            tokens = self.model.generate(
                input_ids=padded["input_ids"].to(self.model.device),
                attention_mask=padded["attention_mask"].to(self.model.device),
                max_new_tokens=most,
                do_sample=False,
                **options,
            )
            for n, row in zip(group, tokens.tolist(), strict=True):
                if self._ended(row[1:]):
                    written = [i for i in row if i != options.get("forced_bos_token_id")]
                    out[n] = str(self.tokenizer.decode(written, skip_special_tokens=True)).strip()
        return out

    def _ended(self, row: Sequence[int]) -> bool:
        """Whether an end token stands behind the decoder's start, which may be such a token itself."""
        ends = self.model.generation_config.eos_token_id
        return bool({*ends} & {*row} if isinstance(ends, list) else ends in row)

    def _directed(self, source: str, target: str) -> tuple[str, dict[str, Any]]:
        """What stands before a text, and options of generation, so that it goes from one language to the other."""
        begin, end = self._token(source), self._token(target)
        if begin and end:
            self.tokenizer.src_lang = begin[0]
            return "", {"forced_bos_token_id": end[1]}
        if self._known(f"<2{target}>") is not None:
            return f"<2{target}> ", {}
        if begin or end:
            lacking = target if begin else source
            raise DataError("TL-DATA-TRANSLATOR", where=str(self.folder), language=lacking)
        return "", {}

    def _token(self, language: str) -> tuple[str, int] | None:
        """What the tokenizer calls the language, and the token that stands for it; None where it knows none."""
        named = [(language, f"__{language}__"), *((code, code) for code in _CODES.get(language, ()))]
        return next(((name, known) for name, token in named if (known := self._known(token)) is not None), None)

    def _known(self, token: str) -> int | None:
        number = self.tokenizer.convert_tokens_to_ids(token)
        return None if number is None or number == self.tokenizer.unk_token_id else int(number)
