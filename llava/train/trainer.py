"""A training run from its options to a folder that chats: the launch script as a table of contents.

    engine -> model -> what learns -> data -> optimizer -> resume -> loop -> result, probe, report

Every step is one function of another module; here is only their order. `command.start` calls `train`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava.command import EXIT_OK, note
from llava.model.device import resolve_dtype
from llava.model.packed_attention import use_packed_attention
from llava.train.batch_sizes import derive_batches
from llava.train.building import build
from llava.train.checkpoints import CheckpointStore, check_writable
from llava.train.config import TrainConfig
from llava.train.feeding import Feed, open_feed
from llava.train.flops import step_flops
from llava.train.forward import TrainingModel
from llava.train.loop import Loop, LoopOptions
from llava.train.metrics import LossSums, StepRecord
from llava.train.optimizer import make_optimizer
from llava.train.options import nested
from llava.train.outputs import check_output, write_result
from llava.train.parallel.engine import Engine
from llava.train.parallel.launch import make_engine
from llava.train.probe import probe, trained_records
from llava.train.progress import Progress
from llava.train.report import write_report
from llava.train.reporters import make_reporters
from llava.train.resuming import check_same_run
from llava.train.run_facts import data_facts, learning_facts, machine_facts
from llava.train.run_log import RunLog
from llava.train.schedule import lr_share
from llava.train.stages import apply_stage, enable_gradient_checkpointing, parameter_groups, trainable_table
from llava.train.telemetry import Telemetry, find_hardware
from llava.train.trainee import Trainee


@dataclass
class Run:
    """What the parts of a run share."""

    config: TrainConfig
    engine: Engine
    trainee: Trainee
    feed: Feed
    store: CheckpointStore
    output_dir: Path
    peaks: list[float]
    """Peak learning rate of each parameter group."""
    rate_names: tuple[str, ...]
    learns: dict[str, Any]
    """For the report, see `run_facts.learning_facts`."""
    log: RunLog | None = None
    """Rank 0 only."""


def train(config: TrainConfig) -> int:
    """Train as `config` says and return the exit code; 0 also for a run that was told to stop.

    Raises what the parts raise: ConfigError, DataError, FileError, CheckpointError, TrainingError, ...
    """
    engine = make_engine(config.run)
    output_dir = Path(config.run.output_dir)
    if engine.rank == 0:
        check_writable(output_dir)
    run = _prepare(config, engine, output_dir)
    first_step = _resume(run)
    run.log = _open_log(run, first_step) if engine.rank == 0 else None
    ending = "failed"
    try:
        with _deterministic(config):
            ending = _loop(run).run(run.feed.steps(first_step))
        if ending == "finished":
            _finish(run)
    finally:
        if run.log is not None:
            run.log.close(ending)
    if engine.rank == 0:
        note(f"report: {write_report(output_dir)}")
    if ending == "stopped" and engine.rank == 0:
        note(f"stopped with a checkpoint in {output_dir}; the same command goes on from it")
    engine.close()
    return EXIT_OK


def _prepare(config: TrainConfig, engine: Engine, output_dir: Path) -> Run:
    """Build model, data and optimizer."""
    run = config.run
    sizes = derive_batches(config, engine.world_size)
    trainee = _trainee(config, engine)
    check_output(output_dir, trainee, config.stage)
    rows_module = _training_model(config, trainee, engine)
    feed = open_feed(config, trainee, engine, sizes, output_dir=output_dir)
    feed.report_scan()
    peaks: list[float] = []
    names: list[str] = []
    learns: dict[str, Any] = {}

    def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(module, config.optimizer, config.stage)
        if engine.rank == 0:
            note(trainable_table(module, groups))
            learns.update(learning_facts(module, groups))
        optimizer = make_optimizer(groups, config.optimizer, module)
        peaks.extend(group["lr"] for group in optimizer.param_groups)
        names.extend(str(group["name"]).partition("/")[0] for group in optimizer.param_groups)
        return optimizer

    if engine.rank == 0:
        note(f"data: {feed.scan.summary()}")
        note(f"batch: {sizes.arithmetic(engine.world_size)}; {feed.plan.num_steps} steps")
    engine.prepare(rows_module, optimizer_of, compute_dtype=trainee.compute_dtype)
    return Run(
        config=config,
        engine=engine,
        trainee=trainee,
        feed=feed,
        store=CheckpointStore(output_dir, limit=run.save_limit),
        output_dir=output_dir,
        peaks=peaks,
        rate_names=tuple(names),
        learns=learns,
    )


def _trainee(config: TrainConfig, engine: Engine) -> Trainee:
    """Build the model and decide what learns."""
    run = config.run
    trainee = build(
        config.model,
        config.stage,
        aspect=config.data.image_aspect_ratio,
        max_length=config.data.max_length,
        device=torch.device("cpu") if engine.is_sharded else engine.device,
        compute_dtype=resolve_dtype(run.precision or "float32", engine.device, num_parameters=0),
        seed=run.seed,
    )
    apply_stage(trainee, config.stage)
    if engine.rank == 0:
        for notice in trainee.notices:
            note(notice)
    return trainee


def _training_model(config: TrainConfig, trainee: Trainee, engine: Engine) -> TrainingModel:
    model = trainee.model
    language_model = model.model.language_model if trainee.has_pictures else model
    if config.data.packing:
        use_packed_attention(language_model)
    if config.run.gradient_checkpointing:
        # The tower's activations are kept only where it learns.
        enable_gradient_checkpointing(model if _vision_learns(model, trainee) else language_model)
    if config.run.torch_compile:
        language_model.compile()
    return TrainingModel(
        model,
        image_size=None if trainee.rules is None else trainee.rules.size,
        compute_dtype=trainee.compute_dtype,
        is_sharded=engine.is_sharded,
    )


def _vision_learns(model: nn.Module, trainee: Trainee) -> bool:
    if not trainee.has_pictures:
        return False
    return any(
        parameter.requires_grad for parameter in model.get_submodule("model.vision_tower").parameters()
    )


def _resume(run: Run) -> int:
    """Load the newest complete checkpoint, if there is one and it is wanted; returns the first step."""
    found = run.store.newest() if run.config.run.resume and run.engine.rank == 0 else None
    found = run.engine.broadcast(found)
    if found is None:
        return 0
    check_same_run(found, run.config, run.feed.fingerprint)
    run.engine.load(found.state)
    run.feed.bad.merge(found.info.get("bad_samples", ()))
    if run.engine.rank == 0:
        note(f"going on after step {found.step} of {run.feed.plan.num_steps} from {found.folder}")
    return found.step


def _open_log(run: Run, first_step: int) -> RunLog:
    config, feed = run.config, run.feed
    hardware = find_hardware(run.engine.device, run.engine.world_size, run.trainee.compute_dtype)
    log = RunLog(
        run.output_dir,
        telemetry=Telemetry(
            hardware=hardware,
            flops=None if run.engine.is_sharded else step_flops(run.trainee.model),
            num_workers=config.data.num_workers,
            is_packed=config.data.packing,
        ),
        progress=Progress(feed.plan.num_steps, first_step=first_step, logging_steps=config.run.logging_steps),
        reporters=make_reporters(
            config.run.report_to,
            run.output_dir,
            run_name=config.run.run_name,
            first_step=first_step,
            config=nested(config),
        ),
        logging_steps=config.run.logging_steps,
    )
    log.resume(first_step)
    log.describe(
        recipe=nested(config),
        data=data_facts(feed.scan, feed.mixture),
        machine=machine_facts(hardware),
        learns=run.learns,
    )
    return log


def _loop(run: Run) -> Loop:
    config, plan = run.config, run.feed.plan
    num_steps = plan.num_steps

    def rates(step: int) -> Sequence[float]:
        share = lr_share(config.optimizer, step, num_steps)
        return [peak * share for peak in run.peaks]

    def on_step(record: StepRecord) -> None:
        if run.log is not None:
            run.log.step(record)

    return Loop(
        engine=run.engine,
        options=LoopOptions(
            num_steps=num_steps,
            steps_per_epoch=plan.steps_per_epoch,
            seed=config.run.seed,
            max_grad_norm=config.optimizer.max_grad_norm,
            loss_reduction=config.run.loss_reduction,
            save_steps=config.run.save_steps,
            eval_steps=config.run.eval_steps,
            sources=tuple(dict.fromkeys(entry.name for entry in run.feed.mixture.entries)),
            rate_names=run.rate_names,
        ),
        output_dir=run.output_dir,
        learning_rates=rates,
        on_step=on_step,
        on_save=lambda step: _save(run, step),
        on_eval=lambda step: _look(run, step),
    )


def _save(run: Run, step: int) -> None:
    if run.log is not None:
        run.log.sync()
    folder = run.store.write(
        step,
        write_state=run.engine.save,
        info={
            "data": run.feed.fingerprint,
            "config": nested(run.config),
            "world_size": run.engine.world_size,
            "bad_samples": run.feed.bad.state(),
        },
        is_main=run.engine.rank == 0,
        barrier=run.engine.barrier,
    )
    if run.log is not None:
        run.log.event("save", step=step, folder=str(folder))


def _look(run: Run, step: int) -> None:
    """Validate, and ask the model some of its training questions."""
    _validate(run, step)
    if run.log is not None:
        _probe(run, step, run.log)


def _probe(run: Run, step: int, log: RunLog) -> None:
    n = run.config.run.probe_samples
    if n < 1:
        return
    if run.engine.is_sharded:
        log.warn("no training question was asked: the model is spread over ranks; ask the written folder")
        return
    records = trained_records(run.feed.plan, run.feed.mixture, n)
    answers = probe(
        run.trainee,
        records,
        n,
        max_length=run.config.data.max_length,
        compute_dtype=run.trainee.compute_dtype,
    )
    log.probe(step, [answer.as_json() for answer in answers])


def _validate(run: Run, step: int) -> None:
    """Measure the loss on samples that are not trained on, over all ranks."""
    validation = run.feed.validation
    if validation is None:
        return
    sums = LossSums()
    modes = {module: module.training for module in run.trainee.model.modules()}
    run.trainee.model.eval()
    with torch.no_grad():
        for batch in validation.batches():
            sums.add(batch, run.engine.forward(batch.to(run.engine.device)).per_token)
    for module, mode in modes.items():
        module.training = mode
    everything = LossSums()
    gathered: list[Any] = [sums.by_source]
    if run.engine.world_size > 1:
        gathered *= run.engine.world_size
        torch.distributed.all_gather_object(gathered, sums.by_source)
    everything.merge(gathered)
    if run.log is not None:
        run.log.validation(step, everything)


def _finish(run: Run) -> None:
    """Validate, write the result, answer some training questions, and write the report."""
    config = run.config
    _validate(run, run.feed.plan.num_steps)
    state = run.engine.full_state()
    if run.engine.rank != 0:
        return
    if config.run.save_final:
        write_result(
            run.output_dir,
            run.trainee,
            config.stage,
            state={name.removeprefix("model."): value for name, value in state.items()},
            recipe=nested(config),
            legacy_files=config.run.legacy_files,
        )
        note(f"written to {run.output_dir}")
    assert run.log is not None, "rank 0 has a log"
    if run.feed.bad.summary():
        run.log.warn(run.feed.bad.summary())
    _probe(run, run.feed.plan.num_steps, run.log)


@contextmanager
def _deterministic(config: TrainConfig) -> Iterator[None]:
    """Let torch take kernels that give the same bits every time, and TF32 only where it is wanted."""
    if config.run.tf32 and torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
    before = torch.are_deterministic_algorithms_enabled()
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
