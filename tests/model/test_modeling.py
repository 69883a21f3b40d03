"""The model's two faces: transformers' native calls, and those that code written for the original makes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from llava.errors import PlaceholderError, UsageError
from llava.model.builder import new_model
from llava.model.modeling import LlavaForCausalLM
from llava.processing.stopping import KeywordsStoppingCriteria
from tests.model.folders import CLIP, SMALL_CLIP, SMALL_INTERNVIT, loaded, small_config

IMAGE = -200
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def model() -> LlavaForCausalLM:
    built = new_model(small_config(eos_token_id=None), SMALL_INTERNVIT, image_size=56, seed=0).eval()
    built.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=None)
    return built


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))


def expand(ids: list[int], count: int = 16) -> list[int]:
    return [token for token in ids for _ in range(count if token == IMAGE else 1)]


def test_the_native_call_and_the_originals_give_the_same_logits(
    model: LlavaForCausalLM, pixels: torch.Tensor
) -> None:
    ids = [1, 5, IMAGE, 9, IMAGE, 7]
    with torch.no_grad():
        native = model(input_ids=torch.tensor([expand(ids)]), pixel_values=pixels[:2]).logits
        original = model(input_ids=torch.tensor([ids]), images=pixels[:2]).logits
    torch.testing.assert_close(native, original, atol=1e-5, rtol=0)


def test_generate_returns_what_each_of_the_three_calls_expects(
    model: LlavaForCausalLM, pixels: torch.Tensor
) -> None:
    ids = [1, 5, IMAGE, 9]
    short, long = torch.tensor([ids]), torch.tensor([expand(ids)])
    new = model.generate(short, images=pixels[:1], image_sizes=[(56, 56)], **GREEDY)
    assert new.shape == (1, 6)
    with_prompt = model.generate(short, images=pixels[:1], **GREEDY)
    assert torch.equal(with_prompt, torch.cat([short, new], dim=-1))
    native = model.generate(input_ids=long, pixel_values=pixels[:1], **GREEDY)
    assert torch.equal(native, torch.cat([long, new], dim=-1))
    text = model.generate(torch.tensor([[1, 5, 9]]), **GREEDY)
    assert text[0, :3].tolist() == [1, 5, 9]
    assert text.shape == (1, 9)
    output = model.generate(short, images=pixels[:1], return_dict_in_generate=True, **GREEDY)
    assert torch.equal(output.sequences, with_prompt)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_generates_as_its_rows_alone(
    model: LlavaForCausalLM, pixels: torch.Tensor, side: str
) -> None:
    rows = [[1, 5, IMAGE, 9], [1, 8, 3, 6, 4, 4, 7], [1, IMAGE, 4, IMAGE, 2, 6]]
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    padded = [pad + row if side == "left" else row + pad for pad, row in zip(pads, rows, strict=True)]
    masks = [[0] * len(pad) + [1] * len(row) for pad, row in zip(pads, rows, strict=True)]
    mask = torch.tensor([m if side == "left" else m[::-1] for m in masks])
    batch = model.generate(
        torch.tensor(padded), images=pixels, attention_mask=mask, image_sizes=None, **GREEDY
    )
    start = 0
    for row, ids in enumerate(rows):
        count = ids.count(IMAGE)
        images = {"images": pixels[start : start + count]} if count else {}
        alone = model.generate(torch.tensor([ids]), image_sizes=None, **images, **GREEDY)
        assert torch.equal(batch[row], alone[0])
        start += count


def test_pictures_come_as_tensor_list_or_crops(model: LlavaForCausalLM, pixels: torch.Tensor) -> None:
    ids = torch.tensor([[1, 5, IMAGE, 9, IMAGE, 7]])
    with torch.no_grad():
        tensor = model(input_ids=ids, images=pixels[:2]).logits
        listed = model(input_ids=ids, images=[pixels[0], pixels[1:2]]).logits
        crops = model(input_ids=ids[:, :4], images=pixels[None, :2]).logits
        apart = model(input_ids=torch.tensor([[1, 5, IMAGE, IMAGE, 9]]), images=pixels[:2]).logits
    assert torch.equal(tensor, listed)
    assert tensor.shape[1] == 4 + 2 * 16
    assert torch.equal(crops, apart)


def test_a_text_only_row_may_bring_a_picture_that_is_not_shown(
    model: LlavaForCausalLM, pixels: torch.Tensor
) -> None:
    trained = copy.deepcopy(model)
    ids = torch.tensor([[1, 5, 6, 9]])
    loss = trained(input_ids=ids, images=pixels[:1], labels=ids).loss
    loss.backward()
    gradient = trained.model.mm_projector.get_parameter("0.weight").grad
    assert gradient is not None
    assert not gradient.any()
    with torch.no_grad():
        assert loss.item() == pytest.approx(model(input_ids=ids, labels=ids).loss.item(), abs=1e-6)


def test_padding_side_does_not_change_loss(model: LlavaForCausalLM, pixels: torch.Tensor) -> None:
    rows = [[1, 5, IMAGE, 9, 3], [1, IMAGE, 7, 0, 0]]
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    labels = torch.tensor([[-100, 5, -100, 9, 3], [-100, -100, 7, -100, -100]])
    flipped = torch.tensor([rows[0], [0, 0, 1, IMAGE, 7]])
    with torch.no_grad():
        right = model(torch.tensor(rows), images=pixels[:2], attention_mask=mask, labels=labels)
        left = model(
            flipped,
            images=pixels[:2],
            attention_mask=torch.tensor([[1] * 5, [0, 0, 1, 1, 1]]),
            labels=torch.tensor([labels[0].tolist(), [-100, -100, -100, -100, 7]]),
        )
    assert right.loss.item() == pytest.approx(left.loss.item(), abs=1e-6)


def test_placeholders_without_pictures_are_an_error(model: LlavaForCausalLM, pixels: torch.Tensor) -> None:
    ids = torch.tensor([[1, IMAGE, 4, IMAGE]])
    with pytest.raises(PlaceholderError, match=r"2 <image> placeholder.* 1 picture"):
        model.generate(ids, images=pixels[:1])
    with pytest.raises(PlaceholderError):
        model(input_ids=ids, images=pixels)
    with pytest.raises(UsageError, match="input_ids"):
        model.generate(images=pixels)


def test_penalties_and_beams_do_not_meet_the_placeholder(
    model: LlavaForCausalLM, pixels: torch.Tensor
) -> None:
    ids = torch.tensor([[1, 5, IMAGE, 9]])
    options: dict[str, Any]
    for options in (
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 1.3, "image_sizes": None},
        {"num_beams": 3},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
    ):
        generated = model.generate(ids, images=pixels[:1], **(GREEDY | options))
        assert generated.shape == (1, 6 if "image_sizes" in options else 10)
    with pytest.warns(UserWarning, match="only to newly generated"):
        model.generate(ids, images=pixels[:1], no_repeat_ngram_size=2, **GREEDY)


def test_a_repetition_penalty_counts_the_prompts_words(model: LlavaForCausalLM, pixels: torch.Tensor) -> None:
    words = list(range(5, 25))
    ids = torch.tensor([[1, IMAGE, *words]])
    # Below 1 it is a reward: words of the prompt, and no others, come first.
    rewarded = model.generate(ids, images=pixels[:1], repetition_penalty=0.001, **GREEDY)
    assert set(rewarded[0, ids.shape[1] :].tolist()) <= {1, *words}
    plain = model.generate(ids, images=pixels[:1], **GREEDY)
    assert not torch.equal(rewarded, plain)


def test_outside_stopping_criteria_see_the_ids_of_their_call(
    model: LlavaForCausalLM, pixels: torch.Tensor
) -> None:
    seen: list[list[int]] = []

    class Recorder(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:  # noqa: ARG002
            seen.append(input_ids[0].tolist())
            return torch.tensor([len(seen) >= 2] * len(input_ids))

    ids = torch.tensor([[1, 5, IMAGE, 9]])
    criteria = StoppingCriteriaList([Recorder()])
    model.generate(ids, images=pixels[:1], stopping_criteria=criteria, **GREEDY)
    assert seen[0][:4] == ids[0].tolist()
    assert len(seen[1]) == 6
    seen.clear()
    model.generate(ids, images=pixels[:1], image_sizes=None, stopping_criteria=[Recorder()], **GREEDY)
    assert [len(row) for row in seen] == [1, 2]


@pytest.mark.parametrize("style", [{}, {"image_sizes": None}])
def test_keywords_stop_both_styles(style: dict[str, None], pixels: torch.Tensor) -> None:
    tiny = loaded(CLIP)
    ids = torch.tensor([[1, 5, IMAGE, 9]])
    free = tiny.model.generate(ids, images=pixels[:1], **style, **GREEDY)
    third = free[0, -4:-3]
    criterion = KeywordsStoppingCriteria([tiny.tokenizer.decode(third)], tiny.tokenizer, ids)
    stopped = tiny.model.generate(ids, images=pixels[:1], stopping_criteria=[criterion], **style, **GREEDY)
    assert stopped.shape[1] <= free.shape[1] - 3


def test_the_originals_methods_and_attributes_are_there(
    model: LlavaForCausalLM, pixels: torch.Tensor
) -> None:
    tower = model.get_vision_tower()
    assert tower.is_loaded
    tower.load_model()
    assert tower.to(device="cpu", dtype=torch.float16) is tower
    assert (tower.hidden_size, tower.num_patches) == (80, 16)
    features = tower(pixels)
    assert isinstance(features, torch.Tensor)
    assert features.shape == (3, 16, 80)
    assert tower([pixels[0]])[0].shape == (1, 16, 80)
    assert tower.dummy_feature.shape == (1, 80)
    assert (tower.select_layer, tower.select_feature) == (-1, "patch")
    assert tower.config.patch_size == (14, 14)
    assert tower.dtype == torch.float32
    assert tower.device == torch.device("cpu")
    assert tower.vision_tower is model.get_model().vision_tower
    assert model.encode_images(pixels).shape == (3, 16, 32)
    assert model.config.mm_projector_type == "mlp2x_gelu"
    assert model.config.mm_use_im_start_end is False
    assert model.get_model().embed_tokens is model.get_input_embeddings()
    ids = torch.tensor([[1, IMAGE, 4]])
    prepared = model.prepare_inputs_labels_for_multimodal(ids, None, None, None, ids, pixels[:1])
    assert prepared[0] is None
    assert prepared[4].shape == (1, 18, 32)
    assert prepared[5].eq(-100).sum() == 16
    untouched = model.prepare_inputs_labels_for_multimodal(ids, None, None, None, None, None)
    assert untouched[0] is ids


def test_the_vocabulary_can_be_resized(model: LlavaForCausalLM, pixels: torch.Tensor) -> None:
    grown = copy.deepcopy(model)
    grown.resize_token_embeddings(1003, mean_resizing=False)
    logits = grown(input_ids=torch.tensor([[1, IMAGE, 1002]]), images=pixels[:1]).logits
    assert logits.shape == (1, 18, 1003)


@pytest.mark.parametrize(
    ("projector", "names"),
    [
        ("linear", {"weight", "bias"}),
        ("mlp1x_gelu", {"0.weight", "0.bias"}),
        ("mlp3x_gelu", {f"{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}),
        ("mlp2x_gelu_ln", {f"{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")}),
        ("identity", set()),
    ],
)
@pytest.mark.parametrize("feature", ["patch", "cls_patch"])
def test_every_projector_and_feature_choice_computes(
    projector: str, names: set[str], feature: str, pixels: torch.Tensor
) -> None:
    config = small_config(hidden_size=64, mm_projector_type=projector, mm_vision_select_feature=feature)
    built = new_model(config, SMALL_CLIP, image_size=56, seed=0)
    assert set(built.get_model().mm_projector.state_dict()) == names
    count = 16 + (feature == "cls_patch")
    assert built.config.image_seq_length == count
    assert built.encode_images(pixels[:1]).shape == (1, count, 64)
    assert built(input_ids=torch.tensor([[1, IMAGE, 4]]), images=pixels[:1]).logits.shape[1] == 2 + count


LANGUAGE_MODELS: dict[str, dict[str, object]] = {
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "phi3": {"num_key_value_heads": 4},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gpt_neox": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("text_type", LANGUAGE_MODELS)
def test_other_language_models_generate_as_without_a_cache(text_type: str, pixels: torch.Tensor) -> None:
    config = small_config(model_type=f"llava_{text_type}", eos_token_id=None, **LANGUAGE_MODELS[text_type])
    built = new_model(config, SMALL_INTERNVIT, image_size=56, seed=0).eval()
    built.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=None)
    ids = torch.tensor([[1, 5, IMAGE, 9, 7], [1, 6, 8, IMAGE, 4]])
    generated = built.generate(ids, images=pixels[:2], image_sizes=None, **GREEDY)
    embeds = built.splice(ids, pixels[:2]).inputs_embeds.detach()
    tokens: list[torch.Tensor] = []
    with torch.no_grad():
        for _ in range(6):
            logits = built(inputs_embeds=embeds, use_cache=False).logits[:, -1]
            tokens.append(logits.argmax(-1))
            embeds = torch.cat([embeds, built.get_input_embeddings()(tokens[-1][:, None])], dim=1)
    assert torch.equal(torch.stack(tokens, dim=1), generated)
