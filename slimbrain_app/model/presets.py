"""The three presets: sizes of the encoder and what each wants as input."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from slimbrain_app.records import Contract

Axes = tuple[int, int, int, int]
Deletion = Literal["none", "unit", "token"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSizes:
    """Sizes of a 4D hierarchical encoder. Axes are time, x, y, z throughout.

    Width and heads double from stage to stage.

    Attributes
    ----------
    shape : tuple of int
        Frames and voxels of one view.
    channels : int
        Values per voxel and frame.
    patch : tuple of int
        Frames and voxels of one token.
    width, heads : int
        Of the first stage.
    depths : tuple of int
        Blocks of each stage.
    strides : tuple of tuple of int
        Pooling into the second stage, the third, and so on; later stages do not pool.
    mask_unit : tuple of int
        Tokens of the block that attends together.
    unit_attention : tuple of bool
        Whether a stage attends within mask units; if not, within the whole view. The block that
        pools into a stage still attends as the stage before.
    deletion : {"none", "unit", "token"}
        What is left out where there is no brain.
    """

    shape: Axes = (40, 96, 96, 96)
    channels: int = 1
    patch: Axes
    width: int
    heads: int
    depths: tuple[int, ...]
    strides: tuple[Axes, ...]
    mask_unit: Axes
    unit_attention: tuple[bool, ...]
    deletion: Deletion

    def __post_init__(self) -> None:
        counts = (self.channels, self.width, self.heads, *self.depths)
        axes = itertools.chain(self.shape, self.patch, self.mask_unit, *self.strides)
        if min(*counts, *axes) < 1:
            raise ValueError("a size below 1")
        if len(self.unit_attention) != len(self.depths) or len(self.strides) >= len(self.depths):
            raise ValueError(
                "one attention per stage, and a pooling for at most each but the first"
            )
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} does not divide into {self.heads} heads")
        if any(size % patch for size, patch in zip(self.shape, self.patch, strict=True)):
            raise ValueError(f"patches of {self.patch} do not fill {self.shape}")
        if any(size % unit for size, unit in zip(self.grid, self.mask_unit, strict=True)):
            raise ValueError(f"mask units of {self.mask_unit} do not fill {self.grid}")
        if any(size % cell for size, cell in zip(self.mask_unit, self.cells[-1], strict=True)):
            raise ValueError(f"pooling by {self.strides} cuts mask units of {self.mask_unit}")

    @property
    def grid(self) -> Axes:
        """Tokens along each axis."""
        return divide(self.shape, self.patch)

    @property
    def cells(self) -> tuple[Axes, ...]:
        """Tokens in a cell of each level: single tokens, then after each pooling."""
        cells: list[Axes] = [(1, 1, 1, 1)]
        for stride in self.strides:
            cells.append(multiply(cells[-1], stride))
        return tuple(cells)

    @property
    def final_grid(self) -> Axes:
        """Cells along each axis after the last pooling."""
        return divide(self.grid, self.cells[-1])

    @property
    def patch_values(self) -> int:
        return self.channels * math.prod(self.patch)

    @property
    def embedding_width(self) -> int:
        return int(self.width << (len(self.depths) - 1))


def divide(sizes: Axes, by: Axes) -> Axes:
    """Divide axis by axis, without remainder."""
    t, x, y, z = (size // part for size, part in zip(sizes, by, strict=True))
    return t, x, y, z


def multiply(sizes: Axes, by: Axes) -> Axes:
    """Multiply axis by axis."""
    t, x, y, z = (size * part for size, part in zip(sizes, by, strict=True))
    return t, x, y, z


PRESETS: Mapping[str, EncoderSizes] = MappingProxyType(
    {
        "tiny": EncoderSizes(
            patch=(4, 8, 8, 8),
            width=48,
            heads=1,
            depths=(1, 2, 3),
            strides=((1, 2, 2, 2),),
            mask_unit=(2, 4, 4, 4),
            unit_attention=(True, True, False),
            deletion="token",
        ),
        "base": EncoderSizes(
            patch=(2, 4, 4, 4),
            width=64,
            heads=1,
            depths=(2, 3, 16, 3),
            strides=((2, 2, 2, 2), (1, 2, 2, 2)),
            mask_unit=(4, 8, 8, 8),
            unit_attention=(True, True, False, False),
            deletion="token",
        ),
        "official": EncoderSizes(
            patch=(1, 4, 4, 4),
            width=64,
            heads=1,
            depths=(2, 3, 16, 3),
            strides=((2, 2, 2, 2), (2, 2, 2, 2)),
            mask_unit=(8, 8, 8, 8),
            unit_attention=(True, True, False, False),
            deletion="unit",
        ),
    }
)

CONTRACTS: Mapping[str, Contract] = MappingProxyType(
    {
        "tiny": Contract(channels=("voxel",)),
        "base": Contract(channels=("voxel",)),
        "official": Contract(channels=("global",)),
    }
)
