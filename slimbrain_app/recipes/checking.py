"""What of a recipe's cohort is there: people, runs, spaces, repetition times, the outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from slimbrain_app.bids.discover import Found, check_dataset, discover, list_participants
from slimbrain_app.bids.participants import TABLE
from slimbrain_app.bids.spaces import MODEL
from slimbrain_app.errors import CallRefused, count
from slimbrain_app.evaluation.outcomes import Outcome, Phenotype, is_missing, take_outcomes
from slimbrain_app.evaluation.splits import FEWEST_SITES
from slimbrain_app.recipes.people import Mapped, map_people
from slimbrain_app.recipes.recipe import Recipe
from slimbrain_app.records import Run
from slimbrain_app.settings import Prepare

State = Literal["well", "mind"]

_SHOWN = 5
# Of two repetition times that are taken for the same.
_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Finding:
    """What is there of one thing, and what to do where it isn't as expected."""

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """What is there of a cohort.

    Attributes
    ----------
    findings : tuple of Finding
    people : Phenotype or None
        As an evaluation can read them; None where the table can't be used.
    refusal : CallRefused or None
        What would keep an evaluation from starting.
    """

    findings: tuple[Finding, ...]
    people: Phenotype | None
    refusal: CallRefused | None


def check_cohort(recipe: Recipe, dataset: Path, table: Path | None = None) -> Check:
    """Compare derivatives and a table of people with what a recipe takes.

    Parameters
    ----------
    recipe : Recipe
    dataset : Path
        Derivatives of fMRIPrep.
    table : Path, optional
        The cohort's own table; the dataset's ``participants.tsv`` if None.

    Raises
    ------
    CallRefused
        Where there is nothing to compare, as a call on the participant level is refused.
    """
    check_dataset(dataset)
    found = discover(dataset, recipe.select, Prepare())
    labels = sorted({run.participant for run in found.runs})
    findings = list(_check_runs(recipe, found, len(list_participants(dataset))))
    people = None
    try:
        _require_runs(recipe, found)
        mapped = map_people(recipe, table or dataset / TABLE, labels)
        (outcome,), notes = take_outcomes(mapped.phenotype, [recipe.outcome.name], labels, {})
        people = mapped.phenotype
        findings += _check_outcome(recipe, mapped, outcome, labels)
        findings += [Finding("table", "mind", note) for note in notes[1:]]
        findings += _check_groups(recipe, mapped.phenotype, outcome)
    except CallRefused as refusal:
        return Check(tuple(findings), people, refusal)
    return Check(tuple(findings), people, None)


def _check_runs(recipe: Recipe, found: Found, folders: int) -> Iterator[Finding]:
    runs, data = found.runs, recipe.data
    people = {run.participant for run in runs}
    there = f"{len(people)} with runs that can be used, of {folders} in the folder"
    if data.people:
        there += f"; {data.people:,} in {data.cohort}"
    some = len(people) < (data.people or 0)
    advice = "say beside every figure how many they were" if some else ""
    yield Finding("people", "mind" if some else "well", there, advice)
    if found.refused:
        codes = Counter(refusal.code for refusal in found.refused)
        yield Finding("refused", "mind", _list(codes, "run"), found.refused[0].advice)
    if not runs:
        return
    yield _check_sessions(recipe, runs)
    yield _check_counts(recipe, runs)
    yield _check_spaces(recipe, runs)
    yield _check_times(recipe, runs)


def _check_sessions(recipe: Recipe, runs: Sequence[Run]) -> Finding:
    named = {(run.participant, run.session) for run in runs if run.session}
    if not named:
        return Finding("sessions", "well", "none are named")
    there = _list(Counter(str(session) for _, session in named), "visit")
    several = [
        label for label, number in Counter(label for label, _ in named).items() if number > 1
    ]
    if recipe.identity or not several:
        return Finding("sessions", "well", there)
    there += f"; several of {_name(sorted(several))}"
    return Finding("sessions", "mind", there, "choose with select.sessions, or all of them count")


def _check_counts(recipe: Recipe, runs: Sequence[Run]) -> Finding:
    tasks = Counter(dict(run.entities)["task"] for run in runs)
    there, expected = _list(tasks, "run"), recipe.data.runs
    per_person = Counter(run.participant for run in runs)
    few = [label for label, number in per_person.items() if number < (expected or 0)]
    if not few:
        return Finding("tasks", "well", there)
    there += f"; fewer than {expected} of {_name(few)}"
    return Finding("tasks", "mind", there, "look whether their runs were preprocessed")


