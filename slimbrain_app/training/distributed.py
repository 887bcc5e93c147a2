"""Several processes that train together, as ``torchrun`` starts them; or one alone.

All run the same code. What they have to agree on goes through `Processes`; gradients go through
torch's DistributedDataParallel, in `Replica`.
"""

from __future__ import annotations

import gc
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# DistributedDataParallel would load it later, when functions in it take the process group for a
# default: its threads would then outlive it, and now and then abort the process at its very end.
import torch.distributed.nn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from slimbrain_app.device import choose_device
from slimbrain_app.errors import CallRefused
from slimbrain_app.model.objective import Loss, Objective

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# To find one another; nodes of a cluster do not start at the same time.
_MEETING = timedelta(minutes=5)
# Of a single exchange. Between passes the others wait while the first process validates.
_PATIENCE = timedelta(hours=6)
_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Processes:
    """One process among those that train together. Alone by default.

    Attributes
    ----------
    rank, size : int
        Which process this is, and how many there are.
    device : torch.device
        Where this one computes.
    store : torch.distributed.Store or None
        What they share besides tensors; None if alone.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: dist.Store | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor up over processes, in place; each has the same afterwards."""
        if self.size > 1:
            with _in_touch():
                dist.all_reduce(tensor)
        return tensor

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is true in any process. Waits for all of them."""
        if self.size == 1:
            return flags
        counts = self.sum(torch.tensor(flags, dtype=torch.int32, device=self.device))
        return tuple(count > 0 for count in counts.tolist())

    def gather(self, text: str) -> list[str]:
        """Return the text of each process, by rank."""
        texts: list[Any] = [text] * self.size
        if self.size > 1:
            with _in_touch():
                dist.all_gather_object(texts, text)
        return texts

    def run_first(self, name: str, work: Callable[[], None]) -> None:
        """Let the first process work while the others wait, for days if need be.

        Parameters
        ----------
        name : str
            Of the work; no two works of a call have the same.
        work : callable

        Raises
        ------
        CallRefused
            ``process-failed`` in the others if the first one fails; it raises its own error.
        """
        if self.store is None:
            work()
        elif self.first:
            with _told(self.store, name):
                work()
        elif _wait(self.store, name) != b"done":
            raise process_failed(f"an error in process 0 at: {name}")


@contextmanager
def join_processes(
    device: str, environment: Mapping[str, str] = os.environ, meeting: timedelta = _MEETING
) -> Iterator[Processes]:
    """Find the other processes that ``torchrun`` has started, if it has, and leave them at the end.

    They talk by gloo on processors and by nccl on GPUs, one GPU for each process of a node.

    Parameters
    ----------
    device : str
        As for `choose_device`; of ``cuda:N`` several processes only heed the kind.
    environment : mapping
    meeting : timedelta
        How long to wait for the others.

    Raises
    ------
    CallRefused
        ``rendezvous`` if the variables are not whole, the port is taken, or the others don't come;
        ``device-missing`` for a process without a GPU of its own.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        yield Processes(device=torch.device(choose_device(device)))
        return
    rank, size, local = _read_ranks(environment)
    own = _choose_own(device, local)
    store = _meet(rank, size, own, meeting)
    try:
        processes = Processes(rank, size, own, store)
        yield processes
        # Nobody leaves before the last is done: one of them may host the store.
        processes.any(False)
    except BaseException as error:
        _forget_frames(error)
        raise
    finally:
        gc.collect()
        dist.destroy_process_group()


class Replica:
    """An objective whose gradients are added up over processes when told to.

    `compute` leaves gradients to the process. `add_gradients` then adds up what has gathered, in
    a pass over no sample, so a process may have less to do in a step than another, or nothing, and
    can still take part when its samples failed. The price: gradients, 0.1 GB in the larger presets,
    travel after the computing of a step and not meanwhile.
    """

    def __init__(self, objective: Objective, processes: Processes) -> None:
        self.objective = objective
        self.size = processes.size
        self.shared = _share(objective) if processes.size > 1 else None

    def compute(self, batch: object) -> Loss:
        """Return the loss of a batch, whose backward pass adds to this process's gradients."""
        if self.shared is None:
            loss: Loss = self.objective(batch)
            return loss
        with self.shared.no_sync():
            loss = self.shared(batch)
        return loss

    def add_gradients(self) -> None:
        """Replace each process's gradients by their sum over processes."""
        if self.shared is not None:
            with _in_touch():
                torch.autograd.backward(self.shared(None).total)
            for parameter in self.objective.parameters():
                if parameter.grad is not None:
                    parameter.grad *= self.size  # DistributedDataParallel has taken the mean.


