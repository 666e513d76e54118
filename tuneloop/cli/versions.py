"""What was registered: `tuneloop model versions`, and which version a name such as :production means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneloop.base.language import t
from tuneloop.cli import show
from tuneloop.cli.inspect import Json

Workspace = Annotated[Path, typer.Option("--workspace", "-w", help="Folder of runs/ and models/.")]


def versions(
    name: Annotated[str, typer.Argument(help="Only those of this name.")] = "",
    workspace: Workspace = Path(),
    json: Json = False,
) -> None:
    """The versions that runs became in this workspace, what each was trained on, and which name points to which.

    Examples: tuneloop model versions | tuneloop model versions demo
    """
    from tuneloop.registry import versions as registry

    listed = registry.versions(workspace, name or None)
    if name and not listed:
        registry.find(workspace, name)  # says which names there are
    if json:
        show.as_json([one.as_dict() for one in listed])
        return
    if not listed:
        show.say(
            t(
                "Nothing is registered in {workspace} yet; a run that ends becomes a version.",
                workspace=workspace.resolve(),
            )
        )
        return
    rows = [
        (
            one.ref,
            " ".join(f":{alias}" for alias in one.aliases),
            one.run,
            one.base_model,
            one.method,
            _loss(one.metrics),
            one.created[:16].replace("T", " "),
        )
        for one in listed
    ]
    columns = [t("version"), t("called"), t("run"), t("model"), t("method"), t("held-out loss"), t("made")]
    show.table(t("Versions"), columns, rows)
    print(
        t("Point a name to one with: {command}", command=show.command("model", "alias", listed[-1].ref, "production"))
    )


def _loss(metrics: dict[str, dict[str, object]]) -> str:
    before, after = (metrics.get(when, {}).get("loss") for when in ("before", "after"))
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return show.number(None)
    return f"{show.number(before)} → {show.number(after)}"


def alias(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A version, as name:v3.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name that means it from now on, as production.")],
    workspace: Workspace = Path(),
    json: Json = False,
) -> None:
    """Let a name mean a version: afterwards demo:production is what chat, serve and export take it for.

    Example: tuneloop model alias demo:v1 production
    """
    from tuneloop.registry import versions as registry

    promoted = registry.promote(workspace, version, name.lstrip(":"))
    if json:
        show.as_json(promoted.as_dict())
        return
    ref = f"{promoted.name}:{name.lstrip(':')}"
    print(t("{alias} is {version} now.", alias=ref, version=promoted.ref))
    print(f"  {show.command('serve', ref)}")
