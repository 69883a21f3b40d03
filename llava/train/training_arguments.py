"""The flags of `transformers.TrainingArguments` (4.37 and later names) that people give to the original.

Each is one of three: used, without effect here (said once, with the reason), or refused because the result
would be another one. `fine` are the values that ask for what happens anyway: they pass without a word.
`args` translates the used ones; `original_flags` has those that the original adds.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["switch", "int", "float", "text", "list"]


class Flag(NamedTuple):
    """One flag of the original's command line."""

    name: str
    kind: Kind
    effect: Literal["used", "none", "refused"]
    text: str
    """Used: what it becomes here. Otherwise the reason."""
    fine: tuple[str, ...] = ()
    """Values, in lower case, that neither warn nor fail."""


def used(kind: Kind, names: dict[str, str]) -> tuple[Flag, ...]:
    """Return flags that are translated: name to what they become."""
    return tuple(Flag(name, kind, "used", text) for name, text in names.items())


def idle(reason: str, kind: Kind, names: str, *fine: str) -> tuple[Flag, ...]:
    """Return flags without effect, for one reason."""
    return tuple(Flag(name, kind, "none", reason, fine) for name in names.split())


def refused(reason: str, kind: Kind, names: str, *fine: str) -> tuple[Flag, ...]:
    """Return flags that are errors unless they have one of the `fine` values."""
    return tuple(Flag(name, kind, "refused", reason, fine) for name in names.split())


_USED = (
    *used(
        "text",
        {
            "output_dir": "run.output_dir",
            "optim": "optimizer.name",
            "lr_scheduler_type": "optimizer.schedule",
            "evaluation_strategy": "run.eval_steps",
            "eval_strategy": "run.eval_steps",
            "save_strategy": "run.save_steps",
            "run_name": "run.run_name",
            "deepspeed": "run.deepspeed and run.engine",
            "fsdp": "run.engine",
            "resume_from_checkpoint": "run.resume",
            "train_sampling_strategy": "data.order",
        },
    ),
    *used(
        "float",
        {
            "learning_rate": "optimizer.lr",
            "weight_decay": "optimizer.weight_decay",
            "adam_beta1": "optimizer.beta1",
            "adam_beta2": "optimizer.beta2",
            "adam_epsilon": "optimizer.epsilon",
            "max_grad_norm": "optimizer.max_grad_norm",
            "num_train_epochs": "run.epochs",
            "warmup_ratio": "optimizer.warmup_ratio",
            "warmup_steps": "optimizer.warmup_steps",
            "save_steps": "run.save_steps",
            "logging_steps": "run.logging_steps",
            "eval_steps": "run.eval_steps",
            "ddp_timeout": "run.hang_timeout_s",
        },
    ),
    *used(
        "int",
        {
            "per_device_train_batch_size": "run.micro_batch",
            "per_gpu_train_batch_size": "run.micro_batch",
            "gradient_accumulation_steps": "run.accumulation",
            "max_steps": "run.max_steps",
            "save_total_limit": "run.save_limit",
            "dataloader_num_workers": "data.num_workers",
            "seed": "run.seed",
            "data_seed": "run.seed (must be the same)",
        },
    ),
    *used(
        "switch",
        {
            "bf16": "run.precision",
            "fp16": "run.precision",
            "tf32": "run.tf32",
            "gradient_checkpointing": "run.gradient_checkpointing",
            "torch_compile": "run.torch_compile",
            "group_by_length": "data.order",
            "use_cpu": "run.device",
            "no_cuda": "run.device",
            "use_mps_device": "run.device",
            "full_determinism": "run.deterministic",
        },
    ),
    *used("list", {"report_to": "run.report_to"}),
)

