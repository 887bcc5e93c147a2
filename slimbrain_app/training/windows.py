"""A window of a prepared run: read as it is stored, then interpolated, normed and cut.

As patches a window has five times the bytes that it has on disk. So the two are apart: other
processes read, and whoever trains cuts.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from slimbrain_app.model.batches import (
    Batch,
    MaskedView,
    collate_views,
    find_places,
    measure_fill,
)
from slimbrain_app.model.masking import draw_mask
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.model.tokens import keep_brain, patch_columns, unroll
from slimbrain_app.prepare.store import LIMIT, find_units, mask_image, weigh_volumes
from slimbrain_app.records import Contract, PreparedRun
from slimbrain_app.settings import Hide
from slimbrain_app.training.corpus import Item
from slimbrain_app.training.samples import Sample

# Runs that a process remembers: a few MB each, besides what is mapped.
_REMEMBERED = 16
# Voxels whose frames a processor's cache holds, so that they are not written out in between.
_IN_CACHE = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class RawWindow:
    """A window as stored, and how it becomes patches.

    Attributes
    ----------
    volumes : ndarray, int8, shape (volumes, voxels)
    weights : ndarray, float32, shape (frames, volumes)
        Their product with ``volumes`` gives frames.
    units : tuple of ndarray, float32
        Gain and offset of each channel, shape (voxels,), or (1,) where all voxels have the same.
    columns : ndarray, int32, shape (places, voxels of a patch)
        1 + the column of each voxel, 0 for background, of places with tokens.
    rows : ndarray, int64, shape (times, places)
        Which token of the view lies there.
    """

    volumes: NDArray[np.int8]
    weights: NDArray[np.float32]
    units: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    columns: NDArray[np.int32]
    rows: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What all windows of a run share."""

    signal: NDArray[np.int8]
    units: tuple[tuple[NDArray[np.float32], NDArray[np.float32]], ...]
    columns: NDArray[np.int32]
    rows: NDArray[np.int64]
    kept: Tensor
    fill: Tensor
    places: Tensor


class Reader:
    """Reads windows of runs as they are stored.

    Parameters
    ----------
    items : sequence of Item
    contract : Contract
    sizes : EncoderSizes
    """

    def __init__(self, items: Sequence[Item], contract: Contract, sizes: EncoderSizes) -> None:
        # Every process that reads gets a copy: without what isn't read.
        self.runs = [
            replace(item.recording.prepared, displacement=None, checksums=(), notices=())
            for item in items
        ]
        self.contract = contract
        self.sizes = sizes
        self._remembered: OrderedDict[int, Source] = OrderedDict()

    def read(self, item: int, start: float) -> tuple[Source, RawWindow]:
        """Return the window of an item's run that begins with a frame, and what is its run's."""
        contract, source = self.contract, self._open(item)
        weights, volumes = weigh_volumes(
            self.runs[item], start, contract.frames, contract.frame_time
        )
        return source, RawWindow(
            volumes=source.signal[volumes],
            weights=weights.astype(np.float32),
            units=source.units,
            columns=source.columns,
            rows=source.rows,
        )

    def __getstate__(self) -> dict[str, Any]:
        left = {key: value for key, value in self.__dict__.items() if key != "_order"}
        return left | {"_remembered": OrderedDict()}

    @cached_property
    def _order(self) -> Tensor:
        return unroll(self.sizes, 0)

    def _open(self, item: int) -> Source:
        if item not in self._remembered:
            self._remembered[item] = self._find_source(self.runs[item])
        self._remembered.move_to_end(item)
        if len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return self._remembered[item]

    def _find_source(self, run: PreparedRun) -> Source:
        mask = torch.from_numpy(mask_image(run))
        voxels = torch.from_numpy(np.load(run.folder / "voxels.npy"))
        kept = keep_brain(mask, self.sizes)
        where = kept[0].flatten().nonzero()[:, 0]
        return Source(
            # As if it could be written to, since torch wants that; nobody does.
            signal=np.asarray(np.load(run.folder / "signal.npy", mmap_mode="c")),
            units=tuple(find_units(run, channel) for channel in self.contract.channels),
            columns=patch_columns(voxels, self.sizes)[where].numpy(),
            rows=_number_tokens(kept, self._order)[:, where].numpy(),
            kept=kept,
            fill=measure_fill(mask, self.sizes),
            places=find_places(kept, self.sizes),
        )


