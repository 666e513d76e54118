"""tuneloop model: list, pull and find models."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tuneloop.base.language import t
from tuneloop.cli import show, versions
from tuneloop.cli.verb import Verb, Verbs

app = typer.Typer(
    cls=Verbs, no_args_is_help=True, rich_markup_mode=None, help="Pull and find models; list and name versions."
)
for verb in (versions.versions, versions.alias):
    app.command(cls=Verb)(verb)

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@app.command("list", cls=Verb)
def list_models(json: Json = False) -> None:
    """The models that need no hub, and which of them are on this machine.

    Example: tuneloop model list
    """
    from tuneloop.base.files import format_bytes
    from tuneloop.hub.resolve import listing

    models = listing()
    if json:
        show.as_json([asdict(row) for row in models])
        return
    kinds = {"chat": t("chat"), "base": t("base"), "encoder": t("encoder"), "tokenizer": t("tokenizer")}
    columns = [t("name"), t("also called"), t("kind"), t("size"), t("download"), t("licence"), t("here")]
    rows = [
        (
            r.name,
            "\n".join(r.aliases),
            kinds.get(r.kind, r.kind),
            format_bytes(r.size),
            format_bytes(r.download),
            r.licence.replace("none stated", t("none stated"))
            .replace("(packages)", t("(packages)"))
            .replace("(model)", t("(model)")),
            "✓" if r.cached else "–",
        )
        for r in models
    ]
    show.table(t("Models that need no hub"), columns, rows)
    print(
        t(
            "Bring one here: {command}. Also taken: a folder, org/name of the hub, modelscope:org/name.",
            command=show.command("model", "pull", "NAME"),
        )
    )


@app.command("pull", cls=Verb)
def pull_model(
    name: Annotated[str, typer.Argument(help="A name of 'tuneloop model list', org/name, or modelscope:org/name.")],
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="You have read and accept the model's terms of use.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub's model.")] = None,
    json: Json = False,
) -> None:
    """Bring a model to this machine and print its folder. A second time downloads nothing.

    Examples: tuneloop model pull smollm2 | tuneloop model pull gemma-3-270m --accept-terms
    """
    from tuneloop.hub.pull import provenance
    from tuneloop.hub.resolve import resolve

    folder = resolve(name, revision, accept_terms=accept_terms, weights=False, progress=show.say)
    if json:
        show.as_json({"name": name, **provenance(folder), "path": str(folder)})
    else:
        print(folder)


@app.command("where", cls=Verb)
def where_model(
    name: Annotated[
        str, typer.Argument(help="A name of 'tuneloop model list', org/name, modelscope:org/name, a folder.")
    ],
    json: Json = False,
) -> None:
    """Print the folder of a model that is on this machine. Nothing is downloaded.

    Example: tuneloop model where smollm2
    """
    from tuneloop.hub.resolve import where

    folder = where(name)
    if json:
        show.as_json({"name": name, "path": str(folder)})
    else:
        print(folder)
