"""Rows of a run: its brain voxels on the model grid, volume by volume, in a file.

They are float32 and live only until the run is prepared. Their file is written and read by
plain calls, a few volumes at a time: mapped pages would count as memory of the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.prepare import parallel
from slimbrain_app.prepare.placement import Placement
from slimbrain_app.prepare.reading import Header, Series
from slimbrain_app.prepare.statistics import Gaps, Moments, Stillness

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

_BLOCK = 16


@dataclass(frozen=True, eq=False)
class _Batch:
    """Volumes of the series (volumes, z, y, x), their gaps in the brain, and their rows."""

    source: Array
    missing: list[Mask | None]
    rows: Array


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass over a series saw; by then its rows are in a file."""

    moments: Moments
    stillness: Stillness
    gaps: Gaps
    empty: tuple[int, ...]


def sample_rows(
    series: Series, placement: Placement, first: int, stream: BinaryIO, threads: int
) -> Pass:
    """Read all volumes from ``first`` on, once, and write their rows (volumes, voxels)."""
    moments = Moments(len(placement.nearest))
    stillness = Stillness(placement.brain)
    # Whole numbers have no gaps: nothing needs to be watched.
    can_gap = series.header.dtype.kind == "f"
    gaps = Gaps(placement.brain if can_gap else placement.brain[:0])
    empty = []

    def work(stored: NDArray[Any]) -> _Batch:
        return _sample(stored, series.header, placement)

    for batch in parallel.map_in_order(work, series.batches(first), threads):
        batch.rows.tofile(stream)
        stillness.watch(batch.source)
        for volume, missing, row in zip(batch.source, batch.missing, batch.rows, strict=True):
            if row.max() == row.min() == 0:
                empty.append(gaps.watched)
            if not gaps.watch(volume, missing):
                moments.add(row)
    return Pass(moments, stillness, gaps, tuple(empty))


def _sample(stored: NDArray[Any], header: Header, placement: Placement) -> _Batch:
    sampler, count = placement.sampler, len(stored)
    viewed = placement.view.apply(stored)
    source = np.empty(viewed.shape, np.float32)
    missing: list[Mask | None] = [None] * count
    rows = np.empty((count, len(placement.nearest)), np.float32)
    for first in range(0, count, sampler.at_once):
        part = slice(first, min(first + sampler.at_once, count))
        _read_values(viewed[part], header, source[part])
        if header.dtype.kind == "f":
            missing[part] = [_fill_gaps(volume, placement.brain) for volume in source[part]]
        rows[part] = sampler.sample(source[part])
    return _Batch(source, missing, rows)


def _read_values(stored: NDArray[Any], header: Header, values: Array) -> None:
    """Write the values of stored numbers, whatever their order in memory, to ``values``."""
    if header.slope == 1 and header.inter == 0:
        np.copyto(values, stored, casting="unsafe")
    else:
        np.multiply(stored, np.float32(header.slope), out=values, casting="unsafe")
        values += np.float32(header.inter)


def _fill_gaps(volume: Array, brain: NDArray[np.intp]) -> Mask | None:
    """Set non-finite values to 0, in place; return where they are in the brain, if anywhere."""
    gaps = ~np.isfinite(volume)
    if not gaps.any():
        return None
    volume[gaps] = 0
    in_brain = gaps.ravel()[brain]
    return in_brain if in_brain.any() else None


def mend_gaps(passed: Pass, placement: Placement, stream: BinaryIO) -> None:
    """Put each voxel's mean into its gaps.

    The mean is known only at the end, when the rows are made with 0 in the gaps; but sampling
    is linear, so that what is missing can be sampled by itself and added.
    """
    gaps, size = passed.gaps, len(placement.nearest)
    if not gaps.volumes:
        return
    fill = np.where(gaps.dead(), 0, gaps.means())
    volume_of_gaps = np.zeros((1, *placement.shape), np.float32)
    for volume in gaps.volumes:
        volume_of_gaps.reshape(-1)[placement.brain] = fill * gaps.missing(volume)
        stream.seek(volume * size * 4)
        row = np.fromfile(stream, np.float32, size)
        row += placement.sampler.sample(volume_of_gaps)[0]
        stream.seek(volume * size * 4)
        row.tofile(stream)
        passed.moments.add(row)


def read_rows(stream: BinaryIO, volumes: int, size: int) -> Iterator[Array]:
    """Read rows (volumes, size) back, a few volumes at a time."""
    stream.seek(0)
    for first in range(0, volumes, _BLOCK):
        count = min(_BLOCK, volumes - first)
        yield np.fromfile(stream, np.float32, count * size).reshape(count, size)
