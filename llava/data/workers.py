"""Processes that read data beside the trainer.

Our own few lines and not torch's DataLoader, whose handler of dying children raises in the middle of whatever
the trainer does, whose errors are the text of a traceback, and which needs shared memory that containers are
short of. Results travel through a socket; arrays of numpy do so without a copy on either side.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from llava.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(
    function: Callable[[T], R], tasks: Iterable[T], *, num_workers: int, ahead: int
) -> Generator[R]:
    """Yield function(task) for every task, in order, computed in worker processes ahead of being asked for.

    num_workers: 0 computes here, when asked. ahead: tasks given out beyond the one waited for. function and
    results must be picklable; an exception in a worker prints its traceback and ends the map: errors that are
    somebody's to mend belong into the result. Close the generator to end the workers.
    Raises DataError when a worker ends before its time.
    """
    if num_workers == 0:
        yield from map(function, tasks)
        return
    team = _Team([_started(function) for _ in range(num_workers)], os.getpid())
    atexit.register(team.end)
    pending: deque[_Worker] = deque()
    try:
        for number, task in enumerate(tasks):
            worker = team.workers[number % num_workers]
            worker.send(task)
            pending.append(worker)
            if len(pending) > ahead:
                yield pending.popleft().receive()
        while pending:
            yield pending.popleft().receive()
    finally:
        team.end()
        atexit.unregister(team.end)


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    connection: Connection[Any, Any]

    def send(self, task: object) -> None:
        try:
            self.connection.send(task)
        except ConnectionError as error:
            raise self._ended() from error

    def receive(self) -> Any:
        try:
            return _receive(self.connection)
        except (EOFError, ConnectionError) as error:
            raise self._ended() from error

    def _ended(self) -> DataError:
        self.process.join()
        code = self.process.exitcode or 0
        if code < 0:
            cause = f"was ended by {signal.Signals(-code).name}, maybe for want of memory"
            return DataError(f"a process that prepares data {cause}", remedy="Lower data.num_workers.")
        return DataError(f"a process that prepares data failed with exit code {code}; its message is above")


@dataclass(frozen=True)
class _Team:
    workers: list[_Worker]
    parent: int

    def end(self) -> None:
        """End the workers at once: they only read, and hold nothing that would be lost."""
        # In a process forked from the trainer's this is a copy, and the workers are not its own.
        if os.getpid() != self.parent:
            return
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.connection.close()


def _started(function: Callable[[Any], object]) -> _Worker:
    """Start one worker."""
    context = _context()
    ours, theirs = context.Pipe()
    process: BaseProcess = context.Process(  # type: ignore[attr-defined]
        target=_serve, args=(function, theirs, ours), daemon=True
    )
    with _forking():
        process.start()
    # With the last copy of an end the other side learns that nobody is there any more.
    theirs.close()
    return _Worker(process, ours)


def _serve(
    function: Callable[[Any], object], connection: Connection[Any, Any], parents: Connection[Any, Any]
) -> None:
    """Answer tasks until the parent is gone."""
    parents.close()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # A trainer told to stop finishes its step first and needs its workers for it; it ends them itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    results: SimpleQueue[object] = SimpleQueue()
    # Beside the work, for a large result is only gone when the parent has read it.
    threading.Thread(target=_send_all, args=(connection, results), daemon=True).start()
    try:
        while True:
            results.put(function(connection.recv()))
    except (EOFError, ConnectionError):
        return


def _send_all(connection: Connection[Any, Any], results: SimpleQueue[object]) -> None:
    """Send results as they come, until the parent is gone."""
    try:
        while True:
            _send(connection, results.get())
    except ConnectionError:
        return


def _send(connection: Connection[Any, Any], result: object) -> None:
    """Write a result: sizes first, then its pickle, then every array as it lies in memory."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(body), *(buffer.raw() for buffer in buffers)]
    connection.send([part.nbytes for part in parts])
    for part in parts:
        while part.nbytes:
            part = part[os.write(connection.fileno(), part) :]


def _receive(connection: Connection[Any, Any]) -> Any:
    """Read a result straight to where it stays; connection.recv_bytes takes five times as long."""
    parts = []
    for size in connection.recv():
        whole = bytearray(size)
        part = memoryview(whole)
        while part.nbytes:
            num_read = os.readv(connection.fileno(), [part])
            if not num_read:
                raise EOFError
            part = part[num_read:]
        parts.append(whole)
    return pickle.loads(parts[0], buffers=parts[1:])  # from our own process


def _context() -> BaseContext:
    """Return how workers start: forked on Linux, in no time; else spawned."""
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


@contextmanager
def _forking() -> Iterator[None]:
    """Silence Python's warning that a process with threads is forked.

    The workers use none of the locks that such threads could hold: they tokenise and decode on one thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        yield
