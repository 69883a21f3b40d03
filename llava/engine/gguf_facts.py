"""What two GGUF files say about a model, before llama.cpp loads it: pairing, template, picture rules, tokens.

A file is known by its metadata, never by its name. Our exporter puts what GGUF has no keys for under
MANIFEST_KEY; for other files the conventions of LLaVA-1.5 are taken, and that is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.errors import CheckpointError, DependencyError, FileError
from llava.processing.image_rules import ImageRules
from llava.templates import ChatTemplate, get_template, guess_template

if TYPE_CHECKING:
    from gguf import GGUFReader

MANIFEST_KEY = "llava.manifest"
MMPROJ_ARCHITECTURE = "clip"
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class GgufManifest:
    """What our exporter adds to the language model's file, as JSON under MANIFEST_KEY."""

    template: str
    """Name of the prompt template."""
    image: Mapping[str, Any]
    """Picture rules, as in llava.json."""
    im_start_end: bool
    """Whether pictures stand between `<im_start>` and `<im_end>`."""
    legacy: bool
    """Whether every run of text gets a leading space, and not only the first after a picture."""

    def to_json(self) -> str:
        """Return the value of the key."""
        fields = {name: getattr(self, name) for name in ("template", "im_start_end", "legacy")}
        return json.dumps({**fields, "image": dict(self.image)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> GgufManifest:
        """Read what `to_json` wrote; raises CheckpointError."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{MANIFEST_KEY} of {source} cannot be read: {error}") from None


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A language model's file and, where there is one, its mmproj's."""

    path: Path
    mmproj: Path | None
    name: str
    """What the file calls the model and its number format."""
    template: ChatTemplate
    rules: ImageRules | None
    """How pictures are prepared; None where neither file says."""
    im_start_end: bool
    legacy: bool
    adds_space: bool
    """Whether llama.cpp puts the leading spaces itself."""
    control_tokens: tuple[str, ...]
    """Texts that llama.cpp reads as control tokens wherever they stand in a prompt."""
    added_tokens: tuple[str, ...]
    """The same for tokens that were merely added, as `<im_end>`."""
    context_length: int
    """Tokens that the model was trained for."""
    bytes_per_token: int
    """Bytes of weights that are read for one new token."""
    notices: tuple[str, ...]


def read_model(path: Path, *, mmproj: Path | None = None, template: str | None = None) -> GgufModel:
    """Read the metadata of a file, or of the one model in a folder, and find its mmproj beside it.

    template: over what the file says. Raises FileError, CheckpointError, ConfigError, DependencyError.
    """
    path, readers = _find_model(path)
    reader = readers[path]
    mmproj = mmproj if mmproj is not None else _find_mmproj(reader, readers)
    prefix = _text(reader, "general.architecture")
    notices: list[str] = []
    manifest = _manifest(reader, path)
    if manifest is not None:
        chosen = get_template(template or manifest.template)
    elif template is not None:
        chosen = get_template(template)
    else:
        guess = guess_template(_text(reader, "general.name") or path.stem)
        chosen = guess.template
        notices.append(f"Prompt template {chosen.name}: {guess.reason}.")
    rules = ImageRules.from_dict(manifest.image) if manifest is not None else None
    if mmproj is not None:
        own = _rules(open_gguf(mmproj), mmproj)
        if rules is None:
            rules = own
            notices.append("Pictures are padded to a square, as LLaVA-1.5 does: the file does not say.")
    kinds = [int(kind) for kind in reader.fields["tokenizer.ggml.token_type"].contents()]
    pieces = reader.fields["tokenizer.ggml.tokens"].contents()
    of_kind = {
        kind: tuple(piece for piece, own in zip(pieces, kinds, strict=True) if own == kind)
        for kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    }
    return GgufModel(
        path=path,
        mmproj=mmproj,
        name=f"{_text(reader, 'general.name') or path.stem} {_file_type(reader)}".strip(),
        template=chosen,
        rules=rules,
        im_start_end=manifest.im_start_end if manifest is not None else False,
        legacy=manifest.legacy if manifest is not None else True,
        adds_space=bool(gguf_value(reader, "tokenizer.ggml.add_space_prefix", True)),
        control_tokens=of_kind[_CONTROL] + of_kind[_UNKNOWN],
        added_tokens=of_kind[_USER_DEFINED],
        context_length=int(gguf_value(reader, f"{prefix}.context_length", 2048)),
        bytes_per_token=_bytes_per_token(reader),
        notices=tuple(notices),
    )


def import_gguf() -> Any:
    """Return the gguf package; raises DependencyError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise DependencyError.of_extra("gguf", "cpu", "reading GGUF files") from None
    return gguf


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, or a folder that holds one and no config.json."""
    if path.is_dir():
        return not (path / "config.json").exists() and any(is_gguf(file) for file in path.glob("*.gguf"))
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) == _MAGIC


def _find_model(path: Path) -> tuple[Path, dict[Path, GGUFReader]]:
    """Return the language model's file and every readable GGUF file of its folder."""
    if not path.exists():
        raise FileError(f"{path} does not exist", remedy="Check the path.")
    folder = path if path.is_dir() else path.parent
    others = [file for file in sorted(folder.glob("*.gguf")) if file != path and is_gguf(file)]
    readers = {file: open_gguf(file) for file in ([] if path.is_dir() else [path]) + others}
    if not path.is_dir():
        if _text(readers[path], "general.architecture") == MMPROJ_ARCHITECTURE:
            raise CheckpointError(
                f"{path} holds a vision tower (mmproj), not a language model",
                remedy="Give the language model's file; its mmproj is found beside it.",
            )
        return path, readers
    models = [
        file
        for file, reader in readers.items()
        if _text(reader, "general.architecture") != MMPROJ_ARCHITECTURE
        and not int(gguf_value(reader, "split.no", 0))
    ]
    if len(models) == 1:
        return models[0], readers
    found = ", ".join(file.name for file in models) or "none"
    raise CheckpointError(
        f"{path} holds {len(models)} language models as GGUF: {found}", remedy="Give the path of one file."
    )


def _find_mmproj(model: GGUFReader, readers: Mapping[Path, GGUFReader]) -> Path | None:
    """Return the one mmproj whose projector fits the model's width; raises CheckpointError for several."""
    width = int(gguf_value(model, f"{_text(model, 'general.architecture')}.embedding_length", 0))
    fitting = [
        file
        for file, reader in readers.items()
        if _text(reader, "general.architecture") == MMPROJ_ARCHITECTURE
        and int(gguf_value(reader, "clip.vision.projection_dim", width)) == width
    ]
    if len(fitting) > 1:
        names = ", ".join(file.name for file in fitting)
        raise CheckpointError(
            f"{len(fitting)} mmproj files fit the model: {names}", remedy="Say which one: mmproj=PATH."
        )
    return fitting[0] if fitting else None


def open_gguf(path: Path) -> GGUFReader:
    """Open a GGUF file; raises FileError for one that is none or broken."""
    gguf = import_gguf()
    if not is_gguf(path):
        raise FileError(f"{path} is not a GGUF file", remedy="Get the file again.")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, OSError, UnicodeDecodeError, OverflowError) as error:
        raise FileError(f"{path} is broken: {error}", remedy="Get the file again.") from None


