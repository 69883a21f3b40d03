"""From a recognised folder to everything a model is made of, before a weight is read.

Place in the flow: `checkpoint.recognise` -> here (which tensors, which tower, which picture size, which
vocabulary) -> `builder`, which makes the model and reads the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.errors import CheckpointError, ConfigError, UsageError
from llava.log import get_logger
from llava.model.checkpoint import Checkpoint, read_object, recognise
from llava.model.config import LlavaConfig, make_config
from llava.model.mapping import TOWER_PREFIX, from_projector_file
from llava.model.sources import Layered, Renamed, TensorSource
from llava.model.tower_finding import find_tower
from llava.model.towers import Tower, table_size
from llava.model.weights import WeightFiles
from llava.processing.pixels import Aspect, ImageRules, clip_rules, imagenet_rules

logger = get_logger(__name__)

_EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight")
_POSITIONS = (
    f"{TOWER_PREFIX}embeddings.position_embedding",
    f"{TOWER_PREFIX}embeddings.position_embeddings",
    f"{TOWER_PREFIX}vision_model.embeddings.position_embedding.weight",
    f"{TOWER_PREFIX}embeddings.position_embedding.weight",
)
_ORIGINAL_INTERNVIT_SIZE = 336
"""What the original makes of a 224-pixel InternViT table ("224to336")."""


@dataclass
class Parts:
    """What a model is made of."""

    checkpoint: Checkpoint
    tower: Tower
    source: TensorSource
    """All weights under the original's names."""
    original: Mapping[str, Any]
    """The config.json that decides, in the original's spelling."""
    rules: ImageRules
    rules_reason: str
    tokenizer_folder: Path
    vocab_size: int
    """Rows of the token embedding in the weights."""
    files: list[Path] = field(default_factory=list)
    """Folders that weights come from."""
    notices: list[str] = field(default_factory=list)

    def config(self) -> LlavaConfig:
        """Return the native configuration."""
        original = {**self.original, "vocab_size": self.vocab_size}
        return make_config(
            original, self.tower, image_size=self.rules.size, source=str(self.checkpoint.path / "config.json")
        )


def assemble(checkpoint: Checkpoint, *, base: str | None, image_size: int | None) -> Parts:
    """Find the parts of a checkpoint.

    base: the language model under kinds `projector` and `lora`. image_size: pixels, over the checkpoint's.
    Raises CheckpointError for a kind that cannot be loaded or a part that is missing, ConfigError for an
    unknown value.
    """
    _refuse(checkpoint, base)
    notices: list[str] = []
    original = _hf_original(checkpoint.config) if checkpoint.kind == "hf" else checkpoint.config
    under = _under(checkpoint, base, notices)
    language, folders, tokenizer = _language_source(checkpoint, under)
    if checkpoint.kind == "lora" and "mm_vision_tower" not in original:
        raise CheckpointError(
            f"{checkpoint.path} is an adapter without the config.json of a vision-language model",
            remedy="Copy config.json of the training run beside adapter_config.json.",
        )
    # A projector or adapter over a whole checkpoint: the tower is the one inside that.
    home = under if under is not None and under.has_tower else checkpoint
    tower, tower_source, beside = find_tower(home, original, notices)
    source: TensorSource = language if tower_source is None else Layered(language, tower_source)
    if beside is not None:
        folders.append(beside)
    rules, reason = _rules(checkpoint, original, tower, source, beside, image_size)
    return Parts(
        checkpoint=checkpoint,
        tower=tower,
        source=source,
        original=original,
        rules=rules,
        rules_reason=reason,
        tokenizer_folder=tokenizer,
        vocab_size=_vocab_size(source, original, checkpoint),
        files=folders,
        notices=notices,
    )


def assemble_new(checkpoint: Checkpoint, original: Mapping[str, Any], *, image_size: int | None) -> Parts:
    """Join a language model alone (kind `llm`) and the tower that `original["mm_vision_tower"]` names.

    original: its config.json with the `mm_*` keys of the model to be trained. The source has no projector.
    image_size: pixels; None: the tower's own rule. Raises CheckpointError, ConfigError.
    """
    notices: list[str] = []
    tower, tower_source, beside = find_tower(checkpoint, original, notices)
    assert tower_source is not None, "a language model has no tower inside"
    assert beside is not None, "its tower has a folder"
    source = Layered(checkpoint.weights, tower_source)
    rules, reason = _rules(checkpoint, original, tower, source, beside, image_size)
    return Parts(
        checkpoint=checkpoint,
        tower=tower,
        source=source,
        original=original,
        rules=rules,
        rules_reason=reason,
        tokenizer_folder=checkpoint.path,
        vocab_size=_vocab_size(source, original, checkpoint),
        files=[checkpoint.path, beside],
        notices=notices,
    )


