"""Kill a training run at random moments, some inside a save, and compare what it ends with.

    python -m bench.faults [--kills 20] [--seed 0] [--work FOLDER]

A run of the recorded data (tests/fixtures/training) is first left alone. Then the same command is started
again and again and ended by SIGKILL, at random moments and while a checkpoint is being written, until the
given number of kills is reached, and is then let finish. Passes when the final weights and metrics.jsonl's
losses are equal to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "tests" / "fixtures" / "training"
CHECKPOINTS = ROOT / "tests" / "fixtures" / "checkpoints"
TIMEOUT_S = 300.0

STAGES = {
    "finetune": ["--save_steps", "2"],
    "pretrain": ["--save_steps", "2", "--tune_mm_mlp_adapter", "True", "--version", "plain"],
    "lora": ["--save_steps", "2", "--lora_enable", "True", "--lora_r", "8", "--lora_dropout", "0.1"],
}
"""What learns, in the original's flags; LoRA with dropout, so that random states count."""


def command(stage: str, output_dir: Path, *, epochs: int = 4) -> list[str]:
    """Return the command of one run."""
    data = RUNS / ("pretrain" if stage == "pretrain" else "finetune-data")
    return [
        *(sys.executable, str(ROOT / "llava" / "train" / "train.py")),
        *("--model_name_or_path", str(CHECKPOINTS / "vicuna-f-base"), "--version", "v1"),
        *("--vision_tower", str(CHECKPOINTS / "towers" / "InternViT-6B-tiny-56px")),
        *("--mm_vision_select_layer", "-4", "--mm_projector_type", "mlp2x_gelu"),
        *("--data_path", str(data / "data.json"), "--image_folder", str(data / "images")),
        *("--image_aspect_ratio", "pad", "--model_max_length", "512", "--learning_rate", "2e-3"),
        *("--per_device_train_batch_size", "4", "--num_train_epochs", str(epochs), "--save_total_limit", "2"),
        *("--report_to", "none", "--use_cpu", "True", "--output_dir", str(output_dir), *STAGES[stage]),
    ]


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    weights: dict[str, bytes]
    losses: list[float]


def outcome(folder: Path) -> Outcome:
    """Read a finished run's weight files and losses."""
    files = [path for path in folder.iterdir() if path.suffix == ".safetensors"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Outcome({path.name: path.read_bytes() for path in sorted(files)}, [line["loss"] for line in lines])


def run_to_end(argv: Sequence[str], folder: Path) -> Outcome:
    """Run a command undisturbed; raises CalledProcessError with its output when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, env=_environment(), timeout=TIMEOUT_S)
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
    done.check_returncode()
    return outcome(folder)


def kill_once(argv: Sequence[str], folder: Path, chance: random.Random, *, in_save: bool) -> str:
    """Start a command and kill it; returns "in a save", "between" or "finished" (it was faster)."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment())
    before = _num_steps(folder)
    until_step = before + chance.randint(0, 6)
    deadline = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        has_begun = _num_steps(folder) > until_step
        is_saving = any(folder.glob(".checkpoint-*.part"))
        if has_begun and (is_saving if in_save else True):
            # A save of this size lasts milliseconds: a random part of one is let pass.
            time.sleep(chance.random() * (0.01 if in_save else 0.2))
            is_saving = any(folder.glob(".checkpoint-*.part"))
            process.kill()
            process.wait()
            return "in a save" if is_saving else "between"
        time.sleep(0.0005)
    process.kill()
    process.wait()
    return "finished"


def torment(stage: str, work: Path, *, kills: int, seed: int) -> tuple[Outcome, Outcome, list[str]]:
    """Return (undisturbed, killed and resumed, what each kill hit)."""
    chance = random.Random(seed)
    calm = run_to_end(command(stage, work / "calm"), work / "calm")
    folder = work / "killed"
    argv = command(stage, folder)
    hits: list[str] = []
    while len(hits) < kills:
        hit = kill_once(argv, folder, chance, in_save=len(hits) % 2 == 0)
        if hit == "finished":
            # The run got to its end before all kills were spent: what it left counts, and a new one begins.
            assert outcome(folder) == calm, "a killed and resumed run ended otherwise"
            shutil.rmtree(folder)
            continue
        hits.append(hit)
    return calm, run_to_end(argv, folder), hits


def _num_steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def main() -> int:
    """Run the proof for every stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="per stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    args = parser.parse_args()
    failed = False
    for stage in args.stages:
        with tempfile.TemporaryDirectory() as work:
            calm, killed, hits = torment(stage, Path(work), kills=args.kills, seed=args.seed)
        equal = calm == killed
        failed |= not equal
        counts = {kind: hits.count(kind) for kind in sorted(set(hits))}
        print(
            f"{stage}: {len(hits)} kills {counts}, {len(calm.losses)} steps, equal to the bit: {equal}",
            flush=True,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
