"""A model that writes, in the engine's process: requests are admitted, answered together, and handed on in pieces."""

from __future__ import annotations

import copy
import logging
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from tuneloop.base.errors import ServeError, TuneloopError
from tuneloop.base.language import t
from tuneloop.inference.decode import Decoder
from tuneloop.inference.generate import Answerer
from tuneloop.inference.scheduler import Generation, Scheduler
from tuneloop.inference.text_stream import decoding
from tuneloop.inference.token_bytes import TokenBytes
from tuneloop.model.vocabulary import require_rows
from tuneloop.recipe.schema import ServePart
from tuneloop.serving.answer_text import AnswerText
from tuneloop.serving.engine import Piece, Query
from tuneloop.serving.wire import error_frame, piece_frame

log = logging.getLogger("tuneloop.serving")
Events = list[list[Any]]
"""[number of the request, a piece's frame or {"error": …}], in order."""


@dataclass(slots=True, eq=False)
class _Answer:
    """One choice of a job."""

    job: WritingJob
    generation: Generation
    text: AnswerText
    read: int = 0
    """Tokens of the generation that were handed on."""


@dataclass(slots=True, eq=False)
class WritingJob:
    """A query whose prompt has become tokens."""

    number: int
    query: Query
    prompt: list[int]
    most: int
    answers: list[_Answer] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)


