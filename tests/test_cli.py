"""The `llava` command: what it knows, what it says when asked wrongly, and what it does not import."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest

import llava
from llava.cli import COMMANDS, main
from llava.command import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, run, say
from llava.errors import FileError, LlavaError, WeightsError

ROOT = Path(__file__).parents[1]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], [], *([name, "--help"] for name in COMMANDS)]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    result = python(
        "import sys\n"
        "from llava.cli import main\n"
        f"assert main({arguments!r}) == 0\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'numpy', 'PIL', 'tqdm'} & set(sys.modules)))"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("HEAVY []\n")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in out
        assert command.summary in out


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"llava {llava.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["chta"], "error[usage]: command chta is not known. Did you mean chat? See: llava --help\n"),
        (["--versoin"], "error[usage]: option --versoin is not known. See: llava --help\n"),
        (
            ["chat", "--temprature", "0"],
            "error[usage]: option --temprature is not known. "
            "Did you mean --temperature? See: llava chat --help\n",
        ),
        (
            ["chat", "--temperature", "hot"],
            "error[usage]: argument --temperature: invalid float value: 'hot'. See: llava chat --help\n",
        ),
        (["chat", "stray"], "error[usage]: argument stray is not known. See: llava chat --help\n"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", error)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileError("x is gone", remedy="Look."), "error[file]: x is gone. Look.\n"),
        (WeightsError("missing:\n  a\n  b"), "error[weights]: missing: a b\n"),
        (PermissionError(13, "Permission denied", "/x"), "error[file]: /x: Permission denied."),
    ],
)
def test_an_error_is_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise error

    assert run(fail) == LlavaError.exit_code
    assert capsys.readouterr().err.startswith(line)


def test_what_the_terminal_cannot_show_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(stream, encoding="ascii"))
    say("caf\u00e9")
    assert stream.getvalue() == b"caf?\n"


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fill() -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run(fill) == 2
    assert capsys.readouterr().err.startswith("error[file]: No space left on device. ")


def test_an_interruption_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    assert run(interrupt) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import sys\nfrom llava.command import run, say\n"
        "def talk():\n    while True: say('word ' * 1000)\nsys.exit(run(talk))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(30), errors) == (EXIT_BROKEN_PIPE, b"")
