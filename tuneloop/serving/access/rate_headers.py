"""OpenAI's headers of what a key may still ask for."""

from __future__ import annotations

from tuneloop.serving.access.gcra import RateLimits, RateVerdict

RATE_HEADERS = tuple(
    f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)
"""All of them."""


def rate_headers(limits: RateLimits, verdict: RateVerdict) -> dict[str, str]:
    """OpenAI's headers of what is left.

    >>> rate_headers(RateLimits(requests=60), RateVerdict(requests_left=59, requests_reset=1000))
    {'x-ratelimit-limit-requests': '60', 'x-ratelimit-remaining-requests': '59', 'x-ratelimit-reset-requests': '1s'}
    """
    kinds = (
        ("requests", limits.requests, verdict.requests_left, verdict.requests_reset),
        ("tokens", limits.tokens, verdict.tokens_left, verdict.tokens_reset),
    )
    out: dict[str, str] = {}
    for kind, limit, rest, reset in kinds:
        if limit:
            out[f"x-ratelimit-limit-{kind}"] = str(limit)
            out[f"x-ratelimit-remaining-{kind}"] = str(rest)
            out[f"x-ratelimit-reset-{kind}"] = span(reset)
    return out


def span(milliseconds: int) -> str:
    """A time as OpenAI's headers write it.

    >>> span(0), span(17), span(1_500), span(60_000), span(61_001)
    ('0s', '17ms', '1.5s', '1m0s', '1m1.001s')
    """
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") if rest else "0"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
