"""The group's page of an evaluation: one self-contained HTML file, made of the tables beside it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slimbrain_app.errors import REASONS
from slimbrain_app.files import write_text
from slimbrain_app.records import ModelIdentity, Recording, Refusal
from slimbrain_app.report import story as told
from slimbrain_app.report.diagrams import (
    cut_numbers,
    draw_calibration,
    draw_forest,
    draw_map,
    draw_scatter,
    name_groups,
)
from slimbrain_app.report.group import EVALUATION_PAGE, MOST_REFUSALS, link_evaluation
from slimbrain_app.report.page import group_by_code, make_environment
from slimbrain_app.report.svg import Chart
from slimbrain_app.settings import EvaluateSettings, write_settings

if TYPE_CHECKING:
    import pandas as pd

MODEL, CONNECTIVITY = "model", "connectivity"
SCHEMES = {
    "person": "people left out at random",
    "site": "whole sites left out",
    "file": "people left out as the file of splits says",
}
TABLES = ("metrics", "scores", "splits", "calibration", "people")
MOST_APART = 50
_GROUP_PAGE = "group.html"
_IN_UNITS = ("MAE", "RMSE")
_NOUNS = {
    "AUROC": "an AUROC of",
    "balanced accuracy": "a balanced accuracy of",
    "r": "a correlation (r) of",
}
_CLASSES_SHOWN = 20
# A p above it speaks against a score that its interval speaks for.
_LIKELY = 0.05


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Findings:
    """What an evaluation has found.

    Attributes
    ----------
    model : ModelIdentity
    recordings : tuple of Recording
        The runs of the people judged.
    seen : int
        People among them whom the weights were trained on.
    metrics, scores, calibration, people : DataFrame
        The tables beside the page; of the scores, the model's suffice.
    sites : DataFrame
        Scores of each outcome, scheme, features and site; NaN where there are too few people.
    shares : tuple of float
        Of the variance of embeddings, along the two principal components.
    levels : mapping of str to (mapping of str to str)
        What each class of an outcome is, where it is known.
    software : mapping of str to str
        Package and version.
    command : tuple of str
        The command line, without absolute paths.
    methods : str
        The text of `slimbrain_app.report.methods.describe_evaluation`.
    """

    model: ModelIdentity
    recordings: tuple[Recording, ...]
    refusals: tuple[Refusal, ...]
    notes: tuple[str, ...]
    seen: int
    metrics: pd.DataFrame
    scores: pd.DataFrame
    calibration: pd.DataFrame
    people: pd.DataFrame
    sites: pd.DataFrame
    shares: tuple[float, float]
    levels: Mapping[str, Mapping[str, str]]
    settings: EvaluateSettings
    device: str
    software: Mapping[str, str]
    command: tuple[str, ...]
    methods: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """How often each class (a row) was told to be each class (a column), of so many people."""

    scheme: str
    repeats: int
    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Foretold:
    """What the page tells of an outcome.

    ``scores`` and ``differences`` hold (features, metric, units, cells), ``sites`` holds (site,
    people, cells); a cell for each scheme, or for each of ``columns``, is a row of a table or None.
    """

    name: str
    schemes: Mapping[str, int]
    sentences: tuple[str, ...]
    charts: tuple[Chart, ...]
    scores: tuple[tuple[str, str, str, tuple[Any, ...]], ...]
    differences: tuple[tuple[str, str, str, tuple[Any, ...]], ...]
    matrices: tuple[Matrix, ...]
    columns: tuple[tuple[str, str], ...]
    sites: tuple[tuple[str | None, int, tuple[Any, ...]], ...]
    levels: Mapping[str, str]


def write_evaluation_page(folder: Path, findings: Findings) -> None:
    """Write ``evaluation.html`` into ``folder``, and a link to it into the page of a pretraining.

    It tells no folder of this machine and needs no other file.

    Raises
    ------
    CallRefused
        ``not-writable`` or ``disk-full``.
    """
    pages = {page.name for page in folder.glob("*.html")}
    write_text(folder / EVALUATION_PAGE, render_evaluation_page(findings, pages))
    link_evaluation(folder / _GROUP_PAGE)


def render_evaluation_page(findings: Findings, pages: set[str] | frozenset[str]) -> str:
    """Return the page's HTML; ``pages`` are the names of those beside it."""
    settings = _without_folders(findings.settings)
    outcomes = [
        _gather(findings, name, number) for number, name in enumerate(_list_outcomes(findings))
    ]
    return (
        make_environment()
        .get_template("evaluation.html.jinja")
        .render(
            findings=findings,
            told=told,
            outcomes=outcomes,
            schemes=SCHEMES,
            identities=_list_identities(findings.metrics),
            maps=_draw_maps(findings),
            apart=_list_apart(findings.people, pages),
            most_apart=MOST_APART,
            classes_shown=_CLASSES_SHOWN,
            tables=TABLES,
            group_page=_GROUP_PAGE if _GROUP_PAGE in pages else None,
            refused=group_by_code(findings.refusals),
            reasons=REASONS,
            most_refusals=MOST_REFUSALS,
            command=shlex.join(findings.command),
            settings=write_settings(settings),
            changes=told.list_changes(settings),
            form=form_scores,
        )
    )


