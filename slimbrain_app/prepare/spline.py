"""Cubic B-spline interpolation of volumes at the brain's voxels on the model grid.

Three ways, each exact up to float32 rounding: `Picked` where every point is the centre of a
source voxel, `Separable` where the axes are parallel, `Scattered` for all else. They agree with
``scipy.ndimage.map_coordinates`` (order 3, mode constant, prefiltered) and differ from it in
speed: what depends on the geometry is worked out once per run, not once per volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.prepare import grid
from slimbrain_app.prepare.grid import Coordinates, Grid

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Array = NDArray[np.float32]

_BAND = 32
# Of a weight: a hundredth of what a float32 of anatomy's size rounds away over a spline's reach.
_NEGLIGIBLE = 1e-7


class Sampler(Protocol):
    """Takes volumes (z, y, x), one after the other, to values (volumes, voxels).

    Each volume's values are the same to the last bit, whatever volumes come with it. A volume
    is done with when the next one is asked for. ``at_once`` is the least number of volumes that
    is worth a call.
    """

    at_once: ClassVar[int]

    def sample(self, volumes: Iterable[Array], values: Array) -> None: ...


def interpolation_matrix(length: int, coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cubic spline through samples 0 ... length - 1 as one matrix.

    Parameters
    ----------
    length : int
        Number of samples; beyond both ends they are thought of as mirrored.
    coordinates : ndarray, shape (points,)
        Where to interpolate; what lies outside by rounding is moved to the end.

    Returns
    -------
    ndarray, shape (points, length)
        The product with samples (length, anything) gives values (points, anything).
    """
    from scipy.ndimage import map_coordinates

    inside = np.clip(coordinates, 0, length - 1)[np.newaxis]
    columns = [map_coordinates(unit, inside, order=3, mode="mirror") for unit in np.eye(length)]
    return np.stack(columns, axis=1)


@dataclass(frozen=True, eq=False)
class Band:
    """A few rows of an interpolation matrix, and the columns that they feel."""

    rows: slice
    columns: slice
    weights: Array


def split_bands(matrix: NDArray[np.float64]) -> tuple[Band, ...]:
    """Cut a matrix into bands without their zeros, which are a third of the work.

    Weights far from the diagonal become zeros first: as denormal float32 they would change
    nothing and slow a product down tenfold.
    """
    matrix = np.where(np.abs(matrix) > _NEGLIGIBLE, matrix, 0)
    bands = []
    for first in range(0, len(matrix), _BAND):
        part = matrix[first : first + _BAND]
        felt = np.flatnonzero(part.any(axis=0))
        columns = slice(int(felt[0]), int(felt[-1]) + 1)
        weights = np.ascontiguousarray(part[:, columns], np.float32)
        bands.append(Band(slice(first, first + len(part)), columns, weights))
    return tuple(bands)


@dataclass(frozen=True, eq=False)
class AxisProducts:
    """One matrix per axis, in bands, applied to volumes one after the other."""

    shape: tuple[int, ...]
    x: tuple[Band, ...]
    y: tuple[Band, ...]
    z: tuple[Band, ...]

    def apply(self, volumes: Iterable[Array]) -> Iterator[Array]:
        """Yield each volume (z, y, x) after its three products; the next one overwrites it."""
        depth, height, _ = self.shape
        columns, rows, planes = (bands[-1].rows.stop for bands in (self.x, self.y, self.z))
        along_x = np.empty((depth, height, columns), np.float32)
        along_xy = np.empty((depth, rows, columns), np.float32)
        whole = np.empty((planes, rows, columns), np.float32)
        # Weights in the order in which BLAS reads them from the right: a third faster.
        from_right = [np.ascontiguousarray(band.weights.T) for band in self.x]
        for volume in volumes:
            for band, weights in zip(self.x, from_right, strict=True):
                np.matmul(volume[..., band.columns], weights, out=along_x[..., band.rows])
            for band in self.y:
                np.matmul(band.weights, along_x[:, band.columns], out=along_xy[:, band.rows])
            stack, products = along_xy.reshape(depth, -1), whole.reshape(planes, -1)
            for band in self.z:
                np.matmul(band.weights, stack[band.columns], out=products[band.rows])
            yield whole


@dataclass(frozen=True, eq=False)
class Picked:
    """No interpolation: ``voxels`` are flat indices into a volume (z, y, x)."""

    at_once: ClassVar[int] = 1
    voxels: NDArray[np.intp]

    def sample(self, volumes: Iterable[Array], values: Array) -> None:
        for volume, row in zip(volumes, values, strict=True):
            np.take(volume, self.voxels, out=row, mode="clip")


