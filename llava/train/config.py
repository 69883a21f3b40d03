"""Everything a training run can be told: one frozen dataclass per part, together `TrainConfig`.

A recipe (YAML) has one section per part and the same field names; `llava train recipe.yaml --run.seed 1`
overrides a field. The original's flags are translated into these by `args`. Values are checked here, before
anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class ModelOptions:
    """What is trained: which parts, from where. `building` reads it."""

    path: str = ""
    """Language model, or a checkpoint of any kind to go on from (`model_name_or_path`)."""
    vision_tower: str | None = None
    """Folder of the vision tower; None: the checkpoint's own, or no pictures for a language model alone."""
    select_layer: int | None = None
    """`mm_vision_select_layer`; None: the checkpoint's own, else -1."""
    select_feature: Literal["patch", "cls_patch"] | None = None
    """`mm_vision_select_feature`; None: the checkpoint's own, else "patch"."""
    projector_type: str | None = None
    """`mm_projector_type`; None: the checkpoint's own, else "linear"."""
    projector: str | None = None
    """Trained projector to begin with: mm_projector.bin, a safetensors file or a checkpoint folder."""
    image_size: int | None = None
    """Pixels a side; None: the tower's own rule."""
    im_start_end: bool = False
    """Wrap pictures in <im_start> and <im_end> (`mm_use_im_start_end`)."""
    im_patch_token: bool = False
    """Add <im_patch> to the vocabulary (`mm_use_im_patch_token`)."""
    template: str = "v1"
    """Prompt template by its name in `llava.templates` or the original's `--version` value."""
    attn_implementation: str | None = None
    """As transformers names it; None: "sdpa", and FlashAttention for packed rows where it is installed."""
    init_weights: str | None = None
    """safetensors file laid over the weights at the start, under the original's parameter names."""
    base_name: str | None = None
    """What adapter_config.json calls the base; None: `path`."""


@dataclass(frozen=True)
class DataOptions:
    """Which samples, and how they become tokens and pixels. `llava.data` reads it."""

    path: str | None = None
    """JSON, JSONL, parquet or datasets folder (`data_path`); a comma separates several."""
    meta: str | None = None
    """Mixture file (`meta_path`); one of `path` and `meta` is set."""
    image_folder: str | None = None
    """Where relative picture paths begin; with `meta` each entry has its own root."""
    image_aspect_ratio: Literal["square", "pad"] | None = None
    """None: the checkpoint's own, else "square"."""
    max_length: int = 2048
    """Tokens of a sample, text and pictures together (`model_max_length`)."""
    truncation: Literal["turns", "original"] = "turns"
    """"turns" drops whole turns from the end and never cuts a picture; "original" cuts text tokens before
    pictures are expanded, as the original did."""
    bad_samples: Literal["fail", "skip", "quarantine"] = "fail"
    """What to do with a sample that cannot be used; "quarantine" also writes it to quarantine.jsonl."""
    max_bad_share: float = 0.005
    """Share of bad or fully masked samples above which the run fails whatever the policy."""
    packing: bool = True
    """Lay samples end to end, attention inside each; False pads rows."""
    order: Literal["random", "length", "modality_length", "modality_length_llava", "sequential"] = "random"
    """"length" groups samples of like length; the modality_length ones are the original's samplers."""
    num_workers: int = 1
    """Loader processes per rank; 0 loads in the trainer's own."""
    validation: str | None = None
    """Data of the same format for the validation loss."""
    validation_share: float = 0.0
    """Share of the training data held out for it instead."""


