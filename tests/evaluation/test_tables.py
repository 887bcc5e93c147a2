from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    mean_absolute_error,
    roc_auc_score,
    root_mean_squared_error,
)

from slimbrain_app.evaluation.comparison import judge_features, lay_schemes
from slimbrain_app.evaluation.features import Fixed
from slimbrain_app.evaluation.split_file import Split
from slimbrain_app.evaluation.tables import (
    COLUMNS,
    tabulate_calibration,
    tabulate_metrics,
    tabulate_scores,
    tabulate_splits,
)

pytestmark = pytest.mark.usefixtures("one_penalty")


@pytest.fixture
def judge(draw_people):
    def judge(kind="class"):
        features, outcome = draw_people(1, 45, kind=kind)
        sets = {"model": Fixed(features), "noise": Fixed(features[:, 1:])}
        sites = [f"s{row % 5}" for row in range(45)]
        schemes = lay_schemes(outcome, sites, None, 3, 2, 0)
        rows = np.arange(45)
        return [one for scheme in schemes for one in judge_features(sets, scheme, rows, 0, 0)]

    return judge


def written(table):
    """Return a table as it comes back from its file."""
    text = table.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.9g")
    return pd.read_csv(io.StringIO(text), sep="\t")


def of_repeats(table, function):
    return np.mean([function(rows) for _, rows in table.groupby("repeat")])


def score_class(rows, metric):
    second = rows["truth"] == rows["level"]
    match metric:
        case "AUROC":
            return roc_auc_score(second, rows["score"])
        case "AUPRC":
            return average_precision_score(second, rows["score"])
        case "balanced accuracy":
            return balanced_accuracy_score(rows["truth"], rows["predicted"])
        case "F1":
            return f1_score(rows["truth"], rows["predicted"], average="macro")
        case "Brier":
            return 2 * ((rows["probability"] - second) ** 2).mean()


def score_number(rows, metric):
    truth, predicted = rows["truth"], rows["predicted"]
    match metric:
        case "r":
            return np.corrcoef(truth - rows["centre"], rows["score"])[0, 1]
        case "R2":
            return 1 - ((truth - predicted) ** 2).sum() / ((truth - rows["centre"]) ** 2).sum()
        case "MAE":
            return mean_absolute_error(truth, predicted)
        case "RMSE":
            return root_mean_squared_error(truth, predicted)
        case "coverage":
            return (abs(truth - predicted) <= rows["margin"]).mean()


@pytest.mark.parametrize(("kind", "score"), [("class", score_class), ("number", score_number)])
def test_every_metric_and_difference_can_be_made_again_from_the_scores(judge, kind, score):
    judgements = judge(kind=kind)
    scores, metrics = written(tabulate_scores(judgements)), written(tabulate_metrics(judgements))
    assert len(metrics) == 5 * 2 * 3
    keys = ["scheme", "features"]
    for row in metrics.itertuples():
        own, other = (
            scores[(scores[keys] == (row.scheme, name)).all(axis=1)]
            for name in (row.features, row.against)
        )
        expected = of_repeats(own, lambda rows, row=row: score(rows, row.metric))
        if isinstance(row.against, str):
            expected -= of_repeats(other, lambda rows, row=row: score(rows, row.metric))
        assert row.value == pytest.approx(expected, abs=1e-6)


def test_of_several_classes_each_has_its_probability_and_they_sum_to_one(make_outcome):
    draw = np.random.default_rng(0)
    outcome = make_outcome(np.resize(["a", "b", "c"], 45))
    (scheme,) = lay_schemes(outcome, [None] * 45, None, 3, 2, 0)
    features = {"model": Fixed(draw.standard_normal((45, 3)))}
    scores = written(tabulate_scores(judge_features(features, scheme, np.arange(45), 0, 0)))
    people = scores.groupby(["participant_id", "repeat"])
    assert set(people["level"].agg("".join)) == {"abc"}
    assert people["probability"].sum().to_numpy() == pytest.approx(1)


def test_nobody_is_judged_in_two_folds_and_the_splits_tell_the_fold(judge):
    judgements = judge()
    schemes = {one.scheme.name: one.scheme for one in judgements}
    splits = written(tabulate_splits(schemes.values()))
    keys = ["participant_id", "scheme", "repeat"]
    assert not splits.duplicated(keys).any()
    scores = written(tabulate_scores(judgements))
    both = scores.merge(splits, on=[*keys, "outcome"], suffixes=("", "_split"))
    assert len(both) == len(scores)
    assert (both["fold"] == both["fold_split"]).all()
    by_site = splits[splits["scheme"] == "site"]
    assert (by_site.groupby("group")["fold"].nunique() == 1).all()


def test_of_a_test_part_alone_scores_are_told_and_the_splits_tell_who_was_fitted_to(draw_people):
    features, outcome = draw_people(1, 45, kind="class")
    sides = np.resize(["train", "test", "validation"], 45)
    split = Split(dict(zip(outcome.people, sides, strict=True)), True)
    (scheme,) = lay_schemes(outcome, [None] * 45, None, 3, 2, 0, split)
    (one,) = judge_features({"model": Fixed(features)}, scheme, np.arange(45), 0, 0)
    test = [f"sub-{label}" for label in np.array(outcome.people)[sides == "test"]]
    splits, scores = written(tabulate_splits([scheme])), written(tabulate_scores([one]))
    assert len(splits) == 45
    assert list(splits.loc[splits["fold"] == 1, "participant_id"]) == test
    assert splits["fold"].isna().sum() == 30
    assert list(scores["participant_id"]) == test
    assert (scores["truth"] == outcome.values[sides == "test"]).all()
    metrics = written(tabulate_metrics([one]))
    assert (metrics["people"] == 15).all()
    auroc = metrics.set_index("metric").loc["AUROC", "value"]
    assert auroc == pytest.approx(score_class(scores, "AUROC"))
    assert written(tabulate_calibration([one]))["predictions"].sum() == 15


def test_calibration_can_be_made_again_from_the_scores(judge):
    judgements = judge()
    scores, found = written(tabulate_scores(judgements)), written(tabulate_calibration(judgements))
    for (scheme, features), rows in found.groupby(["scheme", "features"]):
        own = scores[(scores["scheme"] == scheme) & (scores["features"] == features)]
        assert rows["predictions"].sum() == len(own)
        assert np.average(rows["predicted"], weights=rows["predictions"]) == pytest.approx(
            own["probability"].mean()
        )
        observed = np.average(rows["observed"], weights=rows["predictions"])
        assert observed == pytest.approx((own["truth"] == own["level"]).mean())
        assert rows["predicted"].is_monotonic_increasing


def test_every_column_is_described(judge):
    judgements = judge()
    tables = {
        "metrics": tabulate_metrics(judgements),
        "scores": tabulate_scores(judgements),
        "splits": tabulate_splits({one.scheme.name: one.scheme for one in judgements}.values()),
        "calibration": tabulate_calibration(judgements),
    }
    for name, table in tables.items():
        assert list(table.columns) == list(COLUMNS[name])
