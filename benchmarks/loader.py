"""How fast windows are read for a training.

Writes a prepared run with the template's brain and reads windows of it from a warm cache: in this
process on one thread, where processor time tells what one worker can do whoever else is at work,
and through worker processes, in seconds. The goal is 500 model volumes per second and worker.

To read is the worker's part: the volumes of a window, its mask, and the tables of a batch. To cut
is the part of whoever trains, here a CPU. ``one run`` reads windows of one run over and over; in
``other runs`` each window is of a run that the process has not seen lately, as with thousands.

::

    python benchmarks/loader.py
    python benchmarks/loader.py --presets tiny --trs 2.0 --workers 1 2
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from slimbrain_app.model.presets import CONTRACTS, PRESETS
from slimbrain_app.prepare.grid import template_brain
from slimbrain_app.prepare.store import count_frames
from slimbrain_app.records import PreparedRun, Recording
from slimbrain_app.settings import Hide
from slimbrain_app.training.corpus import Item
from slimbrain_app.training.loader import Parcel, Parcels, make_loader
from slimbrain_app.training.samples import Sample
from slimbrain_app.training.windows import Windows

MANY = 40


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=["tiny", "base"])
    parser.add_argument("--trs", nargs="+", type=float, default=[2.0, 0.8], help="in s")
    parser.add_argument("--volumes", type=int, default=300)
    parser.add_argument("--at-once", type=int, default=4, help="windows per batch")
    parser.add_argument("--batches", type=int, default=6, help="after one to warm up")
    parser.add_argument("--workers", nargs="*", type=int, default=[1])
    options = parser.parse_args()
    for tr in options.trs:
        with tempfile.TemporaryDirectory() as folder:
            prepared = write_run(Path(folder), options.volumes, tr)
            for preset in options.presets:
                print(f"\n{preset}, {options.volumes} volumes of {tr:g} s")
                report(prepared, preset, options)


def write_run(folder: Path, volumes: int, tr: float) -> PreparedRun:
    random = np.random.default_rng(0)
    voxels = np.flatnonzero(template_brain()).astype(np.int32)
    levels = random.integers(-90, 90, (volumes, len(voxels)), np.int8, endpoint=True)
    np.save(folder / "signal.npy", levels)
    np.save(folder / "voxels.npy", voxels)
    np.save(folder / "scale.npy", np.full(len(voxels), 3, np.float32))
    np.save(folder / "mean.npy", random.normal(10_000, 1_500, len(voxels)).astype(np.float32))
    return PreparedRun(
        folder=folder,
        volumes=volumes,
        voxels=len(voxels),
        tr=tr,
        dummy_scans=0,
        coverage=1.0,
        mean=10_000.0,
        deviation=1_500.0,
        constant_voxels=0,
        clipped_values=0,
        replaced_values=0,
        displacement=None,
        checksums=(),
        fingerprint="",
        notices=(),
    )


def report(prepared: PreparedRun, preset: str, options: argparse.Namespace) -> None:
    contract, sizes = CONTRACTS[preset], PRESETS[preset]
    recording = Recording(dataset="made", participant="01", run="run", prepared=prepared)
    last = count_frames(prepared, contract.frame_time) - contract.frames
    items = [Item(recording, tuple(range(0, last, 20)))] * MANY
    windows = Windows(items, contract, sizes, Hide(), seed=0)
    parcels = Parcels(windows)
    for name, count in (("one run", 1), ("other runs", MANY)):
        batches = list_batches(items[:count], options.batches + 1, options.at_once)
        speed = options.at_once / seconds_of(parcels.__getitem__, batches)
        print(f"  read, {name:10}  {tell(speed * contract.frames)} per processor second")
    parcel = parcels[batches[0]]
    assert isinstance(parcel, Parcel)
    cpu = torch.device("cpu")
    speed = options.at_once / seconds_of(lambda _: parcel.open(sizes, cpu), batches)
    print(f"  cut               {tell(speed * contract.frames)} per processor second")
    print(
        f"  on the way        {parcel.content.numel() / 2**20 / options.at_once:7.1f} MiB a window"
    )
    for workers in options.workers:
        speed = time_loader(windows, batches, workers)
        print(
            f"  {workers} worker(s)       {tell(speed * contract.frames)} per second, cut as well"
        )


def list_batches(items: Sequence[Item], count: int, at_once: int) -> list[list[Sample]]:
    samples = (
        Sample(number % len(items), items[0].starts[number % len(items[0].starts)], 1, number)
        for number in range(count * at_once)
    )
    return [[next(samples) for _ in range(at_once)] for _ in range(count)]


def seconds_of(work: Callable[[list[Sample]], object], batches: Sequence[list[Sample]]) -> float:
    """Return this process' processor time per batch, on one thread, after one to warm up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        work(batches[0])
        begun = time.process_time()
        for batch in batches[1:]:
            work(batch)
        spent = time.process_time() - begun
    torch.set_num_threads(threads)
    return spent / len(batches[1:])


def time_loader(windows: Windows, batches: Sequence[Sequence[Sample]], workers: int) -> float:
    """Return windows per second for somebody who does nothing but take them."""
    source = make_loader(windows, batches, workers)
    next(source)
    begun = time.perf_counter()
    taken: int = sum(batch.views for batch in source)
    return taken / (time.perf_counter() - begun)


def tell(volumes: float) -> str:
    return f"{volumes:7.0f} model volumes"


if __name__ == "__main__":
    main()
