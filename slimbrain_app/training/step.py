"""One step of a training: losses of micro-batches, their gradient, and one move of the weights.

How a step is split into micro-batches and over processes changes what it costs, and nothing else
but rounding: losses are sums over views, divided by the views of the whole step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from slimbrain_app.errors import CallRefused
from slimbrain_app.training.distributed import Processes, Replica, process_failed
from slimbrain_app.training.optimiser import list_parameters, set_rates
from slimbrain_app.training.schedule import Schedule
from slimbrain_app.training.state import TrainingState

# A scaler starts at 65,536 and halves where gradients overflow. Below 1 they are not finite at all.
_LEAST_SCALE = 1.0


class MicroBatch(Protocol):
    """What a process passes through the network at once."""

    def to(self, device: torch.device) -> Self: ...


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What one process does of a step.

    Attributes
    ----------
    pass_ : int
        To which pass over the data the step belongs.
    ends_pass : bool
    views : int
        Of the whole step, over all processes.
    batches : iterable of MicroBatch
        This process's; there may be none in an incomplete step.
    names : sequence of str
        Of the views in these batches, in their order.
    """

    pass_: int
    ends_pass: bool
    views: int
    batches: Iterable[MicroBatch]
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a training goes.

    Attributes
    ----------
    schedule : Schedule
    clip : float
        Highest norm of the whole gradient.
    precision : torch.dtype
        Of products; weights stay in float32.
    seed : int
        Of whatever a network draws in a step.
    checkpoint_minutes : float
        Between two checkpoints; one more is written after each pass.
    """

    schedule: Schedule
    clip: float
    precision: torch.dtype
    seed: int
    checkpoint_minutes: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A step that was made.

    Attributes
    ----------
    step, of, pass_ : int
        Steps are counted from 1.
    loss : float
        Mean over the views of the whole step, before the weights moved.
    kinds : tuple of float
        Likewise, of each of the objective's kinds.
    rate, gradient_norm : float
        Highest learning rate; norm of the whole gradient before clipping.
    skipped : bool
        In float16: the scaled gradient overflowed, so the weights did not move.
    seconds, loader_seconds : float
        Of the step, and how many of them this process waited for batches.
    views : int
        Over all processes.
    """

    step: int
    of: int
    pass_: int
    loss: float
    kinds: tuple[float, ...]
    rate: float
    gradient_norm: float
    skipped: bool
    seconds: float
    loader_seconds: float
    views: int


