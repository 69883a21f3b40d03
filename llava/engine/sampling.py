"""Choose the next token of each row from its logits. V vocabulary, B rows."""

from __future__ import annotations

import torch

from llava.engine.constraining import Constraint
from llava.engine.request import SamplingParams


class TokenSampler:
    """The choice of one request: its parameters, its random state and the ids it must not repeat.

    Sampling runs on the CPU in float32, so that a seed gives the same answer on every device.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: torch.Tensor, constraint: Constraint | None = None
    ) -> None:
        """`prompt_ids`: int64[L]; negative ids (pictures) are left out of the repetition penalty.

        constraint: says which ids may come next; None allows all.
        """
        self._params = params
        self._constraint = constraint
        self._generator = torch.Generator(device="cpu")
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)
        self._seen = set(prompt_ids[prompt_ids >= 0].tolist()) if params.repetition_penalty != 1 else set()

    @property
    def is_plain_argmax(self) -> bool:
        """Whether all that is wanted is the arg-max of the raw logits, which a whole batch can do at once."""
        params = self._params
        is_free = params.repetition_penalty == 1 and self._constraint is None
        return params.is_greedy and is_free and params.logprobs is None

    def choose(self, logits: torch.Tensor) -> int:
        """Return the next id for `logits`: float[V]; raises RequestError when no id keeps to the format."""
        scores = logits.detach().float().cpu()
        if self._constraint is not None:
            # Before everything else: filters choose among what may come next.
            scores = scores.masked_fill(~self._constraint.allowed(len(scores)), -torch.inf)
        if self._params.repetition_penalty != 1:
            scores = self._penalise(scores)
        if self._params.is_greedy:
            token = int(scores.argmax())
        else:
            probabilities = filtered_probabilities(scores, self._params)
            token = int(torch.multinomial(probabilities, 1, generator=self._generator))
        if self._params.repetition_penalty != 1:
            self._seen.add(token)
        if self._constraint is not None:
            self._constraint.advance(token)
        return token

    def _penalise(self, scores: torch.Tensor) -> torch.Tensor:
        seen = torch.tensor(sorted(self._seen), dtype=torch.long)
        values = scores[seen]
        penalty = self._params.repetition_penalty
        return scores.index_copy(0, seen, torch.where(values < 0, values * penalty, values / penalty))


def filtered_probabilities(scores: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return float32[V] probabilities after temperature, top-k and top-p, applied in that order."""
    # From the maximum on: nothing overflows, however small the temperature, and the likeliest stays at 0.
    scores = (scores.double() - scores.max()) / params.temperature
    if 0 < params.top_k < scores.numel():
        kth_best = scores.topk(params.top_k).values[-1]
        scores = scores.masked_fill(scores < kth_best, -torch.inf)
    if params.top_p < 1:
        descending, order = scores.sort(descending=True)
        mass_before = descending.softmax(-1).cumsum(-1) - descending.softmax(-1)
        # The likeliest token has no mass before it, so at least one is left.
        scores = scores.index_fill(0, order[mass_before >= params.top_p], -torch.inf)
    return scores.softmax(-1).float()