@dataclass(frozen=True)
class StageOptions:
    """What learns. `stages` reads it."""

    name: Literal["align", "finetune", "lora", "qlora", "custom"] = "finetune"
    """align: projector; finetune: it and the language model; lora, qlora: it and adapters; custom: learns."""
    learns: dict[str, str] = field(default_factory=dict)
    """For custom: vision, projector, language_model to "none", "all", "lora", "last:4" or "positions"."""
    positions: bool = False
    """Train the tower's position table too (`tune_vit_pos_embedding`)."""
    freeze_projector: bool = False
    """`freeze_mm_mlp_adapter`."""
    freeze_language_model: bool = False
    """`freeze_backbone` / `freeze_llm`: only what is outside the language model learns."""
    bits: Literal[4, 8, 16] = 16
    """Weights of the frozen base; 4 and 8 need a lora stage."""
    double_quant: bool = True
    """Quantise the quantisation's own constants too (4 bits)."""
    quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit number format."""
    lora_r: int = 64
    """Rank of the adapters."""
    lora_alpha: float = 16
    """The adapters' update is scaled by lora_alpha / lora_r."""
    lora_dropout: float = 0.05
    """Share of an adapter's inputs that is dropped."""
    lora_bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases learn beside the adapters."""
    projector_lr: float | None = None
    """Learning rate of the projector (`mm_projector_lr`); None: the common one."""
    vision_lr: float | None = None
    """Learning rate of the tower; None: the common one."""


@dataclass(frozen=True)
class OptimizerOptions:
    """How weights move. `optimizer` reads it."""

    name: Literal["adamw", "adamw_8bit", "muon", "sgd"] = "adamw"
    """adamw_8bit keeps its moments in 8 bits; muon is for hidden matrices, with AdamW for the rest."""
    lr: float = 2e-5
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.999
    """Decay of AdamW's mean of their squares."""
    epsilon: float = 1e-8
    """Added to AdamW's denominator."""
    weight_decay: float = 0.0
    """Not applied to biases and norms."""
    max_grad_norm: float = 1.0
    """0 turns clipping off."""
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate over the run, as transformers names it."""
    warmup_ratio: float = 0.03
    """Share of the steps over which the learning rate rises from 0."""
    warmup_steps: int = 0
    """Over `warmup_ratio` when above 0."""


@dataclass(frozen=True)
class RunOptions:
    """How long, how wide, and what is written. `loop` reads it."""

    output_dir: str = "runs/train"
    """Folder for the result, the checkpoints and metrics.jsonl."""
    epochs: float = 1.0
    """Times that every sample is used."""
    max_steps: int = -1
    """Over `epochs` when above 0."""
    global_batch: int | None = None
    """Samples per optimizer step over all ranks; stated once, the rest is derived."""
    micro_batch: int | None = None
    """Samples (padded) per forward pass of a rank (`per_device_train_batch_size`)."""
    micro_tokens: int | None = None
    """Packed: most tokens per forward pass of a rank; None: `micro_batch` times `data.max_length`."""
    accumulation: int | None = None
    """`gradient_accumulation_steps`; derived when global_batch and micro_batch are given."""
    engine: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    """auto: deepspeed when `deepspeed` is given, else ddp (also for one process)."""
    deepspeed: str | None = None
    """DeepSpeed JSON file, as the original's scripts/zero2.json."""
    device: str | None = None
    """cpu, cuda, cuda:1, mps; None: the best present, and each rank its own."""
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the forward pass; trained weights are kept in float32. None: the device's own."""
    gradient_checkpointing: bool = False
    """Compute activations twice to keep fewer of them; the values are the same."""
    loss_reduction: Literal["tokens", "original"] = "tokens"
    """"original": mean over each micro-batch, then plain mean of the means."""
    replay: str | None = None
    """order.json of a recorded run: its micro-batches are taken one by one."""
    seed: int = 42
    """Decides the order of samples, fresh weights and dropout."""
    save_steps: int = 500
    """Steps between checkpoints; 0: at the end only."""
    save_limit: int | None = 2
    """Checkpoints kept; the newest complete one always is."""
    save_final: bool = True
    """Write the trained model at the end."""
    legacy_files: bool = True
    """Also write the original's files (mm_projector.bin, non_lora_trainables.bin)."""
    resume: bool = True
    """Go on from the newest complete checkpoint in output_dir."""
    logging_steps: int = 1
    """Steps between lines of progress; metrics.jsonl has every step."""
    report_to: tuple[str, ...] = ()
    """Any of "tensorboard", "wandb"; metrics.jsonl is always written."""
    run_name: str | None = None
    """What TensorBoard and Weights & Biases call the run; None: the recipe's name."""
    eval_steps: int = 0
    """Steps between validations; 0: at the end only."""
    probe_samples: int = 3
    """Training questions answered at the end, expected beside got."""
    threads: int | None = None
    """CPU threads of each rank."""
    hang_timeout_s: float = 1800.0
    """A collective that takes longer ends the run with an error."""
    deterministic: bool = True
    """Use only operations that give the same bits every time."""
    tf32: bool = True
    """Multiply float32 matrices in TF32 on GPUs that can."""
    torch_compile: bool = False
    """Compile the model with torch.compile."""


@dataclass(frozen=True)
class TrainConfig:
    """A whole run."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    stage: StageOptions = field(default_factory=StageOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    run: RunOptions = field(default_factory=RunOptions)
    name: str = ""
    """What the run is called in reports."""
