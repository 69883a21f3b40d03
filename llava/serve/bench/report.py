"""A measurement as a record, a table and a plot."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava.errors import DependencyError
from llava.serve.bench.measuring import Level, Spread

_COLUMNS = (
    ("clients", 8),
    ("requests/s", 11),
    ("tokens/s", 10),
    ("first p50", 11),
    ("first p95", 11),
    ("total p50", 11),
    ("total p95", 11),
    ("failed", 8),
)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured of one engine."""

    engine: str
    settings: dict[str, Any]
    levels: tuple[Level, ...]
    """By concurrency; the first is one client alone."""
    bytes_per_token: int | None
    bandwidth: float | None
    """Bytes per second that the engine's memory can be read with."""
    notes: tuple[str, ...] = ()

    @property
    def bandwidth_share(self) -> float | None:
        """Share of the bandwidth that one client's decoding reaches; None where a part is not known."""
        rate = self.levels[0].decode_tokens_per_s
        if rate is None or self.bytes_per_token is None or self.bandwidth is None:
            return None
        return self.bytes_per_token * rate / self.bandwidth

    @property
    def num_failed(self) -> int:
        """Requests that failed, at all levels."""
        return sum(level.num_failed for level in self.levels)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON values; seconds, bytes and counts."""
        import torch

        from llava import __version__

        return {
            "engine": self.engine,
            "settings": self.settings,
            "levels": [asdict(level) for level in self.levels],
            "bytes_per_token": self.bytes_per_token,
            "bandwidth_bytes_per_s": self.bandwidth,
            "bandwidth_share": self.bandwidth_share,
            "notes": list(self.notes),
            "machine": {
                "processor": platform.machine(),
                "num_cpus": os.cpu_count(),
                "num_threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "llava": __version__,
            },
        }

    @property
    def summary(self) -> str:
        """One client alone, in one line."""
        alone, share = self.levels[0], self.bandwidth_share
        parts = []
        if alone.first_token is not None:
            parts.append(f"first token after {alone.first_token.p50_s * 1000:.0f} ms")
        if alone.decode_tokens_per_s is not None:
            parts.append(f"then {alone.decode_tokens_per_s:.1f} tokens/s")
        if share is not None:
            parts.append(f"{share:.0%} of the memory bandwidth")
        return "one client: " + (", ".join(parts) or "no answer")

    def table(self) -> str:
        """Return the lines that people read."""
        alone = self.levels[0]
        rows = ["".join(name.rjust(width) for name, width in _COLUMNS)]
        rows += [_row(level) for level in self.levels]
        errors = [
            f"{count} of {level.num_requests} requests of {level.concurrency} client(s) failed: {text}"
            for level in self.levels
            for text, count in level.errors.items()
        ]
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([self.engine, *self._one_client(alone), "", *rows, *errors, *notes])

    def _one_client(self, alone: Level) -> list[str]:
        first = f"{alone.first_token.p50_s * 1000:.0f} ms" if alone.first_token is not None else "unknown"
        rate = alone.decode_tokens_per_s
        decode = f"{rate:.1f} tokens/s" if rate is not None else "unknown (no answer had two tokens)"
        prompt = f"{alone.num_prompt_tokens:.0f} tokens" if alone.num_prompt_tokens else "unknown length"
        return [
            f"  prompt               {prompt}, {alone.num_cached_tokens:.0f} of them remembered",
            f"  answer               {alone.num_new_tokens:.0f} tokens",
            f"  first token          {first}",
            f"  decoding             {decode}",
            f"  memory bandwidth     {self._bandwidth()}",
        ]

    def _bandwidth(self) -> str:
        share = self.bandwidth_share
        if self.bytes_per_token is None:
            return "unknown (the weights are elsewhere)"
        weights = f"{self.bytes_per_token / 1e6:.1f} MB of weights a token"
        if share is None or self.bandwidth is None:
            return f"unknown ({weights})"
        return f"{share:.0%} of {self.bandwidth / 1e9:.1f} GB/s ({weights})"


def _row(level: Level) -> str:
    cells = [
        str(level.concurrency),
        f"{level.requests_per_s:.2f}",
        f"{level.tokens_per_s:.1f}",
        *_times(level.first_token),
        *_times(level.total),
        str(level.num_failed),
    ]
    return "".join(cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))


def _times(spread: Spread | None) -> tuple[str, str]:
    return ("-", "-") if spread is None else (f"{spread.p50_s:.3f} s", f"{spread.p95_s:.3f} s")


def save_plot(report: Report, path: Path) -> None:
    """Draw throughput and latencies over the number of clients; raises DependencyError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError.of_extra("matplotlib", "eval", "the plot") from None
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    levels = [level for level in report.levels if level.first_token is not None]
    clients = [level.concurrency for level in levels]
    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle(f"{report.engine}\n{report.summary}", fontsize=10)
    throughput, first, total = figure.subplots(1, 3)
    throughput.plot(clients, [level.requests_per_s for level in levels], marker="o", color="tab:blue")
    throughput.set_title("Requests per second", fontsize=10)
    for axes, title, spreads in (
        (first, "Seconds to the first token", [level.first_token for level in levels]),
        (total, "Seconds to the last token", [level.total for level in levels]),
    ):
        known = [spread for spread in spreads if spread is not None]
        axes.plot(clients, [spread.p95_s for spread in known], marker="s", color="tab:orange", label="p95")
        axes.plot(clients, [spread.p50_s for spread in known], marker="o", color="tab:blue", label="p50")
        axes.set_title(title, fontsize=10)
        axes.legend(frameon=False)
    for axes in (throughput, first, total):
        axes.set_xlabel("clients at a time")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(clients))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
