"""The head that every simulated person shares: tissue of the MNI152 template on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# First voxel and extent (mm) of MNI152NLin2009cAsym: at 2 mm this makes fMRIPrep's grid.
_ORIGIN = (-96.5, -132.5, -78.5)
_EXTENT = (193, 229, 193)

# BOLD at rest, in scanner units: fluid is bright on an EPI, white matter dark.
_GREY, _WHITE, _FLUID = 9000.0, 8000.0, 11000.0
# A voxel with less brain than this is background, and stays exactly zero.
_LEAST_BRAIN = 0.02


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """Voxels that hold any brain, and what is in them.

    Attributes
    ----------
    shape : tuple of int
    affine : ndarray, float64, shape (4, 4)
        Voxel to mm, RAS+.
    voxels : ndarray, int64, shape (voxels,)
        Flat index, first axis fastest as in a NIfTI file.
    grey, white, fluid : ndarray, float32, shape (voxels,)
        Share of the voxel's volume; together they make the share that is brain.
    rest : ndarray, float32, shape (voxels,)
        BOLD at rest, in scanner units.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    voxels: NDArray[np.int64]
    grey: Floats
    white: Floats
    fluid: Floats
    rest: Floats

    @property
    def voxel_size(self) -> float:
        return float(self.affine[0, 0])

    @property
    def brain(self) -> NDArray[np.bool_]:
        """The brain mask: voxels that are brain for the most part, shape (voxels,)."""
        return self.grey + self.white + self.fluid > 0.5

    @property
    def coordinates(self) -> NDArray[np.float64]:
        """Centres of the voxels in mm, shape (voxels, 3)."""
        indices = np.stack(np.unravel_index(self.voxels, self.shape, order="F"), axis=1)
        return np.asarray(indices @ self.affine[:3, :3].T + self.affine[:3, 3])

    def fill_volumes(self, values: NDArray[Any]) -> NDArray[Any]:
        """Put values of shape (..., voxels) into volumes (..., z, y, x) with zeros around."""
        volumes = np.zeros((*values.shape[:-1], np.prod(self.shape)), dtype=values.dtype)
        volumes[..., self.voxels] = values
        return volumes.reshape(*values.shape[:-1], *self.shape[::-1])

    def pick_voxels(self, volumes: NDArray[Any]) -> NDArray[Any]:
        """Take the values of the voxels out of volumes (..., z, y, x)."""
        return volumes.reshape(*volumes.shape[:-3], -1)[..., self.voxels]


def load_anatomy(voxel_size: float) -> Anatomy:
    """Bring nilearn's MNI152 templates onto a grid over MNI152NLin2009cAsym.

    The templates are of release 2009a: right to within a few millimetres.
    """
    from nilearn import datasets

    affine = np.diag([voxel_size] * 3 + [1.0])
    affine[:3, 3] = _ORIGIN
    sides = [int(np.ceil(extent / voxel_size)) for extent in _EXTENT]
    shape = (sides[0], sides[1], sides[2])
    grey = _resample(datasets.load_mni152_gm_template(resolution=1), affine, shape)
    white = _resample(datasets.load_mni152_wm_template(resolution=1), affine, shape)
    brain = _resample(datasets.load_mni152_brain_mask(resolution=1), affine, shape)
    voxels = np.flatnonzero(brain > _LEAST_BRAIN)
    grey, white, brain = grey[voxels], white[voxels], brain[voxels]
    fluid = np.clip(brain - grey - white, 0, None)
    return Anatomy(
        shape=shape,
        affine=affine,
        voxels=voxels,
        grey=grey,
        white=white,
        fluid=fluid,
        rest=grey * _GREY + white * _WHITE + fluid * _FLUID,
    )


def _resample(image: Any, affine: NDArray[np.float64], shape: tuple[int, ...]) -> Floats:
    """Average an image over the voxels of a coarser grid; flat, first axis fastest."""
    from nilearn.image import new_img_like, resample_img, smooth_img

    # Blurring by a voxel's width makes a sample the mean of its surroundings.
    blurred = smooth_img(new_img_like(image, image.get_fdata(dtype=np.float32)), affine[0, 0])
    resampled = resample_img(
        blurred, affine, shape, interpolation="linear", force_resample=True, copy_header=True
    )
    values: Floats = resampled.get_fdata(dtype=np.float32)
    return np.clip(values.ravel(order="F"), 0, 1)
