"""Which tokens exist, in which order they lie, and how they are packed for attention.

Tokens are deleted, not zeroed: a table lists those that exist, view by view, each view's mask
units one after another, and within a unit so that the children of a pooled cell are neighbours.
Pooling is then a maximum over runs of neighbours, attention within units one over segments, and
a table with every token is the dense network without a code path of its own.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from slimbrain_app.model.packing import Packing, Pooling, pack_attention, pack_pooling
from slimbrain_app.model.presets import EncoderSizes, divide


@dataclass(frozen=True, slots=True, eq=False)
class StageTable:
    """How a stage's tokens are pooled into being and attend.

    ``entry`` is the packing of the stage's first block, whose queries are pooled by ``pooling``
    where there is one; ``within`` that of its other blocks.
    """

    pooling: Pooling | None
    entry: Packing
    within: Packing

    def to(self, device: torch.device | str) -> StageTable:
        pooling = None if self.pooling is None else self.pooling.to(device)
        return StageTable(pooling, self.entry.to(device), self.within.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """Cells that exist after so many poolings, view by view and in each by `unroll`.

    Attributes
    ----------
    cells : Tensor, int64, shape (cells,)
        Flat index into the level's grid (t, x, y, z in C order).
    views : Tensor, int64, shape (cells,)
        The view that each belongs to.
    per_view, per_unit : Tensor, int64, shapes (views,), (units,)
        How many cells lie in each view and in each mask unit that has any.
    children : Tensor, int64, shape (cells,)
        How many cells of the level below each holds; 1 at level 0.
    """

    cells: Tensor
    views: Tensor
    per_view: Tensor
    per_unit: Tensor
    children: Tensor

    def to(self, device: torch.device | str) -> Level:
        return Level(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """The tokens of one or more views: level 0, its poolings, and how each stage is packed.

    ``lengths`` are the final cells of each view.
    """

    sizes: EncoderSizes
    levels: tuple[Level, ...]
    lengths: tuple[int, ...]
    stages: tuple[StageTable, ...]

    @property
    def tokens(self) -> Tensor:
        """Flat indices into the token grid, (tokens,)."""
        return self.levels[0].cells

    @property
    def padding(self) -> float:
        """The largest share of padding in any packing."""
        return max(max(stage.entry.padding, stage.within.padding) for stage in self.stages)

    def to(self, device: torch.device | str) -> TokenTable:
        levels = tuple(level.to(device) for level in self.levels)
        stages = tuple(stage.to(device) for stage in self.stages)
        return TokenTable(self.sizes, levels, self.lengths, stages)


def keep_brain(mask: Tensor, sizes: EncoderSizes) -> Tensor:
    """Return which tokens exist, given where there is brain.

    Parameters
    ----------
    mask : Tensor, bool, shape (x, y, z)
        Brain voxels.
    sizes : EncoderSizes

    Returns
    -------
    Tensor, bool, shape (t, x, y, z) of the token grid
    """
    space = sizes.grid[1:]
    block = {"none": space, "unit": sizes.mask_unit[1:], "token": (1, 1, 1)}[sizes.deletion]
    voxels = [size * patch for size, patch in zip(block, sizes.patch[1:], strict=True)]
    kept = functional.max_pool3d(mask[None, None].float(), voxels)[0, 0] > 0
    for axis, size in enumerate(block):
        kept = kept.repeat_interleave(size, axis)
    return kept.expand(sizes.grid)


def build_table(kept: Tensor, sizes: EncoderSizes) -> TokenTable:
    """List, order and pack the tokens that exist.

    Parameters
    ----------
    kept : Tensor, bool, shape (t, x, y, z) or (views, t, x, y, z) of the token grid
    sizes : EncoderSizes

    Raises
    ------
    ValueError
        Another shape, or a view without any token.
    """
    if tuple(kept.shape[-4:]) != sizes.grid or kept.ndim not in (4, 5):
        raise ValueError(f"tokens of shape {tuple(kept.shape)} are not on a grid of {sizes.grid}")
    kept = kept.reshape(-1, math.prod(sizes.grid))
    if not kept.any(1).all():
        raise ValueError("a view without any token")
    levels = _levels(kept, sizes)
    lengths = tuple(levels[-1].per_view.tolist())
    return TokenTable(sizes, levels, lengths, _stages(levels, sizes))


def unroll(sizes: EncoderSizes, level: int) -> Tensor:
    """Return the order of a level's cells: unit by unit, children of a cell side by side.

    Returns
    -------
    Tensor, int64, shape (cells,)
        Flat indices into the level's grid.
    """
    # From coarse to fine: units in the view, then the cells of each pooling in the one above.
    blocks = [sizes.grid, sizes.mask_unit, *reversed(sizes.cells[level:])]
    counts = [divide(outer, inner) for outer, inner in itertools.pairwise(blocks)]
    split_axes = [count[axis] for axis in range(4) for count in counts]
    coarse_first = [axis * len(counts) + step for step in range(len(counts)) for axis in range(4)]
    order = torch.arange(math.prod(split_axes)).reshape(split_axes)
    return order.permute(coarse_first).flatten()


def reroll(features: Tensor, table: TokenTable, level: int) -> Tensor:
    """Put a level's cells back into their place, zeros where none exist.

    Parameters
    ----------
    features : Tensor, shape (cells, width)
    table : TokenTable
    level : int
        0 for tokens, 1 after the first pooling, and so on.

    Returns
    -------
    Tensor, shape (views, t, x, y, z, width) of the level's grid
    """
    grid = divide(table.sizes.grid, table.sizes.cells[level])
    placed = features.new_zeros(len(table.lengths), math.prod(grid), features.shape[1])
    placed[table.levels[level].views, table.levels[level].cells] = features
    return placed.reshape(-1, *grid, features.shape[1])


def gather_patches(frames: Tensor, voxels: Tensor, table: TokenTable) -> Tensor:
    """Cut the existing tokens' patches out of one view's brain voxels.

    Parameters
    ----------
    frames : Tensor, shape (frames, voxels) or (channels, frames, voxels)
    voxels : Tensor, int, shape (voxels,)
        Flat index of each voxel in the grid of voxels, C order.
    table : TokenTable
        Of this one view.

    Returns
    -------
    Tensor, shape (tokens, values)
        A patch's values by channel, t, x, y, z. Background in a patch is 0; voxels of deleted
        tokens are not read.
    """
    sizes = table.sizes
    space = math.prod(sizes.grid[1:])
    # Several times share a place, whose voxels are looked up once.
    places, place = torch.unique(table.tokens % space, return_inverse=True)
    columns = patch_columns(voxels, sizes)[places].flatten()
    # Flat, because torch is slow to select along a third axis; background reads the column of 0.
    values = functional.pad(frames.reshape(-1, len(voxels)), (1, 0)).index_select(1, columns)
    shape = (sizes.channels, sizes.grid[0], sizes.patch[0], len(places), -1)
    return values.reshape(shape)[:, table.tokens // space, :, place].flatten(1)


def patch_columns(voxels: Tensor, sizes: EncoderSizes) -> Tensor:
    """Return 1 + the column of each place's voxels, 0 for background.

    Parameters
    ----------
    voxels : Tensor, int, shape (voxels,)
        As for `gather_patches`.
    sizes : EncoderSizes

    Returns
    -------
    Tensor, int32, shape (places, voxels of a patch)
        Places of the token grid without time, in C order.
    """
    columns = torch.zeros(math.prod(sizes.shape[1:]), dtype=torch.int32, device=voxels.device)
    columns[voxels.long()] = torch.arange(
        1, len(voxels) + 1, dtype=torch.int32, device=voxels.device
    )
    (x, y, z), (i, j, k) = sizes.grid[1:], sizes.patch[1:]
    return columns.reshape(x, i, y, j, z, k).permute(0, 2, 4, 1, 3, 5).reshape(x * y * z, -1)


def _levels(kept: Tensor, sizes: EncoderSizes) -> tuple[Level, ...]:
    """List the cells of each level, given (views, tokens) in C order."""
    # A cell's number: its place in the unrolled order, views one after another. Children of a
    # cell are neighbours there, so dividing a number by the stride gives the parent's.
    numbers = kept[:, unroll(sizes, 0)].flatten().nonzero()[:, 0]
    children = torch.ones_like(numbers)
    levels = []
    for level, cell in enumerate(sizes.cells):
        if level:
            stride = math.prod(sizes.strides[level - 1])
            numbers, children = torch.unique_consecutive(numbers // stride, return_counts=True)
        in_view, in_unit = (math.prod(divide(of, cell)) for of in (sizes.grid, sizes.mask_unit))
        levels.append(
            Level(
                cells=unroll(sizes, level)[numbers % in_view],
                views=numbers // in_view,
                per_view=torch.unique_consecutive(numbers // in_view, return_counts=True)[1],
                per_unit=torch.unique_consecutive(numbers // in_unit, return_counts=True)[1],
                children=children,
            )
        )
    return tuple(levels)


def _stages(levels: tuple[Level, ...], sizes: EncoderSizes) -> tuple[StageTable, ...]:
    def segments(level: Level, in_units: bool) -> Tensor:
        return level.per_unit if in_units else level.per_view

    stages = []
    above, in_units_above = levels[0], sizes.unit_attention[0]
    for number, in_units in enumerate(sizes.unit_attention):
        level = levels[min(number, len(levels) - 1)]
        within = pack_attention(segments(level, in_units), segments(level, in_units))
        queries, keys = segments(level, in_units_above), segments(above, in_units_above)
        stages.append(
            StageTable(
                pooling=pack_pooling(level.children) if level is not above else None,
                entry=pack_attention(queries, keys),
                within=within,
            )
        )
        above, in_units_above = level, in_units
    return tuple(stages)
