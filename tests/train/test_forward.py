"""The training forward: packed equals padded equals one by one, and every part that learns takes part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from llava.constants import IGNORE_INDEX
from llava.data.batch import Batch
from llava.errors import ConfigError, PlaceholderError
from llava.model.modeling import LlavaForCausalLM
from llava.model.packed_attention import use_packed_attention
from llava.train.forward import TrainingModel
from tests.train.models import IMAGE_SIZE, packed, padded, random_samples, tiny_model

SAMPLES = random_samples(7)


def gradients(model: LlavaForCausalLM, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the summed loss of batches and its gradient by parameter."""
    training = TrainingModel(model, image_size=IMAGE_SIZE)
    model.zero_grad()
    total = torch.zeros(())
    for batch in batches:
        loss = training(batch).total
        loss.backward()
        total = total + loss.detach()
    return float(total), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def packing_model() -> LlavaForCausalLM:
    model = tiny_model()
    use_packed_attention(model.model.language_model)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_and_padded_batches_have_equal_loss_and_gradients(checkpointing: bool) -> None:
    model = packing_model()
    if checkpointing:
        model.model.language_model.activation_checkpointing_enable()
        model.train()
    packed_loss, packed_grads = gradients(model, [packed(SAMPLES)])
    padded_loss, padded_grads = gradients(model, [padded(SAMPLES)])
    assert packed_loss == pytest.approx(padded_loss, rel=1e-6)
    assert packed_grads.keys() == padded_grads.keys()
    for name, gradient in packed_grads.items():
        torch.testing.assert_close(gradient, padded_grads[name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_packed_sample_sees_nothing_of_its_neighbours() -> None:
    model = packing_model()
    alone = [gradients(model, [packed([sample])])[0] for sample in SAMPLES]
    together = TrainingModel(model, image_size=IMAGE_SIZE)(packed(SAMPLES))
    assert float(together.total.detach()) == pytest.approx(sum(alone), rel=1e-6)
    # The tokens' losses come sample by sample.
    sizes = list(packed(SAMPLES).targets_per_sample)
    sums = [float(part.sum()) for part in together.per_token.split(sizes)]
    assert sums == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4, 7])
def test_gradients_do_not_depend_on_how_samples_are_spread_over_micro_batches(groups: int) -> None:
    model = packing_model()
    whole_loss, whole = gradients(model, [packed(SAMPLES)])
    parts = [SAMPLES[start::groups] for start in range(groups)]
    loss, spread = gradients(model, [packed(part) for part in parts])
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for name, gradient in spread.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-5, atol=1e-6, msg=name)


def test_the_loss_is_that_of_the_full_forward() -> None:
    model = tiny_model()
    batch = padded(SAMPLES)
    output = model(
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
    )
    expected = F.cross_entropy(
        output.logits[:, :-1].flatten(0, 1),
        batch.labels[:, 1:].flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="sum",
    )
    total = TrainingModel(model, image_size=IMAGE_SIZE)(batch).total
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize("make", [packed, padded])
def test_a_batch_of_text_gives_every_learning_part_a_gradient_of_zero(
    make: Callable[[list[tuple[list[int], list[int], int]]], Batch],
) -> None:
    model = packing_model()
    _, grads = gradients(model, [make(random_samples(3, with_pictures=False))])
    names = {name for name, _ in model.named_parameters()}
    assert grads.keys() == names
    vision = [grad for name, grad in grads.items() if "vision" in name or "projector" in name]
    assert all(not grad.any() for grad in vision)


def test_an_empty_batch_gives_zero_loss_and_zero_gradients_everywhere() -> None:
    model = packing_model()
    empty = packed([])
    loss, grads = gradients(model, [empty])
    assert loss == 0.0
    assert grads.keys() == {name for name, _ in model.named_parameters()}
    assert not any(grad.any() for grad in grads.values())


def test_a_frozen_tower_is_not_part_of_the_graph() -> None:
    model = packing_model()
    model.model.vision_tower.requires_grad_(False)
    _, grads = gradients(model, [packed(SAMPLES)])
    assert not [name for name in grads if "vision" in name]
    _, grads = gradients(model, [packed(random_samples(2, with_pictures=False))])
    assert "model.multi_modal_projector.0.weight" in grads


def test_a_picture_too_few_is_an_error() -> None:
    batch = packed(SAMPLES)
    fewer = Batch(**{**batch.__dict__, "pixel_values": batch.pixel_values[1:]})
    with pytest.raises(PlaceholderError, match="places of pictures"):
        TrainingModel(packing_model(), image_size=IMAGE_SIZE)(fewer)


def test_a_model_whose_attention_cannot_pack_is_refused() -> None:
    model = tiny_model()
    model.model.language_model.set_attn_implementation("eager")
    with pytest.raises(ConfigError, match="packing"):
        use_packed_attention(model.model.language_model)
