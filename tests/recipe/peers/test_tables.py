"""The tables of other tools' keys: complete, and never in the way of the recipe's own keys."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tuneloop.recipe.peers import tables
from tuneloop.recipe.peers.translate import ALIASES, OWN, translate
from tuneloop.recipe.recipe import keys

LLAMA_FACTORY = """
template dataset eval_dataset dataset_dir media_dir cutoff_len train_on_prompt mask_history streaming buffer_size
mix_strategy interleave_probs overwrite_cache preprocessing_batch_size preprocessing_num_workers max_samples
ignore_pad_token_for_loss val_size packing neat_packing tool_format tokenized_path default_system enable_thinking
model_name_or_path adapter_name_or_path cache_dir use_fast_tokenizer resize_vocab add_tokens add_special_tokens
model_revision low_cpu_mem_usage rope_scaling flash_attn shift_attn mixture_of_depths use_unsloth use_unsloth_gc
enable_liger_kernel moe_aux_loss_coef disable_gradient_checkpointing use_reentrant_gc upcast_layernorm
upcast_lmhead_output train_from_scratch infer_dtype hf_hub_token ms_hub_token om_hub_token trust_remote_code
quantization_method quantization_bit quantization_type double_quantization fp8 image_max_pixels video_fps
freeze_trainable_layers freeze_trainable_modules freeze_extra_modules additional_target lora_alpha lora_dropout
lora_rank lora_target loraplus_lr_ratio loraplus_lr_embedding use_rslora use_dora pissa_init create_new_adapter
pref_beta pref_loss dpo_label_smoothing simpo_gamma ref_model reward_model use_galore use_apollo use_badam pref_ftx kto_chosen_weight kto_rejected_weight ppo_epochs pissa_iter use_swanlab
swanlab_project pure_bf16 stage finetuning_type use_llama_pro use_adam_mini use_muon use_dft_loss freeze_vision_tower
compute_accuracy disable_shuffling early_stopping_steps plot_loss include_effective_tokens_per_second
predict_with_generate overwrite_output_dir
"""

SWIFT = """
tuner_backend train_type tuner_type adapters external_plugins custom_register_path seed model_kwargs load_args use_hf
hub_token ddp_timeout ddp_backend ignore_args_error model model_type model_revision task_type torch_dtype attn_impl
new_special_tokens num_labels rope_scaling max_model_len device_map max_memory local_repo_path dataset val_dataset
cached_dataset split_dataset_ratio data_seed dataset_num_proc load_from_cache_file dataset_shuffle val_dataset_shuffle
streaming interleave_prob stopping_strategy shuffle_buffer_size download_mode columns strict remove_unused_columns
model_name model_author custom_dataset_info template system max_length truncation_strategy agent_template
use_chat_template padding_free padding_side loss_scale sequence_parallel_size response_prefix template_backend
max_new_tokens temperature top_k top_p repetition_penalty num_beams quant_method quant_bits bnb_4bit_compute_dtype
bnb_4bit_quant_type use_ray output_dir gradient_checkpointing vit_gradient_checkpointing deepspeed
zero_hpz_partition_size per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps
weight_decay adam_beta1 adam_beta2 learning_rate vit_lr aligner_lr lr_scheduler_type lr_scheduler_kwargs report_to
logging_first_step logging_steps router_aux_loss_coef enable_dft_loss enable_channel_loss logging_dir
predict_with_generate metric_for_best_model greater_is_better num_train_epochs save_strategy save_steps eval_strategy
eval_steps save_total_limit max_steps warmup_ratio save_on_each_node save_only_model resume_from_checkpoint
resume_only_model ignore_data_skip dataloader_num_workers train_dataloader_shuffle neftune_noise_alpha
use_liger_kernel average_tokens_across_devices max_grad_norm push_to_hub hub_model_id freeze_llm freeze_vit
freeze_aligner target_modules target_regex target_parameters init_weights modules_to_save freeze_parameters
freeze_parameters_ratio trainable_parameters lora_rank lora_alpha lora_dropout lora_bias lora_dtype use_dora
use_rslora lorap_lr_ratio use_galore lisa_activated_layers packing packing_length lazy_tokenize acc_strategy
add_version create_checkpoint_symlink check_model
rlhf_type beta simpo_gamma rpo_alpha label_smoothing desirable_weight undesirable_weight early_stop_interval
load_best_model_at_end problem_type
"""

AXOLOTL = """
base_model base_model_config model_type tokenizer_type tokenizer_config trust_remote_code revision_of_model strict
resume_from_checkpoint auto_resume_from_checkpoints rl reward_model datasets test_datasets shuffle_merged_datasets
dataset_prepared_path skip_prepare_dataset pretraining_dataset dataset_processes dataset_exact_deduplication
dataset_keep_in_memory dataloader_num_workers dataloader_prefetch_factor remove_unused_columns push_dataset_to_hub
hf_use_auth_token device device_map world_size local_rank ddp seed ddp_timeout eval_table_size eval_max_new_tokens
do_causal_lm_eval metric_for_best_model loss_watchdog_threshold loss_watchdog_patience gc_steps bf16 fp16 fp8 bfloat16
float16 tf32 gradient_checkpointing gradient_checkpointing_kwargs unfrozen_parameters sequence_len min_sample_len
sample_packing sample_packing_group_size eval_sample_packing pad_to_sequence_len batch_flattening xformers_attention
sdp_attention s2_attention flex_attention flash_attention eager_attention unsloth_lora_mlp lora_mlp_kernel
lora_qkv_kernel lora_o_kernel deepspeed fsdp fsdp_config val_set_size sequence_parallel_degree special_tokens tokens
torch_compile max_steps warmup_steps warmup_ratio eval_steps evals_per_epoch eval_strategy save_steps saves_per_epoch
save_strategy save_total_limit logging_steps rl_beta orpo_alpha dpo_label_smoothing loraplus_lr_embedding num_labels
early_stopping_patience load_best_model_at_end save_only_model
use_tensorboard neftune_noise_alpha max_memory gpu_memory_limit low_cpu_mem_usage chat_template chat_template_jinja
default_system_message eot_tokens plugins gradient_accumulation_steps micro_batch_size batch_size eval_batch_size
auto_find_batch_size train_on_inputs group_by_length learning_rate weight_decay optimizer optim_args lr_scheduler
lr_scheduler_kwargs cosine_min_lr_ratio adam_epsilon adam_beta1 adam_beta2 max_grad_norm num_epochs load_in_8bit
load_in_4bit adapter excess_length_strategy lora_model_dir lora_r lora_alpha lora_fan_in_fan_out lora_target_modules lora_target_linear
lora_modules_to_save lora_dropout peft_layers_to_transform peft_use_dora peft_use_rslora lora_on_cpu gptq
loraplus_lr_ratio output_dir hub_model_id hub_strategy save_safetensors wandb_project wandb_entity wandb_name mlflow_*
debug
"""

TRL = """
model_name_or_path model_revision dtype torch_dtype attn_implementation trust_remote_code use_peft lora_r lora_alpha
lora_dropout lora_target_modules lora_target_parameters lora_modules_to_save lora_task_type use_rslora use_dora
load_in_8bit load_in_4bit bnb_4bit_quant_type dataset_name dataset_config dataset_train_split dataset_test_split
dataset_streaming model_init_kwargs chat_template_path dataset_text_field dataset_kwargs dataset_num_proc eos_token
pad_token max_length shuffle_dataset packing packing_strategy padding_free pad_to_multiple_of eval_packing
completion_only_loss assistant_only_loss loss_type activation_offloading use_bnb_nested_quant
"""

PEFT = """
peft_type task_type r lora_alpha lora_dropout target_modules use_rslora use_dora init_lora_weights modules_to_save
layers_to_transform rank_pattern alpha_pattern loftq_config num_virtual_tokens prefix_projection prompt_tuning_init
prompt_tuning_init_text
"""


def known(key: str) -> bool:
    """Does `translate` do something with the key, or is it the recipe's own?"""
    return key in {"seed", "model"} or key not in translate({key: "x"})[0]


