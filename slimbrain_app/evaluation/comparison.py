"""The model beside its baselines: the same people, the same folds, the same fit.

Outcomes are judged one by one. Every set of features tells each of them by the same linear model
under the same *schemes*: with people left out at random, and with whole sites left out; or with
those left out that a file names. The first set is the model; all others are what it has to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from slimbrain_app.evaluation.features import Features
from slimbrain_app.evaluation.judging import (
    Score,
    answer_left_out,
    compare_answers,
    permute_outcome,
    score_answers,
)
from slimbrain_app.evaluation.metrics import Answers, list_metrics
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.split_file import Split, cut_by_file
from slimbrain_app.evaluation.splits import (
    FEWEST_SITES,
    Integers,
    cut_repeatedly,
    cut_sites,
    list_judged,
)

MODEL = "model"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scheme:
    """A way to leave people out.

    Attributes
    ----------
    name : {"person", "site", "file"}
    outcome : Outcome
        Of all who take part, with the groups that no fold splits.
    parts : array, (repeats, people)
    """

    name: str
    outcome: Outcome
    parts: Integers

    @property
    def judged(self) -> Outcome:
        return self.outcome.take(list_judged(self.parts))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judgement:
    """What one set of features told of one outcome under one scheme.

    ``outcome`` and ``answers`` are of the people judged.

    ``chance`` is the share of permuted outcomes that were told as well, for the first metric; None
    where none was permuted. ``above`` holds how much better the model is, metric by metric.
    """

    features: str
    scheme: Scheme
    answers: Answers
    scores: tuple[Score, ...]
    above: tuple[Score, ...] = ()
    chance: float | None = None

    @property
    def outcome(self) -> Outcome:
        return self.scheme.judged


def lay_schemes(
    outcome: Outcome,
    sites: Sequence[str | None],
    families: Sequence[str] | None,
    folds: int,
    repeats: int,
    seed: int,
    split: Split | None = None,
) -> tuple[Scheme, ...]:
    """Return the schemes for an outcome: by person, and by site where three sites are known.

    Where a file of splits is given, its scheme is the only one.

    Parameters
    ----------
    sites : sequence of str or None
        Of the outcome's people. Those without one are in no fold of the scheme by site.
    families : sequence of str or None
        Likewise; people of one family are on the same side.
    split : Split, optional

    Raises
    ------
    CallRefused
        As of `lay_file`.
    """
    if split is not None:
        return (lay_file(outcome, families, split),)
    apart = replace(outcome, sites=families)
    schemes = [
        Scheme(name="person", outcome=apart, parts=cut_repeatedly(apart, folds, repeats, seed))
    ]
    known = np.array([row for row, site in enumerate(sites) if site is not None], int)
    names = [str(sites[row]) for row in known]
    if len(set(names)) >= FEWEST_SITES:
        by_site = replace(outcome.take(known), sites=names)
        if len(by_site.classes) > 1:
            schemes.append(Scheme(name="site", outcome=by_site, parts=cut_sites(names)))
    return tuple(schemes)


def lay_file(outcome: Outcome, families: Sequence[str] | None, split: Split) -> Scheme:
    """Return the scheme of a file of splits; whoever is not in it takes no part.

    Parameters
    ----------
    outcome : Outcome
    families : sequence of str or None
        Of the outcome's people.
    split : Split

    Raises
    ------
    CallRefused
        ``leak`` or ``too-few``, as of `cut_by_file`.
    """
    known = np.array([row for row, label in enumerate(outcome.people) if label in split.of], int)
    own = replace(outcome, sites=families).take(known)
    return Scheme(name="file", outcome=own, parts=cut_by_file(own, split))


def judge_features(
    features: Mapping[str, Features],
    scheme: Scheme,
    rows: Integers,
    permutations: int,
    seed: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Judgement]:
    """Yield what each set of features tells, the model's first.

    Parameters
    ----------
    features : mapping of str to Features
        The first is the model.
    scheme : Scheme
    rows : array, (people,)
        Where the scheme's people are among those that features are known of.
    permutations : int
        Of the outcome, for the model alone: each costs as much as a repeat.
    """
    outcome, judged = scheme.outcome, scheme.judged
    metrics = list_metrics(judged)
    first: Answers | None = None
    for name, own in features.items():
        tell(name)
        answers = answer_left_out(own, outcome, scheme.parts, seed, rows)
        judgement = Judgement(
            features=name,
            scheme=scheme,
            answers=answers,
            scores=tuple(score_answers(judged, answers, metric, seed) for metric in metrics),
        )
        if first is None:
            first = answers
            if permutations:
                chance = permute_outcome(
                    own, outcome, scheme.parts, metrics[0], permutations, seed, rows
                )
                judgement = replace(judgement, chance=chance)
        else:
            above = (compare_answers(judged, answers, first, one, seed) for one in metrics)
            judgement = replace(judgement, above=tuple(above))
        yield judgement
