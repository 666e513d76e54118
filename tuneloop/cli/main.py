"""The command line: one thin file a verb. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, NoReturn

import typer

from tuneloop import __version__, language
from tuneloop.cli import chat, compare, doctor, evaluate, explain, export, model, plan, prepare, run, serve, train
from tuneloop.environment import environment, quiet_libraries
from tuneloop.errors import TuneloopError
from tuneloop.language import t

app = typer.Typer(
    name="tuneloop",
    help="Raw conversations -> a fine-tuned model, measured, exported, served. Begin with: tuneloop run demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run.run)
app.command()(prepare.prepare)
app.command()(plan.plan)
app.command()(train.train)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(export.export)
app.command()(chat.chat)
app.command()(serve.serve)
app.add_typer(model.app, name="model")
app.command()(explain.explain)
app.command()(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tuneloop {__version__}")
        raise typer.Exit


@app.callback()
def options(
    lang: Annotated[str, typer.Option(help="Language of everything printed: en or zh.")] = "",
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    if lang:
        language.use(lang)


def main() -> NoReturn:
    """Run the command line. Exit status: 0 done, 1 a fault of ours, 2 something to mend (said how), 130 Ctrl-C."""
    language.use(environment().language)
    quiet_libraries()
    for stream in (sys.stdout, sys.stderr):
        # A console in a legacy code page must not die of a Chinese character.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app()
    except TuneloopError as error:
        typer.echo(f"{error}\n  {t('More: tuneloop explain {code}', code=error.code)}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo(t("Stopped."), err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if environment().verbose:
            traceback.print_exc()
        typer.echo(
            t("This is a fault of tuneloop: {kind}: {error}. TUNELOOP_DEBUG=1 shows where.", kind=type(error).__name__,
              error=error),
            err=True,
        )  # fmt: skip
        sys.exit(1)
    sys.exit(0)
