"""Weight files: what is read, what is refused, and that a planted pickle does not run."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from llava.errors import FileError, WeightsError
from llava.model.weights import WeightFiles, write_torch_file, write_weights

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "b.weight": torch.ones(5, dtype=torch.float16),
    "c.scalar": torch.tensor(7, dtype=torch.int64),
    "d.empty": torch.zeros(0, 3, dtype=torch.bfloat16),
    "e.mask": torch.tensor([True, False, True]),
}


def _same(files: WeightFiles, tensors: dict[str, torch.Tensor]) -> None:
    assert set(files.keys()) == set(tensors)
    for key, tensor in tensors.items():
        assert files.shape(key) == tuple(tensor.shape)
        assert files.dtype(key) == tensor.dtype
        assert torch.equal(files.read(key), tensor)


def _write_bin(tensors: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(tensors, path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_single_file_is_read(tmp_path: Path, name: str) -> None:
    (save_file if name.endswith("safetensors") else _write_bin)(TENSORS, tmp_path / name)
    files = WeightFiles.open(tmp_path)
    _same(files, TENSORS)
    assert files.total_bytes == 48 + 10 + 8 + 0 + 3


def test_the_old_torch_format_is_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "mm_projector.bin", _use_new_zipfile_serialization=False)
    _same(WeightFiles.open(tmp_path, "mm_projector"), TENSORS)


def test_parameters_in_a_bin_come_back_as_plain_tensors(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "non_lora_trainables.bin")
    tensor = WeightFiles.open(tmp_path, "non_lora_trainables").read("w")
    assert type(tensor) is torch.Tensor
    assert not tensor.requires_grad


@pytest.mark.parametrize(("stem", "suffix"), [("model", ".safetensors"), ("pytorch_model", ".bin")])
@pytest.mark.parametrize("has_index", [True, False])
def test_shards_are_read_with_and_without_an_index(
    tmp_path: Path, stem: str, suffix: str, has_index: bool
) -> None:
    index = _write_shards(tmp_path, stem, suffix)
    if not has_index:
        index.unlink()
    _same(WeightFiles.open(tmp_path), TENSORS)


@pytest.mark.parametrize(("stem", "suffix"), [("model", ".safetensors"), ("pytorch_model", ".bin")])
@pytest.mark.parametrize("has_index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, stem: str, suffix: str, has_index: bool) -> None:
    index = _write_shards(tmp_path, stem, suffix)
    if not has_index:
        index.unlink()
    (tmp_path / f"{stem}-00001-of-00002{suffix}").unlink()
    with pytest.raises(WeightsError, match=f"{stem}-00001-of-00002{suffix}.* is missing"):
        WeightFiles.open(tmp_path)


def test_an_index_that_does_not_agree_with_its_files_is_refused(tmp_path: Path) -> None:
    index = _write_shards(tmp_path, "model", ".safetensors")
    content = json.loads(index.read_text())
    content["weight_map"]["z.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=r"z\.weight is not in model-00001"):
        WeightFiles.open(tmp_path)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b.bin", "..\\x.bin", "", 3, "x\0.bin"]
)
def test_an_index_cannot_point_out_of_the_folder(tmp_path: Path, name: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(WeightsError, match="no file name"):
        WeightFiles.open(tmp_path)


def test_a_name_in_two_files_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "1.safetensors")
    save_file({"w": torch.zeros(1)}, tmp_path / "2.safetensors")
    with pytest.raises(WeightsError, match=r"1\.safetensors and in .*2\.safetensors"):
        WeightFiles.open_files([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])


def test_shards_of_two_checkpoints_are_refused(tmp_path: Path) -> None:
    for name in ("model-00001-of-00002.safetensors", "model-00001-of-00003.safetensors"):
        save_file({"w": torch.ones(1)}, tmp_path / name)
    with pytest.raises(WeightsError, match="several checkpoints"):
        WeightFiles.open(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weight files"):
        WeightFiles.open(tmp_path)
    with pytest.raises(FileError, match="does not exist"):
        WeightFiles.open_files([tmp_path / "none.bin"])


class _Planted:
    """Runs a command when a pickle of it is read without care."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, (f"__import__('pathlib').Path({str(self._canary)!r}).touch()",)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "mm_projector.bin", "adapter_model.bin"])
