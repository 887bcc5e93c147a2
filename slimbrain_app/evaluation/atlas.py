"""Parcellations of the brain on the model grid: the shipped one, TemplateFlow's, or a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nilearn.image import resample_img
from numpy.typing import NDArray

from slimbrain_app.bids.headers import read_header, reading
from slimbrain_app.bids.spaces import find_template_file
from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.prepare.grid import model_grid

SHIPPED = "schaefer200"

_SCHAEFER = re.compile(r"schaefer(\d+)")


@dataclass(frozen=True, slots=True, eq=False)
class Atlas:
    """A parcellation on the model grid.

    Attributes
    ----------
    name : str
    numbers : ndarray of int, shape (96, 96, 96)
        The parcel of each voxel: from 1 on, in the order of ``labels``; 0 is none.
    labels : ndarray of int, shape (parcels,)
        The parcels' numbers in the file, ascending. One that has no voxel on the model grid is
        there all the same.
    names : tuple of str
        ``parcel`` and the label where nothing says more.
    """

    name: str
    numbers: NDArray[np.integer]
    labels: NDArray[np.integer]
    names: tuple[str, ...]


def load_atlas(name: str) -> Atlas:
    """Load an atlas by its name or its file.

    Parameters
    ----------
    name : str
        ``schaefer200``, which ships with SlimBrain; ``schaefer100`` and so on, with 7 networks, if
        TemplateFlow's file is on this machine; or a NIfTI file of labels in MNI space. A table
        beside that, of the same name but for the ending ``.tsv``, may name labels in its columns
        ``index`` and ``name``, as BIDS has them.

    Raises
    ------
    CallRefused
        ``atlas-missing``; ``atlas-bad`` for a file that is not one volume of whole numbers, or
        has no voxel on the model grid.
    """
    if name == SHIPPED:
        return _load_shipped()
    schaefer = _SCHAEFER.fullmatch(name)
    if schaefer is not None:
        return _load_from_templateflow(name, f"Schaefer2018_desc-{schaefer[1]}Parcels7Networks")
    path = Path(name)
    if not path.exists():
        raise _missing(f"{SHIPPED}, another Schaefer atlas, or a NIfTI file of labels", name)
    table = path.with_name(re.sub(r"\.nii(\.gz)?$", "", path.name) + ".tsv")
    return _read_atlas(path.name, path, table if table.exists() else None)


def _load_shipped() -> Atlas:
    file = resources.files("slimbrain_app") / "data" / f"{SHIPPED}.npz"
    with file.open("rb") as stream, np.load(stream) as archive:
        numbers, names = archive["numbers"], archive["names"]
    return Atlas(SHIPPED, numbers, np.arange(1, len(names) + 1), tuple(names.tolist()))


def _load_from_templateflow(name: str, atlas: str) -> Atlas:
    # The model grid is a crop of res-02, so that nothing is resampled.
    for resolution in ("02", "01"):
        path = find_template_file(f"res-{resolution}_atlas-{atlas}_dseg.nii.gz")
        if path is not None:
            return _read_atlas(name, path, find_template_file(f"atlas-{atlas}_dseg.tsv"))
    raise _missing(f"TemplateFlow's atlas {atlas}", "none in TEMPLATEFLOW_HOME")


def _read_atlas(name: str, path: Path, table: Path | None) -> Atlas:
    values, affine = _read_volume(path)
    labels = _list_labels(values, path)
    # Counted from 1, since the labels of a file may be larger than what an image can hold.
    numbers = np.where(values > 0, np.searchsorted(labels, values) + 1, 0).astype(np.int32)
    grid = model_grid()
    placed = resample_img(
        nibabel.Nifti1Image(numbers, affine),
        grid.affine,
        grid.shape,
        interpolation="nearest",
        force_resample=True,
        copy_header=True,
    )
    on_grid = np.asarray(placed.dataobj, np.int32)
    if not on_grid.any():
        raise _bad(path, "parcels on the model grid, in MNI space", "all of them outside it")
    return Atlas(name, on_grid, labels, _name_labels(labels, table))


def _read_volume(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return an image's values (x, y, z) as they are stored, and its affine."""
    try:
        header = read_header(path)
        with reading(path, path.name):
            values = np.asanyarray(nibabel.Nifti1Image.from_filename(path).dataobj)
    except RunRefused as refusal:
        raise _bad(path, refusal.expected, refusal.found) from refusal
    except (ImageFileError, HeaderDataError) as error:
        raise _bad(path, "a NIfTI file", str(error)) from error
    if len(header.shape) < 3 or values.size != np.prod(values.shape[:3]):
        found = f"shape {' x '.join(map(str, values.shape))}"
        raise _bad(path, "one volume of labels", found)
    return values.reshape(values.shape[:3]), header.affine


def _list_labels(values: NDArray[Any], path: Path) -> NDArray[np.int64]:
    expected = "whole numbers, 0 outside the parcels"
    if values.dtype.kind not in "iuf":
        raise _bad(path, expected, f"values of type {values.dtype}")
    whole = np.isfinite(values) & (values >= 0)
    whole[whole] = values[whole] == np.rint(values[whole])
    if not whole.all():
        raise _bad(path, expected, f"{values[~whole][0]}, for instance")
    labels = np.unique(values[values > 0])
    if not len(labels):
        raise _bad(path, expected, "zeros only")
    return labels.astype(np.int64)


def _name_labels(labels: NDArray[np.int64], table: Path | None) -> tuple[str, ...]:
    known: dict[int, str] = {}
    if table is not None:
        try:
            rows = pd.read_csv(table, sep="\t")
            known = dict(zip(rows["index"].astype(int), rows["name"].astype(str), strict=True))
        except (KeyError, ValueError) as error:
            raise _bad(table, "columns index and name, a row for each label", str(error)) from error
    return tuple(known.get(label, f"parcel {label}") for label in labels.tolist())


def _missing(expected: str, found: str) -> CallRefused:
    return CallRefused(
        "atlas-missing",
        expected=expected,
        found=found,
        advice="give the path of a NIfTI file of labels in MNI space, or set TEMPLATEFLOW_HOME to "
        f"a folder that has the atlas; {SHIPPED} needs neither",
    )


def _bad(path: Path, expected: str, found: str) -> CallRefused:
    return CallRefused(
        "atlas-bad",
        file=path.name,
        expected=expected,
        found=found,
        advice=f"give another file, or take {SHIPPED}, which ships with SlimBrain",
    )
