r"""Whether a cohort in voxels still carries what its regional series carry of people.

Takes cohorts that ``slimbrain-tools simulate --prepared`` made of regional series, and the series.
Both are cleaned alike and judged by functional connectivity in the same folds, by person and with
sites left out; a third column has the voxels in another atlas.

::

    python benchmarks/connectivity.py COHORT [COHORT ...] --roi-timeseries series.npz \
        --atlas regions.nii.gz --outcomes sex group age
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from slimbrain_app.bids.prepared import list_prepared
from slimbrain_app.evaluation.atlas import SHIPPED, load_atlas
from slimbrain_app.evaluation.comparison import lay_schemes
from slimbrain_app.evaluation.connectivity import (
    clean_series,
    connect,
    find_common,
    fit_connectivity,
    read_parcels,
)
from slimbrain_app.evaluation.features import Fixed
from slimbrain_app.evaluation.judging import answer_left_out, compare_answers, score_answers
from slimbrain_app.evaluation.metrics import list_metrics
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.prepare.store import load_prepared
from slimbrain_app.settings import Select

Floats = NDArray[np.float64]

# An outcome of numbers with no more values than this is one of classes.
FEW_VALUES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohorts", nargs="+", type=Path, metavar="COHORT")
    parser.add_argument("--roi-timeseries", type=Path, required=True, metavar="NPZ")
    parser.add_argument("--atlas", required=True, metavar="NIFTI", help="of these series")
    parser.add_argument("--outcomes", nargs="+", default=["sex", "group", "age"], metavar="COLUMN")
    options = parser.parse_args()
    people = pd.concat([read_people(cohort) for cohort in options.cohorts])
    series = read_series(people, options.roi_timeseries, options.atlas)
    features = {name: Fixed(correlate(own)) for name, own in series.items()}
    regions = series["series"][0].shape[1]
    print(f"{len(people)} people of {people['site'].nunique()} sites, {regions} regions of all\n")
    print(f"| outcome | left out | people | {' | '.join(features)} | voxels above series |")
    print("| --- " * (len(features) + 4) + "|")
    for name in options.outcomes:
        judge(name, people, features)


def read_people(cohort: Path) -> pd.DataFrame:
    table = pd.read_csv(
        cohort / "participants.tsv", sep="\t", dtype=str, na_values="n/a", keep_default_na=False
    )
    table.index = pd.Index(table["participant_id"].str.removeprefix("sub-"))
    folders = {one.participant: one.folder for one in list_prepared(cohort, Select())}
    return table.assign(folder=pd.Series(folders)).dropna(subset=["folder"])


def read_series(people: pd.DataFrame, file: Path, atlas: str) -> dict[str, list[Floats]]:
    own, other = load_atlas(atlas), load_atlas(SHIPPED)
    series: dict[str, list[Floats]] = {"series": [], "voxels": [], f"voxels, {SHIPPED}": []}
    with np.load(file) as recorded:
        for row in people.itertuples():
            prepared = load_prepared(Path(str(row.folder)))
            cleaned = (
                clean_series(each, prepared.tr)
                for each in (
                    recorded[row.source_id].astype(float),
                    read_parcels(prepared, own),
                    read_parcels(prepared, other),
                )
            )
            for kept, one in zip(series.values(), cleaned, strict=True):
                kept.append(one)
    # A region that a person's recording lacks was given noise in voxels: left out of both.
    both = find_common(series["series"]) & find_common(series["voxels"])
    for name in ("series", "voxels"):
        series[name] = [one[:, both] for one in series[name]]
    return series


def correlate(series: Sequence[Floats]) -> Floats:
    common = find_common(series)
    return connect(series, fit_connectivity(series, "correlation", common))


def judge(name: str, people: pd.DataFrame, features: dict[str, Fixed]) -> None:
    known = people.dropna(subset=[name])
    labels, numbers = list(known.index), pd.to_numeric(known[name], errors="coerce")
    if numbers.nunique() > FEW_VALUES:
        outcome = Outcome(name, "number", numbers.to_numpy(float), labels)
    else:
        outcome = Outcome(name, "class", known[name].to_numpy(str), labels)
    sites = list(people.loc[labels, "site"])
    for scheme in lay_schemes(outcome, sites, None, folds=10, repeats=1, seed=0):
        rows = people.index.get_indexer(pd.Index(scheme.outcome.people))
        metric = list_metrics(outcome)[0]
        answers = [
            answer_left_out(own, scheme.outcome, scheme.parts, 0, rows) for own in features.values()
        ]
        scores = [score_answers(scheme.outcome, one, metric) for one in answers]
        gain = compare_answers(scheme.outcome, answers[0], answers[1], metric)
        told = " | ".join(f"{one.value:.3f} [{one.lower:.3f}, {one.upper:.3f}]" for one in scores)
        print(
            f"| {name}: {metric} | {scheme.name} | {len(rows)} | {told} | "
            f"{gain.value:+.3f} [{gain.lower:+.3f}, {gain.upper:+.3f}] |",
            flush=True,
        )


if __name__ == "__main__":
    main()
