"""What the page keeps on the server: votes, and dialogues only where `--log-conversations` asks for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llava.serve.web.conversation_log import ConversationLog, state_of
from llava.serve.web.display import pictures_of
from llava.serve.web.history import Dialogue
from llava.serve.web.votes import AnswerVote, PairVote, append_vote, read_votes, summary

if TYPE_CHECKING:
    from llava.serve.web.asking import Pane

_LOGGED_AS: Final[dict[str, Any]] = {"up": "upvote", "down": "downvote", "flag": "flag"}


class Recorder:
    """Appends to a file of votes, and to the log of dialogues where there is one."""

    def __init__(self, votes: Path, log: ConversationLog | None = None) -> None:
        self._votes = votes
        self._log = log

    def answer(self, pane: Pane, template: str, started_at: float, ip: str) -> None:
        """Take in an answer; raises FileError."""
        if self._log is not None:
            images = [
                image for turn in pane.dialogue.turns for image in pictures_of(turn.pictures, turn.mode)
            ]
            self._log.chat(
                model=pane.model,
                started_at=started_at,
                finished_at=time.time(),
                state=state_of(pane.shown, template),
                images=images,
                ip=ip,
            )

    def answer_vote(self, kind: Any, dialogue: Dialogue, model: str, template: str, ip: str) -> None:
        """Take in what somebody thinks of the last answer; raises FileError."""
        append_vote(self._votes, AnswerVote(kind, model))
        if self._log is not None:
            self._log.vote(_LOGGED_AS[kind], model=model, state=state_of(dialogue, template), ip=ip)

    def pair_vote(self, kind: Any, panes: Sequence[Pane], round_: Mapping[str, Any]) -> None:
        """Take in which of two answers somebody prefers; raises FileError."""
        left, right = round_["models"]
        words: dict[str, Any] = {}
        # Two answers can be compared where both models read the same before them.
        questions = [Dialogue(pane.dialogue.turns[:-1]).messages() for pane in panes]
        if self._log is not None and questions[0] == questions[1]:
            words = {
                "dialogue": questions[0],
                "left_answer": panes[0].dialogue.turns[-1].text,
                "right_answer": panes[1].dialogue.turns[-1].text,
            }
        append_vote(
            self._votes, PairVote(kind, left, right, bool(round_["blind"]), round_.get("seed"), **words)
        )

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Return headers and rows of how the votes stand; raises FileError, DataError."""
        found = summary(read_votes(self._votes)) if self._votes.exists() else {"answers": {}, "strengths": []}
        strengths = {item["model"]: item for item in found["strengths"]}
        names = sorted({*found["answers"], *strengths})
        rows = []
        for name in names:
            counts, own = found["answers"].get(name, {}), strengths.get(name)
            strength = (
                "" if own is None else f"{own['strength']:+.2f} [{own['low']:+.2f}, {own['high']:+.2f}]"
            )
            rows.append([name, counts.get("up", 0), counts.get("down", 0), counts.get("flag", 0), strength])
        return ["Model", "Up", "Down", "Flagged", "Strength in pairs (95 %)"], rows
