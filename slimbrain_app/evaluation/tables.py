"""What an evaluation leaves in tables: from them every figure of its page can be made again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from slimbrain_app.evaluation.comparison import MODEL, Judgement, Scheme
from slimbrain_app.evaluation.judging import Score
from slimbrain_app.evaluation.splits import NO_FOLD

# Of probabilities, in bins of as many people each.
BINS = 10

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "metrics": {
        "outcome": "Column of the phenotypes that is predicted",
        "scheme": "Who was left out of each fit: people at random (person), whole sites (site), or "
        "whom a file of splits names (file)",
        "features": "What the outcome was predicted from",
        "metric": "AUROC and AUPRC: areas under the ROC and the precision-recall curve; F1: mean "
        "over classes; Brier: mean squared error of probabilities, summed over classes; r: "
        "Pearson's, of numbers and predictions from the mean of the people fitted to; R2: from "
        "that mean; MAE and RMSE: in the outcome's units; coverage: share of numbers within the "
        "90 % interval; accuracy: share of people whose second run resembles their first most",
        "value": "Score over all people at once, the mean over repeats; or, with against, the "
        "model's less that of these features",
        "lower": "Lower end of the middle 95 % of a bootstrap over people",
        "upper": "Upper end of it",
        "chance": "What a guess scores that knows no more than how frequent classes are",
        "p": "Share of permuted outcomes that were told as well, among them the true one",
        "people": "Number of people judged",
        "against": "n/a for a score; the features that the model is compared with for a difference",
        "units": "Units of the value, where it has any",
    },
    "scores": {
        "participant_id": "Participant",
        "outcome": "Column of the phenotypes that is predicted",
        "scheme": "Who was left out",
        "features": "What the outcome was predicted from",
        "repeat": "Number of the way to cut the folds, from 1",
        "fold": "Fold in which the person was left out, from 1",
        "truth": "Class or number",
        "predicted": "Likeliest class if all were equally frequent, or number",
        "level": "Class that score and probability are for; n/a for numbers",
        "score": "What orders people: output of the fit, from its mean in units of its spread "
        "over the people fitted to",
        "probability": "Calibrated probability of the level",
        "centre": "Mean number of the people fitted to",
        "margin": "Half the width of the 90 % interval around a predicted number",
    },
    "splits": {
        "participant_id": "Participant",
        "outcome": "Column of the phenotypes that is predicted",
        "scheme": "Who was left out",
        "group": "Site or family that is kept on one side; n/a where people are",
        "repeat": "Number of the way to cut the folds, from 1",
        "fold": "Fold in which the person was left out, from 1, in the order of a file's names; "
        "n/a for people who were fitted to and not judged",
    },
    "calibration": {
        "outcome": "Column of the phenotypes that is predicted",
        "scheme": "Who was left out",
        "features": "What the outcome was predicted from",
        "level": "Class",
        "bin": "Tenth of the predictions, by probability, from 1",
        "predicted": "Mean probability in the bin",
        "observed": "Share of the class in the bin",
        "predictions": "Predictions in the bin, over all repeats",
    },
}


def tabulate_metrics(
    judgements: Iterable[Judgement], identities: Iterable[Score] = ()
) -> pd.DataFrame:
    """Return scores and, below them, by how much the model is above each of the others."""
    rows = [row for one in judgements for row in _list_scores(one)]
    rows += [
        _describe(score, outcome=score.name, scheme="run", features=MODEL) for score in identities
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS["metrics"]))


def _list_scores(one: Judgement) -> Iterator[dict[str, Any]]:
    shared = {"outcome": one.outcome.name, "scheme": one.scheme.name, "features": one.features}
    units = one.outcome.units
    for number, score in enumerate(one.scores):
        p = one.chance if number == 0 else None
        yield _describe(score, **shared, p=p, units=units)
    for score in one.above:
        yield _describe(score, **{**shared, "features": MODEL}, against=one.features, units=units)


def _describe(score: Score, *, units: str | None = None, **others: Any) -> dict[str, Any]:
    return {
        "metric": score.metric,
        "value": score.value,
        "lower": score.lower,
        "upper": score.upper,
        "chance": score.chance,
        "people": score.people,
        "units": units if score.metric in ("MAE", "RMSE") else None,
        **others,
    }


def tabulate_scores(judgements: Iterable[Judgement]) -> pd.DataFrame:
    """Return what was said of each person left out, a row for each level of several classes."""
    tables = [_list_answers(one) for one in judgements]
    return pd.concat(tables, ignore_index=True)[list(COLUMNS["scores"])]


def _list_answers(one: Judgement) -> pd.DataFrame:
    answers, outcome = one.answers, one.outcome
    repeats, people, outputs = answers.score.shape
    numbers = outcome.kind == "number"
    classes = [str(value) for value in outcome.classes]
    levels = [None] if numbers else classes[-1:] if outputs == 1 else classes
    label = np.asarray if numbers else lambda coded: np.array(classes)[coded.astype(int)]
    table = {
        "participant_id": np.tile([f"sub-{label}" for label in outcome.people], repeats),
        "repeat": np.repeat(np.arange(repeats) + 1, people),
        "fold": answers.fold.ravel() + 1,
        "truth": label(answers.truth).ravel(),
        "predicted": label(answers.predicted).ravel(),
        "centre": answers.centre.ravel() if numbers else None,
        "margin": answers.margin.ravel() if numbers else None,
    }
    own = answers.probability[..., -outputs:]
    tables = [
        pd.DataFrame(
            {
                **table,
                "level": level,
                "score": answers.score[..., output].ravel(),
                "probability": None if numbers else own[..., output].ravel(),
            }
        )
        for output, level in enumerate(levels)
    ]
    return pd.concat(tables, ignore_index=True).assign(
        outcome=outcome.name, scheme=one.scheme.name, features=one.features
    )


def tabulate_splits(schemes: Iterable[Scheme]) -> pd.DataFrame:
    """Return who was left out when, and who was only fitted to."""
    tables = [
        pd.DataFrame(
            {
                "participant_id": [f"sub-{label}" for label in scheme.outcome.people],
                "outcome": scheme.outcome.name,
                "scheme": scheme.name,
                "group": scheme.outcome.sites,
                "repeat": repeat + 1,
                "fold": pd.Series(parts + 1, dtype="Int64").where(parts != NO_FOLD),
            }
        )
        for scheme in schemes
        for repeat, parts in enumerate(scheme.parts)
    ]
    return pd.concat(tables, ignore_index=True)


def tabulate_calibration(judgements: Sequence[Judgement]) -> pd.DataFrame:
    """Return how often classes came to pass, by how probable they were said to be."""
    rows = [row for one in judgements if one.outcome.kind == "class" for row in _list_bins(one)]
    return pd.DataFrame(rows, columns=list(COLUMNS["calibration"]))


def _list_bins(one: Judgement) -> Iterator[dict[str, Any]]:
    classes = list(one.outcome.classes)
    for number, level in list(enumerate(classes))[1 if len(classes) == 2 else 0 :]:
        probability = one.answers.probability[..., number].ravel()
        here = one.answers.truth.ravel() == number
        order = np.argsort(probability, kind="stable")
        for place, rows in enumerate(np.array_split(order, BINS)):
            if len(rows):
                yield {
                    "outcome": one.outcome.name,
                    "scheme": one.scheme.name,
                    "features": one.features,
                    "level": str(level),
                    "bin": place + 1,
                    "predicted": probability[rows].mean(),
                    "observed": here[rows].mean(),
                    "predictions": len(rows),
                }
