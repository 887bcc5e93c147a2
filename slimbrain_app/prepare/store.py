"""The prepared run on disk, and its windows at model time.

A folder of plain ``.npy`` files that can be memory-mapped, and ``run.json``:

``signal``
    int8, shape (volumes, voxels): deviations from the voxel's mean in units of its ``scale``,
    clipped at 4 temporal deviations.
``scale``, ``mean``
    float32, shape (voxels,); a scale of 0 marks a voxel that does not change.
``voxels``
    int32, shape (voxels,): flat index on the model grid in C order of (x, y, z), ascending.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from slimbrain_app import files
from slimbrain_app.prepare.grid import model_grid
from slimbrain_app.prepare.spline import interpolation_matrix
from slimbrain_app.prepare.statistics import CHUNK
from slimbrain_app.records import Channel, PreparedRun

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Array = NDArray[np.float32]

CLIP = 4.0
_LEVELS = 127
LIMIT = 10.0
# In volumes: a frame that rounding alone puts outside the run is inside.
_ROUNDING = 1e-6
# Volumes on either side of a slice: the spline's memory has faded to 1.4e-7 there.
_REACH = 12
# Frame times on either side of a volume that the low-pass takes in.
_LOWPASS_FRAMES = 4


def load_prepared(folder: Path) -> PreparedRun:
    """Return the record of a prepared run in ``folder``.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError
        If there is none, or none that a run can have.
    """
    record = files.parse_json((folder / "run.json").read_text(encoding="utf-8"))["record"]
    prepared: PreparedRun = _reader().validate_python({**record, "folder": folder})
    displacement = prepared.displacement
    usable = (
        0 < prepared.tr < 100
        and prepared.volumes > 0
        and 0 < prepared.voxels <= np.prod(model_grid().shape)
        and abs(prepared.mean) < np.inf
        and 0 < prepared.deviation < np.inf
        and (displacement is None or len(displacement) == prepared.volumes)
    )
    if not usable:
        raise ValueError("a record that no run can have")
    return prepared


@cache
def _reader() -> TypeAdapter[PreparedRun]:
    from pydantic import TypeAdapter

    return TypeAdapter(PreparedRun)


def write_record(folder: Path, record: PreparedRun, making: dict[str, Any]) -> None:
    """Write ``run.json``: the record, and how it was made."""
    content = asdict(record)
    del content["folder"]
    files.write_json(folder / "run.json", {"record": content, **making})


def count_frames(prepared: PreparedRun, frame_time: float) -> int:
    """Return how many frames lie in [0, (volumes - 1) TR]: nothing is extrapolated."""
    return _frames_in(prepared.volumes, prepared.tr, frame_time)


def read_frames(
    prepared: PreparedRun, start: float, count: int, frame_time: float, channel: Channel
) -> Array:
    """Read consecutive frames at model time, normalised, from no more volumes than they need.

    Parameters
    ----------
    start : float
        First frame; fractions lie between frames.
    frame_time : float
        Seconds between frames.
    channel : {"voxel", "global"}
        Each voxel by its own mean and deviation, or all by the run's.

    Returns
    -------
    ndarray, float32, shape (count, voxels)
        In deviations; clipped at 10, which the voxel channel never reaches.
    """
    weights, volumes = weigh_volumes(prepared, start, count, frame_time)
    if channel == "voxel":
        weights *= CLIP / _LEVELS
    stored = np.load(prepared.folder / "signal.npy", mmap_mode="r")[volumes]
    frames = np.asarray(weights.astype(np.float32) @ stored.astype(np.float32))
    if channel == "global":
        gain, offset = find_units(prepared, channel)
        frames *= gain
        frames += offset
        np.clip(frames, -LIMIT, LIMIT, out=frames)
    return frames


def weigh_volumes(
    prepared: PreparedRun, start: float, count: int, frame_time: float
) -> tuple[NDArray[np.float64], slice]:
    """Return the matrix (frames, volumes of the slice) that makes frames, and the slice."""
    return _time_weights(prepared.volumes, prepared.tr, start, count, frame_time)


def find_units(prepared: PreparedRun, channel: Channel) -> tuple[Array, Array]:
    """Return gain and offset that turn the signal into deviations.

    Returns
    -------
    gain, offset : ndarray, float32, shape (voxels,)
        Of one number for all voxels in the voxel channel.
    """
    if channel == "voxel":
        return np.array([CLIP / _LEVELS], np.float32), np.zeros(1, np.float32)
    gain = np.load(prepared.folder / "scale.npy") / np.float32(prepared.deviation)
    offset = (np.load(prepared.folder / "mean.npy") - prepared.mean) / prepared.deviation
    return gain, offset


def cell_means(prepared: PreparedRun, edge: int = 8) -> tuple[Array, NDArray[np.intp]]:
    """Average the run over cubes of ``edge`` voxels, its brain voxels only, at its own TR.

    Returns
    -------
    ndarray, float32, shape (volumes, cells)
        Means of the signal in its own units, of cells that hold brain.
    ndarray of int, shape (cells,)
        Flat index of each cell on the lattice of cubes, C order of (x, y, z).
    """
    cells, groups = np.unique(_cells_of(prepared, edge), return_inverse=True)
    return group_means(prepared, groups), cells


def group_means(prepared: PreparedRun, groups: NDArray[np.intp]) -> Array:
    """Average the run over groups of its voxels, at its own TR.

    Parameters
    ----------
    groups : ndarray of int, shape (voxels,)
        The group of each voxel, from 0 on and none of them empty; -1 is no group.

    Returns
    -------
    ndarray, float32, shape (volumes, groups)
        Means of the signal in its own units.
    """
    from scipy.sparse import csr_array

    inside = np.flatnonzero(groups >= 0)
    where = groups[inside]
    sizes = np.bincount(where)
    steps = np.load(prepared.folder / "scale.npy")[inside] / sizes[where].astype(np.float32)
    to_groups = csr_array((steps, (where, inside)), shape=(len(sizes), len(groups)))
    mean = np.load(prepared.folder / "mean.npy")[inside]
    static = (np.bincount(where, mean) / sizes).astype(np.float32)
    signal = np.load(prepared.folder / "signal.npy", mmap_mode="r")
    return np.stack([to_groups @ volume.astype(np.float32) + static for volume in signal])


def interpolate(series: NDArray[np.floating], tr: float, frame_time: float) -> Array:
    """Bring a whole series (volumes, columns) to model time, shape (frames, columns)."""
    frames = _frames_in(len(series), tr, frame_time)
    weights, _ = _time_weights(len(series), tr, 0, frames, frame_time)
    return np.asarray(weights @ series, np.float32)


def mean_image(prepared: PreparedRun) -> Array:
    """Return each voxel's mean on the model grid, shape (96, 96, 96), 0 outside the mask."""
    image = np.zeros(model_grid().shape, np.float32)
    image.ravel()[np.load(prepared.folder / "voxels.npy")] = np.load(prepared.folder / "mean.npy")
    return image


