"""A narrow transformer on the final grid: features of some cells in, features of others out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from slimbrain_app.model.encoder import EPSILON, Block
from slimbrain_app.model.packing import Packing, pack_attention
from slimbrain_app.model.presets import Axes

# Periods of the positions' waves in cells. The grid has 6 and 10 cells along its axes: each of
# the waves tells cells apart, which the usual periods up to 10,000 would not.
PERIODS = (4.0, 40.0)

# Share of an MLP's first output that is left, so that it hardly disturbs what attention brings.
_MODEST = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorSizes:
    """Sizes of a predictor. The width is a multiple of 8, for sines and cosines of four axes."""

    width: Annotated[int, Gt(0)]
    depth: Annotated[int, Gt(0)]
    heads: Annotated[int, Gt(0)]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Given and asked cells of some views, and who attends to whom: all of a view to given ones.

    Asked cells come in as bare positions. These resemble each other more than they resemble any
    cell with features; were they to be attended to, attention would begin and long stay with cells
    that know nothing.

    Attributes
    ----------
    cells : Tensor, int64, shape (cells,)
        Flat indices into the final grid, given cells before asked ones.
    by_view : Tensor, int64, shape (cells,)
        The order that brings the cells of a view together.
    asked : Tensor, int64, shape (asked,)
        Where the asked cells then lie.
    packing : Packing
    """

    cells: Tensor
    by_view: Tensor
    asked: Tensor
    packing: Packing

    def to(self, device: torch.device | str) -> Layout:
        cells, by_view, asked = (part.to(device) for part in (self.cells, self.by_view, self.asked))
        return Layout(cells, by_view, asked, self.packing.to(device))


class Predictor(nn.Module):
    """Predict features of asked cells from given ones.

    Parameters
    ----------
    sizes : PredictorSizes
    grid : tuple of int
        The final grid.
    width_in, width_out : int
        Features of a given and of an asked cell.
    seed : int
        Of the first weights.
    """

    positions: Tensor

    def __init__(
        self, sizes: PredictorSizes, grid: Axes, width_in: int, width_out: int, seed: int = 0
    ) -> None:
        super().__init__()
        width = sizes.width
        self.register_buffer("positions", encode_cells(grid, width), persistent=False)
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        with torch.random.fork_rng(devices=()):  # Layers draw weights of their own, unasked.
            self.embed = nn.Linear(width_in, width)
            self.blocks = nn.ModuleList(
                Block(width, width, sizes.heads) for _ in range(sizes.depth)
            )
            self.norm = nn.LayerNorm(width, eps=EPSILON)
            self.project = nn.Linear(width, width_out)
        self._draw_weights(seed)

    def forward(self, given: Tensor, layout: Layout) -> Tensor:
        """Return (asked, width out), given (given, width in)."""
        asked = self.mask_token.expand(len(layout.asked), -1)
        tokens = torch.cat([self.embed(given), asked]) + self.positions[layout.cells]
        tokens = tokens[layout.by_view]
        for block in self.blocks:
            tokens = block(tokens, None, layout.packing)
        predicted: Tensor = self.project(self.norm(tokens[layout.asked]))
        return predicted

    def _draw_weights(self, seed: int) -> None:
        """Draw maps so that they keep the variance of what they are given; biases are 0.

        The encoder's fixed deviation of 0.02 suits widths near 1,000. At a width of 96 attention
        would start uniform, and take long to become anything else.
        """
        generator = torch.Generator().manual_seed(seed)
        nn.init.trunc_normal_(self.mask_token, std=0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                deviation = module.in_features**-0.5
                nn.init.normal_(module.weight, std=deviation, generator=generator)
                nn.init.zeros_(module.bias)
        self._start_as_mean(generator)

    @torch.no_grad()
    def _start_as_mean(self, generator: torch.Generator) -> None:
        """Let a guess begin as a mean of given cells, nearer ones weighing more: a place to start.

        Queries and keys are one map, so that attention falls with the distance of positions;
        values go through as they are, and features leave the way they came in.
        """
        for block in self.blocks:
            assert isinstance(block, Block)
            queries, keys, values = block.attn.qkv.weight.chunk(3)
            keys.copy_(queries)
            nn.init.eye_(values)
            nn.init.eye_(block.attn.proj.weight)
            block.mlp.fc2.weight.mul_(_MODEST)
        if self.embed.in_features == self.project.out_features:
            nn.init.orthogonal_(self.embed.weight, generator=generator)
            self.project.weight.copy_(self.embed.weight.T)
            self.embed.weight.mul_(math.sqrt(2))  # Beside positions, whose mean square is 1/2.


def lay_out(given: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor]) -> Layout:
    """Lay given and asked cells out for the predictor.

    Parameters
    ----------
    given, asked : tuple of two Tensors, int64, shape (cells,)
        Flat index into the final grid, and view, of each cell. No view is without given cells.
    """
    views = torch.cat([given[1], asked[1]])
    by_view = views.argsort(stable=True)
    per_view = views.bincount()
    return Layout(
        cells=torch.cat([given[0], asked[0]]),
        by_view=by_view,
        asked=by_view.argsort()[len(given[0]) :],
        packing=pack_attention(
            per_view, given[1].bincount(minlength=len(per_view)), among_queries=True
        ),
    )


def encode_cells(grid: Axes, width: int) -> Tensor:
    """Return sines and cosines of each cell's place along each axis: (cells, width).

    Every axis has a quarter of the width of its own, so positions are separable.
    """
    shortest, longest = PERIODS
    periods = shortest * (longest / shortest) ** torch.linspace(0, 1, width // 8)
    places = torch.unravel_index(torch.arange(math.prod(grid)), grid)
    angles = torch.stack(places, 1)[:, :, None] * (2 * torch.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], 2).flatten(1)
