"""How fast runs are prepared, and how exactly.

Makes a run from a seed, prepares it, and prints ratios from one and the same call: against the
bare decompression of its file, and against the plain way of the field, which is
``nilearn.image.resample_img`` and a spline over time of the whole run. Preparing wants two free
cores: where others are at work too, the ratio in processor time, divided by two, tells more than
the one in seconds.

::

    python benchmarks/prepare.py                 # both grids, 300 volumes, about two minutes
    python benchmarks/prepare.py --volumes 60 --repeats 1
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from isal import igzip
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter, map_coordinates

from slimbrain_app.prepare import prepare_run, store
from slimbrain_app.prepare.grid import canonical, model_grid, points_of, template_brain
from slimbrain_app.prepare.placement import place_run
from slimbrain_app.prepare.reading import open_series
from slimbrain_app.records import RepetitionTime, Run
from slimbrain_app.settings import Prepare

FRAME_TIME = 0.72
TR = 2.0
NOISE = 100.0
CHUNK = 1 << 17


@dataclass(frozen=True)
class Source:
    """A grid that a run may come on: shape, voxel edge and first voxel in mm."""

    shape: tuple[int, int, int]
    edge: float
    origin: tuple[float, float, float]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to mm."""
        affine = np.diag([self.edge, self.edge, self.edge, 1.0])
        affine[:3, 3] = self.origin
        return affine


