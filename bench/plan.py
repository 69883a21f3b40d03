"""Measure tiny training runs on this machine, and compare them with what `llava plan` predicts.

    python -m bench.plan [--work FOLDER] [--only NAME]

Each configuration is trained for some steps in a process of its own, one CPU thread. Compared are the peak
resident memory of the process, checkpoint and result included, and the median processor time of a step after
the first two: other work on the machine makes wall time useless. Two constants are the machine's and come
from one further run, CALIBRATION, that is not in the table: what a process takes before it holds a model, and
the rate at which matrices are multiplied; a third, the rate of AdamW's update, is measured alone. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava.command import say
from llava.train.config import (
    DataOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    StageOptions,
    TrainConfig,
)
from llava.train.planning.lengths import find_lengths
from llava.train.planning.machines import GIB, Machine
from llava.train.planning.prediction import Prediction, predict
from llava.train.planning.shapes import find_shapes

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
TOKENIZER = FIXTURES / "checkpoints" / "vicuna-f-base"
TOWER = FIXTURES / "checkpoints" / "towers" / "clip-tiny-56px"
PICTURES = FIXTURES / "training" / "finetune-data" / "images"
NUM_STEPS = 7
NUM_WARM = 2
TIMEOUT_S = 900.0
WORDS = ("red", "green", "blue", "circle", "square", "left", "above", "picture", "shows", "large", "dark")


@dataclass(frozen=True)
class Case:
    """A configuration."""

    name: str
    hidden_size: int
    num_layers: int
    vocab_size: int = 1000
    words: int = 60
    """Of a sample's answer."""
    stage: str = "finetune"
    micro_tokens: int = 1024
    global_batch: int = 4
    packing: bool = True
    checkpointing: bool = False
    optimizer: str = "adamw"


CALIBRATION = Case("calibration", 640, 5, words=90)
CASES = (
    Case("small", 256, 4),
    Case("deep", 384, 12),
    Case("wide", 1024, 3),
    Case("large", 768, 10),
    Case("vocabulary", 512, 4, vocab_size=16000, words=150),
    Case("long", 512, 6, words=300, micro_tokens=2048),
    Case("accumulated", 512, 6, words=150, micro_tokens=512, global_batch=8),
    Case("checkpointed", 512, 8, words=300, micro_tokens=2048, checkpointing=True),
    Case("padded", 512, 6, words=150, packing=False),
    Case("align", 768, 8, stage="align", words=150),
    Case("lora", 768, 8, stage="lora", words=150),
    Case("sgd", 768, 8, optimizer="sgd"),
    Case("tall", 448, 9, words=120),
    Case("batched", 640, 6, words=80, micro_tokens=4096, global_batch=8),
)


@dataclass(frozen=True)
class Measured:
    """One run."""

    peak: int
    """Resident bytes at most."""
    step_s: float
    """Processor time of a step, median."""


