"""Numbers of the original on the tiny checkpoints: features, logits, greedy tokens, loss and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llava.model.mapping import original_tensors
from llava.model.towers import Family
from llava.processing.processor import Processor
from tests.model.folders import ALL, CASES, CLIP, IM_START_END, INTERNVIT, expected, load, loaded, pictures

PROMPTS = ("one", "two", "text", "mid")


def ids_of(values: dict[str, object], prompt: str) -> torch.Tensor:
    return torch.tensor([values[f"ids_{prompt}"]])


@pytest.mark.parametrize("folder", [CLIP, INTERNVIT], ids=lambda folder: folder.name)
def test_pixels_are_the_originals_to_the_bit(folder: Path) -> None:
    pixels = loaded(folder).image_processor(pictures())
    assert torch.equal(pixels, torch.from_numpy(expected(folder)[1]["pixel_values"]))


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.name)
def test_image_features_are_the_originals(folder: Path) -> None:
    model = loaded(folder)
    with torch.no_grad():
        features = model.model.encode_images(model.image_processor(pictures()[:1]))
    reference = torch.from_numpy(expected(folder)[1]["image_features"])
    assert features.shape == reference.shape == (1, model.num_image_tokens, 64)
    torch.testing.assert_close(features, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.name)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_logits_and_greedy_tokens_are_the_originals(folder: Path, prompt: str) -> None:
    model = loaded(folder)
    values, arrays = expected(folder)
    numbers = CASES["prompts"][prompt][1]
    images = {"images": model.image_processor(pictures())[numbers]} if numbers else {}
    ids = ids_of(values, prompt)
    with torch.no_grad():
        logits = model.model(input_ids=ids, **images).logits[0]
    reference = torch.from_numpy(arrays[f"logits_{prompt}"])
    assert logits.shape == (values[f"len_{prompt}"], values["vocab"])
    torch.testing.assert_close(logits[-len(reference) :], reference, atol=5e-5, rtol=0)
    assert logits.argmax(-1).tolist() == values[f"argmax_{prompt}"]
    generated = model.model.generate(ids, **images, image_sizes=None, do_sample=False, max_new_tokens=32)
    assert generated.tolist() == [values[f"gen_{prompt}"]]


@pytest.mark.parametrize("size", [84, 336])
def test_other_picture_sizes_are_the_originals(size: int) -> None:
    model = loaded(INTERNVIT, size)
    values, arrays = expected(INTERNVIT)
    pixels = model.image_processor(pictures()[:1])
    if size == 336:
        rows = torch.from_numpy(arrays["px336_rows"])
        assert torch.equal(pixels[0, :, ::48], rows)
    else:
        # The original was given 84-pixel input by its processor with size and crop set.
        features = model.model.encode_images(pixels).detach()
        torch.testing.assert_close(features, torch.from_numpy(arrays["feat84"]), atol=1e-5, rtol=0)
    with torch.no_grad():
        logits = model.model(input_ids=ids_of(values, "one"), images=pixels).logits[0]
    reference = torch.from_numpy(arrays[f"logits{size}_last"])
    torch.testing.assert_close(logits[-len(reference) :], reference, atol=5e-5, rtol=0)


@pytest.mark.parametrize("folder", ALL, ids=lambda folder: folder.name)
def test_loss_and_gradients_are_the_originals(folder: Path) -> None:
    model = load(folder)
    values, arrays = expected(folder)
    ids, labels = torch.tensor(values["train_ids"]), torch.tensor(values["train_labels"])
    numbers = [number for _, _, of_row in CASES["train"] for number in (of_row or [3])]
    model.model.train()
    output = model.model(
        input_ids=ids,
        attention_mask=ids.ne(0),
        labels=labels,
        images=model.image_processor([pictures()[number] for number in numbers]),
    )
    assert output.loss.item() == pytest.approx(values["loss"], abs=2e-6)
    output.loss.backward()
    family: Family = "internvit" if folder == INTERNVIT else "clip"
    gradients = dict(
        original_tensors(
            (
                (name, parameter.grad)
                for name, parameter in model.model.named_parameters()
                if parameter.grad is not None and "vision_tower" not in name
            ),
            family=family,
            text_type="llama",
        )
    )
    references = {name.removeprefix("grad/"): array for name, array in arrays.items() if "grad/" in name}
    assert references
    for name, array in references.items():
        reference = torch.from_numpy(array)
        difference = (gradients[name] - reference).abs().max() / reference.abs().max()
        assert difference <= 1e-5, name
    for name, norm in values["grad_norms"].items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-5), name


def test_prompts_of_a_checkpoint_give_the_originals_ids() -> None:
    for folder in (CLIP, IM_START_END):
        model = loaded(folder)
        values, _ = expected(folder)
        processor = Processor(
            model.tokenizer, model.image_processor, model.template, model.num_image_tokens, model.im_start_end
        )
        for prompt in PROMPTS:
            text = CASES["prompts"][prompt][0]
            assert processor.encode(text) == values[f"ids_{prompt}"], (folder.name, prompt)
