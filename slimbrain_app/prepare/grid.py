"""The model grid, and where its voxels lie in a series' own grid."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.records import Contract

Coordinates = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
Box = tuple[slice, slice, slice]

# In voxels. What an affine in float32 can get wrong over a head, and no more.
_ROUNDING = 1e-5
# In voxels at the far end of an axis: below it two axes count as parallel.
_DRIFT = 1e-4
# A cubic spline's memory of a sample fades to 1.4e-7 over twelve voxels; two more are its taps.
_REACH = 14


@dataclass(frozen=True, eq=False)
class Grid:
    """A lattice of voxels: ``affine`` takes voxel indices to mm, RAS+."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]


def model_grid() -> Grid:
    """Return the one grid that every model sees: 96 cubed at 2 mm in MNI152NLin2009cAsym.

    A pure crop of TemplateFlow's ``res-2`` grid, so that the commonest input is not interpolated.
    """
    contract = Contract()
    affine = np.diag([contract.voxel_size] * 3 + [1.0])
    affine[:3, 3] = contract.origin
    return Grid(contract.shape, affine)


def template_brain() -> NDArray[np.bool_]:
    """Return the template's brain on the model grid, shape (96, 96, 96)."""
    file = resources.files("slimbrain_app") / "data" / "template_brain.npy"
    with file.open("rb") as stream:
        bits = np.load(stream)
    shape = model_grid().shape
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def template_coverage(mask: NDArray[np.bool_]) -> float:
    """Return the share of the template's brain that a mask on the model grid covers."""
    brain = template_brain()
    return float(np.count_nonzero(mask & brain) / np.count_nonzero(brain))


@dataclass(frozen=True, eq=False)
class View:
    """How a stored array is turned so that its axes run to the right, front and top, and cropped.

    Everything after reading sees series through a view, so that no later step knows of flips,
    permutations, or what lies far from the brain.
    """

    orientation: NDArray[np.float64]
    box: Box

    def apply(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Show stored volumes (volumes, k, j, i) as (volumes, z, y, x), without copying."""
        return self.turn(stored.T)[self.box].T

    def turn(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Show a stored array (i, j, k, ...) as (x, y, z, ...), whole and without copying."""
        from nibabel.orientations import apply_orientation

        turned: NDArray[Any] = apply_orientation(stored, self.orientation)
        return turned


def canonical(stored: Grid) -> tuple[Grid, View]:
    """Return a grid with its axes turned to RAS+ as closely as they can be, and the view to it."""
    from nibabel.orientations import inv_ornt_aff, io_orientation

    orientation = io_orientation(stored.affine)
    shape = tuple(stored.shape[axis] for axis in np.argsort(orientation[:, 0]))
    affine = stored.affine @ inv_ornt_aff(orientation, stored.shape)
    whole = (slice(shape[0]), slice(shape[1]), slice(shape[2]))
    return Grid((shape[0], shape[1], shape[2]), affine), View(orientation, whole)


def axis_coordinates(source: Grid, target: Grid) -> Coordinates | None:
    """Return the target's voxels in the source's voxel coordinates, or None if axes are oblique.

    Returns
    -------
    tuple of three ndarray or None
        Of shapes (x, 1, 1), (1, y, 1), (1, 1, z): together they broadcast to the target's shape.
    """
    mapping = np.linalg.inv(source.affine) @ target.affine
    scale = np.diag(mapping)[:3]
    drift = np.abs(mapping[:3, :3] - np.diag(scale)) @ np.array(target.shape)
    if drift.max() > _DRIFT:
        return None
    x, y, z = (
        np.arange(length) * step + start
        for length, step, start in zip(target.shape, scale, mapping[:3, 3], strict=True)
    )
    return x[:, None, None], y[None, :, None], z[None, None, :]


def points_of(grid: Grid) -> NDArray[np.float64]:
    """Return the centres of all voxels in mm, shape (voxels, 3), in C order."""
    indices = np.indices(grid.shape).reshape(3, -1).T
    return indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def point_coordinates(source: Grid, points: NDArray[np.float64], target: Grid) -> Coordinates:
    """Return points in mm (voxels, 3) in the source's voxel coordinates, each in target's shape."""
    inverse = np.linalg.inv(source.affine)
    x, y, z = (points @ inverse[:3, :3].T + inverse[:3, 3]).T
    return x.reshape(target.shape), y.reshape(target.shape), z.reshape(target.shape)


def nearest_voxels(coordinates: Coordinates) -> tuple[NDArray[np.intp], ...]:
    """Return the voxel whose box holds each point, one array per axis.

    A point on the face between two voxels belongs to the lower one, whatever the rounding.
    """
    with np.errstate(invalid="ignore"):  # Beyond all whole numbers is outside.
        return tuple(np.ceil(axis - 0.5 - _ROUNDING).astype(np.intp) for axis in coordinates)


def points_inside(coordinates: Coordinates, source: Grid) -> NDArray[np.bool_]:
    """Return where points lie between voxel centres of the source: nothing is extrapolated."""
    inside = [
        (axis >= -_ROUNDING) & (axis <= length - 1 + _ROUNDING)
        for axis, length in zip(coordinates, source.shape, strict=True)
    ]
    return np.asarray(inside[0] & inside[1] & inside[2])


def sample_mask(mask: NDArray[np.bool_], coordinates: Coordinates) -> NDArray[np.bool_]:
    """Return which points fall into a voxel of the mask."""
    nearest = nearest_voxels(coordinates)
    within = [(axis >= 0) & (axis < n) for axis, n in zip(nearest, mask.shape, strict=True)]
    clipped = (np.clip(axis, 0, n - 1) for axis, n in zip(nearest, mask.shape, strict=True))
    return np.asarray(mask[tuple(clipped)] & within[0] & within[1] & within[2])


def on_lattice(coordinates: Coordinates) -> bool:
    """Return whether every point is the centre of a voxel, so that nothing is interpolated."""
    return all(bool((np.abs(axis - np.rint(axis)) < _ROUNDING).all()) for axis in coordinates)


def box_around(coordinates: Coordinates, chosen: NDArray[np.bool_], source: Grid) -> Box:
    """Return the part of the source that can be felt at the chosen points."""
    box = []
    for axis, length in zip(coordinates, source.shape, strict=True):
        values = np.broadcast_to(axis, chosen.shape)[chosen]
        low = max(int(np.floor(values.min())) - _REACH, 0)
        high = min(int(np.ceil(values.max())) + _REACH + 1, length)
        box.append(slice(low, high))
    return box[0], box[1], box[2]


def crop(
    grid: Grid, view: View, coordinates: Coordinates, box: Box
) -> tuple[Grid, View, Coordinates]:
    """Narrow a turned grid to a box, with the view that leads to it and coordinates in it."""
    start = np.array([part.start for part in box])
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    x, y, z = (axis - first for axis, first in zip(coordinates, start, strict=True))
    shape = (box[0].stop - box[0].start, box[1].stop - box[1].start, box[2].stop - box[2].start)
    return Grid(shape, affine), View(view.orientation, box), (x, y, z)
