"""`torchrun llava/train/train_mem.py ...`: as train.py, with FlashAttention where it is installed."""

import sys
from collections.abc import Sequence
from pathlib import Path


def train(attn_implementation: str | None = "flash_attention_2", *, argv: Sequence[str] | None = None) -> int:
    """Train as the command line (default: this process's) says; returns the exit code."""
    from llava.train.command import train_original

    return train_original(argv, attn_implementation=attn_implementation)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it as a program: what the user can mend becomes one line and an exit code."""
    from llava.command import run

    return run(lambda: train(argv=argv))


if __name__ == "__main__":
    # Run by path, Python looks beside this file first, where names of other packages could be taken.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parents[1]), *(path for path in sys.path if Path(path).resolve() != here)]
    sys.exit(main())
