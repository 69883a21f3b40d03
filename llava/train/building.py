"""From options to the model that is trained: bare parts, or any checkpoint to go on from.

    options -> recognise -> parts (language model, tower, projector, what is laid over) -> empty model
            -> fill, tensor by tensor: what learns in float32, what is frozen in the compute dtype -> Trainee

`stages.apply_stage` then decides what learns. The same seed gives the same weights, whatever ran before.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN
from llava.errors import CheckpointError, ConfigError, UsageError
from llava.log import get_logger
from llava.model import quantize
from llava.model.assembling import Parts, assemble, assemble_new
from llava.model.builder import empty_model
from llava.model.checkpoint import Checkpoint, read_object, recognise
from llava.model.conventions import add_special_tokens, generation_config
from llava.model.filling import Plan, Store, fill, make_plan, store_plainly
from llava.model.locating import tower_folder
from llava.model.sources import Layered, TensorSource
from llava.model.towers import read_tower
from llava.processing.pixels import Aspect, ImageProcessor
from llava.train.config import ModelOptions, StageOptions
from llava.train.initial import (
    TrainedProjector,
    fresh_projector,
    has_positions,
    read_init_weights,
    read_projector,
    without_projector,
)
from llava.train.lora import linear_names
from llava.train.stages import bits_of, learning_names, rules_of
from llava.train.text_only import build_language_model
from llava.train.trainee import Trainee, absolute, template_of, training_tokenizer

if TYPE_CHECKING:
    from llava.model.modeling import LlavaForCausalLM

logger = get_logger(__name__)


def build(
    model: ModelOptions,
    stage: StageOptions,
    *,
    aspect: Aspect | None,
    max_length: int,
    device: torch.device | str,
    compute_dtype: torch.dtype,
    seed: int,
) -> Trainee:
    """Build the model that `stage` trains; nothing is frozen yet, see `stages.apply_stage`.

    aspect: how pictures become square; None: the checkpoint's own, else "square". max_length: tokens of a
    sample. compute_dtype: of frozen weights. Raises CheckpointError, WeightsError, ConfigError, UsageError,
    TokenizerError, DependencyError.
    """
    device = torch.device(device)
    checkpoint = _checkpoint(model, stage)
    projector = None if model.projector is None else read_projector(model.projector)
    inherited = {} if projector is None else projector.config
    tower = model.vision_tower or (inherited.get("mm_vision_tower") if checkpoint.kind == "llm" else None)
    if checkpoint.kind == "llm" and tower is None:
        return build_language_model(checkpoint, model, stage, max_length, device, compute_dtype, seed)
    parts = _parts(checkpoint, model, stage, projector, tower, max_length)
    if aspect is not None and aspect != parts.rules.aspect:
        parts.rules = replace(parts.rules, aspect=aspect)
    parts.original = {**parts.original, "image_aspect_ratio": parts.rules.aspect}
    tokenizer = training_tokenizer(parts.tokenizer_folder, model.template, max_length)
    parts.vocab_size = max(parts.vocab_size, add_special_tokens(tokenizer, parts), len(tokenizer))
    adapters = _lay_over(parts, model, stage, projector, seed)
    # Constructors draw numbers that nothing uses.
    with torch.random.fork_rng(devices=[]):
        filled, plan = _filled(parts, model, stage, device, compute_dtype)
    trainee = Trainee(
        model=filled,
        tokenizer=tokenizer,
        image_processor=ImageProcessor(parts.rules),
        template=template_of(model.template),
        num_image_tokens=filled.config.image_seq_length,
        im_start_end=filled.config.mm_use_im_start_end,
        has_pictures=True,
        rules=parts.rules,
        base=absolute(model.path),
        base_name=model.base_name or absolute(model.path),
        base_dtype=str(parts.original.get("torch_dtype") or "float32"),
        checkpoint=checkpoint,
        tokenizer_folder=parts.tokenizer_folder,
        compute_dtype=compute_dtype,
        seed=seed,
        notices=parts.notices,
        lora_weights=adapters,
        read_again=lambda name: _read_again(plan, parts.source, name, compute_dtype),
    )
    filled.image_processor = trainee.image_processor
    filled.generation_config = generation_config(filled.config, tokenizer)
    _take_rows(trainee, projector)
    return trainee


def _checkpoint(model: ModelOptions, stage: StageOptions) -> Checkpoint:
    if not model.path:
        raise ConfigError(
            "model.path is empty", remedy="Give a language model, or a checkpoint to go on from."
        )
    checkpoint = recognise(model.path)
    if checkpoint.kind == "projector":
        raise CheckpointError(
            f"{model.path} holds a projector only",
            remedy="Give its language model as model.path, and this folder as model.projector.",
        )
    if checkpoint.kind == "lora" and stage.name not in ("finetune", "custom"):
        raise CheckpointError(
            f"{model.path} is an adapter, and the stage {stage.name!r} needs a whole model to build on",
            remedy="Merge it first: python scripts/merge_lora_weights.py.",
        )
    return checkpoint


def _parts(
    checkpoint: Checkpoint,
    model: ModelOptions,
    stage: StageOptions,
    projector: TrainedProjector | None,
    tower: str | None,
    max_length: int,
) -> Parts:
    """Return the parts with the options' values in their config.json, the projector not yet settled."""
    asked = _asked(model, stage, max_length)
    if projector is not None:
        asked = {**projector.config, **asked} if checkpoint.kind == "llm" else asked
    image_size = model.image_size
    if image_size is None and projector is not None and projector.manifest is not None:
        image_size = projector.manifest.image.size
    if tower is not None:
        asked["mm_vision_tower"] = _tower_name(tower, checkpoint)
    if checkpoint.kind == "llm":
        defaults = {
            "mm_vision_select_layer": -1,
            "mm_vision_select_feature": "patch",
            "mm_projector_type": "linear",
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "image_grid_pinpoints": None,
        }
        original = {**checkpoint.config, **defaults, **asked}
        return assemble_new(checkpoint, original, image_size=image_size)
    if tower is not None:
        _check_same_tower(checkpoint, str(asked["mm_vision_tower"]))
        config = {**checkpoint.config, "mm_vision_tower": asked["mm_vision_tower"]}
        checkpoint = replace(checkpoint, config=config)
    parts = assemble(checkpoint, base=None, image_size=image_size)
    if model.projector_type is not None:
        asked["mm_projector_type"] = model.projector_type
    parts.original = {**parts.original, **asked}
    return parts


