"""`llava.utils` keeps the original's names without its side effects."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import torch

from llava import utils


def test_a_logger_writes_its_file_and_leaves_stdout_alone(tmp_path: Path) -> None:
    streams = sys.stdout, sys.stderr
    logger = utils.build_logger("llava.test_utils", "worker.log", folder=tmp_path)
    assert utils.build_logger("llava.test_utils", "worker.log", folder=tmp_path) is logger
    logger.info("hello")
    for handler in logger.handlers:
        handler.close()
    assert (sys.stdout, sys.stderr) == streams
    assert (tmp_path / "worker.log").read_text().count("INFO | llava.test_utils | hello") == 1
    logging.getLogger("llava.test_utils").handlers.clear()


def test_torch_is_left_as_it_is() -> None:
    before = torch.nn.Linear.reset_parameters
    utils.disable_torch_init()
    assert torch.nn.Linear.reset_parameters is before


def test_a_semaphore_is_shown() -> None:
    assert utils.pretty_print_semaphore(None) == "None"
    assert utils.pretty_print_semaphore(asyncio.Semaphore(3)) == "Semaphore(value=3, locked=False)"


def test_the_messages_are_the_originals() -> None:
    assert utils.server_error_msg.startswith("**NETWORK ERROR")
    assert "MODERATION" in utils.moderation_msg
