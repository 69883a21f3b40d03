"""Converted models on disk: made once, found again, and loaded without the torch model.

    load_openvino(path) -> folder of (checkpoint, format, releases) -> [convert] -> Frontend, OpenVinoRunner

A folder is written aside and renamed when it is whole, so that a conversion that was cut off is never used.
It also holds tokenizer, picture rules, template and lengths, so it is a model by itself: `load_openvino`
takes it like a checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.engine.frontend import Frontend
from llava.engine.openvino.conversion import DECODER, EMBEDDINGS, STEPS, VISION, convert
from llava.engine.openvino.paging import OpenVinoOptions
from llava.engine.openvino.runner import OpenVinoRunner
from llava.engine.openvino.support import WeightFormat, check_format, check_supported, require_openvino
from llava.errors import CheckpointError, ConfigError
from llava.files import fingerprint, read_json, write_json
from llava.model.assembling import Parts, assemble
from llava.model.builder import LoadOptions, load_model
from llava.model.checkpoint import recognise
from llava.model.conventions import model_name
from llava.processing.image_rules import ImageRules
from llava.processing.pixels import ImageProcessor
from llava.processing.processor import Processor
from llava.processing.tokenizer import load_tokenizer, save_tokenizer
from llava.templates import get_template

FILE_NAME = "openvino.json"
FORMAT_VERSION = 1
"""Goes up when a conversion of before would be read wrongly or computes less exactly than one of today."""
_FILES = (DECODER, EMBEDDINGS, VISION, "tokenizer.json")
_ABANDONED_S = 24 * 3600.0
"""Age in seconds at which an unfinished folder belongs to a process that is gone."""


@dataclass(frozen=True)
class _Description:
    """openvino.json: what a converted model is, beside its graphs and its tokenizer."""

    weight_format: WeightFormat
    template: str
    image: ImageRules
    num_image_tokens: int
    im_start_end: bool
    context_length: int
    eos_ids: tuple[int, ...]
    source: str
    """Name of the checkpoint."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        own = {"image": self.image.to_dict(), "eos_ids": list(self.eos_ids)}
        return {"format_version": FORMAT_VERSION, **fields, **own}

    @classmethod
    def read(cls, folder: Path) -> _Description:
        """Read a folder's openvino.json; raises CheckpointError for one that this version did not write."""
        fields: Mapping[str, Any] = read_json(folder / FILE_NAME)
        names = {"format_version", *cls.__dataclass_fields__}
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if set(fields) != names or fields["format_version"] != FORMAT_VERSION or missing:
            reason = f"without {', '.join(missing)}" if missing else "of another version"
            raise CheckpointError(
                f"{folder} is a converted model {reason}", remedy="Convert the checkpoint again."
            )
        own = {"image": ImageRules.from_dict(fields["image"]), "eos_ids": tuple(fields["eos_ids"])}
        return cls(**{name: fields[name] for name in names if name != "format_version"} | own)


def load_openvino(
    path: str | os.PathLike[str],
    *,
    format: WeightFormat = "int8",
    base: str | None = None,
    image_size: int | None = None,
    template: str | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    options: OpenVinoOptions | None = None,
) -> tuple[Frontend, OpenVinoRunner]:
    """Return what answers with a checkpoint on OpenVINO, converting it first where that was not done before.

    path: a checkpoint of any kind, a hub id, or a converted folder (whose format it then has). format: how
    the language model's weights are stored. base, image_size, template: as in `LoadOptions`. cache_folder:
    where conversions are kept; None: `llava/openvino` in the user's cache folder.
    Raises DependencyError, CheckpointError for a model that cannot be run exactly, and what `load_model`
    raises.
    """
    check_format(format)
    require_openvino()
    if template is not None:
        get_template(template)
    folder = Path(path)
    if not (folder / FILE_NAME).is_file():
        root = Path(cache_folder) if cache_folder is not None else default_cache_folder()
        folder = _converted(path, root, format, base=base, image_size=image_size)
    return _load(folder, template, options)


