"""Which final cells of a view are seen, and which are to be predicted from them.

Some times and some places are hidden. What is left on both sides is the *context*; the rest falls
into three kinds, after the cross-ROI, cross-time and double-cross of Brain-JEPA (Dong and others
2024, arXiv 2409.19407), here of voxels: the same place at another time, the same time at another
place, and neither. Whole final cells are hidden, the smallest blocks for which every cell of the
last stage is seen or unseen as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from torch import Tensor

from slimbrain_app.errors import RunRefused
from slimbrain_app.settings import Hide

Bools = NDArray[np.bool_]

BACKGROUND, CONTEXT = -1, 0
KINDS = ("cross-time", "cross-location", "double-cross")


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """What each final cell of a view is for.

    Attributes
    ----------
    labels : Tensor, int64, shape (t, x, y, z)
        `BACKGROUND`, `CONTEXT`, or 1 + the place of its kind in `KINDS`.
    targets : Tensor, int64, shape (targets,)
        Flat indices of the cells to predict, ascending.
    """

    labels: Tensor
    targets: Tensor


def draw_mask(
    brain: Tensor,
    times: int,
    settings: Hide,
    seed: tuple[int, int, int],
    file: object = None,
) -> Mask:
    """Draw a view's mask.

    Parameters
    ----------
    brain : Tensor, bool, shape (x, y, z)
        Places of the final grid that hold brain.
    times : int
        Of the final grid.
    settings : Hide
    seed : tuple of int
        Seed of the training, epoch, and number of the sample; so a mask depends neither on the
        process that draws it nor on what was drawn before.
    file : object
        The brain mask's name, for the refusal.

    Raises
    ------
    RunRefused
        ``low-coverage``: too few places to have some of each kind. Since both shares are met
        exactly, no other draw would do better.
    """
    places, shape = brain.numpy(), (times, *brain.shape)
    seen_times = round(times * settings.visible_times)
    seen_places = round(int(places.sum()) * settings.visible_places)
    if not (0 < seen_times < times and 0 < seen_places < places.sum()):
        raise RunRefused(
            "low-coverage",
            file=file,
            expected="a brain mask with cells to see and cells to predict, in time and in space",
            found=f"{places.sum()} places at {times} times, {seen_places} at {seen_times} to see",
            advice="leave the run out of the training or hide another share",
        )
    draw = np.random.default_rng(seed)
    hidden_times = _hide_times(times, times - seen_times, draw)
    hidden_places = _hide_places(places, int(places.sum()) - seen_places, settings, draw)
    labels = np.where(places, hidden_times[:, None, None, None] + 2 * hidden_places, BACKGROUND)
    targets = [_draw_evenly(labels == 1 + kind, settings.targets, draw) for kind in range(3)]
    return Mask(
        labels=torch.from_numpy(np.broadcast_to(labels, shape).astype(np.int64)),
        targets=torch.from_numpy(np.sort(np.concatenate(targets))),
    )


def _hide_times(times: int, count: int, draw: np.random.Generator) -> Bools:
    """Hide one or two runs of times, so many in all."""
    seen = times - count
    runs = draw.integers(1, min(2, count, seen + 1), endpoint=True)
    # Runs go between, before or after the visible times, so that they don't touch.
    slots = np.sort(draw.choice(seen + 1, runs, replace=False))
    cuts = np.sort(draw.choice(np.arange(1, count), runs - 1, replace=False))
    lengths = np.diff(cuts, prepend=0, append=count)
    return np.insert(np.zeros(seen, bool), np.repeat(slots, lengths), True)


def _hide_places(brain: Bools, count: int, settings: Hide, draw: np.random.Generator) -> Bools:
    """Hide cuboids, then add or give back places at their boundary until the count is met."""
    hidden = np.zeros_like(brain)
    for _ in range(settings.cuboids):
        if hidden.sum() < count:
            hidden |= brain & _draw_cuboid(brain & ~hidden, settings, draw)
    if hidden.sum() <= count:
        return _grow(hidden, brain, count, draw)
    return brain & ~_grow(brain & ~hidden, brain, int(brain.sum()) - count, draw)


def _draw_cuboid(places: Bools, settings: Hide, draw: np.random.Generator) -> Bools:
    """Draw a cuboid, cut off at the grid's border, around one of the places."""
    edges = draw.integers(settings.shortest_edge, settings.longest_edge, 3, endpoint=True)
    first = draw.choice(np.argwhere(places)) - draw.integers(edges)
    cuboid = np.zeros_like(places)
    cuboid[tuple(slice(max(at, 0), at + edge) for at, edge in zip(first, edges, strict=True))] = 1
    return cuboid


def _grow(region: Bools, room: Bools, count: int, draw: np.random.Generator) -> Bools:
    """Let a region grow within its room, layer by layer, until it has so many places."""
    while missing := count - int(region.sum()):
        free = room & ~region
        layer = free & binary_dilation(region)
        # A region that fills its part of the room, or is empty, goes on anywhere.
        chosen = np.flatnonzero(layer if layer.any() else free)
        region = region.copy()
        region.flat[draw.permutation(chosen)[:missing]] = True
    return region


def _draw_evenly(cells: Bools, count: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Draw so many cells, evenly spaced; each with the same chance, whatever the start."""
    chosen: NDArray[np.int64] = np.flatnonzero(cells)
    count = min(count, len(chosen))
    start = draw.integers(len(chosen))
    return chosen.take((np.arange(count) * len(chosen) + start) // count)
