"""Measure the peak host memory of loading a sharded checkpoint: at most the model and one shard.

    python -m bench.load_memory [--layers 20]

Makes a checkpoint of 1.3 GB (InternViT tower inside, Llama of 0.6 billion parameters, 300 MB shards) in a
temporary folder and loads it in a fresh process, once per row of the table. What the interpreter and the
libraries take is measured in that process before it loads (after it has loaded a tiny model) and subtracted.
Pages of a mapped `.bin` count as memory. Linux only (/proc). Exits with 1 when a row is over the limit.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llava.model.builder import LoadOptions, empty_model, load_model
from llava.model.config import make_config
from llava.model.device import DTYPES
from llava.model.mapping import original_tensors
from llava.model.towers import read_tower
from llava.model.weights import write_weights

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "checkpoints"
TINY = FIXTURES / "llava-b-internvit-mlp2x"
SHARD_BYTES = 300_000_000
TOWER = {
    "model_type": "intern_vit_6b",
    "hidden_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "patch_size": 14,
    "image_size": 224,
}
CASES = (
    # format, stored, loaded
    ("safetensors", "float16", "float16"),
    ("bin", "float16", "float16"),
    ("safetensors", "float16", "float32"),
    ("safetensors", "float32", "float16"),
)


class Row(NamedTuple):
    """One measurement, in bytes."""

    model: int
    largest_shard: int
    peak: int


def main() -> int:
    """Run the benchmark, or be its fresh process."""
    parser = argparse.ArgumentParser(prog="python -m bench.load_memory", description=__doc__)
    parser.add_argument("--layers", type=int, default=20, help="decoder layers (%(default)s)")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(measure(Path(args.child[0]), args.child[1])))
        return 0
    print("| file format | stored | loaded | model MB | shard MB | allowed MB | peak MB | peak / allowed |")
    print("|---|---|---|---|---|---|---|---|")
    is_over = False
    for file_format, stored, loaded in CASES:
        with tempfile.TemporaryDirectory(prefix="llava-bench-") as folder:
            make_checkpoint(Path(folder), args.layers, file_format, stored)
            command = [sys.executable, "-m", "bench.load_memory", "--child", folder, loaded]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = Row(*json.loads(output))
        allowed = row.model + row.largest_shard
        is_over |= row.peak > allowed
        sizes = " | ".join(f"{size / 1e6:.0f}" for size in (row.model, row.largest_shard, allowed, row.peak))
        print(f"| {file_format} | {stored} | {loaded} | {sizes} | {row.peak / allowed:.2f} |", flush=True)
    return int(is_over)


def make_checkpoint(folder: Path, num_layers: int, file_format: str, stored: str) -> None:
    """Write a checkpoint in the original's layout with the tower inside; values do not matter."""
    for path in TINY.iterdir():
        if path.suffix != ".bin":
            shutil.copy(path, folder)
    config = json.loads((TINY / "config.json").read_text()) | {
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 32000,
        "mm_hidden_size": 1024,
        "mm_vision_tower": "tower",
        "mm_vision_select_layer": -1,
        "torch_dtype": stored,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tower").mkdir()
    (folder / "tower" / "config.json").write_text(json.dumps(TOWER))
    tensors = _tensors(config, DTYPES[stored])
    if file_format == "safetensors":
        write_weights(folder, tensors, max_shard_bytes=SHARD_BYTES)
    else:
        _write_bin(folder, tensors)


def measure(folder: Path, dtype: str) -> Row:
    """Load a checkpoint and return its size, its largest shard and the growth of memory at the peak."""
    load_model(TINY, LoadOptions(device="cpu", dtype=dtype))
    gc.collect()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    model = load_model(folder, LoadOptions(device="cpu", dtype=dtype)).model
    peak = _memory("VmHWM") - before
    shards = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")]
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return Row(size, max(path.stat().st_size for path in shards), peak)


def _tensors(config: dict[str, Any], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    model = empty_model(make_config(config, read_tower(TOWER, source="bench"), image_size=336))
    for name, tensor in original_tensors(model.named_parameters(), family="internvit", text_type="llama"):
        yield name, torch.ones(tensor.shape, dtype=dtype)


def _write_bin(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write torch shards and their index, as transformers did."""
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    num_bytes = num_shards = 0

    def flush() -> None:
        nonlocal num_bytes, num_shards
        num_shards += 1
        name = f"pytorch_model-{num_shards:05d}.bin"
        torch.save(shard, folder / name)
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()
        num_bytes = 0

    for key, tensor in tensors:
        if num_bytes + tensor.nbytes > SHARD_BYTES:
            flush()
        shard[key] = tensor
        num_bytes += tensor.nbytes
    flush()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    sys.exit(main())
