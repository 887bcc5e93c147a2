"""Windows of a run -> embeddings.

On a CPU the result does not depend on what else is embedded, nor in which order or by how many
threads: each pass has the same shape and one thread of its own, because the rounding of a float32
product depends on both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.records import Contract, Embedding, Notice, PreparedRun, RankedRun
from slimbrain_app.settings import Encode

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from slimbrain_app.model.encoder import Encoder
    from slimbrain_app.model.packages import Package
    from slimbrain_app.model.readout import Readout
    from slimbrain_app.model.tokens import TokenTable

# Frames to either side of a window's start: half the stride between windows.
REACH = 10
# Views per pass: always so many, the last pass padded. On a CPU more would only cost memory.
BATCHES = {"cpu": 1, "cuda": 8, "mps": 4}
# Values of tokens, of all views that several threads embed at once: about 1 GB on their way.
_AT_ONCE = 12_000_000


NO_COVARIANCE = Notice(
    code="no-covariance",
    message="which places move together can't be told: there are too few windows, or a place that "
    "the model compares lies outside the brain mask",
)


@dataclass(frozen=True, slots=True)
class View:
    """One input of the encoder: its window's place among all, its first frame, its onset (s)."""

    window: int
    start: float
    onset: float


def embed_run(
    prepared: PreparedRun,
    ranked: RankedRun,
    package: Package,
    settings: Encode,
    device: str,
) -> Embedding:
    """Embed the selected windows of a run.

    Parameters
    ----------
    prepared : PreparedRun
    ranked : RankedRun
    package : Package
    settings : Encode
    device : str
        As `choose_device` returns it.

    Raises
    ------
    RunRefused
        ``out-of-memory`` on a GPU that is too small or too full.
    """
    from slimbrain_app.model.packages import load_encoder, load_readout
    from slimbrain_app.prepare.store import count_frames

    frames = count_frames(prepared, package.contract.frame_time)
    views = list_views(ranked, settings.views, frames, package.contract)
    encoder, readout = load_encoder(package, device), load_readout(package)
    direction = None if readout is None else readout.direction
    batches = encode_views(prepared, package.contract, encoder, views, device, direction)
    rows, signals = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return Embedding(
        views=rows,
        windows=tuple(view.window for view in views),
        onsets=tuple(view.onset for view in views),
        mean=rows.mean(axis=0, dtype=np.float64).astype(np.float32),
        device=device,
        covariance=None if readout is None else _compare_places(readout, signals, ranked),
    )


def _compare_places(
    readout: Readout, signals: NDArray[np.float32], ranked: RankedRun
) -> NDArray[np.float32] | None:
    """Return which places move together; None where a run has too few windows, or lacks a place."""
    from slimbrain_app.model.readout import FEWEST_WINDOWS, pool_covariance

    lacking = np.isnan(signals[..., readout.places]).any()
    if lacking or len(ranked.selected) < FEWEST_WINDOWS:
        return None
    return pool_covariance(readout, signals)


def list_views(
    ranked: RankedRun, per_window: int, frames: int, contract: Contract
) -> tuple[View, ...]:
    """Return the views of the selected windows, best window first, its views in time.

    One view per window is the window itself. More are spread evenly over half a stride to either
    side of its start, as far as that lies in the run.

    Parameters
    ----------
    ranked : RankedRun
    per_window : int
    frames : int
        Frames of the run at model time.
    contract : Contract
    """
    views = []
    for window in ranked.selected:
        place = ranked.windows.index(window)
        for start in _spread(window.start, per_window, frames - contract.frames):
            onset = window.onset + (start - window.start) * contract.frame_time
            views.append(View(place, start, onset))
    return tuple(views)


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


def _spread(start: int, count: int, last: int) -> list[float]:
    if count == 1:
        return [float(start)]
    starts = np.linspace(max(start - REACH, 0), min(start + REACH, last), count)
    return [float(start) for start in starts]


def embed_views(
    prepared: PreparedRun,
    contract: Contract,
    encoder: Encoder,
    views: tuple[View, ...],
    device: str,
) -> Iterator[NDArray[np.float32]]:
    """Yield embeddings batch by batch, (views, width), each computed in the same shape."""
    return (rows for rows, _ in encode_views(prepared, contract, encoder, views, device, None))


def encode_views(
    prepared: PreparedRun,
    contract: Contract,
    encoder: Encoder,
    views: tuple[View, ...],
    device: str,
    direction: NDArray[np.float32] | None,
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield embeddings and signals batch by batch, each computed in the same shape.

    Signals are (views, times, places) of the final grid, the product of each cell with a direction
    (width,); NaN where there is no cell, and everywhere without a direction.
    """
    import torch

    from slimbrain_app.model.tokens import build_table, gather_patches, keep_brain
    from slimbrain_app.prepare.parallel import map_in_order
    from slimbrain_app.prepare.store import mask_image

    size = BATCHES[device.partition(":")[0]]
    kept = keep_brain(torch.from_numpy(mask_image(prepared)), encoder.sizes)
    single = build_table(kept, encoder.sizes).to(device)
    table = build_table(kept.expand(size, *kept.shape), encoder.sizes).to(device)
    voxels = torch.from_numpy(np.load(prepared.folder / "voxels.npy")).to(device)

    def read(view: View) -> Tensor:
        frames = read_view(prepared, contract, view)
        return gather_patches(torch.from_numpy(frames).to(device), voxels, single)

    along = None if direction is None else torch.from_numpy(direction).to(device)

    def embed(batch: tuple[View, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        with torch.inference_mode(), memory_refused(device):
            patches = [read(view) for view in batch]
            missing = size - len(patches)
            cells = encoder.encode_cells(torch.cat(patches + patches[-1:] * missing), table)
            count = len(patches)
            rows: NDArray[np.float32] = encoder.pool_cells(cells, table)[:count].cpu().numpy()
            return rows, _take_signals(cells, table, along)[:count]

    batches = (views[first : first + size] for first in range(0, len(views), size))
    with single_threads() as threads:
        most = _AT_ONCE // (len(single.tokens) * encoder.sizes.width) if device == "cpu" else 1
        yield from map_in_order(embed, batches, max(1, min(threads, most)))


def _take_signals(
    cells: Tensor, table: TokenTable, direction: Tensor | None
) -> NDArray[np.float32]:
    """Return the signals of cells, (views, times, places)."""
    grid, final = table.sizes.final_grid, table.levels[-1]
    signals = cells.new_full((len(table.lengths), math.prod(grid)), math.nan)
    if direction is not None:
        signals[final.views, final.cells] = cells @ direction
    taken: NDArray[np.float32] = signals.reshape(len(signals), grid[0], -1).cpu().numpy()
    return taken


@contextmanager
def single_threads() -> Iterator[int]:
    """Yield how many threads may embed, each of which computes alone.

    A product by several threads may have other bits than one by one thread.
    """
    import torch

    from slimbrain_app.prepare.parallel import workers

    before = torch.get_num_threads()
    try:
        with workers() as threads:
            torch.set_num_threads(1)
            yield threads
    finally:
        torch.set_num_threads(before)


def read_view(prepared: PreparedRun, contract: Contract, view: View) -> NDArray[np.float32]:
    """Return what the encoder is given of a view, (channels, frames, voxels)."""
    from slimbrain_app.prepare.store import read_frames

    return np.stack(
        [
            read_frames(prepared, view.start, contract.frames, contract.frame_time, channel)
            for channel in contract.channels
        ]
    )


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
