"""tuneloop chat: talk to a run in the terminal, or line by line through a pipe."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneloop.base.language import t
from tuneloop.cli import show, usage

if TYPE_CHECKING:
    from tuneloop.base.records import Reply
    from tuneloop.inference.classifier import Classifier
    from tuneloop.inference.generate import Answerer
    from tuneloop.inference.scorer import Scorer

COMMANDS = {
    "/help": "help", "/帮助": "help", "/reset": "reset", "/重置": "reset", "/system": "system", "/系统": "system",
    "/quit": "quit", "/exit": "quit", "/退出": "quit",
}  # fmt: skip


def chat(
    ref: Annotated[str, typer.Argument(help="A run, a version ('name:v3', 'name:production'), or a model.")],
    once: Annotated[str | None, typer.Option("--once", help="Answer this, and end.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="The base model answers, too.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer in tokens.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0, max=2, help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.01, max=1, help="Sample among the likeliest tokens that share it.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes sampled answers repeatable.")] = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder of runs/ and models/.")] = Path(),
) -> None:
    """Talk to a run in the terminal, or through a pipe, where each line is a turn. /help lists commands, /quit ends.

    Examples: tuneloop chat runs/demo-1 | tuneloop chat demo:v1 --once "Who are you?"
    """
    if once is not None and not once.strip():
        raise usage.wrong("tuneloop chat", t("--once needs a question"))
    from tuneloop.registry import versions

    versions.require(workspace, ref)
    show.say(t("loading {ref} …", ref=ref))
    from tuneloop import pipeline
    from tuneloop.inference.classifier import Classifier
    from tuneloop.inference.scorer import Scorer

    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "replace")):
        if not stream.isatty() and hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)
    answerer = pipeline.load(ref, workspace=workspace)
    if isinstance(answerer, Classifier | Scorer):
        _judge(_labels if isinstance(answerer, Classifier) else _score, answerer, once)
        return
    options = {"max_new_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    speakers = [_Speaker("", answerer, nullcontext, options)]
    if compare:
        speakers = [_base_of(answerer, ref, workspace, options), _Speaker(_tuned(), answerer, nullcontext, options)]
    talk = _Talk(speakers, system or "")
    if once is not None:
        talk.turn(once)
        return
    for line in _lines():
        if not talk.command(line) and not talk.safe_turn(line):
            break
        if talk.over:
            break


def _judge(judge: Callable[[Any, str], str], model: Classifier | Scorer, once: str | None) -> None:
    """Each line is judged by itself."""
    from tuneloop.base.errors import TuneloopError

    for line in [once] if once is not None else _lines():
        if COMMANDS.get(line.strip().replace("／", "/")) == "quit":
            break
        if not line.strip():
            continue
        try:
            verdict = judge(model, line)
        except TuneloopError as error:
            if once is not None or not _interactive():
                raise
            typer.echo(f"\n{error}", err=True)
            continue
        sys.stdout.write(verdict + "\n")
        sys.stdout.flush()


def _labels(classifier: Classifier, line: str) -> str:
    """The likeliest label of a text with its probability, and the other labels behind it."""
    ranked = sorted(classifier.classify([line])[0].items(), key=lambda pair: -pair[1])
    return "  ".join(f"{_shown(label)} {100 * chance:.1f} %" for label, chance in ranked)


def _score(scorer: Scorer, line: str) -> str:
    """The score of an answer; the line is question, tab, answer. Without a tab, the answer is asked for."""
    question, _, answer = line.partition("\t")
    if not answer and _interactive():
        answer = input(t("answer") + "> ")
    answers = [{"role": "assistant", "content": answer}] if answer else []
    return scorer.answer([[{"role": "user", "content": question}, *answers]])[0].text


class _Speaker:
    """One model in the conversation, with its own memory of it."""

    def __init__(
        self, label: str, answerer: Answerer, around: Callable[[], AbstractContextManager[Any]], options: dict[str, Any]
    ) -> None:
        self.label, self.answerer, self.around, self.options = label, answerer, around, options
        self.history: list[dict[str, Any]] = []

    def speak(self, system: str, text: str) -> Reply | None:
        """Answer on the terminal as it is written; None when Ctrl-C cut it short. What was said is remembered."""
        from tuneloop.base.records import Reply

        head = [{"role": "system", "content": system}] if system else []
        turns = [*self.history, {"role": "user", "content": text}]
        if self.label:
            sys.stdout.write(f"[{self.label}] ")
        pieces: list[str] = []
        reply: Reply | None = None
        with self.around():
            stream = self.answerer.stream_reply([*head, *turns], **self.options)
            try:
                for piece in stream:
                    if isinstance(piece, Reply):
                        reply = piece
                        continue
                    pieces.append(piece)
                    sys.stdout.write(_shown(piece))
                    sys.stdout.flush()
            except KeyboardInterrupt:
                if not _interactive():
                    raise
            finally:
                stream.close()  # type: ignore[attr-defined]
        sys.stdout.write("\n")
        sys.stdout.flush()
        self.history = [*turns, {"role": "assistant", "content": "".join(pieces)}]
        return reply


class _Talk:
    """The conversation: commands, turns, and the system prompt they share."""

    def __init__(self, speakers: list[_Speaker], system: str) -> None:
        self.speakers, self.system, self.over = speakers, system, False

    def command(self, line: str) -> bool:
        """Carry out a command; False when the line is none."""
        word, _, rest = line.strip().partition(" ")
        command = COMMANDS.get(word.replace("／", "/"))  # as a Chinese input method writes it
        if command is None:
            return False
        if command == "quit":
            self.over = True
        elif command == "help":
            _note(
                t(
                    "/help  this list\n/reset  forget the conversation\n"
                    "/system TEXT  set the system prompt and forget\n/quit  end"
                )
            )
        else:
            if command == "system":
                self.system = rest.strip()
            for speaker in self.speakers:
                speaker.history = []
            _note(
                t("system prompt set, conversation forgotten") if command == "system" else t("conversation forgotten")
            )
        return True

    def turn(self, text: str) -> None:
        """One question to every voice."""
        for speaker in self.speakers:
            reply = speaker.speak(self.system, text)
            if reply is not None:
                _statistics(reply)

    def safe_turn(self, line: str) -> bool:
        """A turn whose errors (the context is full, say) do not end an interactive talk. Blank lines are no turns."""
        from tuneloop.base.errors import TuneloopError

        if not line.strip():
            return True
        try:
            self.turn(line)
        except TuneloopError as error:
            if not _interactive():
                raise
            typer.echo(f"\n{error}\n{t('the turn was forgotten; /reset makes room')}", err=True)
        return True


def _lines() -> Iterator[str]:
    """The user's lines, until the end of input or Ctrl-C at the prompt."""
    from tuneloop.base.errors import DataError

    if not _interactive():
        try:
            for line in sys.stdin:
                yield line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError("TL-DATA-STDIN", where="stdin", error=str(error)) from error
        return
    _note(t("/help lists the commands; Ctrl-C stops an answer, /quit ends"))
    with suppress(ImportError):  # Windows' console brings its own
        import readline  # noqa: F401 - gives input() its history and the editing of wide characters
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return
        # A terminal that is not UTF-8 hands over bytes as lone surrogates, which no tokenizer takes.
        yield line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _interactive() -> bool:
    return sys.stdin.isatty()


