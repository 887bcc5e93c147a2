"""Windows of prepared runs, read by processes of their own.

A process that reads maps the files of a run into memory and touches only the volumes that a
window needs; windows come in the order asked for, whatever the number of processes.
"""

from __future__ import annotations

import io
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from slimbrain_app.errors import CallRefused, SlimBrainError
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.training.windows import RawWindow, cut_patches

# Arrays in a parcel begin at multiples of it, in bytes.
_ALIGNED = 64


class Windows(Protocol):
    """What reads the windows of a batch; the batch comes without its patches."""

    sizes: EncoderSizes

    def gather(self, samples: Sequence[Any], /) -> tuple[Any, Sequence[RawWindow]]: ...


def make_loader(
    windows: Windows,
    batches: Iterable[Sequence[Any]],
    workers: int,
    device: torch.device | str = "cpu",
) -> Iterator[Any]:
    """Read batches in the order given, some ahead of time.

    Parameters
    ----------
    windows : Windows
    batches : iterable of sequence
        Of samples as ``windows`` knows them. To go on in the middle, give what is left.
    workers : int
        Processes that read; 0 to read in this one.
    device : torch.device or str
        Where batches are wanted. Patches are cut there: workers hand on volumes as stored, a
        fifth of the bytes. Memory shared between processes is dear, even among processors.

    Raises
    ------
    CallRefused
        ``loader-died`` if a process that reads was killed.
    RunRefused
        ``low-coverage`` from `draw_mask`.
    """
    device = torch.device(device)
    loader = DataLoader(
        Parcels(windows),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_hand_on,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        multiprocessing_context=_context() if workers else None,
        # One of its own, or it would take a number from the process' one at each start.
        generator=torch.Generator(),
    )
    for parcel in _refuse_deaths(loader, workers):
        if isinstance(parcel, SlimBrainError):
            raise parcel
        yield parcel.open(windows.sizes, device)


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """A batch on its way between processes: all but its patches, and windows still to be cut.

    Each tensor that torch sends costs a file handle, of which a process may have a thousand.
    Hence all arrays lie one after another in ``content``, after a pickle of what holds them;
    where each begins and ends is in ``spans``.
    """

    content: Tensor
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, batch: Any, windows: Sequence[RawWindow]) -> Parcel:
        head, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
        _Packer(head, protocol=5, buffer_callback=buffers.append).dump((batch, windows))
        parts = [np.frombuffer(head.getbuffer(), np.uint8)]
        parts += [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        *starts, size = accumulate((_align(len(part)) for part in parts), initial=0)
        content = _make_room(size)
        spans = tuple((at, at + len(part)) for at, part in zip(starts, parts, strict=True))
        for (first, last), part in zip(spans, parts, strict=True):
            content.numpy()[first:last] = part
        return cls(content, spans)

    def open(self, sizes: EncoderSizes, device: torch.device) -> Any:
        """Return the batch on its device, with patches."""
        content = self.content.numpy().data
        head, *buffers = (content[first:last] for first, last in self.spans)
        batch, windows = pickle.loads(head, buffers=buffers)
        return replace(batch.to(device), patches=cut_patches(windows, sizes, device))

    def pin_memory(self) -> Parcel:
        return Parcel(self.content.pin_memory(), self.spans)


class _Packer(pickle.Pickler):
    """Sees in a tensor the array that it is, so that its numbers aren't copied."""

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, Tensor):
            return torch.from_numpy, (thing.contiguous().numpy(),)
        return NotImplemented


class Parcels(Dataset[Parcel | SlimBrainError]):
    """Reads a batch at a time; a refusal is handed on, for torch would turn it into text."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __getitem__(self, samples: Sequence[Any]) -> Parcel | SlimBrainError:
        try:
            return Parcel.of(*self.windows.gather(samples))
        except SlimBrainError as error:
            return error


def _make_room(size: int) -> Tensor:
    """Return so many bytes, in a worker in memory that can be handed on without a copy."""
    if get_worker_info() is None:
        return torch.empty(size, dtype=torch.uint8)
    # As torch's own collation does it.
    new: Callable[[int], torch.UntypedStorage] = torch.UntypedStorage._new_shared
    return torch.empty(0, dtype=torch.uint8).set_(new(size))


def _align(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _hand_on(parcel: Any) -> Any:
    return parcel


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
    try:
        yield from parcels
    except (RuntimeError, OSError, EOFError) as error:
        # Its end of a pipe closes a moment before the process is known to be dead.
        if not workers or not wait([one.sentinel for one in parcels._workers], timeout=1):
            raise
        raise _death(workers) from error
    finally:
        if workers:
            # Not left to the collector, since an error's traceback would keep them alive.
            parcels._shutdown_workers()


def _death(workers: int) -> CallRefused:
    return CallRefused(
        "loader-died",
        expected=f"{workers} processes that read windows",
        found="one that was killed, most likely for want of memory or of shared memory",
        advice="ask for more memory, use fewer pace.workers or a smaller pace.at_once; in a "
        "container, allow more shared memory (docker run --shm-size 8g); the last checkpoint is "
        "intact",
    )
