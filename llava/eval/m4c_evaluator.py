"""The original's scorers of short answers under its names, for outside code that imports them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava.errors import DependencyError
from llava.eval.metrics.evalai import process
from llava.eval.metrics.vqa import soft_accuracy

Predictions = Sequence[Mapping[str, Any]]
"""{"pred_answer": str, "gt_answers": [str, ...]} each."""


class EvalAIAnswerProcessor:
    """Makes answers comparable as EvalAI's servers do."""

    def __call__(self, item: str) -> str:
        """Return the answer in lower case, without articles and most marks."""
        return process(item)


class TextVQAAccuracyEvaluator:
    """Soft accuracy over ten answers of people."""

    def eval_pred_list(self, pred_list: Predictions) -> float:
        """Return the mean score, 0 to 1; 0 of nothing."""
        return _mean(
            soft_accuracy(process(entry["pred_answer"]), [process(text) for text in entry["gt_answers"]])
            for entry in pred_list
        )


class STVQAAccuracyEvaluator:
    """Exact match with any of the references."""

    def eval_pred_list(self, pred_list: Predictions) -> float:
        """Return the share of predictions that are a reference, 0 to 1; 0 of nothing."""
        return _mean(
            float(process(entry["pred_answer"]) in {process(text) for text in entry["gt_answers"]})
            for entry in pred_list
        )


class STVQAANLSEvaluator:
    """Average normalised Levenshtein similarity; what is less than half alike counts nothing."""

    def eval_pred_list(self, pred_list: Predictions) -> float:
        """Return the mean over predictions of the best similarity with a reference, 0 to 1; 0 of nothing."""
        return _mean(
            max((similarity(entry["pred_answer"], text) for text in entry["gt_answers"]), default=0.0)
            for entry in pred_list
        )


class TextCapsBleu4Evaluator:
    """BLEU-4 of captions, by the package pycocoevalcap, whose tokenizer runs Java."""

    def __init__(self) -> None:
        """Raise DependencyError where the package is missing."""
        try:
            from pycocoevalcap.bleu.bleu import Bleu
            from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
        except ImportError:
            raise DependencyError(
                "pycocoevalcap is not installed, and BLEU of captions needs it",
                remedy="Run: pip install pycocoevalcap (and install Java).",
            ) from None
        self._tokenizer, self._scorer = PTBTokenizer(), Bleu(4)

    def eval_pred_list(self, pred_list: Predictions) -> float:
        """Return BLEU-4 over all predictions, 0 to 1; 0 of nothing."""
        if not pred_list:
            return 0.0
        references = {n: [{"caption": text} for text in own["gt_answers"]] for n, own in enumerate(pred_list)}
        captions = {n: [{"caption": own["pred_answer"]}] for n, own in enumerate(pred_list)}
        scores, _ = self._scorer.compute_score(
            self._tokenizer.tokenize(references), self._tokenizer.tokenize(captions), verbose=0
        )
        return float(scores[3])


def similarity(first: str, second: str) -> float:
    """Return 1 less the edit distance by the longer length, in lower case; 0 below one half."""
    first, second = first.lower().strip(), second.lower().strip()
    longest = max(len(first), len(second))
    alike = 1.0 - edit_distance(first, second) / longest if longest else 1.0
    return alike if alike >= 0.5 else 0.0


def edit_distance(first: str, second: str) -> int:
    """Return how many characters must be put in, taken out or changed to make one of the other."""
    row = list(range(len(second) + 1))
    for number, own in enumerate(first, start=1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(second, start=1):
            changed = diagonal + (own != other)
            diagonal = row[place]
            row[place] = min(changed, row[place] + 1, row[place - 1] + 1)
    return row[-1]


def _mean(scores: Any) -> float:
    found = list(scores)
    return sum(found) / len(found) if found else 0.0