def _share(objective: Objective) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # Later releases of torch call it forward_sync_buffers, which earlier ones do not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # Buffers are equal already: what processes gather apart is summed when a step ends.
        return DistributedDataParallel(_Passes(objective), broadcast_buffers=False)


class _Passes(nn.Module):
    """Passes over a batch, or over none."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: object | None) -> Loss:
        loss: Loss = self.objective.lose_nothing() if batch is None else self.objective(batch)
        return loss


def _forget_frames(error: BaseException | None) -> None:
    """Let go what the frames of an error hold: a `Replica` must not outlive the process group.

    Else it would be the last to hold the group, and would wait for the group's threads with
    Python's lock in hand, while they may wait for that lock: for ever.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def process_failed(found: str) -> CallRefused:
    """Return the error of a process that stops because another one has failed."""
    return CallRefused(
        "process-failed",
        expected="all processes of the training at work",
        found=found,
        advice="see what that process says, mend it, and start again",
    )


@contextmanager
def _in_touch() -> Iterator[None]:
    """Refuse where the others can't be reached any more."""
    try:
        yield
    except RuntimeError as error:  # All that torch's ways to talk raise is one.
        raise process_failed(str(error).splitlines()[0]) from error


@contextmanager
def _told(store: dist.Store, name: str) -> Iterator[None]:
    """Tell the others how the block ended."""
    try:
        yield
    except BaseException:
        store.set(name, "failed")
        raise
    store.set(name, "done")


def _wait(store: dist.Store, name: str) -> bytes:
    # Asked again and again, so that signals are heeded and no time-out is met.
    with _in_touch():
        while not store.check([name]):
            time.sleep(_POLL_SECONDS)
        return bytes(store.get(name))


def _read_ranks(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Return this process's rank, the number of processes, and its rank within the node."""
    missing = [name for name in _VARIABLES if not environment.get(name)]
    numbers = [environment.get(name, "") for name in _VARIABLES[:3]]
    if missing or not all(number.isdecimal() for number in numbers):
        raise _not_met(
            f"whole numbers in {', '.join(_VARIABLES[:3])}, and an address and a port",
            f"without {', '.join(missing)}" if missing else ", ".join(numbers),
            "start with torchrun, or unset WORLD_SIZE to train alone",
        )
    rank, size, local = (int(number) for number in numbers)
    return rank, size, local


def _choose_own(device: str, local_rank: int) -> torch.device:
    kind = choose_device(device).partition(":")[0]
    if kind == "mps":
        raise CallRefused(
            "device-missing",
            expected="processors or CUDA devices for several processes",
            found="mps, which one process has for itself",
            advice="start without torchrun, or with --device cpu",
        )
    if kind == "cpu":
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise CallRefused(
            "device-missing",
            expected=f"a GPU of its own for process {local_rank} of this node",
            found=f"{torch.cuda.device_count()}",
            advice="start torchrun with --nproc-per-node as many as there are GPUs",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _meet(rank: int, size: int, device: torch.device, meeting: timedelta) -> dist.Store:
    """Start the process group, and return the store through which it has met."""
    on_gpu = device.type == "cuda"
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=meeting))
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=_PATIENCE,
            device_id=device if on_gpu else None,
        )
    except (RuntimeError, ValueError) as error:  # All that torch raises here is one of them.
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        taken = "EADDRINUSE" in str(error)
        raise _not_met(
            f"{size} processes that meet at {place}",
            f"the port in use: {place}" if taken else str(error).splitlines()[0],
            "choose another port with torchrun's --master-port"
            if taken
            else "check that all processes run and that the first node can be reached there",
        ) from error
    return dist.PrefixStore("first", store)


def _not_met(expected: str, found: str, advice: str) -> CallRefused:
    return CallRefused("rendezvous", expected=expected, found=found, advice=advice)
