"""Windows of a run -> embeddings.

On a CPU the result does not depend on what else is embedded, nor in which order or by how many
threads: each pass has the same shape and one thread of its own, because the rounding of a float32
product depends on both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slimbrain_app.device import hold_device, memory_refused
from slimbrain_app.errors import RunRefused
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

# Of a batch: embeddings (views, width), and signals (views, times, places).
Encoded = tuple["NDArray[np.float32]", "NDArray[np.float32]"]
NO_COVARIANCE = Notice(
    code="no-covariance",
    message="which places move together can't be told: there are too few windows, or a place that "
    "the model compares lies outside the brain mask",
)


def list_notices(embedding: Embedding, package: Package, device: str) -> tuple[Notice, ...]:
    """Say what of a run could not be had as it was asked for, on ``device``."""
    notices = []
    if embedding.device != device:
        message = f"{device} has no room for one view: the run was embedded on the CPU"
        notices.append(Notice(code="moved-to-cpu", message=message))
    if package.has_readout and embedding.covariance is None:
        notices.append(NO_COVARIANCE)
    return tuple(notices)


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
    *,
    or_cpu: bool = False,
) -> Embedding:
    """Embed the selected windows of a run.

    A GPU's lock is waited for, and held. Where the GPU is too small for a batch, half of it is
    tried, down to a single view.

    Parameters
    ----------
    prepared : PreparedRun
    ranked : RankedRun
    package : Package
    settings : Encode
    device : str
        As `choose_device` returns it.
    or_cpu : bool
        Whether to go on on the CPU where a GPU has no room for one view.

    Raises
    ------
    RunRefused
        ``out-of-memory`` on a GPU that is too small or too full.
    """
    try:
        with hold_device(device):
            return _embed_on(device, prepared, ranked, package, settings)
    except RunRefused as error:
        if not or_cpu or device == "cpu" or error.reason != "out-of-memory":
            raise
    return _embed_on("cpu", prepared, ranked, package, settings)


def _embed_on(
    device: str, prepared: PreparedRun, ranked: RankedRun, package: Package, settings: Encode
) -> Embedding:
    from slimbrain_app.model.packages import load_encoder, load_readout
    from slimbrain_app.prepare.store import count_frames

    frames = count_frames(prepared, package.contract.frame_time)
    views = list_views(ranked, settings.views, frames, package.contract)
    with memory_refused(device):
        encoder, readout = load_encoder(package, device), load_readout(package)
    direction = None if readout is None else readout.direction

    def encode(at_once: int) -> list[Encoded]:
        return list(
            encode_views(prepared, package.contract, encoder, views, device, direction, at_once)
        )

    batches = _halve(encode, BATCHES[device.partition(":")[0]])
    rows, signals = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return Embedding(
        views=rows,
        windows=tuple(view.window for view in views),
        onsets=tuple(view.onset for view in views),
        mean=rows.mean(axis=0, dtype=np.float64).astype(np.float32),
        device=device,
        covariance=None if readout is None else _compare_places(readout, signals, ranked),
    )


def _halve(encode: Callable[[int], list[Encoded]], at_once: int) -> list[Encoded]:
    """Encode as many views at once as there is memory for, all passes alike."""
    while True:
        try:
            return encode(at_once)
        except RunRefused as error:
            if error.reason != "out-of-memory" or at_once == 1:
                raise
        at_once //= 2


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
    at_once: int | None = None,
) -> Iterator[Encoded]:
    """Yield embeddings and signals batch by batch, each computed in the same shape.

    There are ``at_once`` views in a batch, or as many as the device's kind usually takes.

    Signals are (views, times, places) of the final grid, the product of each cell with a direction
    (width,); NaN where there is no cell, and everywhere without a direction.
    """
    import torch

    from slimbrain_app.model.tokens import build_table, gather_patches, keep_brain
    from slimbrain_app.prepare.parallel import map_in_order
    from slimbrain_app.prepare.store import mask_image

    size = at_once or BATCHES[device.partition(":")[0]]
    kept = keep_brain(torch.from_numpy(mask_image(prepared)), encoder.sizes)
    single = build_table(kept, encoder.sizes).to(device)
    table = build_table(kept.expand(size, *kept.shape), encoder.sizes).to(device)
    voxels = torch.from_numpy(np.load(prepared.folder / "voxels.npy")).to(device)

    def read(view: View) -> Tensor:
        frames = read_view(prepared, contract, view)
        return gather_patches(torch.from_numpy(frames).to(device), voxels, single)

    along = None if direction is None else torch.from_numpy(direction).to(device)

    def embed(batch: tuple[View, ...]) -> Encoded:
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
