"""Who is fitted to and who is judged: folds that split no person, family or site.

A *cut* gives each person's fold, one row per repeat; whoever is in `NO_FOLD` is never judged, but
fitted to each time. What is held together is said by a label per person, its group: a person of a
group of his own, a family, a site.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.evaluation.outcomes import Outcome

Integers = NDArray[np.int64]

NO_FOLD = -1
# With two, each fit would know a single site.
FEWEST_SITES = 3


def cut_repeatedly(outcome: Outcome, folds: int, repeats: int, seed: int) -> Integers:
    """Return the fold of each person in each repeat, (repeats, people)."""
    draws = (np.random.default_rng([seed, repeat]) for repeat in range(repeats))
    return np.stack([cut_folds(outcome, folds, draw) for draw in draws])


def cut_sites(sites: Sequence[str]) -> Integers:
    """Return each person's fold where every site is one, (1, people), in the order of names."""
    return np.unique(np.asarray(sites), return_inverse=True)[1][None]


def cut_folds(outcome: Outcome, folds: int, draw: np.random.Generator) -> Integers:
    """Return each person's fold, (people,); there are no more folds than groups.

    People are dealt in the order of their outcome, such that folds are alike in it. Groups are
    dealt whole, large ones first and otherwise in the order of their mean outcome, to the fold with
    the fewest people. The order of rows changes nothing.
    """
    held = outcome.people if outcome.sites is None else outcome.sites
    _, group, sizes = np.unique(np.asarray(held), return_inverse=True, return_counts=True)
    ranks = _rank_values(outcome.values)
    means = np.bincount(group, ranks) / sizes
    shuffled = draw.permutation(len(sizes))
    order = shuffled[np.lexsort((means[shuffled], -sizes[shuffled]))]
    count = min(folds, len(sizes))
    load = np.zeros(count)
    fold_of = np.empty(len(sizes), int)
    for first in range(0, len(order), count):
        ties = draw.permutation(count)
        for number in order[first : first + count]:
            fold = ties[load[ties].argmin()]
            fold_of[number] = fold
            load[fold] += sizes[number]
    return np.asarray(fold_of[group])


def leave_out(parts: Integers) -> Iterator[tuple[Integers, Integers]]:
    """Yield the rows that are fitted to and those that are judged, fold by fold."""
    for part in np.unique(parts[parts != NO_FOLD]):
        yield np.flatnonzero(parts != part), np.flatnonzero(parts == part)


def list_judged(parts: Integers) -> Integers:
    """Return the people, in rows of ``parts`` (repeats, people), who are in any fold."""
    return np.flatnonzero(parts[0] != NO_FOLD)


def _rank_values(values: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.asarray(np.unique(values, return_inverse=True)[1], float)
