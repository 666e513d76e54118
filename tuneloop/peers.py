"""The keys of transformers' TrainingArguments, LLaMA-Factory, ms-swift (3 and 4) and Axolotl, and what becomes of them.

Three tables: `TABLE` (called something else here), `IGNORED` (no meaning here), `UNSUPPORTED` (asks for something that
tuneloop cannot do yet). `aliases.py` walks a recipe with them; neither knows which keys the recipe has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tuneloop.language import t

Convert = Callable[[Any], Any]
Why = Callable[[], str]

NOTHING = object()  # what a converter returns for "switched off": nothing was said


class Wrong(Exception):
    """The value cannot be read; the text says what is needed."""


class Cannot(Exception):
    """The value asks for something that tuneloop cannot do; the text says what to do instead."""


class Dropped(Exception):
    """The value has no meaning here; the text says why."""


def off(value: Any) -> bool:
    """Is this the value of something that is not wanted?

    >>> [off(v) for v in (None, False, 0, "", "none", [], "zero2", 5)]
    [True, True, True, True, True, True, False, False]
    """
    if isinstance(value, str):
        return value.strip().lower() in {"", "none", "no", "false", "null", "off", "0"}
    return value is None or value in (False, [], {})


def _on(value: Any) -> bool:
    return value is True or (isinstance(value, str) and value.strip().lower() in {"true", "yes", "on", "1"})


def _same(value: Any) -> Any:
    return value


def whole(value: Any) -> int:
    """A whole number of at least 1, also written as text or as 2.0; raises Wrong.

    >>> whole("4"), whole(2.0)
    (4, 2)
    """
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Wrong(t("a whole number of at least 1"))
    return value


def number(value: Any) -> float:
    """A number, also written as text; raises Wrong."""
    try:
        return value if isinstance(value, int) and not isinstance(value, bool) else float(value)
    except (TypeError, ValueError) as error:
        raise Wrong(t("a number")) from error


def _flag(meaning: Any, auto: Any = NOTHING) -> Convert:
    """A switch that stands for a value: `bf16: true` means bfloat16, `bf16: false` says nothing."""

    def convert(value: Any) -> Any:
        if off(value):
            return NOTHING
        if _on(value):
            return meaning
        if value == "auto" and auto is not NOTHING:
            return auto
        raise Wrong(t("true or false"))

    return convert


def _either(value: Any) -> bool:
    if _on(value) or (isinstance(value, str) and "offload" in value) or value == "unsloth":
        return True
    if off(value):
        return False
    raise Wrong(t("true or false"))


def _dtype(value: Any) -> str:
    """
    >>> _dtype("torch.bfloat16"), _dtype("fp16")
    ('bfloat16', 'float16')
    """
    short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
    name = value.strip().lower().removeprefix("torch.") if isinstance(value, str) else ""
    name = short.get(name, name)
    if name not in {"auto", "bfloat16", "float16", "float32"}:
        raise Wrong(t("one of {choices}", choices="auto, bfloat16, float16, float32"))
    return name


def _targets(value: Any) -> Any:
    """
    >>> _targets("q_proj, v_proj"), _targets(["all-linear"]), _targets("all")
    (['q_proj', 'v_proj'], 'all-linear', 'all-linear')
    """
    names = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise Wrong(t("all-linear, or a list of module names"))
    if any(n.lower().replace("_", "-") in {"all", "all-linear"} for n in names):
        return "all-linear"
    if not all(re.fullmatch(r"[\w.-]+", n) for n in names):
        raise Cannot(t("regular expressions are not read here: list the module names in train.lora.targets"))
    return names


def _method(value: Any) -> str:
    name = value.strip().lower() if isinstance(value, str) else "full" if off(value) else ""
    if name in {"lora", "full"}:
        return name
    known = "qlora freeze oft longlora adalora llamapro adapter vera boft fourierft reft bone prefix ia3 llama-adapter"
    if name in known.split():
        raise Cannot(t("train.method is lora or full"))
    raise Wrong(t("one of {choices}", choices="lora, full"))


def _schedule(value: Any) -> str:
    name = value.strip().lower() if isinstance(value, str) else ""
    name = "constant" if name == "constant_with_warmup" else name
    if name not in {"cosine", "linear", "constant"}:
        raise (Cannot if name else Wrong)(t("train.schedule is cosine, linear or constant"))
    return name


def _strategy(value: Any) -> Any:
    return "no" if value is False else value  # YAML reads a bare no as false


def _times_an_epoch(value: Any) -> str:
    return "no" if number(value) == 0 else "epoch"


def _max_steps(value: Any) -> Any:
    return NOTHING if number(value) <= 0 else value


def _system(value: Any) -> Any:
    if isinstance(value, str) and value.endswith(".txt"):
        raise Wrong(t("the system prompt itself, not a file"))
    return value


def _template(value: Any) -> Any:
    if isinstance(value, str) and (value == "chatml" or value.endswith(".jinja")):
        return value
    if isinstance(value, str) and "{" in value:
        raise Cannot(t("save the template as a .jinja file and name that in model.template"))
    raise Dropped(t("the tokenizer's own chat template is used; model.template names another one"))


def together(value: Any) -> Any:
    """Marks the keys that `aliases.py` reads several at a time, e.g. per-device size and accumulation steps."""
    return value


# key of the recipe, converter, names elsewhere
TABLE: list[tuple[str, Convert, str]] = [
    ("model.name", _same, "model_name_or_path base_model model_id_or_path model_path model_id"),
    ("model.name", together, "model_name"),
    ("model.revision", _same, "model_revision revision_of_model revision"),
    ("model.dtype", _dtype, "torch_dtype dtype"),
    ("model.dtype", _flag("bfloat16", "auto"), "bf16 bfloat16 pure_bf16"),
    ("model.dtype", _flag("float16", "auto"), "fp16 float16"),
    ("model.dtype", _flag("float32"), "fp32 float32"),
    ("model.template", _template, "chat_template chat_template_jinja"),
    ("data", together, "dataset datasets train_dataset dataset_dir max_samples"),
    ("prepare.system", _system, "system default_system default_system_message system_prompt"),
    ("prepare.max_length", _same, "cutoff_len max_seq_length max_seq_len max_length sequence_len model_max_length"),
    ("prepare.validation", _same, "val_size val_set_size split_dataset_ratio"),
    ("prepare.dedupe", _either, "dataset_exact_deduplication"),
    ("train.method", _method, "finetuning_type train_type tuner_type sft_type adapter peft_type"),
    ("train.method", lambda value: "lora" if _either(value) else "full", "use_peft"),
    ("train.lora.rank", _same, "lora_rank lora_r r"),
    ("train.lora.alpha", _same, "lora_alpha"),
    ("train.lora.dropout", _same, "lora_dropout lora_dropout_p"),
    ("train.lora.targets", _targets, "lora_target lora_target_modules target_modules"),
    ("train.lora.targets", _flag("all-linear"), "lora_target_linear"),
    ("train.epochs", _same, "num_train_epochs num_epochs epochs"),
    ("train.max_steps", _max_steps, "max_steps"),
    ("train.batch_size", _same, "batch_size global_batch_size"),
    ("train.batch_size", together, "per_device_train_batch_size per_gpu_train_batch_size gradient_accumulation_steps"),
    ("train.micro_batch_size", together, "micro_batch_size"),
    ("train.packing", _same, "packing sample_packing"),
    ("train.packing", _flag(True, True), "neat_packing padding_free batch_flattening"),
    ("train.learning_rate", _same, "learning_rate lr"),
    ("train.schedule", _schedule, "lr_scheduler_type lr_scheduler"),
    ("train.warmup_ratio", _same, "warmup_ratio"),
    ("train.warmup_steps", together, "warmup_steps"),
    ("train.weight_decay", _same, "weight_decay"),
    ("train.betas", together, "adam_beta1 adam_beta2"),
    ("train.max_grad_norm", _same, "max_grad_norm gradient_clipping"),
    ("train.checkpointing", _either, "gradient_checkpointing activation_checkpointing use_gradient_checkpointing"),
    ("train.checkpointing", lambda value: not _either(value), "disable_gradient_checkpointing"),
    ("train.checkpointing", _flag(True), "use_unsloth_gc"),
    ("train.workers", _same, "dataloader_num_workers"),
    ("train.logging_strategy", _strategy, "logging_strategy"),
    ("train.logging_steps", _same, "logging_steps"),
    ("train.save_strategy", _strategy, "save_strategy"),
    ("train.save_strategy", _times_an_epoch, "saves_per_epoch"),
    ("train.save_steps", _same, "save_steps"),
    ("train.save_total_limit", _same, "save_total_limit"),
    ("train.eval_strategy", _strategy, "eval_strategy evaluation_strategy"),
    ("train.eval_strategy", _times_an_epoch, "evals_per_epoch"),
    ("train.eval_steps", _same, "eval_steps"),
    ("evaluate.max_new_tokens", _same, "max_new_tokens eval_max_new_tokens"),
    ("name", together, "run_name output_dir"),
    ("seed", _same, "seed"),
]  # fmt: skip

REMARKS: dict[str, Why] = {
    "prepare.max_length": lambda: t("a longer dialogue is rejected, never cut"),
    "evals_per_epoch": lambda: t("at most once an epoch; train.eval_steps measures more often"),
    "saves_per_epoch": lambda: t("at most once an epoch; train.save_steps saves more often"),
    "train.packing": lambda: t("train.batch_size counts dialogues, not packed rows"),
}

# names (a trailing * stands for any ending), why they are dropped
IGNORED: list[tuple[str, Why]] = [
    ("template", lambda: t("the tokenizer's own chat template is used; model.template names another one")),
    ("enable_thinking preserve_thinking response_prefix add_non_thinking_prefix use_chat_template agent_template "
     "tool_format template_backend eot_tokens", lambda: t("the tokenizer's own chat template is used")),
    ("overwrite_cache load_from_cache_file dataset_prepared_path tokenized_path skip_prepare_dataset download_mode "
     "dataset_keep_in_memory", lambda: t("a prepared dataset is found again by its content")),
    ("preprocessing_num_workers preprocessing_batch_size dataset_num_proc dataset_processes packing_num_proc "
     "streaming lazy_tokenize buffer_size shuffle_buffer_size media_dir remove_unused_columns label_names data_seed "
     "dataloader_* stopping_strategy val_dataset_shuffle custom_dataset_info length_column_name min_sample_len",
     lambda: t("data is read in one fixed order, whatever the number of processes")),
    ("report_to logging_dir use_tensorboard use_wandb wandb_* use_swanlab swanlab_* mlflow_* use_mlflow comet_* "
     "use_comet trackio_* project", lambda: t("metrics are written to the run's folder only")),
    ("plot_loss", lambda: t("the loss curve is always drawn")),
    ("overwrite_output_dir add_version", lambda: t("each run has a folder of its own")),
    ("do_train do_eval do_predict compute_accuracy predict_with_generate acc_strategy eval_table_size do_bench_eval "
     "do_causal_lm_eval bench_dataset batch_eval_metrics eval_do_concat_batches eval_use_gather_object",
     lambda: t("the section evaluate says what is measured")),
    ("ddp ddp_* local_rank world_size device device_map max_memory gpu_memory_limit low_cpu_mem_usage use_cpu "
     "no_cuda accelerator_config parallelism_config gc_steps torch_empty_cache_steps",
     lambda: t("devices are found without settings")),
    ("flash_attn flash_attn_* flash_attention attn_impl attn_implementation sdp_attention xformers_attention "
     "eager_attention flex_attention torch_compile* tf32 use_kernels lora_*_kernel cudnn_*",
     lambda: t("kernels are chosen without settings")),
    ("use_liger_kernel enable_liger_kernel use_liger liger_* use_unsloth unsloth_* tuner_backend",
     lambda: t("the loss never builds full logits, with or without other libraries")),
    ("trust_remote_code", lambda: t("code that comes with a model is never run")),
    ("per_device_eval_batch_size per_gpu_eval_batch_size eval_batch_size eval_accumulation_steps eval_sample_packing "
     "eval_packing eval_on_start eval_delay prediction_loss_only bf16_full_eval fp16_full_eval infer_dtype",
     lambda: t("the held-out loss is measured in batches like those of training")),
    ("group_by_length pad_to_sequence_len pad_to_multiple_of padding_side packing_length packing_strategy "
     "sample_packing_* auto_find_batch_size multipack_real_batches train_sampling_strategy",
     lambda: t("dialogues are packed without padding")),
    ("strict adam_epsilon optim_args average_tokens_across_devices full_determinism gradient_checkpointing_kwargs "
     "activation_checkpointing_kwargs use_reentrant_gc use_cache upcast_* ignore_args_error model_kwargs "
     "lora_fan_in_fan_out lora_on_cpu lora_dtype ignore_pad_token_for_loss", lambda: t("has one fixed value here")),
    ("model_type model_author tokenizer_* processor_type use_fast_tokenizer base_model_config cls_model_config "
     "is_*_derived_model max_model_len", lambda: t("the model's own folder says it")),
    ("push_to_hub hub_* hf_use_auth_token hf_hub_token ms_hub_token om_hub_token push_dataset_to_hub use_hf "
     "use_modelscope use_openmind cache_dir",
     lambda: t("nothing is uploaded; a ModelScope model is written modelscope:org/name")),
    ("resume_from_checkpoint auto_resume_from_checkpoints resume_only_model ignore_data_skip load_args check_model",
     lambda: t("a run is resumed from the command line")),
    ("debug log_* disable_tqdm logging_first_step logging_nan_inf_filter include_* skip_memory_metrics profiler_*",
     lambda: t("the console has no such setting")),
    ("enable_jit_checkpoint restore_callback_states_from_checkpoint save_only_model save_safetensors "
     "save_on_each_node create_checkpoint_symlink", lambda: t("a checkpoint is always complete, in safetensors")),
    ("freeze_vit freeze_aligner freeze_llm freeze_vision_tower freeze_multi_modal_projector freeze_language_model "
     "image_* video_* max_pixels vit_* aligner_lr local_repo_path", lambda: t("only text is trained")),
    ("quantization_method quantization_type double_quantization bnb_4bit_*", lambda: t("only for quantized weights")),
    ("metric_for_best_model greater_is_better", lambda: t("only for load_best_model_at_end")),
    ("temperature top_p top_k num_beams repetition_penalty", lambda: t("evaluation answers greedily")),
    ("pref_* dpo_* ppo_* kto_* simpo_* orpo_* grpo_*", lambda: t("only for preference training")),
    ("loss_watchdog_*", lambda: t("a loss that spikes is noticed anyway")),
]  # fmt: skip


USUAL_ADAMW = {"adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf"}


def _in(*harmless: str) -> Callable[[Any], bool]:
    return lambda value: off(value) or (isinstance(value, str) and value.lower() in harmless)


def _adamw(value: Any) -> bool:
    name = value.lower() if isinstance(value, str) else ""
    if "adamw" in name and "galore" not in name and "apollo" not in name and name not in USUAL_ADAMW:
        raise Dropped(t("the optimizer is AdamW in full precision"))
    return off(value) or name in USUAL_ADAMW


def _loss_plugins(value: Any) -> bool:
    return off(value) or (isinstance(value, list) and all("liger" in str(v) or "cut_cross" in str(v) for v in value))


# names, which values ask for nothing, what to do instead
UNSUPPORTED: list[tuple[str, Callable[[Any], bool], Why]] = [
    ("stage task", _in("sft"), lambda: t("only supervised fine-tuning is done here: take it out")),
    ("rl rlhf_type reward_model ref_model", off, lambda: t("only supervised fine-tuning is done here: take it out")),
    ("task_type", _in("causal_lm"), lambda: t("only chat models are trained here: take it out")),
    ("num_labels", off, lambda: t("only chat models are trained here: take it out")),
    ("deepspeed deepspeed_* fsdp fsdp_* zero_hpz_partition_size use_ray use_mca", off,
     lambda: t("take it out; train.checkpointing: true and a smaller train.token_budget save memory")),
    ("sequence_parallel_size sequence_parallel_degree context_parallel_size expert_parallel_size "
     "tensor_parallel_size", lambda value: off(value) or value == 1,
     lambda: t("take it out; train.checkpointing: true and a smaller train.token_budget save memory")),
    ("quantization_bit quant_bits quant_method load_in_4bit load_in_8bit gptq fp8 qat quantization bnb_config_kwargs "
     "model_quantization_config", off,
     lambda: t("take it out; train.method: lora with train.checkpointing: true saves memory")),
    ("neftune_noise_alpha noisy_embedding_alpha label_smoothing_factor use_dft_loss enable_dft_loss "
     "enable_channel_loss moe_aux_loss_coef router_aux_loss_coef", off,
     lambda: t("take it out: the loss is plain cross entropy")),
    ("use_dora peft_use_dora use_rslora peft_use_rslora pissa_init relora relora_steps loftq_config "
     "additional_target modules_to_save lora_modules_to_save target_regex target_parameters lora_target_parameters "
     "peft_layers_to_transform layers_to_transform rank_pattern alpha_pattern lora_bias bias", off,
     lambda: t("take it out: LoRA is plain LoRA here, on the modules of train.lora.targets")),
    ("init_weights init_lora_weights peft_init_lora_weights", lambda value: off(value) or _on(value),
     lambda: t("take it out: LoRA is plain LoRA here, on the modules of train.lora.targets")),
    ("unfrozen_parameters trainable_parameters freeze_parameters freeze_parameters_ratio freeze_trainable_layers "
     "freeze_trainable_modules freeze_extra_modules use_llama_pro lisa_activated_layers mixture_of_depths shift_attn "
     "s2_attention train_from_scratch", off, lambda: t("take it out: train.method is lora or full")),
    ("optim optimizer", _adamw, lambda: t("take it out: the optimizer is AdamW")),
    ("optim_target_modules use_galore use_apollo use_badam use_adam_mini use_muon", off,
     lambda: t("take it out: the optimizer is AdamW")),
    ("lr_scheduler_kwargs cosine_min_lr_ratio cosine_constant_lr_ratio embedding_lr lr_groups", off,
     lambda: t("take it out: train.schedule goes to zero with one rate for all weights")),
    ("loraplus_* lorap_*", off, lambda: t("take it out: one learning rate holds for all weights")),
    ("adapter_name_or_path lora_model_dir adapters create_new_adapter", off,
     lambda: t("take it out: a new adapter is trained; merge the old one first")),
    ("train_on_prompt train_on_inputs mask_history", off,
     lambda: t("take it out: every answer of the assistant is trained, and nothing else")),
    ("loss_scale", _in("default"),
     lambda: t("take it out: every answer of the assistant is trained, and nothing else")),
    ("truncation_strategy", _in("delete", "raise"),
     lambda: t("take it out: a longer dialogue is rejected, never cut; raise prepare.max_length")),
    ("eval_dataset val_dataset test_datasets cached_dataset cached_val_dataset", off,
     lambda: t("put the files into data; prepare.validation holds a share out")),
    ("mix_strategy", _in("concat"), lambda: t("take it out: data[].repeat weighs one file against another")),
    ("interleave_probs interleave_prob", off, lambda: t("take it out: data[].repeat weighs one file against another")),
    ("columns", off, lambda: t("write it beside the file: data: [{path: …, columns: {role: column}}]")),
    ("dataset_shuffle train_dataloader_shuffle shuffle_merged_datasets", lambda value: not off(value),
     lambda: t("take it out: the order is shuffled, the same way for the same seed")),
    ("disable_shuffling", off, lambda: t("take it out: the order is shuffled, the same way for the same seed")),
    ("special_tokens", lambda value: off(value) or (isinstance(value, dict) and set(value) <= {"pad_token"}),
     lambda: t("take it out: the tokenizer stays as it is")),
    ("add_tokens add_special_tokens new_special_tokens tokens resize_vocab rope_scaling", off,
     lambda: t("take it out: the tokenizer and the model's shape stay as they are")),
    ("load_best_model_at_end early_stopping_steps early_stopping_patience", off,
     lambda: t("take it out: the last step's weights are the result; fewer train.epochs stop earlier")),
    ("pretraining_dataset", off, lambda: t("only supervised fine-tuning is done here: take it out")),
    ("plugins", _loss_plugins, lambda: t("take it out: plugins of other tools are not loaded")),
    ("external_plugins custom_register_path", off, lambda: t("take it out: plugins of other tools are not loaded")),
]  # fmt: skip

# keys of an Axolotl dataset section: those that name a column, by the role it has; those that describe the rows
COLUMNS = {
    "field_messages": "messages", "field_instruction": "user", "field_input": "input", "field_output": "assistant",
    "field_system": "system", "field_tools": "tools",
}  # fmt: skip
LOOKED_AT = {
    "type", "ds_type", "name", "conversation", "chat_template", "message_property_mappings", "message_field_role",
    "message_field_content", "field_human", "field_model", "field_thinking", "roles", "roles_to_train", "train_on_eos",
    "shards", "preprocess_shards", "trust_remote_code", "revision", "split",
}  # fmt: skip
