"""The VQA metric: how many of ten people gave the answer, leaving out each of them in turn."""

from __future__ import annotations

from collections.abc import Sequence

from llava.eval.metrics.evalai import normalise


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return the mean over the references of min(1, how many of the others equal the answer / 3).

    Compares as is; 0 where there are no references.
    """
    if answer not in references:
        return 0.0
    same = references.count(answer)
    shares = [min(1.0, (same - (reference == answer)) / 3) for reference in references]
    return sum(shares) / len(shares)


def vqa_score(answer: str, references: Sequence[str]) -> float:
    """Return what the official scorer of VQAv2 gives an answer, 0 to 1.

    Both sides are normalised, unless all references are the same: then the answer must equal them as it is.
    """
    given, wanted = _one_line(answer), [_one_line(reference) for reference in references]
    if len(set(wanted)) > 1:
        given, wanted = normalise(given), [normalise(reference) for reference in wanted]
    return soft_accuracy(given, wanted)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
