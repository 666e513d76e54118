"""tuneloop forget: one person's replies, feedback, batches and cached answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tuneloop.cli.inspect import Json


def forget(
    ref: Annotated[
        str, typer.Argument(help="What is served, where its recipe names a Redis: a run or a version.")
    ] = "",
    user: Annotated[
        str, typer.Option(help="Who: what requests say as user or safety_identifier, else the name of their key.")
    ] = "",
    key: Annotated[str, typer.Option(help="Only what came with the key of this name.")] = "",
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="Folder of runs/ and models/.")] = Path(),
    json: Json = False,
) -> None:
    """Remove what a server has kept of one person, while it serves or not: no byte of it is left in its files.

    Example: tuneloop forget --user li-1984
    """
    from tuneloop.base.language import t
    from tuneloop.cli import show, usage
    from tuneloop.serving.forget_user import forget_user

    if not user:
        raise usage.wrong("tuneloop forget", t("--user says whom to forget"))
    counts = forget_user(user, workspace=workspace, tenant=key, ref=ref)
    if json:
        show.as_json(counts)
        return
    if not sum(counts.values()):
        print(t("Nothing was kept of this user."))
        return
    words = {
        "replies": t("replies"),
        "feedback": t("feedback"),
        "files": t("files"),
        "lines": t("lines of batches"),
        "batches": t("batches"),
        "cached": t("cached answers"),
    }
    rows = [(words[name], count) for name, count in counts.items()]
    show.table(t("Removed"), [t("kind"), t("count")], rows)
