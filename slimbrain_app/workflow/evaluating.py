"""The group level: how well a model tells outcomes of people, beside its baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from slimbrain_app.bids.dataset import open_output
from slimbrain_app.evaluation.atlas import load_atlas
from slimbrain_app.evaluation.cohort import list_features
from slimbrain_app.evaluation.comparison import (
    Judgement,
    Scheme,
    judge_features,
    lay_schemes,
)
from slimbrain_app.evaluation.features import Features
from slimbrain_app.evaluation.judging import Score, identify_people
from slimbrain_app.evaluation.map import COLUMNS as PEOPLE_COLUMNS
from slimbrain_app.evaluation.outcomes import Outcome
from slimbrain_app.evaluation.people import People
from slimbrain_app.evaluation.tables import (
    COLUMNS,
    tabulate_calibration,
    tabulate_metrics,
    tabulate_scores,
    tabulate_splits,
)
from slimbrain_app.files import lock, whole_file, write_json
from slimbrain_app.model.packages import Package
from slimbrain_app.records import Refusal
from slimbrain_app.report.evaluation import write_evaluation_page
from slimbrain_app.settings import EvaluateSettings
from slimbrain_app.workflow.features import RunFeatures
from slimbrain_app.workflow.findings import gather_findings
from slimbrain_app.workflow.group import Group, PeopleCall, Watch, gather_group


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluated:
    """What came of an evaluation."""

    package: Package
    judgements: tuple[Judgement, ...]
    identities: tuple[Score, ...]
    notes: tuple[str, ...]
    refusals: tuple[Refusal, ...]


def carry_out(call: PeopleCall, watch: Watch) -> Evaluated:
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
        group = gather_group(call, watch, stack, load_atlas(call.settings.baseline.atlas))
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


def judge_outcomes(group: Group, settings: EvaluateSettings, watch: Watch) -> tuple[Judgement, ...]:
    """Judge every set of features on every outcome under every scheme."""
    judgements: list[Judgement] = []
    for outcome in group.outcomes:
        features = list_features(
            group.cohort,
            group.people,
            settings.baseline.connectivity,
            settings.judge.deconfound,
            outcome.name,
        )
        judgements += judge_outcome(outcome, features, group.people, settings, watch)
    return tuple(judgements)


def judge_outcome(
    outcome: Outcome,
    features: Mapping[str, Features],
    people: People,
    settings: EvaluateSettings,
    watch: Watch,
) -> Iterator[Judgement]:
    """Yield what each set of features tells of an outcome under every scheme."""
    permutations, seed = settings.judge.permutations, settings.seed
    for scheme in _lay_schemes(outcome, people, settings):
        rows = people.find(scheme.outcome.people)
        told = judge_features(features, scheme, rows, permutations, seed)
        for number, judgement in enumerate(told, start=1):
            yield judgement
            watch.count(f"judge {outcome.name} by {scheme.name}", number, len(features))


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


def _lay_schemes(
    outcome: Outcome, people: People, settings: EvaluateSettings
) -> tuple[Scheme, ...]:
    judge, families = settings.judge, people.list_families(outcome.people)
    sites = [people.sites[row] for row in people.find(outcome.people)]
    return lay_schemes(
        outcome, sites, families, judge.folds, judge.repeats, settings.seed, people.split
    )


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
