"""NIfTI files written front to back, the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterable
from gzip import GzipFile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from isal import igzip
from nibabel import Nifti1Header
from numpy.typing import NDArray

from slimbrain_app.files import whole_file
from slimbrain_app.simulation.anatomy import Anatomy

# Scanner units per step of int16: small against the noise, and far from its range's end.
STEP = 2.0
# NIfTI's code for coordinates in MNI space; bytes before the data, header and extension flag.
_MNI, _OFFSET = 4, 352


def write_series(
    path: Path, anatomy: Anatomy, batches: Iterable[NDArray[np.float32]], volumes: int, tr: float
) -> None:
    """Write batches (volumes, voxels) as they come, as int16 with a scale; TR in s."""
    header = _header(anatomy, np.int16, (volumes,))
    header.set_slope_inter(STEP, 0)
    header["pixdim"][4] = tr
    _write(path, header, (anatomy.fill_volumes(store_values(batch)) for batch in batches))


def store_values(batch: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return the numbers that stand for values in a file, in units of ``STEP``."""
    return np.asarray(np.rint(batch / STEP), dtype=np.int16)


def write_volume(path: Path, anatomy: Anatomy, values: NDArray[Any]) -> None:
    """Write one value per voxel, shape (voxels,), in its own type."""
    _write(path, _header(anatomy, values.dtype, ()), [anatomy.fill_volumes(values)])


def _header(anatomy: Anatomy, dtype: Any, volumes: tuple[int, ...]) -> Nifti1Header:
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(dtype)
    header.set_data_shape((*anatomy.shape, *volumes))
    header.set_sform(anatomy.affine, _MNI)
    header.set_qform(anatomy.affine, _MNI)
    header.set_xyzt_units("mm", "sec")
    header["vox_offset"] = _OFFSET
    return header


def _write(path: Path, header: Nifti1Header, blocks: Iterable[NDArray[Any]]) -> None:
    """Write blocks whose first axis on file is their last in memory."""
    with whole_file(path) as temporary, temporary.open("wb") as raw, _compress(raw) as stream:
        stream.write(header.binaryblock.ljust(_OFFSET, b"\0"))
        for block in blocks:
            stream.write(block.tobytes())


def _compress(raw: BinaryIO) -> GzipFile:
    # Without name and time of day, so that equal content makes equal bytes.
    return igzip.IGzipFile(  # type: ignore[no-untyped-call]
        filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0
    )
