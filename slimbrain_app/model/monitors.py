"""Whether a training by joint-embedding prediction still learns, or has collapsed.

A predictor and a target encoder that agree on a constant have no loss and know nothing. These
measures tell: how far and in how many directions target features spread, and whether predictions
are better than guesses which read no signal at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimbrain_app.model.objective import Evidence, compare

# Rows for an effective rank: more cost time and hardly change it.
_ROWS = 4096
# A spread this share of its first value, or a rank this share of the width, is a collapse.
_LEAST_SPREAD, _LEAST_RANK = 0.01, 0.05
# A guess that comes this close to a mean is no better: smooth L1 has its least not at the mean.
_NO_BETTER = 0.99
# The first spread is that of step 100, or after a tenth of all steps if these are few.
_SETTLED, _SETTLED_SHARE = 100, 0.1


@dataclass(frozen=True, slots=True, eq=False)
class PositionMeans:
    """Running mean of the targets at each final cell: what position alone tells.

    ``sums`` are (cells, width) and ``weights`` (cells,); both fade from step to step, since the
    target encoder moves.
    """

    sums: Tensor
    weights: Tensor

    def guess(self, cells: Tensor) -> Tensor:
        """Return the means at some cells; 0 at cells that were never a target."""
        return self.sums[cells] / self.weights[cells, None].clamp(min=torch.finfo().tiny)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """All monitors after so many steps.

    Attributes
    ----------
    step : int
    least_spread, median_spread : float
        (a) Over dimensions, of the deviation over cells and views.
    cell_rank, view_rank : float
        (b) Effective rank of cells and of views' means, at most the width.
    over_constant : float
        (c) Loss over that of the best constant guess.
    over_position : float
        (d) Loss over that of the mean target at each cell.
    kinds : tuple of float
        (e) Mean loss of each of `KINDS`.
    distance : float
        (f) Norm of the difference between the weights of both encoders.
    """

    step: int
    least_spread: float
    median_spread: float
    cell_rank: float
    view_rank: float
    over_constant: float
    over_position: float
    kinds: tuple[float, ...]
    distance: float


def start_means(cells: int, width: int, device: torch.device | str = "cpu") -> PositionMeans:
    """Return means over nothing yet."""
    return PositionMeans(
        torch.zeros(cells, width, device=device), torch.zeros(cells, device=device)
    )


def update_means(means: PositionMeans, evidence: Evidence, decay: float = 0.99) -> PositionMeans:
    """Take a step's targets into the means; what was before fades by ``decay``."""
    cells, truths = evidence.targets.cells, evidence.truths
    return PositionMeans(
        sums=(means.sums * decay).index_add(0, cells, truths),
        weights=means.weights * decay + cells.bincount(minlength=len(means.weights)),
    )


@torch.no_grad()
def measure(step: int, evidence: Evidence, means: PositionMeans, distance: float) -> Reading:
    """Take all monitors of a step.

    Parameters
    ----------
    step : int
    evidence : Evidence
    means : PositionMeans
        Of earlier steps, without this one, whose targets they are to guess.
    distance : float
        As `measure_distance` returns it.
    """
    cells = evidence.cells.float()
    views = torch.stack([view.mean(0) for view in torch.split(cells, list(evidence.lengths))])
    spread = cells.std(0)
    kinds = _kinds(evidence, evidence.guesses)
    constant = _kinds(evidence, evidence.truths.mean(0).expand_as(evidence.truths))
    position = _kinds(evidence, means.guess(evidence.targets.cells))
    return Reading(
        step=step,
        least_spread=float(spread.min()),
        median_spread=float(spread.median()),
        cell_rank=effective_rank(cells),
        view_rank=effective_rank(views),
        over_constant=float(kinds.mean() / constant.mean()),
        over_position=float(kinds.mean() / position.mean()),
        kinds=tuple(kinds.tolist()),
        distance=distance,
    )


def effective_rank(rows: Tensor) -> float:
    """Return exp of the entropy of the normalised singular values of centred rows.

    RankMe (Garrido and others 2023, arXiv 2210.02885), but centred: features that are all the
    same have rank 1. Of many rows, evenly spaced ones are taken.

    Parameters
    ----------
    rows : Tensor, shape (rows, width)
    """
    rows = rows[:: -(-len(rows) // _ROWS)].double()
    values = torch.linalg.svdvals(rows - rows.mean(0))
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


@torch.no_grad()
def measure_distance(one: nn.Module, other: nn.Module) -> float:
    """Return the norm of the difference between two modules' weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(torch.stack([(a - b).square().sum() for a, b in pairs]).sum().sqrt())


def find_alarms(readings: Sequence[Reading], width: int, warm_up: int, steps: int) -> list[str]:
    """Say what is wrong at the last reading, in sentences; nothing if all is well.

    Parameters
    ----------
    readings : sequence of Reading
        All so far.
    width : int
        Of the encoder's embedding.
    warm_up, steps : int
        Steps of the warm-up, and of the whole training.
    """
    last = readings[-1]
    settled = min(_SETTLED, int(steps * _SETTLED_SHARE))
    first = next((reading for reading in readings if reading.step >= settled), None)
    alarms = []
    if first and last.median_spread <= _LEAST_SPREAD * first.median_spread:
        alarms.append(
            f"Target features hardly spread any more: {last.median_spread:.2g}, "
            f"{first.median_spread:.2g} at step {first.step}."
        )
    if last.cell_rank < _LEAST_RANK * width:
        alarms.append(f"Target features lie in {last.cell_rank:.1f} directions of {width}.")
    if last.step > warm_up and last.over_constant >= _NO_BETTER:
        alarms.append(
            f"Predictions are no better than a constant: {last.over_constant:.3f} of its loss."
        )
    if last.step >= steps and last.over_position >= _NO_BETTER:
        alarms.append(
            "Predictions are no better than the mean target at each place: "
            f"{last.over_position:.3f} of its loss."
        )
    return alarms


def _kinds(evidence: Evidence, guesses: Tensor) -> Tensor:
    """Return each kind's mean error over views: (kinds,)."""
    errors = compare(guesses, evidence.truths)
    return evidence.targets.average(errors, len(evidence.lengths)).mean(0)
