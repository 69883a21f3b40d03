"""Take the projector out of a checkpoint (the original's script).

    python scripts/extract_mm_projector.py --model-path CHECKPOINT --output mm_projector.bin

Names stay as they are (`model.mm_projector.0.weight`, ...). An output that ends in .bin is written as torch
tensors, which is what the original's `--pretrain_mm_mlp_adapter` reads; any other name as safetensors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OptionParser, say
from llava.command import run as run_command

if TYPE_CHECKING:
    from llava.model.checkpoint import Checkpoint
    from llava.model.sources import TensorSource


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(lambda: _run(_parser().parse_all(argv)))


def _parser() -> OptionParser:
    parser = OptionParser(prog="python scripts/extract_mm_projector.py", description=__doc__)
    parser.add_argument("--model-path", required=True, metavar="PATH", help="checkpoint of any kind")
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write: .bin or .safetensors")
    return parser


def _run(args: argparse.Namespace) -> int:
    from llava.errors import WeightsError
    from llava.files import atomic_path
    from llava.model.checkpoint import recognise
    from llava.model.weight_file import write_safetensors
    from llava.model.weights import write_torch_file

    source = _source(recognise(args.model_path))
    tensors = {key: source.read(key) for key in source.keys() if "mm_projector" in key}
    if not tensors:
        raise WeightsError(f"{args.model_path} has no projector", remedy="Give a vision-language checkpoint.")
    output = Path(args.output)
    if output.suffix == ".bin":
        write_torch_file(output, tensors)
    else:
        with atomic_path(output) as temporary:
            write_safetensors(temporary, tensors, {"format": "pt"})
    say(f"Wrote {len(tensors)} tensors to {output}.")
    return 0


def _source(checkpoint: Checkpoint) -> TensorSource:
    """Return the tensors of a checkpoint that may hold a projector, under the original's names."""
    from llava.model.adapters import base_name
    from llava.model.mapping import from_projector_file
    from llava.model.sources import Renamed
    from llava.model.weights import WeightFiles

    if checkpoint.kind == "lora":
        return Renamed(WeightFiles.open(checkpoint.path, "non_lora_trainables"), base_name)
    if checkpoint.kind == "projector":
        return Renamed(WeightFiles.open_files(checkpoint.projector_files[:1]), from_projector_file)
    return checkpoint.weights


if __name__ == "__main__":
    sys.exit(main())
