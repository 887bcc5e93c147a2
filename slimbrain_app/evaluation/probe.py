"""Linear probes: what frozen features tell about people who were not in the fit, in one call."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.evaluation.features import Fixed
from slimbrain_app.evaluation.judging import Score, answer_left_out, compare_answers, score_answers
from slimbrain_app.evaluation.metrics import Metric, list_metrics
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.splits import cut_repeatedly


def probe_outcome(
    features: NDArray[np.floating],
    outcome: Outcome,
    *,
    metric: Metric | None = None,
    folds: int = 5,
    repeats: int = 5,
    seed: int = 0,
) -> Score:
    """Return how well features (people, width) tell an outcome of people left out.

    Where sites are known, whole sites are left out. The metric is the outcome's first one if None.

    Raises
    ------
    CallRefused
        ``too-few`` if there is but one value, person or site.
    """
    parts = cut_repeatedly(outcome, folds, repeats, seed)
    answers = answer_left_out(Fixed(features), outcome, parts, seed)
    return score_answers(outcome, answers, metric or list_metrics(outcome)[0], seed)


def compare_probes(
    first: NDArray[np.floating],
    second: NDArray[np.floating],
    outcome: Outcome,
    *,
    metric: Metric | None = None,
    folds: int = 5,
    repeats: int = 5,
    seed: int = 0,
) -> Score:
    """Return by how much ``second`` scores above ``first`` on the same people in the same folds.

    Raises
    ------
    CallRefused
        ``too-few``, as `probe_outcome`.
    """
    parts = cut_repeatedly(outcome, folds, repeats, seed)
    below, above = (
        answer_left_out(Fixed(features), outcome, parts, seed) for features in (first, second)
    )
    return compare_answers(outcome, below, above, metric or list_metrics(outcome)[0], seed)