def _refuse(checkpoint: Checkpoint, base: str | None) -> None:
    """Raise for kinds that are no model by themselves; say when `base` has no effect."""
    path = checkpoint.path
    if checkpoint.kind == "delta":
        raise CheckpointError(
            f"{path} holds the difference to a base model, not a model",
            remedy=f"Run: python -m llava.model.apply_delta --base BASE --target TARGET --delta {path}",
        )
    if checkpoint.kind == "llm":
        raise CheckpointError(
            f"{path} is a language model alone, without vision tower and projector",
            remedy="Give the folder of the projector or adapter as the model, and this one as its base.",
        )
    if checkpoint.kind == "tower":
        raise CheckpointError(
            f"{path} is a vision tower alone", remedy="Give the folder of a vision-language checkpoint."
        )
    if checkpoint.kind == "projector" and base is None and _recorded_base(checkpoint) is None:
        raise CheckpointError(
            f"{path} holds a projector only",
            remedy="Give the language model it was trained on (--model-base, or base= in Python).",
        )
    if base is not None and checkpoint.kind not in ("projector", "lora"):
        raise UsageError(
            f"{path} is a whole model, and a base ({base}) was given", remedy="Leave the base out."
        )


def _recorded_base(checkpoint: Checkpoint) -> Path | None:
    """Return the folder that llava.json calls the base, where it is there."""
    stated = None if checkpoint.manifest is None else checkpoint.manifest.base
    if not stated:
        return None
    beside = checkpoint.path.resolve().parent
    return next((path for path in (Path(stated), beside / Path(stated).name) if path.is_dir()), None)


def _under(checkpoint: Checkpoint, base: str | None, notices: list[str]) -> Checkpoint | None:
    """Return what a projector or adapter lies over: what is given, else what it names itself."""
    if checkpoint.kind == "projector":
        recorded = _recorded_base(checkpoint) if base is None else None
        if recorded is not None:
            notices.append(f"The projector's base is {recorded}, as llava.json says.")
        found = base or recorded
        assert found is not None, "refused before"
        return _base_checkpoint(found)
    if checkpoint.kind == "lora":
        from llava.model.adapters import base_folder

        adapter = read_object(checkpoint.path / "adapter_config.json")
        under = _base_checkpoint(base_folder(checkpoint.path, adapter, base))
        if base is None:
            notices.append(f"The adapter's base is {under.path}, as adapter_config.json says.")
        return under
    return None


def _language_source(
    checkpoint: Checkpoint, under: Checkpoint | None
) -> tuple[TensorSource, list[Path], Path]:
    """Return (weights without a tower beside, folders they come from, folder of the tokenizer)."""
    path = checkpoint.path
    if under is None:
        return checkpoint.weights, [path], path
    if checkpoint.kind == "projector":
        files = WeightFiles.open_files(checkpoint.projector_files[:1])
        projector = Renamed(files, from_projector_file)
        return Layered(projector, under.weights), [path, under.path], _tokenizer_folder(path, under.path)
    from llava.model.adapters import merged_source

    merged = merged_source(path, read_object(path / "adapter_config.json"), under.weights)
    return merged, [path, under.path], _tokenizer_folder(path, under.path)


def _base_checkpoint(base: str | Path) -> Checkpoint:
    under = recognise(base)
    if under.kind not in ("llm", "full", "own", "hf"):
        raise CheckpointError(
            f"The base {base} is of kind {under.kind!r}, not a language model",
            remedy="Give the folder of the language model, such as vicuna-7b-v1.5.",
        )
    return under


def _tokenizer_folder(*folders: Path) -> Path:
    """Return the first folder that has a tokenizer, else the last: its loader says what is missing."""
    names = ("tokenizer.json", "tokenizer.model")
    return next((folder for folder in folders if any((folder / n).is_file() for n in names)), folders[-1])


