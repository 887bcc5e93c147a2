"""How well an outcome is told at each site: the same answers, of the people of one site alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slimbrain_app.evaluation.comparison import Judgement
from slimbrain_app.evaluation.judging import Score, score_answers
from slimbrain_app.evaluation.metrics import list_metrics
from slimbrain_app.evaluation.outcomes import Integers, Outcome

# Of fewer, a score could be anything.
FEWEST_PEOPLE = 10
FEWEST_OF_CLASS = 3


def score_sites(
    judgement: Judgement, sites: Sequence[str | None], seed: int
) -> tuple[tuple[str | None, int, Score | None], ...]:
    """Return the people and the first score of each site; None is the site of those without one.

    Parameters
    ----------
    judgement : Judgement
    sites : sequence of str or None
        Of the people judged.
    seed : int
        Of the people drawn for the intervals.

    Returns
    -------
    tuple of (site, people, score)
        By name. No score where there are fewer than ten people, or fewer than three of a class.
    """
    names = sorted({site for site in sites if site is not None})
    told = []
    for name in [*names, *([None] if None in sites else [])]:
        rows = np.array([row for row, site in enumerate(sites) if site == name], int)
        told.append((name, len(rows), _score(judgement, rows, seed)))
    return tuple(told)


def _score(judgement: Judgement, rows: Integers, seed: int) -> Score | None:
    outcome = judgement.outcome
    if not _is_enough(outcome, rows):
        return None
    metric = list_metrics(outcome)[0]
    return score_answers(outcome.take(rows), judgement.answers.take(rows), metric, seed)


def _is_enough(outcome: Outcome, rows: Integers) -> bool:
    if len(rows) < FEWEST_PEOPLE:
        return False
    if outcome.kind == "number":
        return True
    own = outcome.values[rows]
    return all(np.count_nonzero(own == name) >= FEWEST_OF_CLASS for name in outcome.classes)
