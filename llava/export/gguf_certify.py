"""How far llama.cpp over exported GGUF files is from the source in torch.

Two differences are not the files': llama.cpp computes with 16-bit products and tables, and since its pull
request 13321 its graph for CLIP towers puts the class embedding behind the patches, while positions and the
choice of features still expect it in front (ggml-org/llama.cpp issue 25814): every patch gets its neighbour's
position, the first is lost, and the class is shown to the language model. No file can mend that. It is
measured: the pictures are compared with the source, and with the source computed in that wrong order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from llava.export.certify import Measurement, all_equal, at_most
from llava.export.llama_cpp import LlamaCpp, Reply
from llava.export.outcomes import Case, Outcome
from llava.processing.images import load_image
from llava.processing.processor import Processor

if TYPE_CHECKING:
    from llava.export.gguf import GgufFiles
    from llava.model.builder import LoadedModel
    from llava.model.modeling import LlavaForCausalLM

LIMITS: dict[str, float] = {"F32": 1e-2, "F16": 0.1, "Q8_0": 1.0}
"""Largest difference of the log-probabilities of the five likeliest tokens at each place of an answer; the
k-quants are reported without a limit."""
_WRONG_ORDER = (
    "this llama.cpp puts the tower's class embedding behind the patches (ggml-org/llama.cpp issue 25814) and "
    "so sees pictures wrongly; the files are right for a llama.cpp that does not"
)


def certify_gguf(
    files: GgufFiles,
    loaded: LoadedModel,
    expected: Sequence[Outcome],
    cases: Sequence[Case],
    *,
    file_type: str,
) -> tuple[tuple[Measurement, ...], tuple[str, ...]]:
    """Run the cases in llama.cpp and compare with `expected`; returns figures and notes.

    Raises DependencyError without xllamacpp, EngineError when llama.cpp refuses the files.
    """
    processor = processor_of(loaded)
    server = LlamaCpp(files, context_length=loaded.context_length, is_exact=file_type == "F32")
    usable = [
        (case, outcome)
        for case, outcome in zip(cases, expected, strict=True)
        if files.projector is not None or not case.images
    ]
    replies = [server.answer(case, processor) for case, _ in usable]
    same = sum(
        reply.num_prompt_tokens == len(outcome.token_ids)
        for reply, (_, outcome) in zip(replies, usable, strict=True)
    )
    measurements = [all_equal("prompt lengths equal", same, len(usable))]
    gaps: list[float] = []
    for reply, (case, outcome) in zip(replies, usable, strict=True):
        difference = _difference(reply, answer_logprobs(loaded.model, processor, case, reply.token_ids))
        measurements.append(
            _figure(f"{case.name}: log-probabilities, largest difference", difference, LIMITS.get(file_type))
        )
        is_same = reply.text.strip() == outcome.text.strip()
        measurements.append(Measurement(f"{case.name}: greedy text", "equal" if is_same else "different"))
        if case.images:
            wrong = answer_logprobs(loaded.model, processor, case, reply.token_ids, class_last=True)
            in_wrong_order = _difference(reply, wrong)
            name = f"{case.name}: the same, with the class behind the patches"
            measurements.append(Measurement(name, in_wrong_order))
            gaps.append(difference - in_wrong_order)
    if not gaps:
        return tuple(measurements), ()
    is_right = sum(gaps) <= 0
    place = "in front" if is_right else "behind the patches"
    measurements.append(Measurement("place of the class in llama.cpp's tower", place, "in front", is_right))
    return tuple(measurements), () if is_right else (_WRONG_ORDER,)


def processor_of(loaded: LoadedModel) -> Processor:
    """Return the processor of a loaded model."""
    return Processor(
        tokenizer=loaded.tokenizer,
        image_processor=loaded.image_processor,
        template=loaded.template,
        num_image_tokens=loaded.num_image_tokens,
        im_start_end=loaded.im_start_end,
    )


@torch.inference_mode()
def answer_logprobs(
    model: LlavaForCausalLM,
    processor: Processor,
    case: Case,
    token_ids: Sequence[int],
    *,
    class_last: bool = False,
) -> torch.Tensor:
    """Return float32[n, V]: log-probabilities at each of the n places of an answer, given what is before it.

    class_last: run the tower as llama.cpp's graph does since pull request 13321.
    """
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[*processor.encode(case.turns), *token_ids]], device=device)
    features: list[torch.Tensor] = []
    if case.images:
        pixel_values = processor.pixels([load_image(str(path)) for path in case.images]).to(device)
        encode = class_last_features if class_last else type(model).encode_images
        features = list(encode(model, pixel_values))
    spliced = model.splice_features(ids, features)
    logits = model(inputs_embeds=spliced.inputs_embeds, attention_mask=spliced.attention_mask).logits[0]
    places = logits[-len(token_ids) - 1 : -1]
    return torch.log_softmax(places.float(), dim=-1).cpu()


def class_last_features(model: LlavaForCausalLM, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return float[B, N, C] of a CLIP tower as llama.cpp's graph computes it since pull request 13321."""
    tower = model.model.vision_tower
    embeddings = tower.embeddings
    weight = embeddings.patch_embedding.weight
    patches = embeddings.patch_embedding(pixel_values.to(weight.device, weight.dtype))
    patches = patches.flatten(2).transpose(1, 2)  # [B, N, C]
    classes = embeddings.class_embedding.expand(len(patches), 1, -1)
    hidden = torch.cat([patches, classes], dim=1) + embeddings.position_embedding.weight
    hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(hidden)).last_hidden_state
    features: torch.Tensor = model.model.multi_modal_projector(hidden[:, 1:])
    return features


def _difference(reply: Reply, expected: torch.Tensor) -> float:
    """Return the largest difference to `expected: float32[n, V]` over what llama.cpp found likeliest."""
    return max(
        (
            abs(value - float(expected[place, token]))
            for place, choices in reply.likeliest.items()
            for token, value in choices.items()
        ),
        default=0.0,
    )


def _figure(name: str, value: float, limit: float | None) -> Measurement:
    return Measurement(name, value) if limit is None else at_most(name, value, limit)
