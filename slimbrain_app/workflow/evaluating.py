"""The group level: how well a model tells outcomes of people, beside its baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from slimbrain_app.bids.dataset import open_output
from slimbrain_app.bids.participants import TABLE
from slimbrain_app.embedding import choose_device
from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.atlas import load_atlas
from slimbrain_app.evaluation.cohort import Cohort, list_features
from slimbrain_app.evaluation.comparison import (
    MODEL,
    Judgement,
    Scheme,
    judge_features,
    lay_schemes,
)
from slimbrain_app.evaluation.judging import Score, identify_people
from slimbrain_app.evaluation.map import COLUMNS as PEOPLE_COLUMNS
from slimbrain_app.evaluation.outcomes import Outcome, read_phenotype, take_outcomes
from slimbrain_app.evaluation.people import People, describe_people, refuse_twins
from slimbrain_app.evaluation.tables import (
    COLUMNS,
    tabulate_calibration,
    tabulate_metrics,
    tabulate_scores,
    tabulate_splits,
)
from slimbrain_app.files import lock, whole_file, write_json
from slimbrain_app.model.packages import Package, load_package
from slimbrain_app.records import Recording, Refusal
from slimbrain_app.report.evaluation import write_evaluation_page
from slimbrain_app.settings import EvaluateSettings
from slimbrain_app.workflow.corpus import CorpusPlan
from slimbrain_app.workflow.features import RunFeatures, describe_runs
from slimbrain_app.workflow.findings import gather_findings
from slimbrain_app.workflow.preparing import Gathering, gather_runs
from slimbrain_app.workflow.resources import find_limits

_SHOWN = 5


class Watch(Protocol):
    """Who is told how an evaluation goes."""

    def show_plan(self, plan: CorpusPlan) -> None:
        """Tell what was found and what is to be prepared."""

    def count(self, what: str, done: int, total: int) -> None:
        """Tell how far something is."""

    def say(self, text: str) -> None:
        """Tell a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateCall(Gathering):
    """What an evaluation is asked for on the command line."""

    settings: EvaluateSettings


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluated:
    """What came of an evaluation."""

    package: Package
    judgements: tuple[Judgement, ...]
    identities: tuple[Score, ...]
    notes: tuple[str, ...]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """People with runs, what is known of them, and what is to be predicted."""

    package: Package
    runs: tuple[RunFeatures, ...]
    people: People
    cohort: Cohort
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]
    refusals: tuple[Refusal, ...]


def carry_out(call: EvaluateCall, watch: Watch) -> Evaluated:
    """Judge, and write the tables and the page.

    Raises
    ------
    CallRefused
        ``no-outcome``, ``outcome-constant``, ``too-few`` or ``leak``, and whatever keeps the call
        from starting; neither is written then.
    """
    open_output(call.output, call.datasets[0])
    with ExitStack() as stack:
        stack.enter_context(lock(call.output / "logs" / "evaluation.lock", "the evaluation"))
        group = gather_group(call, watch, stack)
        judgements = judge_outcomes(group, call.settings, watch)
        identities = _identify(group)
        write_tables(call.output, judgements, identities)
        findings = gather_findings(call, group, judgements, identities)
        _write_table(call.output, "people", findings.people, PEOPLE_COLUMNS)
        write_evaluation_page(call.output, findings)
    return Evaluated(
        package=group.package,
        judgements=judgements,
        identities=identities,
        notes=group.notes,
        refusals=group.refusals,
    )


def gather_group(call: EvaluateCall, watch: Watch, stack: ExitStack) -> Group:
    """Find outcomes and runs; prepare, embed and parcel what is not yet."""
    settings, limits = call.settings, find_limits(call.settings.compute)
    predict, baseline = settings.predict, settings.baseline
    if not predict.outcomes:
        raise CallRefused(
            "usage",
            expected="what is to be predicted",
            found="no --outcome",
            advice="name columns of participants.tsv, as in --outcome age sex",
        )
    phenotype = read_phenotype(_find_phenotype(call))
    atlas = load_atlas(baseline.atlas)
    package = load_package(settings.model, [call.output / "models"])
    device = choose_device(settings.compute.device)
    recordings, refused = gather_runs(
        call, package.contract, limits, watch.show_plan, watch.count, stack
    )
    refusals = [one.refusal for one in refused]
    _require_one_dataset_each(recordings)
    refuse_twins(recordings)
    # Before hours of embedding: what is wrong with the table.
    labels = sorted({recording.participant for recording in recordings})
    take_outcomes(phenotype, predict.outcomes, labels, predict.kinds)
    runs, undescribed = describe_runs(
        recordings, package, settings.embedding, atlas, device, call.output, watch.count
    )
    refusals += [refusal for _, refusal in undescribed]
    runs, notes = _heed_seen(runs, predict.seen)
    people = describe_people(
        phenotype,
        _average_motion(runs),
        site=predict.site,
        family=predict.family,
        covariates=baseline.covariates,
    )
    outcomes, told = take_outcomes(phenotype, predict.outcomes, people.labels, predict.kinds)
    return Group(
        package=package,
        runs=runs,
        people=people,
        cohort=Cohort(
            owners=people.find([run.recording.participant for run in runs]),
            embeddings=np.stack([run.embedding for run in runs]),
            series=[run.series for run in runs],
            summaries=np.stack([run.summary for run in runs]),
        ),
        outcomes=outcomes,
        notes=(*notes, *told),
        refusals=tuple(refusals),
    )


