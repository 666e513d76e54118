"""The recipe: what peers' files become, how what is wrong is said, and that nothing else is raised.

Over 400 lines: the mirror of one module, mostly tables of cases.
"""

from __future__ import annotations

import copy
import os
import re
import string
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuneloop.base.errors import RecipeError, catalogue
from tuneloop.recipe import recipe as module
from tuneloop.recipe.choices import MethodName, usual_rate
from tuneloop.recipe.defaults import PRESETS, settled
from tuneloop.recipe.overrides import changed, changed_with_notes
from tuneloop.recipe.paths import anchored
from tuneloop.recipe.peers.translate import ALIASES
from tuneloop.recipe.recipe import dump, keys, make_recipe, nearest, read_recipe
from tuneloop.recipe.schema import Recipe, TrainPart, TrainPreset

LLAMA_FACTORY = """
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj

### dataset
dataset: talk.json,扮演.jsonl
dataset_dir: corpus
template: llama3
cutoff_len: 4096
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4

### output
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.05
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null

### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
"""

SWIFT_3 = """
model: Qwen/Qwen2.5-7B-Instruct
train_type: lora
dataset:
  - data/alpaca_zh.jsonl#500
  - data/self_cognition.jsonl
torch_dtype: bfloat16
num_train_epochs: 1
per_device_train_batch_size: 1
per_device_eval_batch_size: 1
learning_rate: 1e-4
lora_rank: 8
lora_alpha: 32
target_modules: all-linear
gradient_accumulation_steps: 16
split_dataset_ratio: 0.01
eval_steps: 50
save_steps: 50
save_total_limit: 2
logging_steps: 5
max_length: 2048
output_dir: output
system: You are a helpful assistant.
warmup_ratio: 0.05
dataloader_num_workers: 4
dataset_num_proc: 4
attn_impl: flash_attn
model_author: swift
model_name: swift-robot
"""

SWIFT_4 = """
model: /models/Qwen3-8B
tuner_type: full
template: qwen3
enable_thinking: false
dataset: [train.jsonl]
split_dataset_ratio: 0
max_length: 8192
truncation_strategy: delete
packing: true
padding_free: false
gradient_checkpointing: true
deepspeed: null
use_liger_kernel: true
num_train_epochs: 2
per_device_train_batch_size: 1
gradient_accumulation_steps: 4
learning_rate: 5e-6
weight_decay: 0.1
adam_beta2: 0.95
lr_scheduler_type: cosine
warmup_ratio: 0.05
save_strategy: epoch
eval_strategy: no
output_dir: output/qwen3-full
report_to: [tensorboard, swanlab]
seed: 7
"""

AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_8bit: false
load_in_4bit: false
strict: false

datasets:
  - path: data/chats.jsonl
    type: chat_template
    field_messages: dialog
  - path: json
    data_files: [a.jsonl, b.jsonl]
    type: alpaca
dataset_prepared_path: last_run_prepared
val_set_size: 0.05
output_dir: ./outputs/lora-out

adapter: lora
lora_model_dir:
sequence_len: 2048
sample_packing: true
eval_sample_packing: true
pad_to_sequence_len: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_fan_in_fan_out:
lora_target_linear: true

wandb_project:
wandb_entity:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-4
train_on_inputs: false
group_by_length: false
bf16: auto
fp16:
tf32: false
gradient_checkpointing: true
early_stopping_patience:
resume_from_checkpoint:
local_rank:
logging_steps: 1
xformers_attention:
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
debug:
deepspeed:
weight_decay: 0.0
fsdp:
fsdp_config:
special_tokens:
  pad_token: <|end_of_text|>
"""

TRANSFORMERS = """
model: smollm2-135m-instruct
data: talk.jsonl
train:
  num_train_epochs: 2
  per_device_train_batch_size: 4
  gradient_accumulation_steps: 2
  learning_rate: 3e-4
  lr_scheduler_type: linear
  warmup_ratio: 0.1
  adam_beta1: 0.9
  adam_beta2: 0.98
  adam_epsilon: 1e-8
  optim: adamw_torch_fused
  max_grad_norm: 0.5
  fp16: false
  logging_strategy: steps
  logging_steps: 10
  save_strategy: "no"
  eval_strategy: epoch
  report_to: []
  remove_unused_columns: false
  push_to_hub: false
  lora:
    r: 4
    lora_alpha: 8
    target_modules: [q_proj, v_proj]
    bias: none
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def wrong(raw: Any) -> dict[str, str]:
    """Where -> code of all that is wrong with a recipe."""
    with pytest.raises(RecipeError) as caught:
        make_recipe(raw)
    assert caught.value.code == "TL-RECIPE-INVALID"
    assert caught.value.facts["n"] == len(caught.value.causes)
    return {cause.where: cause.code for cause in caught.value.causes}


