"""The key of an answer: everything that changes it, as one digest.

A chat is taken as it came and in its own order, not as token ids: the tokenizer is the engine's, which this side does
not have. With the digest of the template and tokenizer (`Engine.identity`) equal chats are equal token ids.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from tuneloop.serving.engine import Query

FORMAT = 1
"""Of the keys and of what is stored under them: another number, and nothing that was stored before is read."""
_WHO = frozenset({"user"})
"""Fields of a query that say who asks, and change no answer."""


def is_deterministic(query: Query) -> bool:
    """Whether the same query is to have the same answer: greedy, seeded, or nothing is drawn at all.

    >>> from tuneloop.base.records import Sampling
    >>> [is_deterministic(Query("chat", "m", sampling=Sampling(t, seed=s))) for t, s in ((0, None), (1, None), (1, 7))]
    [True, False, True]
    """
    drawn = query.purpose in {"chat", "text"} and query.sampling.temperature > 0
    return not drawn or query.sampling.seed is not None


def answer_key(query: Query, *, tenant: str, identity: str, policy: str = "", namespace: str = "") -> str:
    """ "TENANT:ANSWER", both in hexadecimal: the key of the answer to `query` for one tenant.

    `identity` is that of the model (`Engine.identity`), `policy` the version of the safety policy. The order of keys in
    tools and schemas counts, since templates write it out.

    >>> keys = [answer_key(Query("text", "m", prompt=p), tenant="shop", identity="1") for p in ("1", (1,), "1")]
    >>> keys[0] == keys[2] != keys[1], len(keys[0])
    (True, 97)
    """
    asked_for = {name: field for name, field in _fields(query).items() if name not in _WHO}
    parts = [FORMAT, namespace, tenant, identity, policy, asked_for]
    # Half surrogates that were joined from two texts are two characters: "surrogatepass" tells them from one.
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"), default=_fields)
    return f"{tenant_digest(tenant)}:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _fields(given: object) -> dict[str, object]:
    """What json takes for a record or a mapping."""
    if is_dataclass(given):
        return {field.name: getattr(given, field.name) for field in fields(given)}
    assert isinstance(given, Mapping)
    return dict(given)


def tenant_digest(tenant: str) -> str:
    """32 hex digits that stand for a tenant."""
    return hashlib.sha256(f"tenant {tenant}".encode("utf-8", "surrogatepass")).hexdigest()[:32]


def person_digest(person: str, secret: bytes = b"") -> str:
    """32 hex digits that stand for a person; "" for nobody. The name itself is nowhere in a cache.

    >>> person_digest(""), len(person_digest("ann")), person_digest("ann") == person_digest("ann", b"secret")
    ('', 32, False)
    """
    name = person.encode("utf-8", "surrogatepass")
    return hmac.new(b"person " + secret, name, hashlib.sha256).hexdigest()[:32] if person else ""
