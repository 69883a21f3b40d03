"""`generate` for both worlds: the native call and the original's two.

| call | `input_ids` | pictures | returns |
|---|---|---|---|
| native | N times -200 per picture | `pixel_values=` | prompt and new ids |
| original, V1.0 | one -200 per picture | `images=` | prompt and new ids |
| original, v1.2 | one -200 per picture | `images=`, `image_sizes=` | new ids |

All three become embeddings first, so that nothing downstream (penalties, caches) meets an id of -200.
Outside stopping criteria see the ids that the call returns; `KeywordsStoppingCriteria`, which counts from the
prompt's end, always sees the prompt too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import UsageError
from llava.processing.stopping import KeywordsStoppingCriteria

if TYPE_CHECKING:
    from llava.model.modeling import LlavaForCausalLM

_UNSET = object()


def generate(
    model: LlavaForCausalLM,
    native_generate: Callable[..., Any],
    inputs: torch.Tensor | None,
    images: torch.Tensor | Sequence[torch.Tensor] | None,
    *,
    input_ids: torch.Tensor | None = None,
    pixel_values: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    image_sizes: object = _UNSET,
    modalities: Sequence[str] = (),
    stopping_criteria: Sequence[Callable[..., Any]] | None = None,
    repetition_penalty: float = 1.0,
    **kwargs: Any,
) -> Any:
    """Continue `inputs: int64[B, L]` and return int64[B, L' ], or a ModelOutput where that is asked for.

    Padding is masked by `attention_mask: [B, L]` on either side. `modalities` is what later versions of LLaVA
    are told of each picture. Raises UsageError without ids or for a video, PlaceholderError when placeholders
    and pictures do not match.
    """
    if "video" in modalities:
        raise UsageError("this model takes no video", remedy="Give single frames as pictures.")
    ids = input_ids if input_ids is not None else inputs
    if ids is None:
        if kwargs.get("inputs_embeds") is None:
            raise UsageError(
                "generate was called without input_ids", remedy="Give input_ids or inputs_embeds."
            )
        return native_generate(
            attention_mask=attention_mask,
            stopping_criteria=stopping_criteria,
            repetition_penalty=repetition_penalty,
            **kwargs,
        )
    with_prompt = image_sizes is _UNSET
    embeds, mask = _embed(model, ids, images, pixel_values, attention_mask)
    if stopping_criteria is not None:
        stopping_criteria = StoppingCriteriaList(
            _WithPrompt(item, ids) if with_prompt or isinstance(item, KeywordsStoppingCriteria) else item
            for item in stopping_criteria
        )
    if repetition_penalty != 1:
        penalty = _RepetitionPenalty(repetition_penalty, ids if with_prompt else ids[:, :0])
        kwargs["logits_processor"] = LogitsProcessorList([*(kwargs.get("logits_processor") or []), penalty])
    output = native_generate(
        inputs_embeds=embeds, attention_mask=mask, stopping_criteria=stopping_criteria, **kwargs
    )
    if not with_prompt:
        return output
    if isinstance(output, torch.Tensor):
        return _with_prompt(ids, output)
    output.sequences = _with_prompt(ids, output.sequences)
    return output


def _embed(
    model: LlavaForCausalLM,
    ids: torch.Tensor,
    images: torch.Tensor | Sequence[torch.Tensor] | None,
    pixel_values: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (float[B, L', C], int64[B, L']), padded on the left: where decoding continues from."""
    features: list[torch.Tensor] = []
    if pixel_values is not None:
        features = model.picture_features(pixel_values)
    elif images is not None:
        features = model.picture_features(images)
    num_places = int((ids == IMAGE_TOKEN_INDEX).sum())
    num_rows = sum(len(feature) for feature in features)
    if pixel_values is not None and num_places == num_rows != len(features):
        # Every feature has its place already.
        features = [row for feature in features for row in feature.split(1)]
    spliced = model.splice_features(ids, features, attention_mask=attention_mask, padding_side="left")
    return spliced.inputs_embeds, spliced.attention_mask.long()


class _WithPrompt(StoppingCriteria):
    """Shows an outside criterion the prompt's ids before the new ones, as the V1.0 call did."""

    def __init__(self, criterion: Callable[..., Any], prompt: torch.Tensor) -> None:
        self._criterion = criterion
        self._prompt = prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> Any:
        """Ask the criterion about prompt and new ids."""
        return self._criterion(_with_prompt(self._prompt, input_ids), scores, **kwargs)


class _RepetitionPenalty(LogitsProcessor):
    """transformers' own penalty over the ids that the call returns, places of pictures left out."""

    def __init__(self, penalty: float, prompt: torch.Tensor) -> None:
        self._penalise = RepetitionPenaltyLogitsProcessor(penalty)
        self._prompt = prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return float[B, V] scores; input_ids: int64[B, new]."""
        ids = _with_prompt(self._prompt, input_ids)
        if not ids.shape[1]:
            return scores
        # An id counts once however often it stands there, so a place of a picture may repeat any other.
        ids = torch.where(ids < 0, ids.max(-1, keepdim=True).values, ids)
        return scores if bool((ids < 0).any()) else self._penalise(ids, scores)


def _with_prompt(prompt: torch.Tensor, new_ids: torch.Tensor) -> torch.Tensor:
    """Return int64[B * beams, L + new]."""
    rows = prompt.repeat_interleave(len(new_ids) // len(prompt), dim=0)
    return torch.cat([rows.to(new_ids.device), new_ids], dim=-1)
