"""`python -m llava.eval.eval_science_qa`: scores ScienceQA answers with the original's options and files."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.command import EXIT_OK, OptionParser, note, say
from llava.command import run as run_command
from llava.eval.answers import read_answers
from llava.eval.benchmark import Scoring
from llava.eval.benchmarks.scienceqa import read_problems, score_answers
from llava.eval.metrics.scienceqa import FAILED
from llava.files import write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = OptionParser(prog="python -m llava.eval.eval_science_qa", description=__doc__)
    parser.add_argument("--base-dir", type=Path, required=True, help="folder of problems.json")
    parser.add_argument("--result-file", type=Path, required=True, help="the answers")
    parser.add_argument("--output-file", type=Path, required=True, help="what was right and what was wrong")
    parser.add_argument("--output-result", type=Path, required=True, help="accuracy, options and answers")
    parser.add_argument("--split", default="test")
    parser.add_argument("--options", default="ABCDE", choices=["ABCDE"], help="the letters (%(default)s)")

    def work() -> int:
        args = parser.parse_all(argv)
        pids, problems = read_problems(args.base_dir, args.split)
        records = read_answers(args.result_file)
        scoring = score_answers(pids, problems, records)
        for notice in scoring.notices:
            note(f"note: {notice}")
        last = {str(record["question_id"]): record for record in records}
        write_json(args.output_file, _analysis(scoring, last))
        write_json(args.output_result, _result(scoring, last))
        figures = scoring.figures
        say(
            f"Total: {int(figures['count'])}, Correct: {int(figures['correct'])}, "
            f"Accuracy: {figures['acc']:.2f}%, IMG-Accuracy: {figures['img_acc']:.2f}%"
        )
        return EXIT_OK

    return run_command(work)


def _analysis(scoring: Scoring, last: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"correct": [], "incorrect": []}
    for item in scoring.items:
        pid = str(item.id)
        record = last.get(pid, {"text": FAILED, "prompt": "Unknown"})
        found["correct" if item.score else "incorrect"].append(
            {
                "question_id": pid,
                "parsed_ans": scoring.details["parsed"][pid],
                "ground_truth": item.reference,
                "question": record.get("prompt", ""),
                "pred": record["text"],
                "is_multimodal": "<image>" in record.get("prompt", ""),
            }
        )
    return found


def _result(scoring: Scoring, last: Mapping[str, Any]) -> dict[str, Any]:
    results = scoring.details["results"]
    return {
        "acc": scoring.figures["acc"],
        "correct": int(scoring.figures["correct"]),
        "count": int(scoring.figures["count"]),
        "results": results,
        "outputs": {pid: last[pid]["text"] if pid in last else FAILED for pid in results},
    }


if __name__ == "__main__":
    sys.exit(main())
