"""Rows of a run: its brain voxels on the model grid, volume by volume, before they are rounded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.prepare import parallel
from slimbrain_app.prepare.placement import Placement
from slimbrain_app.prepare.reading import Header, Volumes
from slimbrain_app.prepare.statistics import Gaps, Stillness

Array = NDArray[np.float32]

# Some 500 volumes. Writing to a file and back costs a fifth of all time.
_MOST_IN_MEMORY = 512 << 20


class Rows:
    """Room for float32 rows (volumes, voxels): in memory, or in a file where they are many.

    Of a file only the part that is asked for is mapped, so that memory stays bounded.
    """

    def __init__(self, file: Path, volumes: int, voxels: int) -> None:
        self.volumes, self.voxels = volumes, voxels
        self._file = file
        self._memory: Array | None = None
        if volumes * voxels * 4 <= _MOST_IN_MEMORY:
            self._memory = np.empty((volumes, voxels), np.float32)
        else:
            with file.open("wb") as stream:
                _make_room(stream.fileno(), volumes * voxels * 4)

    def part(self, first: int, number: int) -> Array:
        """Return ``number`` rows from ``first`` on, to read and to write."""
        if self._memory is not None:
            return self._memory[first : first + number]
        shape, offset = (number, self.voxels), first * self.voxels * 4
        return np.memmap(self._file, np.float32, "r+", offset, shape)

    def parts(self, number: int) -> Iterator[Array]:
        """Yield all rows, ``number`` at a time."""
        for first in range(0, self.volumes, number):
            yield self.part(first, min(number, self.volumes - first))


def _make_room(file: int, size: int) -> None:
    """Take the space on disk now: a mapped write to a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass over a series saw, besides its rows."""

    stillness: Stillness
    gaps: Gaps
    empty: tuple[int, ...]


def sample_rows(
    series: Volumes, placement: Placement, first: int, rows: Rows, threads: int
) -> Pass:
    """Read all volumes from ``first`` on, once, and fill their rows."""
    stillness = Stillness(placement.stored)
    # Whole numbers have no gaps: nothing needs to be watched.
    can_gap = series.header.dtype.kind == "f"
    gaps = Gaps(placement.stored if can_gap else placement.stored[:0])
    empty = []
    for stored, sampled in _sample_batches(series, placement, first, rows, threads):
        for volume, row in zip(stored.reshape(len(stored), -1), sampled, strict=True):
            # Every 64th tells in no time for nearly all.
            if not (row[::64].any() or row.any()):
                empty.append(gaps.watched)
            stillness.watch(volume)
            gaps.watch(volume)
    return Pass(stillness, gaps, tuple(empty))


def _sample_batches(
    series: Volumes, placement: Placement, first: int, rows: Rows, threads: int
) -> Iterator[tuple[NDArray[Any], Array]]:
    """Yield batches as stored, good until the next one is asked for, and their rows."""
    # Buffers are used again and again: fresh memory would cost as much time as the work in it.
    lent = range(threads + parallel.AHEAD)
    buffers = [series.header.make_buffer(placement.sampler.at_once) for _ in lent]
    volumes = cycle([np.empty(placement.shape, np.float32) for _ in lent])
    starts = count(0, len(buffers[0]))

    def work(item: tuple[int, Array, NDArray[Any]]) -> tuple[NDArray[Any], Array]:
        start, volume, stored = item
        sampled = rows.part(start, len(stored))
        values = _read_values(placement.view.apply(stored), series.header, volume)
        placement.sampler.sample(values, sampled)
        return stored, sampled

    items = zip(starts, volumes, series.batches(first, buffers), strict=False)
    yield from parallel.map_in_order(work, items, threads)


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


def mend_gaps(passed: Pass, header: Header, placement: Placement, rows: Rows) -> None:
    """Put each voxel's mean into its gaps.

    The mean is known only at the end, when the rows are made with 0 in the gaps; but sampling
    is linear, so that what is missing can be sampled by itself and added.
    """
    gaps = passed.gaps
    if not gaps.volumes:
        return
    fill = np.where(gaps.dead(), 0, gaps.means() * header.slope + header.inter)
    lost, missing = np.zeros(placement.shape, np.float32), np.empty((1, rows.voxels), np.float32)
    for volume in gaps.volumes:
        lost.reshape(-1)[placement.brain] = fill * gaps.missing(volume)
        placement.sampler.sample([lost], missing)
        row = rows.part(volume, 1)
        row += missing
