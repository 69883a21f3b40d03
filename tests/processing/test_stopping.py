"""`KeywordsStoppingCriteria`, as code written for the original calls it."""

from __future__ import annotations

import torch

from llava.mm_utils import KeywordsStoppingCriteria, get_model_name_from_path
from tests.processing.text_cases import LLAMA, tokenizer_of

TOKENIZER = tokenizer_of(LLAMA[0])


def ids(*texts: str) -> torch.Tensor:
    rows = [TOKENIZER(text).input_ids for text in texts]
    length = min(len(row) for row in rows)
    return torch.tensor([row[-length:] for row in rows])


def test_all_rows_must_have_met_a_keyword() -> None:
    prompt = ids("Hi ###")
    stops = KeywordsStoppingCriteria(["###", "</s>"], TOKENIZER, prompt)
    assert not stops(prompt, None).any()
    end, other = ids("well ###"), ids("well !!!")
    length = min(end.shape[1], other.shape[1])
    both = torch.cat([end[:, -length:], other[:, -length:]])
    assert stops(torch.cat([prompt, end[:, 1:]], dim=1), None).tolist() == [True]
    assert stops(torch.cat([prompt.repeat(2, 1), both], dim=1), None).tolist() == [False, False]
    assert stops(torch.cat([prompt.repeat(2, 1), both[:1].repeat(2, 1)], dim=1), None).tolist() == [True] * 2


def test_the_prompt_never_counts_though_its_pictures_were_expanded() -> None:
    prompt = torch.tensor([[1, -200, 5]])
    stops = KeywordsStoppingCriteria(["</s>"], TOKENIZER, prompt)
    expanded = [1, -200, -200, -200, 2]
    assert stops(torch.tensor([[*expanded, 5]]), None).tolist() == [False]
    assert stops(torch.tensor([[*expanded, 5, 2]]), None).tolist() == [True]


def test_a_models_name_is_the_last_part_of_its_path() -> None:
    assert get_model_name_from_path("/a/llava-v1.5-7b/") == "llava-v1.5-7b"
    assert get_model_name_from_path("runs/mine/checkpoint-500") == "mine_checkpoint-500"
    assert get_model_name_from_path("x") == "x"
