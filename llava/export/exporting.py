"""One export from beginning to end: check, run the source, write, reload, compare, publish.

Everything that can be refused is refused before a tensor is read. The source and what was written are never
in memory together, so that an export needs memory for the model once (GGUF: and for llama.cpp's copy).
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from llava.errors import ConfigError, DependencyError, UsageError
from llava.export import gguf, hf, legacy
from llava.export.certify import Measurement, Report, all_equal, compare
from llava.export.folder import check_folder, export_folder
from llava.export.gguf_certify import certify_gguf
from llava.export.gguf_file import import_gguf
from llava.export.gguf_types import check_type
from llava.export.outcomes import Case, Outcome, example_cases, our_outcomes, plain_outcomes
from llava.export.source import Source, open_source
from llava.model.builder import LoadedModel, LoadOptions, load_model
from llava.model.device import SMALL_MODEL, resolve_device, resolve_dtype
from llava.model.merging import merge

Format = Literal["hf", "gguf", "legacy", "merged"]
FORMATS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and to what."""

    model: str
    """Checkpoint folder or hub id."""
    to: str
    """One of FORMATS."""
    output: Path
    base: str | None = None
    """Language model under a projector or LoRA checkpoint."""
    type: str = "F16"
    """Number format of a GGUF language model."""
    dtype: str | None = None
    """Stored dtype of the others; None keeps the source's."""
    template: str | None = None
    """Prompt template, over the checkpoint's."""
    device: str | None = None
    """Where source and export are run for the comparison; None is the best present."""
    tower: bool = True
    """Whether a GGUF export has the tower too."""
    overwrite: bool = False
    """Replace an earlier export."""

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise ConfigError.of_field("to", self.to, FORMATS)
        if self.to == "gguf" and self.dtype is not None:
            raise UsageError("--dtype has no effect on GGUF files", remedy="Use --type.")
        if self.to != "gguf" and (self.type != "F16" or not self.tower):
            raise UsageError(f"--type and --without-tower have no effect with --to {self.to}")


def export(options: ExportOptions) -> Report:
    """Write the export and return how far it is from its source; the report is in the folder too.

    Raises FileError for a folder that is taken, ConfigError or TokenizerError for what the format cannot
    hold, DependencyError for a missing package, and what loading raises. Then nothing is written.
    """
    check_folder(options.output, overwrite=options.overwrite)
    device = resolve_device(options.device)
    if options.to == "gguf":
        check_type(options.type)
        import_gguf()
    source = open_source(options.model, base=options.base, template=options.template)
    _check(source, options)
    stored = _stored_dtype(source, options)
    run = _Run(options, source, stored, device)
    with export_folder(options.output, overwrite=options.overwrite) as folder:
        report = run.into(folder)
        report.write(folder)
    return report


def _check(source: Source, options: ExportOptions) -> None:
    if options.to == "gguf":
        gguf.check_source(source, tower=options.tower)
    elif options.to == "hf":
        hf.check_source(source)
    elif options.to == "legacy":
        legacy.check_source(source)


def _stored_dtype(source: Source, options: ExportOptions) -> torch.dtype:
    if options.dtype is None:
        return source.stored_dtype if source.stored_dtype.is_floating_point else torch.float32
    return resolve_dtype(options.dtype, torch.device("cpu"), num_parameters=0)


