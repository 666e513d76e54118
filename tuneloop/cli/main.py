"""The command line: one thin file a verb. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import codecs
import sys
import traceback
import warnings
from typing import Annotated, NoReturn

import typer

from tuneloop import __version__
from tuneloop.base.environment import environment, quiet_console
from tuneloop.base.errors import TuneloopError
from tuneloop.base.language import t
from tuneloop.cli import (
    chat,
    compare,
    data,
    doctor,
    evaluate,
    explain,
    export,
    forget,
    judge,
    key,
    model,
    parent,
    plan,
    predict,
    prepare,
    rate,
    run,
    serve,
    show,
    train,
    watch,
)
from tuneloop.cli.signs import letters
from tuneloop.cli.usage import UsageError, as_ours
from tuneloop.cli.verb import Verb, Verbs, speak

app = typer.Typer(
    name="tuneloop",
    cls=Verbs,
    help="Raw conversations -> a fine-tuned model, measured, exported, served. Begin with: tuneloop run demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    run.run,
    prepare.prepare,
    plan.plan,
    train.train,
    watch.watch,
    evaluate.evaluate,
    compare.compare,
    rate.rate,
    judge.judge,
    export.export,
    chat.chat,
    predict.predict,
    serve.serve,
    forget.forget,
):
    app.command(cls=Verb)(verb)
app.add_typer(model.app, name="model")
app.add_typer(data.app, name="data")
app.add_typer(key.app, name="key")
app.command(cls=Verb)(explain.explain)
app.command(cls=Verb)(doctor.doctor)


def _quiet() -> None:
    """transformers and PEFT advise developers; who runs tuneloop could act on none of it."""
    quiet_console()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tuneloop {__version__}")
        raise typer.Exit


@app.callback()
def options(
    lang: Annotated[
        str, typer.Option(help="Language of everything printed: en or zh. May stand anywhere in the line.")
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version of tuneloop.")
    ] = False,
) -> None:
    """`--lang` is for the help page: Verbs takes it out of the line before."""


def _run() -> int:
    """Carry the command line out. The exit status."""
    speak(environment().language)
    try:
        status = app(standalone_mode=False)
    except UsageError as error:
        if type(error).__name__ != "NoArgsIsHelpError":
            raise as_ours(error) from error
        typer.echo(str(error), err=True)
        return 2
    sys.stdout.flush()  # a disk that is full under a redirected output is told here, not on the way out
    return status if isinstance(status, int) else 0


def _report(error: TuneloopError) -> NoReturn:
    typer.echo(f"{error}\n  {t('More: {command}', command=show.command('explain', error.code))}", err=True)
    sys.exit(2)


def main() -> NoReturn:
    """Run the command line. Exit status: 0 done, 1 a fault of ours, 2 something to mend (said how), 130 Ctrl-C."""
    codecs.register_error("letters", letters)
    for stream in (sys.stdout, sys.stderr):
        # A console in a legacy code page must not die of a Chinese character.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="letters")
    if parent.is_needed(sys.argv[1:]) and parent.is_light():
        parent.split()
    _quiet()
    try:
        sys.exit(_run())
    except TuneloopError as error:
        _report(error)
    except KeyboardInterrupt:
        typer.echo(t("Stopped."), err=True)
        sys.exit(130)
    except typer.Abort:
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if environment().verbose:
            traceback.print_exc()
        from tuneloop.base.refusals import output_is_full, refused  # not before a verb runs

        if refusal := refused(error):
            if not getattr(error, "filename", None) and output_is_full():
                refusal.where = t("standard output")
            _report(refusal)
        typer.echo(
            t(
                "This is a fault of tuneloop: {kind}: {error}. TUNELOOP_DEBUG=1 shows where.",
                kind=type(error).__name__,
                error=error,
            ),
            err=True,
        )
        sys.exit(1)
