"""The device that computes: which one, whose turn it is, and what it says when memory is short."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimbrain_app.errors import CallRefused, RunRefused


def choose_device(name: str) -> str:
    """Return the device to compute on: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Parameters
    ----------
    name : str
        One of these, or ``auto`` for the fastest at hand.

    Raises
    ------
    CallRefused
        ``usage`` for another name; ``device-missing`` if the device is not there.
    """
    import torch

    at_hand = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if name == "auto":
        return next(kind for kind, count in at_hand.items() if count)
    kind, _, number = name.partition(":")
    if kind not in at_hand or not (number.isdecimal() or name == kind):
        raise CallRefused(
            "usage",
            expected="a device: auto, cpu, cuda, cuda:N or mps",
            found=name,
            advice="choose one of them",
        )
    if int(number or 0) >= at_hand[kind]:
        raise CallRefused(
            "device-missing",
            expected=f"the device {name}",
            found=f"{at_hand[kind]} of the kind {kind}",
            advice=(
                "in a container, pass the GPU on: apptainer run --nv or docker run --gpus all; "
                "else use --device cpu"
            ),
        )
    return name


@contextmanager
def hold_device(device: str, folder: Path | None = None) -> Iterator[None]:
    """Wait for a GPU's lock, and hold it while the block runs: one process computes at a time.

    Two that share a GPU get in one another's way, and each takes memory that it doesn't need. The
    lock is the kernel's and dies with the process. It holds for all calls on a machine that see
    the same folder for temporary files. A CPU is not locked.

    Parameters
    ----------
    device : str
        As `choose_device` returns it.
    folder : Path, optional
        Of the lock; that for temporary files if None.
    """
    if device == "cpu":
        yield
        return
    path = (folder or Path(tempfile.gettempdir())) / f"slimbrain-{_identify(device)}.lock"
    handle = _open_shared(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        _release_memory(device)
    finally:
        os.close(handle)


def _identify(device: str) -> str:
    """Return what names a GPU in every process, whichever of them each can see."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return kind
    import torch

    return str(torch.cuda.get_device_properties(int(number or 0)).uuid)


def _open_shared(path: Path) -> int:
    """Open a file that others may own: the kernel lets nobody create it anew where it is theirs."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)


def _release_memory(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


@contextmanager
def memory_refused(device: str) -> Iterator[None]:
    """Turn a device's want of memory into a refusal of the run, ``out-of-memory``."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunRefused(
            "out-of-memory",
            expected=f"memory for a batch of views on {device}",
            found=str(error).splitlines()[0],
            advice="free the device, or use a larger one or --device cpu",
        ) from error