def write_model(case: Case, folder: Path) -> Path:
    """Write a random Llama with the fixture's tokenizer."""
    target = folder / "model"
    heads = case.hidden_size // 64
    config = LlamaConfig(
        vocab_size=case.vocab_size,
        hidden_size=case.hidden_size,
        intermediate_size=case.hidden_size * 11 // 4,
        num_hidden_layers=case.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(target)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (target / name).write_bytes((TOKENIZER / name).read_bytes())
    return target


def write_data(case: Case, folder: Path) -> Path:
    """Write as many conversations about a picture as the steps take, of lengths around `words`."""
    chance = random.Random(0)
    picture = sorted(PICTURES.iterdir())[0].name
    samples = []
    for number in range(NUM_STEPS * case.global_batch):
        count = round(case.words * chance.uniform(0.6, 1.4))
        answer = " ".join(chance.choices(WORDS, k=count))
        turns = [
            {"from": "human", "value": "<image>\nWhat is to be seen?"},
            {"from": "gpt", "value": answer},
        ]
        samples.append({"id": str(number), "image": picture, "conversations": turns})
    path = folder / "data.json"
    path.write_text(json.dumps(samples))
    return path


def run_of(case: Case, folder: Path) -> TrainConfig:
    """Return the run of a case; its files are written."""
    return TrainConfig(
        name=case.name,
        model=ModelOptions(
            path=str(write_model(case, folder)),
            vision_tower=str(TOWER),
            select_layer=-2,
            projector_type="mlp2x_gelu",
        ),
        data=DataOptions(
            path=str(write_data(case, folder)),
            image_folder=str(PICTURES),
            packing=case.packing,
            order="random",
            max_length=2048,
            num_workers=0,
        ),
        stage=StageOptions(name=case.stage),  # type: ignore[arg-type]
        optimizer=OptimizerOptions(name=case.optimizer),  # type: ignore[arg-type]
        run=RunOptions(
            output_dir=str(folder / "run"),
            global_batch=case.global_batch,
            micro_batch=None if case.packing else case.global_batch,
            micro_tokens=case.micro_tokens if case.packing else None,
            gradient_checkpointing=case.checkpointing,
            precision="float32",
            device="cpu",
            threads=1,
            save_steps=0,
            probe_samples=0,
            legacy_files=False,
        ),
    )


def train_here(recipe: str) -> None:
    """Train in this process, and print peak memory and processor times as JSON."""
    from llava.train import trainer
    from llava.train.recipe import load_recipe
    from llava.train.run_log import RunLog

    times = [time.process_time()]

    class TimedLog(RunLog):
        def step(self, record: Any) -> dict[str, float]:
            times.append(time.process_time())
            return super().step(record)

    vars(trainer)["RunLog"] = TimedLog
    trainer.train(load_recipe(recipe))
    steps = [after - before for before, after in itertools.pairwise(times)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    say(json.dumps({"peak": peak, "steps": steps}))


def measure(config: TrainConfig, folder: Path) -> Measured:
    """Train in a fresh process; raises CalledProcessError with its output when it fails."""
    from llava.train.recipe import dump_recipe

    recipe = folder / "recipe.yaml"
    recipe.write_text(dump_recipe(config))
    done = subprocess.run(
        [sys.executable, "-m", "bench.plan", "--child", str(recipe)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
    done.check_returncode()
    found = json.loads(done.stdout.splitlines()[-1])
    return Measured(found["peak"], statistics.median(found["steps"][NUM_WARM:]))


def predicted(config: TrainConfig, machine: Machine) -> Prediction:
    """Predict a run whose model and data are written."""
    shapes = find_shapes(config.model)
    return predict(config, machine, shapes, find_lengths(config, shapes), peak_share=1.0)


def cpu(reserved: int = 0, rate: float = 1e9, update: float | None = None) -> Machine:
    """Return this machine as one process of it; rate: FLOP/s that a run reaches."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine("cpu", 1, memory, rate, is_cpu=True, reserved=reserved, update_bytes_per_s=update)


def update_rate() -> float:
    """Return the bytes a second that AdamW's update moves on one thread, by processor time."""
    weights = [torch.nn.Parameter(torch.randn(1 << 22)) for _ in range(4)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW(weights)
    optimizer.step()
    begin = time.process_time()
    for _ in range(3):
        optimizer.step()
    return 3 * 28 * 4 * (1 << 22) / (time.process_time() - begin)


def calibrate(work: Path) -> Machine:
    """Measure the machine by a run that is not compared."""
    torch.set_num_threads(1)
    update = update_rate()
    folder = work / CALIBRATION.name
    folder.mkdir()
    config = run_of(CALIBRATION, folder)
    got = measure(config, folder)
    plan = predicted(config, cpu(update=update))
    in_update = 28 * plan.counts.trained / update
    reached = plan.hours.computed_flops / plan.hours.num_steps / max(got.step_s - in_update, 1e-3)
    return cpu(got.peak - plan.memory.peak, reached, update)


def rows_of(
    cases: Sequence[Case], machine: Machine, work: Path
) -> Iterator[tuple[Case, Prediction, Measured]]:
    """Train and predict each case."""
    for case in cases:
        folder = work / case.name
        folder.mkdir()
        config = run_of(case, folder)
        prediction = predicted(config, machine)
        yield case, prediction, measure(config, folder)


def report(cases: Sequence[Case], work: Path) -> None:
    """Print the table."""
    machine = calibrate(work)
    say(f"a process without a model {machine.reserved / GIB:.2f} GiB; {machine.peak_flops or 0:.3g} FLOP/s")
    head = (
        f"{'run':<14}{'peak: said':>11}{'got':>8}{'error':>8}{'above base':>12}{'step: said':>12}{'got':>8}"
    )
    say(head + f"{'error':>8}  MiB, processor seconds")
    errors: dict[str, list[float]] = {"peak memory": [], "memory above base": [], "step time": []}
    for case, plan, got in rows_of(cases, machine, work):
        said, step_s = plan.memory.peak, plan.hours.step_s or 0.0
        peak = said / got.peak - 1
        above = (said - machine.reserved) / max(got.peak - machine.reserved, 1) - 1
        step = step_s / got.step_s - 1
        for name, value in zip(errors, (peak, above, step), strict=True):
            errors[name].append(abs(value))
        say(
            f"{case.name:<14}{said / 2**20:>11.0f}{got.peak / 2**20:>8.0f}{peak:>8.0%}{above:>12.0%}"
            f"{step_s:>12.2f}{got.step_s:>8.2f}{step:>8.0%}  {plan.memory.peak_moment}"
        )
    for name, values in errors.items():
        say(f"{name}: error median {statistics.median(values):.0%}, worst {max(values):.0%}")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="folder for models and runs; default: a temporary one")
    parser.add_argument("--only", nargs="+", help="names of configurations")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        train_here(args.child)
        return
    cases = [case for case in CASES if args.only is None or case.name in args.only]
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        report(cases, Path(folder))


if __name__ == "__main__":
    main()
