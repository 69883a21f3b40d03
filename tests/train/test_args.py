"""The original's training command line: every flag, its spelling, and what it becomes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava.errors import ConfigError, UsageError
from llava.train.args import parse_original, read_flags
from llava.train.config import TrainConfig
from llava.train.options import flattened, options
from llava.train.original_flags import flags, short_names
from llava.train.train import main
from tests.documents import ROOT

RECORDED = ROOT / "tests" / "fixtures" / "training"
LEARNS = {"vision": "last:4", "projector": "all"}
NEEDED = ("--model_name_or_path", "vicuna", "--data_path", "data.json", "--output_dir", "out")

# The original's own flags, and names of transformers.TrainingArguments of 4.37 that people give it.
SPEC_FLAGS = """
    model_name_or_path version freeze_backbone tune_mm_mlp_adapter tune_vit_pos_embedding vision_tower
    mm_vision_select_layer pretrain_mm_mlp_adapter mm_projector_type mm_use_im_start_end
    mm_use_im_patch_token mm_vision_select_feature mm_patch_merge_type data_path meta_path
    lazy_preprocess is_multimodal image_folder image_aspect_ratio image_grid_pinpoints cache_dir optim
    remove_unused_columns freeze_mm_mlp_adapter freeze_llm mpt_attn_impl model_max_length double_quant
    quant_type bits lora_enable lora_r lora_alpha lora_dropout lora_weight_path lora_bias
    group_by_modality_length mm_projector_lr
"""
TRAINING_ARGUMENTS = """
    output_dir overwrite_output_dir do_train do_eval do_predict evaluation_strategy eval_strategy
    prediction_loss_only per_device_train_batch_size per_device_eval_batch_size per_gpu_train_batch_size
    per_gpu_eval_batch_size gradient_accumulation_steps eval_accumulation_steps eval_delay learning_rate
    weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm num_train_epochs max_steps
    lr_scheduler_type lr_scheduler_kwargs warmup_ratio warmup_steps log_level log_level_replica
    log_on_each_node logging_dir logging_strategy logging_first_step logging_steps
    logging_nan_inf_filter save_strategy save_steps save_total_limit save_safetensors save_on_each_node
    save_only_model no_cuda use_cpu use_mps_device seed data_seed jit_mode_eval use_ipex bf16 fp16
    fp16_opt_level half_precision_backend bf16_full_eval fp16_full_eval tf32 local_rank ddp_backend
    tpu_num_cores tpu_metrics_debug debug dataloader_drop_last eval_steps dataloader_num_workers
    past_index run_name disable_tqdm label_names load_best_model_at_end metric_for_best_model
    greater_is_better ignore_data_skip fsdp fsdp_min_num_params fsdp_config
    fsdp_transformer_layer_cls_to_wrap deepspeed label_smoothing_factor optim_args adafactor
    group_by_length length_column_name report_to ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers dataloader_pin_memory dataloader_persistent_workers skip_memory_metrics
    use_legacy_prediction_loop push_to_hub resume_from_checkpoint hub_model_id hub_strategy hub_token
    hub_private_repo hub_always_push gradient_checkpointing gradient_checkpointing_kwargs
    include_inputs_for_metrics fp16_backend push_to_hub_model_id push_to_hub_organization
    push_to_hub_token mp_parameters auto_find_batch_size full_determinism torchdynamo ray_scope
    ddp_timeout torch_compile torch_compile_backend torch_compile_mode dispatch_batches split_batches
    include_tokens_per_second include_num_input_tokens_seen neftune_noise_alpha
