"""Where the networks lie: regions of the cortex and below, and their weights in the voxels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array
from scipy.spatial import cKDTree

from slimbrain_app.simulation.anatomy import Anatomy

# Width of a region's Gaussian and where it is cut off, mm.
_WIDTH, _REACH = 6.0, 15.0
# Deviation of the signal at a region's centre, share of the signal at rest.
_AMPLITUDE = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class Regions:
    """Regions and the networks that they belong to.

    Attributes
    ----------
    names : tuple of str
        Names of the networks.
    network : ndarray, int, shape (regions,)
        Place of each region's network in ``names``.
    coordinates : ndarray, float64, shape (regions, 3)
        Centres in mm of MNI space.
    """

    names: tuple[str, ...]
    network: NDArray[np.int_]
    coordinates: NDArray[np.float64]


def load_regions() -> Regions:
    """Load 285 regions in 13 bilateral networks.

    References
    ----------
    Seitzman et al. (2020), NeuroImage 206:116290; coordinates as nilearn ships them.
    """
    from nilearn.datasets import fetch_coords_seitzman_2018

    atlas = fetch_coords_seitzman_2018()
    labels = np.asarray(atlas.networks)
    known = labels != "unassigned"
    names, network = np.unique(labels[known], return_inverse=True)
    rois = atlas.rois[known]
    return Regions(
        names=tuple(str(name) for name in names),
        network=network,
        coordinates=np.stack([rois[axis] for axis in "xyz"], axis=1).astype(np.float64),
    )


def weigh_regions(
    anatomy: Anatomy, coordinates: NDArray[np.float64], gains: NDArray[np.float64]
) -> csr_array:
    """Return what a voxel shows of each region's time course, shape (voxels, regions).

    A Gaussian around each centre (mm), in grey matter only; where regions overlap they share. In
    scanner units per unit of the time course.
    """
    distances = cKDTree(anatomy.coordinates).sparse_distance_matrix(
        cKDTree(coordinates), _REACH, output_type="coo_matrix"
    )
    nearness = csr_array(
        (np.exp(-0.5 * (distances.data / _WIDTH) ** 2), (distances.row, distances.col)),
        shape=(len(anatomy.voxels), len(coordinates)),
    )
    crowding = np.maximum(nearness.sum(axis=1), 1)
    strength = _AMPLITUDE * anatomy.rest * anatomy.grey / crowding
    weights = diags_array(strength) @ nearness @ diags_array(gains)
    return csr_array(weights, dtype=np.float32)
