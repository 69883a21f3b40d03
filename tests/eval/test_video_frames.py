"""The middle frames of SEED-Bench's videos: which one, where from, where to, and what is said without one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava.errors import DataError
from llava.eval.video_frames import VIDEOS, Clip, clips_of, frame_index, middle_of, read_frame
from llava.files import write_json
from scripts import extract_video_frames

FRAMES_PER_S = 10
STEP = 8
"""Of grey between frames that follow each other; compression keeps them apart."""


def write_video(path: Path, num_frames: int, codec: str = "mpeg4") -> None:
    """Write a video whose frame i has the grey i * STEP, with a key frame each fifth."""
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FRAMES_PER_S)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 32, 16, "yuv420p", 5
        for number in range(num_frames):
            pixels = np.full((16, 32, 3), number * STEP, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def shown_in(image: Image.Image) -> int:
    """Return the number of the frame that a picture is."""
    return round(float(np.asarray(image.convert("L")).mean()) / STEP)


def clip_of(kind: int, start: float = 0, end: float = 0) -> Clip:
    return Clip(kind, Path("video"), start, end, Path("frame.png"))


@pytest.mark.parametrize(
    ("clip", "num_frames", "index"),
    [
        (clip_of(10), 31, 14),
        (clip_of(10), 2, 0),
        (clip_of(11, 1.0, 2.0), 50, 14),
        (clip_of(11, 4.0, 99.0), 50, 44),
        (clip_of(12, 10, 20), 50, 14),
        (clip_of(12, 10, 99), 31, 20),
    ],
)
def test_the_frame_is_the_originals(clip: Clip, num_frames: int, index: int) -> None:
    assert frame_index(clip, num_frames, FRAMES_PER_S) == index


def test_a_clip_without_frames_is_refused() -> None:
    for clip in (clip_of(10), clip_of(11, 3, 3), clip_of(12, 20, 30)):
        with pytest.raises(DataError, match="holds no frame"):
            frame_index(clip, 1, FRAMES_PER_S)
    assert middle_of(1) == 0


@pytest.mark.parametrize(
    ("ending", "codec"),
    [("mp4", "mpeg4"), ("avi", "mpeg4"), ("webm", "libvpx-vp9"), ("mp4", "libx264"), ("mkv", "libvpx")],
)
def test_the_very_frame_is_decoded(tmp_path: Path, ending: str, codec: str) -> None:
    path = tmp_path / f"video.{ending}"
    write_video(path, 30, codec)
    for start in (0, 1, 4, 5, 13, 29):
        image = read_frame(Clip(12, path, start, start + 1, tmp_path / "frame.png"))
        assert (shown_in(image), image.size, image.mode) == (start, (32, 16), "RGB")


def question(number: int, kind: int, name: str, **more: Any) -> dict[str, Any]:
    return {
        "question_id": f"v{number}", "question_type_id": kind, "data_type": "video", "data_id": name, **more
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder seed_bench with a video of each data set."""
    write_video(tmp_path / VIDEOS[10] / "1.mp4", 20)
    write_video(tmp_path / VIDEOS[11] / "P01.mp4", 30)
    write_video(tmp_path / VIDEOS[12] / "P03" / "cam01" / "tea.avi", 30)
    questions = [
        {"question_id": "1", "question_type_id": 1, "data_type": "image", "data_id": "x"},
        question(1, 10, "1.mp4"),
        question(2, 11, "P01/videos/P01.mp4", segment=[1.0, 2.0]),
        question(3, 12, "P03/cam01/tea.avi", segment=[20, 99]),
    ]
    write_json(tmp_path / "SEED-Bench.json", {"questions": questions, "question_type": {}})
    return tmp_path


def test_the_script_writes_where_the_benchmark_looks_and_does_nothing_twice(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    assert extract_video_frames.main([]) == 0
    assert "3 frames written" in capsys.readouterr().out
    frames = root / "SEED-Bench-video-image"
    found = {path.name: shown_in(Image.open(path)) for path in sorted(frames.iterdir())}
    assert found == {"10_v1.png": 9, "11_v2.png": 14, "12_v3.png": 24}
    (frames / "11_v2.png").unlink()
    assert extract_video_frames.main(["--dir", str(root), "--threads", "1"]) == 0
    assert "1 frames written" in capsys.readouterr().out


def test_what_is_missing_or_broken_costs_its_own_frame(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / VIDEOS[10] / "1.mp4").unlink()
    (root / VIDEOS[11] / "P01.mp4").write_bytes(b"no video")
    assert extract_video_frames.main(["--dir", str(root)]) == 1
    said = capsys.readouterr()
    assert "1 frames written" in said.out
    assert "10_v1.png: " in said.err
    assert "1.mp4 does not exist" in said.err
    assert "P01.mp4 cannot be decoded" in said.err
    (root / VIDEOS[12] / "P03" / "cam01" / "tea.avi").unlink()
    (root / "SEED-Bench-video-image" / "12_v3.png").unlink()
    assert extract_video_frames.main(["--dir", str(root)]) == 2, (
        "where nothing can be had, the first says why"
    )


def test_a_question_without_its_part_of_a_video_is_named(tmp_path: Path) -> None:
    for broken in (question(7, 12, "x"), question(7, 13, "x", segment=[0, 1]), {"data_type": "video"}):
        with pytest.raises(DataError, match="does not say which part"):
            clips_of({"questions": [broken]}, tmp_path)


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "SEED-Bench.json", {"questions": [question(1, 10, "1")], "question_type": {}})
    monkeypatch.setitem(sys.modules, "av", None)
    assert extract_video_frames.main(["--dir", str(tmp_path)]) == 2
    assert "pip install 'internvl-chat-llava[eval]'" in capsys.readouterr().err
