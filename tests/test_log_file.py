"""The log file of a server: what is in it, who may read it, its days, and what happens when it cannot be."""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava.errors import FileError, UsageError
from llava.log import FILE_ONLY, TERMINAL_ONLY, configure, get_logger
from llava.log_file import KEPT_DAYS, LogFile
from tests.documents import quiet_process

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| (INFO|WARNING|ERROR|CRITICAL) \| [\w.]+ \| .*")
FULL = Path("/dev/full")
posix = pytest.mark.skipif(os.name != "posix", reason="modes and locks of files")


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    """Leave no loggers of a server to other tests."""
    with quiet_process():
        yield


def log_everything() -> None:
    """Log at every level, as this project and as libraries."""
    for name in ("llava.tests", "PIL.tests", "another.library"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            get_logger(name).log(level, "%s says %d", name, level)
    get_logger("llava.tests").info("for the file", extra=FILE_ONLY)
    get_logger("llava.tests").error("for the terminal", extra=TERMINAL_ONLY)


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def messages_of(path: Path) -> list[str]:
    """Return what was logged between the first line and the last."""
    return [line.split(" | ", 3)[3] for line in lines_of(path)[1:-1]]


@pytest.mark.parametrize("is_verbose", [False, True])
def test_the_file_gets_more_and_the_terminal_what_it_always_got(
    is_verbose: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(verbose=is_verbose)
    log_everything()
    without = capsys.readouterr().err
    with LogFile(tmp_path / "controller.log"):
        log_everything()
    assert capsys.readouterr().err == without
    log_everything()
    assert capsys.readouterr().err == without
    assert ("INFO llava.tests: llava.tests says 20" in without) is is_verbose
    assert "for the file" not in without
    assert messages_of(tmp_path / "controller.log") == [
        *(f"llava.tests says {level}" for level in (20, 30, 40)),
        *(f"PIL.tests says {level}" for level in (30, 40)),
        *(f"another.library says {level}" for level in (30, 40)),
        "for the file",
    ]


def test_a_library_that_keeps_its_records_to_itself_is_in_the_file(tmp_path: Path) -> None:
    library = logging.getLogger("transformers")
    before = library.propagate
    library.propagate = False
    try:
        with LogFile(tmp_path / "controller.log"):
            library.error("it is so")  # the level that a program's start leaves it
    finally:
        library.propagate = before
    assert messages_of(tmp_path / "controller.log") == ["it is so"]


def test_a_record_is_one_line_in_utc_whatever_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    begin = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    with LogFile(tmp_path / "controller.log") as file:
        # Past the loggers: pytest could not report what is no text.
        words = {"msg": "a\nb\r\u2028\x1b[31m %s", "args": ("c | d \u00e9 \ud800",)}
        file.handle(logging.makeLogRecord({"name": "llava.tests", "levelname": "INFO", **words}))
    assert all(LINE.fullmatch(line) for line in lines_of(tmp_path / "controller.log"))
    assert messages_of(tmp_path / "controller.log") == ["a\\nb\\r\\u2028\\x1b[31m c | d \u00e9 \\ud800"]
    assert (
        begin
        <= lines_of(tmp_path / "controller.log")[0][: len(begin)]
        <= time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    )


@posix
def test_file_and_folder_are_their_owners(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "controller.log"
    with LogFile(path):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_day_that_has_begun_gets_a_new_file_and_old_days_go(tmp_path: Path) -> None:
    path = tmp_path / "controller.log"
    path.write_text("of that day\n", encoding="utf-8")
    then = time.time() - 3 * 86400
    os.utime(path, (then, then))
    for number in range(KEPT_DAYS + 5):
        (tmp_path / f"controller.log.2020-{1 + number // 28:02}-{1 + number % 28:02}").touch()
    (tmp_path / "controller.log.mine").touch()
    with LogFile(path):
        get_logger("llava.tests").info("of today")
    assert messages_of(path) == ["of today"]
    day = time.strftime("%Y-%m-%d", time.gmtime(then))
    assert (tmp_path / f"controller.log.{day}").read_text(encoding="utf-8") == "of that day\n"
    rotated = sorted(tmp_path.glob("controller.log.2*"))
    assert len(rotated) == KEPT_DAYS
    assert rotated[0].name == "controller.log.2020-01-07"
    assert (tmp_path / "controller.log.mine").exists()
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_later_start_goes_on_in_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "controller.log"
    for _ in range(2):
        with LogFile(path):
            pass
    told = [line.split(" | ", 3)[3] for line in lines_of(path)]
    assert told == [f"process {os.getpid()} {what}" for what in ("started", "ended") * 2]


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="cannot be written") as caught:
        LogFile(tmp_path / "file" / "controller.log")
    assert "--log-dir" in caught.value.remedy


@posix
def test_a_second_process_is_told_to_write_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "controller.log"
    with LogFile(path):
        with pytest.raises(FileError, match="another process"):
            LogFile(path)
        get_logger("llava.tests").info("still here")
    assert messages_of(path) == ["still here"]


@pytest.mark.skipif(not FULL.exists(), reason="there is no device that is always full")
def test_a_full_disk_is_said_once_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "controller.log"
    path.symlink_to(FULL)
    with LogFile(path):
        for _ in range(2000):
            get_logger("llava.tests").info("x" * 100)
    said = capsys.readouterr().err
    assert said.count("cannot be written, and serving goes on: No space left") == 1
    assert "Traceback" not in said


def test_a_folder_that_goes_away_at_midnight_is_said_and_written_again_when_it_is_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "controller.log"
    logger = get_logger("llava.tests")
    with LogFile(path) as file:
        file.rolloverAt = int(time.time()) - 1
        path.parent.rename(tmp_path / "elsewhere")
        logger.info("lost")
        logger.info("lost too")
        path.parent.mkdir()
        logger.info("back")
        logger.info("and on")
    assert capsys.readouterr().err.count("cannot be written, and serving goes on") == 1
    assert [line.split(" | ", 3)[3] for line in lines_of(path)][:2] == ["back", "and on"]


def test_a_mistake_in_a_call_that_logs_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure()  # pytest's own handlers would raise it
    with LogFile(tmp_path / "controller.log"):
        logging.getLogger("llava.tests").info("%d", "no number")
    assert "TypeError" in capsys.readouterr().err


def test_what_ends_a_server_is_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "controller.log"
    with pytest.raises(UsageError), LogFile(path):
        raise UsageError("port 1 is taken", remedy="Give another.")
    with pytest.raises(ZeroDivisionError), LogFile(path):
        _ = 1 / (len(sys.argv) - len(sys.argv))
    text = path.read_text(encoding="utf-8")
    assert "| ERROR | llava.log_file | error[usage]: port 1 is taken. Give another.\n" in text
    assert "| CRITICAL | llava.log_file | ZeroDivisionError\nTraceback" in text
    assert text.count("ended\n") == 2
    assert not any(isinstance(handler, LogFile) for handler in logging.getLogger().handlers)
