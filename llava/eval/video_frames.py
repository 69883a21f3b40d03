"""SEED-Bench's videos as pictures: the middle frame of the clip that a question is about.

Which frame it is, and where videos and frames lie, is that of `extract_video_frames.py` in LLaVA's eval.zip.
Frames are counted from 0 in the order in which they are shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from llava.errors import DataError, DependencyError, FileError
from llava.files import atomic_path

if TYPE_CHECKING:
    from PIL import Image

VIDEOS = {
    10: Path("videos/20bn-something-something-v2"),
    11: Path("videos/EPIC-KITCHENS"),
    12: Path("videos/BreakfastII_15fps_qvga_sync"),
}
"""By type of question, the data set with its videos."""
FRAMES = Path("SEED-Bench-video-image")
_WHOLE, _SECONDS, _FRAMES = 10, 11, 12


class Clip(NamedTuple):
    """What a question is about."""

    kind: int
    """Type of the question: 10 asks about a whole video, 11 about seconds, 12 about frames of one."""
    video: Path
    start: float
    end: float
    target: Path
    """Where its frame goes."""


@dataclass
class Extraction:
    """What a run came to."""

    num_written: int = 0
    num_present: int = 0
    """Frames that were there before."""
    failed: dict[str, str] = field(default_factory=dict)
    """By name of the frame, why there is none."""


def clips_of(annotations: Mapping[str, Any], root: Path) -> list[Clip]:
    """Return the clips of all questions about videos; raises DataError naming one that is broken."""
    clips = []
    for record in annotations["questions"]:
        if record["data_type"] != "video":
            continue
        try:
            kind, identity = int(record["question_type_id"]), record["question_id"]
            # EPIC-KITCHENS was unpacked without its folders of people.
            name = str(record["data_id"]).split("/")[-1] if kind == _SECONDS else str(record["data_id"])
            start, end = (0.0, 0.0) if kind == _WHOLE else map(float, record["segment"])
            video = root / VIDEOS[kind] / name
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"question {record.get('question_id')!r} does not say which part of a video it is about: "
                f"{error!r}",
                remedy="Give the SEED-Bench.json of AILab-CVC/SEED-Bench.",
            ) from None
        clips.append(Clip(kind, video, start, end, root / FRAMES / f"{kind}_{identity}.png"))
    return clips


def middle_of(num_frames: int) -> int:
    """Return which of so many frames is taken; raises DataError where there are none."""
    if num_frames < 1:
        raise DataError("the clip holds no frame", remedy="Is the video cut off? Download it again.")
    return (num_frames - 1) // 2


def frame_index(clip: Clip, num_frames: int, frames_per_s: float) -> int:
    """Return which frame of a video is taken for a clip; raises DataError where the clip holds none."""
    if clip.kind == _WHOLE:
        # The original counts one frame less than there are.
        return middle_of(num_frames - 1)
    if clip.kind == _FRAMES:
        start = int(clip.start)
        return start + middle_of(min(int(clip.end), num_frames) - start)
    start, end = (
        int(min(max(second * frames_per_s, 0), num_frames - 1)) for second in (clip.start, clip.end)
    )
    return start + middle_of(end - start)


def read_frame(clip: Clip) -> Image.Image:
    """Decode the frame of a clip as an RGB picture; raises FileError, DataError, DependencyError."""
    av = _av()
    if not clip.video.is_file():
        raise FileError(f"{clip.video} does not exist", remedy="Download the videos of its data set.")
    try:
        times, frames_per_s = _times(av, clip.video)
        wanted = times[frame_index(clip, len(times), frames_per_s)]
        for frame in _frames_from(av, clip.video, wanted):
            image: Image.Image = frame.to_image()
            return image
    except av.FFmpegError as error:
        raise FileError(f"{clip.video} cannot be decoded: {error}") from error
    raise FileError(f"{clip.video} ends before its frame at {wanted}")


def _times(av: Any, path: Path) -> tuple[Sequence[int], float]:
    """Return when each frame is shown, in the stream's unit, in this order; and how many are shown a second.

    Nothing is decoded, unless the packets do not say it.
    """
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise FileError(f"{path} holds no video")
        stream = container.streams.video[0]
        frames_per_s = float(stream.average_rate or 0)
        packets = [packet.pts for packet in container.demux(stream) if packet.size]
    if None not in packets:
        return sorted(packets), frames_per_s
    with av.open(str(path)) as container:
        return [frame.pts for frame in container.decode(video=0)], frames_per_s


def _frames_from(av: Any, path: Path, time: int) -> Iterator[Any]:
    """Yield the frames from a time on; what lies before the key frame in front of it is not decoded."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        container.seek(time, stream=stream, backward=True)
        yield from (
            frame for frame in container.decode(stream) if frame.pts is not None and frame.pts >= time
        )


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise DependencyError.of_extra("av", "eval", "taking frames from videos") from None
    return av


def write_frame(clip: Clip) -> None:
    """Write the frame of a clip; raises what `read_frame` raises."""
    image = read_frame(clip)
    with atomic_path(clip.target) as temporary:
        image.save(temporary, "PNG")


def extract(clips: Sequence[Clip], *, num_threads: int) -> Extraction:
    """Write the frames that are not there yet; a clip that fails costs its own frame.

    Raises DependencyError, and the error of the first clip where all of them fail.
    """
    _av()
    missing = [clip for clip in clips if not clip.target.exists()]
    done = Extraction(num_present=len(clips) - len(missing))
    errors: list[FileError | DataError] = []

    def work(clip: Clip) -> FileError | DataError | None:
        try:
            write_frame(clip)
        except (FileError, DataError) as error:
            return error
        return None

    with ThreadPoolExecutor(num_threads, thread_name_prefix="frames") as pool:
        outcomes = zip(missing, pool.map(work, missing), strict=True)
        for clip, error in tqdm(outcomes, total=len(missing), unit="frame"):
            if error is None:
                done.num_written += 1
            else:
                errors.append(error)
                done.failed[clip.target.name] = str(error)
    if errors and len(errors) == len(clips):
        raise errors[0]
    return done
