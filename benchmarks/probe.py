r"""How much better a model is than its own network untrained, on people of unseen sites.

Takes the outputs of ``slimbrain ... participant`` by several models for the same people, and their
``participants.tsv``. Probes each outcome by each model, whole sites left out, and prints a table:
the score and its 95 % interval, and below it by how much it is above that of the first model. With
the regions' series of the same people, their functional connectivity is probed as well.

::

    python benchmarks/probe.py untrained=/data/untrained pretrained=/data/pretrained \
        --participants /data/fmriprep/participants.tsv --sites NYU UM_1 --roi-timeseries roi.npz
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from nilearn.connectome import ConnectivityMeasure

from slimbrain_app.evaluation.features import Fixed
from slimbrain_app.evaluation.judging import (
    Score,
    answer_left_out,
    compare_answers,
    score_answers,
)
from slimbrain_app.evaluation.metrics import list_metrics
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.splits import cut_repeatedly

RUNS = "sub-*/**/*_stat-mean_desc-slimbrain_embeddings.tsv"
# An outcome of numbers with no more values than this is one of classes.
FEW_VALUES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", nargs="+", metavar="NAME=PLACE", help="output folder, or table of embeddings"
    )
    parser.add_argument("--participants", type=Path, required=True, metavar="TSV")
    parser.add_argument("--outcomes", nargs="+", default=["sex", "age", "group"], metavar="COLUMN")
    parser.add_argument("--site", default="site", metavar="COLUMN", help="default: site")
    parser.add_argument("--sites", nargs="+", help="only people of these (default: all)")
    parser.add_argument("--roi-timeseries", type=Path, metavar="NPZ", help="for connectivity")
    parser.add_argument("--repeats", type=int, default=5, help="ways to cut the folds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    people = read_people(options.participants, options.site, options.sites)
    features = {name: read_embeddings(Path(place)) for name, place in map(split, options.models)}
    if options.roi_timeseries:
        features["connectivity"] = measure_connectivity(options.roi_timeseries, people)
    shared = people.index[np.all([people.index.isin(each.index) for each in features.values()], 0)]
    print(f"{len(shared)} people of {people.loc[shared, options.site].nunique()} sites\n")
    print(f"| outcome | people | {' | '.join(features)} |")
    print("| --- " * (len(features) + 2) + "|")
    for name in options.outcomes:
        outcome = take_outcome(people.loc[shared], name, options.site)
        rows = {key: each.loc[list(outcome.people)] for key, each in features.items()}
        print_outcome(outcome, rows, options.repeats, options.seed)


def split(word: str) -> tuple[str, str]:
    name, _, place = word.partition("=")
    return name, place


def read_people(file: Path, site: str, sites: list[str] | None) -> pd.DataFrame:
    people = pd.read_csv(file, sep="\t", dtype={"participant_id": str, site: str})
    people = people.set_index("participant_id").dropna(subset=[site])
    return people if sites is None else people[people[site].isin(sites)]


def read_embeddings(place: Path) -> pd.DataFrame:
    """Return one row per participant, the mean over runs; a table needs ``participant_id``."""
    if place.is_file():
        table = pd.read_csv(place, sep="\t", index_col="participant_id")
    else:
        files = sorted(place.glob(RUNS))
        labels = [file.relative_to(place).parts[0] for file in files]
        table = pd.concat([pd.read_csv(file, sep="\t") for file in files])
        table.index = pd.Index(labels, name="participant_id")
    columns = [name for name in table.columns if re.fullmatch(r"e\d{4}", name)]
    return table[columns].groupby(level=0).mean()


def measure_connectivity(file: Path, people: pd.DataFrame) -> pd.DataFrame:
    """Return Fisher's z of the correlations between regions, people by pairs of regions."""
    with np.load(file) as series:
        keys = people.get("source_id", pd.Series(people.index, people.index))
        present = keys[keys.isin(series.files)]
        runs = [series[key].astype(float) for key in present]
    measure = ConnectivityMeasure(kind="correlation", vectorize=True, discard_diagonal=True)
    correlations = np.clip(np.nan_to_num(measure.fit_transform(runs)), -0.9999, 0.9999)
    return pd.DataFrame(np.arctanh(correlations), index=present.index)


def take_outcome(people: pd.DataFrame, name: str, site: str) -> Outcome:
    known = people.dropna(subset=[name])
    numbers = pd.api.types.is_numeric_dtype(known[name]) and known[name].nunique() > FEW_VALUES
    values = known[name].to_numpy(float) if numbers else known[name].astype(str).to_numpy(str)
    kind = "number" if numbers else "class"
    return Outcome(name, kind, values, list(known.index), list(known[site]))  # type: ignore[arg-type]


def print_outcome(
    outcome: Outcome, features: Mapping[str, pd.DataFrame], repeats: int, seed: int
) -> None:
    metric, parts = list_metrics(outcome)[0], cut_repeatedly(outcome, 5, repeats, seed)
    first, *others = (
        answer_left_out(Fixed(table.to_numpy(float)), outcome, parts, seed)
        for table in features.values()
    )
    scores = [score_answers(outcome, answers, metric, seed) for answers in (first, *others)]
    gains = [compare_answers(outcome, first, answers, metric, seed) for answers in others]
    told = " | ".join(describe(score) for score in scores)
    print(f"| {outcome.name}: {metric} | {len(outcome.people)} | {told} |")
    told = " | ".join(describe(gain, "+") for gain in gains)
    print(f"| above {next(iter(features))} | | | {told} |", flush=True)


def describe(found: Score, sign: str = "") -> str:
    return f"{found.value:{sign}.3f} [{found.lower:{sign}.3f}, {found.upper:{sign}.3f}]"


if __name__ == "__main__":
    with warnings.catch_warnings():
        # nilearn says that it standardises by the sample's deviation from some release on.
        warnings.simplefilter("ignore", FutureWarning)
        main()
