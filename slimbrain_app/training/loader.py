"""Masked windows of prepared runs, read by processes of their own.

A process that reads maps the files of a run into memory and touches only the volumes that a
window needs; windows come in the order asked for, whatever the number of processes.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slimbrain_app.errors import CallRefused, SlimBrainError
from slimbrain_app.model.batches import Batch, MaskedView, collate_views, find_places, measure_fill
from slimbrain_app.model.masking import draw_mask
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.model.tokens import TokenTable, build_table, gather_patches, keep_brain
from slimbrain_app.prepare.store import mask_image, read_frames
from slimbrain_app.records import Contract, PreparedRun
from slimbrain_app.settings import Hide
from slimbrain_app.training.corpus import Item
from slimbrain_app.training.samples import Sample

# Runs whose places and tables a process remembers: a few MB each.
_REMEMBERED = 16


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """What is the same for all windows of a run."""

    voxels: Tensor
    kept: Tensor
    fill: Tensor
    final: Tensor
    table: TokenTable


class Windows(Dataset[MaskedView]):
    """Reads one window at a time, masked.

    Parameters
    ----------
    items : sequence of Item
    contract : Contract
    sizes : EncoderSizes
    hide : Hide
    seed : int
        Of the training: with a sample's pass and number, all that its mask depends on.
    """

    def __init__(
        self,
        items: Sequence[Item],
        contract: Contract,
        sizes: EncoderSizes,
        hide: Hide,
        seed: int,
    ) -> None:
        # Every process that reads gets a copy: without what isn't read.
        self.runs = [
            replace(item.recording.prepared, displacement=None, checksums=(), notices=())
            for item in items
        ]
        self.contract = contract
        self.sizes = sizes
        self.hide = hide
        self.seed = seed
        self._remembered: OrderedDict[int, _Places] = OrderedDict()

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, sample: Sample) -> MaskedView:
        run, places = self.runs[sample.item], self._places_of(sample.item)
        frames = torch.from_numpy(_read_window(run, sample.start, self.contract))
        return MaskedView(
            patches=gather_patches(frames, places.voxels, places.table),
            kept=places.kept,
            fill=places.fill,
            mask=draw_mask(
                places.final,
                self.sizes.final_grid[0],
                self.hide,
                (self.seed, sample.pass_, sample.number),
                run.folder.name,
            ),
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_remembered": OrderedDict()}

    def _places_of(self, item: int) -> _Places:
        if item not in self._remembered:
            self._remembered[item] = _find_places(self.runs[item], self.sizes)
        self._remembered.move_to_end(item)
        if len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return self._remembered[item]


class Meter:
    """Tells how long whoever takes batches waited for them.

    Attributes
    ----------
    waited, seconds : float
        For batches, and in all since the first was asked for.
    windows : int
        Windows handed over.
    """

    def __init__(self) -> None:
        self.waited = 0.0
        self.windows = 0
        self._begun: float | None = None

    @property
    def seconds(self) -> float:
        return 0.0 if self._begun is None else time.perf_counter() - self._begun

    @property
    def share(self) -> float:
        """The share of the time that was spent waiting; 0 before the first batch."""
        return self.waited / self.seconds if self._begun is not None else 0.0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Hand batches on and measure."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            self._begun = asked if self._begun is None else self._begun
            batch = next(source, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            self.windows += batch.views
            yield batch


def make_loader(
    windows: Windows, batches: Sequence[Sequence[Sample]], workers: int, pin: bool
) -> Iterator[Batch]:
    """Read batches in the order given, some ahead of time.

    Parameters
    ----------
    windows : Windows
    batches : sequence of sequence of Sample
        To go on in the middle, give what is left.
    workers : int
        Processes that read; 0 to read in this one.
    pin : bool
        Put them into memory from which a GPU copies fast.

    Raises
    ------
    CallRefused
        ``loader-died`` if a process that reads was killed.
    RunRefused
        ``low-coverage`` from `draw_mask`.
    """
    options: dict[str, Any] = {"multiprocessing_context": _context()} if workers else {}
    loader = DataLoader(
        _Parcels(windows),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_hand_on,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        # One of its own, or it would take a number from the process' one at each start.
        generator=torch.Generator(),
        **options,
    )
    for parcel in _refuse_deaths(loader, workers):
        if isinstance(parcel, SlimBrainError):
            raise parcel
        yield parcel.open()


@dataclass(frozen=True, slots=True, eq=False)
class _Parcel:
    """A batch on its way between processes.

    Each tensor that is sent as such costs a file handle, of which a process may have a thousand:
    all but the patches go as bytes.
    """

    patches: Tensor
    rest: bytes

    @classmethod
    def of(cls, batch: Batch) -> _Parcel:
        empty = batch.patches.new_empty(0)
        return cls(batch.patches, pickle.dumps(replace(batch, patches=empty)))

    def open(self) -> Batch:
        rest: Batch = pickle.loads(self.rest)
        return replace(rest, patches=self.patches)

    def pin_memory(self) -> _Parcel:
        return _Parcel(self.patches.pin_memory(), self.rest)


class _Parcels(Dataset[_Parcel | SlimBrainError]):
    """Reads a batch at a time; a refusal is handed on, for torch would turn it into text."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __getitem__(self, samples: Sequence[Sample]) -> _Parcel | SlimBrainError:
        try:
            views = [self.windows[sample] for sample in samples]
        except SlimBrainError as error:
            return error
        return _Parcel.of(collate_views(views, self.windows.sizes))


