"""What an attack is, and what it reports: trials, or the reason why it does not apply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from llava.serve.selftest.service import Reply
    from llava.serve.selftest.target import Target

AS_BEFORE: Final = "answers as before"
"""What is seen after every attack that was stood, and needs no word in a table."""
PROMPT_S: Final = 10.0
"""Any refusal, and any short answer, comes within it; the machine may be busy."""
Verdict = Literal["pass", "FAIL", "n/a"]


class Trial(NamedTuple):
    """One thing that was tried."""

    what: str
    seen: str
    is_ok: bool


def refused(what: str, reply: Reply) -> Trial:
    """Return a trial that only a refusal in time stands."""
    return Trial(what, _seen(reply), reply.is_refused and reply.seconds < PROMPT_S)


def stood(what: str, reply: Reply) -> Trial:
    """Return a trial that an answer stands as well as a refusal."""
    is_ok = (reply.is_refused or reply.status == 200) and reply.seconds < PROMPT_S
    return Trial(what, _seen(reply), is_ok)


def _seen(reply: Reply) -> str:
    return reply.seen if reply.seconds < PROMPT_S else f"{reply.seen} after {reply.seconds:.0f} s"


class NotApplicableError(Exception):
    """This deployment has nothing that the attack could be tried on; the words say what is missing."""


class Attack(NamedTuple):
    """A row of the checklist."""

    name: str
    title: str
    run: Callable[[Target], Iterator[Trial]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attack."""

    name: str
    title: str
    trials: tuple[Trial, ...] = ()
    reason: str = ""
    """Why it does not apply."""
    seconds: float = 0.0

    @property
    def failures(self) -> list[Trial]:
        """The trials that the deployment did not stand."""
        return [trial for trial in self.trials if not trial.is_ok]

    @property
    def verdict(self) -> Verdict:
        """Pass only where something was tried and all of it was stood."""
        if self.reason:
            return "n/a"
        return "pass" if self.trials and not self.failures else "FAIL"

    @property
    def seen(self) -> str:
        """The first failure, or how often each answer was seen."""
        if self.reason:
            return self.reason
        if self.failures:
            first = self.failures[0]
            return f"{len(self.failures)} of {len(self.trials)}: {first.what}: {first.seen}"
        counts: dict[str, int] = {}
        for trial in self.trials:
            if trial.seen == AS_BEFORE:
                continue
            counts[trial.seen] = counts.get(trial.seen, 0) + 1
        return ", ".join(seen if count == 1 else f"{seen} ({count})" for seen, count in counts.items())