def _check_spaces(recipe: Recipe, runs: Sequence[Run]) -> Finding:
    there = _list(Counter(run.space for run in runs), "run")
    if all(run.space == MODEL.space for run in runs):
        return Finding("spaces", "well", there)
    spaces = " ".join(recipe.output_spaces)
    return Finding("spaces", "mind", there, f"fMRIPrep's --output-spaces {spaces} spares a step")


def _check_times(recipe: Recipe, runs: Sequence[Run]) -> Finding:
    times = Counter(f"{run.repetition_time.seconds:g} s" for run in runs)
    expected, there = recipe.data.tr, _list(times, "run")
    if expected is None:
        return Finding("TR", "well", there)
    off = [run.name for run in runs if abs(run.repetition_time.seconds / expected - 1) > _TOLERANCE]
    if not off:
        return Finding("TR", "well", there)
    advice = f"see whether these are runs of {recipe.data.cohort}"
    return Finding("TR", "mind", f"{there}; {expected:g} s is usual", advice)


def _require_runs(recipe: Recipe, found: Found) -> None:
    if not found.runs:
        raise CallRefused(
            "no-runs",
            expected="a run that can be used",
            found=f"{len(found.refused)} that can't: {found.refused[0].message}",
            advice="see the reasons, and preprocess the runs again",
        )
    counts = Counter(run.participant for run in found.runs)
    pairs = sum(number > 1 for number in counts.values())
    if recipe.identity and pairs < 2:
        raise CallRefused(
            "too-few",
            expected="two people or more with two runs, to know them again",
            found=f"{pairs} of {len(counts)}",
            advice="take people with runs of both days",
        )


def _check_outcome(
    recipe: Recipe, mapped: Mapped, outcome: Outcome, labels: Sequence[str]
) -> Iterator[Finding]:
    known = f"{len(outcome.people)} of {len(labels)} people by {mapped.column}"
    if outcome.kind == "number":
        low, middle, high = np.percentile(outcome.values, (0, 50, 100))
        units = f" {outcome.units}" if outcome.units else ""
        there = f"{known}: {low:g} to {high:g}{units}, half of them under {middle:g}"
    else:
        classes = Counter(map(str, outcome.values.tolist()))
        largest, most = classes.most_common(1)[0]
        share = most / len(outcome.people)
        there = (
            f"{known}: {', '.join(f'{name} {classes[name]}' for name in sorted(classes))}; to say "
            f"{largest} of everybody is right in {share:.0%}"
        )
        lacking = [name for name in recipe.outcome.labels if name not in classes]
        if lacking:
            there += f"; nobody is {' or '.join(lacking)}"
    yield Finding(outcome.name, "well", there)
    if mapped.left_out:
        found = _list(Counter(mapped.left_out), "cell")
        yield Finding("left out", "mind", found, "see whether these codes are of no class")


def _check_groups(recipe: Recipe, people: Phenotype, outcome: Outcome) -> Iterator[Finding]:
    """Look at the groups that are to stay on one side, or to be left out as a whole."""
    known = set(outcome.people)
    for name in ("site", "family"):
        if name not in people.columns:
            continue
        place = people.columns.index(name)
        cells = Counter(row.cells[place] for row in people.rows if row.person in known)
        groups = [cell for cell in cells if not is_missing(cell)]
        if name == "family" and not groups:
            advice = f"add {' or '.join(recipe.people.family)}, else kin may be on both sides"
            yield Finding(name, "mind", "not known", advice)
        elif name == "family":
            yield Finding(name, "well", f"{len(groups)}, each on one side")
        elif len(groups) < FEWEST_SITES:
            advice = f"{FEWEST_SITES} are needed to leave sites out"
            yield Finding(name, "mind", f"{len(groups)} known", advice)
        else:
            yield Finding(name, "well", f"{len(groups)}, each left out once")


def _list(counts: Counter[str], noun: str) -> str:
    """Return the most frequent entries, each with how many there are of it."""
    frequent = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:_SHOWN]
    shown = [f"{name} ({count(number, noun)})" for name, number in frequent]
    more = f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else ""
    return ", ".join(shown) + more


def _name(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(f"sub-{label}" for label in labels[:_SHOWN]) + more
