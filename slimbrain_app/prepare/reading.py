"""Volume batches out of a NIfTI file, compressed or not, read once from front to back."""

from __future__ import annotations

import hashlib
import io
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from isal import igzip, igzip_lib
from numpy.typing import NDArray

from slimbrain_app.errors import RunRefused
from slimbrain_app.prepare.grid import Grid

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

# A processor's cache holds it. What a broken stream gives beyond its last whole chunk is not
# seen, so that small volumes want smaller ones.
_CHUNK = 1 << 16
_BATCH_BYTES, _MOST_BYTES = 8 << 20, 32 << 20
# A file that was written to so lately and ends early is most likely still being written.
_YOUNG_SECONDS = 10
# Volumes that tell where a masked series has values; more of a grid than any brain takes.
_TELLING, _MOST_BRAIN = 8, 0.7
# More bytes than deflate can make of one.
MOST_PER_BYTE = 1040


@dataclass(frozen=True, eq=False)
class Header:
    """What a NIfTI file says about its series.

    ``dtype`` has the file's byte order; stored numbers times ``slope`` plus ``inter`` are values.
    """

    grid: Grid
    volumes: int
    dtype: np.dtype[Any]
    slope: float
    inter: float

    def make_buffer(self, least: int = 1) -> NDArray[Any]:
        """Return room for one batch, shape (volumes, k, j, i), in the series' own numbers.

        It holds at least so many volumes, if they are not very large.
        """
        shape = self.grid.shape[::-1]
        volume = int(np.prod(shape)) * self.dtype.itemsize
        volumes = max(_BATCH_BYTES // volume, min(least, _MOST_BYTES // volume), 1)
        return np.empty((volumes, *shape), self.dtype)


class Volumes(Protocol):
    """A series to be read once, front to back: an open file, or whatever gives what one would."""

    header: Header

    def batches(self, first: int, buffers: Sequence[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """Fill ``buffers`` in turn with the volumes from ``first`` on; yield what was filled."""
        ...


class Series:
    """An open BOLD file: its header at once, then its volumes, then its checksum."""

    def __init__(self, path: Path, name: str, stream: io.BufferedIOBase, file: _HashedFile) -> None:
        self._path = path
        self._name = name
        self._stream = stream
        self._file = file
        _, _, self._changed = stamp(path, name)
        self._before = _state(path)
        self._chunk = _CHUNK
        self.header = self._read_header()

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes, once all batches are read."""
        return self._file.digest.hexdigest()

    def batches(self, first: int, buffers: Sequence[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """Fill ``buffers`` in turn with the volumes from ``first`` on; yield what was filled.

        Raises
        ------
        RunRefused
            ``truncated``, ``unreadable``, or ``still-written``.
        """
        batch, volume = len(buffers[0]), buffers[0][:1]
        self._chunk = min(max(volume.nbytes // 16, 1 << 10), _CHUNK)
        for number in range(first):
            self._read_volumes(volume, number)
        for start, buffer in zip(range(first, self.header.volumes, batch), cycle(buffers)):
            stored = buffer[: self.header.volumes - start]
            self._read_volumes(stored, start)
            yield stored
        self._finish()

    def _read_volumes(self, stored: NDArray[Any], start: int) -> None:
        found = self._read_into(stored.reshape(-1).view(np.uint8).data)
        if found == stored.nbytes:
            return
        raise self._ends_early(self.header.volumes, start + found // stored[0].nbytes)

    def _ends_early(self, volumes: int, whole: int) -> RunRefused:
        self._refuse_changed()
        # Clocks of file servers differ: a time that lies far ahead says nothing.
        young = abs(time.time() - self._changed / 1e9) < _YOUNG_SECONDS
        return RunRefused(
            "still-written" if young else "truncated",
            file=self._name,
            expected=f"{volumes} volumes, as the header says",
            found=f"an end after {whole} whole volumes",
            advice="wait for the program that writes it" if young else "copy the file again",
        )

    def _read_into(self, buffer: bytearray | memoryview) -> int:
        view = memoryview(buffer)
        done = 0
        try:
            while count := self._stream.readinto(view[done : done + self._chunk]):
                done += count
        except EOFError:
            return done
        except (igzip_lib.IsalError, OSError) as error:  # type: ignore[misc]
            self._refuse_changed()
            raise self._unreadable(str(error)) from error
        return done

    def _finish(self) -> None:
        # To the very end: the gzip checksum comes last, and ours covers every byte.
        rest = bytearray(_CHUNK)
        while self._read_into(rest):
            pass
        self._file.read()
        self._refuse_changed()

    def _refuse_changed(self) -> None:
        if _state(self._path) != self._before:
            raise refuse_changed(self._name)

    def _unreadable(self, found: str) -> RunRefused:
        return RunRefused(
            "unreadable",
            file=self._name,
            expected="a NIfTI file, compressed by gzip if its name ends in .gz",
            found=found,
            advice="copy the file again, or make it anew",
        )

    def _read_header(self) -> Header:
        header = self._parse_header()
        shape = header.get_data_shape()
        if len(shape) < 4 or any(length != 1 for length in shape[4:]):
            raise RunRefused(
                "not-4d",
                file=self._name,
                expected="three axes of space and one of time",
                found=f"shape {' x '.join(map(str, shape))}",
                advice="check what wrote this file",
            )
        with self._understanding():
            dtype, (slope, inter) = header.get_data_dtype(), header.get_slope_inter()
            grid = Grid(shape[:3], header.get_best_affine())
        _require_place(grid, self._name)
        if dtype.kind not in "iuf":
            raise self._unreadable(f"numbers of type {dtype}")
        if min(shape) < 1:
            raise self._unreadable(f"shape {' x '.join(map(str, shape))}")
        # Before there is room made for a volume.
        if math.prod(shape[:3]) * dtype.itemsize > _most_bytes(self._path):
            raise self._ends_early(shape[3], 0)
        return Header(
            grid=grid,
            volumes=shape[3],
            dtype=dtype,
            slope=1.0 if slope is None else float(slope),
            inter=0.0 if inter is None else float(inter),
        )

    def _parse_header(self) -> Nifti1Header:
        """Read what comes before the data, from the stream that the data come from."""
        from nibabel.nifti1 import Nifti1Header
        from nibabel.nifti2 import Nifti2Header

        start = bytearray(4)
        self._read_into(start)
        for kind in (Nifti1Header, Nifti2Header):
            size = kind.sizeof_hdr
            if size in (int.from_bytes(start, "little"), int.from_bytes(start, "big")):
                rest = bytearray(size - len(start))
                if self._read_into(rest) < len(rest):
                    break
                header = kind(bytes(start + rest), check=False)  # type: ignore[no-untyped-call]
                self._skip(header, size)
                return header
        raise self._unreadable("no NIfTI header")

    def _skip(self, header: Nifti1Header, read: int) -> None:
        """Go to where the data begin."""
        with self._understanding():
            left = header.get_data_offset() - read
        while left > 0 and (count := self._read_into(bytearray(min(left, _CHUNK)))):
            left -= count

    @contextmanager
    def _understanding(self) -> Iterator[None]:
        try:
            yield
        # A damaged header makes nibabel stumble in any way.
        except Exception as error:
            raise self._unreadable(f"a damaged header ({error})") from error


@contextmanager
def open_series(path: Path, name: str) -> Iterator[Series]:
    """Open a BOLD file for one pass; ``name`` stands for it in messages.

    Raises
    ------
    RunRefused
        ``missing-content``, ``denied``, ``unreadable``, ``not-4d``.
    """
    with _open(path, name) as raw:
        file = _HashedFile(raw)
        if path.name.endswith(".gz"):
            with igzip.IGzipFile(fileobj=file, mode="rb") as stream:  # type: ignore[no-untyped-call]
                yield Series(path, name, stream, file)
        else:
            with io.BufferedReader(file) as stream:
                yield Series(path, name, stream, file)


def read_mask(path: Path, name: str) -> tuple[NDArray[np.bool_], Grid]:
    """Read a brain mask: values over 0.5, and the grid that they lie on.

    Raises
    ------
    RunRefused
        ``missing-content``, ``denied``, ``unreadable``, or ``mask-mismatch`` for more than one
        volume.
    """
    import nibabel

    _open(path, name).close()
    try:
        with np.errstate(all="ignore"):
            image = nibabel.Nifti1Image.from_filename(path)
            if min(image.shape) < 1 or math.prod(image.shape) > _most_bytes(path):
                raise ValueError(f"shape {' x '.join(map(str, image.shape))} in so short a file")
            values = np.asanyarray(image.dataobj)
        _read_to_end(path)
    # A damaged file makes nibabel stumble in any way.
    except Exception as error:
        advice = "copy the file again, or make it anew"
        raise _refusal("unreadable", name, str(error), advice) from error
    if values.ndim < 3 or values.size != np.prod(values.shape[:3]):
        raise RunRefused(
            "mask-mismatch",
            file=name,
            expected="one volume",
            found=f"shape {' x '.join(map(str, values.shape))}",
            advice="check what wrote this mask",
        )
    x, y, z = values.shape[:3]
    grid = Grid((x, y, z), image.affine)
    _require_place(grid, name)
    return values.reshape(x, y, z) > 0.5, grid


def read_brain(path: Path, name: str) -> tuple[NDArray[np.bool_], Grid]:
    """Read where a series that was masked is not zero, and the grid on which it lies.

    Only its first volumes are read: within a brain, values that are all zero there don't change.

    Raises
    ------
    RunRefused
        ``no-mask`` if the series has values nearly everywhere, and as `open_series`.
    """
    with open_series(path, name) as series:
        header = series.header
        buffer = header.make_buffer(_TELLING)
        stored = next(iter(series.batches(0, [buffer])))
    # A whole number may come as near to zero as half a step.
    step = abs(header.slope) if header.dtype.kind in "iu" else 0.0
    with np.errstate(all="ignore"):  # What is not finite is judged as the series is prepared.
        values = np.abs(stored * header.slope + header.inter)
    brain = np.asarray((values > step / 2).any(axis=0).T)
    share = brain.mean()
    if share > _MOST_BRAIN:
        raise RunRefused(
            "no-mask",
            file=name,
            expected="a brain mask beside the series, or zeros outside of the brain",
            found=f"no mask, and values in {share:.0%} of the voxels",
            advice="copy the file *_desc-brain_mask.nii.gz beside the series",
        )
    return brain, header.grid


def _read_to_end(path: Path) -> None:
    """Let gzip compare the checksum at the file's end, which nibabel doesn't reach."""
    if path.name.endswith(".gz"):
        with igzip.open(path) as stream:  # type: ignore[no-untyped-call]
            while stream.read(_CHUNK):
                pass


class _HashedFile(io.RawIOBase):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._raw.readinto(buffer)
        self.digest.update(memoryview(buffer)[:count])
        return count


def stamp(path: Path, name: str) -> tuple[str, int, int]:
    """Return name, size (bytes) and time of the last change (ns) of a source as it is now.

    Raises
    ------
    RunRefused
        ``missing-content``, ``denied``.
    """
    with _open(path, name) as file:
        now = os.fstat(file.fileno())
    return name, now.st_size, now.st_mtime_ns


def refuse_changed(name: str) -> RunRefused:
    return RunRefused(
        "still-written",
        file=name,
        expected="a file that stays as it is while it is read",
        found="another size or time of change than at the start",
        advice="wait for the program that writes it, then start again",
    )


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        now = path.stat()
    except FileNotFoundError:
        return None
    return now.st_ino, now.st_size, now.st_mtime_ns


def _require_place(grid: Grid, name: str) -> None:
    """Refuse an affine that does not lead each axis of the voxels along one of its own."""
    from nibabel.orientations import io_orientation

    if not (np.isfinite(grid.affine).all() and np.isfinite(io_orientation(grid.affine)).all()):
        raise RunRefused(
            "bad-affine",
            file=name,
            expected="one invertible affine",
            found=f"{grid.affine[:3].tolist()}",
            advice="mend the header, or make the file again",
        )


def _most_bytes(path: Path) -> int:
    """Return how many bytes a file can hold, if it is compressed as well as can be."""
    return path.stat().st_size * (MOST_PER_BYTE if path.name.endswith(".gz") else 1)


def _open(path: Path, name: str) -> io.FileIO:
    try:
        return io.FileIO(path)
    except FileNotFoundError as error:
        found = "nothing, or a link that leads nowhere"
        raise _refusal("missing-content", name, found, "fetch the file's content") from error
    except PermissionError as error:
        advice = "ask the owner for permission to read"
        raise _refusal("denied", name, "no permission", advice) from error


def _refusal(code: str, name: str, found: str, advice: str) -> RunRefused:
    return RunRefused(code, file=name, expected="a NIfTI file", found=found, advice=advice)
