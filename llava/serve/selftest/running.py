"""The checklist, carried out: attack after attack, and after each the question whether all is well."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Final

from llava.serve.selftest import network, pictures, text, wire
from llava.serve.selftest.outcome import Attack, NotApplicableError, Outcome, Trial
from llava.serve.selftest.target import Target

ATTACKS: Final = (
    Attack("A1", "register a worker without the token", network.register_without_token),
    Attack("A2", "register a worker elsewhere", network.register_hostile_addresses),
    Attack("A3", "fetch pictures from within", network.fetch_hostile_addresses),
    Attack("A4", "slow and endless bodies", wire.send_slowly),
    Attack("A5", "every route without the key", network.ask_without_key),
    Attack("A6", "guess the key by time", network.time_wrong_keys),
    Attack("A7", "ask from a web page", network.ask_from_a_web_page),
    Attack("A8", "flood of 200 clients", wire.flood),
    Attack("A9", "requests with two meanings", wire.send_ambiguously),
    Attack("A10", "a client that never reads", wire.never_read),
    Attack("A11", "decompression bombs", pictures.decompression_bombs),
    Attack("A12", "pictures of odd shapes", pictures.odd_shapes),
    Attack("A13", "broken and rare pictures", pictures.broken_pictures),
    Attack("A14", "pictures that are pages", pictures.polyglots),
    Attack("A15", "equal pixels, other shape", pictures.equal_pixels_of_another_shape),
    Attack("A16", "broken base64", pictures.broken_base64),
    Attack("A17", "what errors give away", pictures.words_of_errors),
    Attack("A18", "control tokens as text", text.control_tokens),
    Attack("A19", "prompts of 10^6 characters", text.long_prompts),
    Attack("A20", "pictures and places unequal", text.counts_of_pictures),
    Attack("A21", "numbers beyond bounds", text.numbers),
    Attack("A22", "active content in answers", text.active_content),
    Attack("A23", "instructions in a picture", text.instructions_in_a_picture),
)
NAMES: Final = tuple(attack.name for attack in ATTACKS)


def attack_all(target: Target, only: Collection[str] = NAMES) -> Iterator[Outcome]:
    """Yield what came of each attack, as soon as it is known."""
    for attack in ATTACKS:
        if attack.name in only:
            yield _attack(target, attack)


def _attack(target: Target, attack: Attack) -> Outcome:
    begin = time.monotonic()
    trials: list[Trial] = []
    reason = ""
    try:
        for trial in attack.run(target):
            trials.append(trial)
    except NotApplicableError as error:
        reason = str(error)
    except OSError as error:
        # A server that is gone: what was tried before still counts.
        trials.append(Trial("the connection", type(error).__name__, False))
    if not reason:
        trials.extend(target.afterwards())
    return Outcome(attack.name, attack.title, tuple(trials), reason, time.monotonic() - begin)