def test_a_planted_pickle_does_not_run_and_the_file_is_named(tmp_path: Path, is_zip: bool, name: str) -> None:
    canary = tmp_path / "canary"
    content = {"w": torch.ones(1), "x": _Planted(canary)}
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(WeightsError, match=name):
        WeightFiles.open_files([tmp_path / name])
    assert not canary.exists()


def test_a_bare_pickle_does_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "mm_projector.bin"
    path.write_bytes(pickle.dumps(_Planted(canary)))
    with pytest.raises(WeightsError, match="mm_projector"):
        WeightFiles.open(tmp_path, "mm_projector")
    assert not canary.exists()


@pytest.mark.parametrize(
    "content",
    [
        [torch.ones(1)],
        {"w": 3},
        {"w": {"nested": torch.ones(1)}},
        {1: torch.ones(1)},
        {"w": torch.ones(2, 2).to_sparse()},
        {"w": torch.ones(1).expand(1 << 40)},
        {"w": torch.empty(3, device="meta")},
    ],
)
def test_a_bin_that_holds_anything_but_plain_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin"):
        WeightFiles.open(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 0.5, 0.99])
def test_a_cut_file_is_refused(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else _write_bin)(TENSORS, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(WeightsError, match=name):
        WeightFiles.open(tmp_path)


def _raw(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _lying(**fields: object) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | fields
    return _raw(json.dumps({"w": entry}).encode(), b"\0" * 8)


@pytest.mark.parametrize(
    "content",
    [
        _raw(b"{}", b"", length=2**63),
        _raw(b"{}", b"", length=90_000_000),
        _raw(b"[]", b""),
        _raw(b"not json", b""),
        _raw(b"\xff\xfe", b""),
        _raw(b'{"w": 3}', b""),
        _raw(b"[" * 100_000, b""),
        _raw(b"{}", b"left over"),
        _lying(shape=[3]),
        _lying(shape=[2**40, 2**40]),
        _lying(shape=[-2]),
        _lying(shape=[2.0]),
        _lying(shape=[True, 2]),
        _lying(dtype="F31"),
        _lying(dtype="F4", shape=[16]),
        _lying(dtype="C64", shape=[1]),
        _lying(dtype=["F32"]),
        _lying(data_offsets=[8, 16]),
        _lying(data_offsets=[-8, 0]),
        _lying(data_offsets=[8, 0]),
        _lying(data_offsets=[0]),
        _lying(shape=[1], data_offsets=[0, 4]),
        _raw(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
            b"\0" * 8,
        ),
        _raw(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
            b"\0\0",
        ),
    ],
)
def test_a_lying_safetensors_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        WeightFiles.open(tmp_path)


def test_a_file_that_is_cut_between_two_reads_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({f"w{number}": torch.ones(50)}, tmp_path / f"{number}.safetensors")
    paths = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    files = WeightFiles.open_files(paths)
    files.read("w1")
    paths[1].write_bytes(paths[1].read_bytes()[:-8])
    with pytest.raises(WeightsError, match=r"2\.safetensors is not a whole"):
        files.read("w2")
    paths[1].unlink()
    with pytest.raises(WeightsError, match=r"2\.safetensors cannot be read"):
        files.read("w2")


def test_tensors_at_odd_bytes_are_read(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "w": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    content = _raw(json.dumps(header).encode(), b"\1" + struct.pack("<2f", 1, 2))
    (tmp_path / "model.safetensors").write_bytes(content)
    tensor = WeightFiles.open(tmp_path).read("w")
    assert torch.equal(tensor, torch.tensor([1.0, 2.0]))
    assert tensor.data_ptr() % 4 == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    position=st.integers(0, 2000), byte=st.integers(0, 255), name=st.sampled_from(["m.safetensors", "m.bin"])
)
def test_a_changed_byte_never_ends_in_a_traceback(
    tmp_path: Path, position: int, byte: int, name: str
) -> None:
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else _write_bin)({"w": torch.ones(40)}, path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = byte
    path.write_bytes(content)
    try:
        files = WeightFiles.open_files([path])
        for key in files.keys():
            files.read(key)
    except WeightsError as error:
        refusal = str(error)
        assert name in refusal


def test_what_is_written_is_read_by_safetensors_itself(tmp_path: Path) -> None:
    write_weights(tmp_path, TENSORS.items())
    with safe_open(tmp_path / "model.safetensors", "pt") as written:
        assert written.metadata() == {"format": "pt"}
        for key, tensor in TENSORS.items():
            assert torch.equal(written.get_tensor(key), tensor)
    _same(WeightFiles.open(tmp_path), TENSORS)


def test_a_large_checkpoint_is_written_as_shards_and_an_index(tmp_path: Path) -> None:
    written = write_weights(tmp_path, TENSORS.items(), max_shard_bytes=50)
    assert [path.name for path in written] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert json.loads(written[-1].read_text())["metadata"] == {"total_size": 69}
    _same(WeightFiles.open(tmp_path), TENSORS)


def test_tied_and_strided_tensors_are_written_whole(tmp_path: Path) -> None:
    table = torch.arange(6.0).reshape(2, 3)
    tensors = {"embed": table, "head": table, "turned": table.t(), "row": table[1]}
    write_weights(tmp_path, tensors.items())
    _same(WeightFiles.open(tmp_path), tensors)


def test_written_files_are_as_open_to_others_as_any_new_file(tmp_path: Path) -> None:
    (plain := tmp_path / "plain").touch()
    (written,) = write_weights(tmp_path / "x", TENSORS.items())
    assert written.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("tensor", [torch.ones(2, 2).to_sparse(), torch.ones(2, dtype=torch.complex64)])
def test_what_the_format_cannot_hold_is_named(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(WeightsError, match="odd is a"):
        write_weights(tmp_path, [("odd", tensor)])
    assert list(tmp_path.iterdir()) == []


def test_a_second_save_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    write_weights(tmp_path, TENSORS.items(), max_shard_bytes=50)
    (tmp_path / "config.json").write_text("{}")
    write_weights(tmp_path, {"w": torch.ones(1)}.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_failed_save_keeps_the_old_files(tmp_path: Path) -> None:
    write_weights(tmp_path, TENSORS.items())

    def failing() -> object:
        yield "w", torch.ones(20)
        yield "x", torch.ones(20)
        raise WeightsError("a shard is corrupt")

    with pytest.raises(WeightsError, match="corrupt"):
        write_weights(tmp_path, failing(), max_shard_bytes=80)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    _same(WeightFiles.open(tmp_path), TENSORS)


@pytest.mark.parametrize("max_shard_bytes", [4, 1000])
def test_the_same_name_twice_is_refused(tmp_path: Path, max_shard_bytes: int) -> None:
    pairs = [("w", torch.ones(1)), ("w", torch.ones(1))]
    with pytest.raises(WeightsError, match="twice"):
        write_weights(tmp_path, pairs, max_shard_bytes=max_shard_bytes)
    assert list(tmp_path.iterdir()) == []


def test_a_bin_written_for_the_original_is_read_back(tmp_path: Path) -> None:
    write_torch_file(tmp_path / "mm_projector.bin", TENSORS)
    _same(WeightFiles.open(tmp_path, "mm_projector"), TENSORS)


def _write_shards(folder: Path, stem: str, suffix: str) -> Path:
    names = list(TENSORS)
    weight_map: dict[str, str] = {}
    for number, part in ((1, names[:2]), (2, names[2:])):
        path = folder / f"{stem}-{number:05d}-of-00002{suffix}"
        tensors = {name: TENSORS[name] for name in part}
        (save_file if suffix == ".safetensors" else _write_bin)(tensors, path)
        weight_map |= dict.fromkeys(part, path.name)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 69}, "weight_map": weight_map}))
    return index
