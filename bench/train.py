"""How fast training is, against the original's way and against transformers' Trainer.

    python -m bench.train [--pairs 8] [--only throughput|frozen|start|wait]

throughput  Useful tokens per second, forward and backward: rows padded, masked, loss over the whole
            vocabulary (the original's way) and samples packed, attention inside each, head at supervised
            positions. A 100M language model scaled by a third in depth and vocabulary; lengths as measured
            for LLaVA's mix: text lognormal (median 130, sigma 0.8, 40 to 600 tokens), 256 more in three of
            five samples, 22 % of the text supervised. The two take turns on the same batches.
frozen      A step of `align` (projector only) beside one of `finetune`: time, and memory of gradients.
start       From the command to the first step, and peak memory, for the tiny recorded run: ours and Trainer,
            in wall time and, since the machine may be busy, in CPU time.
wait        The share of a step in which a trainer on one thread waits for data, with one loader process and
            with none: 30 steps of a small model on COCO-sized JPEG files, over the 5 % that a run may lose.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from bench.faults import CHECKPOINTS, RUNS, command
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.data.batch import Batch, Example
from llava.data.collator import collate_packed, collate_padded
from llava.model.builder import new_model
from llava.model.modeling import LlavaForCausalLM
from llava.model.packed_attention import use_packed_attention
from llava.model.saving import save_checkpoint
from llava.processing.pixels import clip_rules
from llava.processing.tokenizer import load_tokenizer
from llava.train.forward import TrainingModel

IMAGE_SIZE = 256
NUM_IMAGE_TOKENS = 256
VOCABULARY = 10_667
SUPERVISED_SHARE = 0.22
LANGUAGE = {
    "model_type": "llava",
    "vocab_size": VOCABULARY,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 2048,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -1,
    "mm_hidden_size": 384,
}
TOWER = {
    "model_type": "intern_vit_6b",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "image_size": IMAGE_SIZE,
    "patch_size": 16,
    "qk_normalization": True,
    "qkv_bias": False,
}


def draw_batch(generator: np.random.Generator, size: int = 4) -> list[Example]:
    """Draw samples of the length mix."""
    examples = []
    for number in range(size):
        length = int(np.clip(generator.lognormal(np.log(130), 0.8), 40, 600))
        text = generator.integers(3, VOCABULARY, length).tolist()
        has_picture = bool(generator.random() < 0.6)
        ids = [1, *([IMAGE_TOKEN_INDEX] if has_picture else []), *text]
        num_trained = max(1, int(length * SUPERVISED_SHARE))
        labels = [IGNORE_INDEX] * (len(ids) - num_trained) + ids[-num_trained:]
        pixels = torch.zeros(int(has_picture), 3, IMAGE_SIZE, IMAGE_SIZE)
        examples.append(Example(number, str(number), "bench", ids, labels, pixels))
    return examples


def train_originally(model: LlavaForCausalLM, batch: Batch) -> None:
    """Forward and backward as the original: every padded position, the whole vocabulary."""
    output = model(
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values if len(batch.pixel_values) else None,
        attention_mask=batch.attention_mask,
        labels=batch.labels,
        use_cache=False,
    )
    output.loss.backward()


def train_packed(training: TrainingModel, batch: Batch) -> None:
    """Forward and backward as our trainer does by default."""
    (training(batch).total / batch.num_targets).backward()


def seconds(work: Callable[[], None], model: torch.nn.Module) -> float:
    """Return the CPU seconds of one call; gradients are dropped before it."""
    model.zero_grad(set_to_none=True)
    begin = time.process_time()
    work()
    return time.process_time() - begin


def throughput(pairs: int) -> None:
    """Print both ways' useful tokens per second and the median ratio."""
    model = new_model(LANGUAGE, TOWER, image_size=IMAGE_SIZE, seed=0)
    model.model.vision_tower.requires_grad_(False)
    use_packed_attention(model.model.language_model)
    training = TrainingModel(model, image_size=IMAGE_SIZE)
    generator = np.random.default_rng(0)
    ours, theirs, tokens, padding = [], [], [], []
    for number in range(pairs + 1):
        examples = draw_batch(generator)
        padded = collate_padded(examples, num_image_tokens=NUM_IMAGE_TOKENS, pad_id=0)
        packed = collate_packed(examples, num_image_tokens=NUM_IMAGE_TOKENS)
        took = [
            seconds(functools.partial(train_originally, model, padded), model),
            seconds(functools.partial(train_packed, training, packed), model),
        ]
        if number == 0:  # warm-up
            continue
        theirs.append(packed.num_tokens / took[0])
        ours.append(packed.num_tokens / took[1])
        tokens.append(packed.num_tokens)
        padding.append(1 - packed.num_tokens / padded.input_ids.numel())
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    print(f"throughput, {pairs} batches of 4, {statistics.mean(padding):.0%} padding, 1 thread, CPU time")
    print(f"  padded, masked, whole vocabulary   {statistics.median(theirs):7.0f} useful tokens/s")
    print(f"  packed, supervised positions       {statistics.median(ours):7.0f} useful tokens/s")
    print(
        f"  ratio: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}", flush=True
    )