SOURCES = {
    "2 mm, off the model grid": Source((97, 115, 97), 2.0, (-96.9, -132.1, -78.0)),
    "3 mm": Source((65, 77, 65), 3.0, (-96.4, -132.1, -78.2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--volumes", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest one counts")
    parser.add_argument("--plain-volumes", type=int, default=8, help="for nilearn; scaled up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.repeats)))
        return
    for name, source in SOURCES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_run(Path(folder), source, options.volumes, options.seed)
            report(name, Path(folder), options)


def report(name: str, folder: Path, options: argparse.Namespace) -> None:
    # A process of its own, so that its peak memory is that of preparing.
    command = [
        sys.executable,
        __file__,
        "--measure",
        str(folder),
        "--repeats",
        str(options.repeats),
    ]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    plain = time_plain_way(folder, options.plain_volumes)
    megabytes = (folder / "bold.nii.gz").stat().st_size / 1e6
    print(f"\n{name}: {options.volumes} volumes, int16, {megabytes:.0f} MB compressed")
    print(f"  prepare                            {found['prepare']:8.2f} s")
    print(
        f"  / decompression by isal            {found['prepare'] / found['isal']:8.2f}  (at most 4)"
    )
    print(f"  the same in processor time         {found['processor']:8.2f}")
    print(f"  / decompression by gzip            {found['prepare'] / found['gzip']:8.2f}")
    print(f"  nilearn and scipy / prepare + read {plain / found['all']:8.1f}  (at least 15)")
    print(f"  peak memory                        {found['mib']:8.0f} MiB  (under 1024)")
    print(f"  largest error / deviation          {largest_error(folder):8.1e}  (at most 1e-3)")


def write_run(folder: Path, source: Source, volumes: int, seed: int) -> None:
    """Write noise on anatomy inside the brain and zeros outside, as fMRIPrep compresses it."""
    random = np.random.default_rng(seed)
    brain = brain_on(source)
    anatomy = 10_000 + 20_000 * gaussian_filter(random.standard_normal(source.shape), 2)
    image = nibabel.Nifti1Image(brain.astype(np.uint8), source.affine)
    image.set_sform(source.affine, 4)
    image.to_filename(folder / "mask.nii.gz")
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((*source.shape, volumes))
    header.set_sform(source.affine, 4)
    header["vox_offset"] = 352
    with gzip.open(folder / "bold.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(volumes):
            volume = anatomy + NOISE * random.standard_normal(source.shape, np.float32)
            stream.write(np.where(brain, volume, 0).astype(np.int16).tobytes(order="F"))


def brain_on(source: Source) -> NDArray[np.bool_]:
    mapping = np.linalg.inv(model_grid().affine) @ source.affine
    index = mapping[:3, :3] @ np.indices(source.shape).reshape(3, -1) + mapping[:3, 3:]
    values = map_coordinates(template_brain().astype(np.float32), index, order=1)
    return np.asarray(values.reshape(source.shape) > 0.5)


def run_in(folder: Path) -> Run:
    return Run(
        entities=(("sub", "01"),),
        dataset=folder,
        bold=folder / "bold.nii.gz",
        mask=folder / "mask.nii.gz",
        confounds=None,
        sidecars=(),
        transforms=(),
        space="MNI152NLin2009cAsym",
        rung=0,
        interpolations=2,
        repetition_time=RepetitionTime(seconds=TR, origin="sidecar"),
        notices=(),
    )


def measure(folder: Path, repeats: int) -> dict[str, float]:
    """Time what is compared, in turns, so that each meets the same load; the fastest counts."""
    ways: dict[str, Callable[[], object]] = {
        "isal": lambda: decompress(folder, igzip.open),
        "gzip": lambda: decompress(folder, gzip.open),
        "prepare": lambda: prepare_run(run_in(folder), folder / "prepared", Prepare(), 0),
    }
    ways["prepare"]()
    spent = [{name: seconds_of(way) for name, way in ways.items()} for _ in range(repeats)]
    found = {name: min(turn[name] for turn in spent) for name in ways}
    found["mib"] = peak_memory()
    processor = [seconds_of(ways[name], time.process_time) for name in ("isal", "prepare")]
    found["processor"] = processor[1] / processor[0]
    found["all"] = found["prepare"] + seconds_of(lambda: read_all_frames(folder))
    return found


def peak_memory() -> float:
    """Return the largest resident memory of this process in MiB, as Linux counts it."""
    # Not getrusage: its maximum survives the start of a child and would be the parent's.
    status = Path("/proc/self/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def seconds_of(way: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    way()
    return clock() - start


def decompress(folder: Path, opener: Callable[..., Any]) -> None:
    with opener(folder / "bold.nii.gz", "rb") as stream:
        buffer = bytearray(CHUNK)
        while stream.readinto(buffer):
            pass


def read_all_frames(folder: Path) -> None:
    prepared = store.load_prepared(folder / "prepared")
    for start in range(0, store.count_frames(prepared, FRAME_TIME) - 39, 40):
        store.read_frames(prepared, start, 40, FRAME_TIME, "voxel")


def time_plain_way(folder: Path, volumes: int) -> float:
    """Resample the first volumes and spline them over time; scale up to all volumes."""
    from nilearn.image import index_img, resample_img

    image = nibabel.Nifti1Image.from_filename(folder / "bold.nii.gz")
    few = index_img(image, slice(volumes))
    model, brain = model_grid(), template_brain()

    def resample_and_spline() -> None:
        series = resample_img(
            few,
            target_affine=model.affine,
            target_shape=model.shape,
            interpolation="continuous",
            copy_header=True,
            force_resample=True,
        ).get_fdata()[brain]
        seconds = np.arange(volumes) * TR
        frames = np.arange(0, seconds[-1], FRAME_TIME)
        CubicSpline(seconds, series, axis=1)(frames)

    return seconds_of(resample_and_spline) * float(image.shape[3]) / volumes


def largest_error(folder: Path) -> float:
    """Compare unrounded values with scipy's of order 3, in temporal deviations."""
    run, model = run_in(folder), model_grid()
    with open_series(run.bold, "bold") as series:
        placement = place_run(run, series.header.grid)
        stored = next(series.batches(0, [series.header.make_buffer()]))[0]
        source, _ = canonical(series.header.grid)
    volume = placement.view.apply(stored[np.newaxis])[0].astype(np.float32)
    values = np.empty((1, len(placement.nearest)), np.float32)
    placement.sampler.sample([volume], values)
    inverse = np.linalg.inv(source.affine)
    points = points_of(model)[placement.mask.ravel()]
    index = (points @ inverse[:3, :3].T + inverse[:3, 3]).T
    exact = map_coordinates(stored.T.astype(float), index, order=3, mode="constant")
    scale = np.load(folder / "prepared" / "scale.npy")
    return float((np.abs(values[0] - exact) / (scale * 127 / store.CLIP)).max())


if __name__ == "__main__":
    main()
