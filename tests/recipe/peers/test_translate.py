"""Keys of other tools become the recipe's own; nothing is passed over in silence.

Over 400 lines: the mirror of one module, mostly tables of cases.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tuneloop.base.errors import RecipeError
from tuneloop.recipe.peers.account import shown
from tuneloop.recipe.peers.translate import ALIASES, OWN, translate


def own(raw: dict[str, Any]) -> dict[str, Any]:
    """What `raw` becomes, when nothing is wrong with it."""
    out, _, problems = translate(raw)
    assert not problems, [str(p) for p in problems]
    return out


def notes(raw: dict[str, Any]) -> str:
    return "\n".join(translate(raw)[1])


def problems(raw: dict[str, Any]) -> list[RecipeError]:
    return translate(raw)[2]


def codes(raw: dict[str, Any]) -> list[tuple[str, str]]:
    return [(p.code, p.where) for p in problems(raw)]


def nested(dotted: str, value: Any) -> dict[str, Any]:
    for name in reversed(dotted.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


SINGLE = [
    ("model_name_or_path", "Qwen/Qwen2.5-0.5B", "model.name", "Qwen/Qwen2.5-0.5B"),
    ("base_model", "org/m", "model.name", "org/m"),
    ("model_revision", "main", "model.revision", "main"),
    ("torch_dtype", "torch.bfloat16", "model.dtype", "bfloat16"),
    ("dtype", "fp16", "model.dtype", "float16"),
    ("bf16", True, "model.dtype", "bfloat16"),
    ("bf16", "auto", "model.dtype", "auto"),
    ("fp16", True, "model.dtype", "float16"),
    ("chat_template", "chatml", "model.template", "chatml"),
    ("default_system", "Be brief.", "prepare.system", "Be brief."),
    ("cutoff_len", 512, "prepare.max_length", 512),
    ("sequence_len", 512, "prepare.max_length", 512),
    ("val_size", 0.05, "prepare.validation", 0.05),
    ("split_dataset_ratio", 0.01, "prepare.validation", 0.01),
    ("dataset_exact_deduplication", False, "prepare.dedupe", "off"),
    ("dataset_exact_deduplication", True, "prepare.dedupe", "exact"),
    ("truncation_strategy", "delete", "prepare.too_long", "reject"),
    ("truncation_strategy", "left", "prepare.too_long", "cut_left"),
    ("truncation_strategy", "right", "prepare.too_long", "cut_right"),
    ("truncation_strategy", "split", "prepare.too_long", "split"),
    ("excess_length_strategy", "drop", "prepare.too_long", "reject"),
    ("excess_length_strategy", "truncate", "prepare.too_long", "cut_right"),
    ("truncation_mode", "keep_end", "prepare.too_long", "cut_left"),
    ("finetuning_type", "full", "train.method", "full"),
    ("train_type", "lora", "train.method", "lora"),
    ("tuner_type", "lora", "train.method", "lora"),
    ("adapter", "lora", "train.method", "lora"),
    ("adapter", None, "train.method", "full"),
    ("lora_rank", 16, "train.lora.rank", 16),
    ("lora_r", 16, "train.lora.rank", 16),
    ("r", 16, "train.lora.rank", 16),
    ("lora_alpha", 32, "train.lora.alpha", 32),
    ("lora_dropout", 0.05, "train.lora.dropout", 0.05),
    ("lora_target", "all", "train.lora.targets", "all-linear"),
    ("lora_target", "q_proj,v_proj", "train.lora.targets", ["q_proj", "v_proj"]),
    ("lora_target_modules", ["q_proj", "v_proj"], "train.lora.targets", ["q_proj", "v_proj"]),
    ("target_modules", ["all-linear"], "train.lora.targets", "all-linear"),
    ("lora_target_linear", True, "train.lora.targets", "all-linear"),
    ("num_train_epochs", 2.5, "train.epochs", 2.5),
    ("num_epochs", 2, "train.epochs", 2),
    ("max_steps", 10, "train.max_steps", 10),
    ("packing", False, "train.packing", False),
    ("neat_packing", True, "train.packing", True),
    ("lr_scheduler_type", "constant_with_warmup", "train.schedule", "constant"),
    ("lr_scheduler", "linear", "train.schedule", "linear"),
    ("warmup_steps", 10, "train.warmup_steps", 10),
    ("warmup_steps", 0.1, "train.warmup_ratio", 0.1),
    ("max_grad_norm", 0.5, "train.max_grad_norm", 0.5),
    ("gradient_checkpointing", "unsloth", "train.checkpointing", True),
    ("disable_gradient_checkpointing", True, "train.checkpointing", False),
    ("dataloader_num_workers", 2, "train.workers", 2),
    ("save_total_limit", 5, "train.save_total_limit", 5),
    ("logging_steps", 5, "train.logging_steps", 5),
    ("evaluation_strategy", False, "train.eval_strategy", "no"),
    ("saves_per_epoch", 1, "train.save_strategy", "epoch"),
    ("evals_per_epoch", 0, "train.eval_strategy", "no"),
    ("eval_max_new_tokens", 32, "evaluate.max_new_tokens", 32),
    ("finetuning_type", "freeze", "train.method", "freeze"),
    ("adapter", "qlora", "train.method", "qlora"),
    ("peft_type", "PREFIX_TUNING", "train.method", "ptuning_v2"),
    ("peft_type", "PROMPT_TUNING", "train.method", "prompt_tuning"),
    ("use_rslora", True, "train.lora.rslora", True),
    ("peft_use_dora", True, "train.lora.dora", True),
    ("init_lora_weights", "olora", "train.lora.init", "olora"),
    ("init_weights", "pissa_niter_16", "train.lora.init", "pissa"),
    ("pissa_init", True, "train.lora.init", "pissa"),
    ("loraplus_lr_ratio", 16, "train.lora.plus_ratio", 16),
    ("lorap_lr_ratio", "16.0", "train.lora.plus_ratio", 16.0),
    ("additional_target", "embed_tokens,lm_head", "train.lora.train_also", ["embed_tokens", "lm_head"]),
    ("modules_to_save", ["embed_tokens"], "train.lora.train_also", ["embed_tokens"]),
    ("freeze_trainable_layers", 3, "train.freeze.layers", 3),
    ("num_virtual_tokens", 30, "train.virtual.tokens", 30),
    ("prefix_projection", True, "train.virtual.projection", True),
    ("prompt_tuning_init_text", "Classify:", "train.virtual.text", "Classify:"),
    ("pref_beta", 0.2, "train.prefer.beta", 0.2),
    ("rl_beta", 0.2, "train.prefer.beta", 0.2),
    ("simpo_gamma", 1.0, "train.prefer.margin", 1.0),
    ("label_smoothing", 0.1, "train.prefer.smoothing", 0.1),
    ("pref_ftx", 0.5, "train.prefer.sft", 0.5),
    ("pref_loss", "sigmoid", "train.prefer.loss", "dpo"),
    ("loss_type", ["ipo"], "train.prefer.loss", "ipo"),
    ("neftune_noise_alpha", 5, "train.neftune_alpha", 5),
    ("noisy_embedding_alpha", 5, "train.neftune_alpha", 5),
    ("optim", "adamw_bnb_8bit", "train.optimizer", "adamw_8bit"),
    ("optim", "paged_adamw_8bit", "train.optimizer", "paged_adamw_8bit"),
    ("optimizer", "paged_adamw_32bit", "train.optimizer", "paged_adamw"),
    ("optim", "adafactor", "train.optimizer", "adafactor"),
    ("early_stopping_patience", 3, "train.early_stopping", 3),
    ("early_stopping_steps", 3, "train.early_stopping", 3),
    ("load_best_model_at_end", True, "train.keep_best", True),
    ("stage", "pt", "train.task", "text"),
    ("stage", "rm", "train.task", "reward"),
    ("stage", "dpo", "train.task", "prefer"),
    ("task_type", "SEQ_CLS", "train.task", "classify"),
    ("adapter_name_or_path", "saves/a", "train.adapter", "saves/a"),
    ("lora_model_dir", "saves/a", "train.adapter", "saves/a"),
    ("output_dir", "./saves/llama3/lora/sft/", "name", "sft"),
    ("output_dir", "C:\\runs\\my run", "name", "my-run"),
    ("run_name", "demo", "name", "demo"),
]  # fmt: skip


TOLD = {"train.task", "train.adapter", "train.prefer.loss"}  # read together with others: always told with the value


@pytest.mark.parametrize(("alias", "value", "key", "becomes"), SINGLE)
def test_a_peers_key_flat_and_in_its_section(alias: str, value: Any, key: str, becomes: Any) -> None:
    assert own({alias: value}) == nested(key, becomes)
    told = notes({alias: value})
    remarked = alias.endswith("_per_epoch") or alias.startswith(("freeze_", "early_stop"))
    if key not in TOLD and (value == becomes or key in {"name", "prepare.max_length"} or remarked):
        assert f"{alias} is called {key} here" in told
    else:
        assert told == f"{alias}: {shown(value)} is {key}: {shown(becomes)} here"
    *section, _ = key.split(".")
    for depth in range(1, len(section) + 1):
        inside = ".".join(section[:depth])
        if f"{inside}.{alias}" not in OWN:
            assert own(nested(f"{inside}.{alias}", value)) == nested(key, becomes)


def test_training_arguments_may_all_stand_in_train() -> None:
    raw = {"train": {"bf16": True, "cutoff_len": 512, "seed": 1, "output_dir": "out/x", "model_name_or_path": "m"}}
    model = {"dtype": "bfloat16", "name": "m"}
    assert own(raw) == {"train": {}, "model": model, "prepare": {"max_length": 512}, "seed": 1, "name": "x"}


def test_a_key_in_a_section_where_it_does_not_belong_stays() -> None:
    raw = {"prepare": {"num_train_epochs": 3}, "model": {"lora_r": 4}}
    assert own(raw) == raw


def test_the_recipes_own_keys_stay_as_they_are() -> None:
    raw = {
        "name": "x", "seed": 1, "data": ["a.jsonl"],
        "model": {"name": "m", "dtype": "auto", "template": "chatml"},
        "prepare": {"system": "s", "max_length": 10},
        "train": {"micro_batch_size": 2, "batch_size": 8, "packing": True, "warmup_steps": 0, "lora": {"rank": 4}},
        "evaluate": {"batch_size": 4, "max_new_tokens": 3},
    }  # fmt: skip
    assert translate(raw) == (raw, [], [])


def test_the_argument_is_not_changed() -> None:
    raw = {"model": "m", "train": {"r": 4, "lora": {"lora_alpha": 8}}, "data": [{"path": "a", "type": "alpaca"}]}
    before = copy.deepcopy(raw)
    translate(raw)
    assert raw == before


def test_an_empty_section_says_nothing() -> None:
    assert own({"train": None, "model": None, "data": None, "prepare": {}}) == {"prepare": {}}
    assert own({"train": {"lora": None}}) == {"train": {}}


def test_the_short_form_of_model_takes_more_keys() -> None:
    assert own({"model": "m", "bf16": True}) == {"model": {"name": "m", "dtype": "bfloat16"}}


class TestBatch:
    def test_product(self) -> None:
        raw = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
        assert own(raw) == {"train": {"batch_size": 8, "micro_batch_size": 2}}
        assert "over all devices" in notes(raw)

    def test_axolotls_words(self) -> None:
        assert own({"micro_batch_size": 2, "gradient_accumulation_steps": 4})["train"]["batch_size"] == 8
        assert own({"micro_batch_size": 2, "batch_size": 8}) == {"train": {"batch_size": 8, "micro_batch_size": 2}}

    def test_inside_train(self) -> None:
        raw = {"train": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}}
        assert own(raw) == {"train": {"batch_size": 6, "micro_batch_size": 2}}

    def test_accumulation_alone_means_micro_batches_of_one(self) -> None:
        assert own({"gradient_accumulation_steps": 4}) == {"train": {"batch_size": 4, "micro_batch_size": 1}}

    def test_accumulation_multiplies_our_own_micro_batch_size(self) -> None:
        raw = {"train": {"micro_batch_size": 2}, "gradient_accumulation_steps": 4}
        assert own(raw) == {"train": {"micro_batch_size": 2, "batch_size": 8}}

    def test_a_global_size_that_is_not_the_product(self) -> None:
        raw = {"train": {"batch_size": 8}, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
        [problem] = problems(raw)
        assert problem.code == "TL-RECIPE-TWICE"
        assert problem.facts["got"] == "16"
        assert problem.facts["before"] == "8"

    def test_two_micro_batch_sizes(self) -> None:
        assert codes({"per_device_train_batch_size": 2, "micro_batch_size": 4}) == [
            ("TL-RECIPE-TWICE", "micro_batch_size")
        ]

    @pytest.mark.parametrize("value", [0, -1, "auto", 1.5, True, [2], "٣x"])
    def test_no_number(self, value: Any) -> None:
        assert codes({"gradient_accumulation_steps": value}) == [("TL-RECIPE-VALUE", "gradient_accumulation_steps")]

    def test_packed_rows_become_a_token_budget(self) -> None:
        raw = {"sample_packing": True, "micro_batch_size": 2, "gradient_accumulation_steps": 2, "sequence_len": 4096}
        out = own(raw)
        assert out["train"] == {"packing": True, "batch_size": 4, "token_budget": 8192}
        assert "token_budget is 8192" in notes(raw)

    def test_unpacked_dialogues_run_singly(self) -> None:
        raw = {"packing": False, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        assert own(raw) == {"train": {"packing": False, "batch_size": 4}}
        assert "singly" in notes(raw)


class TestTwice:
    def test_two_names_and_two_values(self) -> None:
        [problem] = problems({"num_train_epochs": 3, "train": {"epochs": 5}})
        assert (problem.code, problem.where) == ("TL-RECIPE-TWICE", "num_train_epochs")
        assert problem.facts["key"] == "train.epochs"

    def test_two_aliases(self) -> None:
        [problem] = problems({"lora_r": 4, "lora_rank": 8})
        assert problem.facts["other"] == "lora_r"

    def test_the_same_value_is_no_contradiction(self) -> None:
        assert own({"num_train_epochs": 3, "train": {"epochs": 3.0}}) == {"train": {"epochs": 3}}
        assert own({"bf16": True, "torch_dtype": "bfloat16", "fp16": False}) == {"model": {"dtype": "bfloat16"}}

    def test_bf16_and_fp16(self) -> None:
        assert codes({"bf16": True, "fp16": True}) == [("TL-RECIPE-TWICE", "fp16")]

    def test_model_twice(self) -> None:
        assert codes({"model": "a", "base_model": "b"}) == [("TL-RECIPE-TWICE", "base_model")]

    def test_data_twice(self) -> None:
        assert codes({"data": ["a.json"], "dataset": "b.json"}) == [("TL-RECIPE-TWICE", "dataset")]


class TestRunName:
    def test_the_name_goes_before_the_folder(self) -> None:
        raw = {"output_dir": "out/sft", "run_name": "demo"}
        assert own(raw) == {"name": "demo"}
        assert "output_dir: not used" in notes(raw)

    def test_our_own_name_goes_before_the_folder(self) -> None:
        assert own({"output_dir": "out/sft", "name": "demo"}) == {"name": "demo"}

    def test_two_names(self) -> None:
        assert codes({"run_name": "a", "name": "b"}) == [("TL-RECIPE-TWICE", "run_name")]

    @pytest.mark.parametrize("value", ["", "..", "./", "///", 5, "---"])
    def test_no_name_in_it(self, value: Any) -> None:
        assert codes({"output_dir": value}) == [("TL-RECIPE-VALUE", "output_dir")]


class TestData:
    def test_llama_factory(self) -> None:
        raw = {"dataset": "a.json, b.jsonl", "dataset_dir": "corpus/", "max_samples": 100}
        assert own(raw)["data"] == [
            {"rows": "[:100]", "path": "corpus/a.json"},
            {"rows": "[:100]", "path": "corpus/b.jsonl"},
        ]
        assert "first 100 rows" in notes(raw)

    def test_names_of_a_registry_and_a_hub(self) -> None:
        for name in ("alpaca_en_demo", "AI-ModelScope/alpaca-gptq-data-zh", "org/data-v1.5"):
            [problem] = problems({"dataset": name})
            assert problem.code == "TL-RECIPE-DATASET"
            assert problem.facts["name"] == name

    def test_swifts_sample(self) -> None:
        raw = {"dataset": ["a.jsonl#500", "/data/all", "x/*.json"]}
        assert own(raw)["data"] == [{"sample": 500, "path": "a.jsonl"}, {"path": "/data/all"}, {"path": "x/*.json"}]
        assert "#500 is data[].sample: 500" in notes(raw)

    def test_datasets_of_a_hub(self) -> None:
        assert own({"dataset": "hub:org/talk,modelscope:org/talk", "dataset_dir": "corpus"})["data"] == [
            {"path": "hub:org/talk"}, {"path": "modelscope:org/talk"},
        ]  # fmt: skip

    @pytest.mark.parametrize("key", ["eval_dataset", "val_dataset", "test_datasets"])
    def test_files_of_their_own_for_the_held_out_loss(self, key: str) -> None:
        raw = {"dataset": "a.json", key: ["v.json"]}
        held = {"path": "v.json", "split": "validation"}
        assert own(raw) == {"data": [{"path": "a.json"}, held], "prepare": {"validation": 0}}
        assert f"{key}: these files stand in data" in notes(raw)
        assert own({"data": "a.json", key: "v.json", "val_size": 0.1}) == {
            "data": ["a.json", held], "prepare": {"validation": 0.1},
        }  # fmt: skip
        assert own({"data": ["a.json"], key: []}) == {"data": ["a.json"]}

    def test_our_own_split_stays(self) -> None:
        raw = {"data": [{"path": "a.json", "split": "test"}, {"path": "b.json", "split": "auto"}]}
        assert translate(raw) == (raw, [], [])
        assert own({"data": [{"path": "a.json", "split": "train[5:]"}]})["data"] == [{"path": "a.json", "rows": "[5:]"}]

    def test_axolotls_sections(self) -> None:
        entries = [
            {"path": "chat.jsonl", "type": "chat_template", "field_messages": "dialog", "split": "train"},
            {"path": "json", "data_files": ["a.jsonl", "b.jsonl"], "ds_type": "json", "type": "alpaca"},
            {"path": "c.csv", "type": {"field_instruction": "q", "field_output": "a", "system_prompt": ""}},
            {"path": "d.json", "split": "train[10:20]"},
        ]
        assert own({"datasets": entries})["data"] == [
            {"path": "chat.jsonl", "columns": {"messages": "dialog"}},
            {"path": "a.jsonl"},
            {"path": "b.jsonl"},
            {"path": "c.csv", "columns": {"user": "q", "assistant": "a"}},
            {"path": "d.json", "rows": "[10:20]"},
        ]
        assert "datasets.1.ds_type" in notes({"datasets": entries})

    def test_axolotls_keys_in_our_own_section(self) -> None:
        raw = {"data": [{"path": "a.json", "type": "sharegpt"}, "b.json"]}
        assert own(raw)["data"] == [{"path": "a.json"}, "b.json"]

    @pytest.mark.parametrize("entry", [{"split": "test"}, {"split": "validation"}, {"split": "train[:10%]"}])
    def test_what_a_section_cannot_ask_for(self, entry: dict[str, str]) -> None:
        [key] = entry
        assert codes({"datasets": [{"path": "a.json", **entry}]}) == [("TL-RECIPE-UNSUPPORTED", f"datasets.0.{key}")]

    @pytest.mark.parametrize("value", [5, [5], [None], {"path": 5}, [[]], {}])
    def test_no_path(self, value: Any) -> None:
        [problem] = problems({"dataset": value})
        assert problem.code == "TL-RECIPE-VALUE"

    def test_a_limit_holds_for_our_own_data(self) -> None:
        assert own({"data": "a.json", "max_samples": 5})["data"] == [{"rows": "[:5]", "path": "a.json"}]
        assert own({"data": {"path": "a.json", "rows": "[2:]"}, "max_samples": 5})["data"] == [
            {"rows": "[2:]", "path": "a.json"}
        ]


class TestTraining:
    """What is learned, from where, and over which weights: read several keys at a time."""

    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            ({"stage": "dpo", "pref_loss": "orpo", "pref_beta": 0.1},
             {"task": "prefer", "prefer": {"loss": "orpo", "beta": 0.1}}),
            ({"stage": "kto", "pref_loss": "sigmoid"}, {"task": "prefer", "prefer": {"loss": "kto"}}),
            ({"rl": "ipo"}, {"task": "prefer", "prefer": {"loss": "ipo"}}),
            ({"rlhf_type": "simpo", "simpo_gamma": 1, "beta": 2},
             {"task": "prefer", "prefer": {"loss": "simpo", "margin": 1, "beta": 2}}),
            ({"rlhf_type": "rm"}, {"task": "reward"}),
            ({"task_type": "seq_cls"}, {"task": "classify"}),
            ({"train": {"task": "classify"}}, {"task": "classify"}),
        ],
    )  # fmt: skip
    def test_what_is_learned(self, raw: dict[str, Any], expected: dict[str, Any]) -> None:
        assert own(raw) == {"train": expected}
        assert translate(raw)[1] or "train" in raw

    def test_two_tasks(self) -> None:
        assert codes({"stage": "dpo", "rl": "simpo"}) == [("TL-RECIPE-TWICE", "rl")]

    @pytest.mark.parametrize(
        ("raw", "form"),
        [({"finetuning_type": "lora", "quantization_bit": 4}, "nf4"), ({"quantization_bit": "8"}, "int8"),
         ({"load_in_4bit": True}, "nf4"), ({"adapter": "lora", "load_in_8bit": True}, "int8"),
         ({"adapter": "qlora", "load_in_4bit": True}, "nf4"), ({"train": {"method": "lora"}, "quant_bits": 4}, "nf4")],
    )  # fmt: skip
    def test_lora_over_quantized_weights_is_qlora(self, raw: dict[str, Any], form: str) -> None:
        assert own(raw) == {"train": {"method": "qlora", "qlora": {"bits": form}}}
        assert f"train.method is qlora, train.qlora.bits is {form}" in notes(raw)

    def test_what_quantized_weights_cannot_take(self) -> None:
        assert codes({"finetuning_type": "full", "load_in_4bit": True}) == [("TL-RECIPE-UNSUPPORTED", "load_in_4bit")]
        assert codes({"train": {"method": ["lora"]}, "load_in_4bit": True})[0] == (
            "TL-RECIPE-UNSUPPORTED",
            "load_in_4bit",
        )
        assert codes({"load_in_4bit": True, "load_in_8bit": True}) == [("TL-RECIPE-TWICE", "load_in_8bit")]

    def test_double_quantization(self) -> None:
        raw = {"load_in_4bit": True, "bnb_4bit_use_double_quant": False}
        assert own(raw)["train"]["qlora"] == {"bits": "nf4", "double": False}
        assert own({"double_quantization": True}) == {}
        assert "only for quantized weights" in notes({"double_quantization": True})

    @pytest.mark.parametrize(
        ("raw", "expected"),
        [({"adapter_name_or_path": "a,b, c"}, {"merge": ["a", "b"], "adapter": "c"}),
         ({"adapters": ["a"]}, {"adapter": "a"}),
         ({"adapter_name_or_path": "a,b", "create_new_adapter": True}, {"merge": ["a", "b"]}),
         ({"train": {"adapter": "run-1"}}, {"adapter": "run-1"})],
    )  # fmt: skip
    def test_adapters_to_go_on_from(self, raw: dict[str, Any], expected: dict[str, Any]) -> None:
        assert own(raw) == {"train": expected}

    def test_texts_to_go_on_writing(self) -> None:
        assert own({"pretraining_dataset": [{"path": "a.jsonl"}]})["data"] == [{"task": "text", "path": "a.jsonl"}]
        assert own({"datasets": [{"path": "a.jsonl", "type": "completion"}]})["data"] == [
            {"path": "a.jsonl", "task": "text"}
        ]
        assert own({"pretraining_dataset": None}) == {}


class TestSeveralTogether:
    def test_betas(self) -> None:
        assert own({"adam_beta1": 0.8, "adam_beta2": "0.95"}) == {"train": {"betas": [0.8, 0.95]}}
        assert own({"adam_beta2": 0.95}) == {"train": {"betas": [0.9, 0.95]}}
        assert codes({"adam_beta1": "high"}) == [("TL-RECIPE-VALUE", "adam_beta1")]

    def test_no_warmup_steps_beside_a_ratio(self) -> None:
        assert own({"warmup_steps": 0, "warmup_ratio": 0.03}) == {"train": {"warmup_ratio": 0.03}}

    def test_steps_without_a_strategy(self) -> None:
        assert own({"save_steps": 50})["train"] == {"save_steps": 50, "save_strategy": "steps"}
        assert own({"train": {"eval_steps": 50}})["train"] == {"eval_steps": 50, "eval_strategy": "steps"}
        assert own({"save_steps": 50, "save_strategy": "epoch"})["train"]["save_strategy"] == "epoch"

    def test_axolotl_without_an_adapter_trains_all_weights(self) -> None:
        raw = {"base_model": "m", "datasets": [{"path": "a.json"}]}
        assert own(raw)["train"] == {"method": "full"}
        assert "all weights" in notes(raw)
        assert own({**raw, "adapter": "lora"})["train"] == {"method": "lora"}
        assert "train" not in own({"base_model": "m"})

    def test_model_name_of_unsloth_and_of_swift(self) -> None:
        assert own({"model_name": "unsloth/x"}) == {"model": {"name": "unsloth/x"}}
        assert own({"model": "m", "model_name": ["小黄", "Xiao Huang"]}) == {"model": {"name": "m"}}
        assert "model_name: not used" in notes({"model": "m", "model_name": "swift-robot"})

    def test_minus_one_step_means_no_limit(self) -> None:
        assert own({"max_steps": -1}) == {}


class TestNotHere:
    @pytest.mark.parametrize(
        "key",
        ["overwrite_cache", "preprocessing_num_workers", "report_to", "ddp_timeout", "plot_loss", "do_train",
         "template", "overwrite_output_dir", "wandb_project", "trust_remote_code", "flash_attention",
         "hub_model_id", "use_hf"],
    )  # fmt: skip
    def test_without_a_meaning_here(self, key: str) -> None:
        for raw in ({key: "yes"}, {"train": {key: "yes"}}):
            out, said, found = translate(raw)
            assert (out, found) in (({}, []), ({"train": {}}, []))
            assert f"{key}: not used, " in said[0]

    @pytest.mark.parametrize(
        ("key", "value"),
        [("deepspeed", "zero2"), ("quantization_bit", 2), ("quant_method", "hqq"), ("bnb_4bit_quant_type", "fp4"),
         ("stage", "ppo"), ("rl", "grpo"), ("rlhf_type", "gkd"), ("task_type", "embedding"), ("ref_model", "other"),
         ("fsdp_config", {"x": 1}), ("optim", "lion_8bit"), ("optim", "adamw_torch_4bit"), ("optim", "galore_adamw"),
         ("lr_scheduler_type", "polynomial"), ("adapter", "ia3"), ("finetuning_type", "oft"), ("pref_loss", "hinge"),
         ("init_lora_weights", "eva"), ("init_lora_weights", False), ("freeze_trainable_layers", -2),
         ("freeze_trainable_modules", "mlp"), ("kto_chosen_weight", 2.0),
         ("columns", {"a": "b"}), ("target_modules", r"^model\.layers\.\d+"),
         ("loss_type", "dft"), ("cached_dataset", ["v"]), ("model_init_kwargs", {"torch_dtype": "bfloat16"}),
         ("train_on_inputs", True), ("loss_scale", "last_round"), ("special_tokens", {"eos_token": "x"}),
         ("disable_shuffling", True), ("dataset_shuffle", False), ("chat_template_jinja", "{% for m in messages %}")],
    )  # fmt: skip
    def test_what_cannot_be_done(self, key: str, value: Any) -> None:
        [problem] = problems({key: value})
        assert (problem.code, problem.where) == ("TL-RECIPE-UNSUPPORTED", key)
        assert problem.facts["instead"]
        assert str(problem).startswith(f"TL-RECIPE-UNSUPPORTED  {key}: Not supported yet: {problem.facts['feature']} (")

    @pytest.mark.parametrize(
        ("key", "value"),
        [("deepspeed", None), ("load_in_4bit", False), ("neftune_noise_alpha", 0), ("stage", "sft"), ("task", "sft"),
         ("rl", False), ("rlhf_type", None), ("loss_type", "nll"), ("additional_target", ""), ("use_dora", False),
         ("adapter_name_or_path", None), ("adapters", []), ("early_stopping_patience", 0), ("pref_ftx", 0),
         ("load_best_model_at_end", False), ("quant_method", "bnb"), ("bnb_4bit_quant_type", "nf4"),
         ("freeze_trainable_modules", "all"), ("kto_chosen_weight", 1.0), ("create_new_adapter", True),
         ("task_type", "CAUSAL_LM"), ("optim", "adamw_torch"), ("fsdp", []), ("quantization_bit", "none"),
         ("tensor_parallel_size", 1), ("plugins", ["axolotl.integrations.liger.LigerPlugin"]),
         ("dataset_shuffle", True), ("special_tokens", {"pad_token": "<pad>"}), ("init_weights", "true"),
         ("truncation_strategy", None), ("val_dataset", [])],
    )  # fmt: skip
    def test_what_asks_for_nothing(self, key: str, value: Any) -> None:
        out, said, found = translate({key: value})
        assert (out, found) == ({}, [])
        assert key in said[0]

    def test_another_adamw_is_said(self) -> None:
        said = notes({"optimizer": "adamw_anyprecision"})
        assert "optimizer: not used, the optimizer is AdamW in full precision" in said

    def test_template_names_are_the_tokenizers_own(self) -> None:
        assert "model.template" in notes({"template": "llama3"})
        assert "model.template" in notes({"chat_template": "llama3"})

    def test_a_secret_is_not_repeated(self) -> None:
        assert "hf_sesame" not in notes({"hub_token": "hf_sesame", "hf_hub_token": "hf_sesame"})


@pytest.mark.parametrize(
    ("key", "value"),
    [("torch_dtype", "int8"), ("torch_dtype", 16), ("bf16", "maybe"), ("lora_target", 5), ("lora_target", []),
     ("finetuning_type", "magic"), ("finetuning_type", 3), ("lr_scheduler_type", 5), ("gradient_checkpointing", "some"),
     ("max_steps", "many"), ("warmup_steps", []), ("evals_per_epoch", "often"), ("system", "prompts/system.txt"),
     ("dataset_dir", 5), ("truncation_strategy", "middle"), ("max_samples", "all"), ("use_peft", "perhaps")],
)  # fmt: skip
def test_a_value_that_cannot_be_read(key: str, value: Any) -> None:
    [problem] = problems({key: value})
    assert (problem.code, problem.where) == ("TL-RECIPE-VALUE", key)
    assert problem.facts["need"]


def test_plain_renames_are_told_in_one_line() -> None:
    raw = {"cutoff_len": 512, "lora_rank": 4, "num_train_epochs": 2, "finetuning_type": "lora", "bf16": True,
           "plot_loss": True, "overwrite_cache": True, "report_to": "none"}  # fmt: skip
    assert translate(raw)[1] == [
        "3 keys of LLaMA-Factory were translated: lora_rank → train.lora.rank, num_train_epochs → train.epochs, "
        "finetuning_type → train.method",
        "cutoff_len is called prepare.max_length here: a longer dialogue is rejected; prepare.too_long says otherwise",
        "bf16: true is model.dtype: 'bfloat16' here",
        "not used here: plot_loss (the loss curve is always drawn); overwrite_cache (a prepared dataset is found again by "
        "its content); report_to (metrics are written to the run's folder only)",
    ]
    assert translate({"r": 4, "lora_alpha": 8})[1] == [
        "2 keys of other tools were translated: r → train.lora.rank, lora_alpha → train.lora.alpha"
    ]


def test_several_problems_at_once() -> None:
    raw = {"bf16": "maybe", "deepspeed": "zero3", "lora_r": 4, "lora_rank": 8, "dataset": "alpaca_zh"}
    assert sorted(code for code, _ in codes(raw)) == [
        "TL-RECIPE-DATASET", "TL-RECIPE-TWICE", "TL-RECIPE-UNSUPPORTED", "TL-RECIPE-VALUE",
    ]  # fmt: skip


def test_unknown_keys_stay() -> None:
    raw = {"num_train_epoch": 3, "train": {"colour": "blue"}, 5: "five", None: 1}
    assert translate(raw) == (raw, [], [])  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, True, 0, -1, 0.5, float("nan"), float("inf"), "", "x", [], [[]], {}, b"", 1j])
def test_no_value_breaks_it(value: Any) -> None:
    for alias in ALIASES:
        for raw in ({alias: value}, {"train": {alias: value}}, {"train": 5, "model": 5, "prepare": "x", alias: value}):
            translate(raw)
