"""What the requests of the API have in common: strict fields, those of sampling, and what is refused by name.

A field that would change the answer and is not supported is refused, not ignored; fields that change nothing here (who
the user is, where a hosted service would store or bill) are let through. No engine is known here.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from tuneloop.base.errors import ServeError
from tuneloop.base.language import t
from tuneloop.base.records import Sampling
from tuneloop.serving.http.errors import Places

COLDEST = 1e-3
"""Below this temperature sampling is greedy within the precision of the logits, and is done so."""
MOST_STOPS = 16
MOST_CHOICES = 128
MOST_BIASES = 4096
Neutral = dict[str, tuple[Any, ...]]
"""Fields of the API that would change the answer, with the values at which they change nothing."""
NEEDS = {"stream_options": "stream", "top_logprobs": "logprobs"}
"""Field -> the one that must be true beside it."""
Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
TokenKey = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
Biases = Annotated[
    dict[TokenKey, Bias], Field(max_length=MOST_BIASES, json_schema_extra={"additionalProperties": False})
]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


def _describe_neutral(schema: dict[str, Any], kind: type[BaseModel]) -> None:
    """Into the JSON schema of a request go the fields that are taken at their neutral values only."""
    for name, neutral in getattr(kind, "neutral", {}).items():
        words = "Would change the answer and is not supported: any other value is refused (TL-SERVE-UNSUPPORTED)."
        schema.setdefault("properties", {})[name] = {"enum": list(neutral), "description": words}


class RequestBody(BaseModel):
    """A body. Unknown fields are refused, so that a misspelt one is not ignored in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, json_schema_extra=_describe_neutral)
    neutral: ClassVar[Neutral] = {}

    @model_validator(mode="before")
    @classmethod
    def _only_supported(cls, body: Any) -> Any:
        """Refuse what would change the answer; raised as it is, past pydantic, for it is no mistake of form."""
        if not isinstance(body, dict):
            return body
        for key, neutral in cls.neutral.items():
            if key in body and not any(body[key] == one and type(body[key]) is type(one) for one in neutral):
                raise unsupported(key, body[key])
        return {k: v for k, v in body.items() if k not in cls.neutral or k in cls.model_fields}


def unsupported(field: str, content: Any) -> ServeError:
    """The refusal of a field that would change the answer."""
    return ServeError("TL-SERVE-UNSUPPORTED", where=field, param=field, got=_short(content))


def _short(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"


class StreamOptions(RequestBody):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class GenerationRequest(RequestBody):
    """The fields that every request for text has. Without a temperature the answer is greedy: what evaluation has
    measured."""

    model: ModelName
    max_tokens: int | None = Field(None, ge=1, le=2**31)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, le=2**31, description="0 and -1 are no limit.")
    min_p: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="A share of the likeliest token's probability."
    )
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    repetition_penalty: float | None = Field(
        None, gt=0, le=10, allow_inf_nan=False, description="Over prompt and answer; null takes the model's own."
    )
    logit_bias: Biases | None = Field(None, description="By token id.")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @field_validator(*NEEDS, check_fields=False)
    @classmethod
    def _has_what_it_needs(cls, content: Any, info: Any) -> Any:
        other = NEEDS[info.field_name]
        if content is not None and not info.data.get(other):
            raise ValueError(t("{field} needs {other}", field=info.field_name, other=f"{other}: true"))
        return content

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def sampling_temperature(self) -> float:
        """The temperature to sample at; 0 is greedy."""
        return 0.0 if self.temperature is None or self.temperature < COLDEST else self.temperature

    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.sampling_temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            repetition_penalty=self.repetition_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
        )

    @property
    def places(self) -> Places:
        """The fields that an engine's errors are about."""
        return {}