@pytest.mark.parametrize(
    "names", [LLAMA_FACTORY, SWIFT, AXOLOTL, TRL, PEFT], ids=["llama-factory", "ms-swift", "axolotl", "trl", "peft"]
)
def test_a_peers_keys_are_known(names: str) -> None:
    assert [key for key in names.split() if not known(key)] == []


def test_every_training_argument_of_transformers_is_known() -> None:
    from transformers import TrainingArguments

    assert [f.name for f in dataclasses.fields(TrainingArguments) if not known(f.name)] == []


def test_targets_are_keys_of_the_recipe() -> None:
    assert OWN - {key for key, _ in keys()} == set()


def test_no_own_key_is_taken_for_a_peers() -> None:
    """A key of the recipe that looks like a peer's must be a target of the table, and so is left where it is."""
    for key, _ in keys():
        *section, leaf = key.split(".")
        if "[]" in key or not section or key in OWN:
            continue
        alias = ALIASES.get(leaf)
        place: dict[str, Any] = {leaf: 1}
        for name in reversed(section):
            place = {name: place}
        out, notes, problems = translate(place)
        assert not notes, key
        assert not problems, key
        assert alias is None or not alias[0].startswith(".".join(section)), key
        assert leaf in str(out)


def test_each_name_stands_once() -> None:
    rows = [names for _, _, names in tables.TABLE] + [names for names, _ in tables.IGNORED]
    names = " ".join([*rows, *(names for names, *_ in tables.UNSUPPORTED)]).split()
    assert sorted(n for n in set(names) if names.count(n) > 1) == []


def test_every_reason_has_words() -> None:
    for why in (
        [why for _, why in tables.IGNORED]
        + [why for _, _, *both in tables.UNSUPPORTED for why in both]
        + [*tables.REMARKS.values()]
    ):
        assert why() == why().strip() != ""
