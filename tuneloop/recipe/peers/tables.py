"""The keys of transformers, TRL, LLaMA-Factory, ms-swift (3 and 4) and Axolotl, and what becomes of them.

Three tables: `TABLE` (called something else here), `IGNORED` (no meaning here), `UNSUPPORTED` (asks for something that
tuneloop cannot do yet). `recipe/peers/translate.py` walks a recipe with them; neither knows which keys the recipe has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tuneloop.base.language import t
from tuneloop.recipe.peers.values import (
    Convert,
    amount,
    dtype,
    either,
    exact,
    flag,
    last_blocks,
    lora_init,
    max_steps,
    method,
    modules,
    off,
    optimizer,
    same,
    schedule,
    strategy,
    system,
    targets,
    template,
    times_an_epoch,
    together,
    too_long,
    wanted,
)

Why = Callable[[], str]

# key of the recipe, converter, names elsewhere
TABLE: list[tuple[str, Convert, str]] = [
    ("model.name", same, "model_name_or_path base_model model_id_or_path model_path model_id"),
    ("model.name", together, "model_name"),
    ("model.revision", same, "model_revision revision_of_model revision"),
    ("model.dtype", dtype, "torch_dtype dtype"),
    ("model.dtype", flag("bfloat16", "auto"), "bf16 bfloat16 pure_bf16"),
    ("model.dtype", flag("float16", "auto"), "fp16 float16"),
    ("model.dtype", flag("float32"), "fp32 float32"),
    ("model.template", template, "chat_template chat_template_jinja chat_template_path"),
    ("data", together, "dataset datasets train_dataset dataset_dir max_samples dataset_name"),
    ("data", together, "eval_dataset val_dataset test_datasets pretraining_dataset"),
    ("prepare.system", system, "system default_system default_system_message system_prompt"),
    ("prepare.max_length", same, "cutoff_len max_seq_length max_seq_len max_length sequence_len model_max_length"),
    ("prepare.validation", same, "val_size val_set_size split_dataset_ratio"),
    ("prepare.dedupe", exact, "dataset_exact_deduplication"),
    ("prepare.too_long", too_long, "truncation_strategy excess_length_strategy truncation_mode"),
    ("train.task", together, "stage task task_type rl rlhf_type"),
    ("train.method", method, "finetuning_type train_type tuner_type sft_type adapter peft_type"),
    ("train.method", lambda setting: "lora" if either(setting) else "full", "use_peft"),
    ("train.lora.rank", same, "lora_rank lora_r r"),
    ("train.lora.alpha", same, "lora_alpha"),
    ("train.lora.dropout", same, "lora_dropout lora_dropout_p"),
    ("train.lora.targets", targets, "lora_target lora_target_modules target_modules"),
    ("train.lora.targets", flag("all-linear"), "lora_target_linear"),
    ("train.lora.rslora", flag(True), "use_rslora peft_use_rslora"),
    ("train.lora.dora", flag(True), "use_dora peft_use_dora"),
    ("train.lora.init", lora_init, "init_weights init_lora_weights peft_init_lora_weights"),
    ("train.lora.init", flag("pissa"), "pissa_init"),
    ("train.lora.plus_ratio", amount, "loraplus_lr_ratio lorap_lr_ratio"),
    ("train.lora.train_also", modules, "additional_target modules_to_save lora_modules_to_save"),
    ("train.qlora.bits", together, "quantization_bit quant_bits load_in_4bit load_in_8bit"),
    ("train.qlora.double", together, "double_quantization bnb_4bit_use_double_quant use_bnb_nested_quant"),
    ("train.adapter", together, "adapter_name_or_path lora_model_dir adapters create_new_adapter"),
    ("train.freeze.layers", last_blocks, "freeze_trainable_layers"),
    ("train.virtual.tokens", same, "num_virtual_tokens pre_seq_len"),
    ("train.virtual.projection", either, "prefix_projection"),
    ("train.virtual.text", same, "prompt_tuning_init_text"),
    ("train.prefer.loss", together, "pref_loss loss_type"),
    ("train.prefer.beta", same, "pref_beta beta rl_beta orpo_alpha"),
    ("train.prefer.margin", same, "simpo_gamma"),
    ("train.prefer.smoothing", amount, "dpo_label_smoothing label_smoothing"),
    ("train.prefer.sft", amount, "pref_ftx rpo_alpha"),
    ("train.neftune_alpha", amount, "neftune_noise_alpha noisy_embedding_alpha"),
    ("train.epochs", same, "num_train_epochs num_epochs epochs"),
    ("train.max_steps", max_steps, "max_steps"),
    ("train.batch_size", same, "batch_size global_batch_size"),
    ("train.batch_size", together, "per_device_train_batch_size per_gpu_train_batch_size gradient_accumulation_steps"),
    ("train.micro_batch_size", together, "micro_batch_size"),
    ("train.packing", same, "packing sample_packing"),
    ("train.packing", flag(True, True), "neat_packing padding_free batch_flattening"),
    ("train.optimizer", optimizer, "optim optimizer"),
    ("train.learning_rate", same, "learning_rate lr"),
    ("train.schedule", schedule, "lr_scheduler_type lr_scheduler"),
    ("train.warmup_ratio", same, "warmup_ratio"),
    ("train.warmup_steps", together, "warmup_steps"),
    ("train.weight_decay", same, "weight_decay"),
    ("train.betas", together, "adam_beta1 adam_beta2"),
    ("train.max_grad_norm", same, "max_grad_norm gradient_clipping"),
    ("train.checkpointing", either, "gradient_checkpointing activation_checkpointing use_gradient_checkpointing"),
    ("train.checkpointing", lambda setting: not either(setting), "disable_gradient_checkpointing"),
    ("train.checkpointing", flag(True), "use_unsloth_gc"),
    ("train.workers", same, "dataloader_num_workers"),
    ("train.logging_strategy", strategy, "logging_strategy"),
    ("train.logging_steps", same, "logging_steps"),
    ("train.save_strategy", strategy, "save_strategy"),
    ("train.save_strategy", times_an_epoch, "saves_per_epoch"),
    ("train.save_steps", same, "save_steps"),
    ("train.save_total_limit", same, "save_total_limit"),
    ("train.eval_strategy", strategy, "eval_strategy evaluation_strategy"),
    ("train.eval_strategy", times_an_epoch, "evals_per_epoch"),
    ("train.eval_steps", same, "eval_steps"),
    ("train.early_stopping", wanted, "early_stopping_patience early_stopping_steps early_stop_interval"),
    ("train.keep_best", flag(True), "load_best_model_at_end"),
    ("evaluate.max_new_tokens", same, "max_new_tokens eval_max_new_tokens"),
    ("name", together, "run_name output_dir"),
    ("seed", same, "seed"),
]  # fmt: skip

REMARKS: dict[str, Why] = {
    "prepare.max_length": lambda: t("a longer dialogue is rejected; prepare.too_long says otherwise"),
    "evals_per_epoch": lambda: t("at most once an epoch; train.eval_steps measures more often"),
    "saves_per_epoch": lambda: t("at most once an epoch; train.save_steps saves more often"),
    "freeze_trainable_layers": lambda: t("the last norm is trained with the last blocks"),
    "train.early_stopping": lambda: t("counted in measurements of the held-out loss"),
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
     "dataloader_* stopping_strategy val_dataset_shuffle custom_dataset_info length_column_name "
     "shuffle_dataset dataset_streaming",
     lambda: t("data is read in one fixed order, whatever the number of processes")),
    ("min_sample_len", lambda: t("short dialogues stay; prepare.tokens: [least, most] drops them")),
    ("dataset_text_field dataset_kwargs dataset_config dataset_train_split dataset_test_split formatting",
     lambda: t("the shape of the rows is recognised by looking at them")),
    ("assistant_only_loss completion_only_loss",
     lambda: t("every answer of the assistant is trained, and nothing else")),
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
     "lora_fan_in_fan_out lora_on_cpu lora_dtype lora_task_type pad_token eos_token ignore_pad_token_for_loss",
     lambda: t("has one fixed value here")),
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
    ("bnb_4bit_compute_dtype bnb_4bit_quant_storage", lambda: t("model.dtype is the type of the computation")),
    ("metric_for_best_model greater_is_better", lambda: t("the held-out loss decides which state is the best")),
    ("loraplus_lr_embedding lorap_emb_lr", lambda: t("the B of an embedding learns as fast as the other B")),
    ("num_labels problem_type", lambda: t("the labels are those in the rows")),
    ("prompt_tuning_init peft_task_type pissa_iter pissa_convert", lambda: t("has one fixed value here")),
    ("temperature top_p top_k num_beams repetition_penalty", lambda: t("evaluation answers greedily")),
    ("ppo_* grpo_* orpo_* simpo_*", lambda: t("only for other preference losses")),
    ("loss_watchdog_*", lambda: t("a loss that spikes is noticed anyway")),
]  # fmt: skip


def _in(*harmless: str) -> Callable[[Any], bool]:
    return lambda setting: off(setting) or (isinstance(setting, str) and setting.lower() in harmless)


def _loss_plugins(setting: Any) -> bool:
    return off(setting) or (
        isinstance(setting, list) and all("liger" in str(v) or "cut_cross" in str(v) for v in setting)
    )


# names, which values ask for nothing, what they ask for, what to do instead
UNSUPPORTED: list[tuple[str, Callable[[Any], bool], Why, Why]] = [
    ("reward_model ref_model ref_adapters reward_adapters", off,
     lambda: t("a reference or reward model of another folder"),
     lambda: t("take it out: the reference is the model as it was before training")),
    ("kto_chosen_weight kto_rejected_weight desirable_weight undesirable_weight kto_desirable_weight "
     "kto_undesirable_weight", lambda setting: off(setting) or setting == 1,
     lambda: t("weights for good and bad answers"), lambda: t("take it out")),
    ("deepspeed deepspeed_* fsdp fsdp_* zero_hpz_partition_size use_ray use_mca", off,
     lambda: t("sharded training with DeepSpeed, FSDP or Ray"),
     lambda: t("take it out; train.checkpointing: true and a smaller train.token_budget save memory")),
    ("sequence_parallel_size sequence_parallel_degree context_parallel_size expert_parallel_size "
     "tensor_parallel_size", lambda setting: off(setting) or setting == 1,
     lambda: t("splitting a sequence or a model over devices"),
     lambda: t("take it out; train.checkpointing: true and a smaller train.token_budget save memory")),
    ("quant_method quantization_method", _in("bnb", "bitsandbytes"), lambda: t("this form of quantized weights"),
     lambda: t("take it out: train.method: qlora holds them in nf4 or int8")),
    ("quantization_type bnb_4bit_quant_type", _in("nf4"), lambda: t("this form of quantized weights"),
     lambda: t("take it out: train.method: qlora holds them in nf4 or int8")),
    ("gptq fp8 qat quantization bnb_config_kwargs model_quantization_config", off,
     lambda: t("this form of quantized weights"),
     lambda: t("take it out: train.method: qlora holds them in nf4 or int8")),
    ("activation_offloading", off, lambda: t("moving activations out of the card's memory"),
     lambda: t("take it out; train.checkpointing: true and a smaller train.token_budget save memory")),
    ("label_smoothing_factor use_dft_loss enable_dft_loss enable_channel_loss moe_aux_loss_coef router_aux_loss_coef",
     off, lambda: t("another loss than plain cross entropy"), lambda: t("take it out")),
    ("relora relora_steps loftq_config target_regex target_parameters lora_target_parameters "
     "peft_layers_to_transform layers_to_transform rank_pattern alpha_pattern lora_bias bias", off,
     lambda: t("a variant of LoRA"), lambda: t("take it out: plain LoRA on the modules of train.lora.targets")),
    ("freeze_trainable_modules", _in("all"), lambda: t("this choice of trained weights"),
     lambda: t("take it out; train.freeze.modules names modules instead of blocks")),
    ("freeze_extra_modules", off, lambda: t("this choice of trained weights"),
     lambda: t("take it out; train.freeze.head: true trains the head as well")),
    ("unfrozen_parameters trainable_parameters freeze_parameters freeze_parameters_ratio use_llama_pro "
     "lisa_activated_layers mixture_of_depths shift_attn s2_attention train_from_scratch", off,
     lambda: t("this choice of trained weights"),
     lambda: t("take it out; train.method: freeze trains the last blocks, or the modules you name")),
    ("optim_target_modules use_galore use_apollo use_badam use_adam_mini use_muon", off,
     lambda: t("another optimizer than AdamW"), lambda: t("take it out")),
    ("lr_scheduler_kwargs cosine_min_lr_ratio cosine_constant_lr_ratio", off,
     lambda: t("a schedule that does not go to zero"), lambda: t("take it out, or choose another train.schedule")),
    ("embedding_lr lr_groups", off, lambda: t("several learning rates in one run"),
     lambda: t("take it out; train.lora.plus_ratio is LoRA+")),
    ("train_on_prompt train_on_inputs mask_history", off, lambda: t("another choice of trained tokens"),
     lambda: t("take it out: every answer of the assistant is trained, and nothing else")),
    ("loss_scale", _in("default"), lambda: t("another choice of trained tokens"),
     lambda: t("take it out: every answer of the assistant is trained, and nothing else")),
    ("cached_dataset cached_val_dataset", off, lambda: t("a dataset that another tool has prepared"),
     lambda: t("put the raw files into data")),
    ("mix_strategy", _in("concat"), lambda: t("mixing files by probability"),
     lambda: t("take it out: data[].repeat weighs one file against another")),
    ("interleave_probs interleave_prob dataset_mixture", off, lambda: t("mixing files by probability"),
     lambda: t("take it out: data[].repeat weighs one file against another")),
    ("columns", off, lambda: t("columns for all files together"),
     lambda: t("write it beside the file: data: [{path: …, columns: {role: column}}]")),
    ("dataset_shuffle train_dataloader_shuffle shuffle_merged_datasets", lambda setting: not off(setting),
     lambda: t("an order that is not shuffled"), lambda: t("take it out: the order depends on the seed alone")),
    ("disable_shuffling", off, lambda: t("an order that is not shuffled"),
     lambda: t("take it out: the order depends on the seed alone")),
    ("special_tokens", lambda setting: off(setting) or (isinstance(setting, dict) and set(setting) <= {"pad_token"}),
     lambda: t("changing the tokenizer or the model's shape"), lambda: t("take it out")),
    ("add_tokens add_special_tokens new_special_tokens tokens resize_vocab rope_scaling", off,
     lambda: t("changing the tokenizer or the model's shape"), lambda: t("take it out")),
    ("model_init_kwargs", off, lambda: t("a section with the model's arguments"),
     lambda: t("write them at the top, e.g. torch_dtype: bfloat16")),
    ("plugins", _loss_plugins, lambda: t("plugins of other tools"), lambda: t("take it out")),
    ("external_plugins custom_register_path", off, lambda: t("plugins of other tools"), lambda: t("take it out")),
]  # fmt: skip

# keys that only one of the tools has, to call it by its name
SIGNS = {
    "LLaMA-Factory": "finetuning_type cutoff_len dataset_dir lora_target overwrite_cache plot_loss stage val_size",
    "ms-swift": "train_type tuner_type split_dataset_ratio dataset_num_proc attn_impl truncation_strategy model_author",
    "Axolotl": "base_model datasets sequence_len sample_packing val_set_size num_epochs lora_target_linear "
    "dataset_prepared_path excess_length_strategy",
    "TRL": "dataset_name use_peft lora_target_modules assistant_only_loss completion_only_loss dataset_text_field",
}  # fmt: skip


def tool(keys: Iterable[str]) -> str:
    """The tool that keys look most like; "" where nothing tells.

    >>> tool(["cutoff_len", "stage", "learning_rate"]), tool(["num_train_epochs"])
    ('LLaMA-Factory', '')
    """
    counts = {name: len(set(signs.split()) & set(keys)) for name, signs in SIGNS.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else ""


# keys of an Axolotl dataset section: those that name a column, by the role it has; those that describe the rows
COLUMNS = {
    "field_messages": "messages", "field_instruction": "user", "field_input": "input", "field_output": "assistant",
    "field_system": "system", "field_tools": "tools",
}  # fmt: skip
LOOKED_AT = {
    "type", "ds_type", "name", "conversation", "chat_template", "field_human", "field_model", "shards",
    "preprocess_shards", "trust_remote_code", "revision", "split",
}  # fmt: skip
# keys of it that name keys of a turn, by their role; the names that are read in any case; its own usual values
TURN_KEYS = {"message_field_role": "role", "message_field_content": "content", "field_thinking": "reasoning"}
READ = {
    "role": {"role", "from"}, "content": {"content", "value", "text"},
    "reasoning": {"reasoning_content", "reasoning", "thinking", "thought", "think", "cot", "analysis"},
    "reasoning_content": {"reasoning_content"}, "thinking": {"thinking"}, "tool_calls": {"tool_calls"},
    "name": {"name"}, "tool_call_id": {"tool_call_id"},
}  # fmt: skip
SPEAKERS = {
    "user": {"user", "human"}, "assistant": {"assistant", "gpt", "model"}, "system": {"system"}, "tool": {"tool"},
}  # fmt: skip
MARKS = {"train", "training", "weight", "loss_weight", "loss", "trainable", "loss_mask", "loss_scale"}

# dataset_info.json of LLaMA-Factory: its columns -> our roles; its tags -> what is read without a word, and who speaks
LISTED_COLUMNS = {
    "prompt": "user", "query": "input", "response": "assistant", "history": "history", "messages": "messages",
    "system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected", "kto_tag": "label",
}  # fmt: skip
LISTED_TAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "role_tag": (("from", "role"), ""), "content_tag": (("value", "content"), ""),
    "user_tag": (("human", "user"), "user"), "assistant_tag": (("gpt", "assistant"), "assistant"),
    "system_tag": (("system",), "system"), "observation_tag": (("observation", "tool", "function"), "tool"),
    "function_tag": (("function_call", "tool_call"), ""),
}  # fmt: skip
