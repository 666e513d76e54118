"""A model that writes, in the engine's process: requests are admitted, answered together, and handed on in pieces."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.inference.batch import Generation
from tuneloop.inference.decode import Decoder
from tuneloop.inference.scheduler import Scheduler
from tuneloop.recipe.serve import ServePart
from tuneloop.serving.engine import Piece, Query
from tuneloop.serving.wire import error_frame, piece_frame
from tuneloop.serving.worker.adapter_store import AdapterStore, LoadedAdapter
from tuneloop.serving.worker.answer_text import AnswerText
from tuneloop.serving.worker.chat_format import ChatFormat
from tuneloop.serving.worker.written_prompt import WrittenPrompt, written_prompt

log = logging.getLogger("tuneloop.serving")
Events = list[list[Any]]
"""[number of the request, a piece's frame or {"error": …}], in order."""


@dataclass(slots=True, eq=False)
class _Answer:
    """One choice of a job."""

    job: WritingJob
    generation: Generation
    text: AnswerText
    sent: int = 0
    """Tokens of the generation that were handed on."""


@dataclass(slots=True, eq=False)
class WritingJob:
    """A query whose prompt has become tokens."""

    number: int
    query: Query
    prompt: WrittenPrompt
    format: ChatFormat
    adapter: LoadedAdapter | None
    answers: list[_Answer] = field(default_factory=list)
    holds: bool = False
    """Whether its adapter is held for it."""

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt.ids)


