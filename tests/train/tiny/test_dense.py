"""Patch labels: what is written on a patch is what lies there."""

from __future__ import annotations

import numpy as np
import torch

from llava.demo.drawing import draw
from llava.demo.scenes import CELLS, COLORS, SHAPES, make_scene
from llava.train.tiny.dense import HEADS, DenseHeads, dense_accuracy, dense_loss, patch_labels

NAMES = list(HEADS)


def labels_of(seed: int) -> tuple[np.ndarray, list[str]]:
    scene = make_scene(seed, "train")
    return patch_labels(scene, draw(scene), grid=8, patch_size=8), scene.annotation.split("; ")


def test_every_thing_labels_some_patches_and_no_other_label_appears() -> None:
    for seed in range(80):
        labels, annotation = labels_of(seed)
        cells = {CELLS[value - 1] for value in labels[:, NAMES.index("cell")] if value}
        assert cells == {text.split(" at ")[1] for text in annotation}
        colors = {list(COLORS)[value - 1] for value in labels[:, NAMES.index("color")] if value}
        assert colors == {text.split()[0] for text in annotation if text.split()[0] in COLORS}
        pairs = {int(value) - 1 for value in labels[:, NAMES.index("pair")] if value}
        expected = {" ".join(text.split()[:2]) for text in annotation if text.split()[0] in COLORS}
        assert {f"{list(COLORS)[p % 8]} {SHAPES[p // 8]}" for p in pairs} == expected


def test_counts_of_like_things_are_those_of_the_scene() -> None:
    for seed in range(80):
        labels, annotation = labels_of(seed)
        shapes = [text.split() for text in annotation if text.split()[0] in COLORS]
        assert set(labels[:, NAMES.index("num_shapes")]) == {len(shapes)}
        for kind, same in zip(
            labels[:, NAMES.index("kind")], labels[:, NAMES.index("same_shape")], strict=True
        ):
            if 1 <= kind <= len(SHAPES):
                assert same == sum(words[1] == SHAPES[kind - 1] for words in shapes)


def test_the_dense_loss_is_least_for_right_answers() -> None:
    labels = torch.from_numpy(np.stack([labels_of(seed)[0] for seed in range(4)]))
    right = {
        name: 20.0 * torch.nn.functional.one_hot(labels[..., index], size).float()
        for index, (name, size) in enumerate(HEADS.items())
    }
    assert dense_loss(right, labels) < 1e-3
    present = dense_accuracy(right, labels)
    assert present["kind"] == present["cell"] == 1.0
    guess = DenseHeads(16)(torch.zeros(4, 64, 16))
    assert dense_loss(guess, labels) > 1
