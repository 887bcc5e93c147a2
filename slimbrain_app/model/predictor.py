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
PERIODS = (4.0, 20.0)

# How a predictor starts. Attention falls with distance as steeply as neighbours' signals do;
# features are small beside positions, whose size is always the same, so that norms change neither
# how near a cell seems nor how strong it is; an MLP hardly disturbs what attention brings, nor does
# a later block; and a guess is a fraction of its neighbours' mean, which is no more than a hint.
_SHARPNESS, _QUIET, _MODEST, _CAUTION = 1.3, 0.2, 0.1, 0.3


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictorSizes:
    """Sizes of a predictor.

    The width is a multiple of 32, for sines and cosines of four axes fill a quarter of it.
    """

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
        positions = encode_cells(grid, width // 4)
        self.register_buffer("positions", positions, persistent=False)
        features = width - positions.shape[1]
        self.mask_token = nn.Parameter(torch.zeros(1, features))
        with torch.random.fork_rng(devices=()):  # Layers draw weights of their own, unasked.
            self.embed = nn.Linear(width_in, features)
            self.blocks = nn.ModuleList(
                Block(width, width, sizes.heads) for _ in range(sizes.depth)
            )
            self.norm = nn.LayerNorm(width, eps=EPSILON)
            self.project = nn.Linear(width, width_out)
        self._draw_weights(seed)

    def forward(self, given: Tensor, layout: Layout) -> Tensor:
        """Return (asked, width out), given (given, width in)."""
        asked = self.mask_token.expand(len(layout.asked), -1)
        tokens = torch.cat([self.embed(given), asked])
        tokens = torch.cat([tokens, self.positions[layout.cells]], dim=1)[layout.by_view]
        for block in self.blocks:
            tokens = block(tokens, None, layout.packing)
        predicted: Tensor = self.project(self.norm(tokens[layout.asked]))
        return predicted

    def _draw_weights(self, seed: int) -> None:
        """Draw maps so that they keep the variance of what they are given; biases are 0."""
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
        """Let a guess begin as a mean of given cells, the nearest weighing most.

        Queries and keys begin as positions, values as features, and features leave the way they
        came in. Drawn at random, all three would be mixtures of both: most of a guess would be a
        function of its position, and a training's first act would be to unlearn all of it.
        """
        features = self.embed.out_features
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            queries, keys, values = block.attn.qkv.weight.zero_().chunk(3)
            for head in (*queries.chunk(block.attn.heads), *keys.chunk(block.attn.heads)):
                nn.init.eye_(head[:, features:]).mul_(_SHARPNESS)
            nn.init.eye_(values[:features])
            nn.init.eye_(block.attn.proj.weight).mul_(_MODEST if number else 1)
            block.mlp.fc2.weight.mul_(_MODEST)
        self.project.weight[:, features:] = 0
        if self.embed.in_features == self.project.out_features:
            nn.init.orthogonal_(self.embed.weight, generator=generator)
            self.project.weight[:, :features] = self.embed.weight.T * _CAUTION
        self.embed.weight.mul_(_QUIET)


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
