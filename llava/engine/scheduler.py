"""Which requests run, and what the model computes next: joining, prefilling, decoding, leaving.

    waiting -> admitted (row opened, shared prefix taken over, pictures encoded)
            -> prefilling (pieces of the prompt, within one budget a step) -> decoding -> left

Every step is one `Runner.forward`: one token of each decoding row, and pieces of prompts. Memory is bounded
by admission: a request waits until its row fits, and stored prefixes make room before anybody waits. Knows
neither threads nor text. L prompt length, C hidden size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from llava.engine.generation import Generation
from llava.engine.pictures import FeatureCache
from llava.engine.prefixes import MIN_SHARED_TOKENS, PrefixCache
from llava.engine.prompt import shared_length
from llava.engine.protocol import Statistics
from llava.engine.runner import BeamSearch, Chunk, Row, Runner, Stored
from llava.errors import ConfigError, EngineError


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Limits of one engine."""

    max_rows: int = 16
    """Requests that run at the same time."""
    prefill_tokens: int = 1024
    """Prompt positions computed in one step, over all rows: how long running answers wait for new ones."""
    prefix_bytes: int | None = None
    """Keys and values kept of finished answers; 0 keeps none, None what running ones leave room for."""
    max_waiting: int = 4096
    """Requests that may wait; one more is refused with EngineBusyError."""

    def __post_init__(self) -> None:
        for name, low in (("max_rows", 1), ("prefill_tokens", 1), ("prefix_bytes", 0), ("max_waiting", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} is {value!r}", remedy=f"It must be at least {low}.")


class Scheduler:
    """The requests of one runner."""

    def __init__(self, runner: Runner, features: FeatureCache, options: SchedulerOptions) -> None:
        """Nothing runs yet."""
        self._runner = runner
        self._features = features
        self._options = options
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._prefixes = PrefixCache(runner.drop, max_bytes=options.prefix_bytes)
        self._counts = dict.fromkeys(("finished", "cancelled", "failed"), 0)
        self._sums = dict.fromkeys(
            ("prompt_tokens", "cached_tokens", "new_tokens", "images", "cached_images"), 0
        )

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def add(self, generation: Generation) -> None:
        """Take a request."""
        self._waiting.append(generation)

    def step(self) -> None:
        """Admit what fits, compute one step, and give every row that is due its next token."""
        self._leave_cancelled()
        self._admit()
        if not self._running:
            return
        due, chunks = self._plan()
        try:
            logits = self._runner.forward(chunks)
        except EngineError as error:
            self._relieve(error)
            return
        if not any(chunk.wants_logits for chunk in chunks):
            return
        wanting = [generation for generation, chunk in zip(due, chunks, strict=True) if chunk.wants_logits]
        _choose(wanting, logits)
        for generation in wanting:
            if generation.is_finished:
                self._leave(generation)

    def fail_all(self, error: BaseException) -> None:
        """End everything that runs or waits by an error, and forget what was stored."""
        for generation in list(self._running):
            generation.fail(error)
            self._leave(generation)
        for generation in self._waiting:
            generation.fail(error)
            self._count(generation)
        self._waiting.clear()
        self._prefixes.clear()

    def statistics(self) -> Statistics:
        """Return what was done and what is being done."""
        return Statistics(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            cache_bytes=self._prefixes.num_bytes,
            **{f"num_{name}": value for name, value in (self._counts | self._sums).items()},
        )

    def _leave_cancelled(self) -> None:
        for generation in [one for one in self._waiting if one.is_cancelled]:
            self._waiting.remove(generation)
            generation.cancel()
            self._count(generation)
        for generation in [one for one in self._running if one.is_cancelled]:
            generation.cancel()
            self._leave(generation)

    def _admit(self) -> None:
        """Open rows for waiting requests, in their order, while rows, memory and the step's budget last."""
        budget = self._options.prefill_tokens - sum(
            len(one.pending) for one in self._running if one.pending is not None
        )
        for generation in list(self._waiting):
            if len(self._running) >= self._options.max_rows or budget <= 0:
                return
            if generation.sampling.num_beams > 1:
                self._waiting.remove(generation)
                self._search(generation)
                continue
            source, num_shared = self._find_prefix(generation)
            if self._is_worth_waiting(generation, num_shared):
                continue
            num_prefixes = len(self._prefixes)
            if not self._make_room(generation):
                if self._running:
                    return
                self._waiting.remove(generation)
                generation.fail(_too_large(generation))
                self._count(generation)
                continue
            self._waiting.remove(generation)
            if len(self._prefixes) != num_prefixes:
                # What was found may have been dropped for room.
                source, num_shared = self._find_prefix(generation)
            self._open(generation, source, num_shared)
            budget -= len(generation.prompt) - generation.num_cached_tokens

    def _find_prefix(self, generation: Generation) -> tuple[Row | Stored | None, int]:
        """Return what shares the longest computed beginning with a prompt, stored or running."""
        if not self._prefixes.is_enabled:
            return None, 0
        source: Row | Stored | None
        source, num_shared = self._prefixes.find(generation.prompt.key)
        for other in self._running:
            shared = shared_length(other.computed_key, generation.prompt.key)
            if shared > max(num_shared, MIN_SHARED_TOKENS - 1):
                source, num_shared = other.row, shared
        # One position is computed in any case: it gives the logits.
        return source, min(num_shared, len(generation.prompt) - 1)

    def _is_worth_waiting(self, generation: Generation, num_shared: int) -> bool:
        """Whether a row that is being prefilled will soon have a longer beginning to take over."""
        if not self._prefixes.is_enabled:
            return False
        key = generation.prompt.key
        return any(
            other.pending is not None
            and shared_length(other.prompt.key, key) >= num_shared + MIN_SHARED_TOKENS
            for other in self._running
        )

    def _make_room(self, generation: Generation) -> bool:
        while not self._runner.can_open(generation.max_tokens):
            if not self._prefixes.drop_oldest():
                return False
        return True

    def _search(self, generation: Generation) -> None:
        """Answer by beam search, all at once: the others wait."""
        assert isinstance(self._runner, BeamSearch), "beams were asked of a runner without them"
        generation.take_up()
        try:
            new_ids = self._runner.beam_search(
                self._embeds(generation, 0),
                num_beams=generation.sampling.num_beams,
                max_new_tokens=generation.max_new_tokens,
                eos_ids=generation.eos_ids,
            )
        except EngineError as error:
            generation.fail(error)
        else:
            for token in new_ids:
                if not generation.is_finished:
                    generation.accept(token)
        self._count(generation)

    def _open(self, generation: Generation, source: Row | Stored | None, num_shared: int) -> None:
        generation.take_up()
        generation.row = self._runner.open(generation.max_tokens, source=source, num_shared=num_shared)
        generation.num_cached_tokens = num_shared
        self._running.append(generation)
        generation.pending = self._embeds(generation, num_shared)

    def _embeds(self, generation: Generation, begin: int) -> torch.Tensor:
        """Return float[L - begin, C]: what the model takes in for the positions from `begin` on."""
        prompt = generation.prompt
        first = prompt.num_pictures_before(begin)
        start = perf_counter()
        features, num_fresh = self._features.encode_all(prompt.pictures[first:])
        generation.image_s = perf_counter() - start if num_fresh else 0.0
        self._sums["prompt_tokens"] += len(prompt)
        self._sums["cached_tokens"] += begin
        self._sums["images"] += len(prompt.pictures)
        self._sums["cached_images"] += len(prompt.pictures) - num_fresh
        return prompt.overlay(self._runner.embed(prompt.input_ids[begin:]), begin, features, first)

    def _plan(self) -> tuple[list[Generation], list[Chunk]]:
        """Return whose turn it is and what each computes: decoding rows first, then pieces of prompts."""
        decoding = [one for one in self._running if one.pending is None]
        due = list(decoding)
        chunks: list[Chunk] = []
        if decoding:
            tokens = torch.tensor([one.token_ids[-1] for one in decoding])
            for one, embeds in zip(decoding, self._runner.embed(tokens).split(1), strict=True):
                chunks.append(Chunk(_row(one), embeds))
        budget = self._options.prefill_tokens
        for one in self._running:
            if one.pending is None or budget <= 0:
                continue
            piece = one.pending[:budget]
            is_last = len(piece) == len(one.pending)
            due.append(one)
            chunks.append(Chunk(_row(one), piece, wants_logits=is_last))
            one.pending = None if is_last else one.pending[len(piece) :]
            budget -= len(piece)
        return due, chunks

    def _relieve(self, error: EngineError) -> None:
        """After a step that ran out of memory: forget what is stored, and give up the newest request."""
        self._prefixes.clear()
        newest = self._running[-1]
        newest.fail(error)
        self._leave(newest)
        for generation in list(self._running):
            if generation.pending is None and generation.token_ids:
                continue
            # A piece of its prompt was lost with the step: it begins again.
            self._running.remove(generation)
            self._runner.close(_row(generation), keep=False)
            generation.row = generation.pending = None
            self._waiting.appendleft(generation)

    def _leave(self, generation: Generation) -> None:
        self._running.remove(generation)
        row, key = _row(generation), generation.computed_key
        keep = self._prefixes.is_enabled and generation.error is None and len(key) >= MIN_SHARED_TOKENS
        stored = self._runner.close(row, keep=keep and not self._prefixes.contains(key))
        if stored is not None:
            self._prefixes.add(key, stored)
        generation.row = generation.pending = None
        self._count(generation)

    def _count(self, generation: Generation) -> None:
        failed = generation.error is not None
        reason = generation.answer().finish_reason
        self._counts["failed" if failed else "cancelled" if reason == "cancelled" else "finished"] += 1
        self._sums["new_tokens"] += len(generation.token_ids)
        generation.announce_end()


def _choose(generations: Sequence[Generation], logits: torch.Tensor) -> None:
    """Give every generation its next token; one arg-max for all that want no more than that.

    Rows without numbers end their own answers and no others.
    """
    broken = logits.isnan().any(-1).tolist()
    if any(broken):
        for one, is_broken in zip(generations, broken, strict=True):
            if is_broken:
                one.fail(_no_number())
        kept = [index for index, is_broken in enumerate(broken) if not is_broken]
        generations, logits = [generations[index] for index in kept], logits[kept]
    for one, token, row_logits in zip(generations, logits.argmax(-1).tolist(), logits, strict=True):
        if one.sampler.is_plain_argmax:
            one.accept(token)
        else:
            one.choose(row_logits)


def _row(generation: Generation) -> Row:
    assert generation.row is not None, "a running generation without a row"
    return generation.row


def _no_number() -> EngineError:
    return EngineError(
        "the model computed something that is no number for this request",
        remedy="Load it with another dtype (float32), and check the checkpoint's weights.",
    )


def _too_large(generation: Generation) -> EngineError:
    return EngineError(
        f"prompt and answer may take {generation.max_tokens} tokens, more than the engine has memory for",
        remedy="Ask for fewer new tokens, shorten the prompt, or give the engine more memory.",
    )
