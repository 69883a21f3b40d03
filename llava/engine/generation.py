"""The state of one answer while it is made: tokens so far, text so far, times, and why it ended."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch

from llava.engine.constraining import Constraint
from llava.engine.detokenize import Decoder, IncrementalDetokenizer, StopFilter
from llava.engine.prompt import Prompt
from llava.engine.request import Answer, Choice, FinishReason, SamplingParams, Timing, TokenLogprob
from llava.engine.runner import Row
from llava.engine.sampling import TokenSampler
from llava.errors import RequestError

OnPiece = Callable[["Generation", str | None], None]
"""Told of every piece of text that is certain, and with None of the end, when all is done and counted."""


class Generation:
    """One answer in the making."""

    def __init__(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        tokenizer: Decoder,
        stop: tuple[str, ...],
        eos_ids: frozenset[int],
        max_new_tokens: int,
        start: float,
        on_piece: OnPiece | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """`start`: when the request came in, by time.perf_counter; `constraint`: of its response format."""
        self.prompt = prompt
        self.sampling = sampling
        self.sampler = TokenSampler(sampling, prompt.input_ids, constraint)
        self.eos_ids = eos_ids
        self.max_new_tokens = max_new_tokens
        self.token_ids: list[int] = []
        self.row: Row | None = None
        """Keys and values, while the engine works on it."""
        self.pending: torch.Tensor | None = None
        """float[n, C]: embeddings of the prompt that are not computed yet; None once all are."""
        self.num_cached_tokens = 0
        self.image_s = 0.0
        self.is_cancelled = False
        """Set by whoever does not want the rest; the engine looks at it between steps."""
        self.error: BaseException | None = None
        """What ended it, if neither the model nor a wish did."""
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._filter = StopFilter(stop)
        self._on_piece = on_piece
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish_reason: FinishReason | None = None
        self._start = start
        self._taken_up_at: float | None = None
        self._first_token_at: float | None = None
        self._finished_at = start

    @property
    def is_finished(self) -> bool:
        """Whether the answer has ended."""
        return self._finish_reason is not None

    @property
    def max_tokens(self) -> int:
        """Positions that prompt and answer may take; the last token is never computed."""
        return len(self.prompt) + self.max_new_tokens - 1

    @property
    def computed_key(self) -> np.ndarray:
        """int64[n]: the key of the positions whose keys and values are in `row`."""
        num_tokens = self.row.num_tokens if self.row is not None else 0
        return np.concatenate([self.prompt.key, np.array(self.token_ids, dtype=np.int64)])[:num_tokens]

    def take_up(self) -> None:
        """Note that waiting is over."""
        self._taken_up_at = perf_counter()

    def choose(self, logits: torch.Tensor) -> None:
        """Choose and accept the next token; logits: float[V]. A format that cannot be kept ends it."""
        try:
            token = self.sampler.choose(logits)
        except RequestError as error:
            self.fail(error)
            return
        if self.sampling.logprobs is not None:
            self._logprobs.append(self._logprob(logits, token))
        self.accept(token)

    def accept(self, token: int) -> None:
        """Take the next token, and pass on the text that is now certain."""
        self.token_ids.append(token)
        if self._first_token_at is None:
            self._first_token_at = perf_counter()
        piece = "" if token in self.eos_ids else self._filter.push(self._detokenizer.push(token))
        if token in self.eos_ids or self._filter.is_stopped:
            self._finish("stop", piece)
        elif len(self.token_ids) >= self.max_new_tokens:
            self._finish("length", piece)
        else:
            self._give(piece)

    def cancel(self) -> None:
        """End the answer where it is."""
        if not self.is_finished:
            self._finish("cancelled", "")

    def fail(self, error: BaseException) -> None:
        """End the answer by an error, which whoever reads it will see."""
        if not self.is_finished:
            self.error = error
            self._finish("cancelled", "")

    def announce_end(self) -> None:
        """Tell whoever reads that nothing more comes; called once, by who counts."""
        if self._on_piece is not None:
            self._on_piece(self, None)

    def answer(self) -> Answer:
        """Return the finished answer."""
        assert self._finish_reason is not None, "answer of an unfinished generation"
        first = self._first_token_at if self._first_token_at is not None else self._finished_at
        taken_up = self._taken_up_at if self._taken_up_at is not None else self._finished_at
        return Answer(
            text="".join(self._pieces).strip(),
            finish_reason=self._finish_reason,
            num_prompt_tokens=len(self.prompt),
            num_new_tokens=len(self.token_ids),
            timing=Timing(
                first_token_s=first - self._start,
                total_s=self._finished_at - self._start,
                queued_s=taken_up - self._start,
                image_s=self.image_s,
            ),
            num_cached_tokens=self.num_cached_tokens,
            logprobs=tuple(self._logprobs) if self.sampling.logprobs is not None else None,
            token_ids=tuple(self.token_ids),
        )

    def _finish(self, reason: FinishReason, piece: str) -> None:
        if not self._filter.is_stopped:
            piece += self._filter.push(self._detokenizer.flush())
            # The last characters may have completed a stop string after all.
            reason = "stop" if self._filter.is_stopped else reason
            piece += self._filter.flush()
        self._finish_reason, self._finished_at = reason, perf_counter()
        self._give(piece)

    def _give(self, piece: str) -> None:
        if not piece:
            return
        self._pieces.append(piece)
        if self._on_piece is not None:
            self._on_piece(self, piece)

    def _logprob(self, logits: torch.Tensor, token: int) -> TokenLogprob:
        scores = logits.detach().float().cpu().log_softmax(-1)
        assert self.sampling.logprobs is not None
        best = scores.topk(min(self.sampling.logprobs, len(scores)))
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return TokenLogprob(
            self._choice(token, float(scores[token])), tuple(self._choice(*pair) for pair in top)
        )

    def _choice(self, token: int, logprob: float) -> Choice:
        # After the id before it, since some tokenizers show a leading space only inside a text.
        before = self.token_ids[-1:]
        known = self._tokenizer.decode(before, skip_special_tokens=False) if before else ""
        text = self._tokenizer.decode([*before, token], skip_special_tokens=False)
        return Choice(token, text[len(known) :], logprob)
