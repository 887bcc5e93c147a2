"""A run of fMRIPrep's -> the rows of a sample: the suite's voxels, or parcels, over time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.bids.spaces import find_template_file
from slimbrain_app.brainmarks.space import TEMPLATE, suite_grid
from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.prepare import grid
from slimbrain_app.prepare.confounds import read_confounds
from slimbrain_app.prepare.grid import Grid
from slimbrain_app.prepare.reading import open_series
from slimbrain_app.records import Run

Array = NDArray[np.float32]
Pick = Callable[[Array], Array]

PARCELS = 400
ATLAS = f"res-02_atlas-Schaefer2018_desc-{PARCELS}Parcels17Networks_dseg.nii.gz"

# Of a deviation in time: below it the suite takes a voxel for background.
_STILL = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What a run's file says of the suite's voxels, (volumes, voxels), and the file's SHA-256."""

    values: Array
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Normalised:
    """Rows as the suite keeps them: mean 0 and deviation 1 over time, which stand beside, (1, n).

    What never changes is 0 in all three.
    """

    values: NDArray[np.float16]
    mean: Array
    deviation: Array


def read_rows(run: Run, mask: NDArray[np.bool_]) -> Rows:
    """Read a run at the suite's voxels, without its dummy scans.

    On the suite's own grid nothing is interpolated; on another one in its space as the suite's
    reader does it, linearly, with 0 beyond the field of view.

    Raises
    ------
    RunRefused
        ``nan-volumes``, ``bad-confounds``, and what `open_series` refuses.
    """
    name = run.relative(run.bold)
    table = None if run.confounds is None else run.relative(run.confounds)
    with open_series(run.bold, name) as series:
        header = series.header
        dummies = read_confounds(run.confounds, table, header.volumes).dummy_scans
        _, view = grid.canonical(header.grid)
        pick = _find_voxels(header.grid, mask)
        values = np.empty((header.volumes - dummies, np.count_nonzero(mask)), np.float32)
        done = 0
        for stored in series.batches(dummies, [header.make_buffer()]):
            for volume in view.apply(stored):
                values[done] = pick(volume.astype(np.float32))
                done += 1
    values *= np.float32(header.slope)
    values += np.float32(header.inter)
    lost = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(lost):
        raise RunRefused(
            "nan-volumes",
            file=name,
            expected="finite values throughout the template's brain",
            found=f"{len(lost)} volumes without, the first is {dummies + lost[0]}",
            advice="make the series anew",
        )
    return Rows(values, series.sha256)


def _find_voxels(stored: Grid, mask: NDArray[np.bool_]) -> Pick:
    """Return what takes the suite's voxels out of a volume (z, y, x) turned to RAS+."""
    from scipy.ndimage import map_coordinates

    source, suite = grid.canonical(stored)[0], suite_grid()
    found = grid.axis_coordinates(source, suite)
    if found is None:
        found = grid.point_coordinates(source, grid.points_of(suite), suite)
    x, y, z = (np.broadcast_to(axis, suite.shape).T[mask] for axis in found)
    if grid.on_lattice((x, y, z)) and grid.points_inside((x, y, z), source).all():
        i, j, k = grid.nearest_voxels((x, y, z))
        return lambda volume: np.asarray(volume[k, j, i])
    places = np.stack([z, y, x])
    return lambda volume: np.asarray(map_coordinates(volume, places, order=1), np.float32)


def normalise(values: Array) -> Normalised:
    """Bring rows (volumes, voxels) to the form in which the suite keeps them."""
    mean = values.mean(axis=0, keepdims=True, dtype=np.float64)
    deviation = values.std(axis=0, keepdims=True, dtype=np.float64)
    moves = deviation > _STILL
    mean, deviation = np.where(moves, mean, 0), np.where(moves, deviation, 0)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=moves)
    scaled = np.empty(values.shape, np.float16)
    for row, kept in zip(values, scaled, strict=True):
        kept[:] = (row - mean[0]) * scale[0]
    return Normalised(scaled, mean.astype(np.float32), deviation.astype(np.float32))


def read_parcels(mask: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """Return the parcel of each of the suite's voxels, from 1 on; None if the atlas is not here.

    Raises
    ------
    CallRefused
        ``atlas-bad``.
    """
    import nibabel

    path = find_template_file(ATLAS, TEMPLATE)
    if path is None:
        return None
    image = nibabel.Nifti1Image.from_filename(path)
    values, suite = np.rint(np.asarray(image.dataobj)).astype(np.int64), suite_grid()
    if values.shape != suite.shape or np.abs(image.affine - suite.affine).max() > 1e-3:
        raise _bad_atlas(path.name, f"shape {' x '.join(map(str, values.shape))}")
    if values.min() < 0 or values.max() != PARCELS:
        raise _bad_atlas(path.name, f"labels from {values.min()} to {values.max()}")
    return np.asarray(values.T[mask])


def average_parcels(values: Array, parcels: NDArray[np.int64]) -> Array:
    """Average rows over the parcels' voxels that change, (volumes, parcels); 0 where none does."""
    from scipy.sparse import csr_array

    used = np.flatnonzero((parcels > 0) & (values.std(axis=0) > _STILL))
    of = parcels[used] - 1
    sizes = np.maximum(np.bincount(of, minlength=PARCELS), 1)
    shape = (len(parcels), PARCELS)
    mean = csr_array((1 / sizes[of].astype(np.float32), (used, of)), shape=shape)
    return np.asarray(values @ mean, np.float32)


def _bad_atlas(name: str, found: str) -> CallRefused:
    return CallRefused(
        "atlas-bad",
        file=name,
        expected=f"{PARCELS} labels on the grid of MNI152NLin6Asym at 2 mm",
        found=found,
        advice="fetch TemplateFlow's file again, or take it away",
    )