def need(raw: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        make_recipe(raw)
    [cause] = caught.value.causes
    assert cause.code == "TL-RECIPE-VALUE"
    return str(cause.facts["need"])


def assert_holds(section: Any, raw: dict[str, Any]) -> None:
    """Each value that was written is in the section; a switch stands for the value it is short for."""
    for key, value in raw.items():
        found = getattr(section, key)
        if isinstance(value, dict):
            assert_holds(found, value)
        elif value is True:
            assert found not in {False, None, "off"}
        else:
            assert found == value or list(found) == list(value), key


class TestPeersFiles:
    def test_llama_factory(self, tmp_path: Path) -> None:
        recipe, notes = read_recipe(write(tmp_path, LLAMA_FACTORY))
        train = recipe.train
        assert recipe.name == "sft"
        assert (recipe.model.name, recipe.model.dtype) == ("meta-llama/Meta-Llama-3-8B-Instruct", "bfloat16")
        assert [(d.path, d.rows) for d in recipe.data] == [
            (str(tmp_path / "corpus/talk.json"), "[:1000]"),
            (str(tmp_path / "corpus/扮演.jsonl"), "[:1000]"),
        ]
        assert (recipe.prepare.max_length, recipe.prepare.validation, train.token_budget) == (4096, 0.1, 4096)
        assert (train.method, train.lora.rank, train.lora.targets) == ("lora", 16, ["q_proj", "v_proj"])
        assert (train.batch_size, train.micro_batch_size, train.learning_rate, train.epochs) == (8, 1, 1e-4, 3)
        assert (train.save_strategy, train.save_steps, train.eval_strategy, train.eval_steps) == ("steps", 500) * 2
        assert train.warmup_ratio == 0.05
        assert train.workers == 4
        told = "\n".join(notes)
        for key in re.findall(r"(?m)^(\w+):", LLAMA_FACTORY):
            assert key in told

    def test_swift_3(self, tmp_path: Path) -> None:
        recipe, notes = read_recipe(write(tmp_path, SWIFT_3))
        assert [(Path(d.path).name, d.sample) for d in recipe.data] == [
            ("alpaca_zh.jsonl", 500),
            ("self_cognition.jsonl", None),
        ]
        assert recipe.model.name == "Qwen/Qwen2.5-7B-Instruct"
        assert recipe.prepare.system == "You are a helpful assistant."
        assert recipe.train.lora.targets == "all-linear"
        assert (recipe.train.batch_size, recipe.train.eval_strategy, recipe.name) == (16, "steps", "output")
        assert any(note.startswith("not used here: ") and "model_name (the data says" in note for note in notes)

    def test_swift_4(self, tmp_path: Path) -> None:
        recipe, _ = read_recipe(write(tmp_path, SWIFT_4))
        train = recipe.train
        assert (train.method, train.packing, train.checkpointing) == ("full", True, True)
        assert (train.batch_size, train.micro_batch_size, train.token_budget) == (4, None, 8192)
        assert (train.betas, train.weight_decay, train.learning_rate) == ((0.9, 0.95), 0.1, 5e-6)
        assert (train.eval_strategy, train.save_strategy, recipe.seed) == ("no", "epoch", 7)
        assert recipe.prepare.validation == 0

    def test_axolotl(self, tmp_path: Path) -> None:
        recipe, notes = read_recipe(write(tmp_path, AXOLOTL))
        train = recipe.train
        assert [(Path(d.path).name, d.columns) for d in recipe.data] == [
            ("chats.jsonl", {"messages": "dialog"}), ("a.jsonl", {}), ("b.jsonl", {}),
        ]  # fmt: skip
        assert (train.method, train.lora.rank, train.lora.alpha, train.lora.targets) == ("lora", 32, 16, "all-linear")
        assert (train.batch_size, train.micro_batch_size, train.token_budget) == (8, None, 4096)
        assert (train.warmup_steps, train.eval_strategy, train.save_strategy) == (10, "epoch", "epoch")
        assert (recipe.name, recipe.model.dtype) == ("lora-out", "auto")
        told = "\n".join(notes)
        for key in re.findall(r"(?m)^(\w+):", AXOLOTL):
            assert key in told

    def test_training_arguments_in_our_sections(self, tmp_path: Path) -> None:
        recipe, _ = read_recipe(write(tmp_path, TRANSFORMERS))
        train = recipe.train
        assert (train.epochs, train.batch_size, train.micro_batch_size, train.schedule) == (2, 8, 4, "linear")
        assert (train.betas, train.save_strategy, train.eval_strategy) == ((0.9, 0.98), "no", "epoch")
        assert (train.lora.rank, train.lora.alpha, train.lora.targets) == (4, 8, ["q_proj", "v_proj"])


class TestWrong:
    def test_all_at_once(self) -> None:
        found = wrong({
            "num_train_epoch": 3, "colour": "blue", "learning_rate": "fast", "deepspeed": "zero2", "bf16": "maybe",
            "data": [{"path": 5, "rowz": 1}], "prepare": {"validation": 1.5, "max_length": 4},
            "train": {"lora": {"r": 4, "rank": 8}, "betas": 5, "batch_size": 0},
        })  # fmt: skip
        assert found == {
            "num_train_epoch": "TL-RECIPE-KEY",
            "colour": "TL-RECIPE-KEY-FAR",
            "train.learning_rate": "TL-RECIPE-VALUE",
            "deepspeed": "TL-RECIPE-UNSUPPORTED",
            "bf16": "TL-RECIPE-VALUE",
            "data.0.path": "TL-RECIPE-VALUE",
            "data.0.rowz": "TL-RECIPE-KEY",
            "prepare.validation": "TL-RECIPE-VALUE",
            "prepare.max_length": "TL-RECIPE-VALUE",
            "train.lora.r": "TL-RECIPE-TWICE",
            "train.betas": "TL-RECIPE-VALUE",
            "train.batch_size": "TL-RECIPE-VALUE",
        }

    def test_the_message_names_key_value_and_remedy(self) -> None:
        with pytest.raises(RecipeError) as caught:
            make_recipe({"num_train_epoch": 3, "train": {"batch_size": 0}}, where="my.yaml")
        text = str(caught.value)
        assert text.startswith("TL-RECIPE-INVALID  my.yaml: Problems found: 2.")
        assert "num_train_epoch: There is no such key. Did you mean train.epochs?" in text
        assert "train.batch_size: The value does not fit: 0. What it needs: a number of at least 1." in text

    @pytest.mark.parametrize(
        ("raw", "words"),
        [
            ({"train": {"learning_rate": 0}}, "a number above 0"),
            ({"train": {"learning_rate": float("inf")}}, "a finite number"),
            ({"prepare": {"validation": float("inf")}}, "a finite number"),
            ({"train": {"lora": {"dropout": 1}}}, "a number below 1"),
            ({"data": [{"path": "a", "repeat": 101}]}, "a number of at most 100"),
            ({"train": {"batch_size": 1.5}}, "a whole number"),
            ({"train": {"packing": "perhaps"}}, "true or false"),
            ({"train": {"schedule": "steep"}}, "one of cosine, linear or constant"),
            ({"train": {"betas": [0.9]}}, "a value"),
            ({"train": {"betas": [0.9, 0.99, 0.999]}}, "a list of two numbers"),
            ({"train": {"lora": {"targets": 5}}}, "a list / one of all-linear"),
            ({"train": 5}, "a section of its own, lines of key: value"),
            ({"data": 5}, "a list"),
            ({"data": [{}]}, "a value"),
            ({"data": [5]}, "a section of its own, lines of key: value"),
            ({"data": [{"path": "a", "columns": 5}]}, "a section of its own, lines of key: value"),
            ({"evaluate": {"show": {}}}, "text, in quotes where it looks like a number / a list"),
            ({"model": {"revision": 12e5}}, "text, in quotes where it looks like a number"),
            ({"name": "a/b"}, "up to 64 letters, digits and . _ - with a letter or digit first"),
            ({"prepare": {"validation": 2.5}}, "a share below 1, or a whole number of dialogues"),
            ({5: 5}, "a key that is text"),
            ({"seed": 10**5000}, "a number below 4294967296"),
        ],
    )  # fmt: skip
    def test_what_is_needed(self, raw: Any, words: str) -> None:
        assert need(raw) == words

    @pytest.mark.parametrize("raw", [None, [], "text", 5])
    def test_no_recipe_at_all(self, raw: Any) -> None:
        with pytest.raises(RecipeError) as caught:
            make_recipe(raw)
        assert caught.value.code == "TL-RECIPE-SHAPE"

    def test_bare_no_of_yaml(self, tmp_path: Path) -> None:
        recipe, _ = read_recipe(write(tmp_path, "train: {save_strategy: no, eval_strategy: no, logging_strategy: no}"))
        assert (recipe.train.save_strategy, recipe.train.eval_strategy, recipe.train.logging_strategy) == ("no",) * 3

    def test_2e_4_is_a_number(self, tmp_path: Path) -> None:
        recipe, _ = read_recipe(write(tmp_path, "train: {learning_rate: 2e-4, weight_decay: 1E-2}"))
        assert (recipe.train.learning_rate, recipe.train.weight_decay) == (2e-4, 1e-2)

    @pytest.mark.parametrize(
        ("text", "code"),
        [("- a\n- b", "TL-RECIPE-SHAPE"), ("just words", "TL-RECIPE-SHAPE"), ("a: [", "TL-RECIPE-YAML"),
         ("seed: 1\nseed: 2", "TL-RECIPE-YAML"), ("name: 2026-02-31", "TL-RECIPE-YAML"), ("x: 1", "TL-RECIPE-INVALID")],
    )  # fmt: skip
    def test_files(self, tmp_path: Path, text: str, code: str) -> None:
        with pytest.raises(RecipeError) as caught:
            read_recipe(write(tmp_path, text))
        assert caught.value.code == code
        assert caught.value.where.endswith("recipe.yaml")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(RecipeError) as caught:
            read_recipe(tmp_path / "nowhere.yaml")
        assert caught.value.code == "TL-RECIPE-MISSING"
        with pytest.raises(RecipeError):
            read_recipe(tmp_path)

    def test_full_width_punctuation_is_named_beside_what_it_breaks(self, tmp_path: Path) -> None:
        for text, code in (("名称：x\n数据：y", "TL-RECIPE-SHAPE"), ("train:\n  epochs：3", "TL-RECIPE-INVALID")):
            with pytest.raises(RecipeError) as caught:
                read_recipe(write(tmp_path, text))
            assert caught.value.code == code
            assert caught.value.causes[0].code == "TL-RECIPE-CHARACTER"
        assert caught.value.facts["n"] == 2
        assert read_recipe(write(tmp_path, "prepare: {system: “好”}"))[0].prepare.system == "“好”"

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read(self, tmp_path: Path) -> None:
        path = write(tmp_path, "name: x")
        path.chmod(0)
        with pytest.raises(RecipeError, match="permission denied") as caught:
            read_recipe(path)
        assert caught.value.code == "TL-RECIPE-READ"

    def test_not_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "r.yaml"
        path.write_bytes("seed: 1\nname: 随附的助手小石".encode("gb18030"))
        with pytest.raises(RecipeError, match="line 2 is not UTF-8") as caught:
            read_recipe(path)
        assert caught.value.code == "TL-RECIPE-YAML"

    def test_an_empty_file_is_the_default(self, tmp_path: Path) -> None:
        for text in ("", "# nothing\n", "train:\n  # epochs: 3\nmodel:\n", "\ufeffseed: 42"):
            assert read_recipe(write(tmp_path, text))[0] == Recipe()


def test_a_given_validation_file_is_all_that_is_held_out() -> None:
    files = [{"path": "a.jsonl"}, {"path": "b.jsonl", "split": "validation"}]
    recipe, notes = make_recipe({"data": files})
    assert recipe.prepare.validation == 0
    assert any("given as validation" in note for note in notes)
    assert make_recipe({"data": files, "prepare": {"validation": 0.2}})[0].prepare.validation == 0.2
    assert make_recipe({"data": files[:1]})[0].prepare.validation == 0.1


def test_word_lists_are_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("prepare: {clean: {lexicon: drop, lexicon_files: [words.txt]}}", "utf-8")
    recipe, _ = read_recipe(tmp_path / "r.yaml")
    assert recipe.prepare.clean.lexicon_files == [str(tmp_path / "words.txt")]


class TestContradictions:
    @pytest.mark.parametrize(
        ("train", "where"),
        [
            ({"method": "full", "lora": {"rank": 4}}, "train.lora"),
            ({"warmup_ratio": 0.2, "warmup_steps": 5}, "train.warmup_ratio"),
            ({"save_strategy": "epoch", "save_steps": 50}, "train.save_steps"),
            ({"eval_strategy": "no", "eval_steps": 50}, "train.eval_steps"),
            ({"logging_strategy": "epoch", "logging_steps": 5}, "train.logging_steps"),
            ({"micro_batch_size": 9}, "train.micro_batch_size"),
            ({"micro_batch_size": 2, "packing": False}, "train.micro_batch_size"),
        ],
    )
    def test_clash(self, train: dict[str, Any], where: str) -> None:
        assert wrong({"train": train}) == {where: "TL-RECIPE-CLASH"}

    @pytest.mark.parametrize(
        ("prepare", "where", "code"),
        [
            ({"turns": [8, 3]}, "turns", "VALUE"),
            ({"turns": [-1, 3]}, "turns", "VALUE"),
            ({"tokens": [2000, 900]}, "tokens", "VALUE"),
            ({"tokens": [2000, 3000], "max_length": 1024}, "tokens", "CLASH"),
            ({"clean": {"pii": "off", "pii_kinds": ["email"]}}, "clean.pii_kinds", "CLASH"),
            ({"clean": {"pii": False, "pii_kinds": ["email"]}}, "clean.pii_kinds", "CLASH"),
            ({"clean": {"lexicon_files": ["a.txt"]}}, "clean.lexicon_files", "CLASH"),
            ({"overlap": 10}, "overlap", "CLASH"),
            ({"overlap": 512, "too_long": "split", "max_length": 512}, "overlap", "VALUE"),
            ({"validation": 0.6, "test": 0.4}, "validation", "CLASH"),
        ],
    )
    def test_of_prepare(self, prepare: dict[str, Any], where: str, code: str) -> None:
        assert wrong({"prepare": prepare}) == {f"prepare.{where}": f"TL-RECIPE-{code}"}

    @pytest.mark.parametrize(
        "prepare",
        [{"turns": [3, 3], "tokens": [1, 9]}, {"overlap": 0, "too_long": "split"}, {"near": 0.5, "dedupe": "near"},
         {"clean": {"pii_kinds": ["email"]}}, {"clean": {"lexicon": "drop", "lexicon_files": ["a.txt"]}},
         {"validation": 50, "test": 0.9}, {"dedupe": True, "overlap": 64, "near": 0.8, "max_length": 32}],
    )  # fmt: skip
    def test_no_clash_of_prepare(self, prepare: dict[str, Any]) -> None:
        assert_holds(make_recipe({"prepare": prepare})[0].prepare, prepare)

    def test_of_data(self) -> None:
        raw = {"path": "a", "rows": "[10:20]", "sample": 11, "repeat": 2, "split": "validation"}
        assert wrong({"data": ["b", raw]}) == {
            "data.1.sample": "TL-RECIPE-CLASH", "data.1.repeat": "TL-RECIPE-CLASH",
        }  # fmt: skip
        make_recipe({"data": [{**raw, "sample": 10, "split": "train"}, {"path": "b", "rows": "[-5:]", "sample": 9}]})

    def test_bare_switches_of_yaml(self) -> None:
        recipe, _ = make_recipe(module.loads("prepare: {dedupe: off, clean: {pii: off, refusal: no}}", "x"))
        assert (recipe.prepare.dedupe, recipe.prepare.clean.pii, recipe.prepare.clean.refusal) == ("off", "off", "off")
        assert make_recipe({"prepare": {"dedupe": True}})[0].prepare.dedupe == "exact"

    def test_a_clash_names_each_key_once(self) -> None:
        with pytest.raises(RecipeError) as caught:
            make_recipe({"train": {"save_strategy": "epoch", "save_steps": 50}})
        assert str(caught.value).count("train.save_steps") == 1

    @pytest.mark.parametrize(
        "train",
        [{"method": "full", "lora": {}}, {"warmup_steps": None, "warmup_ratio": 0.2}, {"save_steps": 50},
         {"save_strategy": "steps", "save_steps": 50}, {"micro_batch_size": 1, "packing": False}],
    )  # fmt: skip
    def test_no_clash(self, train: dict[str, Any]) -> None:
        assert_holds(make_recipe({"train": train})[0].train, train)

    def test_steps_alone_mean_by_steps(self) -> None:
        recipe, notes = make_recipe({"train": {"save_steps": 50}})
        assert recipe.train.save_strategy == "steps"
        assert notes == ["train.save_steps is given, so train.save_strategy is steps"]

    def test_the_longest_dialogue_has_room_unless_both_are_said(self) -> None:
        recipe, notes = make_recipe({"prepare": {"max_length": 5000}})
        assert recipe.train.token_budget == 5000
        assert notes == ["train.token_budget is 5000, so that the longest dialogue has room"]
        assert make_recipe({"prepare": {"max_length": 100}})[0].train.token_budget == TrainPart().token_budget
        raw = {"prepare": {"max_length": 5000}, "train": {"token_budget": 4000}}
        assert wrong(raw) == {"train.token_budget": "TL-RECIPE-BUDGET"}


class TestPreset:
    def test_it_sets_what_the_recipe_leaves_open(self) -> None:
        recipe, notes = make_recipe({"prepare": {"preset": "guide"}})
        part = recipe.prepare
        assert (part.turns, part.tokens, part.max_length, recipe.train.token_budget) == (
            (3, 8),
            (512, 4096),
            4096,
            4096,
        )
        assert notes[0] == (
            "prepare.preset guide sets prepare.turns: [3, 8], prepare.tokens: [512, 4096], prepare.max_length: 4096"
        )

    def test_what_is_said_stays(self) -> None:
        part = make_recipe({"prepare": {"preset": "guide", "turns": None, "max_length": 2048}})[0].prepare
        assert (part.turns, part.tokens, part.max_length) == (None, (512, 4096), 2048)

    def test_on_the_command_line_and_back(self) -> None:
        recipe = changed(make_recipe({"seed": 1})[0], ["prepare.preset=guide", "prepare.turns=[2, 9]"])
        assert (recipe.prepare.turns, recipe.prepare.max_length) == ((2, 9), 4096)
        assert make_recipe(module.loads(dump(recipe), "x")) == (recipe, [])
        back = changed(recipe, ["prepare.preset=null"]).prepare
        assert (back.turns, back.tokens, back.max_length) == ((2, 9), None, "auto")

    def test_training(self) -> None:
        recipe, notes = make_recipe({"train": {"preset": "domain", "epochs": 12}})
        part = recipe.train
        assert (part.epochs, part.batch_size, part.learning_rate, part.warmup_ratio) == (12, 16, 2e-4, 0.1)
        assert (part.schedule, part.betas, part.max_grad_norm) == ("cosine", (0.9, 0.999), 1.0)
        assert notes[0].startswith("train.preset domain sets train.batch_size: 16, train.optimizer: adamw")
        assert make_recipe({"train": {"preset": "general"}})[0].train.epochs == 3
        quick = make_recipe({"train": {"preset": "quick"}})[0].train
        assert (quick.epochs, quick.schedule) == (1, "constant")

    def test_a_preset_leaves_a_warm_up_in_steps_alone(self) -> None:
        assert make_recipe({"train": {"preset": "quick", "warmup_steps": 5}})[0].train.warmup_ratio == 0.1

    def test_every_training_preset_is_known_and_valid(self) -> None:
        for name in get_args(TrainPreset):
            assert name in PRESETS["train"]
            for method in get_args(MethodName):
                recipe, notes = make_recipe({"train": {"preset": name, "method": method}})
                assert recipe.train.learning_rate == usual_rate(method)
                assert notes

    def test_on_the_command_line_one_training_preset_takes_the_place_of_another(self) -> None:
        recipe = make_recipe({"train": {"preset": "domain", "batch_size": 8}})[0]
        general = changed(recipe, ["train.preset=general"]).train
        assert (general.epochs, general.batch_size) == (3, 8), "what was written stays, even where it is the default"
        none = changed(recipe, ["train.preset=null"]).train
        assert (none.epochs, none.batch_size) == (3, 8)
        assert changed(recipe, ["seed=3"]).train == recipe.train

    def test_no_preset(self) -> None:
        assert wrong({"prepare": {"preset": ["guide"]}}) == {"prepare.preset": "TL-RECIPE-VALUE"}


class TestUsualRate:
    @pytest.mark.parametrize(
        ("train", "rate"),
        [({}, 2e-4), ({"method": "qlora"}, 2e-4), ({"method": "full"}, 3e-5), ({"method": "freeze"}, 3e-5),
         ({"method": "ptuning_v2"}, 5e-3), ({"method": "prompt_tuning"}, 3e-2), ({"task": "prefer"}, 5e-6),
         ({"method": "full", "task": "prefer"}, 1e-6), ({"method": "full", "learning_rate": 2e-4}, 2e-4),
         ({"method": "freeze", "task": "classify", "freeze": {"layers": 0, "head": True}}, 1e-3)],
    )  # fmt: skip
    def test_the_rate_follows_from_method_and_task(self, train: dict[str, Any], rate: float) -> None:
        recipe, notes = make_recipe({"train": train})
        assert recipe.train.learning_rate == rate
        told = [n for n in notes if n.startswith("train.learning_rate is")]
        assert bool(told) == (rate != 2e-4)
        assert make_recipe(module.loads(dump(recipe), "x")) == (recipe, [])

    def test_on_the_command_line(self) -> None:
        recipe = make_recipe({"seed": 1})[0]
        full = changed(recipe, ["train.method=full"])
        assert full.train.learning_rate == 3e-5
        assert changed(full, ["train.method=lora"]).train.learning_rate == 2e-4
        assert changed(full, ["train.epochs=1"]).train.learning_rate == 3e-5
        assert changed(recipe, ["train.method=full", "train.learning_rate=2e-4"]).train.learning_rate == 2e-4
        said = make_recipe({"train": {"method": "full", "learning_rate": 2e-4}})[0]
        assert changed(said, ["train.epochs=1"]).train.learning_rate == 2e-4
        assert changed(said, ["train.method=freeze"]).train.learning_rate == 2e-4
        own = make_recipe({"train": {"learning_rate": 1e-5}})[0]
        assert changed(own, ["train.method=full"]).train.learning_rate == 1e-5

    @pytest.mark.parametrize("value", [["lora"], {"a": 1}, 5, None])
    def test_a_method_that_is_none(self, value: Any) -> None:
        for key in ("method", "task"):
            assert wrong({"train": {key: value}}) == {f"train.{key}": "TL-RECIPE-VALUE"}

    def test_once_the_rows_have_told_the_task(self) -> None:
        recipe, notes = settled(make_recipe({"seed": 1})[0], "prefer")
        assert recipe.train.learning_rate == 5e-6
        assert notes == ["train.learning_rate is 5e-06, usual for method: lora, task: prefer"]
        assert settled(recipe, "prefer") == (recipe, [])
        for raw in ({"learning_rate": 2e-4}, {"task": "chat"}, {"method": "full", "learning_rate": 1e-4}):
            kept = make_recipe({"train": raw})[0]
            assert settled(kept, "prefer") == (kept, [])
        full = make_recipe({"train": {"method": "full"}})[0]
        assert settled(full, "prefer")[0].train.learning_rate == 1e-6
        assert settled(full, "chat") == (full, [])


class TestOnlyFor:
    @pytest.mark.parametrize(
        ("train", "where"),
        [({"method": "full", "lora": {"rank": 4}}, "lora"), ({"qlora": {"bits": "int8"}}, "qlora"),
         ({"freeze": {"layers": 1}}, "freeze"), ({"virtual": {"tokens": 5}}, "virtual"),
         ({"task": "chat", "prefer": {"beta": 1}}, "prefer"), ({"task": "chat", "classify": {"weights": "balanced"}}, "classify"),
         ({"eval_strategy": "no", "early_stopping": 2}, "early_stopping"), ({"eval_strategy": "no", "keep_best": True}, "keep_best"),
         ({"eval_strategy": "no", "sample_answers": 2}, "sample_answers"),
         ({"method": "prompt_tuning", "virtual": {"projection": True}}, "virtual.projection"),
         ({"task": "prefer", "prefer": {"loss": "orpo", "smoothing": 0.1}}, "prefer.smoothing")],
    )  # fmt: skip
    def test_a_section_without_effect_is_a_contradiction(self, train: dict[str, Any], where: str) -> None:
        assert wrong({"train": train}) == {f"train.{where}": "TL-RECIPE-CLASH"}

    @pytest.mark.parametrize(
        "train",
        [{"method": "qlora", "lora": {"rank": 4}, "qlora": {"bits": "int8"}}, {"prefer": {"beta": 1}},
         {"method": "ptuning_v2", "virtual": {"tokens": 5}}, {"task": "classify_prompt", "classify": {"template": "{text} {mask}"}}],
    )  # fmt: skip
    def test_a_section_with_effect_is_none(self, train: dict[str, Any]) -> None:
        assert_holds(make_recipe({"train": train})[0].train, train)


class TestNearest:
    @pytest.mark.parametrize(
        ("key", "known"),
        [("num_train_epoch", "train.epochs"), ("train.num_train_epoch", "train.epochs"),
         ("lora_rnk", "train.lora.rank"),
         ("rank", "train.lora.rank"), ("train.cutoff_len", "prepare.max_length"), ("data.0.rowz", "data[].rows"),
         ("evaluate.probes.2.at_leas", "evaluate.probes[].at_least"), ("sead", "seed"), ("train.epoch", "train.epochs"),
         ("grad_accumulation_steps", "train.batch_size"), ("colour", ""), ("", ""), ("模型", "model"), ("train.轮数", "train.epochs"), ("学习率", "train.learning_rate"),
         ("data.0.列", "data[].columns"), ("月亮", ""), ("数据增强", "prepare.augment"), ("prepare.敏感词", "prepare.clean.lexicon"),
         ("train.过拟合", "train.early_stopping"), ("evaluate.检查题", "evaluate.probes"), ("对话轮次", "prepare.turns")],
    )  # fmt: skip
    def test_guesses(self, key: str, known: str) -> None:
        assert nearest(key) == known

    def test_every_key_one_letter_short(self) -> None:
        names = {key for key, _ in keys()}
        for key in names:
            assert nearest(key) == key
        for alias, (target, _) in ALIASES.items():
            assert nearest(alias) in {target, *(key for key in names if key.endswith(alias))}


class TestChanged:
    base = make_recipe({"name": "x", "train": {"epochs": 2, "lora": {"rank": 4}}, "data": ["a.json"]})[0]

    def test_own_keys_and_aliases(self) -> None:
        new = changed(self.base, ["train.learning_rate=2e-4", "num_train_epochs=5", "train.lora.r=16", "seed=7"])
        assert (new.train.learning_rate, new.train.epochs, new.train.lora.rank, new.seed) == (2e-4, 5, 16, 7)
        assert new.data == self.base.data
        assert self.base.train.epochs == 2

    def test_values_are_yaml(self) -> None:
        shown = "evaluate.show=['Who are you?', 你是谁]"
        new = changed(self.base, [shown, "prepare.system=a=b", "model.revision='7e5'"])
        assert new.evaluate.show == ["Who are you?", "你是谁"]
        assert (new.prepare.system, new.model.revision) == ("a=b", "7e5")
        assert changed(self.base, ["train.save_total_limit="]).train.save_total_limit is None

    def test_the_model_in_both_forms(self) -> None:
        new = changed(self.base, ["model=m", "model.dtype=float16"])
        assert (new.model.name, new.model.dtype) == ("m", "float16")
        assert changed(new, ["model=n"]).model.dtype == "float16"
        assert changed(self.base, ["base_model=m"]).model.name == "m"

    def test_what_was_a_default_gives_way(self) -> None:
        new = changed(self.base, ["train.save_steps=5", "train.warmup_steps=3", "prepare.max_length=4096"])
        assert (new.train.save_strategy, new.train.warmup_steps, new.train.token_budget) == ("steps", 3, 4096)
        assert changed(new, ["train.epochs=9"]).train.save_steps == 5

    def test_a_method_that_contradicts_what_stands_in_the_file(self) -> None:
        with pytest.raises(RecipeError) as caught:
            changed(self.base, ["train.method=full"])
        assert [c.code for c in caught.value.causes] == ["TL-RECIPE-CLASH"]

    def test_epochs_beside_max_steps_are_told(self) -> None:
        base = make_recipe({"train": {"max_steps": 30}})[0]
        note = "train.epochs has no effect beside train.max_steps: 30; add --set train.max_steps=null"
        assert changed_with_notes(base, ["train.epochs=5"])[1] == [note]
        assert note in changed_with_notes(base, ["num_train_epochs=5"])[1]
        assert changed_with_notes(base, ["train.epochs=5", "train.max_steps=null"])[1] == []
        assert changed_with_notes(self.base, ["train.epochs=5"])[1] == []

    def test_an_assignment_without_a_value_names_the_nearest_key(self) -> None:
        with pytest.raises(RecipeError, match=r"--set train\.learning_rate=VALUE"):
            changed(self.base, ["learning_rat"])

    @pytest.mark.parametrize("assignment", ["train.epochs", "=5", "", "train.epochs.more=1"])
    def test_no_assignment(self, assignment: str) -> None:
        with pytest.raises(RecipeError) as caught:
            changed(self.base, ["train.epochs=3", assignment])
        assert caught.value.code == "TL-RECIPE-ASSIGN"

    @pytest.mark.parametrize(
        ("assignment", "code"),
        [("train.epoch=5", "TL-RECIPE-KEY"), ("train.epochs=many", "TL-RECIPE-VALUE"), ("deepspeed=zero2",
         "TL-RECIPE-UNSUPPORTED"), ("data.0.path=b", "TL-RECIPE-KEY-FAR")],
    )  # fmt: skip
    def test_wrong_assignments(self, assignment: str, code: str) -> None:
        with pytest.raises(RecipeError) as caught:
            changed(self.base, [assignment])
        assert code in [c.code for c in caught.value.causes]
        assert caught.value.where == "--set"

    def test_an_assignment_that_is_no_yaml(self) -> None:
        with pytest.raises(RecipeError) as caught:
            changed(self.base, ["data=["])
        assert caught.value.code == "TL-RECIPE-YAML"


class TestAnchored:
    def test_files_start_at_the_recipes_folder(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        absolute = str(tmp_path / "else" / "c.json")
        text = f"""
model: {{name: ../base, template: chat.jinja}}
data: [a.json, ./b/*.jsonl, {absolute}]
evaluate:
  show: questions.txt
  probes:
    - {{name: p, prompts: p.txt, expect: x}}
    - {{name: q, prompts: ["Who are you?"], expect: x}}
serve: {{key_file: key.txt}}
"""
        recipe, _ = read_recipe(write(tmp_path / "sub", text))
        here = tmp_path / "sub"
        assert [d.path for d in recipe.data] == [str(here / "a.json"), str(here / "b/*.jsonl"), absolute]
        assert recipe.model.name == str(tmp_path.resolve() / "base")
        assert recipe.model.template == str(here / "chat.jinja")
        assert recipe.evaluate.show == str(here / "questions.txt")
        assert [p.prompts for p in recipe.evaluate.probes] == [str(here / "p.txt"), ["Who are you?"]]
        assert recipe.serve.key_file == str(here / "key.txt")

    def test_names_stay(self, tmp_path: Path) -> None:
        text = "model: {name: org/model, template: chatml}\nevaluate: {show: ['Who are you?']}"
        recipe, _ = read_recipe(write(tmp_path, text))
        assert (recipe.model.name, recipe.model.template) == ("org/model", "chatml")
        assert recipe.evaluate.show == ["Who are you?"]

    def test_what_is_no_path_stays(self) -> None:
        recipe, _ = make_recipe({"data": ["-", "hub:org/talk", "modelscope:org/talk"]})
        assert anchored(recipe, Path("/x")).data == recipe.data

    def test_from_another_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path, "data: a.json")
        monkeypatch.chdir(tmp_path)
        assert read_recipe(Path("recipe.yaml"))[0].data[0].path == str(tmp_path / "a.json")


@pytest.mark.parametrize(
    "text",
    ["", LLAMA_FACTORY, SWIFT_3, SWIFT_4, AXOLOTL, TRANSFORMERS,
     "model: {revision: '12e5', name: '1e5'}\nname: '007'\nprepare: {system: \"no\\n: #\\t你好 😀 \\x07\"}",
     "train: {method: full, warmup_steps: 5, save_strategy: steps, save_steps: 7, eval_strategy: no, max_steps: 3}"],
)  # fmt: skip
def test_a_written_out_recipe_reads_as_the_same(tmp_path: Path, text: str) -> None:
    recipe, _ = read_recipe(write(tmp_path, text))
    again, notes = read_recipe(write(tmp_path, dump(recipe)))
    assert again == recipe
    assert notes == []
    assert dump(again) == dump(recipe)
    assert changed(recipe, ["seed=9"]) == recipe.model_copy(update={"seed": 9})


# words a fuzzed recipe is made of: half of them mean something
NAMES = [
    *sorted({part.strip("[]") for key, _ in keys() for part in key.split(".")} | set(ALIASES)),
    "deepspeed", "stage", "template", "load_in_4bit", "overwrite_cache", "type", "data_files", "split", "optimizer",
]  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 5000) | st.floats() | st.text(max_size=6)
    | st.sampled_from(["a.jsonl", "lora", "steps", "no", "all", "q_proj,v_proj", "1e-4", "auto", "x.jsonl#5", "[:5]"])
)  # fmt: skip
KEYS = st.sampled_from(NAMES) | st.text(string.ascii_lowercase + "_.", max_size=8)
ANY_KEYS = KEYS | st.integers() | st.none()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_KEYS, inner, max_size=4))
SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "train": st.dictionaries(KEYS, VALUES, max_size=5) | VALUES,
        "model": st.dictionaries(KEYS, VALUES, max_size=3) | VALUES,
        "prepare": st.dictionaries(KEYS, VALUES, max_size=3),
        "evaluate": st.dictionaries(KEYS, VALUES, max_size=3),
        "data": st.lists(VALUES, max_size=3) | VALUES,
    },
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SECTIONS, st.dictionaries(ANY_KEYS, VALUES, max_size=6))
def test_nothing_but_a_recipe_error_is_raised(sections: dict[str, Any], flat: dict[Any, Any]) -> None:
    raw = {**flat, **sections}
    before = copy.deepcopy(raw)
    text = ""
    try:
        recipe, notes = make_recipe(raw)
    except RecipeError as error:
        text = str(error)
    if text:
        assert text.startswith("TL-RECIPE-INVALID")
    else:
        assert all(isinstance(note, str) and note for note in notes)
        assert make_recipe(module.loads(dump(recipe), "x"))[0] == recipe
    assert repr(raw) == repr(before)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(KEYS, LEAVES | st.text(max_size=10)), max_size=4))
