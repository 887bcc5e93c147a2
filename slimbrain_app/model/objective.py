"""What a training loop sees of a way to train: a sum of losses, a count, and little more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from slimbrain_app.model.batches import Batch, Targets
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
    kinds : Tensor, shape (3,)
        Sum over views of the mean error of each kind, without gradient.
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
    """

    @property
    @abstractmethod
    def trained(self) -> Encoder:
        """The encoder to keep when the training is over."""

    @abstractmethod
    def forward(self, batch: Batch) -> Loss: ...

    def end_step(self, share: float) -> None:
        """Follow the optimiser's step; ``share`` of all steps is done."""


def compare(guesses: Tensor, truths: Tensor) -> Tensor:
    """Return the smooth L1 error (beta 1) of each row, its mean over the width."""
    return functional.smooth_l1_loss(guesses, truths, reduction="none").mean(1)
