"""Secrets of programs: API keys, tokens, private keys, in folded text. The finder yields (start, end)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

Place = tuple[int, int]

# What every key of an issuer begins with -> what follows it. Looked for by plain search before any pattern runs.
_ISSUED = {
    "sk-": r"[A-Za-z0-9_-]{20,200}",  # OpenAI, DeepSeek, Anthropic and many that copy them
    "sk_live_": r"[A-Za-z0-9]{16,128}",
    "sk_test_": r"[A-Za-z0-9]{16,128}",
    "rk_live_": r"[A-Za-z0-9]{16,128}",
    "ghp_": r"[A-Za-z0-9]{36,251}",
    "gho_": r"[A-Za-z0-9]{36,251}",
    "ghu_": r"[A-Za-z0-9]{36,251}",
    "ghs_": r"[A-Za-z0-9]{36,251}",
    "ghr_": r"[A-Za-z0-9]{36,251}",
    "github_pat_": r"[A-Za-z0-9_]{22,251}",
    "glpat-": r"[A-Za-z0-9_-]{20,64}",
    "hf_": r"[A-Za-z0-9]{30,64}",
    "npm_": r"[A-Za-z0-9]{36}",
    "AKIA": r"[A-Z0-9]{16}",
    "ASIA": r"[A-Z0-9]{16}",
    "AIza": r"[A-Za-z0-9_-]{35}",
    "LTAI": r"[A-Za-z0-9]{12,26}",
    "AKID": r"[A-Za-z0-9]{32}",
    "xoxa-": r"[A-Za-z0-9-]{10,250}",
    "xoxb-": r"[A-Za-z0-9-]{10,250}",
    "xoxe-": r"[A-Za-z0-9-]{10,250}",
    "xoxp-": r"[A-Za-z0-9-]{10,250}",
    "xoxr-": r"[A-Za-z0-9-]{10,250}",
    "xoxs-": r"[A-Za-z0-9-]{10,250}",
    "eyJ": r"[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,16384}\.[A-Za-z0-9_-]{8,4096}",  # JSON Web Token
}
_PATTERNS = {
    prefix: re.compile(re.escape(prefix) + rest + r"(?![A-Za-z0-9_])", re.ASCII) for prefix, rest in _ISSUED.items()
}
_BEARER = re.compile(r"bearer[ \t]{1,4}([A-Za-z0-9._~+/-]{20,4096}=*)", re.IGNORECASE)
_NAMES = ("key", "secret", "token", "passw", "pwd", "credential", "密钥", "密码", "口令", "令牌")
_NAMED = re.compile(
    r"(?:key|secret|token|passw(?:or)?d|pwd|credential|密钥|密码|口令|令牌)"
    r"[\"'`]?[ \t]{0,3}(?:[:=]|是|为)[ \t]{0,3}[\"'`]?"
    r"([A-Za-z0-9+/_.~!@#$%^&*-]{16,512}={0,2})",
    re.IGNORECASE,
)
_PEM = "-----BEGIN "
_PEM_HEAD = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
# A key that was cut off counts as far as its lines go.
_PEM_LINES = re.compile(r"(?:(?:\s|\\[nr]){0,4}[A-Za-z0-9+/=]{32,128}){0,200}")


def entropy(text: str) -> float:
    """Shannon's entropy in bits a character.

    >>> entropy("aaaa"), entropy("abcd")
    (0.0, 2.0)
    """
    return sum(-n / len(text) * math.log2(n / len(text)) for n in Counter(text).values()) if text else 0.0


def _random(text: str, bits: float) -> bool:
    """Letters and digits mixed as chance mixes them, not words such as your-api-key-here-1."""
    return any(c.isdecimal() for c in text) and any(c.isalpha() for c in text) and entropy(text) >= bits


def keys(text: str) -> Iterator[Place]:
    """Keys by their issuer's form, and what stands after key=, token:, Bearer … and looks random."""
    if _PEM in text:
        yield from _private_keys(text)
    for prefix, pattern in _PATTERNS.items():
        if prefix in text:
            for match in pattern.finditer(text):
                last = text[match.start() - 1 : match.start()]
                glued = last.isascii() and (last.isalnum() or last in ("_", "-"))
                if not glued and _random(match[0][len(prefix) :], 2.5 if prefix.isupper() else 3.0):
                    yield match.span()
    small = text.lower()
    for pattern, words in ((_BEARER, ("bearer",)), (_NAMED, _NAMES)):
        if any(word in small for word in words):
            for match in pattern.finditer(text):
                if _random(match[1], 3.4):
                    yield match.span(1)


def _private_keys(text: str) -> Iterator[Place]:
    heads = [match.span() for match in _PEM_HEAD.finditer(text)]
    for (start, head_end), (following, _) in pairwise([*heads, (len(text), 0)]):
        footer = _PEM_END.search(text, head_end, min(following, head_end + 16384))
        lines = _PEM_LINES.match(text, head_end)
        yield start, footer.end() if footer else lines.end() if lines else head_end
