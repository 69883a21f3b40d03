"""The names that outside code imports, and code written for the original."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from llava.files import read_json

FIXTURES = Path(__file__).parent / "fixtures"

NAMES = {
    "llava": ["load", "Answer", "Request", "SamplingParams", "LlavaLlamaForCausalLM"],
    "llava.constants": ["IGNORE_INDEX", "IMAGE_TOKEN_INDEX", "DEFAULT_IMAGE_TOKEN", "LOGDIR"],
    "llava.conversation": ["conv_templates", "SeparatorStyle", "Conversation", "default_conversation"],
    "llava.mm_utils": [
        *("process_images", "tokenizer_image_token", "get_model_name_from_path", "KeywordsStoppingCriteria"),
        *("load_image_from_base64", "expand2square", "select_best_resolution", "resize_and_pad_image"),
        *("divide_to_patches", "get_anyres_image_grid_shape", "process_anyres_image"),
    ],
    "llava.model": ["LlavaLlamaForCausalLM", "LlavaConfig", "LlavaMptForCausalLM", "LlavaMptConfig"],
    "llava.model.builder": ["load_pretrained_model"],
    "llava.processing": ["load_tokenizer", "supervise", "load_image", "ImageProcessor", "Processor"],
    "llava.utils": ["build_logger", "disable_torch_init", "pretty_print_semaphore", "server_error_msg"],
}


@pytest.mark.parametrize("module", NAMES)
def test_every_contracted_name_is_there(module: str) -> None:
    package = importlib.import_module(module)
    for name in NAMES[module]:
        assert getattr(package, name) is not None


@pytest.mark.parametrize("module", ["llava", "llava.model", "llava.processing"])
def test_what_a_package_lists_is_what_it_has(module: str) -> None:
    package = importlib.import_module(module)
    assert set(package.__all__) == {name for name in package.__all__ if getattr(package, name) is not None}
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


def test_a_label_mask_in_four_lines() -> None:
    from llava.processing import load_tokenizer, supervise

    tokenizer = load_tokenizer(FIXTURES / "eval" / "labels" / "tokenizer_llama_nonlegacy")
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red bus."}]
    out = supervise(turns, tokenizer, "v1", has_image=True, model_max_length=2048, im_start_end=False)
    trained = [token for token, label in zip(out.input_ids, out.labels, strict=True) if label != -100]
    assert tokenizer.decode(trained) == "A red bus.</s>"
    assert list(out.input_ids).count(-200) == 1


@pytest.mark.parametrize("has_sizes", [True, False])
def test_code_written_for_the_original_runs_unchanged(has_sizes: bool) -> None:
    from llava.constants import IMAGE_TOKEN_INDEX
    from llava.conversation import conv_templates
    from llava.mm_utils import KeywordsStoppingCriteria, process_images, tokenizer_image_token
    from llava.model.builder import load_pretrained_model
    from llava.utils import disable_torch_init

    disable_torch_init()
    tokenizer, model, image_processor, context_len = load_pretrained_model(
        str(FIXTURES / "checkpoints" / "llava-a-clip-mlp2x"), None, "llava-a-clip-mlp2x", device="cpu"
    )
    assert context_len == 2048
    assert image_processor is not None
    image = Image.open(FIXTURES / "checkpoints" / "images" / "0.png").convert("RGB")
    pixels = process_images([image], image_processor, model.config)
    conversation = conv_templates["llava_v1"].copy()
    conversation.append_message(conversation.roles[0], "<image>\nWhat is it?")
    conversation.append_message(conversation.roles[1], None)
    prompt = conversation.get_prompt()
    input_ids = tokenizer_image_token(prompt, tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt").unsqueeze(0)
    criterion = KeywordsStoppingCriteria([str(conversation.sep2)], tokenizer, input_ids)
    with torch.inference_mode():
        output_ids = model.generate(
            input_ids,
            images=pixels,
            do_sample=False,
            max_new_tokens=6,
            use_cache=True,
            stopping_criteria=[criterion],
            **({"image_sizes": [image.size]} if has_sizes else {}),
        )
    # v1.2's call returns the answer, V1.0's the prompt before it.
    num_prompt = 0 if has_sizes else input_ids.shape[1]
    assert torch.equal(output_ids[:, :num_prompt], input_ids[:, :num_prompt])
    assert 0 < output_ids.shape[1] - num_prompt <= 6


def test_the_context_is_the_language_models_own() -> None:
    from llava.model.config import make_config
    from llava.model.conventions import context_length
    from llava.model.towers import read_tower

    folder = FIXTURES / "checkpoints"
    original = read_json(folder / "llava-a-clip-mlp2x" / "config.json")
    tower = read_tower(read_json(folder / "towers" / "clip-tiny-56px" / "config.json"), source="tower")
    longer = make_config({**original, "max_position_embeddings": 4096}, tower, image_size=56)
    assert context_length(longer) == 4096
    stated = make_config({**original, "max_sequence_length": 1024}, tower, image_size=56)
    assert context_length(stated) == 1024
