"""Rows of a run: its brain voxels on the model grid, volume by volume, in a file.

They are float32 and live only until the run is prepared. Their file is written and read by
plain calls, a few volumes at a time: mapped pages would count as memory of the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedRandom
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.prepare import parallel
from slimbrain_app.prepare.placement import Placement
from slimbrain_app.prepare.reading import Header, Series
from slimbrain_app.prepare.statistics import Gaps, Moments, Stillness

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Bench:
    """Room for one batch, used again and again: fresh memory would cost a third of all time.

    ``stored`` is as in the file (volumes, k, j, i), ``volume`` the values of one of them
    (z, y, x), ``rows`` what is sampled from all (volumes, voxels).
    """

    stored: NDArray[Any]
    volume: Array
    rows: Array


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass over a series saw; by then its rows are in a file."""

    moments: Moments
    stillness: Stillness
    gaps: Gaps
    empty: tuple[int, ...]


def sample_rows(
    series: Series, placement: Placement, first: int, stream: BufferedRandom, threads: int
) -> Pass:
    """Read all volumes from ``first`` on, once, and write their rows (volumes, voxels)."""
    moments = Moments(len(placement.nearest))
    stillness = Stillness(placement.stored)
    # Whole numbers have no gaps: nothing needs to be watched.
    can_gap = series.header.dtype.kind == "f"
    gaps = Gaps(placement.stored if can_gap else placement.stored[:0])
    empty = []
    for stored, rows in _sample_batches(series, placement, first, threads):
        rows.tofile(stream)
        for volume, row in zip(stored.reshape(len(stored), -1), rows, strict=True):
            if row.max() == row.min() == 0:
                empty.append(gaps.watched)
            stillness.watch(volume)
            if not gaps.watch(volume):
                moments.add(row)
    return Pass(moments, stillness, gaps, tuple(empty))


def _sample_batches(
    series: Series, placement: Placement, first: int, threads: int
) -> Iterator[tuple[NDArray[Any], Array]]:
    """Yield volumes as stored and their rows, good until the next ones are asked for."""

    def work(item: tuple[_Bench, NDArray[Any]]) -> tuple[NDArray[Any], Array]:
        bench, stored = item
        rows = bench.rows[: len(stored)]
        values = _read_values(placement.view.apply(stored), series.header, bench.volume)
        placement.sampler.sample(values, rows)
        return stored, rows

    benches = [_make_bench(series, placement) for _ in range(threads + parallel.AHEAD)]
    batches = series.batches(first, [bench.stored for bench in benches])
    yield from parallel.map_in_order(work, zip(cycle(benches), batches), threads)


def _make_bench(series: Series, placement: Placement) -> _Bench:
    stored = series.make_buffer()
    rows = np.empty((len(stored), len(placement.nearest)), np.float32)
    return _Bench(stored, np.empty(placement.shape, np.float32), rows)


def _read_values(stored: NDArray[Any], header: Header, volume: Array) -> Iterator[Array]:
    """Yield the values of stored volumes in turn, all in ``volume``, with 0 in their gaps."""
    for numbers in stored:
        # What float32 can't hold becomes infinite here, and a gap below.
        with np.errstate(over="ignore"):
            np.copyto(volume, numbers, casting="unsafe")
        if header.slope != 1:
            volume *= np.float32(header.slope)
        if header.inter != 0:
            volume += np.float32(header.inter)
        if header.dtype.kind == "f":
            volume[~np.isfinite(volume)] = 0
        yield volume


def mend_gaps(passed: Pass, header: Header, placement: Placement, stream: BufferedRandom) -> None:
    """Put each voxel's mean into its gaps.

    The mean is known only at the end, when the rows are made with 0 in the gaps; but sampling
    is linear, so that what is missing can be sampled by itself and added.
    """
    gaps, size = passed.gaps, len(placement.nearest)
    if not gaps.volumes:
        return
    fill = np.where(gaps.dead(), 0, gaps.means() * header.slope + header.inter)
    lost, row = np.zeros(placement.shape, np.float32), np.empty((1, size), np.float32)
    for volume in gaps.volumes:
        lost.reshape(-1)[placement.brain] = fill * gaps.missing(volume)
        placement.sampler.sample([lost], row)
        stream.seek(volume * row.nbytes)
        row += np.fromfile(stream, np.float32, size)
        stream.seek(volume * row.nbytes)
        row.tofile(stream)
        passed.moments.add(row[0])


def read_rows(stream: BufferedRandom, volumes: int, buffers: Sequence[Array]) -> Iterator[Array]:
    """Fill ``buffers`` (rows, voxels) in turn with all rows; yield what was filled."""
    stream.seek(0)
    for first, buffer in zip(range(0, volumes, len(buffers[0])), cycle(buffers)):
        rows = buffer[: volumes - first]
        stream.readinto(rows.reshape(-1).view(np.uint8).data)
        yield rows
