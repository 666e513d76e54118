"""tuneloop key: make, list and revoke the API keys of a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneloop.base.language import t
from tuneloop.cli import show
from tuneloop.cli.verb import Verb, Verbs

if TYPE_CHECKING:
    from tuneloop.registry.store import Store

app = typer.Typer(
    cls=Verbs, no_args_is_help=True, rich_markup_mode=None, help="Make, list and revoke the keys of 'tuneloop serve'."
)
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
Workspace = Annotated[Path, typer.Option("--workspace", "-w", help="Folder of runs/ and models/.")]
MOST = 100_000_000


@contextmanager
def _store(workspace: Path) -> Iterator[Store]:
    from tuneloop.improvement.archive import store_place
    from tuneloop.registry.store import open_store

    store = open_store(store_place(workspace))
    try:
        yield store
    finally:
        store.close()


@app.command("add", cls=Verb)
def add_key(
    name: Annotated[str, typer.Argument(help="Whose key it is: a customer, a program.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What for, repeatable: chat, completions, embeddings, classify, feedback, batches, metrics or *."
        ),
    ] = None,
    expires: Annotated[str, typer.Option(help="When it ends: 90d, 12h, 8w, or its last day as 2027-12-31.")] = "",
    requests: Annotated[int | None, typer.Option(min=0, max=MOST, help="Requests a minute; 0: no limit.")] = None,
    tokens: Annotated[int | None, typer.Option(min=0, max=MOST, help="Tokens a minute; 0: no limit.")] = None,
    streams: Annotated[int | None, typer.Option(min=0, max=MOST, help="Answers at the same time; 0: no limit.")] = None,
    another: Annotated[bool, typer.Option("--another", help="A further key for a customer that has one.")] = False,
    workspace: Workspace = Path(),
    json: Json = False,
) -> None:
    """Make a key and print it, this once: only its hash is stored. Limits that are not named are the recipe's.

    Examples: tuneloop key add shop --expires 90d --requests 60 | tuneloop key add prometheus --scope metrics
    """
    from tuneloop.serving.access.keys import expiry, issue

    end, own = expiry(expires) if expires else "", (requests, tokens, streams)
    with _store(workspace) as store:
        key, secret = issue(store, name, scopes=scope or (), expires=end, own=own, another=another)
    if json:
        show.as_json({**key.as_dict(), "key": secret})
        return
    show.say(t("The key of {name} ({id}). It is shown this once; keep it in a safe place:", name=name, id=key.id))
    print(secret)


@app.command("list", cls=Verb)
def list_keys(workspace: Workspace = Path(), json: Json = False) -> None:
    """The keys that were made, what each is for, and which are still valid. The keys themselves are not stored.

    Example: tuneloop key list
    """
    from tuneloop.serving.access.keys import all_keys

    with _store(workspace) as store:
        keys = all_keys(store)
    if json:
        show.as_json([key.as_dict() for key in keys])
        return
    if not keys:
        show.say(t("There are no keys yet; make one with: {command}", command=show.command("key", "add", "NAME")))
        return
    states = {"live": t("valid"), "expired": t("expired"), "revoked": t("revoked")}
    rows = [
        (
            key.id,
            key.name,
            states[key.state],
            " ".join(sorted(key.scopes)),
            *(_limit(one) for one in (key.requests, key.tokens, key.streams)),
            _minute(key.created),
            _minute(key.expires),
        )
        for key in keys
    ]
    columns = [t("id"), t("name"), t("state"), t("for"), t("requests a minute"), t("tokens a minute"),
               t("answers at once"), t("made"), t("ends")]  # fmt: skip
    show.table(t("Keys"), columns, rows)


@app.command("revoke", cls=Verb)
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The id of a key, or a name: then all keys of that name.")],
    workspace: Workspace = Path(),
    json: Json = False,
) -> None:
    """End a key for ever. A server that runs refuses it within a second.

    Examples: tuneloop key revoke shop | tuneloop key revoke 0a1b2c3d4e5f
    """
    from tuneloop.serving.access.keys import revoke

    with _store(workspace) as store:
        ended = revoke(store, key)
    if json:
        show.as_json([one.as_dict() for one in ended])
        return
    for one in ended:
        print(t("The key {id} of {name} is revoked.", id=one.id, name=one.name))


def _limit(own: int | None) -> str:
    """
    >>> _limit(None), _limit(0), _limit(60)
    ('–', '∞', '60')
    """
    return "–" if own is None else str(own or "∞")


def _minute(time: str) -> str:
    """
    >>> _minute("2026-01-31T12:00:00Z"), _minute("")
    ('2026-01-31 12:00', '–')
    """
    return time[:16].replace("T", " ") or "–"
