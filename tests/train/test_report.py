"""report.html: everything a run was, from its three files alone, safe to open and light at any length."""

from __future__ import annotations

import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from llava.data.mixture import open_paths
from llava.data.policy import BadSample
from llava.data.scan import Scan
from llava.train.metrics import LossSums, StepRecord
from llava.train.report import main, read_run, write_report
from llava.train.report_charts import MAX_POINTS, Point, Series, line_chart, number, smooth, thin, ticks
from llava.train.run_facts import NUM_BINS, data_facts
from llava.train.run_log import RunLog
from llava.train.telemetry import Telemetry

EVIL = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>&amp;"
VOID = {"meta", "img", "br", "line", "circle", "rect", "polyline"}


class Page(HTMLParser):
    """Collects a page's tags, attributes and text, and fails where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def record(step: int, **fields: Any) -> StepRecord:
    values: dict[str, Any] = {
        "loss": 3.0 / step,
        "learning_rate": 1e-4,
        "grad_norm": 2.0,
        "num_tokens": 1000,
        "num_targets": 300,
        "num_samples": 8,
        "seconds": 0.5,
        "data_wait_s": 0.1,
        "compute_s": 0.4,
        "peak_memory_bytes": 3 * 2**30,
        "loss_by_source": {"vqa": (2.0, 1), "text": (1.0, 1)},
        "learning_rates": {"projector": 1e-3, "language_model": 1e-4},
    }
    return StepRecord(step, **values | fields)


def answer(**fields: Any) -> dict[str, Any]:
    values = {
        "id": "q1",
        "source": "vqa",
        "where": "x.json item 1",
        "question": "What is it?",
        "expected": "A horse.",
        "got": "A cow.",
        "is_equal": False,
        "thumbnails": ["data:image/jpeg;base64,AAAA"],
    }
    return {**values, **fields}


def make_run(folder: Path, *, steps: int = 20, text: str = "") -> RunLog:
    log = RunLog(folder, telemetry=Telemetry(window=10, num_workers=1))
    log.resume(0)
    log.describe(
        recipe={
            "name": "horses" + text,
            "model": {"path": "base" + text},
            "run": {"seed": 7, "output_dir": "x"},
        },
        data={
            "num_samples": 160,
            "num_truncated": 5,
            "lengths": {"edges": [0, 10, 20], "text": [3, 4], "picture": [0, 9]},
            "sources": [{"name": "vqa" + text, "samples": 160, "bad": 2}],
            "bad": [{"where": "x.json item 7", "why": "no picture" + text}],
        },
        machine={"device": "CPU" + text, "num_devices": 2},
        learns={"parts": [{"part": "projector" + text, "trained": 12345, "parameters": 12345}]},
    )
    for step in range(1, steps + 1):
        log.step(record(step))
        if step % 10 == 0:
            losses = LossSums()
            losses.add_sum("vqa" + text, 6.0 / step, 2)
            losses.add_sum("text", 5.0, 2)
            log.validation(step, losses)
            log.probe(step, [answer(got=f"cow {step}{text}", question="What is it?" + text)])
    log.warn("two pictures are missing" + text)
    return log


def page_of(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_tells_recipe_data_curves_validation_cost_samples_and_warnings(tmp_path: Path) -> None:
    make_run(tmp_path).close()
    page = page_of(tmp_path)
    for expected in (
        "horses",
        "finished",
        "Warnings",
        "two pictures are missing",
        "data wait 20%: raise data.num_workers (now 1)",
        "What is it?",
        "A horse.",
        "cow 20",
        "cow 10",
        "Loss by source",
        "Learning rate",
        "Gradient norm before clipping",
        "Useful tokens per second",
        "Validation",
        "Tokens of a sample",
        "no picture",
        "3.00 GiB",
        "12,345",
        "output_dir",
        "of it in the steps that count",
    ):
        assert expected in page.text, expected
    assert page.tags.count("svg") == 7
    assert ("src", "data:image/jpeg;base64,AAAA") in page.attributes


def test_totals_are_sums_over_the_steps(tmp_path: Path) -> None:
    make_run(tmp_path, steps=20).close()
    text = page_of(tmp_path).text
    assert "2000/s20k in all" in text  # 20 000 useful tokens in 10 s
    assert "10 s2 process(es)" in text


def test_whatever_the_files_hold_is_shown_as_text_and_nothing_is_loaded(tmp_path: Path) -> None:
    log = make_run(tmp_path, text=EVIL)
    log.probe(20, [answer(thumbnails=["javascript:alert(1)", "data:image/svg+xml;base64,AAAA", EVIL, 7])])
    log.close(EVIL)
    page = page_of(tmp_path)
    assert EVIL in page.text
    assert not {"script", "iframe", "object", "link", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("href", "src")]
    html = (tmp_path / "report.html").read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"url\(|@import|https?://", html)


def test_every_chart_is_sound_xml(tmp_path: Path) -> None:
    make_run(tmp_path, text=EVIL).close()
    html = write_report(tmp_path).read_text()
    charts = re.findall(r"<svg.*?</svg>", html, re.S)
    assert len(charts) == 7
    for chart in charts:
        root = ElementTree.fromstring(chart)
        places = [
            float(value)
            for line in root.iter("polyline")
            for value in re.findall(r"[-\d.]+", line.attrib["points"])
        ]
        assert all(0 <= place <= 520 for place in places)


def test_a_hundred_thousand_steps_make_a_small_page_that_keeps_the_spike(tmp_path: Path) -> None:
    line = '{"step": %d, "loss": %s, "grad_norm": 1.0, "seconds": 0.1, "num_tokens": 9}\n'
    with (tmp_path / "metrics.jsonl").open("w") as stream:
        for step in range(1, 100_001):
            stream.write(line % (step, 25.0 if step == 61_803 else 1.0 + (step % 7) / 10))
    begin = time.perf_counter()
    path = write_report(tmp_path)
    assert time.perf_counter() - begin < 30
    assert path.stat().st_size < 300_000
    columns = read_run(tmp_path).columns
    assert columns.num_steps == 100_000
    assert columns.total("num_tokens") == 900_000


def test_thinning_keeps_ends_and_extremes_in_order() -> None:
    curve = [Point(x, float(x % 10)) for x in range(5000)]
    curve[1234] = Point(1234, 99.0)
    curve[4321] = Point(4321, -99.0)
    kept = thin(curve)
    assert len(kept) <= MAX_POINTS
    assert kept[0] == curve[0]
    assert kept[-1] == curve[-1]
    assert {curve[1234], curve[4321]} <= set(kept)
    assert [point.x for point in kept] == sorted(point.x for point in kept)
    assert thin(curve[:MAX_POINTS]) == curve[:MAX_POINTS]


def test_a_report_can_be_made_of_a_run_that_was_killed(tmp_path: Path) -> None:
    log = make_run(tmp_path / "run")
    killed = shutil.copytree(tmp_path / "run", tmp_path / "killed")
    log.close()
    with (killed / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 21, "lo')
    assert read_run(killed).columns.num_steps == 20
    assert "still running, or killed" in page_of(killed).text


def test_a_report_needs_nothing_but_the_steps(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": null, "learning_rate": 0.1, "grad_norm": 1}\n'
    )
    assert tmp_path.name in page_of(tmp_path).text
    (tmp_path / "metrics.jsonl").write_text("")
    assert tmp_path.name in page_of(tmp_path).text


def test_sessions_are_told_apart_and_repeated_validations_counted_once(tmp_path: Path) -> None:
    make_run(tmp_path, steps=20).close("stopped")
    log = RunLog(tmp_path)
    log.resume(10)
    for step in range(11, 31):
        log.step(record(step))
    losses = LossSums()
    losses.add_sum("vqa", 1.0, 1)
    log.validation(10, losses)
    log.close()
    run = read_run(tmp_path)
    assert [(one.first_step, one.outcome) for one in run.sessions] == [(0, "stopped"), (10, "finished")]
    assert [event["step"] for event in run.events_of("validation")] == [10]
    assert run.events_of("validation")[0]["loss"] == 1.0
    assert run.columns.num_steps == 30


def test_the_command_writes_the_page_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path).close()
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert main([str(tmp_path / "elsewhere")]) == 2
    assert "Name the output folder of a training run" in capsys.readouterr().err


def test_a_spike_makes_the_chart_logarithmic() -> None:
    flat = [Point(x, 1.0 + x / 100) for x in range(50)]
    assert "logarithmic" not in line_chart([Series("a", flat)], title="Loss", can_be_log=True)
    assert "logarithmic" in line_chart(
        [Series("a", [*flat, Point(50, 500.0)])], title="Loss", can_be_log=True
    )
    assert line_chart([Series("a", [])], title="Loss") == ""


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 127, [0, 50, 100]),
        (2.1, 2.1, [2.1]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_axes_have_round_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_numbers_are_short() -> None:
    values = (4e20, 0.0, 1234.0, 48_000_000.0, 12_500.0, 2e-5, float("nan"), 0.27912)
    assert [number(value) for value in values] == [
        "400E",
        "0",
        "1234",
        "48M",
        "12.5k",
        "2e-05",
        "-",
        "0.2791",
    ]


def test_the_running_mean_is_unbiased_and_follows() -> None:
    assert [point.y for point in smooth([Point(x, 5.0) for x in range(30)])] == pytest.approx([5.0] * 30)
    step = smooth([Point(x, 0.0 if x < 50 else 1.0) for x in range(100)])
    assert step[49].y == 0
    assert step[99].y > 0.99


def test_the_data_is_described_as_it_was_scanned(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"id": "1", "conversations": []}, {"id": "2"}, {"id": "3"}]')
    second = tmp_path / "b.json"
    second.write_text('[{"id": "4"}]')
    mixture = open_paths(f"{path},{second}")
    scan = Scan(
        tokens=np.array([700, 0, 20, 64], dtype=np.int32),
        targets=np.array([10, 0, 5, 6], dtype=np.int32),
        pictures=np.array([1, 0, 0, 2], dtype=np.int32),
        words=np.zeros(4, dtype=np.int32),
        is_usable=np.array([True, False, True, True]),
        is_truncated=np.array([True, False, False, False]),
        is_masked=np.zeros(4, dtype=bool),
        bad=(BadSample(1, "2", "a", "a.json item 2", "no turns"),),
    )
    facts = data_facts(scan, mixture)
    assert (facts["num_samples"], facts["num_usable"], facts["num_tokens"]) == (4, 3, 784)
    assert facts["bad"] == [{"where": "a.json item 2", "why": "no turns"}]
    assert [(one["name"], one["samples"], one["tokens"], one["bad"]) for one in facts["sources"]] == [
        ("a", 3, 720, 1),
        ("b", 1, 64, 0),
    ]
    lengths = facts["lengths"]
    assert sum(lengths["text"]) == 1
    assert sum(lengths["picture"]) == 2
    assert len(lengths["edges"]) <= NUM_BINS + 2
    assert lengths["edges"][-1] > 700
    assert torch.tensor(lengths["edges"]).diff().unique().numel() == 1