def _manifest(reader: GGUFReader, path: Path) -> GgufManifest | None:
    text = _text(reader, MANIFEST_KEY)
    return GgufManifest.from_json(text, source=str(path)) if text else None


def _rules(reader: GGUFReader, path: Path) -> ImageRules:
    """Return the picture rules of an mmproj file, which names no aspect."""
    if _text(reader, "general.architecture") != MMPROJ_ARCHITECTURE:
        raise CheckpointError(f"{path} is no mmproj file", remedy="Give the file of the vision tower.")
    return ImageRules(
        size=int(gguf_value(reader, "clip.vision.image_size", 0)),
        mean=tuple(gguf_value(reader, "clip.vision.image_mean", ())),
        std=tuple(gguf_value(reader, "clip.vision.image_std", ())),
    )


def _bytes_per_token(reader: GGUFReader) -> int:
    """Add up what is read for a token: all but the embedding table, unless it is the head too."""
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in reader.tensors}
    if "output.weight" in sizes:
        sizes.pop("token_embd.weight", None)
    return sum(sizes.values())


def _file_type(reader: GGUFReader) -> str:
    number = gguf_value(reader, "general.file_type", None)
    try:
        return "" if number is None else import_gguf().LlamaFileType(number).name.removeprefix("MOSTLY_")
    except ValueError:
        return ""


def _text(reader: GGUFReader, key: str) -> str:
    value = gguf_value(reader, key, "")
    return value if isinstance(value, str) else ""


def gguf_value(reader: GGUFReader, key: str, default: object) -> Any:
    """Return the value of a metadata key."""
    field = reader.fields.get(key)
    return default if field is None else field.contents()
