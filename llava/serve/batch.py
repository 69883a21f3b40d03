"""Many pictures, one answer each: a folder or a JSONL in, a JSONL out, resumable.

    folder   every picture in it (and below), sorted by name, with the one prompt; its id is its relative path
    JSONL    {"id"?, "image" | "images", "prompt" | "text"}; a missing id is the line number

The output holds one record a question, appended as it is answered:
    {"id", "prompt", "images", "answer", "finish_reason", "num_prompt_tokens", "num_new_tokens"}
or, where the picture or the prompt is bad, {"id", "prompt", "images", "error": {"code", "cause"}}.
Beside it, OUTPUT.settings.json says which model and settings made it; a run with others is refused. The same
command again answers what is missing and tries errors again; of several records of an id the last counts.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.command import note
from llava.engine.each import ERRORS_OF_ONE, Tally, answer_each, failure_record
from llava.engine.request import Answer, Request, SamplingParams
from llava.errors import DataError, FileError, UsageError
from llava.files import append_jsonl, read_jsonl, write_json
from llava.journal import check_settings, cut_torn_line, settings_path
from llava.serve.answering import Engine, check_text
from llava.serve.session import OpenPicture

PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif")
)
JobId = str | int


@dataclass(frozen=True)
class Job:
    """One question of a batch."""

    id: JobId
    prompt: str
    images: tuple[str, ...]
    """Paths and URLs as the input has them."""
    paths: tuple[str, ...]
    """The same, as they are opened."""

    def record(self, **result: object) -> dict[str, Any]:
        """Return the output record with `result`."""
        return {"id": self.id, "prompt": self.prompt, "images": list(self.images), **result}


def read_jobs(source: Path, *, prompt: str | None, image_folder: Path | None) -> list[Job]:
    """Read what is to be asked; raises UsageError, FileError, DataError naming the line."""
    if source.is_dir():
        if prompt is None:
            raise UsageError(
                f"{source} is a folder of pictures and there is no question", remedy="Give it with -p."
            )
        return list(_jobs_of_folder(source, prompt))
    jobs = list(_jobs_of_jsonl(source, prompt, image_folder or source.parent))
    seen: set[JobId] = set()
    for job in jobs:
        if job.id in seen:
            raise DataError(
                f"{source}: id {job.id!r} appears twice", remedy="Give every line an id of its own."
            )
        seen.add(job.id)
    if not jobs:
        raise DataError(
            f"{source} holds no questions", remedy='Write lines like {"image": ..., "prompt": ...}.'
        )
    return jobs


def _jobs_of_folder(folder: Path, prompt: str) -> Iterator[Job]:
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
    )
    if not paths:
        raise UsageError(
            f"{folder} holds no pictures", remedy=f"Looked for {', '.join(sorted(PICTURE_SUFFIXES))}."
        )
    for path in paths:
        # A name that is not UTF-8 cannot be written as it is.
        name = os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")
        yield Job(name, prompt, (name,), (str(path),))


def _jobs_of_jsonl(source: Path, prompt: str | None, image_folder: Path) -> Iterator[Job]:
    for number, value in read_jsonl(source):
        where = f"{source} line {number}"
        if not isinstance(value, dict):
            raise DataError(
                f"{where} is not an object", remedy='Write lines like {"image": ..., "prompt": ...}.'
            )
        question = value.get("prompt", value.get("text", prompt))
        if not isinstance(question, str) or not question.strip():
            raise DataError(f'{where} has no "prompt"', remedy="Add it, or give one for all lines with -p.")
        identity = value.get("id", value.get("question_id", number))
        if isinstance(identity, bool) or not isinstance(identity, str | int):
            raise DataError(f"{where}: id is {identity!r}", remedy="Give a text or a whole number.")
        images = _images_of(value, where)
        for text in (question, str(identity), *images):
            check_text(text, where=where)
        paths = tuple(_located(image, image_folder) for image in images)
        yield Job(identity, question, tuple(_named(image) for image in images), paths)


def _images_of(value: dict[str, Any], where: str) -> tuple[str, ...]:
    if "images" not in value and "image" not in value:
        # Silence would hide a misspelt key, and the model would answer about nothing.
        raise DataError(f'{where} has no "image"', remedy='Add it; "images": [] asks without a picture.')
    images = value.get("images", value.get("image"))
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise DataError(f"{where}: images are {images!r}", remedy="Give a path or a list of paths.")
    return tuple(images)


def _located(image: str, folder: Path) -> str:
    return image if "://" in image or image.startswith("data:") else str(folder / image)


def _named(image: str) -> str:
    """Return what stands for a picture in the output: its path, or a hash where the input holds its bytes."""
    if not image.startswith("data:"):
        return image
    return f"data:sha256,{hashlib.sha256(image.encode()).hexdigest()}"


class AnswerFile:
    """The output of a batch: what it already holds, and how it grows."""

    def __init__(self, path: Path, settings: dict[str, object]) -> None:
        """Open an answer file to be made with `settings`; nothing is written yet.

        Raises UsageError when it was made with others, FileError when it cannot be read.
        """
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no plain file", remedy="Give another --output.")
        self.path = path
        self._settings = settings
        self._settings_path = settings_path(path)
        self._records: dict[JobId, dict[str, Any]] = {}
        if path.exists() and path.stat().st_size:
            check_settings(path, settings)
            if cut_torn_line(path):
                note(f"{path}: the last line is unfinished and is dropped")
            for number, record in read_jsonl(path):
                if not isinstance(record, dict) or "id" not in record:
                    raise FileError(f"{path} line {number} is not an answer", remedy="Give another --output.")
                self._records[record["id"]] = record

    def is_answered(self, job: Job) -> bool:
        """Whether `job` has its answer; raises UsageError when its id belongs to another question."""
        record = self._records.get(job.id)
        if record is None:
            return False
        if record.get("prompt") != job.prompt or record.get("images") != list(job.images):
            raise UsageError(
                f"{self.path} answers another question under id {job.id!r}", remedy="Give another --output."
            )
        return "answer" in record

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; an error that is already there is not repeated."""
        if self._records.get(record["id"]) == record:
            return
        if not self._settings_path.exists() or not self._records:
            write_json(self._settings_path, self._settings)
        append_jsonl(self.path, record)
        self._records[record["id"]] = record


