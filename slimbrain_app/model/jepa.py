"""Joint-embedding prediction: features of hidden cells from those of visible ones.

The idea is I-JEPA's (Assran and others 2023, arXiv 2301.08243), which SLIM-Brain (arXiv
2512.21881) takes to fMRI: the context encoder sees what is visible, the predictor guesses what a
target encoder makes of the hidden cells, and the target encoder follows the context encoder
slowly. Kinds of targets, their equal weight, and that changes are predicted are our choice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor, nn

from slimbrain_app.model.batches import Batch
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.masking import KINDS
from slimbrain_app.model.objective import Evidence, Loss, Objective, compare
from slimbrain_app.model.predictor import Predictor, PredictorSizes
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.model.tokens import Level


@dataclass(frozen=True, kw_only=True, slots=True)
class JepaSettings:
    """How an encoder is trained by joint-embedding prediction.

    Attributes
    ----------
    predictor : PredictorSizes
    weights : tuple of float
        Of the mean losses of the three kinds.
    first_momentum, last_momentum : float
        Of the target encoder, at the first and at the last step; a cosine between.
    decorrelation : float
        Weight of `correlate` of the context's features.
    """

    predictor: PredictorSizes
    weights: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    first_momentum: float = 0.996
    last_momentum: float = 1.0
    decorrelation: float = 0.0005

    def momentum(self, share: float) -> float:
        """Return the momentum when a share of all steps is done."""
        left = (1 + math.cos(math.pi * share)) / 2
        return self.last_momentum - (self.last_momentum - self.first_momentum) * left


# Beside deviations of features near 1, so that what never changes is 0 and not undefined.
_EPSILON, _TINY = 1e-4, 1e-7

_LARGE = JepaSettings(predictor=PredictorSizes(width=256, depth=6, heads=4))
JEPA: Mapping[str, JepaSettings] = MappingProxyType(
    {
        "tiny": JepaSettings(predictor=PredictorSizes(width=128, depth=2, heads=2)),
        "base": _LARGE,
        "official": _LARGE,
    }
)


class Jepa(Objective):
    """Context encoder, target encoder and predictor.

    Parameters
    ----------
    encoder : Encoder
        Becomes the context encoder; the target encoder starts as a copy of it.
    settings : JepaSettings
    seed : int
        Of the predictor's first weights.
    """

    kinds = KINDS

    def __init__(self, encoder: Encoder, settings: JepaSettings, seed: int = 0) -> None:
        super().__init__()
        width = encoder.sizes.embedding_width
        self.settings = settings
        self.context = encoder
        # Filters stay as they were drawn. What the norm's bias adds, changes lose again.
        for still in (*self.context.patch_embed.parameters(), self.context.encoder_norm.bias):
            still.requires_grad_(False)
        self.target = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.predictor = Predictor(settings.predictor, encoder.sizes.final_grid, width, width, seed)

    @property
    def trained(self) -> Encoder:
        """The target encoder: an average over steps, and what predictions aim at."""
        return self.target

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the target encoder, which stays in evaluation mode."""
        super().train(mode)
        self.target.eval()
        return self

    def forward(self, batch: Batch) -> Loss:
        context = self.context.map_cells(batch.patches[batch.seen], batch.context).float()
        given = standardise_changes(context, batch.context.levels[-1], self.context.sizes)
        guesses = self.predictor(given, batch.layout).float()
        cells, truths = self.encode_targets(batch)
        errors = batch.targets.average(compare(guesses, truths), batch.views)
        total = (errors * errors.new_tensor(self.settings.weights)).sum()
        if self.settings.decorrelation:
            views = torch.split(context, list(batch.context.lengths))
            total = total + self.settings.decorrelation * sum(map(correlate, views))
        return Loss(
            total=total,
            views=batch.views,
            kinds=errors.detach().sum(0),
            evidence=Evidence(cells, batch.whole.lengths, truths, guesses.detach(), batch.targets),
        )

    @torch.no_grad()
    def encode_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return all final cells of the target encoder, and the changes at those to predict."""
        cells = self.target.encode_cells(batch.patches, batch.whole)
        features = self.target.encoder_norm(cells).float()
        changes = standardise_changes(features, batch.whole.levels[-1], self.target.sizes)
        return cells, changes[batch.targets.rows]

    def end_step(self, share: float) -> None:
        self.update_target(self.settings.momentum(share))

    def update_target(self, momentum: float) -> None:
        """Let the target encoder follow: ``momentum`` of it stays."""
        follow(self.target, self.context, momentum)


def standardise_changes(features: Tensor, level: Level, sizes: EncoderSizes) -> Tensor:
    """Take each place's mean over the window off its features; then bring them to deviation 1.

    What is left is what changes. A place's own mean is mostly its anatomy and its position, alike
    in all people: with it in the targets, a predictor that reads no signal does as well as any,
    and both encoders may agree on a vector common to all cells. Deviations are those of each
    dimension within a view, so that nothing depends on what else is in a batch.

    Parameters
    ----------
    features : Tensor, shape (cells, width)
    level : Level
        Where the cells lie on the final grid.
    sizes : EncoderSizes
    """
    places = math.prod(sizes.final_grid[1:])
    own = level.views * places + level.cells % places
    changes = features - _average(features, own)[own]
    deviations = _average(changes.square(), level.views).sqrt()
    return changes / (deviations + _EPSILON)[level.views]


def correlate(features: Tensor) -> Tensor:
    """Return how much the features of one view have in common: 0 if no two correlate.

    The sum over the other dimensions of squared correlations, on average over dimensions. Without
    it all dimensions soon say the same few things, those that are easiest to predict: covariance
    as in VICReg (Bardes and others 2022, arXiv 2105.04906), but of correlations, which shrinking
    features does not lower.

    Parameters
    ----------
    features : Tensor, shape (cells, width)
    """
    centred = features - features.mean(0)
    scaled = centred / (centred.square().mean(0).sqrt() + _TINY)
    correlations = scaled.T @ scaled / len(scaled)
    squares = correlations.square()
    return (squares.sum() - squares.diagonal().sum()) / len(squares)


def _average(rows: Tensor, groups: Tensor) -> Tensor:
    """Return the mean over the rows of each group, (groups, width); 0 of none."""
    counts = groups.bincount()
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add(0, groups, rows)
    return sums / counts.clamp(min=1)[:, None]


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, momentum: float) -> None:
    """Move weights towards the leader's, which move fast; copy its buffers."""
    for own, other in zip(follower.parameters(), leader.parameters(), strict=True):
        own.lerp_(other, 1 - momentum)
    for kept, copied in zip(follower.buffers(), leader.buffers(), strict=True):
        kept.copy_(copied)
