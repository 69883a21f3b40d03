"""`KeywordsStoppingCriteria` of the original's `llava/mm_utils.py`, for code that passes it to `generate`.

Our own engine stops by strings while it detokenises; this class is only re-exported. Shape letters: `B` rows,
`L` tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from llava.constants import IMAGE_TOKEN_INDEX


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops once every row of the batch ends with one of the keywords or holds it in its last new tokens."""

    def __init__(
        self, keywords: Sequence[str], tokenizer: PreTrainedTokenizerBase, input_ids: torch.Tensor
    ) -> None:
        """Take the keywords; input_ids: int64[B, L], the prompt, whose text never counts."""
        self.keywords = list(keywords)
        self.keyword_ids = [_ids(keyword, tokenizer) for keyword in self.keywords]
        self.max_keyword_len = max((len(ids) for ids in self.keyword_ids), default=0)
        self.tokenizer = tokenizer
        self.start_len = input_ids.shape[1]
        self.is_expanded = not bool((input_ids == IMAGE_TOKEN_INDEX).any())

    def __call__(
        self,
        output_ids: torch.Tensor,
        scores: object,  # noqa: ARG002 - the caller gives it by position
        **_: object,
    ) -> torch.Tensor:
        """Return bool[B]: true for every row once all have met a keyword, false for every row before.

        output_ids: int64[B, L], prompt and new tokens.
        """
        if not self.is_expanded:
            # Each -200 of the prompt has become many by now, and the first call comes with one new token.
            self.start_len = max(self.start_len, output_ids.shape[1] - 1)
            self.is_expanded = True
        is_done = all(self._has_keyword(row) for row in output_ids.tolist())
        return torch.full((output_ids.shape[0],), is_done, dtype=torch.bool, device=output_ids.device)

    def _has_keyword(self, ids: list[int]) -> bool:
        num_new = max(len(ids) - self.start_len, 0)
        for keyword_ids in self.keyword_ids:
            if 0 < len(keyword_ids) <= num_new and ids[-len(keyword_ids) :] == keyword_ids:
                return True
        num_shown = min(num_new, self.max_keyword_len)
        if not num_shown:
            return False
        text = self.tokenizer.decode(ids[-num_shown:], skip_special_tokens=True)
        return any(keyword in text for keyword in self.keywords)


def _ids(keyword: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = list(tokenizer(keyword).input_ids)
    return ids[1:] if len(ids) > 1 and ids[0] == tokenizer.bos_token_id else ids
