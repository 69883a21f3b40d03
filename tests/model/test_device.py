"""The device and the dtype are chosen in one place, by what the machine has."""

from __future__ import annotations

import pytest
import torch

from llava.errors import ConfigError, UsageError
from llava.model.device import SMALL_MODEL, resolve_device, resolve_dtype


def test_a_device_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device(None) == resolve_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(UsageError, match="cpu"):
            resolve_device(name)
    with pytest.raises(ConfigError, match="'cuda'"):
        resolve_device("cudaa")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device(None) == torch.device("cuda")
    with pytest.raises(UsageError, match="1 GPU"):
        resolve_device("cuda:1")


def test_the_dtype_is_the_devices_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, big = torch.device("cpu"), SMALL_MODEL + 1
    assert resolve_dtype(None, cpu, num_parameters=SMALL_MODEL) == torch.float32
    for has_units, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("llava.model.device.cpu_computes_bfloat16", lambda units=has_units: units)
        assert resolve_dtype(None, cpu, num_parameters=big) == dtype
    for has_units, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda units=has_units, **_: units)
        assert resolve_dtype(None, torch.device("cuda"), num_parameters=big) == dtype
    assert resolve_dtype(None, torch.device("mps"), num_parameters=big) == torch.float16
    assert resolve_dtype("fp16", cpu, num_parameters=0) == torch.float16
    assert resolve_dtype(torch.bfloat16, cpu, num_parameters=0) == torch.bfloat16
    with pytest.raises(ConfigError, match="float16"):
        resolve_dtype("flaot16", cpu, num_parameters=0)
