"""What the original's flags mean as options of a run, where it is more than another name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llava.errors import UsageError
from llava.templates import TEMPLATES
from llava.train.options import FALSE, TRUE, from_text, options
from llava.train.original_flags import ORIGINAL_FLAGS, OWN_FLAGS
from llava.train.training_arguments import TRAINING_ARGUMENTS

Notice = Callable[[str], None]

TRANSLATED = {flag.name for flag in (*ORIGINAL_FLAGS, *TRAINING_ARGUMENTS)} | set(OWN_FLAGS)
"""Flags that `translate` reads; all others are options by their own names."""

UNKNOWN_TEMPLATE = "vicuna_v1"
"""What the original takes for a version that it does not know."""

_SAME = {
    flag.name: flag.text
    for flag in (*ORIGINAL_FLAGS, *TRAINING_ARGUMENTS)
    if flag.effect == "used" and flag.text in options()
}
_SPECIAL = {
    "version", "optim", "lr_scheduler_type", "evaluation_strategy", "eval_strategy", "save_strategy", "fsdp",
    "deepspeed", "resume_from_checkpoint", "train_sampling_strategy", "bf16", "fp16", "group_by_length",
    "group_by_modality_length", "use_cpu", "no_cuda", "use_mps_device", "report_to", "warmup_steps",
    "save_steps", "logging_steps", "eval_steps", "freeze_backbone", "data_seed",
}  # fmt: skip
_OPTIMIZERS = {
    "adamw": ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused", "adamw_hf",
              "adamw_apex_fused", "adamw_anyprecision", "paged_adamw", "paged_adamw_32bit"),
    "adamw_8bit": ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"),
    "sgd": ("sgd",),
    "muon": ("muon",),
}  # fmt: skip
_SCHEDULES = {
    name: name.replace("-", "_") for name in ("cosine", "linear", "constant", "constant_with_warmup")
}
_REPORTERS = ("tensorboard", "wandb")


def translate(used: Mapping[str, str], on_notice: Notice) -> dict[str, Any]:
    """Return the options, by path, that the flags with an effect mean.

    used: the flags given, as text; switches as "true" or "false".
    Raises UsageError for flags that exclude each other and for values that are not supported.
    """
    values: dict[str, Any] = {}
    for name, path in _SAME.items():
        if name in used and name not in _SPECIAL:
            values[path] = from_text(options()[path], used[name], source=f"--{name}")
    for part in (_model, _stage, _data, _optimizer, _precision, _length, _engine, _reports, _seeds):
        values |= part(used, on_notice)
    return values


def is_on(used: Mapping[str, str], name: str) -> bool:
    """Whether a switch is given and true."""
    return used.get(name, "").lower() in TRUE


def _model(used: Mapping[str, str], on_notice: Notice) -> dict[str, Any]:
    version = used["version"]
    # v0 and v0.5 keep the default conversation and differ in the padding token: `trainee` knows them.
    if version in ("v0", "v0.5") or version in TEMPLATES:
        return {"model.template": version}
    on_notice(f"warning: --version {version} is no template; {UNKNOWN_TEMPLATE} is used, as in the original")
    return {"model.template": UNKNOWN_TEMPLATE}


def _stage(used: Mapping[str, str], on_notice: Notice) -> dict[str, Any]:
    """Name the stage that the original's switches add up to."""
    bits = from_text(options()["stage.bits"], used.get("bits", "16"), source="--bits")
    aligns = [name for name in ("tune_mm_mlp_adapter", "freeze_llm") if is_on(used, name)]
    has_lora, freezes = is_on(used, "lora_enable"), is_on(used, "freeze_backbone")
    if aligns and has_lora:
        raise UsageError(
            f"--lora_enable and --{aligns[0]} exclude each other: adapters would be added and never learn",
            remedy="Leave one of them out.",
        )
    if has_lora:
        return {"stage.name": "qlora" if bits < 16 else "lora"}
    if aligns or bits < 16:
        if not aligns:
            on_notice(
                f"warning: --bits {bits} without --lora_enable freezes the language model, as in the original"
            )
        if is_on(used, "freeze_mm_mlp_adapter") and not is_on(used, "tune_vit_pos_embedding"):
            raise UsageError("the flags freeze every part", remedy="Leave --freeze_mm_mlp_adapter out.")
        return {"stage.name": "align"}
    if freezes:
        on_notice("warning: --freeze_backbone freezes lm_head too; the original trained it on")
    return {"stage.name": "finetune", "stage.freeze_language_model": freezes}


def _data(used: Mapping[str, str], _: Notice) -> dict[str, Any]:
    """Choose order, packing and truncation."""
    values: dict[str, Any] = {}
    sampler = used.get("modality_sampler", "internvl")
    if sampler not in ("internvl", "llava"):
        raise UsageError(f"--modality_sampler is {sampler!r}", remedy="It is internvl or llava.")
    strategy = used.get("train_sampling_strategy", "random")
    if strategy not in ("random", "sequential", "group_by_length"):
        raise UsageError(
            f"--train_sampling_strategy is {strategy!r}",
            remedy="It is random, sequential or group_by_length.",
        )
    by_modality = is_on(used, "group_by_modality_length")
    if by_modality:
        values["data.order"] = "modality_length" if sampler == "internvl" else "modality_length_llava"
    elif is_on(used, "group_by_length") or strategy == "group_by_length":
        values["data.order"] = "length"
    elif strategy == "sequential":
        values["data.order"] = "sequential"
    reduces = used.get("loss_reduction", used.get("run.loss_reduction", "tokens"))
    if by_modality or reduces == "original" or used.get("replay") or used.get("run.replay"):
        # Its batches are rows of samples, which packing would not keep.
        values["data.packing"] = False
    if reduces == "original":
        values["data.truncation"] = "original"
    return values


