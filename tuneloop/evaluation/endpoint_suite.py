"""An OpenAI-compatible endpoint measured with the suite of a run: the same rows, prompts and figures, but no loss."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tuneloop.base import refusals
from tuneloop.base.environment import environment
from tuneloop.base.language import t
from tuneloop.base.records import Record, Reply
from tuneloop.data.tokens.templates import prompt_ids
from tuneloop.data.version.find import dataset_of
from tuneloop.evaluation import compare, suite
from tuneloop.evaluation.before_after import questions
from tuneloop.evaluation.evaluation import Answer, Evaluation, Scores
from tuneloop.evaluation.findings import RunFinding
from tuneloop.evaluation.form import visible
from tuneloop.evaluation.metrics import measured
from tuneloop.evaluation.preference import dialogues
from tuneloop.evaluation.progress import Counted
from tuneloop.evaluation.sections import SectionRows, answers, read_sections
from tuneloop.inference.endpoint import EndpointAnswerer
from tuneloop.inference.tokenizer import load_tokenizer
from tuneloop.inference.trained import answer_prefix
from tuneloop.recipe.schema import Recipe
from tuneloop.runs.journal import Journal
from tuneloop.runs.run import Run, run_recipe

Say = Callable[[str], None]
FOLDER = "evaluations"
"""Folder of a run that holds the evaluations of endpoints."""


@dataclass
class Remembered:
    """An endpoint whose answers are written down one by one: what is there already is not asked again."""

    endpoint: EndpointAnswerer
    journal: Journal

    @property
    def context(self) -> int:
        return self.endpoint.context

    def count(self, chat: list[dict[str, Any]], *, tools: Sequence[Any] = ()) -> int:
        """Prompt tokens of a chat, estimated."""
        return self.endpoint.count(chat)

    def answer(
        self,
        chats: Sequence[list[dict[str, Any]]],
        *,
        max_new_tokens: int = 64,
        batch_size: int = 8,
        progress: Callable[[int], None] | None = None,
        tools: Sequence[Sequence[Any]] = (),
        thinking: bool | None = None,
    ) -> list[Reply]:
        """One reply a chat, in order. Raises TL-MACHINE-ENDPOINT; the answers that came before it are not lost.

        An endpoint is offered no tools, and its thoughts are not switched.
        """
        keys = [self._key(chat, max_new_tokens) for chat in chats]
        known = {line["key"]: Reply(**line["reply"]) for line in self.journal.lines() if "key" in line}
        missing = {key: chat for key, chat in zip(keys, chats, strict=True) if key not in known}
        order = list(missing)

        def store(place: int, reply: Reply) -> None:
            known[order[place]] = reply
            fields = {name: getattr(reply, name) for name in ("text", "prompt_tokens", "tokens", "finish", "seconds")}
            self.journal.write({"key": order[place], "reply": fields})
            if progress is not None:
                progress(sum(key in known for key in keys))

        if missing:
            asked_for = list(missing.values())
            self.endpoint.answer(asked_for, max_new_tokens=max_new_tokens, batch_size=batch_size, each=store)
        return [known[key] for key in keys]

    def _key(self, chat: Sequence[Mapping[str, Any]], max_new_tokens: int) -> str:
        """12 hex digits of what was asked of whom."""
        body = json.dumps([self.endpoint.url, self.endpoint.name, max_new_tokens, chat], sort_keys=True)
        return hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def named(url: str, model: str) -> str:
    """The name of an endpoint's evaluation: its model and its address, as a file may be called.

    >>> named("http://localhost:8000/v1", "Qwen/Qwen3-8B"), named("http://localhost:8000/team/v1", "")
    ('Qwen-Qwen3-8B@localhost-8000', 'localhost-8000-team')
    """
    address = urlsplit(url)
    names = [model, address.netloc.rpartition("@")[2] + address.path.rstrip("/").removesuffix("/v1")]
    return "@".join(filter(None, (re.sub(r"[^\w.]+", "-", name).strip("-.") for name in names))) or "endpoint"


def evaluate_endpoint(run: Run, url: str, model: str, say: Say) -> tuple[Evaluation, Path]:
    """The suite of a run asked of an endpoint, and the file that it is written into: <run>/evaluations/<name>.json.

    The key is TUNELOOP_ENDPOINT_KEY. Raises TL-MACHINE-ENDPOINT.
    """
    recipe = run_recipe(run.path)
    endpoint = EndpointAnswerer(url, model, environment().endpoint_key)
    sections = read_sections(recipe)
    held = dataset_of(run).records("validation")
    name = named(url, endpoint.name)
    folder = run.path / FOLDER
    with refusals.writing(run.path):
        folder.mkdir(exist_ok=True)
        evaluation = measure_endpoint(
            recipe, held, sections, endpoint, folder / f"{name}.answers.jsonl", say, _counter(run, recipe)
        )
        if not _is_silent(run):  # a server that says nothing where the run says nothing is no fault of its own
            evaluation = replace(evaluation, findings=(*_empty(evaluation, endpoint), *evaluation.findings))
        path = run.write(f"{FOLDER}/{name}.json", {"endpoint": url, "model": endpoint.name, **evaluation.as_dict()})
    return evaluation, path


def _counter(run: Run, recipe: Recipe) -> Callable[[list[dict[str, Any]]], int] | None:
    """What counts the prompt tokens of a chat as the run does; None where it has no tokenizer to do it with."""
    folder = run.trained_folder()
    if folder is None:
        return None
    tokenizer = load_tokenizer(folder)
    prefix = answer_prefix(run.path, recipe, tokenizer)

    def count(chat: list[dict[str, Any]]) -> int:
        return len(prompt_ids(tokenizer, chat, answer_prefix=prefix))

    return count


def measure_endpoint(
    recipe: Recipe,
    held: Sequence[Record],
    sections: Sequence[SectionRows],
    endpoint: EndpointAnswerer,
    journal: Path,
    say: Say,
    count: Callable[[list[dict[str, Any]]], int] | None = None,
) -> Evaluation:
    """The endpoint's evaluation: `after` are its figures, and there is no `before`.

    `count` tells the prompt tokens of a chat by the run's own tokenizer: where the server counts others, its chat
    template or its tokenizer is another one. Raises TL-MACHINE-ENDPOINT; what was answered by then is kept.
    """
    part, system = recipe.evaluate, recipe.prepare.system
    remembered = Remembered(endpoint, Journal(journal))
    show = compare.read_prompts(part.show) or questions(recipe)
    probes = [compare.check_probe(probe) for probe in part.probes]
    picked = suite.pick(dialogues(list(held)), part.rows, suite.fitting(remembered, part.max_new_tokens))
    total = len(picked) + len(show) + sum(map(len, probes)) + sum(len(section.answered) for section in sections)
    answerer = Counted(remembered, total, say)  # type: ignore[arg-type]
    how: dict[str, Any] = {"max_new_tokens": part.max_new_tokens, "batch_size": part.batch_size}
    say(t("Asking {model} at {url}", model=endpoint.name, url=endpoint.url))
    chats = [[m.as_chat() for m in suite.prompt(record)] for record in picked]
    written = answerer.answer(chats, **how) if chats else []
    every = [*show, *(prompt for prompts in probes for prompt in prompts)]
    replies = iter(compare.ask(answerer, every, system=system, **how))
    shown, probed = [next(replies) for _ in show], [[next(replies) for _ in prompts] for prompts in probes]
    scored = answers(sections, answerer, part)
    nothing = [Reply("", 0, 0, "stop")] * len(written)
    evaluation = compare.assemble(
        before=Scores(),
        after=answer_scores(picked, written),
        rows=picked,
        held=held,
        answers_before=nothing,
        answers_after=written,
        show=show,
        show_before=[Reply("", 0, 0, "stop")] * len(show),
        show_after=shown,
        probes=[
            compare.probe(probe, [Reply("", 0, 0, "stop")] * len(own), own)
            for probe, own in zip(part.probes, probed, strict=True)
        ],
    )
    section_answers = [
        _answer(section, record, scored.replies[section.name, record.id])
        for section in sections
        for record in section.answered
        if (section.name, record.id) in scored.replies
    ]
    findings = _template(chats, written, endpoint, count)
    return replace(evaluation, section_answers=tuple(section_answers), findings=findings)


def answer_scores(records: Sequence[Record], replies: Sequence[Reply]) -> Scores:
    """The figures that need only answers; the others are not measured."""
    unmeasured = {**measured("rows", None), **measured("tokens", None)}
    texts = [visible(reply.text) for reply in replies], [suite.reference(record) for record in records]
    return Scores({**unmeasured, **measured("answers", *(texts if replies else (None, None)))}, rows=len(records))


def _answer(section: SectionRows, record: Record, reply: Reply) -> Answer:
    shown = compare.side_by_side(compare.question(record), Reply("", 0, 0, "stop"), reply, suite.reference(record))
    return replace(
        shown, context=compare.context(record), id=record.id, section=section.name, file=record.file, line=record.line
    )


def _empty(evaluation: Evaluation, endpoint: EndpointAnswerer) -> tuple[RunFinding, ...]:
    """Whether the server has answered, but nothing but blanks and thoughts."""
    answered = evaluation.written()
    if not answered or any(visible(answer.after).strip() for answer in answered):
        return ()
    return (RunFinding("TL-RUN-ENDPOINT-EMPTY", {"n": str(len(answered)), "url": endpoint.url}),)


def _is_silent(run: Run) -> bool:
    """Whether the run itself wrote answers when it was evaluated, and all of them are empty."""
    own = Evaluation.read(run.path)
    return own is not None and bool(own.written()) and not any(visible(a.after).strip() for a in own.written())


def _template(
    chats: Sequence[list[dict[str, Any]]],
    replies: Sequence[Reply],
    endpoint: EndpointAnswerer,
    count: Callable[[list[dict[str, Any]]], int] | None,
) -> tuple[RunFinding, ...]:
    """Whether the server makes other prompts of the chats than the run does, by its own count of their tokens."""
    if count is None or endpoint.usage.estimated or not replies:
        return ()
    different = sum(count(chat) != reply.prompt_tokens for chat, reply in zip(chats, replies, strict=True))
    facts = {"n": str(different), "of": str(len(replies)), "url": endpoint.url}
    return (RunFinding("TL-RUN-ENDPOINT-TEMPLATE", facts),) if different else ()
