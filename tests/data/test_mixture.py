"""Holds the mixture of data sets: the original's meta file, repetition, weights, and what an epoch visits."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava.data.mixture import Mixture, open_data, open_mixture, open_paths, read_meta
from llava.errors import ConfigError, DataError, FileError
from tests.data.files import sample, write_lines, write_list

SIZES = {"small": 10, "middle": 50, "large": 240}


@dataclass(frozen=True)
class Paths:
    path: str | None = None
    meta: str | None = None
    image_folder: str | None = None


def write_meta(folder: Path, fields: dict[str, dict[str, Any]]) -> Path:
    """Write data sets of the sizes above, and a meta file that names them with these fields."""
    (folder / "pictures").mkdir(exist_ok=True)
    for name, size in SIZES.items():
        write = write_list if name == "middle" else write_lines
        write(folder / f"{name}.json", (sample(number, image=f"{name}.png") for number in range(size)))
    meta = {
        name: {
            "root": str(folder / "pictures"),
            "annotation": str(folder / f"{name}.json"),
            "data_augment": False,
            **more,
        }
        for name, more in fields.items()
    }
    path = folder / "meta.json"
    path.write_text(json.dumps(meta))
    return path


def mixture_of(folder: Path, fields: dict[str, dict[str, Any]]) -> Mixture:
    return open_mixture(write_meta(folder, fields), cache_folder=folder / "cache")


def visits(mixture: Mixture, indices: Any) -> dict[str, int]:
    names = [mixture.source_of(int(index)) for index in indices]
    return {name: names.count(name) for name in dict.fromkeys(names)}


def test_samples_stand_in_the_order_of_the_entries(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, {"middle": {}, "small": {}})
    assert len(mixture) == 60
    assert mixture[49].id == "s49"
    assert mixture[49].source == mixture.source_of(49) == "middle"
    assert mixture[50].id == "s0"
    assert mixture[50].images == (str(tmp_path / "pictures" / "small.png"),)
    assert mixture.where(50) == "small.json line 1"
    assert mixture.raw(50) == sample(0, image="small.png")
    with pytest.raises(IndexError):
        mixture[60]
    with pytest.raises(IndexError):
        mixture[-1]


def test_whole_repetitions_are_the_original_concatenation(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, {"small": {"repeat_time": 3}, "middle": {"repeat_time": 1}})
    expected = [*list(range(10)) * 3, *range(10, 60)]
    assert mixture.epoch_indices(0, 0).tolist() == expected
    assert mixture.epoch_indices(7, 5).tolist() == expected
    assert mixture.samples_per_epoch == 80


def test_a_fraction_is_a_part_that_the_seed_picks(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, {"large": {"repeat_time": 0.25}, "small": {"repeat_time": 1.5}})
    first = mixture.epoch_indices(1, 0)
    assert visits(mixture, first) == {"large": 60, "small": 15}
    assert len(set(first[:60].tolist())) == 60
    assert np.array_equal(first, mixture.epoch_indices(1, 9))
    assert not np.array_equal(first, mixture.epoch_indices(2, 0))
    counts = np.bincount(first[60:] - 240, minlength=10)
    assert sorted(counts.tolist()) == [1] * 5 + [2] * 5


def test_weights_are_shares_of_an_epoch(tmp_path: Path) -> None:
    weights: dict[str, dict[str, Any]] = {
        "small": {"weight": 1},
        "middle": {"weight": 1},
        "large": {"weight": 2.0},
    }
    mixture = mixture_of(tmp_path, weights)
    for epoch in range(3):
        assert visits(mixture, mixture.epoch_indices(5, epoch)) == {"small": 75, "middle": 75, "large": 150}
    assert mixture.samples_per_epoch == len(mixture) == 300


def test_under_weights_all_samples_of_an_entry_are_visited_equally_often(tmp_path: Path) -> None:
    mixture = mixture_of(tmp_path, {"small": {"weight": 7}, "large": {"weight": 3}})
    epochs = [mixture.epoch_indices(5, epoch) for epoch in range(9)]
    counts = np.bincount(np.concatenate(epochs), minlength=250)
    assert len(epochs[0]) == 250
    assert set(counts[:10].tolist()) == {157, 158}  # 9 epochs of 175 visits to 10 samples
    assert set(counts[10:].tolist()) == {2, 3}  # 9 epochs of 75 visits to 240 samples
    assert not np.array_equal(epochs[0], epochs[1])


def test_an_epoch_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    fields: dict[str, dict[str, Any]] = {"small": {"weight": 7}, "large": {"weight": 3}}
    mixture, again = mixture_of(tmp_path, fields), mixture_of(tmp_path, fields)
    again.epoch_indices(3, 8)
    assert np.array_equal(mixture.epoch_indices(3, 4), again.epoch_indices(3, 4))
    assert not np.array_equal(mixture.epoch_indices(3, 4), mixture.epoch_indices(4, 4))
    # The numbers themselves: a resumed run must meet them with any version of numpy.
    assert mixture.epoch_indices(3, 4)[175:183].tolist() == [15, 18, 22, 23, 25, 26, 27, 31]


def test_shares_of_weights_always_add_up(tmp_path: Path) -> None:
    fields = {"small": {"weight": 1 / 3}, "middle": {"weight": 1 / 7}, "large": {"weight": 1e-9}}
    mixture = mixture_of(tmp_path, fields)
    assert mixture.entry_sizes() == [210, 90, 0]
    assert len(mixture.epoch_indices(0, 3)) == 300


def test_the_fingerprint_follows_content_repetition_and_weights_but_not_places(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    base = mixture_of(tmp_path, {"small": {}, "large": {}}).fingerprint
    assert mixture_of(tmp_path / "elsewhere", {"small": {}, "large": {}}).fingerprint == base
    others = [
        mixture_of(tmp_path, {"large": {}, "small": {}}).fingerprint,
        mixture_of(tmp_path, {"small": {"repeat_time": 2}, "large": {}}).fingerprint,
        mixture_of(tmp_path, {"small": {"weight": 2}, "large": {"weight": 1}}).fingerprint,
    ]
    meta = write_meta(tmp_path, {"small": {}, "large": {}})
    text = (tmp_path / "small.json").read_text()
    (tmp_path / "small.json").write_text(text.replace("Answer 3", "Answer 4"))
    others.append(open_mixture(meta, cache_folder=tmp_path / "cache").fingerprint)
    assert len({base, *others}) == 5


def test_a_meta_file_as_the_original_ships_it_is_read(tmp_path: Path) -> None:
    # Names, keys and values are spelt as in the original's example of 26 data sets.
    names = [f"set_{number}_{size}k" for number, size in enumerate((150, 83, 18, 10, 19, 17, 4, 206))]
    entries = {
        name: {
            "root": "" if number == 7 else f"./data/{name}/",
            "annotation": f"./data/annotations/{name}.jsonl",
            "data_augment": False,
            "repeat_time": 2 if number == 3 else 1,
        }
        for number, name in enumerate(names)
    }
    path = tmp_path / "data.json"
    path.write_text(json.dumps(entries, indent=2))
    read = read_meta(path)
    assert [entry.name for entry in read] == names
    assert [entry.repeat_time for entry in read] == [1, 1, 1, 2, 1, 1, 1, 1]
    assert (read[7].root, read[7].annotation) == ("", f"./data/annotations/{names[7]}.jsonl")


def test_paths_are_sought_in_the_current_folder_and_beside_the_meta_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_meta(tmp_path, {})
    path = tmp_path / "meta.json"
    path.write_text('{"a": {"root": "./pictures", "annotation": "./small.json"}}')
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path, tmp_path / "empty"):
        monkeypatch.chdir(folder)
        mixture = open_mixture(path, cache_folder=tmp_path / "cache")
        assert mixture[0].images == (str(tmp_path / "pictures" / "small.png"),)
    path.write_text('{"a": {"root": "", "annotation": "gone.json"}}')
    with pytest.raises(FileError, match=r"gone\.json of entry 'a' does not exist"):
        open_mixture(path)


def test_data_augment_warns_that_it_has_no_effect(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_meta(write_meta(tmp_path, {"small": {"data_augment": True}, "large": {}}))
    assert "data_augment has no effect (small)" in caplog.text


BROKEN_META = [
    ('{"a": {"annotation": "x", "repeat_times": 2}}', DataError, "'repeat_times' .*mean repeat_time?"),
    ('{"a": {"root": ""}}', DataError, "annotation is None"),
    ('{"a": {"annotation": "x", "data_augment": "no"}}', DataError, "data_augment is 'no'"),
    ('{"a": {"annotation": "x", "root": 1}}', DataError, "root is 1"),
    ('{"a": "x.json"}', DataError, "entry 'a': an entry is of type str"),
    ('{"a": {"annotation": "x"}, "a": {"annotation": "y"}}', DataError, "'a' is given twice"),
    ("[]", DataError, "a mixture is a JSON object"),
    ("{}", DataError, "a mixture is a JSON object"),
    ('{"a": {"annotation": "x"},}', FileError, "is not JSON: .*line 1"),
    ('{"a": {"annotation": "x", "repeat_time": 0}}', ConfigError, "repeat_time of 'a' is 0"),
    ('{"a": {"annotation": "x", "repeat_time": "2"}}', ConfigError, "repeat_time of 'a' is '2'"),
    ('{"a": {"annotation": "x", "repeat_time": true}}', ConfigError, "repeat_time of 'a' is True"),
    ('{"a": {"annotation": "x", "weight": -1}}', ConfigError, "weight of 'a' is -1"),
    ('{"a": {"annotation": "x", "weight": 1, "repeat_time": 2}}', ConfigError, "both a weight"),
]


@pytest.mark.parametrize(("text", "error", "message"), BROKEN_META)
def test_a_broken_meta_file_is_an_error(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "meta.json"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_meta(path)


def test_some_weights_and_some_not_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="others have none: large"):
        mixture_of(tmp_path, {"small": {"weight": 1}, "large": {}})


def test_several_paths_are_one_mixture(tmp_path: Path) -> None:
    write_meta(tmp_path, {})
    (tmp_path / "b").mkdir()
    write_lines(tmp_path / "b" / "small.json", [sample(99)])
    paths = f"{tmp_path / 'small.json'}, {tmp_path / 'b' / 'small.json'}"
    mixture = open_paths(paths, cache_folder=tmp_path / "cache")
    assert [entry.name for entry in mixture.entries] == ["small", "small-2"]
    assert mixture[10].id == "s99"
    assert mixture.epoch_indices(0, 0).tolist() == list(range(11))
    with pytest.raises(ConfigError, match="one comma"):
        open_paths("a.json,,b.json")


def test_a_path_that_holds_a_comma_is_one_path(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a,b.json", [sample(0)])
    assert len(open_paths(str(path), cache_folder=tmp_path / "cache")) == 1


def test_options_name_either_paths_or_a_meta_file(tmp_path: Path) -> None:
    meta = write_meta(tmp_path, {"small": {}})
    cache = tmp_path / "cache"
    assert len(open_data(Paths(meta=str(meta)), cache_folder=cache)) == 10
    data = Paths(path=str(tmp_path / "small.json"), image_folder=str(tmp_path / "pictures"))
    assert open_data(data, cache_folder=cache)[0].images == (str(tmp_path / "pictures" / "small.png"),)
    with pytest.raises(ConfigError, match="both missing"):
        open_data(Paths())
    with pytest.raises(ConfigError, match="both set"):
        open_data(Paths(path="a", meta="b"))
