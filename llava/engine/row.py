"""The state of one answer while it is decoded: tokens so far, text so far, and why it ended."""

from __future__ import annotations

from time import perf_counter

from llava.engine.batch import Prompt
from llava.engine.detokenize import Decoder, IncrementalDetokenizer, StopFilter
from llava.engine.request import Answer, FinishReason, SamplingParams, Timing
from llava.engine.sampling import TokenSampler


class Row:
    """One answer in the making."""

    def __init__(
        self,
        *,
        prompt: Prompt,
        sampling: SamplingParams,
        tokenizer: Decoder,
        stop: tuple[str, ...],
        eos_ids: frozenset[int],
        max_new_tokens: int,
        start: float,
    ) -> None:
        """`start`: when the request came in, by time.perf_counter."""
        self.prompt = prompt
        self.sampler = TokenSampler(sampling, prompt.input_ids)
        self.token_ids: list[int] = []
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._filter = StopFilter(stop)
        self._eos_ids = eos_ids
        self._max_new_tokens = max_new_tokens
        self._pieces: list[str] = []
        self._finish_reason: FinishReason | None = None
        self._start = start
        self._first_token_at = start
        self._finished_at = start

    @property
    def is_finished(self) -> bool:
        """Whether the answer has ended."""
        return self._finish_reason is not None

    def accept(self, token: int) -> str:
        """Take the next token and return the text that is now certain."""
        self.token_ids.append(token)
        if len(self.token_ids) == 1:
            self._first_token_at = perf_counter()
        piece = "" if token in self._eos_ids else self._filter.push(self._detokenizer.push(token))
        if token in self._eos_ids or self._filter.is_stopped:
            return self._finish("stop", piece)
        if len(self.token_ids) >= self._max_new_tokens:
            return self._finish("length", piece)
        self._pieces.append(piece)
        return piece

    def cancel(self) -> None:
        """End the answer where it is."""
        if not self.is_finished:
            self._finish("cancelled", "")

    def answer(self) -> Answer:
        """Return the finished answer."""
        assert self._finish_reason is not None, "answer of an unfinished row"
        return Answer(
            text="".join(self._pieces).strip(),
            finish_reason=self._finish_reason,
            num_prompt_tokens=len(self.prompt.input_ids),
            num_new_tokens=len(self.token_ids),
            timing=Timing(
                first_token_s=self._first_token_at - self._start, total_s=self._finished_at - self._start
            ),
        )

    def _finish(self, reason: FinishReason, piece: str) -> str:
        if not self._filter.is_stopped:
            piece += self._filter.push(self._detokenizer.flush())
            # The last characters may have completed a stop string after all.
            reason = "stop" if self._filter.is_stopped else reason
            piece += self._filter.flush()
        self._pieces.append(piece)
        self._finish_reason, self._finished_at = reason, perf_counter()
        return piece
