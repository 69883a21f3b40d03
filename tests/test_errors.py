"""Errors say cause and remedy, and the documents say the same as the classes."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import pytest

from llava import errors
from llava.errors import ConfigError, DependencyError, FileError, ImageError, ImageLimitError, LlavaError

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, LlavaError)]


def test_an_error_reads_as_cause_then_remedy() -> None:
    error = FileError("x.png does not exist", remedy="Check the path.")
    assert (error.cause, error.remedy) == ("x.png does not exist", "Check the path.")
    assert str(error) == "x.png does not exist. Check the path."
    assert str(FileError("x.png does not exist")) == "x.png does not exist"


def test_a_caller_can_catch_at_the_level_it_needs() -> None:
    with pytest.raises(FileError):
        raise ImageLimitError("too large")
    with pytest.raises(LlavaError):
        raise ImageError("no picture")


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_ends_a_command_with_code_2(cls: type[LlavaError]) -> None:
    assert cls.exit_code == 2
    assert cls.code
    assert cls.code == cls.code.lower()


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_reaches_another_process_whole(cls: type[LlavaError]) -> None:
    more = {"where": "x.jsonl line 12"} if cls is errors.DataError else {}
    error = cls("it is wrong", remedy="Mend it.", **more)
    if isinstance(error, errors.ReportedError):
        error = errors.ReportedError("it is wrong", remedy="Mend it.", reported_code="prompt", error_number=3)
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is cls
    assert (str(arrived), arrived.code, vars(arrived)) == (str(error), error.code, vars(error))


def test_the_module_docstring_draws_every_class() -> None:
    assert errors.__doc__
    drawn = [line.split("+--")[1].split()[0] for line in errors.__doc__.splitlines() if "+--" in line]
    assert sorted([*drawn, "LlavaError"]) == sorted(cls.__name__ for cls in CLASSES)


def test_a_wrong_field_names_value_allowed_values_and_the_closest() -> None:
    with pytest.raises(ConfigError) as error:
        raise ConfigError.of_field(
            "mm_vision_select_feature", "pach", ["patch", "cls_patch"], source="c.json"
        )
    assert str(error.value) == (
        "mm_vision_select_feature is 'pach' in c.json, which is not known. "
        "Did you mean 'patch'? Allowed: patch, cls_patch."
    )


def test_a_field_far_from_everything_gets_no_guess() -> None:
    assert "Did you mean" not in str(ConfigError.of_field("aspect", "xyzzy", ["pad", "square"]))


def test_a_missing_package_comes_with_the_command_that_installs_it() -> None:
    with pytest.raises(DependencyError) as error:
        raise DependencyError.of_extra("bitsandbytes", "quantize", "loading in 8 bits")
    assert str(error.value) == (
        "bitsandbytes is not installed, and loading in 8 bits needs it. "
        "Run: pip install 'internvl-chat-llava[quantize]'"
    )


def test_every_extra_that_is_named_exists() -> None:
    root = Path(__file__).parents[1]
    files = [*root.glob("llava/**/*.py"), *root.glob("docs/*.md"), root / "README.md"]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    named = set(re.findall(r"internvl-chat-llava\[(\w+)\]", text))
    named |= set(re.findall(r"of_extra\(\s*[^,]+,\s*\"(\w+)\"", text))
    pyproject = (root / "pyproject.toml").read_text(encoding="utf-8")
    section = pyproject.split("[project.optional-dependencies]")[1].split("\n[")[0]
    extras = re.findall(r"^(\w+) = ", section, flags=re.MULTILINE)
    assert named
    assert named <= set(extras)