@dataclass(frozen=True)
class _Run:
    """An export whose parts are known."""

    options: ExportOptions
    source: Source
    stored: torch.dtype
    device: torch.device

    def into(self, folder: Path) -> Report:
        """Write into `folder` and compare; returns the report."""
        cases = example_cases()
        expected = self._expected(cases)
        measurements, notes = self._formats()[self.options.to](folder, cases, expected)
        settings: dict[str, Any] = {"computed in": _name(self.compute_dtype), "on": str(self.device)}
        if self.options.to == "gguf":
            settings["type"] = self.options.type
        else:
            settings["stored in"] = _name(self.stored)
        return Report(
            format=self.options.to,
            source=str(self.source.checkpoint.path),
            settings=settings,
            measurements=measurements,
            notes=(*self.source.notices, *notes),
        )

    @property
    def compute_dtype(self) -> torch.dtype:
        """In which both sides are run: float32 for a small model, else the device's own."""
        num_parameters = sum(torch.Size(shape).numel() for shape in self.source.shapes.values())
        if num_parameters <= SMALL_MODEL:
            return torch.float32
        return resolve_dtype(None, self.device, num_parameters=num_parameters)

    @property
    def lost_in(self) -> torch.dtype | None:
        """The stored dtype where it rounded the source's values."""
        return None if self.source.is_lossless(self.stored) else self.stored

    def _formats(self) -> dict[str, Callable[..., tuple[tuple[Measurement, ...], tuple[str, ...]]]]:
        return {"hf": self._hf, "gguf": self._gguf, "legacy": self._legacy, "merged": self._merged}

    def _load(self, path: str | Path, *, base: str | None = None) -> LoadedModel:
        return load_model(
            path,
            LoadOptions(
                base=base,
                template=self.source.template.name,
                device=str(self.device),
                dtype=_name(self.compute_dtype),
            ),
        )

    def _expected(self, cases: Sequence[Case]) -> list[Outcome]:
        outcomes = our_outcomes(self._load(self.options.model, base=self.options.base), cases)
        gc.collect()
        return outcomes

    def _hf(
        self, folder: Path, cases: Sequence[Case], expected: Sequence[Outcome]
    ) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
        hf.write_hf(self.source, folder, dtype=self.stored)
        found = plain_outcomes(
            folder,
            cases,
            num_rows=self.source.config.text_config.vocab_size,
            dtype=self.compute_dtype,
            device=self.device,
        )
        notes: tuple[str, ...] = ()
        if self.source.config.vision_config.model_type != "clip_vision_model":
            notes = ("transformers runs this model; the LLaVA classes of serving engines take CLIP towers",)
        return self._compared(expected, found), notes

    def _legacy(
        self, folder: Path, cases: Sequence[Case], expected: Sequence[Outcome]
    ) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
        legacy.write_legacy(self.source, folder, dtype=self.stored, final=self.options.output)
        found = our_outcomes(self._load(folder), cases)
        weights = _equal_weights(self.source, open_source(folder), self.stored)
        return (weights, *self._compared(expected, found)), ()

    def _merged(
        self, folder: Path, cases: Sequence[Case], expected: Sequence[Outcome]
    ) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
        merge(
            self.options.model,
            folder,
            base=self.options.base,
            template=self.options.template,
            dtype=_name(self.stored),
        )
        return self._compared(expected, our_outcomes(self._load(folder), cases)), ()

    def _gguf(
        self, folder: Path, cases: Sequence[Case], expected: Sequence[Outcome]
    ) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
        files = gguf.write_gguf(self.source, folder, self.options.type, tower=self.options.tower)
        loaded = self._load(self.options.model, base=self.options.base)
        try:
            measurements, notes = certify_gguf(files, loaded, expected, cases, file_type=self.options.type)
        except DependencyError as error:
            return (), (*files.notes, f"Not compared with the source: {error}")
        return measurements, (*files.notes, *notes)

    def _compared(self, expected: Sequence[Outcome], found: Sequence[Outcome]) -> tuple[Measurement, ...]:
        return compare(expected, found, compute_dtype=self.compute_dtype, lost_in=self.lost_in)


def _equal_weights(source: Source, written: Source, dtype: torch.dtype) -> Measurement:
    """Count the tensors of `written` that equal the source's to the bit, in `dtype`."""
    digests = {name: _digest(tensor) for name, tensor in written.tensors(dtype)}
    equal = sum(digests.get(name) == _digest(tensor) for name, tensor in source.tensors(dtype))
    return all_equal("tensors equal to the bit", equal, len(source.shapes))


def _digest(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).digest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