@dataclass(slots=True, eq=False)
class _Passed:
    """What a process has gathered in its passes of a step, and what stopped it."""

    kinds: Tensor
    losses: list[tuple[Tensor, int]] = field(default_factory=list)
    waited: float = 0.0
    failure: Exception | None = None

    @property
    def views(self) -> int:
        return sum(views for _, views in self.losses)

    def find_names(self, names: Sequence[str]) -> list[str]:
        """Return the names of views in micro-batches whose loss is not finite."""
        found: list[str] = []
        first = 0
        for total, views in self.losses:
            if not total.isfinite():
                found += names[first : first + views]
            first += views
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """What makes steps. `make_step` is the same call in all processes."""

    state: TrainingState
    plan: Plan
    processes: Processes
    replica: Replica

    def make_step(self, share: Share) -> Progress:
        """Pass over all micro-batches of all processes, then move the weights once.

        Raises
        ------
        CallRefused
            As `slimbrain_app.training.loop.train`.
        """
        started = time.monotonic()
        state, schedule = self.state, self.plan.schedule
        step = state.done + 1
        self._seed(step)
        state.objective.train()
        passed = self._pass_over(share)
        loss, kinds = self._compare(share, passed)
        self.replica.add_gradients()
        rate = set_rates(state.optimiser, schedule.share(step))
        norm, moved = self._move(share)
        state.objective.end_step(step / schedule.steps)
        state.done = step
        return Progress(
            step=step,
            of=schedule.steps,
            pass_=share.pass_,
            loss=loss,
            kinds=kinds,
            rate=rate,
            gradient_norm=norm,
            skipped=not moved,
            seconds=time.monotonic() - started,
            loader_seconds=passed.waited,
            views=share.views,
        )

    def _seed(self, step: int) -> None:
        """Make what the network draws in a step depend on nothing before it."""
        words = np.random.SeedSequence((self.plan.seed, step, self.processes.rank))
        torch.manual_seed(int(words.generate_state(1)[0]))

    def _pass_over(self, share: Share) -> _Passed:
        """Pass forward and back over this process's micro-batches, or as many as can be."""
        device, precision = self.processes.device, self.plan.precision
        passed = _Passed(kinds=torch.zeros(len(self.state.objective.kinds), device=device))
        try:
            for batch in _timed(share.batches, passed):
                with torch.autocast(device.type, precision, precision != torch.float32):
                    loss = self.replica.compute(batch.to(device))
                mean = self.state.scaler.scale(loss.total / share.views)
                torch.autograd.backward(mean)
                passed.kinds += loss.kinds
                passed.losses.append((loss.total.detach(), loss.views))
                self.state.observer.see(loss)
        # Raised in `_compare`, once the others know that they need not wait.
        except Exception as error:
            passed.failure = error
        return passed

    def _compare(self, share: Share, passed: _Passed) -> tuple[float, tuple[float, ...]]:
        """Return mean losses over the views of all processes; all raise if one has failed."""
        total = sum((total for total, _ in passed.losses), passed.kinds.new_zeros(()))
        counts = passed.kinds.new_tensor([passed.failure is not None, passed.views])
        sums = self.processes.sum(torch.cat([counts, total[None], passed.kinds]))
        failures, views, loss, *kinds = sums.tolist()
        if passed.failure is not None:
            raise _explain(passed.failure, self.processes.device)
        if failures:
            raise process_failed(f"an error in another one at step {self.state.done + 1}")
        if views != share.views:
            raise ValueError(f"{share.views} views announced for a step of {views:.0f}")
        if not math.isfinite(loss):
            raise self._diverged("a loss", passed.find_names(share.names))
        return loss / views, tuple(kind / views for kind in kinds)

    def _move(self, share: Share) -> tuple[float, bool]:
        """Move the weights; return the gradient's norm and whether they did move."""
        optimiser, scaler = self.state.optimiser, self.state.scaler
        scaler.unscale_(optimiser)
        parameters = list_parameters(optimiser)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.plan.clip))
        moves = math.isfinite(norm)
        if not moves and not (scaler.is_enabled() and scaler.get_scale() >= _LEAST_SCALE):
            raise self._diverged("a gradient", share.names)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        return norm, moves

    def _diverged(self, what: str, names: Sequence[str]) -> CallRefused:
        everywhere = ", ".join(filter(None, self.processes.gather(", ".join(names))))
        return CallRefused(
            "diverged",
            expected=f"finite losses and gradients at step {self.state.done + 1}",
            found=f"{what} that is not finite, in the batch of {everywhere}",
            advice="look at these runs; if they are sound, lower train.rate and begin anew, "
            "for the last checkpoint is just as it was",
        )


def _timed(batches: Iterable[MicroBatch], passed: _Passed) -> Iterator[MicroBatch]:
    """Yield batches and add up the time that is waited for them."""
    left = iter(batches)
    while True:
        asked = time.monotonic()
        batch = next(left, None)
        passed.waited += time.monotonic() - asked
        if batch is None:
            return
        yield batch


def _explain(error: Exception, device: torch.device) -> Exception:
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    refusal = CallRefused(
        "out-of-memory",
        expected=f"memory for a micro-batch on {device}",
        found=str(error).splitlines()[0],
        advice="set pace.at_once lower, or pace.recompute to true, and start again to go on",
    )
    refusal.__cause__ = error
    return refusal