def frozen(pairs: int) -> None:
    """Print what freezing saves in time and gradient memory."""
    model = new_model(LANGUAGE, TOWER, image_size=IMAGE_SIZE, seed=0)
    use_packed_attention(model.model.language_model)
    generator = np.random.default_rng(1)
    projector = {id(p) for p in model.model.multi_modal_projector.parameters()}
    vision = {id(p) for p in model.model.vision_tower.parameters()}
    stages: dict[str, Callable[[int], bool]] = {
        "everything": lambda _: True,
        "finetune": lambda name: name not in vision,
        "align": lambda name: name in projector,
    }
    times: dict[str, list[float]] = {name: [] for name in stages}
    memory: dict[str, float] = {}
    for _ in range(pairs + 1):
        batch = collate_packed(draw_batch(generator), num_image_tokens=NUM_IMAGE_TOKENS)
        for name, learns in stages.items():
            for parameter in model.parameters():
                parameter.requires_grad_(learns(id(parameter)))
            training = TrainingModel(model, image_size=IMAGE_SIZE)
            times[name].append(seconds(functools.partial(train_packed, training, batch), model))
            grads = [p.grad.nbytes for p in model.parameters() if p.grad is not None]
            memory[name] = sum(grads) / 2**20
    print("frozen parts, forward and backward")
    for name, values in times.items():
        print(f"  {name:<12} {statistics.median(values[1:]):6.2f} s   {memory[name]:7.1f} MiB of gradients")
    sys.stdout.flush()


TRAINER = """
import json, sys, torch
from transformers import Trainer, TrainingArguments
from llava.data.collator import collate_padded
from llava.data.mixture import open_paths
from llava.train.building import build
from llava.train.config import DataOptions, ModelOptions, StageOptions
from llava.train.feeding import make_encoder
from llava.train.stages import apply_stage
spec = json.loads(sys.argv[1])
trainee = build(ModelOptions(**spec["model"]), StageOptions(), aspect="pad", max_length=512,
                device="cpu", compute_dtype=torch.float32, seed=0)
apply_stage(trainee, StageOptions())
data = open_paths(spec["data"], image_folder=spec["images"])
encoder = make_encoder(trainee, DataOptions(path=spec["data"], max_length=512))
def collate(examples):
    batch = collate_padded(examples, num_image_tokens=trainee.num_image_tokens, pad_id=0)
    pictures = batch.pixel_values if len(batch.pixel_values) else None
    return {"input_ids": batch.input_ids, "labels": batch.labels, "attention_mask": batch.attention_mask,
            **({} if pictures is None else {"pixel_values": pictures})}
samples = [encoder.example(index, data[index]) for index in range(len(data)) if data[index].images]
arguments = TrainingArguments(output_dir=spec["out"], use_cpu=True, max_steps=1, report_to=[],
                              disable_tqdm=True, per_device_train_batch_size=4, save_strategy="no",
                              remove_unused_columns=False)
Trainer(trainee.model, arguments, train_dataset=samples, data_collator=collate).train()
"""


def start(pairs: int) -> None:
    """Print wall time from command to the first step and peak memory, ours and Trainer's in turns."""
    rows: dict[str, list[tuple[float, float, float]]] = {"llava": [], "transformers' Trainer": []}
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as work:
            argv = [*command("finetune", Path(work) / "run"), "--max_steps", "1", "--save_steps", "1000"]
            rows["llava"].append(_measure(argv))
            model = {
                "path": argv[argv.index("--model_name_or_path") + 1],
                "vision_tower": argv[argv.index("--vision_tower") + 1],
                "select_layer": -4,
                "projector_type": "mlp2x_gelu",
            }
            data = RUNS / "finetune-data"
            spec = {"model": model, "data": f"{data}/data.json", "images": f"{data}/images", "out": work}
            rows["transformers' Trainer"].append(_measure([sys.executable, "-c", TRAINER, json.dumps(spec)]))
    print("from the command to the end of one step of the tiny model")
    for name, values in rows.items():
        wall, busy, peak = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"  {name:<22} {wall:6.1f} s   {busy:6.1f} s of CPU   {peak:6.0f} MiB peak")
    sys.stdout.flush()


