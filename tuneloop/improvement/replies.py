"""Replies that were kept: what a model was asked and what it answered, by which version, for whom."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, select

from tuneloop.improvement.forgetting import forgotten_since
from tuneloop.registry.store import Store, replies
from tuneloop.safety import pii

PAGE = 500


@dataclass(frozen=True, slots=True)
class KeptReply:
    """One prompt of a request with its answers. `id` is the completion's; `prompt` counts those of one request."""

    id: str
    prompt: int
    created: int
    """When the request came, in seconds since 1970."""
    tenant: str
    key_id: str
    user_hash: str
    model: str
    """The name that was asked for."""
    version: str
    """What the server was started with: a version, a run, a model."""
    arm: str
    """Of an experiment; "" outside one."""
    purpose: str
    question: Mapping[str, Any]
    """{"messages" or "prompt", "tools", and what else shaped the answer}."""
    answers: Sequence[Mapping[str, Any]]
    """{"text", "thought", "calls", "finish"} of each choice; finish is "" for one that was cut off."""
    prompt_tokens: int
    answer_tokens: int


def put_replies(connection: Connection, rows: Sequence[KeptReply], *, masked: bool) -> int:
    """Write replies down, those left out whose user was forgotten since their request came; how many.

    `masked`: personal data in their texts is replaced by its kind first.
    """
    known = forgotten_since(connection)
    wanted = [row for row in rows if row.created > known(row.user_hash, row.tenant)]
    if wanted:
        connection.execute(replies.insert(), [_row(row, masked) for row in wanted])
    return len(wanted)


def kept_replies(store: Store, **equal: str) -> Iterator[KeptReply]:
    """The replies whose columns equal what is given, the oldest first.

    >>> list(kept_replies(store, version="shop:v1"))  # doctest: +SKIP
    """
    order = (replies.c.created, replies.c.id, replies.c.prompt)
    query = select(replies).where(*(replies.c[name] == word for name, word in equal.items())).order_by(*order)
    with store.read() as connection:
        for row in connection.execution_options(yield_per=PAGE).execute(query).mappings():
            question, answers = json.loads(row["question"]), json.loads(row["answers"])
            yield KeptReply(**{**row, "question": question, "answers": answers})


def _row(reply: KeptReply, masked: bool) -> dict[str, Any]:
    columns = {**asdict(reply), "model": reply.model.replace("\0", "\ufffd")}  # PostgreSQL's texts hold no NUL
    for name in ("question", "answers"):
        columns[name] = _as_json(mask_all(columns[name]) if masked else columns[name])
    return columns


def _as_json(tree: Any) -> str:
    # Half a surrogate pair, which is no UTF-8, is written as JSON's escape of it.
    return json.dumps(tree, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode()


def mask_all(tree: Any) -> Any:
    """A tree of JSON with the personal data in its texts replaced by its kind.

    >>> mask_all({"content": ["write to li@example.com", 3]})
    {'content': ['write to [EMAIL]', 3]}
    """
    if isinstance(tree, str):
        return pii.mask(tree, pii.find(tree))
    if isinstance(tree, Mapping):
        return {key: mask_all(inner) for key, inner in tree.items()}
    if isinstance(tree, list | tuple):
        return [mask_all(inner) for inner in tree]
    return tree
