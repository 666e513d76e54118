"""The fields of a chat request that say what an answer must look like: tools, the choice among them, JSON formats."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, StringConstraints, field_validator

from tuneloop.serving.http.json_schemas import checked
from tuneloop.serving.http.schemas import RequestBody

MOST_TOOLS = 128
MOST_NODES = 8000
"""Most objects and lists in all tools together."""
FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class FunctionSpec(RequestBody):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of the arguments.")
    strict: bool | None = Field(None, description="Changes nothing: a forced call always meets its schema.")

    @field_validator("parameters")
    @classmethod
    def _is_schema(cls, parameters: Any) -> Any:
        return parameters if parameters is None else checked(parameters)


class ToolSpec(RequestBody):
    type: Literal["function"]
    function: FunctionSpec

    def as_tool(self) -> dict[str, Any]:
        """The tool as a chat template takes it."""
        return {"type": "function", "function": self.function.model_dump(exclude_none=True, exclude={"strict"})}


class FunctionReference(RequestBody):
    name: FunctionName


class NamedTool(RequestBody):
    type: Literal["function"]
    function: FunctionReference


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | NamedTool


class TextFormat(RequestBody):
    type: Literal["text"]


class JsonObjectFormat(RequestBody):
    type: Literal["json_object"]


class NamedSchema(RequestBody):
    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    definition: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Changes nothing: the answer always meets the schema.")

    @field_validator("definition")
    @classmethod
    def _is_schema(cls, definition: Any) -> Any:
        return definition if definition is None else checked(definition)


class JsonSchemaFormat(RequestBody):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat: TypeAlias = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
