"""Regions of a parcellation, brought into the voxels of the simulated head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.sparse import csc_array, csr_array, diags_array

from slimbrain_app.simulation.anatomy import Anatomy, Floats

# Neighbouring regions blend over a Gaussian of so many mm at half its height, cut off after so
# many deviations.
_BLEND, _REACH = 6.0, 3.0
# A voxel of which all regions together have less than this share fades out: it is outside them.
_LEAST_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Atlas:
    """A parcellation.

    Attributes
    ----------
    numbers : ndarray, int64, shape (x, y, z)
        The region of each voxel, from 1 on; 0 is none.
    affine : ndarray, float64, shape (4, 4)
        Voxel to mm.
    """

    numbers: NDArray[np.int64]
    affine: NDArray[np.float64]

    @property
    def regions(self) -> int:
        return int(self.numbers.max())


def weigh_parcels(anatomy: Anatomy, atlas: Atlas) -> csr_array:
    """Return what a voxel shows of each region's time course, shape (voxels, regions).

    Regions are blurred so that neighbours blend, and shown by grey matter, in proportion to the
    signal at rest.
    """
    shares = share_voxels(anatomy, atlas)
    crowding = np.maximum(shares.sum(axis=1), _LEAST_SHARE)
    strength = anatomy.rest * anatomy.grey / crowding
    return csr_array(diags_array(strength) @ shares, dtype=np.float32)


def share_voxels(anatomy: Anatomy, atlas: Atlas) -> csr_array:
    """Return how much of each voxel's surroundings belongs to each region, (voxels, regions)."""
    inverse = np.linalg.inv(atlas.affine)
    places = anatomy.coordinates @ inverse[:3, :3].T + inverse[:3, 3]
    edges = np.linalg.norm(atlas.affine[:3, :3], axis=0)
    spread = _BLEND / np.sqrt(8 * np.log(2)) / edges
    columns = [
        _share(np.argwhere(atlas.numbers == number), spread, places)
        for number in range(1, atlas.regions + 1)
    ]
    starts = np.cumsum([0, *(len(voxels) for voxels, _ in columns)])
    voxels, values = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return csr_array(csc_array((values, voxels, starts), (len(places), len(columns))))


def _share(
    region: NDArray[np.int64], spread: NDArray[np.float64], places: NDArray[np.float64]
) -> tuple[NDArray[np.intp], Floats]:
    """Return the voxels near a region, and its share of each; all in the atlas' voxels."""
    margin = np.ceil(_REACH * spread).astype(int) + 1
    low, high = region.min(axis=0) - margin, region.max(axis=0) + margin
    volume = np.zeros(high - low + 1, np.float32)
    volume[tuple((region - low).T)] = 1
    volume = gaussian_filter(volume, spread, mode="constant", truncate=_REACH)
    near = np.flatnonzero(np.all((places >= low) & (places <= high), axis=1))
    shares = map_coordinates(volume, (places[near] - low).T, order=1)
    felt = shares > 0
    return near[felt], shares[felt]
