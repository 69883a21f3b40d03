"""What a finished run leaves: a folder that chats at once, whatever its name, and the original's small files.

    what learned                          kind of folder (spec 2.3)
    adapters of the language model        adapter: adapter_model.safetensors, non_lora_trainables.*
    projector (positions, embedding) only projector: mm_projector.safetensors, mm_projector.bin
    anything else                         whole model in our own format (`llava.model.saving`)

Files are written one by one into the run's own folder, beside its checkpoints and metrics; each appears
whole, config.json last, so that a folder that was not finished is no checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN
from llava.errors import CheckpointError, FileError
from llava.files import atomic_path, write_json
from llava.model.config import original_config
from llava.model.manifest import FILE_NAME, Manifest
from llava.model.mapping import original_tensors
from llava.model.saving import family_of, is_adapter, plain_name, write_checkpoint
from llava.model.towers import Family
from llava.model.weight_file import write_safetensors
from llava.model.weights import write_torch_file, write_weights
from llava.processing.tokenizer import save_tokenizer
from llava.train.adapter_files import adapter_config, adapter_tensors, merged_tensors
from llava.train.config import StageOptions
from llava.train.stages import Rules, rules_of
from llava.train.trainee import Trainee

Kind = Literal["adapter", "projector", "whole", "text"]
_FOREIGN: dict[Kind, tuple[str, ...]] = {
    "adapter": (
        "mm_projector.bin",
        "mm_projector.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
    ),
    "projector": ("adapter_config.json", "model.safetensors", "model.safetensors.index.json"),
    "whole": ("adapter_config.json", "mm_projector.bin", "mm_projector.safetensors"),
    "text": ("adapter_config.json", "mm_projector.bin", "mm_projector.safetensors", FILE_NAME),
}
"""Files of another kind of result, beside which a folder of this kind would be taken for that one."""
_PROJECTOR_RULES = ("none", "positions")


def kind_of(rules: Rules, *, has_pictures: bool) -> Kind:
    """Return what kind of folder a stage leaves."""
    if rules.language_model == "lora":
        return "adapter"
    if not has_pictures:
        return "text"
    is_small = rules.language_model == "none" and rules.vision in _PROJECTOR_RULES
    return "projector" if is_small else "whole"


def check_output(folder: Path, trainee: Trainee, stage: StageOptions) -> None:
    """Raise CheckpointError before training when the result could not be written to `folder`."""
    rules = rules_of(stage, has_pictures=trainee.has_pictures, im_start_end=trainee.im_start_end)
    kind = kind_of(rules, has_pictures=trainee.has_pictures)
    found = next((name for name in _FOREIGN[kind] if (folder / name).is_file()), None)
    if found is not None:
        raise CheckpointError(
            f"{folder} holds {found}, a file of another kind of run", remedy="Give another output_dir."
        )
    is_quantised = stage.bits != 16 or stage.name == "qlora"
    if kind == "whole" and is_quantised:
        raise CheckpointError(
            "This stage leaves a whole model, and quantised weights cannot be written",
            remedy="Use bits 16, or let the projector and adapters alone learn.",
        )
    if kind in ("adapter", "projector") and trainee.checkpoint.kind == "lora":
        raise CheckpointError(
            f"{trainee.base} is an adapter, and the result would lie over it",
            remedy="Merge it first: python scripts/merge_lora_weights.py.",
        )


def write_result(
    folder: Path,
    trainee: Trainee,
    stage: StageOptions,
    *,
    state: Mapping[str, torch.Tensor] | None,
    recipe: Mapping[str, Any] | None,
    legacy_files: bool,
) -> None:
    """Write what `stage` trained into `folder`, which may hold the run's other files.

    state: trained parameters, whole, by the model's names; None takes them from the model. recipe: kept in
    llava.json. legacy_files: also the original's mm_projector.bin or non_lora_trainables.bin.
    Raises CheckpointError, FileError (a full disk, a folder that cannot be written).
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_output(folder, trainee, stage)
    rules = rules_of(stage, has_pictures=trainee.has_pictures, im_start_end=trainee.im_start_end)
    kind = kind_of(rules, has_pictures=trainee.has_pictures)
    try:
        (folder / "config.json").unlink(missing_ok=True)
        if kind == "whole":
            _write_whole(folder, trainee, state, recipe)
        elif kind == "text":
            _write_text_model(folder, trainee, state)
        elif kind == "projector":
            _write_projector(folder, trainee, state, recipe, legacy_files=legacy_files)
        else:
            _write_adapter(folder, trainee, stage, state, recipe, legacy_files=legacy_files)
    except OSError as error:
        raise FileError(
            f"The result cannot be written to {folder}: {error}",
            remedy="Mend that and give the same command again: it goes on from the last checkpoint.",
        ) from error


