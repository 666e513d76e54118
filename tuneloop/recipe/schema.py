"""The sections of the recipe: what may stand in it, of which type, with which default.

Reading, translating and judging a recipe is `recipe/recipe.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tuneloop.base.language import t
from tuneloop.base.records import Kind
from tuneloop.recipe.choices import USUAL_METHOD, USUAL_RATE, LossName, MethodName, TaskName
from tuneloop.recipe.section import Section
from tuneloop.recipe.serve import ServePart
from tuneloop.recipe.watch import WatchPart

Strategy = Literal["steps", "epoch", "no"]
Action = Literal["off", "mark", "drop"]
PiiAction = Literal["off", "mark", "mask", "drop"]
PiiKind = Literal["id_card", "mobile", "phone", "bank_card", "email", "ip", "mac", "api_key", "iban", "ssn", "passport"]
TooLong = Literal["reject", "turns", "split", "cut_left", "cut_right"]
Range = tuple[int, int] | None
LoraInit = Literal["default", "gaussian", "pissa", "olora", "orthogonal"]
OptimizerName = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "paged_adamw", "adafactor", "sgd"]
TrainPreset = Literal["domain", "general", "quick"]
AugmentMethod = Literal["synonyms", "back_translation", "follow_up", "branch"]


class ModelPart(Section):
    """Which model, and how it is loaded."""

    name: str = Field("smollm2-135m-instruct", description="A pulled name, a folder, a hub id, or modelscope:org/name.")
    revision: str | None = Field(None, description="Pin a hub model to a branch, tag or commit.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="Type of the weights.")
    template: str | None = Field(None, description="Another chat template: chatml-think, say, or a .jinja file.")
    accept_terms: bool = Field(False, description="You have read and accept the terms of a model that has some.")


class DataFile(Section):
    """One file to read, as it lies."""

    path: str = Field(description="A file, folder or glob, - for stdin, hub:org/name or modelscope:org/name.")
    rows: str | None = Field(None, description="A slice in Python's notation, e.g. '[:1500]' or '[100:200]'.")
    sample: int | None = Field(None, ge=1, description="So many rows at random, by label in proportion.")
    split: Literal["auto", "train", "validation", "test"] = Field("auto", description="The side its rows belong to.")
    task: Kind | None = Field(None, description="What its rows are, where looking is not enough.")
    encoding: str | None = Field(None, description="The text's encoding, where looking is not enough.")
    columns: dict[str, str] = Field(default_factory=dict, description="Role -> column, where looking is not enough.")
    header: int | None = Field(None, ge=0, description="The line of a table's header; 0 where it has none.")
    unit: Literal["line", "paragraph", "file"] | None = Field(None, description="What one record of plain text is.")
    speakers: dict[str, Literal["user", "assistant", "system", "tool"]] = Field(
        default_factory=dict, description="Name in the turns -> user, assistant, system or tool."
    )
    repeat: int = Field(1, ge=1, le=100, description="Use each row of this file so many times an epoch.")


class CleanPart(Section):
    """The cleaning steps. off: not looked for; mark: counted and written to the ledger, the row stays as it is."""

    unicode: bool = Field(True, description="Line ends, control characters, composed characters (NFC).")
    mojibake: bool = Field(True, description="Repair text that was read in a wrong encoding.")
    html: bool = Field(True, description="Remove left-over markup such as <br /> outside of code.")
    templates: bool = Field(True, description="Drop dialogues with a {{name}} nobody filled in.")
    roles: Literal["merge", "reject"] = Field("merge", description="Neighbouring turns of one role.")
    languages: list[str] = Field(default_factory=list, description="Keep these languages only: zh, en, ...")
    pii: PiiAction = Field("mark", description="Personal data: ID, phone and card numbers, addresses, keys.")
    pii_kinds: list[PiiKind] = Field(default_factory=list, description="Only these kinds; by default all.")
    lexicon: Action = Field("off", description="Words of the safety lexicon.")
    lexicon_files: list[str] = Field(default_factory=list, description="Word lists of your own, one word a line.")
    repetition: Action = Field("mark", description="Answers that repeat themselves.")
    refusal: Action = Field("mark", description="Answers that refuse: 'As an AI language model, I cannot ...'.")
    gibberish: Action = Field("mark", description="Text without sense: lost characters, keyboard noise.")

    @field_validator("pii", "lexicon", "repetition", "refusal", "gibberish", mode="before")
    @classmethod
    def _bare_off(cls, raw: Any) -> Any:
        return "off" if raw is False else raw  # YAML reads a bare off as false


class AugmentPart(Section):
    """Rows derived from training rows, and never from held-out ones."""

    methods: list[AugmentMethod] = Field(default_factory=list, description="How rows are derived; none by default.")
    share: float = Field(0.2, ge=0, le=1, description="At most so many derived rows for each training row.")
    nonsense: float = Field(1.3, gt=1, description="Reject a text more than so many times as perplexing as before.")
    synonyms_file: str | None = Field(None, description="Words of your own that may stand for each other.")
    endpoint: str | None = Field(None, description="URL of an OpenAI-compatible API, or of LibreTranslate's.")
    endpoint_model: str | None = Field(None, description="The endpoint's model; none for LibreTranslate.")
    translator: list[str] = Field(default_factory=list, description="Local translation models: one, or there and back.")
    via: str = Field("en", pattern=r"^[a-z]{2}$", description="Language that back-translation goes through.")

    @field_validator("methods", "translator", mode="before")
    @classmethod
    def _one(cls, raw: Any) -> Any:
        return [raw] if isinstance(raw, str) else raw

    @field_validator("translator")
    @classmethod
    def _two(cls, models: list[str]) -> list[str]:
        if len(models) > 2:
            raise ValueError(t("one model for every direction, or two: there and back"))
        return models

    @field_validator("endpoint")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", url):
            raise ValueError(t("an address such as http://localhost:8000/v1, without name, password or ?"))
        return url


class PreparePart(Section):
    """Raw files -> dataset version."""

    preset: Literal["guide"] | None = Field(None, description="Limits the guides ask for: 3-8 turns, 512-4096 tokens.")
    system: str | None = Field(None, description="System prompt for dialogues that have none.")
    clean: CleanPart = Field(default_factory=CleanPart, description="The cleaning steps, each with its switch.")
    turns: Range = Field(None, description="Keep dialogues with so many user turns: [least, most].")
    tokens: Range = Field(None, description="Keep dialogues with so many tokens: [least, most].")
    max_length: Annotated[int, Field(ge=16)] | Literal["auto"] = Field(
        "auto", description="Longest dialogue in tokens; auto is what the rows and the model's context need."
    )
    too_long: TooLong = Field("reject", description="What happens to a longer one; never a cut in silence.")
    empty_thoughts: bool = Field(
        False, description="Also train the empty <think></think> that a template writes for rows without a thought."
    )
    overlap: int = Field(64, ge=0, description="Tokens that neighbouring pieces of a split text share.")
    dedupe: Literal["exact", "near", "off"] = Field(
        "exact", description="Drop repetitions: equal ones, or near ones too."
    )
    near: float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity from which two dialogues are near repetitions."
    )
    validation: float = Field(0.1, ge=0, description="Held-out share (below 1) or number of dialogues (1 and above).")
    test: float = Field(0, ge=0, description="The same for a test split that training never looks at.")
    stratify: bool = Field(True, description="Held-out rows have the labels in the same proportions.")
    augment: AugmentPart = Field(default_factory=AugmentPart, description="Rows derived from training rows.")

    @field_validator("validation", "test")
    @classmethod
    def _whole_rows(cls, amount: float) -> float:
        if amount >= 1 and amount != int(amount):
            raise ValueError(t("a share below 1, or a whole number of dialogues"))
        return amount

    @field_validator("dedupe", mode="before")
    @classmethod
    def _switch(cls, raw: Any) -> Any:
        return {True: "exact", False: "off"}.get(raw, raw) if isinstance(raw, bool) else raw


class LoraPart(Section):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(8, ge=1, description="Rank r of the update.")
    alpha: int = Field(16, ge=1, description="The update is scaled by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    targets: list[str] | Literal["all-linear"] = Field("all-linear", description="Module names, or every linear layer.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead.")
    dora: bool = Field(False, description="Weight-decomposed: direction and length apart (DoRA).")
    init: LoraInit = Field("default", description="How A and B begin; pissa and olora from the weights themselves.")
    plus_ratio: float | None = Field(None, ge=1, description="LoRA+: B learns so many times as fast as A (16, say).")
    train_also: list[str] = Field(default_factory=list, description="Modules trained whole beside the adapters.")


class QloraPart(Section):
    """How the frozen weights are held under method qlora (Dettmers et al. 2023, arXiv:2305.14314)."""

    bits: Literal["nf4", "int8"] = Field("nf4", description="4-bit NormalFloat, or 8-bit integers.")
    double: bool = Field(True, description="nf4: the scales are quantised as well.")


class FreezePart(Section):
    """What method freeze trains; all else stays as it is."""

    layers: int = Field(2, ge=0, description="The last so many blocks, with the norm behind them.")
    modules: list[str] = Field(default_factory=list, description="Named modules instead of blocks.")
    head: bool = Field(False, description="The head as well; with layers: 0 the head alone.")


class VirtualPart(Section):
    """Trained vectors in place of prompt text, for ptuning_v2 (in every layer) and prompt_tuning (at the input)."""

    tokens: int = Field(20, ge=1, description="How many.")
    projection: bool = Field(False, description="ptuning_v2: made by a small network (for hard tasks).")
    text: str | None = Field(None, description="They begin as this text; else as words of the vocabulary.")


class ClassifyPart(Section):
    """Tasks classify and classify_prompt."""

    weights: Literal["none", "balanced"] | dict[str, float] = Field("none", description="Weight of each class.")
    template: str | None = Field(
        None, description="classify_prompt: {text}, or {text_a} and {text_b}; for BERT {mask}."
    )
    words: dict[str, list[str]] = Field(default_factory=dict, description="classify_prompt: label -> its words.")


class PreferPart(Section):
    """Task prefer: which loss, and how far the model may go from where it began."""

    loss: LossName = Field("auto", description="dpo; kto on judged rows.")
    beta: float = Field(0.1, gt=0, description="Strength of the pull; SimPO's usual is 2.")
    margin: float = Field(0.5, ge=0, description="SimPO: target reward margin gamma.")
    smoothing: float = Field(0.0, ge=0, lt=0.5, description="DPO: share of pairs thought to be the wrong way round.")
    sft: float = Field(0.0, ge=0, description="Weight of the better answer's own loss, added.")


class SftPart(Section):
    """Tasks chat and text: what a label token loses in training."""

    loss: Literal["cross_entropy", "focal"] = Field("cross_entropy", description="focal: known tokens count less.")
    gamma: float = Field(2.0, ge=0, description="Focal loss: how much less; 0 is cross entropy.")


class TrainPart(Section):
    """How the weights are changed."""

    preset: TrainPreset | None = Field(None, description="Values the guides recommend, where nothing else is said.")
    task: TaskName = Field("auto", description="What is learned; auto looks at the rows.")
    method: MethodName = Field(USUAL_METHOD, description="What is trained.")
    adapter: str | None = Field(None, description="Go on from this adapter: a run, a version or a folder.")
    merge: list[str] = Field(default_factory=list, description="Adapters added into the weights before training.")
    lora: LoraPart = Field(default_factory=LoraPart, description="For methods lora and qlora.")
    qlora: QloraPart = Field(default_factory=QloraPart, description="Only for method qlora.")
    freeze: FreezePart = Field(default_factory=FreezePart, description="Only for method freeze.")
    virtual: VirtualPart = Field(default_factory=VirtualPart, description="For ptuning_v2 and prompt_tuning.")
    classify: ClassifyPart = Field(default_factory=ClassifyPart, description="For tasks classify, classify_prompt.")
    sft: SftPart = Field(default_factory=SftPart, description="For tasks chat and text.")
    prefer: PreferPart = Field(default_factory=PreferPart, description="Only for task prefer.")
    neftune_alpha: float = Field(0.0, ge=0, description="Noise on the embeddings (NEFTune); 5 is usual, 0 none.")
    epochs: float = Field(3.0, gt=0, description="Passes over the data; fractions are taken at their word.")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many steps, whatever the epochs say.")
    batch_size: int = Field(8, ge=1, description="Rows an optimizer step, over all devices and micro-batches.")
    micro_batch_size: int | None = Field(None, ge=1, description="At most so many rows in one forward pass.")
    token_budget: int = Field(2048, ge=16, description="At most so many tokens in one forward pass.")
    packing: bool = Field(True, description="Several rows in one, each seeing only itself; never padding.")
    optimizer: OptimizerName = Field("adamw", description="The paged ones move their state off a full GPU.")
    learning_rate: float = Field(USUAL_RATE, gt=0, description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="After the warm-up.")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps over which the rate rises.")
    warmup_steps: int | None = Field(None, ge=0, description="The same as a number of steps.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled decay.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's averaging factors.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the gradient's norm to this; 0 never clips.")
    checkpointing: bool = Field(False, description="Recompute activations: less memory, about a third more time.")
    keep_trunk: Literal["auto", "on", "off"] = Field("auto", description="Compute frozen lower blocks once in all.")
    matmul: Literal["auto", "float32", "bfloat16"] = Field("auto", description="CPU: type of float32 products.")
    workers: int = Field(0, ge=0, description="Processes that prepare batches; the order is the same for any number.")
    logging_strategy: Strategy = Field("steps", description="When a line of metrics is written.")
    logging_steps: int = Field(1, ge=1, description="Every so many steps.")
    save_strategy: Strategy = Field("epoch", description="When a checkpoint is written; one always is at the end.")
    save_steps: int = Field(100, ge=1, description="Every so many steps.")
    save_total_limit: int | None = Field(2, ge=1, description="Keep so many checkpoints, the oldest go.")
    eval_strategy: Strategy = Field("epoch", description="When the held-out loss is measured.")
    eval_steps: int = Field(100, ge=1, description="Every so many steps.")
    early_stopping: int | None = Field(None, ge=1, description="Stop after so many measurements without a better one.")
    keep_best: bool = Field(False, description="The result is the state with the lowest held-out loss, not the last.")
    sample_answers: int = Field(0, ge=0, description="Held-out questions answered at each measurement, to look at.")

    @field_validator("logging_strategy", "save_strategy", "eval_strategy", mode="before")
    @classmethod
    def _bare_no(cls, raw: Any) -> Any:
        return "no" if raw is False else raw  # YAML reads a bare no as false

    @field_validator("keep_trunk", mode="before")
    @classmethod
    def _bare_switch(cls, raw: Any) -> Any:
        return {True: "on", False: "off"}[raw] if isinstance(raw, bool) else raw  # and a bare on as true


class Probe(Section):
    """Prompts whose answers are searched for a pattern, before and after."""

    name: str = Field(description="How the probe is called in reports.")
    prompts: str | list[str] = Field(description="A text file with one prompt a line, or the prompts themselves.")
    expect: str = Field(description="Regular expression looked for in each answer, case ignored.")
    at_least: int | None = Field(None, ge=0, description="Fewer answers that match after training fail the probe.")
    at_most: int | None = Field(None, ge=0, description="More answers that match after training fail the probe.")


class EvaluateFile(Section):
    """A file of the user's own that is measured beside the held-out rows."""

    path: str = Field(description="A file of any shape that `data` takes; it is never trained on.")
    name: str | None = Field(None, pattern=r"^[\w][\w .-]{0,63}$", description="Its name in reports; the file's own.")
    rows: str | None = Field(None, description="A slice in Python's notation, e.g. '[:100]'.")
    columns: dict[str, str] = Field(default_factory=dict, description="Role -> column, where looking is not enough.")

    @property
    def source(self) -> DataFile:
        """The same as a file to read."""
        return DataFile(path=self.path, rows=self.rows, columns=self.columns)


