"""Joint-embedding prediction: features of hidden cells from those of visible ones.

The idea is I-JEPA's (Assran and others 2023, arXiv 2301.08243), which SLIM-Brain (arXiv
2512.21881) takes to fMRI: the context encoder sees what is visible, the predictor guesses what a
target encoder makes of the hidden cells, and the target encoder follows the context encoder
slowly. Kinds of targets, their equal weight and the centre are our choice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from slimbrain_app.model.batches import Batch
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.masking import KINDS
from slimbrain_app.model.objective import Evidence, Loss, Objective, compare
from slimbrain_app.model.predictor import Predictor, PredictorSizes


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
    """

    predictor: PredictorSizes
    weights: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    first_momentum: float = 0.996
    last_momentum: float = 1.0

    def momentum(self, share: float) -> float:
        """Return the momentum when a share of all steps is done."""
        left = (1 + math.cos(math.pi * share)) / 2
        return self.last_momentum - (self.last_momentum - self.first_momentum) * left


# Share of the centre that stays from step to step, as in DINO (Caron and others 2021, arXiv
# 2104.14294). Without a centre both encoders agree on a vector common to all cells within a
# hundred steps, normalised targets hardly differ any more, and the loss is next to nothing.
_CENTRE_MOMENTUM = 0.9

_LARGE = JepaSettings(predictor=PredictorSizes(width=256, depth=6, heads=4))
JEPA: Mapping[str, JepaSettings] = MappingProxyType(
    {
        "tiny": JepaSettings(predictor=PredictorSizes(width=96, depth=2, heads=2)),
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

    Attributes
    ----------
    centre : Tensor, shape (width,)
        Running mean of the targets over the steps of a training. It moves when a step ends, by the
        mean of all targets of the step, so that it does not matter how a step is split.
    """

    kinds: ClassVar[tuple[str, ...]] = KINDS
    centre: Tensor
    target_sum: Tensor
    target_count: Tensor

    def __init__(self, encoder: Encoder, settings: JepaSettings, seed: int = 0) -> None:
        super().__init__()
        width = encoder.sizes.embedding_width
        self.settings = settings
        self.context = encoder
        self.target = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.register_buffer("centre", torch.zeros(width))
        # Of the step under way; 0 between steps, when checkpoints are written.
        self.register_buffer("target_sum", torch.zeros(width), persistent=False)
        self.register_buffer("target_count", torch.zeros(()), persistent=False)
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
        context = self.context.map_cells(batch.patches[batch.seen], batch.context)
        guesses = self.predictor(context, batch.layout).float()
        cells, targets = self.encode_targets(batch)
        if self.training:
            self.target_sum += targets.sum(0)
            self.target_count += len(targets)
        truths = functional.layer_norm(targets - self.centre, self.centre.shape)
        errors = batch.targets.average(compare(guesses, truths), batch.views)
        return Loss(
            total=(errors * errors.new_tensor(self.settings.weights)).sum(),
            views=batch.views,
            kinds=errors.detach().sum(0),
            evidence=Evidence(cells, batch.whole.lengths, truths, guesses.detach(), batch.targets),
        )

    @torch.no_grad()
    def encode_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return all final cells of the target encoder, and the targets among them, normed."""
        cells = self.target.encode_cells(batch.patches, batch.whole)
        return cells, self.target.encoder_norm(cells[batch.targets.rows]).float()

    def list_sums(self) -> list[Tensor]:
        return [self.target_sum, self.target_count]

    def end_step(self, share: float) -> None:
        self._move_centre()
        self.update_target(self.settings.momentum(share))

    def update_target(self, momentum: float) -> None:
        """Let the target encoder follow: ``momentum`` of it stays."""
        follow(self.target, self.context, momentum)

    def _move_centre(self) -> None:
        mean = self.target_sum / self.target_count.clamp(min=1)
        self.centre.lerp_(mean, (1 - _CENTRE_MOMENTUM) * (self.target_count > 0))
        self.target_sum.zero_()
        self.target_count.zero_()


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, momentum: float) -> None:
    """Move weights towards the leader's, which move fast; copy its buffers."""
    for own, other in zip(follower.parameters(), leader.parameters(), strict=True):
        own.lerp_(other, 1 - momentum)
    for kept, copied in zip(follower.buffers(), leader.buffers(), strict=True):
        kept.copy_(copied)
