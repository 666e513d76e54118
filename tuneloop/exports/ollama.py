"""The Modelfile: what Ollama needs beside a GGUF file to serve a model as it was measured.

It holds the template, stop tokens, context, sampling and the system prompt. What Ollama does by itself is said in its
comments: it puts the opening token first where the GGUF says so, and joins neighbouring messages of one role.
Source: Ollama's documentation of the Modelfile, and its parser, which reads neither escapes nor unprintable characters.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneloop.base.errors import DataError, ModelError
from tuneloop.base.language import listed, t
from tuneloop.data.tokens.templates import render, stop_texts
from tuneloop.exports.go_template import go_template
from tuneloop.exports.prompt_format import FAMILIES, PromptFormat, recognise
from tuneloop.hub.pull import provenance
from tuneloop.inference.tokenizer import load_tokenizer

USUAL_CONTEXT = 4096
"""Tokens that Ollama allows where nothing is said: enough for several turns, and cheap in memory."""
SAMPLING = {
    "temperature": ("temperature", 1.0),
    "top_p": ("top_p", 1.0),
    "top_k": ("top_k", 50),
    "min_p": ("min_p", 0.0),
}
"""Ollama's parameter -> its name in a generation config, and what transformers takes where that says nothing."""


def modelfile(
    folder: Path, gguf: str, *, adapter: str | None = None, system: str | None = None, longest: int | None = None
) -> str:
    """The Modelfile of a model folder (tokenizer, config, generation config) whose weights are in the file `gguf`.

    `adapter` is the GGUF of a LoRA adapter to be put onto `gguf`. `system` is the system prompt that was trained with,
    by default the one that the folder's tuneloop.json records; `longest` the tokens of the longest row of the run.
    Paths are relative to the Modelfile. Raises TL-MODEL-OLLAMA where Ollama cannot write what the chat template writes.
    """
    tokenizer = load_tokenizer(folder)
    form = recognise(tokenizer)
    if form is None:
        raise ModelError("TL-MODEL-OLLAMA", where=str(folder), reason=_unknown(tokenizer))
    adds_bos = _adds_bos(tokenizer)
    if adds_bos and not form.bos and adapter is None:
        adds_bos = False  # nor does the GGUF file say so: see gguf/tokenizer_facts
    elif adds_bos and not form.bos:
        reason = t("Ollama begins each prompt with {token}, and the chat template does not", token=tokenizer.bos_token)
        raise ModelError("TL-MODEL-OLLAMA", where=str(folder), reason=reason)
    if system is None:
        system = provenance(folder).get("system")
    held = text_block(system) if system else None
    if system and held is None:
        form = _with_default(form, system)
    template = text_block(go_template(form, bos=not adds_bos))
    assert template is not None  # go_template quotes what a Modelfile cannot hold
    config = _json(folder / "generation_config.json")
    parts = [
        _comment(t("To put it into Ollama: {command}", command="ollama create NAME -f Modelfile")),
        f"FROM {_path(gguf)}",
        *_adapter(adapter),
        *_about_template(tokenizer, form, adds_bos),
        f"TEMPLATE {template}",
        *([f"SYSTEM {held}"] if held else []),
        *_stops(tokenizer, config),
        *_context(folder, longest),
        *_sampling(config),
    ]
    return "\n".join(parts) + "\n"


def text_block(text: str) -> str | None:
    """A text in the quotes of a Modelfile; None where its parser would end it early, or leave out characters.

    >>> text_block("<|im_end|>"), text_block('Say "hi".')
    ('"<|im_end|>"', '\"\"\"Say "hi".\"\"\"')
    >>> text_block('Write docstrings:\\n\"\"\"One sentence.\"\"\"\\nand code.') is None
    True
    """
    if not all(one.isprintable() or one in "\n\r\t" for one in text):
        return None
    for quotes in ('"""', '"') if '"' in text else ('"',):
        if quotes == '"' and text.startswith('""'):
            continue  # it would be read as three
        ends = (f"{quotes}{text[:at]}".strip() for at, one in enumerate(text) if one in "\r\n")
        if not any(line.endswith(quotes) and len(line) >= 2 * len(quotes) for line in ends):
            return f"{quotes}{text}{quotes}"
    return None


def _comment(text: str) -> str:
    return "# " + " ".join(text.split())


def _adapter(name: str | None) -> list[str]:
    if name is None:
        return []
    base = t("FROM must be a GGUF of the base model that the adapter was trained on: on another it is noise.")
    return [_comment(base), f"ADAPTER {_path(name)}"]


def _path(name: str) -> str:
    """A file beside the Modelfile: without ./ Ollama takes a name that is not there for one of its models."""
    return name if name.startswith(("/", "./", "../", "~")) else f"./{name}"