class EvaluatePart(Section):
    """What is measured before and after."""

    rows: int = Field(16, ge=0, description="Held-out dialogues whose last answer is generated and scored.")
    max_new_tokens: int = Field(64, ge=1, description="Longest generated answer.")
    batch_size: int = Field(32, ge=1, description="Prompts answered at once, at most.")
    show: str | list[str] = Field(default_factory=list, description="Prompts answered side by side in the report.")
    probes: list[Probe] = Field(default_factory=list, description="Questions of fact about the change.")
    general: Literal["loss", "answers", "off"] = Field(
        "loss", description="The general set that comes with tuneloop: what was forgotten."
    )
    files: list[EvaluateFile] = Field(default_factory=list, description="Files of your own, measured as well.")
    tasks: list[str] = Field(default_factory=list, description="Tasks of lm-evaluation-harness (extra eval).")

    @field_validator("general", mode="before")
    @classmethod
    def _bare_off(cls, raw: Any) -> Any:
        return "off" if raw is False else raw  # YAML reads a bare off as false

    @field_validator("files", mode="before")
    @classmethod
    def _paths(cls, raw: Any) -> Any:
        listed = [raw] if isinstance(raw, str | dict) else raw
        return [{"path": one} if isinstance(one, str) else one for one in listed] if isinstance(listed, list) else raw

    @field_validator("tasks", mode="before")
    @classmethod
    def _one(cls, raw: Any) -> Any:
        return [raw] if isinstance(raw, str) else raw


