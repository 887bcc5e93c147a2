"""All that changes in a training, and what goes along with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from slimbrain_app.model.objective import Loss, Objective


class Stateful(Protocol):
    """What has a state of plain values, lists, tables and tensors."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object: ...


class Observer(Stateful, Protocol):
    """What goes along with a training, in each of its processes, and into its checkpoints."""

    def see(self, loss: Loss) -> None:
        """Look at the loss of a micro-batch, its evidence included."""

    def end_pass(self, number: int) -> None:
        """Do what is done between passes. The checkpoint of a pass is written after it."""

    def wants_end(self) -> bool:
        """Say after each step, and before the first, whether the training has gone on enough."""


@dataclass(slots=True, eq=False)
class TrainingState:
    """All that changes in a training.

    ``done`` stands for much: random numbers of a step come from the seed, the step and the
    process; rates are a function of the step; so is the order of samples, the caller's to draw.

    Attributes
    ----------
    objective : Objective
        With all that follows the training slowly.
    optimiser : torch.optim.Optimizer
        Its groups' rates are peaks.
    scaler : torch.amp.GradScaler
    observer : Observer
    done : int
        Steps made.
    """

    objective: Objective
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    observer: Observer
    done: int = 0

    @property
    def parts(self) -> Mapping[str, Stateful]:
        """What fills a checkpoint, by name."""
        return {
            "objective": self.objective,
            "optimiser": self.optimiser,
            "scaler": self.scaler,
            "observer": self.observer,
        }