class Writing:
    """What answers the queries of a model that writes. `accept` may be called in other threads than all else.

    `own` is the adapter that is served where nobody names another, beside those of `store`; `shared` is what the
    server must know of the base to tell which adapters fit it.
    """

    def __init__(
        self,
        model: nn.Module,
        chat_format: ChatFormat,
        settings: ServePart,
        *,
        store: AdapterStore | None = None,
        own: LoadedAdapter | None = None,
        shared: dict[str, Any] | None = None,
    ) -> None:
        self._model, self._format, self._settings = model, chat_format, settings
        self._store, self._own, self._shared = store, own, shared
        self.context = chat_format.prompts.context
        if store is not None and own is not None:
            store.pin(own)
        self._scheduler = self._new_scheduler()
        self._waiting: deque[WritingJob] = deque()
        self._jobs: dict[int, WritingJob] = {}
        self._answers: dict[int, _Answer] = {}
        """By the identity of their generations."""
        self._counts = dict.fromkeys(("prompt_tokens", "cached_tokens", "generated_tokens"), 0)

    @property
    def about(self) -> dict[str, Any]:
        """What the server must know of it."""
        capacity = min(self._settings.slots, self._scheduler.batch.slots)
        tasks = ("chat", "text")
        return {"context": self.context, "labels": (), "tasks": tasks, "capacity": capacity, "shared": self._shared}

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def gauges(self) -> dict[str, float]:
        """Figures of what is under way and was done."""
        out = {"answers_running": float(len(self._answers)), "requests_waiting": float(len(self._waiting))}
        if self._store is not None:
            out["adapters_loaded"], out["adapter_bytes"] = float(len(self._store.keys)), float(self._store.bytes)
        return out | {f"{name}_total": float(count) for name, count in self._counts.items()}

    def loaded(self) -> list[str]:
        """The adapters that are in memory."""
        return [] if self._store is None else list(self._store.keys)

    def is_slow(self, query: Query, source: dict[str, Any] | None) -> bool:
        """Whether accepting a query takes long, so that others should not wait for it."""
        if query.schema is not None or (query.tools and query.tool_choice not in ("auto", "none")):
            return True
        return bool(source and self._store and source["key"] and self._store.ready(source["key"]) is None)

    def accept(self, number: int, query: Query, source: dict[str, Any] | None) -> WritingJob:
        """The query as a job; `source` is an adapter ({"key", "run"}), the base ({"key": ""}), or None: what is served.
        Raises what is wrong with it."""
        if query.purpose == "label":
            raise ServeError("TL-SERVE-NO-LABELS", where="model", param="model", model=query.model)
        if query.purpose == "vector":
            raise ServeError("TL-SERVE-UNSUPPORTED", where="model", param="model", got=query.model)
        adapter, chat_format = self._own, self._format
        if source is not None and self._store is not None:
            adapter = self._store.load(source["key"], Path(source["run"])) if source["key"] else None
            chat_format = adapter.format if adapter is not None else self._store.base_format()
        prompt = written_prompt(query, chat_format, self._model, self._settings.max_new_tokens)
        return WritingJob(number, query, prompt, chat_format, adapter)

    def begin(self, job: WritingJob) -> None:
        """Take a job up."""
        self._jobs[job.number] = job
        self._waiting.append(job)
        self._counts["prompt_tokens"] += job.prompt_tokens

    def cancel(self, number: int) -> None:
        """Nobody listens any more."""
        job = self._jobs.pop(number, None)
        if job is None:
            return
        if job in self._waiting:
            self._waiting.remove(job)
        for answer in job.answers:
            if self._answers.pop(id(answer.generation), None) is not None:
                self._scheduler.drop(answer.generation)
        self._release(job)

    def refuse_waiting(self) -> Events:
        """End what has not begun: the server is closing."""
        refused = [job.number for job in self._waiting]
        for number in refused:
            self.cancel(number)
        return [[number, {"error": error_frame(ServeError("TL-SERVE-CLOSING", status=503))}] for number in refused]

    def step(self) -> Events:
        """One step of all answers under way: what is new in them."""
        self._admit()
        try:
            generations = self._scheduler.step()
        except Exception as error:
            return self._failed(error)
        out: Events = []
        for generation in generations:
            answer = self._answers.get(id(generation))
            if answer is not None:  # None: its job has failed in this very step
                out += self._guarded(answer.job.number, partial(self._news, answer))
        return out

    def _admit(self) -> None:
        """Let jobs begin, in their order; one whose adapter finds no place lets others pass."""
        for job in list(self._waiting):
            if self._answers and len(self._answers) + job.query.n > self._settings.slots:
                return
            if job.adapter is not None and self._store is not None:
                if not self._store.fits(job.adapter):
                    continue
                self._store.hold(job.adapter)
                job.holds = True
            self._waiting.remove(job)
            for choice in range(job.query.n):
                self._add(job, choice)

    def _release(self, job: WritingJob) -> None:
        if job.holds and self._store is not None and job.adapter is not None:
            self._store.release(job.adapter)
            job.holds = False

    def _add(self, job: WritingJob, choice: int) -> None:
        query, prompt, seed = job.query, job.prompt, job.query.sampling.seed
        ends = job.format.stops - self._format.stops
        generation = Generation(
            prompt.ids,
            prompt.most,
            replace(query.sampling, seed=None if seed is None else seed + choice),
            (lambda tokens: tokens[-1] in ends) if ends else None,
            adapter=None if job.adapter is None else job.adapter.key,
            logprobs=query.logprobs,
            echo=query.echo,
            grammar=prompt.grammar,
        )
        tokens = job.format.tokens
        decode = tokens.decoding(bool(query.tools)) if prompt.parser else tokens.decoding_alone()
        text = AnswerText(choice, decode, tokens.octets, query.stop, prompt.parser() if prompt.parser else None)
        answer = _Answer(job, generation, text)
        job.answers.append(answer)
        self._answers[id(generation)] = answer
        self._scheduler.add(generation)

    def _guarded(self, number: int, make: Callable[[], list[dict[str, Any]]]) -> Events:
        """The events of one answer; whatever fails in it fails its own request."""
        try:
            return [[number, frame] for frame in make()]
        except TuneloopError as error:
            failure = error
        except Exception as error:
            log.exception("an answer failed")
            failure = _coded(error)
        self.cancel(number)
        return [[number, {"error": error_frame(failure)}]]

    def _news(self, answer: _Answer) -> list[dict[str, Any]]:
        """The frames of what is new in an answer. Raises its error."""
        generation, text = answer.generation, answer.text
        if generation.error is not None:
            raise generation.error
        pieces = self._begun(answer) if not answer.sent else []
        pieces += self._written(answer)
        self._counts["generated_tokens"] += len(generation.tokens) - answer.sent
        first, answer.sent = not answer.sent, len(generation.tokens)
        if generation.ended or text.stopped:
            pieces.append(text.end("length" if generation.ended == "length" and not text.stopped else "stop"))
            self._end(answer)
        frames = [piece_frame(piece) for piece in pieces if piece is not None]
        if first and generation.reused:
            self._counts["cached_tokens"] += generation.reused
            frames = frames or [{"choice": text.choice}]
            frames[0]["cached"] = generation.reused
        return frames

    def _begun(self, answer: _Answer) -> list[Piece | None]:
        """What comes before the first token: the prompt where it is echoed, and what the answer was made to begin
        with."""
        job, generation = answer.job, answer.generation
        pieces: list[Piece | None] = []
        if job.query.echo:
            scored = generation.prompt_scores if job.query.logprobs is not None else ()
            pieces.append(answer.text.echoed(job.prompt.text, job.prompt.ids, scored))
        if job.prompt.begun:
            pieces.append(answer.text.begun(job.prompt.begun))
        return pieces

    def _written(self, answer: _Answer) -> list[Piece | None]:
        """The pieces of the tokens that are new."""
        generation, query = answer.generation, answer.job.query
        ends = answer.job.format.stops | self._format.stops
        pieces: list[Piece | None] = []
        for n in range(answer.sent, len(generation.tokens)):
            token = generation.tokens[n]
            scored = generation.scores[n] if query.logprobs is not None else None
            if token in ends and generation.ended == "stop" and n == len(generation.tokens) - 1:
                answer.text.ended(token, scored if query.purpose == "text" else None)
                break
            pieces.append(answer.text.feed(token, scored))
            if answer.text.stopped:
                break
        return pieces

    def _end(self, answer: _Answer) -> None:
        """An answer is over; with its last one the job is."""
        job = answer.job
        del self._answers[id(answer.generation)]
        if not answer.generation.over:
            self._scheduler.drop(answer.generation)
        if not any(id(one.generation) in self._answers for one in job.answers):
            del self._jobs[job.number]
            self._release(job)

    def _failed(self, error: Exception) -> Events:
        """A step that failed as a whole: nobody knows what is in the cache, so all that were in it fail."""
        log.exception("a step failed")
        failed = {answer.job.number: answer.job for answer in self._answers.values()}
        for number, job in failed.items():
            del self._jobs[number]
            self._release(job)
        self._answers.clear()
        self._scheduler = self._new_scheduler()
        return [[number, {"error": error_frame(_coded(error))}] for number in failed]

    def _new_scheduler(self) -> Scheduler:
        prompts = self._format.prompts
        return Scheduler(
            Decoder(self._model, prompts.context),
            self._format.stops,
            penalty=prompts.penalty,
            slots=self._settings.slots,
            cache_tokens=self._settings.cache_tokens,
            alone=prompts.alone,
            adapters=None if self._store is None else self._store.rows,
            chunk=self._settings.chunk,
        )


def _coded(error: Exception) -> ServeError:
    return ServeError("TL-SERVE-FAILED", error=f"{type(error).__name__}: {error}"[:300])
