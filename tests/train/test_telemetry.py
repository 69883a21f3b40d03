"""Rates, shares, hints and FLOPs: counted, not guessed."""

from __future__ import annotations

import io

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava.train.config import StageOptions
from llava.train.flops import StepFlops, attention_pairs, step_flops
from llava.train.forward import TrainingModel
from llava.train.lora import add_adapters, linear_names
from llava.train.metrics import StepRecord
from llava.train.progress import Progress, duration
from llava.train.telemetry import (
    HINT_INTERVAL,
    Hardware,
    Telemetry,
    find_hardware,
    peak_flops,
    peak_memory_bytes,
)
from tests.train.models import IMAGE_SIZE, packed, random_samples, tiny_model


def record(step: int = 1, **fields: float) -> StepRecord:
    values = {"num_tokens": 300, "num_padded": 100, "num_samples": 4, "seconds": 2.0, "compute_s": 1.9}
    return StepRecord(step, 1.0, 0.1, 1.0, **values | fields)  # type: ignore[arg-type]


def test_padding_is_a_share_of_computed_positions_and_no_useful_token() -> None:
    rates = Telemetry().rates(record())
    assert rates["padding_share"] == 0.25
    assert rates["tokens_per_second"] == 150
    assert rates["samples_per_second"] == 2
    assert rates["compute_share"] == 0.95


def test_a_window_weighs_steps_by_their_time() -> None:
    telemetry = Telemetry(window=2)
    telemetry.rates(record(1, data_wait_s=99.0))  # out of the window
    telemetry.rates(record(2, seconds=1.0, data_wait_s=1.0))
    telemetry.rates(record(3, seconds=3.0, data_wait_s=0.0))
    assert telemetry.averages()["data_wait_share"] == 0.25


def test_mfu_is_the_share_of_all_devices_peak_and_absent_where_none_is_known() -> None:
    flops = StepFlops(per_token=1e12, per_pair=0, per_target=0, per_picture=0)
    known = Telemetry(hardware=Hardware("NVIDIA A100-SXM4-80GB", 2, 312e12), flops=flops)
    assert known.rates(record(num_tokens=312))["mfu"] == pytest.approx(0.25)
    unknown = Telemetry(hardware=Hardware("CPU", 2, None), flops=flops)
    assert "mfu" not in unknown.rates(record())
    assert unknown.rates(record())["flops_per_second"] == 150e12


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A1000", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peaks_are_known_by_whole_names(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_a_cpu_has_memory_in_use_and_no_peak() -> None:
    hardware = find_hardware(torch.device("cpu"), 2)
    assert (hardware.peak_flops, hardware.num_devices, hardware.is_gpu) == (None, 2, False)
    assert 50 * 2**20 < peak_memory_bytes(torch.device("cpu")) < 2**40


@pytest.mark.parametrize(
    ("fields", "packed", "hint"),
    [
        ({"data_wait_s": 0.82}, True, "data wait 41%: raise data.num_workers (now 2)"),
        ({"communication_s": 1.2, "data_wait_s": 0.12}, True, "communication 60%: raise run.micro_tokens"),
        ({"num_padded": 300}, False, "padding 50%: set data.packing true"),
        ({"data_wait_s": 0.02, "num_padded": 0}, True, None),
    ],
)
def test_the_worst_share_of_a_full_window_gives_one_hint(
    fields: dict[str, float], packed: bool, hint: str | None
) -> None:
    telemetry = Telemetry(window=3, num_workers=2, is_packed=packed)
    said = []
    for step in range(1, 5):
        telemetry.rates(record(step, **{"num_padded": 0} | fields))
        said.append(telemetry.hint())
    assert said[0] is said[1] is said[3] is None
    assert said[2] is None if hint is None else (said[2] or "").startswith(hint)


def test_hints_become_rarer() -> None:
    telemetry = Telemetry(window=1)
    steps = []
    for step in range(1, 8 * HINT_INTERVAL):
        telemetry.rates(record(step, data_wait_s=1.0))
        if telemetry.hint():
            steps.append(step)
    assert steps == [1, 1 + HINT_INTERVAL, 1 + 3 * HINT_INTERVAL, 1 + 7 * HINT_INTERVAL]