def _asked(model: ModelOptions, stage: StageOptions, max_length: int) -> dict[str, Any]:
    """Return the config.json keys that the options set, in the original's names."""
    stated: dict[str, Any] = {
        "mm_vision_select_layer": model.select_layer,
        "mm_vision_select_feature": model.select_feature,
        "mm_projector_type": model.projector_type,
        "mm_use_im_start_end": model.im_start_end or None,
        "mm_use_im_patch_token": model.im_patch_token or None,
        "mm_projector_lr": stage.projector_lr,
    }
    asked = {name: value for name, value in stated.items() if value is not None}
    return {
        **asked,
        "tokenizer_model_max_length": max_length,
        "tune_mm_mlp_adapter": stage.name == "align",
        "freeze_mm_mlp_adapter": stage.freeze_projector,
        "tune_vit_pos_embedding": stage.positions or stage.learns.get("vision") == "positions",
    }


def _tower_name(tower: str, checkpoint: Checkpoint) -> str:
    """Return a tower as it is to be written: an absolute path, so that the result chats from anywhere."""
    folder = tower_folder(tower, checkpoint.path)
    is_path = Path(tower).expanduser().exists() or folder.parent == checkpoint.path.resolve().parent
    return str(folder.resolve()) if is_path else tower


def _check_same_tower(checkpoint: Checkpoint, tower: str) -> None:
    """Raise when a checkpoint has a tower inside that is not of the kind that was given."""
    manifest = checkpoint.manifest
    described = checkpoint.config.get("vision_config") if manifest is None else manifest.vision_config
    if not checkpoint.has_tower or described is None:
        return
    folder = tower_folder(tower, checkpoint.path)
    given = read_tower(read_object(folder / "config.json"), source=str(folder / "config.json"))
    inside = read_tower(described, source=str(checkpoint.path))
    same = [(one.family, one.hidden_size, one.num_layers, one.patch_size) for one in (given, inside)]
    if same[0] != same[1]:
        raise ConfigError(
            f"{checkpoint.path} has a vision tower inside, and model.vision_tower ({tower}) is another kind",
            remedy="Leave vision_tower out, or begin with a language model.",
        )


def _projector_source(
    parts: Parts, model: ModelOptions, projector: TrainedProjector | None, seed: int
) -> TensorSource:
    """Settle where the projector comes from; `parts` loses its own when that is replaced."""
    own = [key for key in parts.source.keys() if "mm_projector." in key]
    config = parts.config()
    if projector is not None:
        parts.source = without_projector(parts.source)
        if has_positions(projector.source):
            parts.notices.append("The tower's position table comes with the projector.")
        if own:
            parts.notices.append(f"The checkpoint's projector is replaced by {model.projector}.")
        return projector.source
    stated = (
        "mlp2x_gelu" if parts.checkpoint.kind == "hf" else parts.checkpoint.config.get("mm_projector_type")
    )
    own_type = stated or "linear"
    if own and own_type == config.mm_projector_type:
        return Layered()
    if own:
        parts.notices.append(
            f"The projector begins anew: {config.mm_projector_type!r} was asked for, and the checkpoint's is "
            f"{own_type!r}."
        )
        parts.source = without_projector(parts.source)
    return fresh_projector(config, seed=seed)