class ClaimPart(Section):
    """What is claimed of one variant against another, and is measured."""

    variant: str = Field(description="The variant it is about.")
    against: str = Field(description="The variant it is held against.")
    cost: float | None = Field(None, gt=0, description="Time, memory and weights are at most this share of its.")
    loss: float | None = Field(None, gt=0, description="Less than this share of its quality is lost.")


class ComparePart(Section):
    """Several runs of one recipe, on the same rows."""

    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Name -> keys of `train` that this run has otherwise."
    )
    claims: list[ClaimPart] = Field(default_factory=list, description="Claims that the variants are measured for.")


class Recipe(Section):
    """One run, from raw files to a registered version."""

    name: str = Field("run", pattern=r"^[\w][\w.-]{0,63}$", description="Names the dataset, the run and the version.")
    seed: int = Field(42, ge=0, lt=2**32, description="Of the split, the order, the adapters' start and dropout.")
    model: ModelPart = Field(default_factory=ModelPart)
    data: list[DataFile] = Field(default_factory=list, description="The raw files.")
    prepare: PreparePart = Field(default_factory=PreparePart)
    train: TrainPart = Field(default_factory=TrainPart)
    evaluate: EvaluatePart = Field(default_factory=EvaluatePart)
    compare: ComparePart = Field(default_factory=ComparePart)
    watch: WatchPart = Field(default_factory=WatchPart)
    serve: ServePart = Field(default_factory=ServePart)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, raw: Any) -> Any:
        """`model: NAME` and `data: FILE` are the usual case and may be written so."""
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        if isinstance(raw.get("model"), str):
            raw["model"] = {"name": raw["model"]}
        files = raw.get("data")
        if isinstance(files, str | dict):
            files = [files]
        if isinstance(files, list):
            raw["data"] = [{"path": d} if isinstance(d, str) else d for d in files]
        return raw