def flags(model: torch.nn.Module, *parts: str) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))


STAGES = {
    "align": ("multi_modal_projector",),
    "finetune": ("multi_modal_projector", "language_model", "lm_head"),
    "everything": ("",),
    "last tower layer": ("vision_tower.encoder.layer.1", "multi_modal_projector"),
    "positions only": ("position_embedding",),
    "head only": ("lm_head",),
    "lora": ("multi_modal_projector", "lora_"),
    "lora alone": ("lora_",),
}


@pytest.mark.parametrize("stage", list(STAGES))
def test_the_count_is_what_torch_counts(stage: str) -> None:
    model = tiny_model()
    if stage.startswith("lora"):
        names = linear_names(model, ["language_model"])
        add_adapters(model, names, StageOptions(lora_r=4, lora_dropout=0.0), seed=0)
    flags(model, *STAGES[stage])
    samples = random_samples(5)
    batch = packed(samples)
    flops = step_flops(model)
    training = TrainingModel(model, image_size=IMAGE_SIZE)
    with FlopCounterMode(display=False) as counter:
        training(batch).total.backward()
    counted = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    # torch does not count attention itself on the CPU: what it counts are the weights.
    weights = sum(count for op, count in counted.items() if "mm" in op or "conv" in op)
    num_pictures = len(batch.pixel_values)
    tower_learns = any(parameter.requires_grad for parameter in model.model.vision_tower.parameters())
    expected = (
        flops.per_token * batch.num_tokens
        + flops.per_target * batch.num_targets
        + flops.per_picture * num_pictures
        - vision_attention(stage if tower_learns else "frozen") * num_pictures
    )
    assert weights == expected


def vision_attention(stage: str) -> int:
    """FLOPs of a picture in the two layers' attention: width 32, four patches and the class token."""
    layers_with_gradient = {"frozen": 0, "last tower layer": 1}.get(stage, 2)
    return 4 * 32 * 5**2 * (2 + 2 * layers_with_gradient)


def test_attention_counts_what_causal_attention_inside_samples_sees() -> None:
    assert attention_pairs([3, 1]) == 6 + 1
    model = tiny_model()
    flags(model, "")
    # two layers, width 4 heads x 8, forward 4 and backward 8 per pair
    assert step_flops(model).per_pair == 2 * 32 * 12
    flags(model, "lm_head")
    assert step_flops(model).per_pair == 2 * 32 * 4


def test_a_line_comes_every_logging_steps_and_at_both_ends_where_there_is_no_terminal() -> None:
    lines: list[str] = []
    clock = iter(float(second) for second in range(0, 1000, 2))
    progress = Progress(
        25, logging_steps=10, stream=io.StringIO(), write=lines.append, clock=lambda: next(clock)
    )
    for step in range(1, 26):
        progress.step(record(step), {"tokens_per_second": 12345.6, "mfu": 0.314})
    progress.close()
    assert [line.split()[1] for line in lines] == ["1/25", "10/25", "20/25", "25/25"]
    assert lines[1] == "step 10/25  30 s left  loss 1.0000  lr 1.00e-01  norm 1.00  12,346 tok/s  MFU 31%"


def test_the_time_left_follows_the_pace_of_late_steps() -> None:
    now = [0.0]
    progress = Progress(
        1100, first_step=100, stream=io.StringIO(), write=lambda _: None, clock=lambda: now[0]
    )
    for step in range(101, 201):
        now[0] += 100.0 if step == 101 else 1.0
        progress.step(record(step), {})
    assert progress.seconds_left() == pytest.approx(900.0)


def test_a_terminal_has_one_moving_line() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, lines = Terminal(), list[str]()
    progress = Progress(3, stream=terminal, write=lines.append)
    progress.step(record(1), {"tokens_per_second": 10.0})
    progress.say("validation")
    progress.step(record(2), {})
    progress.close()
    assert lines == ["validation"]
    assert "2/3" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.6, "1 min 00 s"), (7, "7 s"), (3725, "1 h 02 min"), (446700, "124 h")]
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
