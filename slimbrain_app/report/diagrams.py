"""Diagrams of an evaluation, out of its tables, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.report.svg import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    Chart,
    new_figure,
    write_svg,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# More points can't be told apart, and each takes a hundred bytes.
MOST_POINTS = 1000
# More classes, sites or lines can't be told apart either.
MOST_GROUPS, MOST_LEVELS = 6, 3
_WIDTH = 4.6
_LETTERS = 28
_COLOURS = (BLUE, ORANGE, VERMILLION, GREEN, PURPLE, SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P")
# Of numbers, low to high.
_SHADES = (BLUE, SKY, "#999999", ORANGE, VERMILLION)
_RING: dict[str, Any] = {
    "color": INK,
    "marker": "o",
    "markerfacecolor": "none",
    "markersize": 8,
    "linestyle": "",
}
_LEVEL: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": (0, (4, 3))}


@dataclass(frozen=True, slots=True)
class Groups:
    """Who is coloured alike: a name for each person, none for some, and all names in order.

    ``ranked`` if they are ranges of numbers rather than names.
    """

    of: tuple[str | None, ...]
    names: tuple[str, ...]
    ranked: bool = False

    @property
    def drawn(self) -> tuple[str, ...]:
        """The names that have a colour: the largest, in their order."""
        largest = sorted(self.names, key=lambda name: -self.of.count(name))[:MOST_GROUPS]
        return tuple(name for name in self.names if name in largest)


def name_groups(names: Sequence[str | None]) -> Groups:
    """Group people by what they are called."""
    return Groups(tuple(names), tuple(sorted({name for name in names if name is not None})))


def cut_numbers(values: NDArray[np.float64]) -> Groups:
    """Group people by the fifth of all numbers that theirs lies in; NaN is in none."""
    known = values[np.isfinite(values)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, len(_SHADES) + 1)))
    pairs = list(pairwise(edges)) or [(edges[0], edges[0])]
    names = [f"{low:.4g} to {high:.4g}" for low, high in pairs]
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(names) - 1)
    return Groups(
        tuple(
            names[place] if np.isfinite(value) else None
            for value, place in zip(values, places, strict=True)
        ),
        tuple(dict.fromkeys(names)),
        ranked=True,
    )


def draw_forest(name: str, scores: pd.DataFrame, schemes: Mapping[str, str]) -> Chart:
    """Draw one metric of each set of features, with intervals and what a guess scores.

    Parameters
    ----------
    name : str
        Of the figure.
    scores : DataFrame
        Rows of the table of metrics, of one outcome and metric.
    schemes : mapping of str to str
        What each scheme is, in words.
    """
    features = list(dict.fromkeys(scores["features"]))
    named = [key for key in schemes if (scores["scheme"] == key).any()]
    metric, told = scores["metric"].iloc[0], []
    with new_figure(_WIDTH, 0.9 + 0.36 * len(features)) as figure:
        axes = figure.subplots()
        for number, scheme in enumerate(named):
            own = scores[scores["scheme"] == scheme].set_index("features")
            shift = 0.24 * (number - (len(named) - 1) / 2)
            marks = {"color": _COLOURS[number], "marker": _MARKERS[number]}
            label: str | None = schemes[scheme]
            for place, key in enumerate(features):
                if key in own.index:
                    value, lower, upper = own.loc[key, ["value", "lower", "upper"]]
                    _draw_interval(axes, place + shift, value, lower, upper, label, marks)
                    label = None
                    told.append(
                        f"{key}, {schemes[scheme]}: {value:.2f}, {lower:.2f} to {upper:.2f}."
                    )
        for number, chance in enumerate(sorted(set(scores["chance"].dropna()))):
            axes.axvline(chance, label=None if number else "a guess", **_LEVEL)
        axes.set_yticks(range(len(features)), [_cut(key) for key in features])
        axes.set_ylim(len(features) - 0.5, -0.5)
        axes.set_xlabel(metric)
        axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.5)
        _explain(axes)
        svg = write_svg(figure, name, f"{metric} with 95 % intervals. " + " ".join(told))
    caption = "The model and what it has to beat, with 95 % intervals"
    caption += "; dashed: a guess." if scores["chance"].notna().any() else "."
    return Chart(group="forest", title=f"Scores ({metric})", caption=caption, svg=svg)


def _draw_interval(
    axes: Axes,
    place: float,
    value: float,
    lower: float,
    upper: float,
    label: str | None,
    style: Mapping[str, Any],
) -> None:
    axes.plot([lower, upper], [place, place], color=style["color"], linewidth=1.2)
    axes.plot([value], [place], linestyle="", markersize=5, label=label, **style)


def draw_scatter(
    name: str, truth: NDArray[Any], predicted: NDArray[Any], label: str, title: str, caption: str
) -> Chart:
    """Draw predicted against true numbers; ``label`` has their units."""
    shown = choose_points(len(truth))
    with new_figure(_WIDTH, 3.4) as figure:
        axes = figure.subplots()
        _draw_points(axes, truth[shown], predicted[shown], BLUE, "o", None)
        low, high = (bound(truth.min(), truth.max()) for bound in (min, max))
        axes.plot([low, high], [low, high], label="as true", **_LEVEL)
        axes.set(xlabel=_cut(f"true {label}", 60), ylabel=_cut(f"predicted {label}", 40))
        _explain(axes)
        svg = write_svg(figure, name, f"Predicted against true numbers of {len(truth)} people.")
    return Chart(group="scatter", title=title, caption=caption + tell_thinning(len(truth)), svg=svg)


def draw_calibration(name: str, bins: pd.DataFrame, title: str) -> Chart:
    """Draw how often classes came to pass by how probable they were said to be.

    Parameters
    ----------
    name : str
    bins : DataFrame
        Rows of the table of calibration, of one outcome, scheme and set of features.
    title : str
    """
    levels = list(dict.fromkeys(bins["level"]))
    told = []
    with new_figure(_WIDTH, 3.4) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], label="as said", **_LEVEL)
        for number, level in enumerate(levels[:MOST_LEVELS]):
            own = bins[bins["level"] == level].sort_values("predicted")
            style: dict[str, Any] = {"color": _COLOURS[number], "marker": _MARKERS[number]}
            style |= {"linewidth": 1.0, "markersize": 4, "label": _cut(level)}
            axes.plot(own["predicted"], own["observed"], **style)
            pairs = zip(own["predicted"], own["observed"], strict=True)
            told.append(f"{level}: " + ", ".join(f"{x:.2f} {y:.2f}" for x, y in pairs) + ".")
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.set(xlabel="probability, as predicted", ylabel="share, as it was")
        _explain(axes)
        svg = write_svg(figure, name, "Predicted probability and share. " + " ".join(told))
    more = f" The first {MOST_LEVELS} of {len(levels)} classes." * (len(levels) > MOST_LEVELS)
    caption = f"Tenths of the model's predictions, over all repeats.{more}"
    return Chart(group="calibration", title=title, caption=caption, svg=svg)


def draw_map(
    name: str, people: pd.DataFrame, groups: Groups, title: str, shares: Sequence[float]
) -> Chart:
    """Draw people on two principal components, coloured by what group they are of.

    Parameters
    ----------
    name : str
    people : DataFrame
        The table of people.
    groups : Groups
        Of these people.
    title : str
    shares : sequence of float
        Of the variance, along both components.
    """
    first, second = (people[key].to_numpy(float) for key in ("first", "second"))
    apart = (people["apart"] == "yes").to_numpy()
    shown = choose_points(len(people), apart)
    with new_figure(_WIDTH, 3.8) as figure:
        axes = figure.subplots()
        for label, rows, colour, marker in _list_parts(groups):
            rows = rows[shown[rows]]
            _draw_points(axes, first[rows], second[rows], colour, marker, _cut(label))
        rings = np.flatnonzero(apart & shown)
        if len(rings):
            axes.plot(first[rings], second[rings], label="far from all", **_RING)
        axes.set(
            xlabel=f"first component ({100 * shares[0]:.0f} % of variance)",
            ylabel=f"second ({100 * shares[1]:.0f} %)",
        )
        _explain(axes)
        svg = write_svg(figure, name, f"{len(people)} people on two principal components.")
    return Chart(group="map", title=title, caption=_tell_groups(groups), svg=svg)


def choose_points(count: int, first: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Return which points are drawn, (count,): all, or at random but for those that come first."""
    if count <= MOST_POINTS:
        return np.ones(count, bool)
    order = np.random.default_rng(0).random(count)
    if first is not None:
        order = order - first
    shown = np.zeros(count, bool)
    shown[np.argsort(order, kind="stable")[:MOST_POINTS]] = True
    return shown