def trained_tensors(
    trainee: Trainee, state: Mapping[str, torch.Tensor] | None, *, adapters_only: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (the model's name, tensor on the CPU) of what learned, adapters too, in the model's order."""
    for name, parameter in trainee.model.named_parameters():
        if parameter.requires_grad and (is_adapter(name) or not adapters_only):
            yield name, _value(trainee, name, parameter, state)


def _value(
    trainee: Trainee, name: str, parameter: torch.Tensor, state: Mapping[str, torch.Tensor] | None
) -> torch.Tensor:
    if state is not None and name in state:
        return state[name].detach().cpu()
    if not _is_whole_here(parameter):
        if parameter.requires_grad or trainee.read_again is None:
            raise CheckpointError(f"{name} is spread over ranks, and its whole value was not given")
        value = trainee.read_again(plain_name(name))
        return _with_given_rows(trainee, name, value)
    return parameter.detach().cpu()


def _is_whole_here(parameter: torch.Tensor) -> bool:
    """Whether a parameter holds its values: FSDP's and DeepSpeed's sharded ones do not."""
    is_placed = hasattr(parameter, "device_mesh") or hasattr(parameter, "ds_id")
    return not (is_placed or parameter.is_meta)


def _with_given_rows(trainee: Trainee, name: str, value: torch.Tensor) -> torch.Tensor:
    if trainee.given_rows is None or not name.endswith(("embed_tokens.weight", "wte.weight")):
        return value
    value = value.clone()
    value[_given_ids(trainee)] = trainee.given_rows.to(value.dtype)
    return value


def _given_ids(trainee: Trainee) -> list[int]:
    ids = trainee.tokenizer.convert_tokens_to_ids([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN])
    return [int(index) for index in ids]


def _write_whole(
    folder: Path,
    trainee: Trainee,
    state: Mapping[str, torch.Tensor] | None,
    recipe: Mapping[str, Any] | None,
) -> None:
    model = trainee.model
    values = _Values(trainee, state)
    write_checkpoint(
        folder,
        model=model,
        tokenizer=trainee.tokenizer,
        rules=_rules(trainee),
        template=trainee.template,
        dtype=trainee.compute_dtype,
        base=_language_model_under(trainee),
        recipe=recipe,
        parent=None if trainee.checkpoint.kind == "llm" else trainee.base,
        state=values,
    )
    _copy_sentencepiece(folder, trainee)


class _Values(Mapping[str, torch.Tensor]):
    """All parameters by their plain names, the tower's adapters merged, each read when it is asked for."""

    def __init__(self, trainee: Trainee, state: Mapping[str, torch.Tensor] | None) -> None:
        self._trainee = trainee
        self._state = state
        self._own = {
            plain_name(name): (name, parameter)
            for name, parameter in trainee.model.named_parameters()
            if not is_adapter(name)
        }
        adapters = dict(trained_tensors(trainee, state, adapters_only=True))
        self._merged = merged_tensors(trainee.model, adapters, self.unmerged, part="vision")

    def __getitem__(self, name: str) -> torch.Tensor:
        merged = self._merged.get(name)
        return self.unmerged(name) if merged is None else merged

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)

    def unmerged(self, name: str) -> torch.Tensor:
        """Return a parameter as it is without the adapter beside it."""
        full_name, parameter = self._own[name]
        return _value(self._trainee, full_name, parameter, self._state)


def _write_text_model(folder: Path, trainee: Trainee, state: Mapping[str, torch.Tensor] | None) -> None:
    dtype = trainee.compute_dtype
    tensors = (
        (name, _value(trainee, name, parameter, state).to(dtype))
        for name, parameter in trainee.model.named_parameters()
    )
    write_weights(folder, tensors, metadata={"format": "pt"})
    save_tokenizer(trainee.tokenizer, folder, template=trainee.template)
    _copy_sentencepiece(folder, trainee)
    rows = len(trainee.model.get_input_embeddings().weight)
    config = dict(trainee.checkpoint.config)
    dtype_name = str(dtype).removeprefix("torch.")
    write_json(folder / "config.json", {**config, "vocab_size": rows, "torch_dtype": dtype_name})


def _write_projector(
    folder: Path,
    trainee: Trainee,
    state: Mapping[str, torch.Tensor] | None,
    recipe: Mapping[str, Any] | None,
    *,
    legacy_files: bool,
) -> None:
    named = dict(trained_tensors(trainee, state))
    for name, parameter in trainee.model.named_parameters():
        is_table = trainee.given_rows is not None and name.endswith(("embed_tokens.weight", "wte.weight"))
        if "multi_modal_projector." in name or is_table:
            named.setdefault(name, _value(trainee, name, parameter, state))
    tensors = _in_original_names(trainee, named)
    _write_tensors(folder / "mm_projector.safetensors", tensors)
    if legacy_files:
        write_torch_file(folder / "mm_projector.bin", tensors)
        if folder.name.startswith("checkpoint-"):
            beside = folder.parent / "mm_projector"
            beside.mkdir(exist_ok=True)
            write_torch_file(beside / f"{folder.name}.bin", tensors)
    _write_surroundings(folder, trainee, recipe)


def _write_adapter(
    folder: Path,
    trainee: Trainee,
    stage: StageOptions,
    state: Mapping[str, torch.Tensor] | None,
    recipe: Mapping[str, Any] | None,
    *,
    legacy_files: bool,
) -> None:
    (folder / "adapter_config.json").unlink(missing_ok=True)
    named = dict(trained_tensors(trainee, state))
    # A language model alone has no tower to be named.
    family: Family = family_of(trainee.model.config) if trainee.has_pictures else "clip"
    text_type = _text_type(trainee)
    _write_tensors(
        folder / "adapter_model.safetensors",
        dict(adapter_tensors(named, stage, text_type=text_type)),
    )
    others = {plain_name(name): value for name, value in named.items() if not is_adapter(name)}
    if trainee.has_pictures:
        values = _Values(trainee, state)
        others |= merged_tensors(trainee.model, named, values.unmerged, part="vision")
    for name, parameter in trainee.model.named_parameters():
        is_table = trainee.given_rows is not None and name.endswith(("embed_tokens.weight", "wte.weight"))
        if is_table:
            others.setdefault(name, _value(trainee, name, parameter, state))
    whole = {
        f"base_model.model.{name}": value.contiguous()
        for name, value in original_tensors(
            _in_model_order(trainee, others), family=family, text_type=text_type
        )
    }
    if whole:
        _write_tensors(folder / "non_lora_trainables.safetensors", whole)
        if legacy_files:
            write_torch_file(folder / "non_lora_trainables.bin", whole)
    write_json(
        folder / "adapter_config.json", adapter_config(trainee.model, stage, base_name=trainee.base_name)
    )
    _write_surroundings(folder, trainee, recipe)


def _in_model_order(
    trainee: Trainee, named: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, _ in trainee.model.named_parameters():
        if plain_name(name) in named and not is_adapter(name):
            yield plain_name(name), named[plain_name(name)]


def _in_original_names(trainee: Trainee, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors = original_tensors(
        _in_model_order(trainee, named), family=family_of(trainee.model.config), text_type=_text_type(trainee)
    )
    return {name: tensor.contiguous() for name, tensor in tensors}


def _text_type(trainee: Trainee) -> str:
    config: Any = trainee.model.config
    return str(config.text_config.model_type if trainee.has_pictures else config.model_type)


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    with atomic_path(path) as temporary:
        write_safetensors(temporary, tensors, {"format": "pt"})


def _write_surroundings(folder: Path, trainee: Trainee, recipe: Mapping[str, Any] | None) -> None:
    """Write tokenizer, picture rules, llava.json and config.json of a folder over a base."""
    save_tokenizer(trainee.tokenizer, folder, template=trainee.template, im_start_end=trainee.im_start_end)
    _copy_sentencepiece(folder, trainee)
    if not trainee.has_pictures:
        config = dict(trainee.checkpoint.config)
        write_json(folder / "config.json", {**config, "vocab_size": len(trainee.tokenizer)})
        return
    rules = _rules(trainee)
    write_json(folder / "preprocessor_config.json", rules.to_preprocessor_config())
    Manifest(
        template=trainee.template.name,
        image=rules,
        vision_config=trainee.model.config.tower or {},
        base=trainee.base,
        recipe=recipe,
    ).write(folder)
    config = original_config(trainee.model.config, dtype=trainee.base_dtype)
    write_json(folder / "config.json", {"_name_or_path": trainee.base_name, **config, "use_cache": True})


def _rules(trainee: Trainee) -> Any:
    assert trainee.rules is not None, "a model with a tower has picture rules"
    return trainee.rules


def _language_model_under(trainee: Trainee) -> str | None:
    if trainee.checkpoint.kind == "llm":
        return trainee.base
    manifest = trainee.checkpoint.manifest
    return None if manifest is None else manifest.base


def _copy_sentencepiece(folder: Path, trainee: Trainee) -> None:
    """Copy tokenizer.model where the base has one: the original's tools read nothing else."""
    source = trainee.tokenizer_folder / "tokenizer.model"
    target = folder / source.name
    if source.is_file() and source.resolve() != target.resolve():
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
