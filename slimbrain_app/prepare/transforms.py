"""From points of the model grid into another space, by the transforms that fMRIPrep writes.

By ITK's convention a transform ``from-A_to-B`` resamples images of A onto B, so as a function of
points it leads from B to A: exactly what sampling A's data on B's grid needs. Nothing is
inverted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.errors import RunRefused
from slimbrain_app.prepare.reading import MOST_PER_BYTE

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

Points = NDArray[np.float64]
Affine = NDArray[np.float64]
Parts = list["Affine | Nifti1Image"]


def map_points(points: Points, transforms: Sequence[Path], names: Sequence[str]) -> Points:
    """Take points (points, 3) in mm, RAS+, through transform files, the first file first.

    ``names`` stand for the files in messages.

    Raises
    ------
    RunRefused
        ``transform-missing``, ``transform-bad``.
    """
    for path, name in zip(transforms, names, strict=True):
        for part in _read_parts(path, name):
            if isinstance(part, np.ndarray):
                points = points @ part[:3, :3].T + part[:3, 3]
            else:
                points = points + _displacements(part, points)
    return points


def _read_parts(path: Path, name: str) -> Parts:
    """Return a file's affines and displacement fields in the order in which points meet them."""
    try:
        with np.errstate(all="ignore"):  # What is not finite is refused.
            is_composite = path.suffix == ".h5"
            parts: Parts = _read_composite(path) if is_composite else [_read_affine(path)]
            _require_finite(parts)
        return parts
    except FileNotFoundError as error:
        raise RunRefused(
            "transform-missing",
            file=name,
            expected="the transform that leads to the series' space",
            found="nothing, or a link that leads nowhere",
            advice="fetch the file, or choose a series in a standard space with --space",
        ) from error
    # A damaged file makes the readers stumble in any way.
    except Exception as error:
        raise RunRefused(
            "transform-bad",
            file=name,
            expected="one ITK affine (.txt), or affines and displacement fields (.h5)",
            found=str(error) or type(error).__name__,
            advice="check the file, or choose a series in a standard space with --space",
        ) from error


def _require_finite(parts: Parts) -> None:
    for part in parts:
        values = [part] if isinstance(part, np.ndarray) else [part.affine, part.dataobj]
        if not all(np.isfinite(value).all() for value in values):
            raise ValueError("numbers that are not finite")


def _read_affine(path: Path) -> Affine:
    # The class for one transform refuses files with several: those hold head motion.
    from nitransforms.io.itk import ITKLinearTransform

    return np.asarray(ITKLinearTransform.from_filename(path).to_ras())


def _read_composite(path: Path) -> Parts:
    import h5py
    from nitransforms.io.itk import ITKCompositeH5, ITKLinearTransform

    with h5py.File(path) as file:
        group = file["TransformGroup"]
        _require_size(group, path)
        # HDF5 lists names as text, "10" before "2"; the reader takes them as they come.
        numbered = {key: group[key] for key in sorted(group, key=int)}
        parts = ITKCompositeH5.from_h5obj({"TransformGroup": numbered})
    # ITK's queue: what is last in the file meets the points first.
    return [
        np.asarray(part.to_ras()) if isinstance(part, ITKLinearTransform) else part
        for part in reversed(parts)
    ]


def _require_size(group: Any, path: Path) -> None:
    """Refuse what says that it holds more than deflate could make of the file."""
    held = sum(part["TransformParameters"].nbytes for part in group.values() if len(part) > 1)
    if held > MOST_PER_BYTE * path.stat().st_size:
        raise ValueError(f"{held} bytes of parameters in so short a file")


def _displacements(field: Nifti1Image, points: Points) -> Points:
    """Interpolate a displacement field linearly, as ITK does; outside of it nothing moves.

    nitransforms' own field transform is not used: it interpolates by cubic splines, holds four
    copies of the field, and wraps around where all points lie on its lattice.
    """
    from scipy.ndimage import map_coordinates

    vectors = np.asanyarray(field.dataobj)
    inverse = np.linalg.inv(field.affine)
    index = (points @ inverse[:3, :3].T + inverse[:3, 3]).T
    last = np.array(vectors.shape[:3])[:, np.newaxis] - 1
    inside = np.all((index >= -0.5) & (index <= last + 0.5), axis=0)
    moved = [
        map_coordinates(vectors[..., axis], index, order=1, mode="nearest") for axis in range(3)
    ]
    return np.asarray(np.stack(moved, axis=1) * inside[:, np.newaxis])
