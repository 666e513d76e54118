"""The policy of a guard: a versioned YAML file that says what happens to which words, on which side."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from tuneloop.base.errors import ServeError, TuneloopError, os_words
from tuneloop.base.language import t
from tuneloop.recipe import yaml
from tuneloop.recipe.recipe import NEEDS
from tuneloop.recipe.schema import PiiKind
from tuneloop.recipe.section import Section
from tuneloop.safety.lexicon import Lexicon, shipped
from tuneloop.safety.wordlists import ALLOWED, ListedWord, read_words

GuardAction = Literal["block", "mask", "log", "off"]
TextSide = Literal["input", "output"]


class SideActions(Section):
    """What happens on each side: to what is sent to the model, and to what it answers."""

    input: GuardAction = "block"
    output: GuardAction = "block"

    def on(self, side: TextSide) -> GuardAction:
        """The action of a side."""
        return self.input if side == "input" else self.output


class ModelGuardPart(Section):
    """A model that judges whole texts: a classifier behind an address, or a run of tuneloop."""

    url: str | None = Field(None, pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$")
    """Address of a server with /v1/classify (tuneloop's) or /v1/moderations (OpenAI's), ending in /v1."""
    run: str | None = None
    """A run, version or model of tuneloop that is a classifier."""
    name: str = ""
    """The model's name at the address."""
    key_file: str | None = None
    """A file with the key for the address."""
    labels: list[str] = Field(default_factory=list)
    """Labels that are refused; for /v1/moderations none: what it flags."""
    threshold: float = Field(0.5, gt=0, le=1)
    """Probability from which a label counts."""
    sides: tuple[TextSide, ...] = ("input",)
    """Where it judges. An answer is held back until it is judged whole."""
    on_failure: Literal["open", "closed"] = "closed"
    """What happens to a text that could not be judged: it passes, or is refused."""
    seconds: float = Field(10.0, gt=0, le=600)

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelGuardPart:
        if (self.url is None) == (self.run is None):
            raise ValueError(t("either url or run"))
        if self.run is not None and not self.labels:
            raise ValueError(t("a run needs the labels that are refused"))
        return self


class Policy(Section):
    """What a guard does."""

    name: str = Field("default", pattern=r"^[\w][\w.-]{0,63}$")
    version: int | str = 1
    shipped: bool = True
    """Whether the word lists that come with tuneloop are used."""
    lists: list[str] = Field(default_factory=list)
    """Word lists of your own, found from the policy's folder."""
    words: dict[str, list[str]] = Field(default_factory=dict)
    """Category -> words of your own."""
    allow: list[str] = Field(default_factory=list)
    """Phrases that make a word inside them harmless."""
    actions: dict[str, SideActions] = Field(default_factory=dict)
    otherwise: SideActions = Field(default_factory=SideActions)
    personal_data: SideActions = Field(default_factory=lambda: SideActions(input="log", output="mask"))
    kinds: list[PiiKind] = Field(default_factory=list)
    """Kinds of personal data; all where none is named."""
    model: ModelGuardPart | None = None

    @field_validator("actions", mode="before")
    @classmethod
    def _each(cls, raw: Any) -> Any:
        return {key: _per_side(action) for key, action in raw.items()} if isinstance(raw, dict) else raw

    @field_validator("otherwise", "personal_data", mode="before")
    @classmethod
    def _one(cls, raw: Any) -> Any:
        return _per_side(raw)

    def action(self, category: str, side: TextSide) -> GuardAction:
        """What happens to a word of a category."""
        return self.actions.get(category, self.otherwise).on(side)


def _per_side(raw: Any) -> Any:
    """`block` stands for both sides; YAML reads a bare `off` as it is written in our dialect, or as False."""
    raw = "off" if raw is False else raw
    if isinstance(raw, dict):
        return {key: "off" if word is False else word for key, word in raw.items()}
    return {"input": raw, "output": raw} if isinstance(raw, str) else raw


def read_policy(path: str | Path = "default", lists: Sequence[str | Path] = ()) -> tuple[Policy, Lexicon, str]:
    """A policy with its words, and its version: name, version and a digest of all that it holds, lists included.

    `lists` are further word lists.
    "default" is the one that comes with tuneloop; a policy of your own begins with that one's actions and phrases, and
    what it names stands in their place. Raises TL-SERVE-POLICY, and TL-DATA-LEXICON for a list that cannot be read.
    """
    packaged = files("tuneloop").joinpath("safety", "policies", "default.yaml")
    default = yaml.loads(packaged.read_text(encoding="utf-8"), "default.yaml")
    folder = Path()
    raw = default
    if str(path) != "default":
        folder = Path(path).parent
        own = _own(Path(path))
        raw = {**default, **own, "actions": {**default["actions"], **_mapping(own.get("actions"))}}
        raw["allow"] = (
            [*default["allow"], *(own.get("allow") or [])] if own.get("shipped", True) else own.get("allow", [])
        )
    try:
        policy = Policy.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(map(_fault, error.errors()[:5]))
        raise ServeError("TL-SERVE-POLICY", where=str(path), error=faults) from error
    if policy.model and policy.model.key_file:
        key = str(folder / Path(policy.model.key_file).expanduser())
        policy = policy.model_copy(update={"model": policy.model.model_copy(update={"key_file": key})})
    return policy, *_lexicon(policy, folder, lists)


def _fault(one: Any) -> str:
    """A fault of pydantic with its key, in the chosen language where the kind is known."""
    kind, place = str(one["type"]), ".".join(map(str, one["loc"]))
    if kind == "extra_forbidden":
        return f"{place}: {t('there is no such key')}"
    need = NEEDS.get(kind) or NEEDS.get(kind.split("_")[0])
    if need is None:
        return f"{place}: {one['msg']}"
    words = need(one.get("ctx") or {})
    return f"{place}: {words if kind == 'value_error' else t('wanted: {bounds}', bounds=words)}"


def _mapping(raw: Any) -> dict[str, Any]:
    return raw if isinstance(raw, dict) else {}


def _own(path: Path) -> dict[str, Any]:
    try:
        content = yaml.loads(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError("TL-SERVE-POLICY", where=str(path), error=os_words(error)) from error
    except TuneloopError as error:
        raise ServeError("TL-SERVE-POLICY", where=str(path), error=error.what) from error
    if not isinstance(content, dict):
        raise ServeError("TL-SERVE-POLICY", where=str(path), error=t("it is no section of keys"))
    return content


def _lexicon(policy: Policy, folder: Path, lists: Sequence[str | Path]) -> tuple[Lexicon, str]:
    words = [ListedWord(word, category) for category, own in policy.words.items() for word in own]
    for path in (*lists, *(folder / Path(name).expanduser() for name in policy.lists)):
        words += read_words(Path(path))
    words += shipped() if policy.shipped else []
    words += [ListedWord(phrase, ALLOWED) for phrase in policy.allow]
    digest = hashlib.sha256(policy.model_dump_json().encode())
    for word in words:
        digest.update(f"{word.category}\0{word.text}\n".encode())
    return Lexicon(words), f"{policy.name}:{policy.version}:{digest.hexdigest()[:12]}"