@dataclass(frozen=True, eq=False)
class Separable:
    """Interpolation matrices, prefilter included; ``voxels`` are flat indices into their result."""

    at_once: ClassVar[int] = 1
    matrices: AxisProducts
    voxels: NDArray[np.intp]

    def sample(self, volumes: Iterable[Array], values: Array) -> None:
        # One product per volume: the rounding of a product depends on its shape.
        for whole, row in zip(self.matrices.apply(volumes), values, strict=True):
            np.take(whole, self.voxels, out=row, mode="clip")


@dataclass(frozen=True, eq=False)
class Scattered:
    """A prefilter per axis, then 64 weights per point as a matrix (points, source voxels)."""

    # Reading the weights takes longer than multiplying with them.
    at_once: ClassVar[int] = 8
    prefilters: AxisProducts
    weights: csr_array

    def sample(self, volumes: Iterable[Array], values: Array) -> None:
        coefficients = np.empty((len(values), self.weights.shape[1]), np.float32)
        for whole, row in zip(self.prefilters.apply(volumes), coefficients, strict=True):
            row[:] = whole.ravel()
        values[:] = (self.weights @ np.ascontiguousarray(coefficients.T)).T


def build_sampler(source: Grid, coordinates: Coordinates, mask: NDArray[np.bool_]) -> Sampler:
    """Return the cheapest exact way to the masked voxels of the model grid.

    Parameters
    ----------
    source : Grid
        Axes turned to RAS+.
    coordinates : tuple of three ndarray
        The model grid in voxels of the source; they broadcast to the mask's shape.
    mask : ndarray of bool
        On the model grid; all its points lie inside the source.
    """
    if grid.on_lattice(coordinates):
        return Picked(flat_nearest(source, coordinates, mask))
    if coordinates[0].size == mask.shape[0]:
        return _separable(source, coordinates, mask)
    return _scattered(source, np.stack([axis[mask] for axis in coordinates]))


def flat_nearest(
    source: Grid, coordinates: Coordinates, mask: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Return for each masked voxel the source voxel that holds it, flat in (z, y, x)."""
    x, y, z = (
        np.broadcast_to(np.clip(axis, 0, length - 1), mask.shape)[mask]
        for axis, length in zip(grid.nearest_voxels(coordinates), source.shape, strict=True)
    )
    return np.ravel_multi_index((z, y, x), source.shape[::-1])


def _separable(source: Grid, coordinates: Coordinates, mask: NDArray[np.bool_]) -> Separable:
    where = np.nonzero(mask)
    low = [int(axis.min()) for axis in where]
    high = [int(axis.max()) + 1 for axis in where]
    x, y, z = (
        split_bands(interpolation_matrix(length, axis.ravel()[first:last]))
        for length, axis, first, last in zip(source.shape, coordinates, low, high, strict=True)
    )
    i, j, k = (axis - first for axis, first in zip(where, low, strict=True))
    depth, height, width = (last - first for first, last in zip(low[::-1], high[::-1], strict=True))
    voxels = np.ravel_multi_index((k, j, i), (depth, height, width))
    return Separable(AxisProducts(source.shape[::-1], x, y, z), voxels)


def _scattered(source: Grid, points: NDArray[np.float64]) -> Scattered:
    from scipy.ndimage import spline_filter1d

    x, y, z = (
        split_bands(spline_filter1d(np.eye(length), axis=0, mode="mirror"))
        for length in source.shape
    )
    return Scattered(AxisProducts(source.shape[::-1], x, y, z), _tap_weights(source, points))


def _tap_weights(source: Grid, points: NDArray[np.float64]) -> csr_array:
    from scipy.sparse import csr_array

    count = points.shape[1]
    taps = [_axis_taps(n, axis) for n, axis in zip(source.shape, points, strict=True)]
    (ix, wx), (iy, wy), (iz, wz) = taps
    weights = wz[:, :, None, None] * wy[:, None, :, None] * wx[:, None, None, :]
    nx, ny, nz = source.shape
    columns = (iz[:, :, None, None] * ny + iy[:, None, :, None]) * nx + ix[:, None, None, :]
    rows = np.arange(0, 64 * count + 1, 64, dtype=np.int32)
    return csr_array((weights.ravel(), columns.ravel(), rows), shape=(count, nx * ny * nz))


def _axis_taps(length: int, coordinates: NDArray[np.float64]) -> tuple[NDArray[np.int32], Array]:
    """Return the four samples around each point, mirrored at the ends, and their weights."""
    inside = np.clip(coordinates, 0, length - 1)
    base = np.floor(inside)
    t = (inside - base)[:, None]
    weights = np.concatenate(
        [(1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3], axis=1
    )
    samples = np.abs(base[:, None].astype(np.int32) + np.arange(-1, 3, dtype=np.int32))
    mirrored = (length - 1) - np.abs((length - 1) - samples)
    return mirrored.astype(np.int32), (weights / 6).astype(np.float32)
