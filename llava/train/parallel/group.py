"""The ranks of a run as one object: sums, flags, barriers, each under the watchdog."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from llava.errors import RankError
from llava.train.parallel.watchdog import Watchdog

T = TypeVar("T")
_PEER_PROBLEMS = (
    "connection closed by peer",
    "connection reset by peer",
    "timed out",
    "timeout",
    "broken pipe",
)


class Group:
    """torch's default process group; made by `launch.join`."""

    def __init__(self, *, device: torch.device, watchdog: Watchdog | None) -> None:
        """Speak for this rank; `device` is where its tensors are. watchdog: None for a group of one."""
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = device
        self._watchdog = watchdog
        # An error of this rank ends the process without `close`.
        atexit.register(self._leave)

    @contextmanager
    def watch(self, doing: str) -> Iterator[None]:
        """Run something that waits for the other ranks; raises RankError when one of them is gone."""
        watchdog = self._watchdog
        if watchdog is None:
            yield
            return
        try:
            with watchdog.watch(doing):
                yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or any(w in str(error).lower() for w in _PEER_PROBLEMS):
                self._leave()
                raise RankError(
                    f"rank {self.rank} lost touch with the others in {doing}: {str(error).splitlines()[0]}",
                    remedy="Look for the first error of the others, then run the command again: it resumes.",
                ) from error
            raise

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over ranks of a tensor of one shape on all, where it was."""
        summed = values.detach().to(self.device, copy=True)
        with self.watch("a sum over ranks"):
            dist.all_reduce(summed)
        return summed.to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        return bool(self.sum(torch.tensor(int(flag))) > 0)

    def barrier(self) -> None:
        """Wait for all ranks."""
        # Not dist.barrier: with NCCL it guesses a device.
        self.sum(torch.zeros(1))

    def broadcast(self, value: T) -> T:
        """Return rank 0's value, which must be picklable, on all ranks."""
        box: list[Any] = [value]
        with self.watch("a broadcast"):
            dist.broadcast_object_list(box, src=0, device=self.device)
        sent: T = box[0]
        return sent

    def close(self) -> None:
        """Leave: wait for the others, then end the connections and the watchdog."""
        self.barrier()
        self._leave()
        if self._watchdog is not None:
            self._watchdog.close()

    def _leave(self) -> None:
        """End the connections without waiting; threads of a group left open abort the process at its exit."""
        atexit.unregister(self._leave)
        if dist.is_initialized():
            with nullcontext() if self._watchdog is None else self._watchdog.watch("leaving the others"):
                dist.destroy_process_group()
