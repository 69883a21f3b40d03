"""`llava eval compare A B`: how two runs differ on the same questions, how sure that is, and why it may be.

With more than two runs of one model that differ in their seed only: how much the score depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.command import EXIT_OK, say
from llava.errors import DataError, UsageError
from llava.eval.runs import Run, read_runs
from llava.eval.statistics import Comparison, compare, seed_spread

_NOT_SHOWN = ("version", "num_questions", "prompts_sha256", "fingerprint", "model")
"""Settings that stand in lines of their own, or say nothing to people."""


def compare_folders(paths: Sequence[Path], *, as_json: bool) -> int:
    """Compare the runs in folders, benchmark by benchmark, and print what comes out; returns the exit code.

    Raises UsageError for fewer than two folders, DataError when no benchmark is in all of them.
    """
    if len(paths) < 2:
        raise UsageError("compare needs two runs", remedy="Give two folders.")
    sides = [_by_name(path) for path in paths]
    common = [name for name in sides[0] if all(name in side for side in sides)]
    if not common:
        raise DataError("the runs have no benchmark in common")
    results = []
    for name in common:
        runs = [side[name] for side in sides]
        result = compare_runs(runs[0], runs[1]) if len(runs) == 2 else spread_of(runs)
        results.append({"benchmark": runs[0].benchmark, **result})
        if not as_json:
            for line in result["lines"]:
                say(line)
    if as_json:
        say(json.dumps([{k: v for k, v in result.items() if k != "lines"} for result in results]))
    return EXIT_OK


def _by_name(path: Path) -> dict[str, Run]:
    """Return a run's folder as its benchmark, and a model's by the names of the folders in it."""
    runs = read_runs([path])
    return {run.benchmark if run.folder == path else run.folder.name: run for run in runs}


def compare_runs(first: Run, second: Run) -> dict[str, Any]:
    """Return the comparison of two runs of a benchmark, as JSON values and as lines."""
    found = compare(first.scoring(), second.scoring())
    why = what_differs(first, second)
    title, size = first.record["title"], f"{found.num_items} questions, {found.num_clusters} clusters"
    lines = [
        f"{title}: {first.model} {first.value:.2f}, {second.model} {second.value:.2f}",
        f"  difference {found.difference:+.2f} ({found.low:+.2f} to {found.high:+.2f}), "
        f"p = {found.p_value:.3g} ({found.method}; {size})",
        f"  {verdict(found)}",
        *(f"  differs: {line}" for line in why),
    ]
    return {"first": first.value, "second": second.value, **found.to_dict(), "differs": why, "lines": lines}


def verdict(found: Comparison) -> str:
    """Return in words what a comparison shows."""
    smallest = f"these two show a difference of {found.smallest_difference:.2f} and more 4 times in 5"
    if found.p_value < 0.05:
        return f"{'better' if found.difference > 0 else 'worse'}: {smallest}"
    return f"no difference shown: {smallest}"


def spread_of(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the spread over several runs, as JSON values and as lines."""
    found = seed_spread([run.value for run in runs])
    why = sorted({line.split(" (")[0] for run in runs[1:] for line in what_differs(runs[0], run)})
    lines = [
        f"{runs[0].record['title']}: {found.num_items} runs, mean {found.value:.2f} "
        f"({found.low:.2f} to {found.high:.2f})",
        *(f"  differs: {name}" for name in why),
    ]
    return {"mean": found.value, **found.to_dict(), "differs": why, "lines": lines}


def what_differs(first: Run, second: Run) -> list[str]:
    """Return what else is different about two runs: prompts, split, template, pictures, sampling, scorer."""
    one, two = first.record, second.record
    lines = []
    ours, theirs = one["settings"], two["settings"]
    if ours.get("prompts_sha256") != theirs.get("prompts_sha256"):
        counts = f"{ours.get('num_questions')}, {theirs.get('num_questions')} asked"
        lines.append(f"prompts or questions ({counts})")
    if one["questions_sha256"] != two["questions_sha256"]:
        lines.append(f"split ({one['files']['questions']}, {two['files']['questions']})")
    for name in dict.fromkeys((*ours, *theirs)):
        if name not in _NOT_SHOWN:
            lines += _differing(name, ours.get(name), theirs.get(name))
    if ours.get("fingerprint") != theirs.get("fingerprint"):
        lines.append(f"weights ({ours.get('model')}, {theirs.get('model')})")
    if first.is_compat != second.is_compat:
        lines.append(f"compat ({first.is_compat}, {second.is_compat})")
    if one["scorer"] != two["scorer"]:
        versions = (f"{run['scorer']['version']} {run['scorer']['sha256']}" for run in (one, two))
        lines.append(f"scorer ({', '.join(versions)})")
    return lines


def _differing(name: str, one: object, two: object) -> list[str]:
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        keys = dict.fromkeys((*one, *two))
        return [line for key in keys for line in _differing(f"{name}.{key}", one.get(key), two.get(key))]
    return [f"{name} ({one}, {two})"] if one != two else []
