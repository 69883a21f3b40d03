"""docs/MODEL_ZOO.md: published rows, marked as such, and rows measured here from stored records.

    python -m llava.eval.zoo [-o docs/MODEL_ZOO.md]

Published rows are those of `llava.eval.published`; `docs/model_zoo.json` holds the measured ones, and
`--add RUNS` takes the runs of a model in.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.command import OptionParser, note, run
from llava.eval.published import published_for
from llava.eval.runs import read_runs
from llava.files import read_json, write_json, write_text

RECORDS = Path("docs/model_zoo.json")
PAGE = Path("docs/MODEL_ZOO.md")
COLUMNS = {
    "vqav2": "VQAv2", "gqa": "GQA", "vizwiz": "VizWiz", "scienceqa": "SQA-IMG", "textvqa": "TextVQA",
    "pope": "POPE", "mme": "MME-P", "mmbench": "MMB", "mmbench-cn": "MMB-CN", "mm-vet": "MM-Vet",
    "seed": "SEED",
    "tiny": "tiny",
}  # fmt: skip

_HEAD = """# Model zoo

Written by `python -m llava.eval.zoo`; do not edit it by hand. Published numbers are the authors' own;
measured ones ([model_zoo.json](model_zoo.json)) are of `llava eval`, with the 95 % interval.

"""


def published_rows() -> list[dict[str, Any]]:
    """Return the published rows, model by model."""
    rows: dict[str, dict[str, Any]] = {}
    for name in COLUMNS:
        for one in published_for(name):
            row = rows.setdefault(
                one.model, {"model": one.model, "scores": {}, "source": f"published, {one.source}"}
            )
            row["scores"][name] = one.value
    return list(rows.values())


def render(measured: Sequence[Mapping[str, Any]]) -> str:
    """Return the page: the published rows, then the measured ones."""
    rows = [*published_rows(), *measured]
    names = [name for name in COLUMNS if any(name in row["scores"] for row in rows)]
    lines = ["| model | " + " | ".join(COLUMNS[name] for name in names) + " | source |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for row in rows:
        cells = [_cell(row["scores"].get(name)) for name in names]
        lines.append(f"| {' | '.join([row['model'], *cells, row['source']])} |")
    return _HEAD + "\n".join(lines) + "\n"


def _cell(score: float | Mapping[str, float] | None) -> str:
    if score is None:
        return ""
    if isinstance(score, Mapping):
        return f"{score['value']:.1f} ({score['low']:.1f} to {score['high']:.1f})"
    return f"{score:.1f}"


def measured_row(paths: Sequence[Path]) -> dict[str, Any]:
    """Return the row of a model's runs."""
    runs = read_runs(paths)
    scores: dict[str, Any] = {}
    for one in runs:
        found = one.interval
        spread = {} if found is None else {"low": found["low"], "high": found["high"]}
        scores[one.benchmark] = {"value": one.value, **spread} if spread else one.value
    version = runs[0].record["scorer"]["version"]
    return {
        "model": runs[0].model,
        "scores": scores,
        "source": f"measured, llava {version}",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and return the exit code."""
    parser = OptionParser(prog="python -m llava.eval.zoo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--add", nargs="+", type=Path, metavar="RUNS", help="take in a model's runs")
    parser.add_argument("--records", type=Path, default=RECORDS, help="(%(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=PAGE, help="(%(default)s)")
    return run(lambda: _write(parser.parse_all(sys.argv[1:] if argv is None else argv)))


def _write(args: argparse.Namespace) -> int:
    rows = read_json(args.records)
    if args.add is not None:
        row = measured_row(args.add)
        rows = [old for old in rows if (old["model"], old["source"][:8]) != (row["model"], "measured")] + [
            row
        ]
        write_json(args.records, rows)
    write_text(args.output, render(rows))
    note(f"{args.output}: {len(rows)} measured")
    return 0


if __name__ == "__main__":
    sys.exit(main())
