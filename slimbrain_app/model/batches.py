"""Masked views side by side: what an objective takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from slimbrain_app.model.masking import CONTEXT, KINDS, Mask
from slimbrain_app.model.predictor import Layout, lay_out
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.model.tokens import Level, TokenTable, build_table


@dataclass(frozen=True, slots=True, eq=False)
class MaskedView:
    """One view as a loader hands it on.

    Attributes
    ----------
    patches : Tensor, shape (tokens, values)
        Of all existing tokens, as `gather_patches` orders them.
    kept : Tensor, bool, shape (t, x, y, z) of the token grid
        Which tokens exist.
    fill : Tensor, shape (x, y, z) of the token grid
        The share of each token's voxels that is brain; see `measure_fill`.
    mask : Mask
    """

    patches: Tensor
    kept: Tensor
    fill: Tensor
    mask: Mask


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Cells to predict, view by view.

    Attributes
    ----------
    rows : Tensor, int64, shape (targets,)
        Where they lie among the final cells of the whole views.
    cells, views : Tensor, int64, shape (targets,)
        Flat index into the final grid, and view.
    kinds : Tensor, int64, shape (targets,)
        Place in `KINDS`.
    """

    rows: Tensor
    cells: Tensor
    views: Tensor
    kinds: Tensor

    def to(self, device: torch.device | str) -> Targets:
        return Targets(*(getattr(self, field.name).to(device) for field in fields(self)))

    def average(self, errors: Tensor, views: int) -> Tensor:
        """Return the mean error of each kind in each view, (views, kinds), given (targets,)."""
        groups = self.views * len(KINDS) + self.kinds
        sums = errors.new_zeros(views * len(KINDS)).index_add(0, groups, errors)
        counts = groups.bincount(minlength=len(sums))
        return (sums / counts).reshape(views, len(KINDS))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Masked views, their tokens one view's after another's.

    Attributes
    ----------
    patches : Tensor, shape (tokens, values)
    fill : Tensor, shape (tokens,)
        The share of each token's voxels that is brain.
    whole, context : TokenTable
        Of all existing tokens, and of those to be seen.
    seen : Tensor, int64, shape (context tokens,)
        Where these lie among all.
    targets : Targets
    layout : Layout
        Of context cells, given, and targets, asked.
    """

    patches: Tensor
    fill: Tensor
    whole: TokenTable
    context: TokenTable
    seen: Tensor
    targets: Targets
    layout: Layout

    @property
    def views(self) -> int:
        return len(self.whole.lengths)

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


def collate_views(views: Sequence[MaskedView], sizes: EncoderSizes) -> Batch:
    """Lay masked views side by side.

    Raises
    ------
    ValueError
        A mask with targets where the view has no token.
    """
    kept = torch.stack([view.kept for view in views])
    visible = torch.stack([view.mask.labels == CONTEXT for view in views])
    seen = kept & spread_cells(visible, sizes)
    whole, context = build_table(kept, sizes), build_table(seen, sizes)
    tokens, final = whole.levels[0], context.levels[-1]
    targets = _list_targets([view.mask for view in views], whole.levels[-1])
    fill = torch.stack([view.fill for view in views]).flatten(1)
    return Batch(
        patches=torch.cat([view.patches for view in views]),
        fill=fill[tokens.views, tokens.cells % fill.shape[1]],
        whole=whole,
        context=context,
        seen=seen.flatten(1)[tokens.views, tokens.cells].nonzero()[:, 0],
        targets=targets,
        layout=lay_out((final.cells, final.views), (targets.cells, targets.views)),
    )


def find_places(kept: Tensor, sizes: EncoderSizes) -> Tensor:
    """Return the places of the final grid where there is any token.

    Parameters
    ----------
    kept : Tensor, bool, shape (t, x, y, z) of the token grid
    sizes : EncoderSizes

    Returns
    -------
    Tensor, bool, shape (x, y, z) of the final grid
    """
    tokens = kept.any(0)[None, None].float()
    return functional.max_pool3d(tokens, sizes.cells[-1][1:])[0, 0] > 0


def measure_fill(mask: Tensor, sizes: EncoderSizes) -> Tensor:
    """Return which share of each token's voxels is brain.

    Parameters
    ----------
    mask : Tensor, bool, shape (x, y, z)
        Brain voxels.
    sizes : EncoderSizes

    Returns
    -------
    Tensor, shape (x, y, z) of the token grid
    """
    return functional.avg_pool3d(mask[None, None].float(), sizes.patch[1:])[0, 0]


def spread_cells(cells: Tensor, sizes: EncoderSizes) -> Tensor:
    """Give every token what its final cell has: (views, t, x, y, z) to that of the token grid."""
    for axis, size in enumerate(sizes.cells[-1], start=1):
        cells = cells.repeat_interleave(size, axis)
    return cells


def _list_targets(masks: Sequence[Mask], final: Level) -> Targets:
    labels = torch.stack([mask.labels.flatten() for mask in masks])
    rows = torch.full((labels.numel(),), -1)
    rows[final.views * labels.shape[1] + final.cells] = torch.arange(len(final.cells))
    views = torch.arange(len(masks)).repeat_interleave(
        torch.tensor([len(mask.targets) for mask in masks])
    )
    cells = torch.cat([mask.targets for mask in masks])
    targets = Targets(
        rows=rows[views * labels.shape[1] + cells],
        cells=cells,
        views=views,
        kinds=labels[views, cells] - CONTEXT - 1,
    )
    if bool((targets.rows < 0).any()):
        raise ValueError("a mask with targets where the view has no token")
    return targets
