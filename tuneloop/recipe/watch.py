"""The section `watch`: what a run looks out for, what it does about it, and whom it tells."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tuneloop.base.language import t
from tuneloop.recipe.section import Section

TrackerName = Literal["trackio", "swanlab", "tensorboard", "wandb", "mlflow"]
Level = Literal["note", "watch", "bad"]


class SwitchSection(Section):
    """A section that `true` or `false` in its place switches on or off."""

    @model_validator(mode="before")
    @classmethod
    def _switch(cls, raw: Any) -> Any:
        return {"enabled": raw} if isinstance(raw, bool) else raw


class RulePart(SwitchSection):
    """A rule that has no number of its own."""

    enabled: bool = Field(True, description="Look out for it.")


class ReboundRule(RulePart):
    """The loss rises again."""

    above: float = Field(0.05, gt=0, description="Share above its lowest from which a risen loss counts.")


class ExplodingRule(RulePart):
    """The gradient grows."""

    high: float = Field(
        10.0, gt=0, description="Gradient norm above which a run without enough lines to know its own gets a note."
    )
    alarm: float = Field(20.0, gt=0, description="Above this, and grown fivefold, it is bad rather than watch.")


class VanishingRule(RulePart):
    """The gradient fades."""

    low: float = Field(
        0.1, gt=0, description="Gradient norm below which a run without enough lines to know its own gets a note."
    )


class MemoryRule(RulePart):
    """Memory runs out."""

    watch: float = Field(0.90, gt=0, le=1, description="Share of the memory in use from which to watch.")
    bad: float = Field(0.95, gt=0, le=1, description="Share of the memory in use that is bad.")


class RulesPart(Section):
    """What is looked out for. A rule compares the run with itself; its numbers count where a run is too young."""

    rebound: ReboundRule = Field(default_factory=ReboundRule, description="The loss rises again.")
    exploding: ExplodingRule = Field(default_factory=ExplodingRule, description="The gradient grows.")
    vanishing: VanishingRule = Field(default_factory=VanishingRule, description="The gradient fades.")
    nan: RulePart = Field(default_factory=RulePart, description="A loss or gradient that is NaN or infinite.")
    plateau: RulePart = Field(default_factory=RulePart, description="The loss falls no more.")
    overfit: RulePart = Field(default_factory=RulePart, description="The held-out loss rises while training's falls.")
    throughput: RulePart = Field(default_factory=RulePart, description="Steps take much longer than they did.")
    memory: MemoryRule = Field(default_factory=MemoryRule, description="Memory runs out.")
    disk: RulePart = Field(default_factory=RulePart, description="The disk fills.")
    rate: RulePart = Field(default_factory=RulePart, description="The learning rate is zero, and steps are left.")
    labels: RulePart = Field(default_factory=RulePart, description="Rows whose loss stays extreme: wrong labels?")


class RemediesPart(Section):
    """What a run does about it by itself."""

    memory: bool = Field(True, description="Out of memory: smaller micro-batches, then checkpointing, then offload.")
    spike: bool = Field(True, description="NaN or a spike: back, without that batch, at a lower rate.")
    stop: bool = Field(True, description="Overfitting or a plateau: end at the best checkpoint.")
    disk: bool = Field(True, description="A full disk: remove old checkpoints, then pause.")
    limit: int = Field(
        3, ge=1, description="So often spike, and disk from the same state; memory until nothing is left to reduce."
    )

    @model_validator(mode="before")
    @classmethod
    def _none(cls, raw: Any) -> Any:
        return dict.fromkeys(("memory", "spike", "stop", "disk"), raw) if isinstance(raw, bool) else raw


class NotifyPart(Section):
    """Who is told. An address has a secret in it, so it must not stand here itself."""

    file: str | None = Field(None, description="A file with one apprise address per line; not in the recipe: secrets.")
    level: Level = Field("bad", description="From which level on; the end of a run is told in any case.")

    @model_validator(mode="before")
    @classmethod
    def _name(cls, raw: Any) -> Any:
        return {"file": raw} if isinstance(raw, str) else raw

    @field_validator("file")
    @classmethod
    def _is_file(cls, name: str | None) -> str | None:
        if name is not None and (not name.strip() or "://" in name):
            raise ValueError(t("the name of a file in which the addresses stand"))
        return name


class WatchPart(SwitchSection):
    """What a run looks out for, what it does about it, and whom it tells."""

    enabled: bool = Field(True, description="Rules and remedies; false switches all of them off.")
    rules: RulesPart = Field(default_factory=RulesPart)
    remedies: RemediesPart = Field(default_factory=RemediesPart)
    trackers: list[TrackerName] = Field(default_factory=list, description="Where figures are sent as well.")
    notify: NotifyPart = Field(default_factory=NotifyPart)

    @field_validator("trackers", mode="before")
    @classmethod
    def _one(cls, raw: Any) -> Any:
        return [raw] if isinstance(raw, str) else raw

    @field_validator("trackers")
    @classmethod
    def _once(cls, names: list[TrackerName]) -> list[TrackerName]:
        return list(dict.fromkeys(names))