WAIT_STEPS = 30
WAIT_BATCH = 4
WAIT_SIZE = 336
PICTURE = (640, 480)
"""Width and height of most pictures of COCO."""


def wait(_: int) -> None:
    """Print which share of a step the trainer waits for data."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        _write_model(work / "model")
        _write_data(work, num_samples=WAIT_STEPS * WAIT_BATCH)
        print(f"waiting for data, 1 thread, {WAIT_STEPS} steps of {WAIT_BATCH} JPEG files of 640 x 480")
        for num_workers in (1, 0):
            steps = _steps_of_run(work, num_workers)[2:]
            shares = [step["data_wait_share"] for step in steps]
            seconds_each = statistics.median(step["seconds"] for step in steps)
            print(
                f"  {num_workers} loader process(es): mean {statistics.mean(shares):6.2%}, most "
                f"{max(shares):6.2%} of steps of {seconds_each:.2f} s",
                flush=True,
            )


def _write_model(folder: Path) -> None:
    """Write a model with the tiny fixtures' tokenizer."""
    language = {**LANGUAGE, "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 688}
    language |= {"num_attention_heads": 4, "num_key_value_heads": 4, "mm_hidden_size": 192}
    tower = {**TOWER, "hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3}
    tower |= {"image_size": WAIT_SIZE, "patch_size": 14}
    save_checkpoint(
        folder,
        model=new_model(language, tower, image_size=WAIT_SIZE, seed=0),
        tokenizer=load_tokenizer(CHECKPOINTS / "vicuna-f-base"),
        rules=clip_rules(WAIT_SIZE),
        template="v1",
    )


def _write_data(folder: Path, *, num_samples: int) -> None:
    """Write pictures with as much detail as photographs, and a question about each."""
    generator = np.random.default_rng(0)
    samples = []
    for number in range(num_samples):
        coarse = Image.fromarray(generator.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        photo = np.asarray(coarse.resize(PICTURE, Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = photo + generator.normal(0, 12, photo.shape)
        path = folder / f"{number}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        turns = [{"from": "human", "value": "<image>\nWhat is in the image?"}]
        turns.append({"from": "gpt", "value": " ".join(["The model is red and large."] * 6)})
        samples.append({"id": str(number), "image": path.name, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(samples))


def _steps_of_run(work: Path, num_workers: int) -> list[dict[str, float]]:
    """Train in a process of its own; returns the lines of its metrics.jsonl."""
    output_dir = work / f"run-{num_workers}"
    recipe: dict[str, dict[str, object]] = {
        "model": {"path": str(work / "model")},
        "data": {"path": str(work / "data.json"), "image_folder": str(work), "num_workers": num_workers},
        "run": {"global_batch": WAIT_BATCH, "max_steps": WAIT_STEPS, "output_dir": str(output_dir)},
    }
    recipe["run"] |= {"device": "cpu", "threads": 1, "probe_samples": 0, "save_steps": 0}
    (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    _measure([sys.executable, "-m", "llava.cli", "train", str(work / "recipe.yaml")])
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def _measure(argv: Sequence[str]) -> tuple[float, float, float]:
    """Return (seconds, CPU seconds in user mode, peak MiB) of a child process."""
    probe = (
        "import resource, subprocess, sys, time\n"
        "begin = time.monotonic()\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "sys.stderr.write(done.stderr if done.returncode else '')\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(time.monotonic() - begin, used.ru_utime, used.ru_maxrss / 1024, done.returncode)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", probe, *argv], capture_output=True, text=True, env=environment, check=True
    )
    took, busy, peak, code = done.stdout.split()
    if code != "0":
        raise RuntimeError(done.stderr[-2000:])
    return float(took), float(busy), float(peak)


def main() -> None:
    """Run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--only", choices=["throughput", "frozen", "start", "wait"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = {"throughput": throughput, "frozen": frozen, "start": start, "wait": wait}
    for name, part in parts.items():
        if args.only in (None, name):
            part(args.pairs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this script: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