def _shown(text: str) -> str:
    """Text for the screen: on a terminal, control characters that could move the cursor or set its title are left out.

    >>> _printable("a\\x1b[2Jb\\n")
    'a[2Jb\\n'
    """
    return _printable(text) if sys.stdout.isatty() else text


def _printable(text: str) -> str:
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def _note(text: str) -> None:
    """A word of the program itself; only on a terminal, so that a pipe carries answers and nothing else."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(text, style="dim", markup=False, highlight=False)


def _statistics(reply: Reply) -> None:
    rate = reply.tokens / reply.seconds if reply.seconds else 0.0
    text = t("tokens: {n}, {rate:.1f} a second", n=reply.tokens, rate=rate)
    _note(text if reply.finish == "stop" else text + t(", cut at --max-tokens or the end of the context"))


def _tuned() -> str:
    return t("tuned")


def _base_of(answerer: Answerer, ref: str, workspace: Path, options: dict[str, Any]) -> _Speaker:
    """The base model's voice: the adapter switched off while it speaks, or the base loaded beside a full run."""
    from peft import PeftModel

    from tuneloop.base.errors import RunError
    from tuneloop.hub.resolve import model_folder
    from tuneloop.inference.generate import Answerer
    from tuneloop.model.load import load_model
    from tuneloop.registry import versions
    from tuneloop.runs.run import run_recipe

    if isinstance(answerer.model, PeftModel):
        return _Speaker(t("base"), answerer, answerer.model.disable_adapter, options)
    run = versions.locate(workspace, ref)
    if run is None:
        raise RunError("TL-RUN-NO-BASE", where=ref, ref=ref)
    recipe = run_recipe(run)
    base = load_model(model_folder(recipe.model), recipe.model.dtype)
    return _Speaker(t("base"), Answerer(base, answerer.tokenizer), nullcontext, options)