def default_cache_folder() -> Path:
    """Return `llava/openvino` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "llava" / "openvino"


def _load(
    folder: Path, template: str | None, options: OpenVinoOptions | None
) -> tuple[Frontend, OpenVinoRunner]:
    described = _Description.read(folder)
    frontend = Frontend(
        processor=Processor(
            tokenizer=load_tokenizer(folder),
            image_processor=ImageProcessor(described.image),
            template=get_template(template or described.template),
            num_image_tokens=described.num_image_tokens,
            im_start_end=described.im_start_end,
        ),
        context_length=described.context_length,
        eos_ids=frozenset(described.eos_ids),
    )
    runner = OpenVinoRunner(
        folder,
        weight_format=described.weight_format,
        context_length=described.context_length,
        options=options,
    )
    return frontend, runner


def _converted(
    path: str | os.PathLike[str],
    root: Path,
    weight_format: WeightFormat,
    *,
    base: str | None,
    image_size: int | None,
) -> Path:
    """Return the folder of a conversion, made now if it is not there."""
    parts = assemble(recognise(path), base=base, image_size=image_size)
    check_supported(parts.config())
    require_openvino(nncf=weight_format in ("int8", "int4"))
    name = model_name(parts.checkpoint)
    folder = root / f"{name}-{weight_format}-{_key(parts, weight_format)}"
    if (folder / FILE_NAME).is_file():
        return folder
    with _written_aside(folder) as temporary:
        _convert(path, temporary, weight_format, name=name, base=base, image_size=image_size)
    return folder


def _key(parts: Parts, weight_format: WeightFormat) -> str:
    """Identify a conversion by everything that its content depends on."""
    digest = hashlib.sha256()
    used = [
        f"{package} {version(package)}"
        for package in ("openvino", "nncf", "transformers")
        if package != "nncf" or weight_format.startswith("int")
    ]
    # The name decides the template of checkpoints that carry none.
    for text in (*used, str(FORMAT_VERSION), model_name(parts.checkpoint), str(parts.rules)):
        digest.update(f"{text}\n".encode())
    for folder in dict.fromkeys((*parts.files, parts.tokenizer_folder)):
        digest.update(fingerprint(folder).encode())
    return digest.hexdigest()[:16]


def _convert(
    path: str | os.PathLike[str],
    folder: Path,
    weight_format: WeightFormat,
    *,
    name: str,
    base: str | None,
    image_size: int | None,
) -> None:
    """Load the checkpoint with torch and write everything that a converted folder holds."""
    with tqdm(total=len(STEPS) + 1, unit="step", leave=False) as bar:
        bar.set_description(f"Converting {name} to {weight_format} (once): reading")

        def report(step: str) -> None:
            bar.set_description(f"Converting {name} to {weight_format} (once): {step}")
            bar.update()

        options = LoadOptions(base=base, image_size=image_size, device="cpu", dtype="float32")
        loaded = load_model(path, options)
        frontend = Frontend.of_loaded(loaded)
        convert(loaded.model, folder, weight_format, report=report)
        save_tokenizer(loaded.tokenizer, folder, template=loaded.template, im_start_end=loaded.im_start_end)
        described = _Description(
            weight_format=weight_format,
            template=loaded.template.name,
            image=loaded.image_processor.rules,
            num_image_tokens=loaded.num_image_tokens,
            im_start_end=loaded.im_start_end,
            context_length=loaded.context_length,
            eos_ids=tuple(sorted(frontend.eos_ids)),
            source=name,
        )
        write_json(folder / FILE_NAME, described.to_dict())
        bar.update()


@contextmanager
def _written_aside(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder` that takes its name on success and is removed on an error.

    Raises ConfigError when nothing can be written there. A process that made the same folder meanwhile wins.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    except OSError as error:
        raise ConfigError(
            f"Converted models cannot be kept in {folder.parent}: {error.strerror}",
            remedy="Give another cache folder, or set XDG_CACHE_HOME.",
        ) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / FILE_NAME).is_file():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(root: Path) -> None:
    """Remove what processes left that were killed in the middle of a conversion."""
    oldest = time.time() - _ABANDONED_S
    for part in root.glob(".*.part"):
        if part.stat().st_mtime < oldest:
            shutil.rmtree(part, ignore_errors=True)
