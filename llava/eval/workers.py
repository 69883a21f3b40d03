"""Several processes that answer, each with a model of its own.

This process holds the queue: a worker is given the next block when it is through with one, and sends each
answer back as it comes. So there is one writer and nothing to lock, any number of questions fits any number
of workers, and the block of a worker that dies goes back into the queue without what it had answered.
A worker ends when this process does: its pipe closes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from llava import log
from llava.command import note
from llava.engine.each import Outcome
from llava.engine.model_options import ModelOptions, engine_settings, load_engine
from llava.errors import EngineError, LlavaError, UsageError
from llava.eval.answering import Asking, OnBlockOutcome, answer_blocks
from llava.eval.questions import Question
from llava.journal import differences

MAX_DEATHS_OF_A_QUESTION = 2
"""A question that was under way so often when a worker died ends the run: it may be what kills them."""


@dataclass
class _Worker:
    """A process, and what it is working on."""

    process: BaseProcess
    connection: Connection
    pending: dict[int, Question] = field(default_factory=dict)
    """What of its block it has not answered, by place in the block."""


class Workers:
    """Processes that answer, with the face of `answering.InProcess`."""

    def __init__(self, options: ModelOptions, devices: Sequence[str | None]) -> None:
        """Start one process for each of `devices`; None takes the device of the options.

        Raises what loading the model raises there, UsageError when the workers do not agree on it.
        """
        context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self.settings: Mapping[str, object] = {}
        with ExitStack() as undo:
            undo.callback(self.close)
            for device in devices:
                own = options if device is None else replace(options, device=device)
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, own, len(devices)), daemon=True)
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours))
            self._wait_until_ready()
            undo.pop_all()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answer_all(
        self, blocks: Sequence[Sequence[Question]], asking: Asking, on_outcome: OnBlockOutcome
    ) -> None:
        """Have the blocks answered; raises EngineError when no worker is left, or a question kills them."""
        waiting = deque(list(block) for block in blocks)
        deaths: Counter[Any] = Counter()
        while waiting or any(worker.pending for worker in self._workers):
            for worker in self._workers:
                if not worker.pending and waiting:
                    self._hand_out(worker, waiting.popleft(), asking)
            busy = [worker for worker in self._workers if worker.pending]
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                if not self._receive(worker, on_outcome):
                    waiting.appendleft(self._bury(worker, deaths))

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(2.0)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join()
        self._workers = []

    def _wait_until_ready(self) -> None:
        for worker in self._workers:
            try:
                settings = _value(worker.connection.recv())
            except EOFError:
                raise EngineError(
                    "a worker died while it loaded the model", remedy="Try with fewer workers."
                ) from None
            if self.settings and (differing := differences(self.settings, settings)):
                raise UsageError(f"the workers differ: {', '.join(differing)}", remedy="Use equal devices.")
            self.settings = settings

    def _hand_out(self, worker: _Worker, block: list[Question], asking: Asking) -> None:
        worker.pending = dict(enumerate(block))
        try:
            worker.connection.send((block, asking))
        except OSError:
            # It is dead; receiving will say so.
            return

    def _receive(self, worker: _Worker, on_outcome: OnBlockOutcome) -> bool:
        """Take in one message; False when the worker has died."""
        try:
            place, outcome = _value(worker.connection.recv())
        except (EOFError, ConnectionResetError):
            return False
        on_outcome(worker.pending.pop(place), outcome)
        return True

    def _bury(self, worker: _Worker, deaths: Counter[Any]) -> list[Question]:
        """Remove a dead worker and return the questions it leaves."""
        left = list(worker.pending.values())
        worker.connection.close()
        worker.process.join()
        self._workers.remove(worker)
        deaths.update(question.key for question in left)
        note(
            f"a worker died (exit code {worker.process.exitcode}); the others take over {len(left)} questions"
        )
        if not self._workers or max(deaths.values()) > MAX_DEATHS_OF_A_QUESTION:
            raise EngineError(
                f"workers died on the questions {', '.join(str(question.id) for question in left[:5])}",
                remedy="Try fewer workers or a smaller --batch-size; the same command goes on from here.",
            )
        return left


def _value(message: Any) -> Any:
    """Return what a worker sent; raises the error that ended it."""
    if isinstance(message, LlavaError):
        raise message
    return message


def _work(connection: Connection, options: ModelOptions, num_workers: int) -> None:
    """Be a worker: load the model, then answer blocks until the pipe closes."""
    log.configure()
    try:
        _share_processors(num_workers)
        engine = load_engine(options)
        connection.send(engine_settings(engine, options))
        while True:
            block, asking = connection.recv()
            places = {id(question): place for place, question in enumerate(block)}
            answer_blocks(engine, [block], asking, partial(_send, connection, places))
    except LlavaError as error:
        connection.send(error)
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        # The process that asks has ended, or is about to.
        return


def _share_processors(num_workers: int) -> None:
    """Divide the processors among the workers: torch would use all of them in each."""
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_workers))


def _send(connection: Connection, places: Mapping[int, int], question: Question, outcome: Outcome) -> None:
    connection.send((places[id(question)], outcome))