class Windows(Dataset[tuple[MaskedView, RawWindow]]):
    """Reads a window and draws its mask; the view comes without its patches.

    Parameters
    ----------
    items : sequence of Item
    contract : Contract
    sizes : EncoderSizes
    hide : Hide
    seed : int
        Of the training: with a sample's pass and number, all that its mask depends on.
    """

    def __init__(
        self,
        items: Sequence[Item],
        contract: Contract,
        sizes: EncoderSizes,
        hide: Hide,
        seed: int,
    ) -> None:
        self.reader = Reader(items, contract, sizes)
        self.sizes = sizes
        self.hide = hide
        self.seed = seed

    def __getitem__(self, sample: Sample) -> tuple[MaskedView, RawWindow]:
        source, window = self.reader.read(sample.item, sample.start)
        mask = draw_mask(
            source.places,
            self.sizes.final_grid[0],
            self.hide,
            (self.seed, sample.pass_, sample.number),
            self.reader.runs[sample.item].folder.name,
        )
        return MaskedView(torch.empty(0), source.kept, source.fill, mask), window

    def gather(self, samples: Sequence[Sample]) -> tuple[Batch, tuple[RawWindow, ...]]:
        """Read several, side by side."""
        views, windows = zip(*(self[sample] for sample in samples), strict=True)
        return collate_views(views, self.sizes), windows


def cut_patches(
    windows: Sequence[RawWindow], sizes: EncoderSizes, device: torch.device | str
) -> Tensor:
    """Interpolate windows in time, norm them and cut them into patches.

    Returns
    -------
    Tensor, float32, shape (tokens, values), on ``device``
        One window's after another's, as `gather_patches` makes them of `read_frames`.
    """
    counts = [window.rows.size for window in windows]
    patches = torch.empty(
        (sum(counts), sizes.channels, sizes.patch[0], math.prod(sizes.patch[1:])), device=device
    )
    first = 0
    for window, count in zip(windows, counts, strict=True):
        _fill(patches[first : first + count], window)
        first += count
    return patches.flatten(1)


def _fill(patches: Tensor, window: RawWindow) -> None:
    """Fill the patches (tokens, channels, frames, voxels) of one window."""

    def move(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(patches.device)

    volumes, weights, rows = move(window.volumes), move(window.weights), move(window.rows)
    columns = move(window.columns).long()
    units = [(move(gain), move(offset)) for gain, offset in window.units]
    places, width = columns.shape
    step = max(_IN_CACHE // width, 1) if patches.device.type == "cpu" else places
    for first in range(0, places, step):
        part = columns[first : first + step].flatten()
        inside, chosen = part > 0, (part - 1).clamp_(min=0)
        frames = weights @ _select(volumes, chosen).float()
        for channel, (gain, offset) in enumerate(units):
            values = frames * (_spread(gain, chosen) * inside)
            if len(offset) > 1:
                values += _spread(offset, chosen) * inside
                values.clamp_(-LIMIT, LIMIT)
            cut = values.reshape(len(rows), patches.shape[2], -1, width).transpose(1, 2)
            patches[rows[:, first : first + step], channel] = cut


def _select(volumes: Tensor, columns: Tensor) -> Tensor:
    if volumes.device.type == "cpu":
        # Three times as fast as torch's own.
        return torch.from_numpy(np.take(volumes.numpy(), columns.numpy(), axis=1, mode="clip"))
    return volumes.index_select(1, columns)


def _spread(values: Tensor, columns: Tensor) -> Tensor:
    return values if len(values) == 1 else values[columns]


def _number_tokens(kept: Tensor, order: Tensor) -> Tensor:
    """Return each token's place in `TokenTable` of one view, (times, places)."""
    tokens = order[kept.flatten()[order]]
    numbers = torch.zeros(math.prod(kept.shape), dtype=torch.int64)
    numbers[tokens] = torch.arange(len(tokens))
    return numbers.reshape(len(kept), -1)