def mask_image(prepared: PreparedRun) -> NDArray[np.bool_]:
    """Return the mask on the model grid, shape (96, 96, 96)."""
    image = np.zeros(model_grid().shape, bool)
    image.ravel()[np.load(prepared.folder / "voxels.npy")] = True
    return image


def step_of(deviations: NDArray[np.float64]) -> Array:
    """Return the step of int8 that puts 4 temporal deviations at its end."""
    return (deviations * (CLIP / _LEVELS)).astype(np.float32)


def quantise(rows: Array, mean: Array, scale: Array) -> tuple[NDArray[np.int8], int]:
    """Return rows (volumes, voxels) as int8, and how many values were clipped."""
    inverse = np.zeros_like(scale)
    np.divide(1, scale, out=inverse, where=scale > 0)
    levels = np.empty(rows.shape, np.int8)
    clipped = 0
    for first in range(0, len(mean), CHUNK):
        chunk = slice(first, first + CHUNK)
        steps = rows[:, chunk] - mean[chunk]
        steps *= inverse[chunk]
        np.rint(steps, out=steps)
        within = np.clip(steps, -_LEVELS, _LEVELS)
        clipped += int(np.count_nonzero(steps != within))
        levels[:, chunk] = within
    return levels, clipped


def write_signal_header(stream: BinaryIO, volumes: int, voxels: int) -> None:
    """Begin ``signal.npy``; its rows follow as they come."""
    header = {"descr": "|i1", "fortran_order": False, "shape": (volumes, voxels)}
    np.lib.format.write_array_header_1_0(stream, header)


def _frames_in(volumes: int, tr: float, frame_time: float) -> int:
    return int(((volumes - 1) + _ROUNDING) * tr / frame_time) + 1


def _cells_of(prepared: PreparedRun, edge: int) -> NDArray[np.intp]:
    shape = model_grid().shape
    places = np.unravel_index(np.load(prepared.folder / "voxels.npy"), shape)
    lattice = tuple(-(-length // edge) for length in shape)
    return np.asarray(np.ravel_multi_index(tuple(axis // edge for axis in places), lattice))


def _time_weights(
    volumes: int, tr: float, start: float, count: int, frame_time: float
) -> tuple[NDArray[np.float64], slice]:
    """Do as `weigh_volumes` for a series of so many volumes."""
    position = np.asarray((start + np.arange(count)) * (frame_time / tr), np.float64)
    if position[0] < -_ROUNDING or position[-1] > volumes - 1 + _ROUNDING:
        raise ValueError(f"frames {start} to {start + count - 1} are not all inside the run")
    lowpass = _lowpass(tr, frame_time)
    reach = _REACH + len(lowpass) // 2
    low = max(int(position[0]) - reach, 0)
    high = min(int(np.ceil(position[-1])) + reach + 1, volumes)
    weights = interpolation_matrix(high - low, position - low)
    if len(lowpass) > 1:
        weights = weights @ _filter_matrix(high - low, lowpass)
    return weights, slice(low, high)


def _lowpass(tr: float, frame_time: float) -> NDArray[np.float64]:
    """Return a filter over volumes that keeps what frames can hold: below 1 / (2 frame time).

    A windowed sinc, four frame times to either side, so that windows can be read from a few
    volumes; no filter where frames are as close as volumes or closer.
    """
    if frame_time <= tr * (1 + 1e-6):
        return np.ones(1)
    from scipy.signal import firwin

    half = int(np.ceil(_LOWPASS_FRAMES * frame_time / tr))
    return np.asarray(firwin(2 * half + 1, tr / frame_time, window="hamming"))


def _filter_matrix(length: int, kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the filter over ``length`` samples, mirrored beyond both ends, as a matrix."""
    from scipy.ndimage import correlate1d

    return np.asarray(correlate1d(np.eye(length), kernel, axis=0, mode="mirror"))
