"""What the engine refuses, with the reason, and what it lets pass."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from llava.engine.openvino import load_openvino
from llava.engine.openvino.support import check_supported, require_openvino
from llava.errors import CheckpointError, ConfigError, DependencyError
from llava.model.config import make_config
from llava.model.towers import read_tower
from tests.engine.openvino.helpers import EMBEDDED
from tests.model.folders import SMALL_CLIP, small_config


def config_of(text_type: str, **fields: object) -> Any:
    original = small_config(model_type=f"llava_{text_type}", **fields)
    return make_config(original, read_tower(SMALL_CLIP, source="tower"), image_size=56)


@pytest.mark.parametrize(
    ("text_type", "fields", "reason"),
    [
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}, "ALiBi"),
        ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8}, "caps logits"),
        ("phi3", {"num_key_value_heads": 4}, "long-context positions"),
        ("gpt_neox", {}, "was not compared with torch"),
        ("falcon", {}, "type falcon, and it was not compared"),
        ("mistral", {"sliding_window": 100}, "sliding window of 100 tokens in a context of 256"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "window of 64"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaled by 'dynamic'"),
    ],
)
def test_what_would_be_computed_differently_is_refused(
    text_type: str, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        check_supported(config_of(text_type, **fields))


@pytest.mark.parametrize(
    ("text_type", "fields"),
    [
        ("llama", {}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        # A window that no row outgrows is none.
        ("mistral", {"sliding_window": 4096}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 64}),
    ],
)
def test_what_is_computed_alike_passes(text_type: str, fields: dict[str, Any]) -> None:
    check_supported(config_of(text_type, **fields))


@pytest.mark.parametrize("package", ["openvino", "nncf"])
def test_a_missing_package_is_named_with_its_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(DependencyError, match=rf"{package} is not installed.*\[cpu\]"):
        require_openvino(nncf=True)


def test_nncf_is_needed_for_narrow_weights_only(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else real(name))
    if real("openvino") is not None:
        require_openvino()


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="format is 'int5'"):
        load_openvino(EMBEDDED, format="int5")  # type: ignore[arg-type]