def _optimizer(used: Mapping[str, str], on_notice: Notice) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if "optim" in used:
        known = {name: ours for ours, names in _OPTIMIZERS.items() for name in names}
        values["optimizer.name"] = _choice("optim", used["optim"].split(".")[-1], known)
        if used["optim"].startswith("paged"):
            on_notice(f"warning: --optim {used['optim']} is not paged here; the values are the same")
    if "lr_scheduler_type" in used:
        values["optimizer.schedule"] = _choice(
            "lr_scheduler_type", used["lr_scheduler_type"].lower(), _SCHEDULES
        )
    if "warmup_steps" in used:
        steps = float(used["warmup_steps"])
        if 0 < steps < 1:
            values["optimizer.warmup_ratio"] = steps
        else:
            values["optimizer.warmup_steps"] = _whole("warmup_steps", used["warmup_steps"])
    return values


def _precision(used: Mapping[str, str], _: Notice) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if is_on(used, "bf16") and is_on(used, "fp16"):
        raise UsageError("--bf16 and --fp16 are both on", remedy="Turn one of them off.")
    if is_on(used, "bf16") or is_on(used, "fp16"):
        values["run.precision"] = "bfloat16" if is_on(used, "bf16") else "float16"
    if is_on(used, "use_cpu") or is_on(used, "no_cuda"):
        values["run.device"] = "cpu"
    elif is_on(used, "use_mps_device"):
        values["run.device"] = "mps"
    return values


def _length(used: Mapping[str, str], on_notice: Notice) -> dict[str, Any]:
    """Read what happens every so many steps."""
    values: dict[str, Any] = {}
    for name in ("save_steps", "logging_steps", "eval_steps"):
        if name in used:
            values[f"run.{name}"] = _whole(name, used[name])
    saving = _choice("save_strategy", used.get("save_strategy", "steps"), _STRATEGIES)
    if saving == "no":
        values["run.save_steps"] = 0
    elif saving == "epoch":
        every = values.get("run.save_steps", options()["run.save_steps"].default)
        on_notice(f"warning: --save_strategy epoch is not known here; checkpoints come every {every} steps")
    name = "eval_strategy" if "eval_strategy" in used else "evaluation_strategy"
    if _choice(name, used.get(name, "no"), _STRATEGIES) == "epoch":
        every = values.get("run.eval_steps", 0)
        when = f"every {every} steps" if every else "at the end"
        on_notice(f"warning: --{name} epoch is not known here; validation comes {when}")
    return values


_STRATEGIES = {"no": "no", "steps": "steps", "epoch": "epoch"}


def _engine(used: Mapping[str, str], on_notice: Notice) -> dict[str, Any]:
    values: dict[str, Any] = {}
    sharding = used.get("fsdp", "").replace(",", " ").split()
    if used.get("deepspeed"):
        values |= {"run.deepspeed": used["deepspeed"], "run.engine": "deepspeed"}
        if sharding:
            raise UsageError("--deepspeed and --fsdp are both given", remedy="Leave one of them out.")
    if "offload" in sharding:
        raise UsageError(
            "--fsdp offload is not supported", remedy="Use --deepspeed scripts/zero3_offload.json."
        )
    unknown = set(sharding) - {"full_shard", "shard_grad_op", "hybrid_shard", "no_shard", "auto_wrap", "true"}
    if unknown:
        raise UsageError(
            f"--fsdp {unknown.pop()} is not known", remedy="It is full_shard, with or without auto_wrap."
        )
    if "no_shard" in sharding:
        values["run.engine"] = "ddp"
    elif sharding:
        values["run.engine"] = "fsdp"
        if {"shard_grad_op", "hybrid_shard"} & set(sharding):
            on_notice(f"warning: --fsdp {used['fsdp']} shards fully here; the values are the same")
    return values | _resuming(used)


def _resuming(used: Mapping[str, str]) -> dict[str, Any]:
    text = used.get("resume_from_checkpoint", "true").lower()
    if text in TRUE or text in FALSE:
        return {"run.resume": text in TRUE} if "resume_from_checkpoint" in used else {}
    raise UsageError(
        f"--resume_from_checkpoint {used['resume_from_checkpoint']} names a folder",
        remedy="A run goes on from the newest complete checkpoint in output_dir; the flag is True or False.",
    )


def _reports(used: Mapping[str, str], on_notice: Notice) -> dict[str, Any]:
    if "report_to" not in used:
        return {}
    names = [name for name in used["report_to"].lower().split(",") if name and name != "none"]
    if "all" in names:
        names = list(_REPORTERS)
    for name in names:
        if name not in _REPORTERS:
            on_notice(f"warning: --report_to {name} has no effect: {' and '.join(_REPORTERS)} are known here")
    return {"run.report_to": tuple(name for name in _REPORTERS if name in names)}


def _seeds(used: Mapping[str, str], _: Notice) -> dict[str, Any]:
    seed = used.get("seed", used.get("run.seed", "42"))
    if float(used.get("data_seed", seed)) != float(seed):
        raise UsageError(
            f"--data_seed {used['data_seed']} differs from --seed {seed}",
            remedy="One seed decides everything here; give it as --seed.",
        )
    return {}


def _choice(name: str, value: str, known: Mapping[str, str]) -> str:
    if value not in known:
        raise UsageError(f"--{name} {value} is not supported", remedy=f"Supported: {', '.join(known)}.")
    return known[value]


def _whole(name: str, text: str) -> int:
    number = float(text)
    if not number.is_integer() or number < 0:
        raise UsageError(f"--{name} is {text}", remedy="It is a whole number of steps.")
    return int(number)
