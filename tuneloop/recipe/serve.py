"""The recipe's section `serve`: how the result is served, and to whom."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from tuneloop.recipe.section import Section

EngineName = Literal["torch", "gguf", "proxy", "vllm"]
CacheBackend = Literal["off", "memory", "sqlite", "redis"]


class LimitsPart(Section):
    """What one key may use, where it has no limits of its own."""

    requests: int | None = Field(None, ge=1, le=100_000_000, description="Requests a minute.")
    tokens: int | None = Field(None, ge=1, le=100_000_000, description="Tokens a minute, of prompts and answers.")
    streams: int | None = Field(None, ge=1, le=100_000, description="Answers at the same time.")
    without_redis: Literal["closed", "open"] = Field(
        "closed", description="While Redis does not answer: refuse with 503, or count in each process alone."
    )


class CachePart(Section):
    """Answers that were computed before: the same question need not be computed twice."""

    backend: CacheBackend = Field("off", description="Where they are.")
    ttl: float = Field(3600.0, gt=0, description="Seconds after which an answer is computed anew.")
    size: int = Field(64, ge=1, description="MiB of answers; those whose last use is longest ago make place.")
    namespace: str = Field("", description="Any word: another one, and no answer from before is given.")


class SafetyPart(Section):
    """What the server lets pass."""

    policy: str = Field("off", description="The guard's policy: off, default, or a YAML file.")
    audit: str | None = Field(None, description="A file for the guard's records, JSON lines; else they go to the log.")

    @field_validator("policy", mode="before")
    @classmethod
    def _off(cls, raw: Any) -> Any:
        return "off" if raw is False else raw


class RecordsPart(Section):
    """What is kept of questions and answers."""

    replies: Literal["off", "sampled", "full"] = Field("off", description="Which replies are kept in the store.")
    share: float = Field(0.1, gt=0, le=1, description="Of sampled: the share of the requests that is kept.")
    mask: bool = Field(True, description="Replace personal data in kept texts by its kind before they are written.")
    feedback: bool = Field(True, description="Take feedback at /v1/feedback.")


class BatchesPart(Section):
    """Long jobs: files of requests."""

    enabled: bool = Field(True, description="Take files and batches at /v1/files and /v1/batches.")
    at_once: int = Field(4, ge=1, le=1024, description="Requests of batches that are answered at the same time.")
    file_mb: int = Field(100, ge=1, le=2000, description="Largest file, in MB.")
    storage_mb: int = Field(2000, ge=1, description="What the files of one key may take together, in MB.")


class ServePart(Section):
    """How the result is served."""

    engine: EngineName = Field("torch", description="What computes the answers.")
    queue: int = Field(32, ge=0, description="Requests that may wait; the next one is refused.")
    max_new_tokens: int = Field(1024, ge=1, description="Longest answer of a request that names no length.")
    key_file: str | None = Field(None, description="A file with the key that clients must send.")
    slots: int = Field(32, ge=1, le=1024, description="Answers that are written at the same time, at most.")
    cache_tokens: int | None = Field(
        None, ge=256, description="Tokens whose keys and values are held at once; by default what the memory takes."
    )
    chunk: int = Field(512, ge=16, description="Tokens of a prompt that are read at once while others are answered.")
    watchdog: float = Field(300.0, ge=1, description="Seconds without a step after which the engine is started again.")
    adapter_memory: float = Field(2.0, gt=0, description="GiB that loaded adapters may take together.")
    upstreams: list[str] = Field(default_factory=list, description="Of proxy: addresses of servers, ending in /v1.")
    upstream_key_file: str | None = Field(None, description="Of proxy: a file with the key for the upstreams.")
    vllm_command: str | None = Field(None, description="Of vllm: its program, and options for it.")
    redis: str | None = Field(None, description="Address of a Redis that several servers share.")
    limits: LimitsPart = Field(default_factory=LimitsPart)
    log: Literal["json", "off"] = Field("json", description="A line of JSON for each request, without its texts.")
    cors: list[str] = Field(default_factory=list, description="Origins whose pages may ask, or *.")
    drain: float = Field(60.0, ge=0, description="Seconds that answers under way get after SIGTERM.")
    cache: CachePart = Field(default_factory=CachePart)
    safety: SafetyPart = Field(default_factory=SafetyPart, description="The guard of questions and answers.")
    records: RecordsPart = Field(default_factory=RecordsPart)
    batches: BatchesPart = Field(default_factory=BatchesPart)