def test_assignments_raise_nothing_but_a_recipe_error(pairs: list[tuple[str, Any]]) -> None:
    text = "TL-RECIPE-"
    try:
        changed(Recipe(), [f"{key}={value}" for key, value in pairs])
    except RecipeError as error:
        text = str(error)
    assert text.startswith("TL-RECIPE-")


class TestWords:
    def codes(self) -> set[str]:
        folder = Path(module.__file__).parent
        texts = [file.read_text(encoding="utf-8") for file in folder.rglob("*.py")]
        return {code for text in texts for code in re.findall(r"TL-RECIPE-[A-Z-]+[A-Z]", text)}

    @pytest.mark.parametrize("language", ["en", "zh"])
    def test_every_code_has_words(self, language: str) -> None:
        words = catalogue("recipe", language)
        assert self.codes() <= set(words)
        for code, parts in words.items():
            assert set(parts) == {"what", "do", "more"}, code
            assert all(parts.values()), code

    def test_both_languages_name_the_same_facts(self) -> None:
        english, chinese = catalogue("recipe", "en"), catalogue("recipe", "zh")
        assert set(english) == set(chinese)
        for code in english:
            facts = [
                {field for text in words[code].values() for _, field, _, _ in string.Formatter().parse(text)}
                for words in (english, chinese)
            ]
            assert facts[0] == facts[1], code

    def test_no_placeholder_is_left_open(self) -> None:
        raw = {
            "num_train_epoch": 3, "colour": 1, "deepspeed": "zero2", "dataset": "alpaca", "lora_r": 4, "lora_rank": 8,
            "bf16": "maybe", "train": {"batch_size": 0},
        }  # fmt: skip
        with pytest.raises(RecipeError) as caught:
            make_recipe(raw)
        assert len(caught.value.causes) == 7
        for error in (caught.value, *caught.value.causes):
            assert not re.search(r"[{}]|\? |: \?", error.what), error.what
            assert error.do


