"""Masked autoencoding: signal of hidden cells from features of visible ones.

The baseline that joint-embedding prediction must beat (He and others 2022, arXiv 2111.06377):
same encoder, same masks, same weights of the kinds of targets, and a decoder that predicts the
signal itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slimbrain_app.model.batches import Batch
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.masking import KINDS
from slimbrain_app.model.objective import Loss, Objective
from slimbrain_app.model.predictor import Predictor, PredictorSizes
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.model.tokens import reroll

# Added to variances (He and others), so that a cell of equal values is 0 and not undefined.
_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class MaeSettings:
    """How an encoder is trained by masked autoencoding; weights as of `JepaSettings`."""

    decoder: PredictorSizes = field(
        default_factory=lambda: PredictorSizes(width=256, depth=4, heads=4)
    )
    weights: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)


class Mae(Objective):
    """Encoder and decoder.

    Parameters
    ----------
    encoder : Encoder
    settings : MaeSettings
    seed : int
        Of the decoder's first weights.
    """

    kinds = KINDS

    def __init__(self, encoder: Encoder, settings: MaeSettings, seed: int = 0) -> None:
        super().__init__()
        sizes = encoder.sizes
        self.settings = settings
        self.encoder = encoder
        self.decoder = Predictor(
            settings.decoder,
            sizes.final_grid,
            sizes.embedding_width,
            math.prod(sizes.cells[-1]) * sizes.channels,
            seed,
        )

    @property
    def trained(self) -> Encoder:
        return self.encoder

    def forward(self, batch: Batch) -> Loss:
        context = self.encoder.map_cells(batch.patches[batch.seen], batch.context)
        guesses = self.decoder(context, batch.layout).float()
        truths, exist = find_signal(batch, self.encoder.sizes)
        errors = average_squares(guesses.reshape(truths.shape), truths, exist)
        kinds = batch.targets.average(errors, batch.views)
        return Loss(
            total=(kinds * kinds.new_tensor(self.settings.weights)).sum(),
            views=batch.views,
            kinds=kinds.detach().sum(0),
        )


def find_signal(batch: Batch, sizes: EncoderSizes) -> tuple[Tensor, Tensor]:
    """Return the signal of the cells to predict: one mean per patch, over its brain voxels.

    Returns
    -------
    signal : Tensor, shape (targets, channels, tokens per cell)
        Standardised in each cell and channel over the patches with brain; 0 elsewhere.
    exist : Tensor, bool, shape (targets, 1, tokens per cell)
        Patches with brain.
    """
    filled = batch.fill > 0
    # Background is 0 in a patch: its mean over all voxels is that over brain times the fill.
    means = batch.patches.float().reshape(len(filled), sizes.channels, -1).mean(2)
    means = torch.where(filled[:, None], means / batch.fill[:, None], 0)
    both = torch.cat([means, filled[:, None]], 1)
    in_cells = cut_cells(reroll(both, batch.whole, 0), sizes)
    signal = in_cells[batch.targets.views, batch.targets.cells]
    exist = signal[:, -1:] > 0
    return _standardise(signal[:, :-1], exist), exist


def cut_cells(tokens: Tensor, sizes: EncoderSizes) -> Tensor:
    """Cut token grids into final cells.

    Parameters
    ----------
    tokens : Tensor, shape (views, t, x, y, z, values) of the token grid
    sizes : EncoderSizes

    Returns
    -------
    Tensor, shape (views, cells, values, tokens per cell)
    """
    blocks = zip(sizes.final_grid, sizes.cells[-1], strict=True)
    split = tokens.reshape(len(tokens), *(size for block in blocks for size in block), -1)
    cells = split.permute(0, 1, 3, 5, 7, 9, 2, 4, 6, 8)
    return cells.reshape(len(tokens), math.prod(sizes.final_grid), -1, math.prod(sizes.cells[-1]))


def average_squares(guesses: Tensor, truths: Tensor, exist: Tensor) -> Tensor:
    """Return each target's mean squared error over what exists: (targets,)."""
    squares = (guesses - truths).square().mean(1, keepdim=True) * exist
    return squares.sum((1, 2)) / exist.sum((1, 2)).clamp(min=1)


def _standardise(signal: Tensor, exist: Tensor) -> Tensor:
    counts = exist.sum(2, keepdim=True).clamp(min=1)
    centred = (signal - signal.sum(2, keepdim=True) / counts) * exist
    variances = centred.square().sum(2, keepdim=True) / counts
    return centred / (variances + _EPSILON).sqrt()