def _hand_on(parcel: Any) -> Any:
    return parcel


def _read_window(run: PreparedRun, start: int, contract: Contract) -> NDArray[np.float32]:
    """Return (channels, frames, voxels)."""
    return np.stack(
        [
            read_frames(run, start, contract.frames, contract.frame_time, channel)
            for channel in contract.channels
        ]
    )


def _find_places(run: PreparedRun, sizes: EncoderSizes) -> _Places:
    mask = torch.from_numpy(mask_image(run))
    kept = keep_brain(mask, sizes)
    return _Places(
        voxels=torch.from_numpy(np.load(run.folder / "voxels.npy")),
        kept=kept,
        fill=measure_fill(mask, sizes),
        final=find_places(kept, sizes),
        table=build_table(kept, sizes),
    )


def _context() -> BaseContext:
    """Return a way to start processes that inherit no threads, and load torch once for all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _start_worker(_: int) -> None:
    # Signals reach every process of a job; only the one that trains decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _outlive)
    torch.set_num_threads(1)
    threadpool_limits(1)


def _outlive(number: int, _: object) -> None:
    """Take no notice of a job's first signal; the next one is from the process that trains."""
    signal.signal(number, signal.SIG_DFL)


def _refuse_deaths(loader: DataLoader[Any], workers: int) -> Iterator[Any]:
    handler = signal.getsignal(signal.SIGCHLD)
    parcels: Any = iter(loader)
    if workers and threading.current_thread() is threading.main_thread():
        # Torch would raise in the midst of whatever runs when a process dies; asking tells too.
        signal.signal(signal.SIGCHLD, handler)
    while True:
        try:
            parcel = next(parcels, None)
        except (RuntimeError, OSError, EOFError) as error:
            if not workers or all(process.exitcode is None for process in parcels._workers):
                raise
            raise _death(workers) from error
        if parcel is None:
            return
        yield parcel


def _death(workers: int) -> CallRefused:
    return CallRefused(
        "loader-died",
        expected=f"{workers} processes that read windows",
        found="one that was killed, most likely for want of memory or of shared memory",
        advice="ask for more memory, use fewer pace.workers or a smaller pace.at_once; in a "
        "container, allow more shared memory (docker run --shm-size 8g); the last checkpoint is "
        "intact",
    )
