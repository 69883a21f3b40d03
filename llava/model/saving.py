"""Save a model in our own format: the original's layout in safetensors, with llava.json beside it.

    config.json               language model and mm_* keys, as the original writes them
    model*.safetensors        the original's weight names, the vision tower inside
    llava.json                template, picture rules, tower configuration, history (`manifest`)
    tokenizer.json, ...       the exact tokenizer
    preprocessor_config.json  the picture rules for other programs

Loading it gives equal weights to the bit, from anywhere: nothing is looked for outside the folder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llava.errors import CheckpointError
from llava.files import write_json
from llava.model.config import LlavaConfig, original_config
from llava.model.manifest import Manifest
from llava.model.mapping import original_tensors
from llava.model.towers import Tower
from llava.model.weights import write_weights
from llava.processing.pixels import Aspect, ImageRules, clip_rules, imagenet_rules
from llava.processing.tokenizer import save_tokenizer
from llava.templates import ChatTemplate, get_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from llava.model.modeling import LlavaForCausalLM

MAX_SHARD_BYTES = 5_000_000_000


def save_checkpoint(
    folder: str | os.PathLike[str],
    *,
    model: LlavaForCausalLM,
    tokenizer: PreTrainedTokenizerFast | None,
    rules: ImageRules,
    template: str | ChatTemplate | None,
    dtype: torch.dtype | None = None,
    base: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    parent: str | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write `model` to `folder`, which is there whole or not at all; returns the folder.

    tokenizer: None leaves its files out. dtype: stored dtype; None keeps the model's. state: the full weights
    by the model's own names, where the model itself holds only a part of them (sharded training). A
    checkpoint that is already at `folder` is replaced, anything else there is not: CheckpointError.
    """
    folder = Path(folder)
    with _replacing(folder) as temporary:
        write_checkpoint(
            temporary,
            model=model,
            tokenizer=tokenizer,
            rules=rules,
            template=template,
            dtype=dtype,
            base=base,
            recipe=recipe,
            parent=parent,
            state=state,
            max_shard_bytes=max_shard_bytes,
        )
    return folder


def write_checkpoint(
    folder: Path,
    *,
    model: LlavaForCausalLM,
    tokenizer: PreTrainedTokenizerFast | None,
    rules: ImageRules,
    template: str | ChatTemplate | None,
    dtype: torch.dtype | None = None,
    base: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    parent: str | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the files of `save_checkpoint` into `folder`, where other files may lie (a training run's).

    Each file appears whole, config.json last: until then the folder is no checkpoint.
    """
    (folder / "config.json").unlink(missing_ok=True)
    stored_dtype = dtype or next(model.parameters()).dtype
    named = template if isinstance(template, ChatTemplate) or template is None else get_template(template)
    manifest = Manifest(
        template=None if named is None else named.name,
        image=rules,
        vision_config=model.config.tower or {},
        base=base,
        recipe=recipe,
        parent=parent,
    )
    write_weights(
        folder,
        checkpoint_tensors(model, dtype=stored_dtype, state=state),
        max_shard_bytes=max_shard_bytes,
        metadata={"format": "pt"},
    )
    write_json(folder / "preprocessor_config.json", rules.to_preprocessor_config())
    if tokenizer is not None:
        im_start_end = model.config.mm_use_im_start_end
        save_tokenizer(tokenizer, folder, template=named, im_start_end=im_start_end)
    manifest.write(folder)
    dtype_name = str(stored_dtype).removeprefix("torch.")
    write_json(folder / "config.json", original_config(model.config, dtype=dtype_name))


def checkpoint_tensors(
    model: LlavaForCausalLM,
    *,
    dtype: torch.dtype | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (original name, tensor on the CPU) for every parameter, tied ones once.

    state: as in `save_checkpoint`; names without what peft puts into them.
    """
    named: Iterable[tuple[str, torch.Tensor]] = (
        (plain_name(name), parameter.detach() if state is None else state[plain_name(name)])
        for name, parameter in model.named_parameters()
        if not is_adapter(name)
    )
    tensors = original_tensors(
        named, family=family_of(model.config), text_type=model.config.text_config.model_type
    )
    for name, tensor in tensors:
        yield name, tensor.to(device="cpu", dtype=dtype or tensor.dtype).contiguous()


def plain_name(name: str) -> str:
    """Return a parameter's name as it was before peft put an adapter beside its layer."""
    return name.replace(".base_layer.", ".")


def is_adapter(name: str) -> bool:
    """Whether a parameter is part of an adapter."""
    return ".lora_" in name


def family_of(config: LlavaConfig) -> Any:
    """Return the family of a model's tower: "clip" or "internvit"."""
    return "clip" if config.vision_config.model_type == "clip_vision_model" else "internvit"


def tower_of(config: LlavaConfig) -> Tower:
    """Return the tower that a model's configuration carries."""
    return Tower(family_of(config), config.tower or {})


def rules_of(model: LlavaForCausalLM) -> ImageRules:
    """Return a model's picture rules: those it was loaded with, else its tower's own."""
    if model.image_processor is not None:
        return model.image_processor.rules
    tower = tower_of(model.config)
    make = clip_rules if tower.family == "clip" else imagenet_rules
    aspect: Aspect = "pad" if model.config.image_aspect_ratio == "pad" else "square"
    return make(tower.image_size, aspect=aspect)


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder` that takes its place on success and is removed on an error."""
    if folder.exists() and not (folder / "llava.json").is_file() and any(folder.iterdir()):
        raise CheckpointError(
            f"{folder} exists and is not a checkpoint of this package",
            remedy="Give a new folder, or remove what is there.",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        yield temporary
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
