"""What happens to samples that cannot be used: fail, skip, or quarantine; counted, named, and limited.

Place in the flow: the scan and the loader report here. The original trained on a random other sample and said
nothing (spec, defect 19). Here a run fails when the share of bad samples passes a limit, whatever the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from llava.errors import ConfigError, DataError
from llava.files import append_jsonl, read_jsonl
from llava.log import get_logger

_logger = get_logger(__name__)

Policy = Literal["fail", "skip", "quarantine"]

NUM_NAMED: Final = 10
_MEND: Final = "Mend the data (`llava doctor` finds all such samples)"
_POLICIES: Final = ("fail", "skip", "quarantine")


@dataclass(frozen=True, slots=True)
class BadSample:
    """One sample that cannot be used."""

    index: int
    """Place in the mixture, from 0."""
    id: str
    """Empty where the sample is too broken to have one."""
    source: str
    where: str
    """File and place in it."""
    reason: str

    def __str__(self) -> str:
        name = f" ({self.id})" if self.id else ""
        return f"{self.where}{name}: {self.reason}"


class BadSampleLog:
    """Counts bad samples, each index once, and decides when a run has to end."""

    def __init__(
        self,
        policy: Policy,
        *,
        max_share: float,
        total: int,
        quarantine: Path | None = None,
        is_speaking: bool = True,
    ) -> None:
        """Begin with none.

        max_share: of `total` samples, above which the run fails, from 0 to 1. quarantine: file for the policy
        of that name; what an earlier run wrote there is not written twice. is_speaking: whether to log; one
        rank does. Raises ConfigError for values that cannot be.
        """
        if policy not in _POLICIES:
            raise ConfigError.of_field("data.bad_samples", policy, _POLICIES)
        if not 0 <= max_share <= 1:
            raise ConfigError(f"data.max_bad_share is {max_share}", remedy="Use a share from 0 to 1.")
        if policy == "quarantine" and quarantine is None:
            raise ConfigError("data.bad_samples is 'quarantine', and there is no file to write to")
        self.policy: Policy = policy
        self.max_share = max_share
        self.total = total
        self._quarantine = quarantine if policy == "quarantine" else None
        self._is_speaking = is_speaking
        self._samples: dict[int, BadSample] = {}
        self._written = _indices_in(self._quarantine)

    def __len__(self) -> int:
        """Return how many samples are bad."""
        return len(self._samples)

    def __contains__(self, index: object) -> bool:
        """Say whether a sample is known to be bad."""
        return index in self._samples

    @property
    def samples(self) -> list[BadSample]:
        """All bad samples, by index."""
        return [self._samples[index] for index in sorted(self._samples)]

    @property
    def share(self) -> float:
        """Bad samples of all samples, 0 to 1."""
        return len(self) / self.total if self.total else 0.0

    def add(
        self,
        sample: BadSample,
        *,
        content: object = None,
        is_fatal: bool | None = None,
        is_shared: bool = False,
    ) -> None:
        """Count a bad sample; a second report of the same index changes nothing.

        content: the sample as its file has it, for the quarantine file (what JSON cannot hold is left out).
        is_fatal: whether policy "fail" ends the run here; None: it does. A sample with nothing to train on is
        given False: it counts towards the limit alone. is_shared: all ranks report this one, and only the
        speaking one writes it.
        Raises DataError under policy "fail", and under every policy once the limit is passed.
        """
        if sample.index in self._samples:
            return
        self._samples[sample.index] = sample
        self._tell(sample)
        is_writer = self._is_speaking or not is_shared
        if self._quarantine is not None and is_writer and sample.index not in self._written:
            append_jsonl(self._quarantine, {**asdict(sample), "sample": _plain(content)})
            self._written.add(sample.index)
        if self.policy == "fail" and is_fatal is not False:
            raise DataError(
                sample.reason,
                remedy=f"{_MEND}, or set data.bad_samples to skip.",
                where=f"{sample.where} ({sample.id})" if sample.id else sample.where,
            )
        self.check()

    def check(self, num_bad: int | None = None) -> None:
        """Raise DataError when more than the allowed share is bad.

        num_bad: over all ranks; None: as known here.
        """
        num_bad = len(self) if num_bad is None else num_bad
        if num_bad <= self.max_share * self.total:
            return
        named = "; ".join(str(sample) for sample in self.samples[:3])
        raise DataError(
            f"{num_bad} of {self.total} samples cannot be used ({num_bad / max(self.total, 1):.2%}), over "
            f"the limit of {self.max_share:.2%}" + (f": {named}" if named else ""),
            remedy=f"{_MEND}, or raise data.max_bad_share.",
        )

    def state(self) -> list[dict[str, object]]:
        """Return all bad samples as plain values, for a checkpoint or for another rank."""
        return [asdict(sample) for sample in self.samples]

    def merge(self, *states: Iterable[Mapping[str, object]]) -> None:
        """Take in what other ranks or an earlier run know; nothing is logged, written or raised."""
        for state in states:
            for fields in state:
                sample = BadSample(
                    index=int(str(fields["index"])),
                    id=str(fields["id"]),
                    source=str(fields["source"]),
                    where=str(fields["where"]),
                    reason=str(fields["reason"]),
                )
                self._samples.setdefault(sample.index, sample)

    def summary(self) -> str:
        """Say in one line how many samples are bad, by source; empty when none is."""
        if not self._samples:
            return ""
        counts: dict[str, int] = {}
        for sample in self.samples:
            counts[sample.source] = counts.get(sample.source, 0) + 1
        sources = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        place = f", written to {self._quarantine}" if self._quarantine is not None else ""
        return f"{len(self)} of {self.total} samples cannot be used ({self.share:.2%}; {sources}){place}"

    def _tell(self, sample: BadSample) -> None:
        """Name the first ten, and say at the eleventh that the others are only counted."""
        if not self._is_speaking:
            return
        if len(self) <= NUM_NAMED:
            _logger.warning("bad sample %d: %s", len(self), sample)
        elif len(self) == NUM_NAMED + 1:
            _logger.warning("bad samples after the first %d are counted and not named", NUM_NAMED)


def _indices_in(quarantine: Path | None) -> set[int]:
    """Return the indices that an earlier run has written."""
    if quarantine is None or not quarantine.exists():
        return set()
    return {int(record["index"]) for _, record in read_jsonl(quarantine)}


def _plain(value: object) -> object:
    """Return a value as JSON can hold it; bytes become a note of their size."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)