_IDLE = (
    *idle("torchrun, Slurm or deepspeed say it in the environment",
          "int", "local_rank", "-1", *map(str, range(64))),
    *idle("a run in output_dir is gone on with; --resume False begins anew",
          "switch", "overwrite_output_dir", "false"),
    *idle("this command trains, and validates with --validation", "switch", "do_train", "true", "false"),
    *idle("this command trains, and validates with --validation", "switch", "do_eval do_predict", "false"),
    *idle("validation is packed as training is", "int", "per_device_eval_batch_size per_gpu_eval_batch_size"),
    *idle("validation keeps no predictions", "int", "eval_accumulation_steps"),
    *idle("validation is of the loss alone",
          "switch", "prediction_loss_only include_inputs_for_metrics", "false"),
    *idle("validation is of the loss alone",
          "switch", "batch_eval_metrics eval_do_concat_batches eval_on_start"),
    *idle("validation is of the loss alone", "list", "label_names include_for_metrics"),
    *idle("validation runs in the precision of training", "switch", "bf16_full_eval fp16_full_eval", "false"),
    *idle("validation begins with eval_steps", "float", "eval_delay", "0", "0.0"),
    *idle("metrics.jsonl has every step", "text", "logging_strategy", "steps"),
    *idle("metrics.jsonl has every step", "switch", "logging_first_step"),
    *idle("TensorBoard's files lie in output_dir", "text", "logging_dir"),
    *idle("a loss that is no number ends the run and names its samples", "switch", "logging_nan_inf_filter"),
    *idle("rank 0 logs", "switch", "log_on_each_node"),
    *idle("--debug is the only other level",
          "text", "log_level log_level_replica", "passive", "warning", "info"),
    *idle("progress is shown on a terminal, and as plain lines elsewhere", "switch", "disable_tqdm", "false"),
    *idle("tokens are always counted in metrics.jsonl", "switch",
          "include_tokens_per_second include_num_input_tokens_seen"),
    *idle("memory is always measured", "switch", "skip_memory_metrics"),
    *idle("weights are always written as safetensors", "switch", "save_safetensors", "true"),
    *idle("checkpoints always hold what resuming needs", "switch", "save_only_model", "false"),
    *idle("rank 0 writes; every rank writes its share of a sharded checkpoint",
          "switch", "save_on_each_node", "false"),
    *idle("nothing is uploaded", "switch", "push_to_hub hub_private_repo hub_always_push", "false"),
    *idle("nothing is uploaded",
          "text", "hub_model_id hub_strategy hub_token hub_revision push_to_hub_model_id "
          "push_to_hub_organization push_to_hub_token"),
    *idle("no best checkpoint is chosen; see validation in metrics.jsonl", "text", "metric_for_best_model"),
    *idle("no best checkpoint is chosen; see validation in metrics.jsonl", "switch", "greater_is_better"),
    *idle("the loader keeps its workers and pins memory where a GPU is used", "switch",
          "dataloader_pin_memory dataloader_persistent_workers"),
    *idle("the loader reads ahead by whole steps", "int", "dataloader_prefetch_factor"),
    *idle("samples are encoded here and have no columns", "switch", "remove_unused_columns", "false"),
    *idle("lengths are counted in tokens by a scan of the data", "text", "length_column_name"),
    *idle("every trained parameter is in every step", "switch", "ddp_find_unused_parameters", "false"),
    *idle("the device decides", "text", "ddp_backend xpu_backend"),
    *idle("DDP's own is used", "int", "ddp_bucket_cap_mb"),
    *idle("there are no buffers to send", "switch", "ddp_broadcast_buffers ddp_static_graph"),
    *idle("each transformer layer is a unit", "text", "fsdp_config fsdp_transformer_layer_cls_to_wrap"),
    *idle("each transformer layer is a unit", "int", "fsdp_min_num_params", "0"),
    *idle("checkpointing is always the non-reentrant kind, whose results are the same", "text",
          "gradient_checkpointing_kwargs"),
    *idle("torch decides", "text", "torch_compile_backend torch_compile_mode torchdynamo"),
    *idle("one precision setting, run.precision, decides",
          "text", "half_precision_backend fp16_backend fp16_opt_level",
          "auto", "o1"),
    *idle("targets are always counted over all ranks", "switch", "average_tokens_across_devices", "true"),
    *idle("attention and loss are this project's own", "switch", "use_liger_kernel", "false"),
    *idle("it is for other hardware", "switch", "jit_mode_eval use_ipex tpu_metrics_debug", "false"),
    *idle("it is for other hardware", "int", "tpu_num_cores"),
    *idle("it is for other trainers", "text", "debug ray_scope mp_parameters accelerator_config"),
    *idle("it is for other trainers", "switch", "use_legacy_prediction_loop", "false"),
    *idle("it is for other trainers", "int", "past_index", "-1"),
    *idle("memory is returned by torch", "int", "torch_empty_cache_steps"),
)  # fmt: skip

_REFUSED = (
    *refused("give optimizer.name", "switch", "adafactor", "false"),
    *refused("give the optimizer's own options", "text", "optim_args optim_target_modules"),
    *refused("the cosine runs to 0", "text", "lr_scheduler_kwargs", "", "{}"),
    *refused("the loss is the plain cross-entropy", "float", "label_smoothing_factor", "0", "0.0", "0."),
    *refused("no noise is added to embeddings", "float", "neftune_noise_alpha", "0", "0.0", "none"),
    *refused("every sample is used; the last step of an epoch may be smaller",
             "switch", "dataloader_drop_last", "false"),
    *refused("no best checkpoint is kept; see validation in metrics.jsonl",
             "switch", "load_best_model_at_end", "false"),
    *refused("a resumed run goes on with the sample where it stopped", "switch", "ignore_data_skip", "false"),
    *refused("`llava plan` says which batch fits", "switch", "auto_find_batch_size", "false"),
    *refused("the step's batch is run.global_batch",
             "switch", "split_batches dispatch_batches", "false", "none"),
    *refused("use --fsdp or --deepspeed", "text", "sharded_ddp", ""),
)  # fmt: skip

TRAINING_ARGUMENTS = (*_USED, *_IDLE, *_REFUSED)
"""Every accepted name of transformers.TrainingArguments."""