@pytest.mark.parametrize("share", [0.1, 0.2, 0])
def test_a_share_beside_a_validation_file_outlives_a_change(share: float) -> None:
    """Also where it is the usual one: a recipe that was read has what it asks for, --set changes nothing else."""
    data = [{"path": "a.jsonl"}, {"path": "b.jsonl", "split": "validation"}]
    recipe, _ = make_recipe({"name": "x", "model": "smollm2", "data": data, "prepare": {"validation": share}})
    assert changed(recipe, ["train.epochs=2"]).prepare.validation == share


def watched(watch: Any) -> Any:
    return make_recipe({"data": "x", "watch": watch})[0].watch


def test_a_section_of_watch_is_switched_by_one_word() -> None:
    assert not watched(False).enabled
    assert not watched({"rules": {"memory": False}}).rules.memory.enabled
    assert not any(watched({"remedies": False}).remedies.model_dump(exclude={"limit"}).values())
    assert watched({"trackers": "tensorboard"}).trackers == watched({"trackers": ["tensorboard"] * 2}).trackers


@pytest.mark.parametrize(
    "notify", [{"file": "dingtalk://SECRET"}, "dingtalk://SECRET", ["x", "dingtalk://SECRET"], {"file": " "}]
)
def test_an_address_in_place_of_a_file_of_addresses_is_refused_and_not_repeated(notify: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        watched({"notify": notify})
    assert "SECRET" not in str(caught.value)


def test_what_is_bad_is_not_below_what_is_to_watch() -> None:
    with pytest.raises(RecipeError) as caught:
        watched({"rules": {"memory": {"watch": 0.98, "bad": 0.9}, "exploding": {"high": 50, "alarm": 10}}})
    assert [one.where for one in caught.value.causes] == ["watch.rules.memory.bad", "watch.rules.exploding.alarm"]