def form_scores(row: Mapping[str, Any] | pd.Series[Any]) -> list[str]:
    """Return a row's score, the ends of its interval and what a guess scores, as printed.

    All have three decimals, or, in units, as many as leave the largest of them four digits.

    >>> from math import nan
    >>> form_scores({"metric": "MAE", "value": 12.3456, "lower": 9.5, "upper": 15, "chance": nan})
    ['12.35', '9.50', '15.00', 'n/a']
    """
    known = [row[key] for key in ("value", "lower", "upper")]
    values = [float(value) for value in (*known, row.get("chance", math.nan))]
    largest = max((abs(value) for value in values if value == value), default=1)
    digits = 3 - math.floor(math.log10(largest or 1)) if row["metric"] in _IN_UNITS else 3
    return ["n/a" if value != value else f"{value:z.{max(digits, 0)}f}" for value in values]


def _without_folders(settings: EvaluateSettings) -> EvaluateSettings:
    # hide_paths doesn't know where a path with blanks ends.
    phenotype, split = settings.predict.phenotype, settings.judge.split
    return replace(
        settings,
        model=Path(settings.model).name,
        predict=replace(settings.predict, phenotype=phenotype and Path(phenotype).name),
        judge=replace(settings.judge, split=split and Path(split).name),
        baseline=replace(settings.baseline, atlas=Path(settings.baseline.atlas).name),
    )


def _list_outcomes(findings: Findings) -> list[str]:
    return list(dict.fromkeys(findings.scores["outcome"]))


def _gather(findings: Findings, name: str, number: int) -> Foretold:
    rows = findings.metrics[
        (findings.metrics["outcome"] == name) & findings.metrics["scheme"].isin(SCHEMES)
    ]
    schemes = {
        scheme: int(rows.loc[rows["scheme"] == scheme, "people"].iloc[0])
        for scheme in SCHEMES
        if (rows["scheme"] == scheme).any()
    }
    own = rows[rows["against"].isna()]
    against = rows[rows["against"].notna()]
    sites = findings.sites[findings.sites["outcome"] == name]
    columns = tuple(dict.fromkeys(zip(sites["scheme"], sites["features"], strict=True)))
    scores = findings.scores
    scores = scores[
        (scores["outcome"] == name) & (scores["features"] == MODEL) & (scores["repeat"] == 1)
    ]
    return Foretold(
        name=name,
        schemes=schemes,
        sentences=tuple(
            sentence
            for scheme in schemes
            for sentence in _tell_scheme(rows[rows["scheme"] == scheme], findings.settings)
        ),
        charts=tuple(_draw_outcome(findings, own, scores, name, number)),
        scores=_list_scores(own, "features", list(schemes)),
        differences=_list_scores(against, "against", list(schemes)),
        matrices=tuple(_count_matrices(scores, findings, list(schemes))),
        columns=columns,
        sites=tuple(_list_sites(sites, columns)),
        levels=findings.levels.get(name, {}),
    )


def _tell_scheme(rows: pd.DataFrame, settings: EvaluateSettings) -> Iterator[str]:
    """Say in words how well the model does under one scheme, and beside connectivity."""
    model = rows[(rows["features"] == MODEL) & rows["against"].isna()]
    first = model.iloc[0]
    metric, scheme = str(first["metric"]), str(first["scheme"])
    within = " within sites" if scheme == "site" else ""
    p = (
        f"; p = {first['p']:.2g} by {settings.judge.permutations} permutations{within}"
        if first["p"] == first["p"]
        else ""
    )
    where = _compare(first, first["chance"])
    yield (
        f"With {SCHEMES[scheme]} ({first['people']} people), the model tells {first['outcome']} "
        f"with {_NOUNS[metric]} {_form_interval(first)}, {where} what a "
        f"guess scores ({form_scores(first)[3]}){p}."
    )
    if within and where == "above" and first["p"] > _LIKELY:
        yield "So what it tells need be no more than how sites differ."
    others = rows[rows["against"].notna() & (rows["metric"] == metric)]
    others = others[others["against"].astype(str).str.startswith(CONNECTIVITY)]
    for _, other in others.iterrows():
        yield _tell_difference(other)
    if others.empty:
        yield "It was not compared with connectivity."
    coverage = model[model["metric"] == "coverage"]
    for _, row in coverage.iterrows():
        yield (
            f"The 90 % interval around a predicted number holds the true one for a share of "
            f"{_form_interval(row)} of the people."
        )


def _tell_difference(row: pd.Series[Any]) -> str:
    where = _compare(row, 0.0)
    if where == "not clearly apart from":
        return (
            f"From {row['against']} it differs by {_form_interval(row)}: these people can't tell "
            "which is better."
        )
    if where == "below":
        row = row.copy()
        row[["value", "lower", "upper"]] = -row["value"], -row["upper"], -row["lower"]
    return f"It is {where} {row['against']}, by {_form_interval(row)}."


def _compare(row: pd.Series[Any], level: float) -> str:
    if row["lower"] > level:
        return "above"
    return "below" if row["upper"] < level else "not clearly apart from"


