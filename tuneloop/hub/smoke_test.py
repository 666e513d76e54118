"""A trial of a model folder: does it answer as the real one does? The last step of a conversion, before it counts.

A wrong permutation or a wrong tokenizer gives a folder that loads and talks nonsense; only running it tells.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tuneloop.base.environment import quiet_libraries
from tuneloop.base.errors import ModelError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings inside, and restore what was set before."""
    quiet_libraries()
    from transformers.utils import logging as untyped

    logging: Any = untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def answers(folder: Path, prompt: str, expect: str, *, chat: bool) -> str:
    """The model's greedy continuation of `prompt` (a user's message if `chat`), 24 tokens at most.

    Raises TL-MODEL-TRIAL when it does not contain `expect`.
    """
    with quiet():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
        )
        _round_trip(folder, tokenizer)
        if chat:
            message = [{"role": "user", "content": prompt}]
            ids = tokenizer.apply_chat_template(
                message, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            ids = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=24, do_sample=False)
        text = str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
    if expect not in text:
        raise ModelError("TL-MODEL-TRIAL", where=str(folder), prompt=prompt, expect=expect, got=text)
    return text


def embeds(folder: Path, texts: tuple[str, str, str]) -> str:
    """The cosine of the mean-pooled embeddings of texts 1 and 2, and of 1 and 3, as words.

    Raises TL-MODEL-TRIAL unless the first pair, which means the same, is nearer than the second.
    """
    with quiet():
        import torch
        from transformers import AutoModel, AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32
        ).eval()
        batch = tokenizer(list(texts), padding=True, return_tensors="pt")
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
        near, far = float(means[0] @ means[1]), float(means[0] @ means[2])
    if not near > far + 0.2:
        got = f"{near:.3f}, {far:.3f}"
        raise ModelError("TL-MODEL-TRIAL", where=str(folder), prompt=texts[0], expect=texts[1], got=got)
    return f"{near:.3f} > {far:.3f}"


def tokenizes(folder: Path, single: tuple[str, ...]) -> str:
    """How many tokens the tokenizer has, as words.

    Raises TL-MODEL-TRIAL when each of `single` is not one token or ordinary text does not come back whole.
    """
    with quiet():
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _round_trip(folder, tokenizer)
        for token in single:
            ids = tokenizer(token, add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                raise ModelError("TL-MODEL-TRIAL", where=str(folder), prompt=token, expect="1", got=str(len(ids)))
    return f"{len(tokenizer)} tokens"


def _round_trip(folder: Path, tokenizer: Any) -> None:
    text = "It's 2024,  isn't it?\n\n你好，世界！ 12,345.67 😀"
    back = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False)
    if back != text:
        raise ModelError("TL-MODEL-TRIAL", where=str(folder), prompt=text, expect=text, got=back)
