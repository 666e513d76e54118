"""tuneloop export: a run as folders that other tools load, proven to answer as the trained model does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneloop.cli import show
from tuneloop.cli.signals import ended_as_by_ctrl_c

if TYPE_CHECKING:
    from tuneloop.exports.export import Exported


def export(
    run: Annotated[str, typer.Argument(help="A run (folder, name, latest) or a version (name:v3).")] = "latest",
    to: Annotated[Path | None, typer.Option("--to", "-o", help="The new folder; exports/<run> by default.")] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--as", help="What to make, merged by default; may be given several times. See --targets."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Type of the merged weights: float32, bfloat16 or float16; by default the trained one."),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", help="An adapter to add after the run's own: a run, a version or a folder; in order."
        ),
    ] = None,
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder that holds runs/.")] = Path(),
    listing: Annotated[bool, typer.Option("--targets", help="List what a run can be exported as, and stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what the check found as JSON.")] = False,
) -> None:
    """Export a run for transformers, vLLM, llama.cpp or Ollama, and prove that it answers as the trained model does.

    Examples: tuneloop export runs/demo-1 | tuneloop export demo:v2 --as gguf-q4_k_m --to exports/assistant
    """
    from tuneloop.base.language import t

    if listing:
        _list(json)
        return
    names = list(dict.fromkeys(targets or ["merged"]))
    from tuneloop.exports.targets import require_known

    require_known(names)
    from tuneloop.registry import versions
    from tuneloop.runs.run import open_run

    folder = versions.locate(workspace, run) or open_run(run, workspace).path
    from tuneloop import pipeline

    to = to or workspace / "exports" / _usual_name(folder.name, names)
    with ended_as_by_ctrl_c():
        exported = pipeline.export_all(run, to, names, workspace=workspace, dtype=dtype, more=more or (), say=show.say)
    if json:
        show.as_json(_report(to, exported))
        return
    for one in exported.values():
        typer.echo(t("exported to {path}", path=one.path))
        typer.echo(t("checked: {parity}", parity=one.parity.line()))
        for note in one.notes:
            typer.echo(t("note: {note}", note=note))
        typer.echo(t("try it: {command}", command=one.command))


def _usual_name(run: str, names: list[str]) -> str:
    """The folder of an export that was given none.

    >>> _usual_name("demo-1", ["merged"]), _usual_name("demo-1", ["merged", "gguf-q8_0"])
    ('demo-1', 'demo-1-merged+gguf-q8_0')
    """
    return run if names == ["merged"] else f"{run}-{'+'.join(names)}"


def _report(to: Path, exported: dict[str, Exported]) -> dict[str, Any]:
    """The figures of the first target as they always stood, and those of each by its name."""
    each = {
        name: {"path": str(one.path), **one.parity.as_dict(), "notes": list(one.notes), "command": one.command}
        for name, one in exported.items()
    }
    first = next(iter(exported.values()))
    return {"path": str(to), **first.parity.as_dict(), "targets": each}


def _list(json: bool) -> None:
    from tuneloop.base.language import listed, t
    from tuneloop.exports.targets import TARGETS

    if json:
        show.as_json(
            {
                name: {"purpose": one.purpose(), "bits_per_weight": one.bits, "read_by": list(one.readers)}
                for name, one in TARGETS.items()
            }
        )
        return
    rows = [(name, one.purpose(), _size(one.bits), listed(one.readers)) for name, one in TARGETS.items()]
    show.table(
        t("What a run can be exported as"), ["--as", t("what it is for"), t("bits a weight"), t("loaded by")], rows
    )


def _size(bits: float | None) -> str:
    from tuneloop.base.language import t

    if bits is None:
        return t("32 or 16 (--dtype)")
    return f"{bits:g}" if bits else t("the adapter's own")
