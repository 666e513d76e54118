"""What differs between two versions, and where a row came from: `tuneloop data diff`, `tuneloop data trace`."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer

from tuneloop.base.language import listed, t
from tuneloop.cli import show
from tuneloop.cli.inspect import Json, Workspace
from tuneloop.cli.usage import wrong

SHOWN = 5
"""Examples that are printed of each kind of difference; --json has more."""


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="The first version, named as for data inspect.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The second version.")],
    workspace: Workspace = Path(),
    json: Json = False,
) -> None:
    """Show what is in B and not in A, and the other way round: rows, sources, settings, and what each step dropped.

    Example: tuneloop data diff chats/1f0c2a chats
    """
    from tuneloop.data.version import lineage
    from tuneloop.data.version.find import locate

    first, second = locate(workspace, a), locate(workspace, b)
    changes = lineage.diff(first, second)
    if json:
        show.as_json(changes)
    else:
        _differences(changes, f"{first.name}/{first.hash}", f"{second.name}/{second.hash}")


def _differences(changes: dict[str, Any], a: str, b: str) -> None:
    from tuneloop.data import ledger

    words = {
        "added": t("only in {version}", version=b), "removed": t("only in {version}", version=a),
        "changed": t("other content at the same line"), "moved": t("on another side"), "kept": t("the same in both"),
    }  # fmt: skip
    rows = [
        (words[name], f"{n:,}", "\n".join(map(_place, changes["examples"].get(name, ())[:SHOWN])))
        for name, n in changes["rows"].items()
    ]
    show.table(f"{a} → {b}", [t("rows"), "", t("for example")], rows)
    if changes["sources"]:
        actions = {"added": t("added"), "removed": t("removed"), "changed": t("changed")}
        show.table(t("Sources"), [t("file"), ""], [(file, actions[what]) for file, what in changes["sources"].items()])
    if changes["settings"]:
        settings = [line for key, pair in changes["settings"].items() for line in _parts(key, *pair)]
        show.table(t("Settings"), [t("setting"), a, b], settings)
    if changes["steps"]:
        reasons = ledger.words()
        rows = [(reasons.get(name, name), f"{x:,}", f"{y:,}") for name, (x, y) in changes["steps"].items()]
        show.table(t("Why rows were dropped"), [t("reason"), a, b], rows)


def _parts(key: str, a: Any, b: Any) -> list[tuple[str, str, str]]:
    """A setting that differs, of a list or a section only what differs in it.

    >>> _parts("data", [{"files": ["a.csv"], "repeat": 1}], [{"files": ["b.csv"], "repeat": 1}])
    [('data[0].files', 'a.csv', 'b.csv')]
    """
    if a == b:
        return []
    if isinstance(a, dict) and isinstance(b, dict):
        return [line for name in a | b for line in _parts(f"{key}.{name}", a.get(name), b.get(name))]
    if any(isinstance(x, dict) for one in (a, b) if isinstance(one, list) for x in one):
        pairs = enumerate(zip_longest(a or [], b or [], fillvalue=None))
        return [line for n, (ours, theirs) in pairs for line in _parts(f"{key}[{n}]", ours or {}, theirs or {})]
    return [(key, _shown(a), _shown(b))]


def _shown(setting: Any) -> str:
    return listed(setting) if isinstance(setting, list) else "–" if setting is None else str(setting)


def _place(row: dict[str, Any]) -> str:
    return f"{row['file']}:{row['line']} {show.side(row['side'])} {row['id']}"


def trace(
    row: Annotated[
        list[str],
        typer.Argument(
            metavar="[VERSION] ID",
            help="A row's id, or its first digits; of the newest version that has it, or of this one.",
        ),
    ],
    workspace: Workspace = Path(),
    json: Json = False,
) -> None:
    """Tell the story of one row: its text, its side, the file and line it came from, its ancestors, its ledger.

    Examples: tuneloop data trace 9f86d081 | tuneloop data trace chats 9f86d081
    """
    from tuneloop.data.version import lineage
    from tuneloop.data.version.find import locate

    if len(row) > 2:
        raise wrong("tuneloop data trace", t("there is a word too many: {words}", words=listed(row[2:])))
    story = lineage.trace(locate(workspace, row[0]), row[1]) if len(row) == 2 else lineage.newest(workspace, row[0])
    if json:
        show.as_json(_as_dict(story))
    else:
        _story(story)


def _as_dict(story: Any) -> dict[str, Any]:
    from dataclasses import asdict

    def row(record: Any) -> dict[str, Any]:
        return {"id": record.id, **asdict(record)}

    return {
        "record": row(story.record),
        "side": story.side,
        "source": story.source,
        "parents": [row(one) for one in story.parents],
        "ledger": [e.as_dict() for e in story.ledger],
    }


def _story(story: Any) -> None:
    from tuneloop.data import ledger
    from tuneloop.data.card.excerpts import visible
    from tuneloop.data.card.page import step_name

    record, source = story.record, story.source
    rows = [
        (t("row"), f"{record.file}:{record.line}"), (t("side"), show.side(story.side)), (t("kind"), record.kind),
        (t("label"), record.label), (t("shape"), source.get("shape", "")), ("sha256", source.get("sha256", "")),
        (t("made from"), "\n".join(f"{one.id} {one.file}:{one.line}" for one in story.parents) or record.parent),
    ]  # fmt: skip
    show.table(record.id, ["", ""], [row for row in rows if row[1]])
    words = ledger.words()
    entries = [(e.action, step_name(e.step), words.get(e.reason, e.reason), e.detail) for e in story.ledger]
    if entries:
        actions = {"dropped": t("dropped"), "changed": t("changed"), "marked": t("marked"), "added": t("added")}
        rows = [(actions[action], *rest) for action, *rest in entries]
        show.table(t("What the ledger holds"), ["", t("step"), t("reason"), t("details")], rows)
    turns = [(m.role, _turn(m)) for m in record.messages]
    turns += [(f"{m.role} ({t('the worse answer')})", _turn(m)) for m in record.rejected]
    show.table(t("Text"), ["", ""], [(role, visible(text)) for role, text in turns])


def _turn(message: Any) -> str:
    import json

    calls = (json.dumps(call["function"], ensure_ascii=False) for call in message.tool_calls)
    return "\n".join(part for part in (message.reasoning, message.content, *calls) if part)
