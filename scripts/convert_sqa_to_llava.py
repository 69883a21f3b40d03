"""Makes training and question files of ScienceQA, as the original's script of this name.

    python scripts/convert_sqa_to_llava.py convert_to_llava --base-dir DIR --split train --prompt-format QCM-A
    python scripts/convert_sqa_to_llava.py convert_to_jsonl --base-dir DIR --split test

A format names the parts of what is asked and answered: Question, Context, Multiple choice, Lecture,
Explanation (the solution), Answer, and P for parts with titles. AL holds the solution and AE the lecture, as
originally. (The question file of LLaVA-1.5, llava_test_CQM-A.json, is another: `llava eval scienceqa` makes
it.)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.command import EXIT_OK, OptionParser, say
from llava.command import run as run_command
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import UsageError
from llava.eval.benchmarks.scienceqa import read_problems
from llava.eval.metrics.scienceqa import OPTIONS
from llava.files import write_json, write_text

INPUTS = {
    "QCM": "Question: {question}\nContext: {context}\nOptions: {options}\n",
    "CQM": "Context: {context}\nQuestion: {question}\nOptions: {options}\n",
    "QCML": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {lecture}",
    "QCME": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {solution}",
    "QCMLE": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {lecture} {solution}",
    "QCLM": "Question: {question}\nContext: {context}\nBECAUSE: {lecture}\nOptions: {options}\n",
    "QCEM": "Question: {question}\nContext: {context}\nBECAUSE: {solution}\nOptions: {options}\n",
    "QCLEM": "Question: {question}\nContext: {context}\nBECAUSE: {lecture} {solution}\nOptions: {options}\n",
}
OUTPUTS = {
    "A": "Answer: The answer is {answer}.",
    "AL": "Answer: The answer is {answer}. BECAUSE: {solution}",
    "AE": "Answer: The answer is {answer}. BECAUSE: {lecture}",
    "ALE": "Answer: The answer is {answer}. BECAUSE: {lecture} {solution}",
    "AEL": "Answer: The answer is {answer}. BECAUSE: {solution} {lecture}",
    "LA": "Answer: {lecture} The answer is {answer}.",
    "EA": "Answer: {solution} The answer is {answer}.",
    "LEA": "Answer: {lecture} {solution} The answer is {answer}.",
    "ELA": "Answer: {solution} {lecture} The answer is {answer}.",
    "LEPA": "{titled}###\nANSWER: {answer}.",
}


def question_and_answer(problem: Mapping[str, Any], form: str) -> tuple[str, str]:
    """Return what is asked and answered in the given format; raises UsageError for one there is not."""
    asked, _, answered = form.partition("-")
    if asked not in INPUTS or answered not in OUTPUTS:
        raise UsageError(
            f"--prompt-format is {form!r}",
            remedy=f"Join one of {', '.join(INPUTS)} and one of {', '.join(OUTPUTS)} with a hyphen.",
        )
    titled = {"LECTURE": problem["lecture"], "SOLUTION": problem["solution"]}
    parts = {
        "question": problem["question"],
        "context": problem["hint"].strip() or "N/A",
        "options": " ".join(
            f"({letter}) {choice}" for letter, choice in zip(OPTIONS, problem["choices"], strict=False)
        ),
        "answer": OPTIONS[problem["answer"]],
        "lecture": problem["lecture"].replace("\\n", "\n"),
        "solution": problem["solution"].replace("\\n", "\n"),
        "titled": "".join(f"{name}: {text}\n" for name, text in titled.items() if text.strip()),
    }
    return (
        _tidied(INPUTS[asked].format(**parts), "Question: "),
        _tidied(OUTPUTS[answered].format(**parts), "Answer: "),
    )


def _tidied(text: str, title: str) -> str:
    text = text.replace("  ", " ").strip()
    if text.endswith("BECAUSE:"):
        text = text.replace("BECAUSE:", "").strip()
    return text.replace(title, "") if text.startswith(title) else text


def examples(base: Path, split: str, form: str) -> Iterator[tuple[str, str | None, str, str]]:
    """Yield id, picture, question and answer of each problem once; a picture's marker ends the question."""
    pids, problems = read_problems(base, split)
    for pid in dict.fromkeys(pids):
        question, answer = question_and_answer(problems[pid], form)
        image = problems[pid]["image"]
        if image is None:
            yield pid, None, question, answer
        else:
            yield pid, f"{pid}/{image}", f"{question}\n{DEFAULT_IMAGE_TOKEN}", answer


def convert_to_llava(base: Path, split: str, form: str) -> Path:
    """Write the split in the form that training reads, and return where."""
    entries = []
    for pid, image, question, answer in examples(base, split, form):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        entries.append({"id": pid, **({"image": image} if image else {}), "conversations": turns})
    target = base / f"llava_{split}_{form}.json"
    write_json(target, entries)
    return target


def convert_to_jsonl(base: Path, split: str, form: str) -> Path:
    """Write the split as instructions and outputs, one a line, and return where."""
    lines = []
    for pid, image, question, answer in examples(base, split, form):
        picture = {"image": image} if image else {}
        lines.append(json.dumps({"id": pid, **picture, "instruction": question, "output": answer}) + "\n")
    target = base / f"scienceqa_{split}_{form}.jsonl"
    write_text(target, "".join(lines))
    return target


TASKS = {
    "convert_to_llava": (convert_to_llava, "QCM-LEA"),
    "convert_to_jsonl": (convert_to_jsonl, "QCM-LEPA"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = OptionParser(prog="convert_sqa_to_llava.py", description=__doc__)
    parser.add_argument("task", choices=TASKS, help="what to write")
    parser.add_argument("--base-dir", "--base_dir", type=Path, required=True, help="folder of problems.json")
    parser.add_argument("--split", required=True, help="as train")
    parser.add_argument("--prompt-format", "--prompt_format", help="(QCM-LEA; QCM-LEPA for jsonl)")

    def work() -> int:
        args = parser.parse_all(argv)
        convert, usual = TASKS[args.task]
        say(str(convert(args.base_dir, args.split, args.prompt_format or usual)))
        return EXIT_OK

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