"""


def parse(*words: str, notices: list[str] | None = None) -> TrainConfig:
    said: list[str] = []
    config = parse_original([*NEEDED, *words], on_notice=said.append)
    if notices is None:
        assert not said, said
    else:
        notices += said
    return config


def value(config: TrainConfig, path: str) -> Any:
    return flattened(config)[path]


@pytest.mark.parametrize("name", sorted({*SPEC_FLAGS.split(), *TRAINING_ARGUMENTS.split()}))
def test_every_flag_of_the_original_is_known(name: str) -> None:
    assert flags()[name].text


def test_the_document_says_what_each_flag_becomes() -> None:
    lines = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `--")]
    told = {name.strip("` -"): text for names, text in rows for name in names.split(",")}
    own = {*options(), *short_names()}
    assert told == {name: flag.text for name, flag in flags().items() if name not in own or name in told}
    assert {*SPEC_FLAGS.split(), *TRAINING_ARGUMENTS.split()} <= set(told)


def test_defaults_are_the_originals() -> None:
    config = parse()
    expected = {
        "model.template": "v0",
        "model.im_patch_token": True,
        "data.max_length": 512,
        "optimizer.lr": 5e-5,
        "optimizer.schedule": "linear",
        "optimizer.warmup_ratio": 0.0,
        "optimizer.weight_decay": 0.0,
        "run.epochs": 3.0,
        "run.micro_batch": 8,
        "run.accumulation": 1,
        "run.save_steps": 500,
        "run.save_limit": None,
        "run.seed": 42,
        "run.precision": "float32",
        "stage.name": "finetune",
        "stage.lora_r": 64,
        "data.packing": True,
        "data.order": "random",
    }
    assert {path: value(config, path) for path in expected} == expected


@pytest.mark.parametrize("run", ["pretrain", "finetune", "lora"])
def test_the_recorded_command_lines_of_the_original_are_understood(run: str) -> None:
    argv = json.loads((RECORDED / run / "args.json").read_text())["argv"]
    said: list[str] = []
    config = parse_original(argv, on_notice=said.append)
    assert said == [
        "warning: --per_device_eval_batch_size 4 has no effect: validation is packed as training is"
    ]
    assert config.stage.name == {"pretrain": "align", "finetune": "finetune", "lora": "lora"}[run]
    assert config.optimizer.lr == {"pretrain": 1e-3, "finetune": 2e-3, "lora": 2e-3}[run]
    assert (config.run.micro_batch, config.run.accumulation) == ((4, 2) if run == "pretrain" else (4, 1))
    assert (config.run.device, config.run.precision) == ("cpu", "float32")
    assert config.model.select_layer == (-2 if run == "lora" else -4)
    assert (config.stage.lora_r, config.stage.lora_dropout) == ((8, 0.0) if run == "lora" else (64, 0.05))
    assert config.data.image_aspect_ratio == (None if run == "pretrain" else "pad")


@pytest.mark.parametrize(
    ("words", "path", "expected"),
    [
        (["--bf16"], "run.precision", "bfloat16"),
        (["--bf16", "True"], "run.precision", "bfloat16"),
        (["--bf16=1"], "run.precision", "bfloat16"),
        (["--bf16", "no"], "run.precision", "float32"),
        (["--fp16", "yes"], "run.precision", "float16"),
        (["--tf32", "False"], "run.tf32", False),
        (["--no_tf32"], "run.tf32", False),
        (["--no_cuda"], "run.device", "cpu"),
        (["--mm_vision_select_layer", "-2"], "model.select_layer", -2),
        (["--learning-rate=1e-3"], "optimizer.lr", 1e-3),
        (["--weight_decay", "0."], "optimizer.weight_decay", 0.0),
        (["--warmup_steps", "0.1"], "optimizer.warmup_ratio", 0.1),
        (["--warmup_steps", "100"], "optimizer.warmup_steps", 100),
        (["--report_to", "tensorboard", "wandb", "--bf16"], "run.report_to", ("tensorboard", "wandb")),
        (["--report_to", "none"], "run.report_to", ()),
        (["--report_to", "all"], "run.report_to", ("tensorboard", "wandb")),
        (["--save_strategy", "no"], "run.save_steps", 0),
        (["--optim", "adamw_bnb_8bit"], "optimizer.name", "adamw_8bit"),
        (["--optim", "adamw_torch_fused"], "optimizer.name", "adamw"),
        (["--lr_scheduler_type", "constant_with_warmup"], "optimizer.schedule", "constant_with_warmup"),
        (["--deepspeed", "scripts/zero2.json"], "run.engine", "deepspeed"),
        (["--fsdp", "full_shard auto_wrap"], "run.engine", "fsdp"),
        (["--resume_from_checkpoint", "False"], "run.resume", False),
        (["--group_by_length"], "data.order", "length"),
        (["--group_by_modality_length"], "data.order", "modality_length"),
        (["--group_by_modality_length", "--modality_sampler=llava"], "data.order", "modality_length_llava"),
        (["--ddp_timeout", "60"], "run.hang_timeout_s", 60.0),
        (["--save_total_limit", "3"], "run.save_limit", 3),
        (["--mm_projector_lr", "2e-5"], "stage.projector_lr", 2e-5),
        (["--tune_vit_pos_embedding", "True"], "stage.positions", True),
        (["--version", "llava_llama_2"], "model.template", "llava_llama_2"),
        (["--version", "v0.5"], "model.template", "v0.5"),
        # This project's own, by field and by section.
        (["--replay", "order.json"], "run.replay", "order.json"),
        (["--init_weights", "x.safetensors"], "model.init_weights", "x.safetensors"),
        (["--packing", "False"], "data.packing", False),
        (["--engine", "fsdp"], "run.engine", "fsdp"),
        (["--bad_samples", "skip"], "data.bad_samples", "skip"),
        (["--stage.name", "custom"], "stage.name", "custom"),
        (["--stage.learns", "vision=last:4,projector=all"], "stage.learns", LEARNS),
        (["--run.save_limit", "none"], "run.save_limit", None),
        (["--global_batch=64"], "run.global_batch", 64),
    ],
)  # fmt: skip
def test_values_are_spelled_as_the_original_takes_them(words: list[str], path: str, expected: object) -> None:
    assert value(parse(*words), path) == expected


@pytest.mark.parametrize(
    ("words", "stage"),
    [
        (["--tune_mm_mlp_adapter", "True"], "align"),
        (["--freeze_llm", "True"], "align"),
        (["--lora_enable"], "lora"),
        (["--lora_enable", "--bits", "4"], "qlora"),
        (["--lora_enable", "--bits", "8"], "qlora"),
        (["--tune_mm_mlp_adapter", "--bits", "4"], "align"),
        ([], "finetune"),
    ],
)
def test_the_originals_switches_name_a_stage(words: list[str], stage: str) -> None:
    config = parse(*words)
    assert config.stage.name == stage
    assert config.stage.bits == (int(words[-1]) if "--bits" in words else 16)


def test_four_bits_without_adapters_train_the_projector_and_say_so() -> None:
    notices: list[str] = []
    assert parse("--bits", "4", notices=notices).stage.name == "align"
    assert "freezes the language model" in notices[0]


def test_freezing_switches_are_kept() -> None:
    notices: list[str] = []
    config = parse("--freeze_backbone", "--freeze_mm_mlp_adapter", "False", notices=notices)
    assert config.stage.freeze_language_model
    assert not config.stage.freeze_projector
    assert "lm_head" in notices[0]
    assert parse("--freeze_mm_mlp_adapter").stage.freeze_projector


@pytest.mark.parametrize(
    ("words", "packing", "truncation"),
    [
        ([], True, "turns"),
        (["--group_by_length"], True, "turns"),
        (["--group_by_modality_length"], False, "turns"),
        (["--replay", "order.json"], False, "turns"),
        (["--loss_reduction", "original"], False, "original"),
        (["--run.loss_reduction=original"], False, "original"),
        (["--loss_reduction", "original", "--truncation", "turns"], False, "turns"),
        (["--group_by_modality_length", "--packing"], True, "turns"),
    ],
)
def test_what_reproduces_the_original_turns_packing_off(
    words: list[str], packing: bool, truncation: str
) -> None:
    config = parse(*words)
    assert (config.data.packing, config.data.truncation) == (packing, truncation)


def test_an_unknown_version_is_vicunas_with_a_warning() -> None:
    notices: list[str] = []
    assert parse("--version", "my_prompt", notices=notices).model.template == "vicuna_v1"
    assert notices == ["warning: --version my_prompt is no template; vicuna_v1 is used, as in the original"]


def test_the_mixture_trainer_takes_v1_unless_told_otherwise() -> None:
    words = ["--model_name_or_path", "m", "--meta_path", "mix.json", "--output_dir", "o"]
    assert parse_original(words, default_version="v1").model.template == "v1"
    assert parse_original([*words, "--version", "mpt"], default_version="v1").model.template == "mpt"


def test_flags_without_effect_warn_once_with_the_reason() -> None:
    notices: list[str] = []
    parse("--push_to_hub", "--lazy_preprocess", "True", "--logging_dir=x", "--local_rank=3", notices=notices)
    assert notices == [
        "warning: --push_to_hub true has no effect: nothing is uploaded",
        "warning: --logging_dir x has no effect: TensorBoard's files lie in output_dir",
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--lerning_rate", "1"], "Did you mean --learning_rate?"),
        (["--no_such_thing"], "--no_such_thing is not known"),
        (["--learning_rate"], "has no value"),
        (["--learning_rate", "fast"], "It is a number"),
        (["--lora_r", "1.5"], "It is a whole number"),
        (["--bf16", "maybe"], "It is True or False"),
        (["--bf16", "--fp16"], "both on"),
        (["stray"], "belongs to no flag"),
        (["--label_smoothing_factor", "0.1"], "would change the result"),
        (["--neftune_noise_alpha", "5"], "would change the result"),
        (["--dataloader_drop_last", "True"], "would change the result"),
        (["--mm_patch_merge_type", "spatial"], "would change the result"),
        (["--optim", "adafactor"], "Supported: adamw_torch"),
        (["--lr_scheduler_type", "polynomial"], "Supported: cosine"),
        (["--save_steps", "0.1"], "whole number of steps"),
        (["--data_seed", "7"], "differs from --seed"),
        (["--lora_enable", "--tune_mm_mlp_adapter"], "exclude each other"),
        (["--tune_mm_mlp_adapter", "--freeze_mm_mlp_adapter"], "freeze every part"),
        (["--meta_path", "x.json"], "both given"),
        (["--fsdp", "full_shard offload"], "zero3_offload"),
        (["--fsdp", "full_shard", "--deepspeed", "x.json"], "both given"),
        (["--resume_from_checkpoint", "out/checkpoint-5"], "newest complete checkpoint"),
        (["--modality_sampler", "both"], "internvl or llava"),
    ],
)
def test_what_cannot_be_done_is_said(words: list[str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint.replace("?", r"\?")):
        parse(*words, notices=[])


@pytest.mark.parametrize(
    "words",
    [["--bits", "3"], ["--image_aspect_ratio", "anyres"], ["--engine", "horovod"], ["--lora_bias", "x"]],
)
def test_a_value_outside_a_fields_choices_is_an_error(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="not known"):
        parse(*words)


@pytest.mark.parametrize("missing", ["--model_name_or_path", "--data_path", "--output_dir"])
def test_model_data_and_output_are_needed(missing: str) -> None:
    position = NEEDED.index(missing)
    with pytest.raises(UsageError, match=f"{missing} is missing"):
        parse_original([*NEEDED[:position], *NEEDED[position + 2 :]])


def test_every_option_of_a_run_can_be_given() -> None:
    assert not [path for path in options() if path not in flags()]
    assert value(parse("--name", "x"), "name") == "x"


def test_the_last_of_two_values_counts() -> None:
    assert read_flags(["--seed", "1", "--seed=2"]) == {"seed": "2"}


def test_help_says_of_every_flag_what_it_becomes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: line for line in lines if line.startswith("  --")}
    assert set(told) == {f"--{name}" for name in flags()}
    assert all(told[f"--{flag.name}"].endswith(flag.text) for flag in flags().values())


@pytest.mark.parametrize("name", ["train", "train_mem", "train_custom", "train_mem_custom"])
def test_entry_points_run_by_path_from_anywhere(name: str, tmp_path: Path) -> None:
    script = ROOT / "llava" / "train" / f"{name}.py"
    command = [sys.executable, str(script), *NEEDED, "--dry_run", "--deepspeed", "x.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "# 8 samples a step = 8 a pass x 1 passes x 1 processes" in done.stdout
    assert ("template: v1\n" if "custom" in name else "template: v0\n") in done.stdout
    assert done.stderr == ""


def test_an_entry_point_ends_mistakes_with_one_line(tmp_path: Path) -> None:
    script = ROOT / "llava" / "train" / "train_mem.py"
    command = [sys.executable, str(script), "--lerning_rate", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error[usage]: flag --lerning_rate is not known. Did you mean --learning_rate?"
    )
    assert done.stderr.count("\n") == 1