def _form_interval(row: pd.Series[Any]) -> str:
    value, lower, upper, _ = form_scores(row)
    return f"{value} (95 % interval {lower} to {upper})"


def _list_scores(
    rows: pd.DataFrame, key: str, schemes: Sequence[str]
) -> tuple[tuple[str, str, str, tuple[Any, ...]], ...]:
    """Return features, metric, units, and the row of each scheme."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows.to_dict("records"):
        found.setdefault((row[key], row["metric"]), {})[row["scheme"]] = row
    return tuple(
        (features, metric, _find_units(own), tuple(own.get(scheme) for scheme in schemes))
        for (features, metric), own in found.items()
    )


def _find_units(rows: Mapping[str, Any]) -> str:
    units = next(iter(rows.values()))["units"]
    return units if isinstance(units, str) else ""


def _count_matrices(
    scores: pd.DataFrame, findings: Findings, schemes: Sequence[str]
) -> Iterator[Matrix]:
    if scores["level"].isna().all():
        return
    for scheme in schemes:
        own = scores[scores["scheme"] == scheme].drop_duplicates("participant_id")
        classes = sorted(set(own["truth"]) | set(own["predicted"]))
        pairs = own.groupby(["truth", "predicted"]).size()
        yield Matrix(
            scheme=scheme,
            repeats=findings.settings.judge.repeats if scheme == "person" else 1,
            classes=tuple(classes),
            counts=tuple(
                tuple(int(pairs.get((true, said), 0)) for said in classes) for true in classes
            ),
        )


def _list_sites(
    sites: pd.DataFrame, columns: Sequence[tuple[str, str]]
) -> Iterator[tuple[str | None, int, tuple[Any, ...]]]:
    found: dict[Any, dict[tuple[str, str], Any]] = {}
    for row in sites.to_dict("records"):
        name = row["site"] if isinstance(row["site"], str) else None
        found.setdefault(name, {})[row["scheme"], row["features"]] = row
    for name, own in found.items():
        people = max(row["people"] for row in own.values())
        yield name, people, tuple(own.get(column) for column in columns)


def _draw_outcome(
    findings: Findings, own: pd.DataFrame, scores: pd.DataFrame, name: str, number: int
) -> Iterator[Chart]:
    first = own[own["metric"] == own["metric"].iloc[0]]
    yield draw_forest(f"forest_{number}", first, SCHEMES)
    label = _name_with_units(own, name)
    for scheme in dict.fromkeys(scores["scheme"]):
        told_of = scores[scores["scheme"] == scheme]
        place = f"{number}_{scheme}"
        if told_of["level"].isna().all():
            yield draw_scatter(
                f"scatter_{place}",
                told_of["truth"].to_numpy(float),
                told_of["predicted"].to_numpy(float),
                label,
                f"Predicted and true, {SCHEMES[scheme]}",
                f"{len(told_of)} people, each predicted by fits to others; the first repeat.",
            )
            continue
        table = findings.calibration
        bins = table[
            (table["outcome"] == name) & (table["scheme"] == scheme) & (table["features"] == MODEL)
        ]
        if len(bins):
            title = f"Calibration, {SCHEMES[scheme]}"
            yield draw_calibration(f"calibration_{place}", bins, title)


def _name_with_units(rows: pd.DataFrame, name: str) -> str:
    units = next((unit for unit in rows["units"] if isinstance(unit, str)), "")
    return f"{name} ({units})" if units else name


def _list_identities(metrics: pd.DataFrame) -> list[dict[Any, Any]]:
    rows: list[dict[Any, Any]] = metrics[~metrics["scheme"].isin(SCHEMES)].to_dict("records")
    return rows


def _draw_maps(findings: Findings) -> list[Chart]:
    people, shares = findings.people, findings.shares
    charts = []
    for number, name in enumerate(_list_outcomes(findings)):
        own = findings.scores[findings.scores["outcome"] == name]
        known = own.drop_duplicates("participant_id").set_index("participant_id")["truth"]
        truth = [known.get(label) for label in people["participant_id"]]
        if own["level"].isna().all():
            groups = cut_numbers(np.array(truth, float))
        else:
            groups = name_groups([None if value is None else str(value) for value in truth])
        rows = findings.metrics[findings.metrics["outcome"] == name]
        title = f"By {_name_with_units(rows, name)}"
        charts.append(draw_map(f"map_{number}", people, groups, title, shares))
    if people["site"].notna().any():
        sites = [site if isinstance(site, str) else None for site in people["site"]]
        charts.append(draw_map("map_site", people, name_groups(sites), "By site", shares))
    return charts


def _list_apart(people: pd.DataFrame, pages: set[str] | frozenset[str]) -> list[dict[Any, Any]]:
    """Return those far from all others, the farthest first, each with its page if there is one."""
    own = people[people["apart"] == "yes"].sort_values("distance", ascending=False)
    rows: list[dict[Any, Any]] = own.to_dict("records")
    for row in rows:
        page = f"{row['participant_id']}.html"
        row["page"] = page if page in pages else None
    return rows
