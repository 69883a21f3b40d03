"""What one forward and backward pass keeps in memory: the model's own code on tensors without values.

torch's fake tensors have shapes, dtypes and storages but no bytes, so that the trained model's own layers,
attention, gradient checkpointing and autocast run in seconds at any size; a watch over their storages gives
the bytes alive at every moment.

Contract: the order of `forward.TrainingModel`: tower, projector, places of pictures, language model, head at
supervised positions, cross entropy in float32.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llava.model.packed_attention import packed_arguments, use_packed_attention
from llava.train.stages import enable_gradient_checkpointing, part_of


@dataclass(frozen=True)
class MicroBatch:
    """Sizes of the largest pass of one device."""

    rows: int
    """1 when packed."""
    length: int
    """Positions of a row."""
    pictures: int
    targets: int
    is_packed: bool = True

    @property
    def positions(self) -> int:
        """Positions that are computed, padding included."""
        return self.rows * self.length


@dataclass(frozen=True)
class PassBytes:
    """Bytes of a pass beside weights and gradients."""

    peak: int
    """The most that is alive at once."""
    holds_gradients: bool
    """Whether gradients are among it, growing while activations go; else they are dropped as they come."""
    logits: int
    """Of it, at most: logits, their float32 copy, and their gradient."""


class StorageWatch(TorchDispatchMode):
    """Counts the bytes of every storage made under it for as long as it lives."""

    def __init__(self) -> None:
        """Begin at zero."""
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._seen: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def know(self, *tensors: torch.Tensor) -> None:
        """Take these as there already: they are not counted."""
        for tensor in tensors:
            self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and add the storages of its results."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        if storage in self._seen:
            return
        self._seen[storage] = True
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.alive -= size


def measure_pass(
    model: Any,
    batch: MicroBatch,
    *,
    image_size: int,
    compute_dtype: torch.dtype,
    trained_dtype: torch.dtype,
    gradient_checkpointing: bool,
    holds_gradients: bool = False,
) -> PassBytes:
    """Return the bytes of a pass of a `shapes.meta_model`, which is left as it is.

    image_size: pixels; 0 for a language model alone. trained_dtype: of weights that learn, as the engine
    gives them to the pass. holds_gradients: keep them, as a step of a single pass does.
    """
    model = copy.deepcopy(model)
    core = model.model.language_model if image_size else model.model
    if batch.is_packed:
        use_packed_attention(core)
    learns_vision = any(p.requires_grad for name, p in model.named_parameters() if part_of(name) == "vision")
    if gradient_checkpointing:
        enable_gradient_checkpointing(model if learns_vision else core)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fill(model, compute_dtype, trained_dtype)
        peak = _peak(model, batch, image_size, compute_dtype, learns_vision, keeps_gradients=holds_gradients)
        logits = _peak_of_logits(model, batch.targets, compute_dtype)
    return PassBytes(peak, holds_gradients, min(logits, peak))


def _fill(model: nn.Module, frozen: torch.dtype, trained: torch.dtype) -> None:
    """Replace parameters on the meta device by fake ones; shared ones stay shared."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:
                dtype = trained if parameter.requires_grad else frozen
                made[id(parameter)] = nn.Parameter(
                    torch.empty(parameter.shape, dtype=dtype), requires_grad=parameter.requires_grad
                )
            module._parameters[name] = made[id(parameter)]


def _peak(
    model: Any,
    batch: MicroBatch,
    image_size: int,
    dtype: torch.dtype,
    learns_vision: bool,
    *,
    keeps_gradients: bool,
) -> int:
    watch = StorageWatch()
    watch.know(*model.parameters(), *model.buffers())
    with watch, _gradients(model, keeps_gradients):
        mixed = dtype != torch.float32
        with torch.autocast("cpu", dtype) if mixed else nullcontext():
            loss = _loss(model, batch, image_size, learns_vision)
        loss.backward()
        del loss
    for parameter in model.parameters():
        parameter.grad = None
    return watch.peak


@contextmanager
def _gradients(model: nn.Module, keeps: bool) -> Iterator[None]:
    """Drop each gradient once it is whole, unless it is to stay."""

    def drop(parameter: torch.Tensor) -> None:
        parameter.grad = None

    learning = [] if keeps else [p for p in model.parameters() if p.requires_grad]
    handles = [parameter.register_post_accumulate_grad_hook(drop) for parameter in learning]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _loss(model: Any, batch: MicroBatch, image_size: int, learns_vision: bool) -> torch.Tensor:
    ids = torch.zeros(batch.rows, batch.length, dtype=torch.int64)
    embeds = model.get_input_embeddings()(ids)  # [B, L, C]
    core = model.model
    if image_size and batch.pictures:
        pixels = torch.empty(batch.pictures, 3, image_size, image_size)
        with nullcontext() if learns_vision else torch.no_grad():
            features = core.tower_features(pixels)
        weight = next(core.multi_modal_projector.parameters())
        is_mixed = torch.is_autocast_enabled("cpu")
        features = core.multi_modal_projector(features if is_mixed else features.to(weight.dtype))
        rows = features.reshape(-1, features.shape[-1])[: batch.positions].to(embeds.dtype)  # [P * N, C]
        flat = embeds.reshape(-1, embeds.shape[-1])
        places = torch.empty(len(rows), dtype=torch.int64)
        embeds = flat.index_put((places,), rows).reshape(embeds.shape)
    language = core.language_model if image_size else core
    if batch.is_packed:
        extra = packed_arguments(language, (batch.length,), device=embeds.device)
    else:
        mask = torch.ones(batch.rows, batch.length, dtype=torch.bool)
        extra = {"attention_mask": mask[:, None, None].expand(-1, 1, batch.length, -1).contiguous()}
    positions = torch.zeros(batch.rows, batch.length, dtype=torch.int64)
    hidden = language(
        inputs_embeds=embeds, position_ids=positions, use_cache=False, **extra
    ).last_hidden_state
    picked = torch.empty(batch.targets, dtype=torch.int64)
    supervised = hidden.reshape(-1, hidden.shape[-1])[picked]  # [T, C]
    logits = model.lm_head(supervised)  # [T, V]
    return F.cross_entropy(logits.float(), torch.empty(batch.targets, dtype=torch.int64), reduction="sum")


def _peak_of_logits(model: Any, targets: int, dtype: torch.dtype) -> int:
    """Return the peak of the head alone over `targets` positions."""
    watch = StorageWatch()
    rows = model.lm_head.weight.shape[0]
    logits = torch.empty(targets, rows, dtype=dtype, requires_grad=True)
    with watch:
        F.cross_entropy(logits.float(), torch.empty(targets, dtype=torch.int64), reduction="sum").backward()
    return int(logits.nbytes + watch.peak)