def _lay_over(
    parts: Parts, model: ModelOptions, stage: StageOptions, projector: TrainedProjector | None, seed: int
) -> dict[str, torch.Tensor]:
    """Put the projector and the initial weights before the parts' own; returns the adapters among them."""
    adapters: dict[str, torch.Tensor] = {}
    layers = [_projector_source(parts, model, projector, seed)]
    if model.init_weights is not None:
        whole, adapters = read_init_weights(model.init_weights)
        layers.insert(0, whole)
    parts.source = Layered(*layers, parts.source)
    _check_adapters(adapters, stage)
    return adapters


def _check_adapters(adapters: dict[str, torch.Tensor], stage: StageOptions) -> None:
    if adapters and not rules_of(stage, has_pictures=True).lora_parts:
        raise UsageError(
            f"init_weights holds adapters, and the stage {stage.name!r} has none",
            remedy="Use the stage lora, or the initial weights of this stage.",
        )


def _filled(
    parts: Parts, model: ModelOptions, stage: StageOptions, device: torch.device, dtype: torch.dtype
) -> tuple[LlavaForCausalLM, Plan]:
    """Make the empty model and fill it, one tensor at a time."""
    config = parts.config()
    empty = empty_model(config, attn_implementation=model.attn_implementation)
    plan = make_plan(
        empty,
        parts.source,
        family=parts.tower.family,
        num_tower_layers=parts.tower.layer_of(config.mm_vision_select_layer),
    )
    rules = rules_of(stage, has_pictures=True, im_start_end=config.mm_use_im_start_end)
    names = [name for name, _ in empty.named_parameters()]
    learning = learning_names(names, rules, linear=linear_names(empty, rules.lora_parts))
    bits = bits_of(stage)
    store = store_plainly(empty, lambda _: device)
    if bits != 16:
        quantize.prepare(
            empty,
            bits,
            compute_dtype=dtype,
            quant_type=stage.quant_type,
            double_quant=stage.double_quant,
        )
        store = _quantised_first(empty, device, store)
    fill(
        plan,
        parts.source,
        dtype=lambda name: torch.float32 if name in learning else dtype,
        store=store,
    )
    empty.tie_weights()
    empty.config.dtype = dtype
    for module in empty.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return empty, plan


def _read_again(plan: Plan, source: TensorSource, name: str, dtype: torch.dtype) -> torch.Tensor:
    """Return one parameter as it was at the start."""
    steps = [
        (key, [target for target in found if target.name == name])
        for key, found in plan.steps
        if any(target.name == name for target in found)
    ]
    shape = {name: plan.shapes[name]}
    one = replace(plan, steps=steps, shapes=shape)
    read: dict[str, torch.Tensor] = {}
    fill(one, source, dtype=dtype, store=read.__setitem__)
    return read[name]


def _quantised_first(model: LlavaForCausalLM, device: torch.device, store: Store) -> Store:
    def store_either(name: str, tensor: torch.Tensor) -> None:
        if not quantize.store(model, name, tensor, device):
            store(name, tensor)

    return store_either


def _take_rows(trainee: Trainee, projector: TrainedProjector | None) -> None:
    """Give <im_start> and <im_end> the rows that were trained with the projector."""
    rows = None if projector is None else projector.embeddings
    if not trainee.im_start_end:
        if rows is not None:
            trainee.notices.append(
                "The projector file holds token embeddings, which im_start_end alone would use: left out."
            )
        return
    if rows is None:
        return
    tokens = [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
    ids = trainee.tokenizer.convert_tokens_to_ids(tokens)
    table = trainee.model.get_input_embeddings().weight
    if len(rows) < len(ids) or rows.shape[1] != table.shape[1]:
        raise ConfigError(
            f"The projector's file has token embeddings of shape {list(rows.shape)}, and <im_start> and "
            f"<im_end> need 2 rows of {table.shape[1]}",
            remedy="Give the projector of a run over the same language model.",
        )
    with torch.no_grad():
        table[ids] = rows[-len(ids) :].to(table.device, table.dtype)
    trainee.given_rows = rows[-len(ids) :]
