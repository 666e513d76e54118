"""What the routes of feedback, files and batches take and give, in OpenAI's shapes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator, with_config
from typing_extensions import TypedDict

from tuneloop.base.language import t
from tuneloop.serving.http.schemas import RequestBody

_EXACT = ConfigDict(extra="forbid")
MOST_NOTES = 16
RecordId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,96}$")]
Notes = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=MOST_NOTES),
]
UserName = Annotated[str, StringConstraints(max_length=1000)]


class FeedbackRequest(RequestBody):
    """POST /v1/feedback: what a user thought of an answer."""

    id: RecordId = Field(description="The id of the completion.")
    choice: int = Field(0, ge=0, lt=2**31, description="Which of its answers.")
    thumb: Literal["up", "down"] | None = None
    score: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    correction: Annotated[str, StringConstraints(min_length=1, max_length=100_000)] | None = Field(
        None, description="What the answer should have been."
    )
    user: UserName | None = None
    safety_identifier: UserName | None = None

    @model_validator(mode="after")
    def _says_something(self) -> FeedbackRequest:
        if self.thumb is None and self.score is None and self.correction is None:
            raise ValueError(t("one of {names} is wanted", names="thumb, score, correction"))
        return self

    @property
    def named(self) -> str:
        """The user that it names; "" where it names none."""
        return self.safety_identifier or self.user or ""


class BatchRequest(RequestBody):
    """POST /v1/batches."""

    input_file_id: RecordId
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify"]
    completion_window: Literal["24h"]
    metadata: Notes | None = None


@with_config(_EXACT)
class FeedbackReply(TypedDict):
    """`stored`: whether the reply is in the store."""

    object: Literal["feedback"]
    id: str
    choice: int
    stored: bool


@with_config(_EXACT)
class FileObject(TypedDict):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"]
    expires_at: None


@with_config(_EXACT)
class FileDeleted(TypedDict):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


@with_config(_EXACT)
class BatchFault(TypedDict):
    code: str
    message: str
    param: str | None
    line: int | None


BatchFaults = TypedDict("BatchFaults", {"object": Literal["list"], "data": list[BatchFault]})  # noqa: UP013


@with_config(_EXACT)
class RequestCounts(TypedDict):
    total: int
    completed: int
    failed: int


BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


@with_config(_EXACT)
class BatchObject(TypedDict):
    """A batch; the times are seconds since 1970."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchFaults | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


# Written as dicts: "data" is a key of theirs, and no name of ours.
FileList = TypedDict(  # noqa: UP013
    "FileList",
    {
        "object": Literal["list"],
        "data": list[FileObject],
        "first_id": str | None,
        "last_id": str | None,
        "has_more": bool,
    },
)
BatchList = TypedDict(  # noqa: UP013
    "BatchList",
    {
        "object": Literal["list"],
        "data": list[BatchObject],
        "first_id": str | None,
        "last_id": str | None,
        "has_more": bool,
    },
)
