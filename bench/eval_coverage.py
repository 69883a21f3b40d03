"""How often the intervals of `llava.eval.statistics` hold the true value, by simulation.

    python -m bench.eval_coverage [--trials N]

Pictures differ in how hard they are (normal on the scale of log odds), and the questions about one share it.
Beside the clustered interval stands the usual one that takes every question for independent, and how often
two equally good models are found different (0.05 is promised).
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from llava.eval.benchmark import Figures, Item, Scoring
from llava.eval.statistics import compare_means, interval, mean_interval

CASES = (
    (30, 1, 0.7, 0.0),
    (200, 1, 0.97, 0.0),
    (50, 6, 0.7, 1.5),
    (500, 18, 0.86, 1.0),
    (400, 31, 0.62, 1.5),
)
"""Pictures, questions about each, typical accuracy, spread of difficulty."""
MAX_DRAWN_ITEMS = 1000
"""The bootstrap is tried where it is done in a moment."""


def draw(random: np.random.Generator, case: tuple[int, int, float, float]) -> tuple[list[Item], list[Item]]:
    """Return the items of two equally good models on the same pictures."""
    num_pictures, size, mean, spread = case
    odds = np.log(mean / (1 - mean)) + spread * random.standard_normal(num_pictures)
    chances = np.repeat(1 / (1 + np.exp(-odds)), size)
    scores = (random.random((2, len(chances))) < chances).astype(float)
    one, two = (
        [Item(id=n, score=score, cluster=str(n // size)) for n, score in enumerate(model)]
        for model in scores.tolist()
    )
    return one, two


def truth(case: tuple[int, int, float, float]) -> float:
    """Return the accuracy over all pictures there could be, in percent."""
    _, _, mean, spread = case
    odds = np.log(mean / (1 - mean)) + spread * np.random.default_rng(7).standard_normal(2_000_000)
    return 100 * float((1 / (1 + np.exp(-odds))).mean())


def accuracy(items: object) -> Figures:
    """Return the figure that the bootstrap recomputes."""
    scores = [item.score for item in items]  # type: ignore[attr-defined]
    return {"accuracy": 100 * sum(scores) / len(scores)}


def row(case: tuple[int, int, float, float], trials: int) -> str:
    """Return the line of one case."""
    random, true = np.random.default_rng(1), truth(case)
    held = {"clustered": 0, "naive": 0, "bootstrap": 0}
    num_drawn = found = 0
    for trial in range(trials):
        one, two = draw(random, case)
        found += compare_means(list(zip(one, two, strict=True))).p_value < 0.05
        alone = [Item(id=item.id, score=item.score, cluster=str(item.id)) for item in one]
        for name, some in (("clustered", one), ("naive", alone)):
            interval_ = mean_interval(some)
            held[name] += interval_.low <= true <= interval_.high
        if len(one) <= MAX_DRAWN_ITEMS and trial < trials // 4:
            drawn = interval(Scoring("accuracy", accuracy(one), one, accuracy), seed=trial)
            held["bootstrap"] += drawn is not None and drawn.low <= true <= drawn.high
            num_drawn += 1
    bootstrap = f"{held['bootstrap'] / num_drawn:.3f}" if num_drawn else "-"
    shares = f"{held['clustered'] / trials:.3f} | {held['naive'] / trials:.3f} | {bootstrap}"
    return f"| {case[0]} | {case[1]} | {true:.1f} | {shares} | {found / trials:.3f} |"


def main(argv: list[str] | None = None) -> int:
    """Simulate and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.eval_coverage", description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=1000, help="for each case (%(default)s)")
    args = parser.parse_args(argv)
    head = "| pictures | questions a picture | accuracy | clustered | naive | bootstrap | found different |"
    sys.stdout.write("\n".join([head, "|---|---|---|---|---|---|---|", ""]))
    for case in CASES:
        sys.stdout.write(row(case, args.trials) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
