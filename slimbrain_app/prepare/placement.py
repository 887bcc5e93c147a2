"""Where a run's brain lies on the model grid, and the way there from the run's own grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.errors import RunRefused
from slimbrain_app.prepare import grid
from slimbrain_app.prepare.grid import Coordinates, Grid, View
from slimbrain_app.prepare.reading import read_brain, read_mask
from slimbrain_app.prepare.spline import Sampler, build_sampler, flat_nearest
from slimbrain_app.prepare.transforms import map_points
from slimbrain_app.records import Run

Mask = NDArray[np.bool_]

_LEAST_COVERAGE = 0.5


@dataclass(frozen=True, eq=False)
class Placement:
    """A run's mask on the model grid, and what leads to its voxels.

    Attributes
    ----------
    mask : ndarray of bool, shape (96, 96, 96)
    view : View
        From stored volumes to those that all else here speaks of.
    shape : tuple of int
        (z, y, x) of a volume in that view.
    brain : ndarray of int
        The mask's voxels in the series' own grid, flat in (z, y, x).
    stored : ndarray of int
        The same voxels, flat in a volume as the file has it.
    nearest : ndarray of int, shape (voxels,)
        For each voxel of ``mask``, the series' own voxel that holds it, flat in (z, y, x).
    sampler : Sampler
    edges : tuple of float
        Of the series' voxels, in mm.
    """

    mask: Mask
    view: View
    shape: tuple[int, ...]
    brain: NDArray[np.intp]
    stored: NDArray[np.intp]
    nearest: NDArray[np.intp]
    sampler: Sampler
    edges: tuple[float, ...]


def place_run(run: Run, stored: Grid) -> Placement:
    """Find a run's brain on the model grid.

    The mask comes there by nearest neighbour: a voxel belongs to the brain if its centre falls
    into a voxel of the run's own mask.

    Parameters
    ----------
    stored : Grid
        Of the BOLD file.

    Raises
    ------
    RunRefused
        empty-mask, low-coverage, unreadable, missing-content, denied, transform-missing,
        transform-bad.
    """
    return place_mask(run, _read_own_mask(run, grid.canonical(stored)[0]), stored)


def place_mask(run: Run, own_mask: Mask, stored: Grid) -> Placement:
    """Do as `place_run` with a mask that is at hand, shape (x, y, z), axes turned to RAS+.

    Raises
    ------
    RunRefused
        empty-mask, low-coverage, transform-missing, transform-bad.
    """
    source, view = grid.canonical(stored)
    coordinates = _coordinates(run, run.transforms, source, grid.model_grid())
    mask = grid.sample_mask(own_mask, coordinates) & grid.points_inside(coordinates, source)
    if not mask.any():
        raise _no_brain(run, "the mask has voxels over 0.5, but none on the model grid")
    require_coverage(run, mask)
    box = grid.box_around(coordinates, mask, source)
    source, view, coordinates = grid.crop(source, view, coordinates, box)
    brain = np.flatnonzero(own_mask[box].T)
    return Placement(
        mask=mask,
        view=view,
        shape=source.shape[::-1],
        brain=brain,
        stored=_stored_places(view, stored)[brain],
        nearest=flat_nearest(source, coordinates, mask),
        sampler=build_sampler(source, coordinates, mask),
        edges=tuple(float(edge) for edge in np.linalg.norm(source.affine[:3, :3], axis=0)),
    )


def require_coverage(run: Run, mask: Mask) -> float:
    """Return the share of the template's brain that a run's mask on the model grid covers.

    Raises
    ------
    RunRefused
        low-coverage: less than half.
    """
    coverage = grid.template_coverage(mask)
    if coverage < _LEAST_COVERAGE:
        raise RunRefused(
            "low-coverage",
            file=run.relative(run.mask),
            expected=f"at least {_LEAST_COVERAGE:.0%} of the template's brain inside the mask",
            found=f"{coverage:.0%}",
            advice="look at the registration and the field of view in fMRIPrep's report",
        )
    return coverage


def _read_own_mask(run: Run, source: Grid) -> Mask:
    """Return the run's mask on its BOLD's grid, axes turned to RAS+."""
    name = run.relative(run.mask)
    read = read_brain if run.mask == run.bold else read_mask
    stored, stored_grid = read(run.mask, name)
    if not stored.any():
        raise _no_brain(run, "no voxel over 0.5")
    mask_grid, view = grid.canonical(stored_grid)
    mask = view.turn(stored)
    return grid.sample_mask(mask, _coordinates(run, run.mask_transforms, mask_grid, source))


def _coordinates(run: Run, transforms: tuple[Path, ...], source: Grid, target: Grid) -> Coordinates:
    """Return the target grid in voxels of the source, to which transforms lead."""
    straight = None if transforms else grid.axis_coordinates(source, target)
    if straight is not None:
        return straight
    names = [run.relative(path) for path in transforms]
    points = map_points(grid.points_of(target), transforms, names)
    return grid.point_coordinates(source, points, target)


def _stored_places(view: View, stored: Grid) -> NDArray[np.intp]:
    """Return for each voxel of the view, flat, its place in a stored volume, flat."""
    places = np.arange(np.prod(stored.shape), dtype=np.intp).reshape(1, *stored.shape[::-1])
    return np.asarray(view.apply(places)).ravel()


def _no_brain(run: Run, found: str) -> RunRefused:
    return RunRefused(
        "empty-mask",
        file=run.relative(run.mask),
        expected="a brain mask with voxels over 0.5 in the model grid's field of view",
        found=found,
        advice="check the mask, or rerun fMRIPrep for this participant",
    )
