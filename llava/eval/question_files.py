"""The two question files of the original that are not lists of plain questions: ScienceQA's and MMBench's.

ScienceQA   JSON list  {"id", "image"?, "conversations": [{"from": "human", "value"}, ...]}
MMBench     TSV        index, question, hint, A to D, image (base64, or the index of the row that has it)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError, DependencyError, FileError
from llava.eval.questions import LETTER_ANSWER, Question
from llava.files import read_json

if TYPE_CHECKING:
    import pandas

LETTER_ANSWER_CN = "\n请直接回答选项字母。"
OPTION_LETTERS = ("A", "B", "C", "D")


def read_science_questions(path: Path, *, asks_for_letter: bool = True) -> list[Question]:
    """Read ScienceQA's questions; a question about a picture is recorded with `<image>` before it.

    asks_for_letter: end with the instruction to answer by a letter (--single-pred-prompt).
    Raises FileError, DataError naming the entry.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} is no list of questions")
    questions = []
    for number, entry in enumerate(entries, start=1):
        try:
            identity, image, value = entry["id"], entry.get("image"), entry["conversations"][0]["value"]
            text = value.replace(DEFAULT_IMAGE_TOKEN, "").strip()
        except (AttributeError, IndexError, KeyError, TypeError):
            raise DataError(
                f"{path} entry {number} is no question",
                remedy='Entries hold "id", perhaps "image", and "conversations", the first with a "value".',
            ) from None
        text += LETTER_ANSWER if asks_for_letter else ""
        prompt = text if image is None else f"{DEFAULT_IMAGE_TOKEN}\n{text}"
        questions.append(Question(id=identity, text=text, image=image, prompt=prompt))
    return questions


def read_mmbench_questions(
    path: Path,
    *,
    language: Literal["en", "cn"] = "en",
    asks_for_letter: bool = True,
    all_rounds: bool = False,
) -> list[Question]:
    """Read MMBench's questions, pictures included, in the order of the table.

    all_rounds: ask each row once for each option, with the options moved on by one every time.
    Raises FileError, DataError, DependencyError.
    """
    instruction = {"en": LETTER_ANSWER, "cn": LETTER_ANSWER_CN}[language] if asks_for_letter else ""
    rows = read_mmbench_table(path).to_dict("records")
    pictures = {int(row["index"]): str(row["image"]) for row in rows}
    questions = []
    for row in rows:
        index, options = int(row["index"]), _options(row)
        picture = pictures[index]
        picture = pictures.get(int(picture), picture) if picture.isdigit() else picture
        letters = list(OPTION_LETTERS[: len(options)])
        for number in range(len(options) if all_rounds else 1):
            moved = options[number:] + options[:number]
            lines = [f"{letter}. {option}" for letter, option in zip(letters, moved, strict=True)]
            hint = [row["hint"]] if not _is_empty(row.get("hint")) else []
            prompt = "\n".join([*hint, row["question"], *lines])
            questions.append(
                Question(
                    id=index,
                    text=prompt + instruction,
                    image=f"data:image/jpeg;base64,{picture}",
                    prompt=prompt,
                    category="default" if _is_empty(row.get("category")) else row["category"],
                    round=number,
                    extra={"options": moved, "option_char": letters[number:] + letters[:number]},
                    has_round=True,
                )
            )
    return questions


def read_mmbench_table(path: Path) -> pandas.DataFrame:
    """Read MMBench's TSV with every column as text; raises FileError, DataError, DependencyError."""
    try:
        import pandas
    except ImportError:
        raise DependencyError.of_extra("pandas", "eval", "reading MMBench's table") from None
    try:
        table = pandas.read_table(path, dtype=str)
    except (OSError, UnicodeDecodeError, pandas.errors.ParserError, pandas.errors.EmptyDataError) as error:
        raise FileError(f"{path} cannot be read as a table: {error}") from error
    missing = [name for name in ("index", "question", "A", "B", "image") if name not in table]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}")
    return table


def _options(row: Mapping[str, object]) -> list[str]:
    """Return the options up to the first empty one."""
    options: list[str] = []
    for letter in OPTION_LETTERS:
        if _is_empty(row.get(letter)):
            break
        options.append(str(row[letter]))
    return options


def _is_empty(value: object) -> bool:
    """Whether the original takes a cell for empty: nothing, or "nan" or "none" in any case."""
    return value is None or value != value or str(value).lower() in ("nan", "none")
