"""The environment, read in this one place. Every variable tuneloop knows is a field here and in docs/*/settings.md."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from tuneloop import language


@dataclass(frozen=True, slots=True)
class Environment:
    """What the process environment says. Read anew by `environment()`, so a test can change it."""

    home: Path
    """TUNELOOP_HOME: the cache of base models; default ~/.cache/tuneloop."""
    language: str
    """TUNELOOP_LANG, else LC_ALL, LC_MESSAGES, LANG: "en" or "zh"; what TUNELOOP_LANG says where that is neither."""
    offline: bool
    """TUNELOOP_OFFLINE, HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE set to 1: never ask a hub."""
    hub_endpoint: str
    """HF_ENDPOINT: another address for the model hub; empty means the library's own."""
    endpoint_key: str = field(repr=False)
    """TUNELOOP_ENDPOINT_KEY: the key for `prepare.augment.endpoint`; it stands in no recipe and in no file."""
    verbose: bool
    """TUNELOOP_DEBUG=1: show the Python traceback of an unexpected error."""


def _flag(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in {"1", "true", "yes", "on"}


def _language() -> str:
    get = os.environ.get
    own = get("TUNELOOP_LANG", "").strip()
    if own:  # a wrong word there was meant for us, so it is kept, to be told
        return language.named(own) or own
    return language.named(get("LC_ALL") or get("LC_MESSAGES") or get("LANG") or "") or "en"


def environment() -> Environment:
    """The environment as it is now."""
    get = os.environ.get
    return Environment(
        home=Path(get("TUNELOOP_HOME") or Path.home() / ".cache" / "tuneloop").expanduser(),
        language=_language(),
        offline=_flag("TUNELOOP_OFFLINE") or _flag("HF_HUB_OFFLINE") or _flag("TRANSFORMERS_OFFLINE"),
        hub_endpoint=get("HF_ENDPOINT", ""),
        endpoint_key=get("TUNELOOP_ENDPOINT_KEY", ""),
        verbose=_flag("TUNELOOP_DEBUG"),
    )


language.default(_language)


def quiet_libraries() -> None:
    """Set what the libraries below us read from the environment: no telemetry, no advice, no deadlock warning."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # A line a layer and step on how it computes; peft imports it wherever it is installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # cuBLAS sums in the same order each time; it reads this when the first product is made on a card.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Threads of a matrix product that wait for each other spin for milliseconds by default; where another program takes
    # one of the cores, that made steps several times slower. Waiting briefly costs nothing on a quiet machine
    # (measured: 340 tokens a second either way). OpenMP reads this once, when torch is first imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # oneDNN keeps the code of the last 1,024 products it made, a megabyte each where bfloat16 is multiplied; rows of
    # every length then grow a run by 20 MB a step. A step itself has about thirty different ones.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