def _hf_original(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Spell a llava-hf config.json as the original does."""
    known = {"default": "patch", "full": "cls_patch"}
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in known:
        raise ConfigError.of_field("vision_feature_select_strategy", strategy, known, source="config.json")
    if config.get("projector_hidden_act", "gelu") != "gelu":
        raise ConfigError.of_field(
            "projector_hidden_act", config["projector_hidden_act"], ("gelu",), source="config.json"
        )
    text = dict(config["text_config"])
    # Old files leave out what were the classes' defaults.
    text.setdefault("model_type", "llama")
    return {
        **text,
        "mm_vision_tower": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.get("vision_feature_layer", -2),
        "mm_vision_select_feature": known[strategy],
        "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
    }


def _rules(
    checkpoint: Checkpoint,
    original: Mapping[str, Any],
    tower: Tower,
    source: TensorSource,
    beside: Path | None,
    image_size: int | None,
) -> tuple[ImageRules, str]:
    """Return how pictures are made, and why at that size; never from a name."""
    aspect: Aspect = "pad" if original.get("image_aspect_ratio") == "pad" else "square"
    # An InternViT folder's own file is for the tower alone (224 pixels, say), and the original never read it.
    clip_folder = beside if tower.family == "clip" else None
    rules, reason = _stored_rules(checkpoint, original, clip_folder, aspect)
    if rules is None:
        make = clip_rules if tower.family == "clip" else imagenet_rules
        size, reason = _natural_size(tower, source, beside is None)
        rules = make(size, aspect=aspect)
    if image_size is None or image_size == rules.size:
        return rules, reason
    resized = ImageRules(size=image_size, mean=rules.mean, std=rules.std, aspect=rules.aspect)
    return resized, f"asked for, over {rules.size}: {reason}"


def _stored_rules(
    checkpoint: Checkpoint, original: Mapping[str, Any], clip_folder: Path | None, aspect: Aspect
) -> tuple[ImageRules | None, str]:
    """Return the rules that a file states, if one does; `clip_folder` is the tower's, if it is a CLIP."""
    if checkpoint.manifest is not None:
        return checkpoint.manifest.image, "llava.json"
    stated: Aspect | None = aspect if original.get("image_aspect_ratio") is not None else None
    path = checkpoint.path / "preprocessor_config.json"
    if path.is_file():
        rules = ImageRules.from_preprocessor_config(read_object(path), aspect=stated)
        return rules, "preprocessor_config.json of the checkpoint"
    if (checkpoint.path / "processor_config.json").is_file():
        # Where newer transformers write the same fields.
        nested = read_object(checkpoint.path / "processor_config.json").get("image_processor")
        if isinstance(nested, Mapping):
            rules = ImageRules.from_preprocessor_config(nested, aspect=stated)
            return rules, "processor_config.json of the checkpoint"
    if clip_folder is not None and (clip_folder / path.name).is_file():
        rules = ImageRules.from_preprocessor_config(read_object(clip_folder / path.name), aspect=aspect)
        return rules, "preprocessor_config.json of the vision tower"
    return None, ""


def _natural_size(tower: Tower, source: TensorSource, is_inside: bool) -> tuple[int, str]:
    """Return the size that the tower's position table is for, InternViT's 224 used at 336."""
    num_positions = next(
        (source.shape(key)[-2] for key in source.keys() if key in _POSITIONS),
        None,
    )
    if num_positions is None:
        return tower.image_size, "image_size of the vision tower"
    size = table_size(num_positions, tower.patch_size)
    where = "in the checkpoint" if is_inside else "of the vision tower"
    if tower.family == "internvit" and size == 224:
        return _ORIGINAL_INTERNVIT_SIZE, f"a 224-pixel InternViT {where} is used at 336 pixels"
    return size, f"the position table {where} has {num_positions} entries"


def _vocab_size(source: TensorSource, original: Mapping[str, Any], checkpoint: Checkpoint) -> int:
    """Return the rows of the token embedding; a whole checkpoint must agree with its config.json."""
    rows = next((source.shape(key)[0] for key in source.keys() if key in _EMBEDDINGS), None)
    stated = original.get("vocab_size")
    if rows is None:
        # `filling` lists the embedding among what is missing.
        return int(stated or 32000)
    if checkpoint.kind in ("own", "full") and isinstance(stated, int) and stated != rows:
        raise ConfigError(
            f"vocab_size is {stated} in config.json, and the token embedding has {rows} rows",
            remedy="Check that config.json belongs to the weights.",
        )
    return rows
