"""The group level: people with runs and outcomes, for whoever judges or fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from slimbrain_app.bids.participants import TABLE
from slimbrain_app.device import choose_device
from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.atlas import Atlas
from slimbrain_app.evaluation.cohort import Cohort
from slimbrain_app.evaluation.comparison import lay_file
from slimbrain_app.evaluation.outcomes import Outcome, Phenotype, read_phenotype, take_outcomes
from slimbrain_app.evaluation.people import People, describe_people, refuse_twins
from slimbrain_app.evaluation.split_file import Split, match_split, read_split
from slimbrain_app.model.packages import Package, load_package, note_seen
from slimbrain_app.model.readout import FEWEST_WINDOWS
from slimbrain_app.records import Recording, Refusal
from slimbrain_app.settings import EvaluateSettings
from slimbrain_app.workflow.corpus import CorpusPlan, plan_corpus
from slimbrain_app.workflow.features import Describer, RunFeatures, describe_runs
from slimbrain_app.workflow.preparing import Gathering, gather_runs
from slimbrain_app.workflow.resources import find_limits

_SHOWN = 5
_POOLINGS = {
    "mean": "mean embeddings",
    "covariance": "which places move together (predict.pooling is covariance)",
}


class Watch(Protocol):
    """Who is told how a call goes."""

    def show_plan(self, plan: CorpusPlan) -> None:
        """Tell what was found and what is to be prepared."""

    def count(self, what: str, done: int, total: int) -> None:
        """Tell how far something is."""

    def say(self, text: str) -> None:
        """Tell a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PeopleCall(Gathering):
    """What is asked for on the command line, of people and their outcomes."""

    settings: EvaluateSettings

    def choose_pooling(self, package: Package) -> Literal["mean", "covariance"]:
        """Return what of a run tells: what is asked for, or else covariance where it can be told.

        Raises
        ------
        CallRefused
            ``usage`` for what the package can't tell.
        """
        asked = self.settings.predict.pooling
        if asked == "covariance" and not package.has_readout:
            raise CallRefused(
                "usage",
                file=package.name,
                expected="a package that tells which places move together, as predict.pooling asks",
                found="one without a readout of covariance",
                advice='set predict.pooling to "mean", or leave it out',
            )
        windows = self.settings.rank.windows
        can_tell = package.has_readout and (windows == "all" or windows >= FEWEST_WINDOWS)
        return asked or ("covariance" if can_tell else "mean")

    def require_people(self, outcomes: Sequence[Outcome], people: People) -> None:
        """Refuse what else would keep the call from ending well, before anything is embedded."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Group:
    """People with runs, what is known of them, and what is to be predicted.

    ``seen`` are the labels of those that the package's weights were trained on, or chosen by.
    """

    package: Package
    runs: tuple[RunFeatures, ...]
    seen: tuple[str, ...]
    people: People
    cohort: Cohort
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]
    refusals: tuple[Refusal, ...]


def foresee_group(call: PeopleCall) -> tuple[CorpusPlan, tuple[str, ...]]:
    """Look at runs and outcomes and write nothing; return the plan, and what is told of outcomes.

    Raises
    ------
    CallRefused
        Whatever would keep the call from starting, as far as it is known before runs are prepared.
    """
    settings = call.settings
    phenotype = _read_phenotype(call)
    package = load_package(settings.model, [call.output / "models"])
    plan = plan_corpus(call.datasets, call.output, settings, package.contract)
    labels = {recording.participant for recording in plan.recordings}
    labels |= {todo.run.participant for todo in plan.todo}
    return plan, _foresee_people(call, phenotype, sorted(labels), _read_split(settings))


def gather_group(call: PeopleCall, watch: Watch, stack: ExitStack, atlas: Atlas | None) -> Group:
    """Find outcomes and runs; prepare and embed what is not yet, and parcel it by an atlas if any.

    Raises
    ------
    CallRefused
        ``no-outcome``, ``outcome-constant``, ``too-few`` or ``leak``, before anything is embedded;
        and whatever keeps the call from starting.
    """
    settings, predict = call.settings, call.settings.predict
    phenotype, split = _read_phenotype(call), _read_split(settings)
    package = load_package(settings.model, [call.output / "models"])
    pooling = call.choose_pooling(package)
    describer = Describer(
        package=package,
        settings=settings.embedding,
        pooling=pooling,
        device=choose_device(settings.compute.device),
        atlas=atlas,
        motion=settings.baseline.motion,
        output=call.output,
    )
    recordings, unprepared = gather_runs(
        call,
        package.contract,
        find_limits(settings.compute),
        watch.show_plan,
        watch.count,
        stack,
    )
    _refuse_shared_labels(recordings)
    refuse_twins(recordings)
    kept, seen, notes = _heed_seen(recordings, package, predict.seen)
    labels = sorted({recording.participant for recording in kept})
    _foresee_people(call, phenotype, labels, split)
    runs, undescribed = describe_runs(kept, describer, watch.count)
    people = _describe_people(phenotype, _average_motion(runs), settings, split)
    outcomes, told = take_outcomes(phenotype, predict.outcomes, people.labels, predict.kinds)
    return Group(
        package=package,
        runs=runs,
        seen=seen,
        people=people,
        cohort=Cohort(
            owners=people.find([run.recording.participant for run in runs]),
            embeddings=np.stack([run.embedding for run in runs]),
            covariances=np.stack([run.covariance for run in runs])
            if pooling == "covariance"
            else None,
            series=[run.series for run in runs],
            summaries=np.stack([run.summary for run in runs]),
        ),
        outcomes=outcomes,
        notes=(
            f"people are told by {_POOLINGS[pooling]}",
            *notes,
            *told,
            *(match_split(split, people.labels) if split else ()),
        ),
        refusals=(*(one.refusal for one in unprepared), *undescribed),
    )


def _read_phenotype(call: PeopleCall) -> Phenotype:
    """Read the table that holds what is to be predicted."""
    given = call.settings.predict.phenotype
    if not call.settings.predict.outcomes:
        raise CallRefused(
            "usage",
            expected="what is to be predicted",
            found="no --outcome",
            advice="name columns of participants.tsv, as in --outcome age sex",
        )
    if given:
        return read_phenotype(Path(given))
    if len(call.datasets) > 1:
        raise CallRefused(
            "usage",
            expected="one table of the participants of all datasets",
            found=f"{len(call.datasets)} datasets and no --phenotype",
            advice="write their participants into one table and name it with --phenotype",
        )
    return read_phenotype(call.datasets[0] / TABLE)


def _read_split(settings: EvaluateSettings) -> Split | None:
    given = settings.judge.split
    return read_split(Path(given)) if given else None


def _describe_people(
    phenotype: Phenotype,
    motion: Mapping[str, float],
    settings: EvaluateSettings,
    split: Split | None,
) -> People:
    return describe_people(
        phenotype,
        motion,
        site=settings.predict.site,
        family=settings.predict.family,
        covariates=settings.baseline.covariates,
        split=split,
    )


def _foresee_people(
    call: PeopleCall, phenotype: Phenotype, labels: Sequence[str], split: Split | None
) -> tuple[str, ...]:
    """Refuse tables that nobody can be judged by; return what is told of outcomes and the split."""
    predict = call.settings.predict
    outcomes, told = take_outcomes(phenotype, predict.outcomes, labels, predict.kinds)
    people = _describe_people(phenotype, dict.fromkeys(labels, np.nan), call.settings, split)
    call.require_people(outcomes, people)
    if split is None:
        return told
    notes = match_split(split, labels)
    for outcome in outcomes:
        lay_file(outcome, people.list_families(outcome.people), split)
    return (*told, *notes)


def _refuse_shared_labels(recordings: Sequence[Recording]) -> None:
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
    recordings: Sequence[Recording], package: Package, wish: str
) -> tuple[Sequence[Recording], tuple[str, ...], list[str]]:
    """Refuse, leave out or keep people that the weights have seen; say who they are."""
    seen = sorted({one.participant for one in recordings if note_seen(package, one.prepared)})
    if not seen:
        return recordings, (), []
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
        kept = [one for one in recordings if one.participant not in seen]
        return kept, (), [f"{len(seen)} people left out, on whom the weights were trained"]
    note = (
        f"the weights were trained on {len(seen)} of these people ({found}): what the model tells "
        "of them says nothing of others"
    )
    return recordings, tuple(seen), [note]


def _average_motion(runs: Sequence[RunFeatures]) -> dict[str, float]:
    known: dict[str, list[float]] = {}
    for run in runs:
        known.setdefault(run.recording.participant, []).append(run.motion)
    return {label: float(np.mean(values)) for label, values in known.items()}
