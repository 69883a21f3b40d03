"""From data options to the run's micro-batches: open, scan, plan, load.

Place in the flow: `trainer` makes a `Feed` once the model is built; the loop takes `Feed.steps`. Only rank 0
scans; the others read what it kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from llava.data.batch import Batch
from llava.data.loader import Collation, StepBatches, batches
from llava.data.mixture import Mixture, open_data, open_paths
from llava.data.order import Indices
from llava.data.plan import Plan, PlanOptions, make_plan, replay_plan
from llava.data.policy import BadSampleLog
from llava.data.samples import SampleEncoder
from llava.data.scan import Scan, report, scan
from llava.errors import ConfigError
from llava.train.batch_sizes import Batches
from llava.train.config import DataOptions, TrainConfig
from llava.train.parallel.engine import Engine
from llava.train.trainee import Trainee

T = TypeVar("T")

CACHE = "cache"
"""Folder in the run's own for indices and scans."""


@dataclass
class Feed:
    """The data of a run, as seen by one rank."""

    mixture: Mixture
    encoder: SampleEncoder
    scan: Scan
    plan: Plan
    bad: BadSampleLog
    collation: Collation
    rank: int
    world_size: int
    num_workers: int
    validation: Validation | None = None

    @property
    def fingerprint(self) -> str:
        """Changes when the samples do."""
        return self.mixture.fingerprint

    def steps(self, first_step: int) -> Generator[StepBatches]:
        """Yield this rank's part of every step from `first_step` on."""
        return batches(
            self.plan,
            self.mixture,
            self.encoder,
            self.bad,
            collation=self.collation,
            rank=self.rank,
            world_size=self.world_size,
            first_step=first_step,
            num_workers=self.num_workers,
        )

    def report_scan(self) -> None:
        """Count the scan's bad samples; raises DataError as the policy says."""
        report(self.scan, self.mixture, self.bad)


@dataclass
class Validation:
    """Samples that are not trained on, as batches of this rank."""

    mixture: Mixture
    encoder: SampleEncoder
    plan: Plan
    collation: Collation
    rank: int
    world_size: int

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's micro-batches, as many on every rank; one that cannot be read is an error."""
        strict = BadSampleLog("fail", max_share=0, total=len(self.mixture))
        for step in batches(
            self.plan,
            self.mixture,
            self.encoder,
            strict,
            collation=self.collation,
            rank=self.rank,
            world_size=self.world_size,
        ):
            yield from step.batches


def open_feed(
    config: TrainConfig, trainee: Trainee, engine: Engine, sizes: Batches, *, output_dir: Path
) -> Feed:
    """Open, scan and plan the training data; raises ConfigError, DataError, FileError."""
    data, run = config.data, config.run
    cache = output_dir / CACHE
    mixture = _in_turn(engine, lambda: open_data(data, cache_folder=cache))
    encoder = make_encoder(trainee, data)
    measured = _in_turn(engine, lambda: _scan(mixture, encoder, data, cache))
    options = PlanOptions(
        global_batch=sizes.global_batch,
        micro_batch=sizes.micro_batch,
        micro_tokens=run.micro_tokens or sizes.micro_batch * data.max_length,
        seed=run.seed,
        mode=data.order,
        packing=data.packing,
        epochs=run.epochs,
        max_steps=run.max_steps,
        keeps_order=run.loss_reduction == "original",
        quadratic=1 / (12 * text_config_of(trainee).hidden_size),
    )
    collation = Collation(
        packing=data.packing,
        pad_id=trainee.tokenizer.pad_token_id or 0,
        compat=data.truncation == "original",
    )
    held_out, among = _split(measured, data, run.seed)
    if run.replay is not None:
        plan = replay_plan(Path(run.replay), mixture, world_size=engine.world_size)
    else:
        plan = make_plan(
            measured,
            options,
            world_size=engine.world_size,
            epoch_samples=lambda epoch: _kept(mixture.epoch_indices(run.seed, epoch), among),
        )
    feed = Feed(
        mixture=mixture,
        encoder=encoder,
        scan=measured,
        plan=plan,
        bad=BadSampleLog(
            data.bad_samples,
            max_share=data.max_bad_share,
            total=len(mixture),
            quarantine=output_dir / "quarantine.jsonl" if data.bad_samples == "quarantine" else None,
            is_speaking=engine.rank == 0,
        ),
        collation=collation,
        rank=engine.rank,
        world_size=engine.world_size,
        num_workers=data.num_workers,
    )
    feed.validation = _validation(feed, config, engine, options, held_out, cache)
    return feed


def _kept(indices: Indices, among: Indices | None) -> Indices:
    """Return those of an epoch's samples that are trained on."""
    return indices if among is None else indices[np.isin(indices, among)]


def make_encoder(trainee: Trainee, data: DataOptions) -> SampleEncoder:
    """Return the encoder of a model's samples."""
    return SampleEncoder(
        trainee.tokenizer,
        trainee.template,
        trainee.image_processor,
        trainee.num_image_tokens,
        max_length=data.max_length,
        im_start_end=trainee.im_start_end,
        truncation=data.truncation,
        has_pictures=trainee.has_pictures,
    )


def text_config_of(trainee: Trainee) -> Any:
    """Return the language model's configuration."""
    config = trainee.model.config
    return config.text_config if trainee.has_pictures else config


def _scan(mixture: Mixture, encoder: SampleEncoder, data: DataOptions, cache: Path) -> Scan:
    return scan(
        mixture, encoder, cache_folder=cache, num_workers=max(0, data.num_workers - 1), checks_pictures=True
    )


def _split(measured: Scan, data: DataOptions, seed: int) -> tuple[Indices, Indices | None]:
    """Return (samples held out, samples to train on); None for all."""
    share = data.validation_share
    if not 0 <= share < 1:
        raise ConfigError(f"data.validation_share is {share}", remedy="Use a share from 0 to under 1.")
    if share == 0:
        return np.zeros(0, dtype=np.int64), None
    usable = np.flatnonzero(measured.is_usable)
    # By a hash of the place, so that a sample stays on its side when others are added after it.
    drawn = [int(hashlib.sha256(f"{seed} {index}".encode()).hexdigest()[:8], 16) for index in usable.tolist()]
    is_held_out = np.array(drawn, dtype=np.float64) < share * 2**32
    if is_held_out.all() or not is_held_out.any():
        raise ConfigError(
            f"data.validation_share {share} of {len(usable)} samples leaves one side empty",
            remedy="Use another share, or name a file as data.validation.",
        )
    return usable[is_held_out], usable[~is_held_out]


def _validation(
    feed: Feed, config: TrainConfig, engine: Engine, options: PlanOptions, held_out: Indices, cache: Path
) -> Validation | None:
    data = config.data
    options = replace(options, mode="sequential", epochs=1.0, max_steps=-1)
    if data.validation is not None:
        paths = data.validation
        mixture = _in_turn(
            engine, lambda: open_paths(paths, image_folder=data.image_folder, cache_folder=cache)
        )
        measured = _in_turn(engine, lambda: _scan(mixture, feed.encoder, data, cache))
        plan = make_plan(measured, options, world_size=engine.world_size)
    elif len(held_out):
        mixture = feed.mixture
        plan = make_plan(feed.scan, options, world_size=engine.world_size, epoch_samples=lambda _: held_out)
    else:
        return None
    return Validation(mixture, feed.encoder, plan, feed.collation, engine.rank, engine.world_size)


def _in_turn(engine: Engine, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 first, so that the others find what it kept on disk."""
    result = work() if engine.rank == 0 else None
    engine.barrier()
    return work() if result is None else result