class Writing:
    """What answers the queries of a model that writes. `accept` belongs to one thread, all else to another."""

    def __init__(self, answerer: Answerer, settings: ServePart) -> None:
        self._settings, self._answerer = settings, answerer
        self.context = answerer.context
        # A fast tokenizer must not be used by two threads at once.
        self._door = copy.copy(answerer)
        self._door.tokenizer = copy.deepcopy(answerer.tokenizer)
        self._decode = decoding(answerer.tokenizer)
        self._octets = TokenBytes(answerer.tokenizer)
        self._scheduler = self._new_scheduler()
        self._waiting: deque[WritingJob] = deque()
        self._jobs: dict[int, WritingJob] = {}
        self._answers: dict[int, _Answer] = {}
        """By the identity of their generations."""
        self._counts = dict.fromkeys(("prompt_tokens", "cached_tokens", "generated_tokens"), 0)

    @property
    def about(self) -> dict[str, Any]:
        """What the server must know of it."""
        tasks = ("chat", "text")
        return {"context": self.context, "labels": (), "tasks": tasks, "capacity": self._settings.slots}

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    def gauges(self) -> dict[str, float]:
        """Figures of what is under way and was done."""
        out = {"answers_running": float(len(self._answers)), "requests_waiting": float(len(self._waiting))}
        return out | {f"{name}_total": float(count) for name, count in self._counts.items()}

    def accept(self, number: int, query: Query) -> WritingJob:
        """The query as a job. Raises what is wrong with it."""
        if query.task == "label":
            raise ServeError("TL-SERVE-NO-LABELS", where="model", param="model", model=query.model)
        if query.task == "vector":
            raise ServeError("TL-SERVE-UNSUPPORTED", where="model", param="model", got=query.model)
        prompt, param = self._prompt(query)
        left = self.context - len(prompt)
        if left < 0 or (left == 0 and query.max_new_tokens != 0):
            raise ServeError("TL-SERVE-CONTEXT", where=param, param=param, tokens=len(prompt), context=self.context)
        wanted = query.max_new_tokens
        if wanted is not None and wanted > left:
            raise _no_room(len(prompt), wanted, left, self.context)
        most = min(left, self._settings.max_new_tokens) if wanted is None else wanted
        self._require_rows([token for token, _ in query.sampling.logit_bias], "logit_bias")
        return WritingJob(number, query, prompt, most)

    def _prompt(self, query: Query) -> tuple[list[int], str]:
        """The query's prompt in tokens, and the name of its field."""
        if query.task == "chat":
            tools = () if query.tool_choice == "none" else query.tools
            prompt, param = self._door.prompt(query.chat, tools, query.thinking), "messages"
        elif isinstance(query.prompt, str):
            prompt, param = list(self._door.tokenizer(query.prompt)["input_ids"]), "prompt"
        else:
            prompt, param = list(query.prompt), "prompt"
        if not prompt:
            raise ServeError("TL-SERVE-REQUEST", where=param, param=param, error=t("it is empty"))
        self._require_rows(prompt, param)
        return prompt, param

    def _require_rows(self, ids: list[int], param: str) -> None:
        try:
            if min(ids, default=0) < 0:
                raise ServeError("TL-SERVE-REQUEST", error=t("a token id is negative"))
            require_rows(self._answerer.model, self._door.tokenizer, [ids])
        except ServeError as error:
            error.where = error.facts["param"] = param
            raise

    def begin(self, job: WritingJob) -> None:
        """Take a job up."""
        self._jobs[job.number] = job
        self._waiting.append(job)
        self._counts["prompt_tokens"] += len(job.prompt)

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

    def refuse_waiting(self) -> Events:
        """End what has not begun: the server is closing."""
        refused = [job.number for job in self._waiting]
        for number in refused:
            self.cancel(number)
        return [[number, {"error": error_frame(ServeError("TL-SERVE-CLOSING", status=503))}] for number in refused]

    def step(self) -> Events:
        """One step of all answers under way: what is new in them."""
        while self._waiting and (
            not self._answers or len(self._answers) + self._waiting[0].query.n <= self._settings.slots
        ):
            self._add(self._waiting.popleft())
        try:
            generations = self._scheduler.step()
        except Exception as error:
            return self._failed(error)
        out: Events = []
        for generation in generations:
            answer = self._answers.get(id(generation))
            if answer is not None:  # None: its job has failed in this very step
                out += self._guarded(answer)
        return out

    def _add(self, job: WritingJob) -> None:
        for choice in range(job.query.n):
            seed = job.query.sampling.seed
            how = replace(job.query.sampling, seed=None if seed is None else seed + choice)
            generation = Generation(job.prompt, job.most, how, logprobs=job.query.logprobs, echo=job.query.echo)
            text = AnswerText(choice, self._decode, self._octets, job.query.stop)
            answer = _Answer(job, generation, text)
            job.answers.append(answer)
            self._answers[id(generation)] = answer
            self._scheduler.add(generation)

    def _guarded(self, answer: _Answer) -> Events:
        """The events of one answer; whatever fails in it fails its own request."""
        number = answer.job.number
        try:
            if answer.generation.error is not None:
                raise answer.generation.error
            return [[number, frame] for frame in self._news(answer)]
        except TuneloopError as error:
            failure = error
        except Exception as error:
            log.exception("an answer failed")
            failure = _coded(error)
        self.cancel(number)
        return [[number, {"error": error_frame(failure)}]]

    def _news(self, answer: _Answer) -> list[dict[str, Any]]:
        generation, query, text = answer.generation, answer.job.query, answer.text
        pieces: list[Piece | None] = []
        if not answer.read and query.echo:
            scored = generation.prompt_scores if query.logprobs is not None else ()
            pieces.append(text.echoed(self._echoed(answer.job), answer.job.prompt, scored))
        for n in range(answer.read, len(generation.tokens)):
            token = generation.tokens[n]
            scored_ = generation.scores[n] if query.logprobs is not None else None
            if token in self._answerer.stops and generation.ended == "stop" and n == len(generation.tokens) - 1:
                text.ended(token, scored_ if query.task == "text" else None)
                break
            pieces.append(text.feed(token, scored_))
            if text.stopped:
                break
        self._counts["generated_tokens"] += len(generation.tokens) - answer.read
        first, answer.read = not answer.read, len(generation.tokens)
        if generation.ended or text.stopped:
            pieces.append(text.end("length" if generation.ended == "length" and not text.stopped else "stop"))
            self._end(answer)
        frames = [piece_frame(piece) for piece in pieces if piece is not None]
        if first and frames and generation.reused:
            self._counts["cached_tokens"] += generation.reused
            frames[0]["cached"] = generation.reused
        return frames

    def _echoed(self, job: WritingJob) -> str:
        return job.query.prompt if isinstance(job.query.prompt, str) else self._decode(job.prompt)

    def _end(self, answer: _Answer) -> None:
        del self._answers[id(answer.generation)]
        if not answer.generation.ended:
            self._scheduler.drop(answer.generation)
        if not any(id(one.generation) in self._answers for one in answer.job.answers):
            del self._jobs[answer.job.number]

    def _failed(self, error: Exception) -> Events:
        """A step that failed as a whole: nobody knows what is in the cache, so all that were in it fail."""
        log.exception("a step failed")
        failed = {answer.job.number for answer in self._answers.values()}
        for number in failed:
            del self._jobs[number]
        self._answers.clear()
        self._scheduler = self._new_scheduler()
        return [[number, {"error": error_frame(_coded(error))}] for number in failed]

    def _new_scheduler(self) -> Scheduler:
        answerer = self._answerer
        return Scheduler(
            Decoder(answerer.model, answerer.context),
            answerer.stops,
            penalty=answerer.penalty,
            slots=self._settings.slots,
            cache_tokens=self._settings.cache_tokens,
            alone=answerer.alone,
            adapters=None,
            chunk=self._settings.chunk,
        )


def _coded(error: Exception) -> ServeError:
    return ServeError("TL-SERVE-FAILED", error=f"{type(error).__name__}: {error}"[:300])


def _no_room(tokens: int, wanted: int, left: int, context: int) -> ServeError:
    param = "max_tokens"
    return ServeError(
        "TL-SERVE-ROOM", where=param, param=param, tokens=tokens, wanted=wanted, left=left, context=context
    )