def run_batch(
    engine: Engine,
    jobs: Sequence[Job],
    output: AnswerFile,
    *,
    sampling: SamplingParams,
    open_picture: OpenPicture,
    batch_size: int,
) -> Tally:
    """Answer the jobs that `output` does not hold, `batch_size` at a time, with a progress bar on stderr.

    Ctrl-C ends it; what was answered is kept, and the tally says that it was interrupted.
    """
    missing = [job for job in jobs if not output.is_answered(job)]
    tally = Tally(num_jobs=len(jobs), num_skipped=len(jobs) - len(missing))
    # Where stderr is a log and no terminal, a line now and then is enough.
    interval_s = 0.2 if sys.stderr.isatty() else 10.0
    with tqdm(total=len(jobs), initial=tally.num_skipped, unit="answer", mininterval=interval_s) as bar:
        try:
            for begin in range(0, len(missing), batch_size):
                batch = missing[begin : begin + batch_size]
                for record in _answer_batch(engine, batch, sampling, open_picture):
                    output.write(record)
                    tally.count(record["id"], is_failed="error" in record)
                    bar.update(1)
        except KeyboardInterrupt:
            tally.is_interrupted = True
    return tally


def _answer_batch(
    engine: Engine, batch: Sequence[Job], sampling: SamplingParams, open_picture: OpenPicture
) -> Iterator[dict[str, Any]]:
    requests: list[tuple[Job, Request]] = []
    for job in batch:
        try:
            images = [open_picture(path).image for path in job.paths]
        except ERRORS_OF_ONE as error:
            yield job.record(**failure_record(error))
        else:
            requests.append((job, Request.of_question(job.prompt, images, sampling)))
    if not requests:
        return
    outcomes = answer_each(engine, [request for _, request in requests], batch_size=len(requests))
    for (job, _), outcome in zip(requests, outcomes, strict=True):
        yield job.record(**(_success(outcome) if isinstance(outcome, Answer) else failure_record(outcome)))


def _success(answer: Answer) -> dict[str, object]:
    return {
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "num_prompt_tokens": answer.num_prompt_tokens,
        "num_new_tokens": answer.num_new_tokens,
    }
