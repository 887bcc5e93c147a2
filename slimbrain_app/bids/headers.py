"""NIfTI headers: shape, place and time of an image, from the first bytes of its file."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.errors import RunRefused

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

SHIFT = 0.1
"""mm by which the corners of two grids may differ and still be the same place."""

_SIZES = {348: b"n+1", 540: b"n+2"}
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6, "unknown": 1.0}
_CORNERS = np.indices((2, 2, 2)).reshape(3, 8)
_ANNEX_POINTER = b"/annex/objects/"


@dataclass(frozen=True, slots=True, eq=False)
class Header:
    """What a NIfTI header says.

    Attributes
    ----------
    shape : tuple of int
        Axes of length one after the fourth are left out.
    affine : ndarray, float64, shape (4, 4)
        Voxel to mm, RAS+: the sform where it is set, else the qform.
    time_step : float
        ``pixdim[4]`` as it stands in the file.
    time_unit : str
        ``sec``, ``msec``, ``usec``, or ``unknown``, which is taken for seconds.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    time_step: float
    time_unit: str

    @property
    def edges(self) -> tuple[float, float, float]:
        """Lengths of a voxel's edges (mm)."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)

    @property
    def seconds(self) -> float:
        """Time between volumes (s) by the header; 0 where it doesn't say."""
        return self.time_step * _SECONDS[self.time_unit] if len(self.shape) > 3 else 0.0

    @property
    def timing(self) -> str:
        """The raw fields, for messages: a viewer may show something else."""
        return f"pixdim[4] = {self.time_step:g} with unit {self.time_unit}"


def read_header(path: Path, shown: object = None) -> Header:
    """Read a header without decompressing what follows it.

    Parameters
    ----------
    path : Path
        ``.nii`` or ``.nii.gz``, NIfTI-1 or NIfTI-2, of either byte order.
    shown : str, optional
        What messages call the file.

    Raises
    ------
    RunRefused
        ``missing-content``, ``denied``, ``unreadable``, ``truncated``, ``no-geometry`` or
        ``bad-affine``.
    """
    shown = path.name if shown is None else shown
    raw = _parse_header(_read_start(path, shown), shown)
    shape = tuple(int(length) for length in raw.get_data_shape())
    while len(shape) > 4 and shape[-1] == 1:
        shape = shape[:-1]
    unit = _time_unit(raw)
    return Header(shape, _read_affine(raw, shape, shown), float(raw["pixdim"][4]), unit)


def require_series(header: Header, shown: object) -> None:
    """Refuse what is not a series of volumes: ``not-4d``."""
    if len(header.shape) != 4:
        raise RunRefused(
            "not-4d",
            file=shown,
            expected="a series of volumes: three axes of space, one of time",
            found=f"shape {_by(header.shape)}",
            advice="check which file carries the BOLD's name",
        )


def shift_between(
    one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, ...]
) -> float:
    """Return how far (mm) the corners of a grid lie apart under two affines."""
    corners = _CORNERS * (np.array((*shape, 1, 1)[:3]) - 1)[:, None]
    apart = (one - other)[:3, :3] @ corners + (one - other)[:3, 3:]
    return float(np.sqrt((apart**2).sum(axis=0)).max())


def same_grid(image: Header, mask: Header) -> bool:
    """Whether a mask lies voxel by voxel on an image; one volume in a fourth axis is allowed."""
    flat = mask.shape[3:] in ((), (1,))
    shaped = mask.shape[:3] == image.shape[:3]
    return flat and shaped and shift_between(image.affine, mask.affine, image.shape) <= SHIFT


def describe_grid(header: Header) -> str:
    """Say shape and place in a few words."""
    origin = ", ".join(f"{value:.6g}" for value in header.affine[:3, 3])
    edges = ", ".join(f"{value:.4g}" for value in header.edges)
    return f"shape {_by(header.shape)}, voxels of {edges} mm, first voxel at ({origin}) mm"


def require_content(path: Path, shown: object) -> None:
    """Refuse a link that leads nowhere: ``missing-content``."""
    if not path.exists():
        target = f"a link to {path.readlink()}" if path.is_symlink() else "no file"
        raise _missing(shown, f"{target}, which is not there" if path.is_symlink() else target)


