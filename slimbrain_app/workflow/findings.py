"""What an evaluation has found, gathered for its page and for the table of its people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from slimbrain_app.device import choose_device
from slimbrain_app.evaluation.comparison import MODEL, Judgement
from slimbrain_app.evaluation.connectivity import describe_cleaning
from slimbrain_app.evaluation.judging import INNER_FOLDS, Score
from slimbrain_app.evaluation.map import map_people, tabulate_people
from slimbrain_app.evaluation.metrics import DRAWS, list_metrics
from slimbrain_app.evaluation.people import People
from slimbrain_app.evaluation.sites import score_sites
from slimbrain_app.evaluation.tables import (
    tabulate_calibration,
    tabulate_metrics,
    tabulate_scores,
)
from slimbrain_app.report.evaluation import CONNECTIVITY, Findings
from slimbrain_app.report.methods import describe_evaluation
from slimbrain_app.workflow.plan import list_software

if TYPE_CHECKING:
    from slimbrain_app.workflow.group import Group, PeopleCall

# What judges, beside what every level uses.
_JUDGES = ("scikit-learn", "nilearn", "pandas")
_NOT_TOLD = (np.nan, np.nan, np.nan)


def gather_findings(
    call: PeopleCall, group: Group, judgements: Sequence[Judgement], identities: Sequence[Score]
) -> Findings:
    """Gather what the page of an evaluation tells."""
    settings, model = call.settings, group.package.identity
    laid = map_people(group.cohort.means)
    own = [one for one in judgements if one.features == MODEL]
    software = {**list_software(), **{name: version(name) for name in _JUDGES}}
    people = group.people
    return Findings(
        model=model,
        recordings=tuple(run.recording for run in group.runs),
        refusals=group.refusals,
        notes=group.notes,
        seen=len(group.seen),
        metrics=tabulate_metrics(judgements, identities),
        scores=tabulate_scores(own),
        calibration=tabulate_calibration(own),
        people=tabulate_people(
            people.labels, people.sites, np.bincount(group.cohort.owners).tolist(), laid
        ),
        sites=tabulate_sites(judgements, people, settings.seed),
        shares=(float(laid.shares[0]), float(laid.shares[1])),
        levels={outcome.name: outcome.levels for outcome in group.outcomes},
        settings=settings,
        device=choose_device(settings.compute.device),
        software=software,
        command=call.command,
        methods=describe_evaluation(
            settings,
            model,
            software,
            by_covariance=group.cohort.covariances is not None,
            by_site=any(one.scheme.name == "site" for one in own),
            inner_folds=INNER_FOLDS,
            draws=DRAWS,
            cleanings=_list_cleanings(group),
        ),
    )


def tabulate_sites(judgements: Sequence[Judgement], people: People, seed: int) -> pd.DataFrame:
    """Return the first score of the model and of connectivity at each site."""
    rows = [
        row
        for one in judgements
        if one.features == MODEL or one.features.startswith(CONNECTIVITY)
        for row in _list_sites(one, people, seed)
    ]
    columns = ["outcome", "scheme", "features", "site", "people", "metric"]
    return pd.DataFrame(rows, columns=[*columns, "value", "lower", "upper"])


def _list_sites(one: Judgement, people: People, seed: int) -> Iterator[dict[str, Any]]:
    sites = [people.sites[row] for row in people.find(one.outcome.people)]
    for site, count, score in score_sites(one, sites, seed):
        told = (score.value, score.lower, score.upper) if score else _NOT_TOLD
        yield {
            "outcome": one.outcome.name,
            "scheme": one.scheme.name,
            "features": one.features,
            "site": site,
            "people": count,
            "metric": list_metrics(one.outcome)[0],
            **dict(zip(("value", "lower", "upper"), told, strict=True)),
        }


def _list_cleanings(group: Group) -> list[str]:
    """Return the ways in which series were cleaned, the most frequent first."""
    ways = pd.Series(
        [describe_cleaning(run.recording.prepared.tr, run.confounds) for run in group.runs]
    )
    return [str(way) for way in ways.value_counts(sort=True).index]
