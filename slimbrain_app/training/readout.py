"""The readout of a trained encoder: which signal of its cells is compared between places.

That is the direction, the same for all cells, that best tells the mean BOLD signal of a cell's own
cube. No label is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from slimbrain_app.device import memory_refused
from slimbrain_app.embedding import View, encode_views, read_view, single_threads
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.readout import FEWEST_WINDOWS, Readout, estimate_covariance
from slimbrain_app.model.tokens import TokenTable, build_table, gather_patches, keep_brain
from slimbrain_app.prepare.parallel import map_in_order
from slimbrain_app.prepare.store import mask_image
from slimbrain_app.records import Contract
from slimbrain_app.training.corpus import Item

# People to fit to: fewer tell nothing, more take time. A run of each, with so many windows.
FEWEST_PEOPLE, MOST_PEOPLE = 10, 120
_WINDOWS = 8
# Of a place's voxels, that are brain: else many people's masks would leave out some place entirely.
_LEAST_FILL = 1 / 16
# Of the ridge regression, in shares of a channel's mean variance.
_PENALTY = 1e-3

Floats = NDArray[np.float64]


def fit_readout(
    encoder: Encoder, items: Sequence[Item], contract: Contract, device: torch.device
) -> Readout | None:
    """Fit a readout to a run of each person that has windows enough.

    Returns
    -------
    Readout or None
        None with too few people, or where they have no two places in common.
    """
    runs = _choose_runs(items)
    places = _find_common(runs, encoder)
    if len(runs) < FEWEST_PEOPLE or len(places) < 2:
        return None
    encoder = encoder.to(device).eval()
    direction = _find_direction(encoder, runs, contract, places, device)
    signals = [
        np.concatenate(
            [
                own
                for _, own in encode_views(
                    item.recording.prepared,
                    contract,
                    encoder,
                    _list_views(item),
                    str(device),
                    direction,
                )
            ]
        )
        for item in runs
    ]
    mean = np.mean([np.mean(own, axis=0) for own in signals], axis=0)
    mean = np.where(np.isnan(mean), 0, mean).astype(np.float32)
    average = np.mean([estimate_covariance(mean, places, own) for own in signals], axis=0)
    values, vectors = np.linalg.eigh(average)
    return Readout(
        direction=direction,
        mean=mean,
        places=places,
        whitening=((vectors / np.sqrt(values)) @ vectors.T).astype(np.float32),
    )


def _choose_runs(items: Sequence[Item]) -> list[Item]:
    """Return a run of each person, of as many as there may be, spread over all."""
    firsts: dict[str, Item] = {}
    for item in items:
        if len(item.starts) >= FEWEST_WINDOWS:
            firsts.setdefault(item.recording.person, item)
    people = sorted(firsts)
    places = np.unique(np.linspace(0, len(people) - 1, MOST_PEOPLE).round().astype(int))
    return [firsts[people[place]] for place in places] if people else []


def _list_views(item: Item) -> tuple[View, ...]:
    return tuple(View(0, float(start), 0.0) for start in item.starts[:_WINDOWS])


def _find_common(runs: Sequence[Item], encoder: Encoder) -> NDArray[np.int64]:
    """Return the places of the final grid of which every run's brain fills enough."""
    sizes = encoder.sizes
    edges = [patch * cell for patch, cell in zip(sizes.patch, sizes.cells[-1], strict=True)][1:]
    common = torch.ones(sizes.final_grid[1:], dtype=torch.bool)
    for item in runs:
        mask = torch.from_numpy(mask_image(item.recording.prepared))
        common &= functional.avg_pool3d(mask[None, None].float(), edges)[0, 0] >= _LEAST_FILL
    return common.flatten().nonzero()[:, 0].numpy()


def _build_table(item: Item, encoder: Encoder) -> TokenTable:
    mask = torch.from_numpy(mask_image(item.recording.prepared))
    return build_table(keep_brain(mask, encoder.sizes), encoder.sizes)


def _find_direction(
    encoder: Encoder,
    runs: Sequence[Item],
    contract: Contract,
    places: NDArray[np.int64],
    device: torch.device,
) -> NDArray[np.float32]:
    """Return the ridge regression of a cube's mean signal on its cell's channels.

    Each place's mean over the run is taken off both, and from cells what position in the window
    gives on average: of ``n`` centred cells ``d`` and positions ``p``, the covariance without
    positions is that of ``d`` less that of ``p``, for ``p`` is the mean of ``d`` over runs.
    """
    products: Any = 0.0
    crossed: Any = 0.0
    cells: Any = 0.0
    cubes: Any = 0.0
    for item in runs:
        own, cube = (
            one[:, :, places] - one[:, :, places].mean((0, 1))
            for one in _read_cells(encoder, item, contract, device)
        )
        rows = own.reshape(-1, own.shape[-1])
        products = products + rows.T @ rows / len(rows)
        crossed = crossed + rows.T @ cube.reshape(-1) / len(rows)
        cells, cubes = cells + own.mean(0), cubes + cube.mean(0)
    count = len(runs)
    position = (cells / count).reshape(-1, encoder.sizes.embedding_width)
    covariance = products / count - position.T @ position / len(position)
    along = crossed / count - position.T @ (cubes / count).reshape(-1) / len(position)
    penalty = _PENALTY * np.trace(covariance) / len(covariance)
    solved = np.linalg.solve(covariance + penalty * np.eye(len(covariance)), along)
    return np.asarray(solved, np.float32)


def _read_cells(
    encoder: Encoder, item: Item, contract: Contract, device: torch.device
) -> tuple[Floats, Floats]:
    """Return final cells (views, times, places, width) and their cubes' mean signal (…, places).

    Zero where there is no cell.
    """
    table = _build_table(item, encoder)
    voxels = torch.from_numpy(np.load(item.recording.prepared.folder / "voxels.npy"))
    parents = _find_parents(table)
    ones = torch.ones(len(contract.channels), contract.frames, len(voxels))
    sizes = _sum_cells(gather_patches(ones, voxels, table).sum(1), parents)

    def read(view: View) -> tuple[Floats, Floats]:
        frames = torch.from_numpy(read_view(item.recording.prepared, contract, view))
        patches = gather_patches(frames, voxels, table)
        with torch.inference_mode(), memory_refused(str(device)):
            cells = encoder.encode_cells(patches.to(device), table.to(device)).cpu()
        cubes = _sum_cells(patches.sum(1), parents) / sizes
        return _place(cells, table), _place(cubes[:, None], table)[..., 0]

    with single_threads() as threads:
        read_out = map_in_order(
            read, iter(_list_views(item)), threads if device.type == "cpu" else 1
        )
        cells, cubes = zip(*read_out, strict=True)
    return np.stack(cells), np.stack(cubes)


def _find_parents(table: TokenTable) -> Tensor:
    """Return the final cell of each token."""
    parents = torch.arange(len(table.levels[-1].cells))
    for level in reversed(table.levels[1:]):
        parents = parents.repeat_interleave(level.children)
    return parents


def _sum_cells(values: Tensor, parents: Tensor) -> Tensor:
    """Sum values of tokens (tokens,) in each final cell."""
    return values.new_zeros(int(parents.max()) + 1).index_add_(0, parents, values)


def _place(values: Tensor, table: TokenTable) -> Floats:
    """Put values of final cells (cells, width) into their places, (times, places, width)."""
    times, *space = table.sizes.final_grid
    placed = np.zeros((times * int(np.prod(space)), values.shape[1]))
    placed[table.levels[-1].cells.numpy()] = values.numpy()
    return placed.reshape(times, -1, values.shape[1])
