"""What a training loop sees of a way to train: a sum of losses, a count, and little more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slimbrain_app.model.batches import Targets
from slimbrain_app.model.encoder import Encoder


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the monitors judge, without gradients.

    Attributes
    ----------
    cells : Tensor, shape (cells, width)
        Final cells of the target encoder before any norm, view by view.
    lengths : tuple of int
        Cells of each view.
    truths, guesses : Tensor, shape (targets, width)
        Normalised targets, and what was predicted.
    targets : Targets
    """

    cells: Tensor
    lengths: tuple[int, ...]
    truths: Tensor
    guesses: Tensor
    targets: Targets


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """Losses of a batch as a sum, so that neither its size nor its split changes a step.

    Attributes
    ----------
    total : Tensor, scalar
        Sum over views; divide by the views of the whole step before going backwards.
    views : int
        Samples: windows, or people in fine-tuning.
    kinds : Tensor, shape (kinds,)
        Sum over views of the mean error of each of the objective's kinds, without gradient.
    evidence : Evidence or None
        For the monitors, where the objective can collapse.
    """

    total: Tensor
    views: int
    kinds: Tensor
    evidence: Evidence | None = None


class Objective(nn.Module, ABC):
    """A way to train an encoder: batch in, `Loss` out.

    What has ``requires_grad`` is for the optimiser.

    Attributes
    ----------
    kinds : tuple of str
        Names of the kinds of errors that make up the loss.
    """

    kinds: tuple[str, ...] = ()

    @property
    @abstractmethod
    def trained(self) -> Encoder:
        """The encoder to keep when the training is over."""

    @abstractmethod
    def forward(self, batch: Any) -> Loss: ...

    def lose_nothing(self) -> Loss:
        """Return the loss of no view: 0, with a gradient of 0 for every trainable parameter."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        total = torch.stack([parameter.sum() for parameter in trainable]).sum() * 0
        return Loss(total=total, views=0, kinds=total.new_zeros(len(self.kinds)))

    def end_step(self, share: float) -> None:
        """Follow the optimiser's step; ``share`` of all steps is done."""

    def recompute(self, wanted: bool) -> None:
        """Compute activations of encoders again on the way back, instead of keeping them."""
        for module in self.modules():
            if isinstance(module, Encoder):
                module.checkpointing = wanted


def compare(guesses: Tensor, truths: Tensor) -> Tensor:
    """Return the smooth L1 error (beta 1) of each row, its mean over the width."""
    return functional.smooth_l1_loss(guesses, truths, reduction="none").mean(1)
