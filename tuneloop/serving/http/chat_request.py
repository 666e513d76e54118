"""POST /v1/chat/completions: what a request may say, and the query that it is to an engine."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from tuneloop.base.errors import ServeError
from tuneloop.base.language import listed, t
from tuneloop.data.tokens.templates import Chat
from tuneloop.serving.engine import Query
from tuneloop.serving.http.body import parse_json
from tuneloop.serving.http.errors import Places
from tuneloop.serving.http.json_schemas import extent
from tuneloop.serving.http.schemas import GenerationRequest, Neutral, RequestBody, unsupported
from tuneloop.serving.http.tool_fields import (
    MOST_NODES,
    MOST_TOOLS,
    JsonSchemaFormat,
    NamedTool,
    ResponseFormat,
    ToolChoice,
    ToolSpec,
)

MOST_MESSAGES = 2048
MOST_PARTS = 2048


class TextPart(RequestBody):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None


class CalledFunction(RequestBody):
    """What an earlier answer called. `arguments` are JSON text, as the API has it, or the object itself."""

    model_config = ConfigDict(extra="ignore")
    name: str
    arguments: str | dict[str, Any] | None = None


class EarlierCall(RequestBody):
    model_config = ConfigDict(extra="ignore")
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction

    def as_call(self) -> dict[str, Any]:
        """The call with its arguments as an object, as training renders them."""
        arguments: Any = self.function.arguments
        if arguments is None or arguments == "":
            arguments = {}
        if isinstance(arguments, str):
            # As strictly as a body: what is nested without end, say, stays text, over which no step behind stumbles.
            with suppress(ServeError):
                arguments = parse_json(arguments.encode())
        named = {key: field for key, field in (("id", self.id), ("type", self.type)) if field}
        return {**named, "function": {"name": self.function.name, "arguments": arguments}}


def _describe_content(schema: dict[str, Any]) -> None:
    """Into the JSON schema of a message goes what `ChatMessage._has_content` wants."""
    schema["anyOf"] = [
        {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
        {
            "required": ["tool_calls"],
            "properties": {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "minItems": 1}},
        },
    ]


class ChatMessage(RequestBody):
    """One message of a request. `content` may come in text parts; pictures and sound are refused."""

    model_config = ConfigDict(json_schema_extra=_describe_content)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=MOST_PARTS)] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Annotated[list[EarlierCall], Field(max_length=MOST_TOOLS)] | None = None
    reasoning_content: str | None = Field(None, description="The thought before an earlier answer.")
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(t("{field} is missing", field="content"))
        return self

    def as_chat(self) -> dict[str, Any]:
        """The dict that a chat template takes."""
        parts = self.content if isinstance(self.content, list) else [TextPart(type="text", text=self.content or "")]
        out: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": "".join(p.text for p in parts),
        }
        for key in ("name", "tool_call_id", "tool_calls", "reasoning_content"):
            if field := getattr(self, key):
                out[key] = [call.as_call() for call in field] if key == "tool_calls" else field
        return out


class TemplateOptions(RequestBody):
    enable_thinking: bool | None = Field(None, description="The switch that templates of Qwen3 and relatives have.")


class ChatRequest(GenerationRequest):
    """POST /v1/chat/completions."""

    neutral: ClassVar[Neutral] = {
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "prediction": (None,),
        "web_search_options": (None,),
        "moderation": (None,),
        "verbosity": (None,),
        "reasoning_effort": (None, "none"),
    }

    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[ToolSpec] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none"] | None = Field(None, description="none: without a thought.")
    chat_template_kwargs: TemplateOptions | None = None
    metadata: dict[str, str] | None = Field(None, max_length=64)
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None

    @field_validator("tools", mode="before")
    @classmethod
    def _are_not_too_much(cls, tools: Any) -> Any:
        nodes = extent(tools)[1]
        if nodes > MOST_NODES:
            raise ValueError(t("the schema is too large: {got} parts, at most {most}", got=nodes, most=MOST_NODES))
        return tools

    @field_validator("tools")
    @classmethod
    def _have_names_of_their_own(cls, tools: list[ToolSpec] | None) -> Any:
        names = [tool.function.name for tool in tools or ()]
        if len(set(names)) < len(names):
            raise ValueError(t("two tools have the same name"))
        return tools

    @field_validator("tool_choice")
    @classmethod
    def _is_offered(cls, choice: Any, info: Any) -> Any:
        names = [tool.function.name for tool in info.data.get("tools") or ()]
        if choice == "required" and not names:
            raise ValueError(t("{field} needs {other}", field="tool_choice: required", other="tools"))
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            raise ValueError(t("no tool has this name; there are: {names}", names=listed(names) or "-"))
        return choice

    @field_validator("response_format")
    @classmethod
    def _leaves_room_for_calls(cls, form: Any, info: Any) -> Any:
        """An answer that must be JSON could call no tool; which of the two is meant nobody can tell."""
        calls = info.data.get("tools") and info.data.get("tool_choice") != "none"
        if calls and form is not None and form.type != "text":
            raise unsupported("response_format", {"type": form.type, "tools": "…"})
        return form

    def query(self) -> Query:
        """What is asked of the engine."""
        choice = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        tools = () if choice == "none" else tuple(tool.as_tool() for tool in self.tools or ())
        return Query(
            "chat",
            self.model,
            chat=self.chat(),
            tools=tools,
            tool_choice=choice if choice and tools else "auto",
            parallel_tool_calls=self.parallel_tool_calls is not False,
            thinking=self.thinking,
            max_new_tokens=self.wanted,
            sampling=self.sampling(),
            n=self.n or 1,
            stop=self.stops,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            schema=self.schema_wanted,
            user=self.safety_identifier or self.user or "",
        )

    def chat(self) -> Chat:
        return [m.as_chat() for m in self.messages]

    @property
    def wanted(self) -> int | None:
        """The longest answer asked for, in tokens; None when the request leaves it open."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def thinking(self) -> bool | None:
        """Whether the model is to think first; None leaves it to the template."""
        switch = self.chat_template_kwargs.enable_thinking if self.chat_template_kwargs else None
        return False if switch is None and self.reasoning_effort == "none" else switch

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must meet; {} is any JSON object."""
        if self.response_format is None or self.response_format.type == "text":
            return None
        if isinstance(self.response_format, JsonSchemaFormat):
            return self.response_format.json_schema.definition or {}
        return {}

    @property
    def places(self) -> Places:
        length = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        messages = ("TL-SERVE-CONTEXT", "TL-SERVE-TOKEN", "TL-SERVE-NO-ANSWER", "TL-DATA-TEMPLATE", "prompt")
        return {**dict.fromkeys(messages, "messages"), "TL-SERVE-ROOM": length, "max_tokens": length}
