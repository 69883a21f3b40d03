"""Which engine answers: by what the path is, by name, or chosen by what is asked and what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import llava
from llava.demo import embedded_model_path
from llava.engine import choosing
from llava.engine.choosing import choose
from llava.engine.openvino_engine import OpenVinoEngine
from llava.engine.torch_engine import TorchEngine
from llava.errors import ConfigError, DependencyError, RemoteError, UsageError
from llava.model import device
from llava.model.builder import LoadOptions, new_model
from llava.model.saving import rules_of, save_checkpoint
from llava.processing.tokenizer import load_tokenizer
from tests.model.folders import SMALL_INTERNVIT, small_config

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"
STAR = [str(Path(__file__).parents[2] / "llava" / "demo" / "images" / "shapes.png")]


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let models of any size count as large."""
    monkeypatch.setattr(choosing, "SMALL_MODEL", 0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_embedded_model_is_too_small_to_convert() -> None:
    choice = choose(embedded_model_path(), LoadOptions(device="cpu"))
    assert choice.engine == "torch"
    assert "small" in choice.reason
    assert not choice.is_notable
    asked = choose(embedded_model_path(), LoadOptions(device="cpu", bits=8))
    assert asked.engine == "openvino"


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize(
    ("options", "engine", "reason"),
    [
        ({}, "openvino", "float16 weights"),
        ({"bits": 8}, "openvino", "int8 weights"),
        ({"bits": 4}, "openvino", "int4 weights"),
        ({"dtype": "fp32"}, "openvino", "float16 weights"),
        ({"dtype": "bf16"}, "openvino", "bfloat16"),
        ({"dtype": "bf16", "bits": 8}, "torch", "dtype bfloat16"),
        ({"dtype": "float16"}, "torch", "dtype float16"),
        ({"attn_implementation": "eager"}, "torch", "attn_implementation"),
    ],
)
def test_what_is_asked_decides_what_is_exact_enough(
    options: dict[str, Any], engine: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "why_no_bfloat16", lambda: None)
    choice = choose(embedded_model_path(), LoadOptions(device="cpu", **options))
    assert choice.engine == engine
    assert reason in choice.reason


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("size", ["large", "small"])
@pytest.mark.parametrize("has_tiles", [True, False])
def test_large_models_are_computed_in_bfloat16_where_the_cpu_has_tiles(
    size: str, has_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "cpu_has_tiles", lambda: has_tiles)
    monkeypatch.setattr(choosing, "why_no_bfloat16", lambda: None)
    monkeypatch.setattr(device, "SMALL_MODEL", 0 if size == "large" else 10**9)
    is_narrow = size == "large" and has_tiles
    path = embedded_model_path()
    assert choose(path, LoadOptions(device="cpu")).precision == ("bfloat16" if is_narrow else "float32")
    assert choose(path, LoadOptions(device="cpu", dtype="float32")).precision == "float32"
    assert choose(path, LoadOptions(device="cpu", bits=8)).precision == "float32"


@pytest.mark.usefixtures("any_size")
def test_bfloat16_without_units_for_it_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "why_no_bfloat16", lambda: "there are no units")
    choice = choose(embedded_model_path(), LoadOptions(device="cpu", dtype="bfloat16"))
    assert choice.engine == "torch"
    assert "no units" in choice.reason


@pytest.mark.usefixtures("any_size")
def test_weights_of_32_bits_are_not_rounded_unless_that_is_asked(tmp_path: Path) -> None:
    model = new_model(small_config(), SMALL_INTERNVIT, image_size=56, seed=0)
    tokenizer = load_tokenizer(FIXTURES / "llava-a-clip-mlp2x")
    folder = save_checkpoint(
        tmp_path / "x", model=model, tokenizer=tokenizer, rules=rules_of(model), template="v1"
    )
    exact = choose(folder, LoadOptions(device="cpu"))
    assert exact.engine == "torch"
    assert "float32" in exact.reason
    assert choose(folder, LoadOptions(device="cpu", bits=8)).engine == "openvino"


@pytest.mark.usefixtures("any_size")
def test_without_openvino_the_slower_engine_answers_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: object) -> None:
        raise DependencyError.of_extra("openvino", "cpu", "the openvino engine")

    monkeypatch.setattr(choosing, "require_openvino", missing)
    engine = llava.load(engine="auto", device="cpu")
    assert isinstance(engine, TorchEngine)
    assert "pip install" in engine.notices[0]


@pytest.mark.usefixtures("any_size", "cache")
def test_the_chosen_engine_answers_and_says_what_it_is() -> None:
    engine = llava.load(engine="auto", device="cpu")
    assert isinstance(engine, OpenVinoEngine)
    assert engine.notices[0].startswith("engine: openvino with float16 weights")
    assert engine.ask("Where is the star?", STAR) == "Bottom right."
    engine.close()


@pytest.mark.usefixtures("cache")
def test_openvino_by_name_with_fewer_bits() -> None:
    engine = llava.load(engine="openvino", bits=8)
    assert "int8" in engine.name
    assert engine.ask("Where is the star?", STAR) == "Bottom right."
    engine.close()
    with pytest.raises(UsageError, match="does not compute in float16"):
        llava.load(engine="openvino", dtype="float16")
    with pytest.raises(UsageError, match="computes in float32 with 8-bit weights"):
        llava.load(engine="openvino", dtype="bfloat16", bits=8)
    with pytest.raises(UsageError, match="runs on the CPU"):
        llava.load(engine="openvino", device="cuda")


def test_an_address_is_asked_and_what_it_cannot_do_is_refused() -> None:
    address = "http://127.0.0.1:9"
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1"):
        llava.load(address)
    with pytest.raises(UsageError, match="does not know bits"):
        llava.load(address, bits=4)
    with pytest.raises(UsageError, match="is for the engine 'remote', not 'torch'"):
        llava.load(address, engine="torch")
    with pytest.raises(UsageError, match="no http"):
        llava.load(embedded_model_path(), engine="remote")
    with pytest.raises(UsageError, match="model, api_key and max_concurrency"):
        llava.load(embedded_model_path(), api_key="x")


def test_an_unknown_engine_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'openvino'"):
        llava.load(engine="openvin")  # type: ignore[call-overload]


def test_the_command_takes_an_engine(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    from llava.cli import main

    command = ["chat", "--engine", "openvino", "--load-8bit", "--image", *STAR, "-p", "Where is the star?"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answer"] == "Bottom right."
    assert len(list((cache / "llava" / "openvino").iterdir())) == 1