def tell_thinning(count: int) -> str:
    """Say that not all points are drawn, where that is so."""
    return f" {MOST_POINTS} of {count} points, drawn at random." if count > MOST_POINTS else ""


def _list_parts(groups: Groups) -> Iterator[tuple[str, NDArray[np.int64], str, str]]:
    """Yield label, rows, colour and marker of each group, the rest in grey and first."""
    drawn, of = groups.drawn, np.array(groups.of, object)
    rest = np.flatnonzero([name not in drawn for name in groups.of])
    if len(rest):
        yield "others", rest, GREY, "."
    colours = _SHADES if groups.ranked else _COLOURS
    for name, colour, marker in zip(drawn, colours, _MARKERS, strict=False):
        yield name, np.flatnonzero(of == name), colour, marker


def _tell_groups(groups: Groups) -> str:
    text, count = "Each point is a person.", len(groups.names)
    if count > MOST_GROUPS:
        text += f" The largest {MOST_GROUPS} of {count} groups are coloured."
    return text + tell_thinning(len(groups.of))


def _draw_points(
    axes: Axes, x: NDArray[Any], y: NDArray[Any], colour: str, marker: str, label: str | None
) -> None:
    axes.plot(
        np.round(x, 4),
        np.round(y, 4),
        marker,
        color=colour,
        label=label,
        markersize=3.5,
        markeredgewidth=0,
        alpha=0.8,
    )


def _explain(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=2,
            frameon=False,
            borderaxespad=0.2,
            borderpad=0,
            columnspacing=1.2,
            handlelength=2,
        )


def _cut(text: str, most: int = _LETTERS) -> str:
    """Return a name short enough for a figure, in one line."""
    line = " ".join(str(text).split())
    line = f" {line}" if line.startswith("_") else line  # Else it would have no legend.
    return line if len(line) <= most else line[: most - 1] + "…"
