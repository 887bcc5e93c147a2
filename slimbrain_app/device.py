"""The device that computes: which one, whose turn it is, and what it says when memory is short."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimbrain_app.errors import CallRefused, RunRefused

DRIVER = Path("/proc/driver/nvidia/version")
# The oldest driver for a build of CUDA, by their major versions: NVIDIA's CUDA Compatibility.
LEAST_DRIVERS = {11: 450, 12: 525, 13: 580}


def choose_device(name: str, driver_file: Path = DRIVER) -> str:
    """Return the device to compute on: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Parameters
    ----------
    name : str
        One of these, or ``auto`` for the fastest at hand.
    driver_file : Path
        Where NVIDIA's driver says its version.

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
        driver = read_driver(driver_file)
        cause, advice = find_hindrance(torch.version.cuda, driver) or (
            f"driver {driver}" if driver else "no driver of NVIDIA's",
            "in a container, pass the GPU on: apptainer run --nv or docker run --gpus all",
        )
        raise CallRefused(
            "device-missing",
            expected=f"the device {name}",
            found=f"{at_hand[kind]} of the kind {kind}; {describe_build()}, {cause}",
            advice=f"{advice}; else use --device cpu",
        )
    return name


def describe_build() -> str:
    """Return torch's version and what it was built for."""
    import torch

    cuda = torch.version.cuda
    return f"torch {torch.__version__} for " + (f"CUDA {cuda}" if cuda else "CPUs")


def find_hindrance(cuda: str | None, driver: str | None) -> tuple[str, str] | None:
    """Return why a build of torch can't use a driver, and what to do; None if it can."""
    if driver is None:
        return None
    if cuda is None:
        return "a driver for cards, but a torch for CPUs", "install torch's build for CUDA"
    least = LEAST_DRIVERS.get(int(cuda.partition(".")[0]), 0)
    if int(driver.partition(".")[0]) < least:
        found = f"driver {driver} is too old for CUDA {cuda}, which needs {least} or newer"
        return found, "have the driver updated, or install a torch for an older CUDA"
    return None


def read_driver(file: Path = DRIVER) -> str | None:
    """Return the version of NVIDIA's driver; None where there is no card."""
    try:
        version = re.search(r"Module .*?(\d+(\.\d+)+)", file.read_text())
    except OSError:
        return None
    return version[1] if version else None


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
