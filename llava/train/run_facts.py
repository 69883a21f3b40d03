"""What run.json says of a run besides its recipe: the data as it was scanned, what learns, the machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from llava.data.mixture import Mixture
from llava.data.scan import Scan
from llava.train.stages import part_rows
from llava.train.telemetry import Hardware

NUM_BINS = 32
MAX_BAD = 10


def data_facts(scan: Scan, mixture: Mixture) -> dict[str, Any]:
    """Return counts, the length histogram, counts by source, and the first bad samples."""
    usable = scan.is_usable
    return {
        "summary": scan.summary(),
        "fingerprint": mixture.fingerprint,
        "num_samples": scan.num_samples,
        "num_usable": int(usable.sum()),
        "num_tokens": int(scan.tokens[usable].sum(dtype=np.int64)),
        "num_targets": int(scan.targets[usable].sum(dtype=np.int64)),
        "num_pictures": int(scan.pictures[usable].sum(dtype=np.int64)),
        "num_truncated": int(scan.is_truncated.sum()),
        "num_masked": int(scan.is_masked.sum()),
        "num_bad": len(scan.bad),
        "lengths": _histogram(scan),
        "sources": _sources(scan, mixture),
        "bad": [{"where": str(bad.where), "why": bad.reason} for bad in scan.bad[:MAX_BAD]],
    }


def _histogram(scan: Scan) -> dict[str, list[int]]:
    """Return {"edges": NUM_BINS + 1 token counts at most, "text": ..., "picture": samples in each bin}."""
    lengths = scan.tokens[scan.is_usable]
    if not len(lengths):
        return {}
    low, high = int(lengths.min()), int(lengths.max()) + 1
    width = max(1, -(-(high - low) // NUM_BINS))
    edges = list(range(low, high + width, width))
    has_picture = scan.pictures[scan.is_usable] > 0
    counts = {
        name: np.histogram(lengths[rows], bins=edges)[0].tolist()
        for name, rows in (("text", ~has_picture), ("picture", has_picture))
    }
    return {"edges": edges, **counts}


def _sources(scan: Scan, mixture: Mixture) -> list[dict[str, Any]]:
    begin, rows = 0, []
    bad = {sample.index for sample in scan.bad}
    for entry, source in zip(mixture.entries, mixture.sources, strict=True):
        part = slice(begin, begin + len(source))
        usable = scan.is_usable[part]
        rows.append(
            {
                "name": entry.name,
                "samples": len(source),
                "tokens": int(scan.tokens[part][usable].sum(dtype=np.int64)),
                "tokens trained": int(scan.targets[part][usable].sum(dtype=np.int64)),
                "pictures": int(scan.pictures[part][usable].sum(dtype=np.int64)),
                "bad": sum(begin <= index < begin + len(source) for index in bad),
            }
        )
        begin += len(source)
    return rows


def learning_facts(model: nn.Module, groups: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return what learns by part, with the peak rates of the optimizer's groups (named "PART/...")."""
    rates = {str(group["name"]).partition("/")[0]: float(group["lr"]) for group in groups}
    parts = []
    for row in part_rows(model):
        name = row.part.removesuffix(" (LoRA)").replace(" ", "_")
        parts.append(
            {
                "part": row.part,
                "trained": row.parameters,
                "parameters": row.total,
                "learning rate": rates.get(name, 0.0) if row.parameters else 0.0,
            }
        )
    return {"parts": parts}


def machine_facts(hardware: Hardware) -> dict[str, Any]:
    """Return devices and versions; no host name, no path."""
    return {
        "device": hardware.device,
        "num_devices": hardware.num_devices,
        "peak_flops": hardware.peak_flops,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": platform.system(),
    }