def _unknown(tokenizer: Any) -> str:
    """Why a chat template is in no family: what it writes."""
    known = listed(family.name for family in FAMILIES)
    try:
        text = render(tokenizer, [{"role": "user", "content": t("Who are you?")}], prompt=True)
    except DataError as error:
        return str(error.facts.get("error", error))
    return t("its chat template is none of {known}; it writes {written}", known=known, written=repr(text[:200]))


def _adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer opens a text with its token of beginning; llama.cpp and Ollama then do so as well."""
    if tokenizer.bos_token_id is None:
        return False
    ids: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    return ids[:1] == [tokenizer.bos_token_id]


def _with_default(form: PromptFormat, system: str) -> PromptFormat:
    """The format with a system prompt of its own: one that no SYSTEM can hold stands in the template, as a constant."""
    before, after = form.frames["system"]
    text = system.strip() if "system" in form.trimmed else system
    tools = form.tools
    if tools is not None:
        tools = replace(tools, alone=f"{before}{text}{tools.after_system}")
    return replace(form, default=f"{before}{form.preamble}{text}{after}", tools=tools)


def _about_template(tokenizer: Any, form: PromptFormat, adds_bos: bool) -> list[str]:
    """What the template takes for granted."""
    lines = [
        t("The template is {family}, as this model's tokenizer writes it.", family=form.family.name),
        t("Ollama joins neighbouring messages of one role by an empty line before the template sees them."),
    ]
    if adds_bos:
        lines.append(
            t("Ollama puts {token} first by itself, as the GGUF says (add_bos_token).", token=tokenizer.bos_token)
        )
    if "strftime_now" in str(tokenizer.chat_template):
        lines.append(t("The tokenizer's template writes the day's date; here is the date of the export."))
    if form.thoughts == "dropped":
        lines.append(t("Thoughts of earlier answers are left out: Ollama hands them over in a field of their own."))
    return [_comment(line) for line in lines]


def _stops(tokenizer: Any, config: dict[str, Any]) -> list[str]:
    """The tokens that end an answer, of the template and of the generation config."""
    ids = config.get("eos_token_id")
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    names = dict.fromkeys([*stop_texts(tokenizer), *map(str, tokenizer.convert_ids_to_tokens(ids))])
    blocks = [text_block(name) for name in names if name]
    return [f"PARAMETER stop {block}" for block in blocks if block]


def _context(folder: Path, longest: int | None) -> list[str]:
    """num_ctx: USUAL_CONTEXT or the longest row of the run, whichever is more, and never above the model's context."""
    limit = _json(folder / "config.json").get("max_position_embeddings")
    size = max(USUAL_CONTEXT, longest or 0)
    if isinstance(limit, int) and limit <= size:
        return [
            _comment(t("num_ctx: all that the model has, {limit} tokens.", limit=limit)),
            f"PARAMETER num_ctx {limit}",
        ]
    if size == USUAL_CONTEXT:
        reason = t("num_ctx: {size} tokens, more than the rows that were trained on.", size=size)
        if longest is None:
            reason = t("num_ctx: {size} tokens.", size=size)
    else:
        reason = t("num_ctx: the longest row that was trained on has {size} tokens.", size=size)
    more = [t("The model has {limit}; more costs memory.", limit=limit)] if isinstance(limit, int) else []
    return [*map(_comment, [reason, *more]), f"PARAMETER num_ctx {size}"]


def _sampling(config: dict[str, Any]) -> list[str]:
    """Sampling as the generation config has it. All is said, or Ollama would take its own: 0.8, 0.9, 40 and 1.1."""
    penalty = config.get("repetition_penalty") or 1.0
    lines = [f"PARAMETER repeat_penalty {penalty:g}"]
    if penalty != 1.0:
        lines.append("PARAMETER repeat_last_n -1")  # transformers counts the whole context, Ollama 64 tokens
    if not config.get("do_sample"):
        greedy = t("The most likely token each time: what evaluation measured, and what the generation config says.")
        return [_comment(greedy), "PARAMETER temperature 0", *lines]
    chosen = {name: usual if config.get(key) is None else config[key] for name, (key, usual) in SAMPLING.items()}
    given = [f"PARAMETER {name} {number:g}" for name, number in chosen.items()]
    return [_comment(t("Sampling as the generation config has it.")), *given, *lines]


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def ollama_name(name: str) -> str:
    """A name as Ollama takes it for a model: ASCII letters, digits and - _ . alone.

    >>> ollama_name("demo-1"), ollama_name("书店 v2"), ollama_name("客服")
    ('demo-1', 'v2', 'model')
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "", name).strip("-_.") or "model"