@contextmanager
def reading(path: Path, shown: object) -> Iterator[None]:
    """Turn the operating system's refusals into ours."""
    require_content(path, shown)
    try:
        yield
    except PermissionError as error:
        raise RunRefused(
            "denied",
            file=shown,
            expected="permission to read",
            found=_ownership(path),
            advice="ask its owner, or start as a user who may read it",
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _unreadable(shown, f"no gzip stream ({error})") from error
    except EOFError as error:
        raise _cut_short(shown) from error
    except OSError as error:
        raise _unreadable(shown, error.strerror or str(error)) from error


def _read_start(path: Path, shown: object) -> bytes:
    with reading(path, shown), path.open("rb") as plain:
        start = plain.read(max(_SIZES))
        if start.startswith(_ANNEX_POINTER):
            raise _missing(shown, "a git-annex pointer in the content's place")
        if start and path.suffix == ".gz":
            plain.seek(0)
            with gzip.GzipFile(fileobj=plain) as stream:
                start = stream.read(max(_SIZES))
    if not start:
        raise _unreadable(shown, "no bytes")
    return start


def _parse_header(start: bytes, shown: object) -> Nifti1Header:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    size = next((size for size in _SIZES if size in sizes), None)
    if size is None:
        raise _unreadable(shown, "another kind of file")
    if len(start) < size:
        raise _cut_short(shown)
    kind: type[Nifti1Header] = Nifti1Header if size == 348 else Nifti2Header
    header = kind(start[:size], check=False)
    if not bytes(header["magic"].item()).startswith(_SIZES[size]) or not _has_shape(header):
        raise _unreadable(shown, "a damaged header, or one of an older format")
    return header


def _has_shape(header: Nifti1Header) -> bool:
    axes = int(header["dim"][0])
    return 1 <= axes <= 7 and bool((header["dim"][1 : axes + 1] > 0).all())


def _time_unit(header: Nifti1Header) -> str:
    # Bits 3 to 5; nibabel raises where they hold something that is no unit.
    return {8: "sec", 16: "msec", 24: "usec"}.get(int(header["xyzt_units"]) & 56, "unknown")


def _read_affine(
    header: Nifti1Header, shape: tuple[int, ...], shown: object
) -> NDArray[np.float64]:
    sform, qform = _sform(header), _qform(header)
    affine = qform if sform is None else sform
    if affine is None:
        raise RunRefused(
            "no-geometry",
            file=shown,
            expected="an sform or a qform with a code over 0",
            found="both codes are 0: nothing says where the voxels lie",
            advice="write the right form into the header, for instance with nibabel or fslorient",
        )
    if not np.isfinite(affine).all() or math.isclose(np.linalg.det(affine[:3, :3]), 0):
        raise _bad_affine(shown, f"{affine[:3].tolist()}")
    if sform is not None and qform is not None:
        apart = shift_between(sform, qform, shape)
        if not apart <= SHIFT:
            raise _bad_affine(shown, f"sform and qform that lie {apart:.3g} mm apart at a corner")
    return affine


def _sform(header: Nifti1Header) -> NDArray[np.float64] | None:
    if header["sform_code"] <= 0:
        return None
    rows = [header["srow_x"], header["srow_y"], header["srow_z"], (0, 0, 0, 1)]
    with np.errstate(invalid="ignore"):  # A signalling NaN is refused by the caller.
        return np.array(rows, dtype=np.float64)


def _qform(header: Nifti1Header) -> NDArray[np.float64] | None:
    from nibabel.spatialimages import HeaderDataError

    if header["qform_code"] <= 0:
        return None
    try:
        with np.errstate(invalid="ignore"):
            return np.asarray(header.get_qform(), dtype=np.float64)
    except (ValueError, HeaderDataError):  # no unit quaternion, or a sign that is none
        return np.full((4, 4), np.nan)


def _ownership(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "a folder above it that is closed"
    return f"owner {status.st_uid}:{status.st_gid}, mode {status.st_mode & 0o777:o}"


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape)


def _missing(shown: object, found: str) -> RunRefused:
    return RunRefused(
        "missing-content",
        file=shown,
        expected="the file's content",
        found=found,
        advice=f"`datalad get {shown}`, or bind the folder of the content into the container",
    )


def _unreadable(shown: object, found: str) -> RunRefused:
    return RunRefused(
        "unreadable",
        file=shown,
        expected="a NIfTI image, compressed by gzip if its name ends in .gz",
        found=found,
        advice="copy or make the file again",
    )


def _cut_short(shown: object) -> RunRefused:
    return RunRefused(
        "truncated",
        file=shown,
        expected="a whole header",
        found="a file that ends before",
        advice="copy the file again",
    )


def _bad_affine(shown: object, found: str) -> RunRefused:
    return RunRefused(
        "bad-affine",
        file=shown,
        expected="one invertible affine",
        found=found,
        advice="mend the header, or make the file again",
    )
