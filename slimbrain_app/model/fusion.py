"""Features of several stages on the final grid, for what wants detail at every place.

Hiera (arXiv 2306.00989) fuses its stages so for masked autoencoding: each stage that is pooled
goes through one linear map over all of a final cell's tokens, and the results are added to the
last stage. Here tokens may be missing; they add nothing. It is no part of the embedding, nor of
the encoder's parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from slimbrain_app.model.encoder import draw_weights
from slimbrain_app.model.presets import Axes, EncoderSizes, divide
from slimbrain_app.model.tokens import TokenTable


class Fusion(nn.Module):
    """Add the stages of an encoder of these sizes, cell by cell of the final grid."""

    def __init__(self, sizes: EncoderSizes, seed: int = 0) -> None:
        super().__init__()
        self.sizes = sizes
        with torch.random.fork_rng(devices=()):  # Layers draw weights of their own, unasked.
            self.maps = nn.ModuleList(
                nn.Linear(
                    math.prod(_count_within(sizes, stage)) * (sizes.width << stage),
                    sizes.embedding_width,
                )
                for stage in range(len(sizes.strides))
            )
        draw_weights(self, seed)

    def forward(self, stages: tuple[Tensor, ...], table: TokenTable) -> Tensor:
        """Return fused features of the final cells, (cells, embedding width).

        Parameters
        ----------
        stages : tuple of Tensor
            As `Encoder.encode_stages` returns them.
        table : TokenTable
        """
        fused = stages[-1]
        for level, mapping in enumerate(self.maps):
            fused = fused + mapping(self._gather(stages[level], table, level))
        return fused

    def _gather(self, tokens: Tensor, table: TokenTable, level: int) -> Tensor:
        """Lay tokens side by side, final cell by final cell; zeros where none exist."""
        rows = _find_final(table, level)
        places = _number_places(self.sizes, level, table.levels[level].cells)
        size = math.prod(_count_within(self.sizes, level))
        cells = tokens.new_zeros(len(table.levels[-1].cells), size, tokens.shape[1])
        return cells.index_put((rows, places), tokens).flatten(1)


def _count_within(sizes: EncoderSizes, level: int) -> Axes:
    """Return how many cells of a level a final cell has along each axis."""
    return divide(sizes.cells[-1], sizes.cells[level])


def _find_final(table: TokenTable, level: int) -> Tensor:
    """Return the row of the final cell that each cell of a level lies in."""
    rows = torch.arange(len(table.levels[-1].cells), device=table.tokens.device)
    for above in reversed(table.levels[level + 1 :]):
        rows = rows.repeat_interleave(above.children)
    return rows


def _number_places(sizes: EncoderSizes, level: int, cells: Tensor) -> Tensor:
    """Return each cell's place within its final cell, t, x, y, z in C order."""
    axes = torch.unravel_index(cells, divide(sizes.grid, sizes.cells[level]))
    places = torch.zeros_like(cells)
    for axis, size in zip(axes, _count_within(sizes, level), strict=True):
        places = places * size + axis % size
    return places
