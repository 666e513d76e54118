"""What a key may be used for, by the route: a route that no scope names is for keys of all scopes alone."""

from __future__ import annotations

ALL = "*"
"""The scope that has every other one in it."""
ANY = ""
"""Of routes that every key may ask."""
METRICS = "metrics"
ROUTES: dict[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/classify": "classify",
    "/v1/feedback": "feedback",
    "/v1/batches": "batches",
    "/v1/files": "batches",
    "/v1/models": ANY,
    "/openapi.json": ANY,
    "/metrics": METRICS,
}
"""Path of a route, or what it begins with -> the scope that a key needs."""
SCOPES: tuple[str, ...] = tuple(dict.fromkeys(scope for scope in ROUTES.values() if scope))
"""All scopes, in the order of the routes."""
USUAL: tuple[str, ...] = tuple(scope for scope in SCOPES if scope != METRICS)
"""Those of a key for which none is named."""
ASKING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify"})
"""Routes whose requests become questions to the engine."""


def scope_of(path: str) -> str:
    """The scope that a route wants, by the path that it was declared with.

    >>> scope_of("/v1/models/{name:path}"), scope_of("/metrics"), scope_of("/v1/modelsx"), scope_of("/new")
    ('', 'metrics', '*', '*')
    """
    named = (scope for start, scope in ROUTES.items() if path == start or path.startswith(f"{start}/"))
    return next(named, ALL)


def allows(scopes: frozenset[str], path: str) -> bool:
    """Whether a key with these scopes may ask a route.

    >>> allows(frozenset({"chat"}), "/v1/chat/completions"), allows(frozenset({"chat"}), "/metrics")
    (True, False)
    """
    wanted = scope_of(path)
    return wanted == ANY or ALL in scopes or wanted in scopes