def judge_outcomes(
    group: Group, settings: EvaluateSettings, watch: Watch, *, only_model: bool = False
) -> tuple[Judgement, ...]:
    """Judge every set of features, or the model alone, on every outcome under every scheme."""
    people, judge = group.people, settings.judge
    judgements: list[Judgement] = []
    for outcome in group.outcomes:
        features = list_features(
            group.cohort, people, settings.baseline.connectivity, judge.deconfound, outcome.name
        )
        if only_model:
            features = {MODEL: features[MODEL]}
        for scheme in _lay_schemes(outcome, people, settings):
            rows = people.find(scheme.outcome.people)
            told = judge_features(features, scheme, rows, judge.permutations, settings.seed)
            for number, judgement in enumerate(told, start=1):
                judgements.append(judgement)
                watch.count(f"judge {outcome.name} by {scheme.name}", number, len(features))
    return tuple(judgements)


def write_tables(
    output: Path, judgements: Sequence[Judgement], identities: Sequence[Score]
) -> None:
    """Write the tables of an evaluation, each with the JSON that describes its columns."""
    schemes = list({id(one.scheme): one.scheme for one in judgements}.values())
    tables: Mapping[str, Callable[[], pd.DataFrame]] = {
        "metrics": lambda: tabulate_metrics(judgements, identities),
        "scores": lambda: tabulate_scores(judgements),
        "splits": lambda: tabulate_splits(schemes),
        "calibration": lambda: tabulate_calibration(judgements),
    }
    for name, tabulate in tables.items():
        _write_table(output, name, tabulate(), COLUMNS[name])


def _write_table(output: Path, name: str, table: pd.DataFrame, columns: Mapping[str, str]) -> None:
    file = output / f"desc-slimbrain_{name}.tsv"
    with whole_file(file) as temporary:
        table.to_csv(temporary, sep="\t", index=False, na_rep="n/a", float_format="%.9g")
    described = {key: {"Description": text} for key, text in columns.items()}
    write_json(file.with_suffix(".json"), described)


def _find_phenotype(call: EvaluateCall) -> Path:
    given = call.settings.predict.phenotype
    if given:
        return Path(given)
    if len(call.datasets) > 1:
        raise CallRefused(
            "usage",
            expected="one table of the participants of all datasets",
            found=f"{len(call.datasets)} datasets and no --phenotype",
            advice="write their participants into one table and name it with --phenotype",
        )
    return call.datasets[0] / TABLE


def _require_one_dataset_each(recordings: Sequence[Recording]) -> None:
    """Refuse a label that two datasets use: they may be one person or two."""
    datasets: dict[str, set[str]] = {}
    for recording in recordings:
        datasets.setdefault(recording.participant, set()).add(recording.dataset)
    shared = sorted(label for label, names in datasets.items() if len(names) > 1)
    if shared:
        raise CallRefused(
            "leak",
            expected="each label in one dataset: the same one elsewhere may be the same person",
            found=", ".join(f"sub-{label}" for label in shared[:_SHOWN]),
            advice="evaluate the datasets one by one, or choose people with --participant-label",
        )


def _heed_seen(
    runs: tuple[RunFeatures, ...], wish: str
) -> tuple[tuple[RunFeatures, ...], list[str]]:
    """Refuse, leave out or keep people that the weights have seen, and say so."""
    seen = sorted({run.recording.participant for run in runs if run.seen})
    if not seen:
        return runs, []
    found = ", ".join(f"sub-{label}" for label in seen[:_SHOWN])
    found += f" and {len(seen) - _SHOWN} more" if len(seen) > _SHOWN else ""
    if wish == "refuse":
        raise CallRefused(
            "leak",
            expected="people that the model's weights have not seen",
            found=f"{found}, on whom they were trained, or by whom they were chosen",
            advice='set predict.seen to "leave-out" in a --config file to judge the others, or to '
            '"keep" to judge all and have it said on every page',
        )
    if wish == "leave-out":
        kept = tuple(run for run in runs if run.recording.participant not in seen)
        return kept, [f"{len(seen)} people left out, on whom the weights were trained"]
    return runs, [
        f"the weights were trained on {len(seen)} of these people ({found}): what the model tells "
        "of them says nothing of others"
    ]


def _average_motion(runs: Sequence[RunFeatures]) -> dict[str, float]:
    known: dict[str, list[float]] = {}
    for run in runs:
        known.setdefault(run.recording.participant, []).append(run.motion)
    return {label: float(np.mean(values)) for label, values in known.items()}


def _lay_schemes(
    outcome: Outcome, people: People, settings: EvaluateSettings
) -> tuple[Scheme, ...]:
    rows, judge = people.find(outcome.people), settings.judge
    families = people.families and [people.families[row] for row in rows]
    sites = [people.sites[row] for row in rows]
    return lay_schemes(outcome, sites, families, judge.folds, judge.repeats, settings.seed)


def _identify(group: Group) -> tuple[Score, ...]:
    """Return how many people are known again: by a second run, or by the later half of one."""
    firsts: dict[str, list[RunFeatures]] = {}
    for run in group.runs:
        firsts.setdefault(run.recording.participant, []).append(run)
    scores = []
    pairs = [own[:2] for own in firsts.values() if len(own) > 1]
    if len(pairs) > 1:
        first, second = (np.stack([pair[place].embedding for pair in pairs]) for place in (0, 1))
        scores.append(identify_people(first, second, "identity across runs"))
    halves = [own[0].halves for own in firsts.values() if len(own[0].halves)]
    if len(halves) > 1:
        first, second = np.stack(halves, axis=1)
        scores.append(identify_people(first, second, "identity within a run"))
    return tuple(scores)
