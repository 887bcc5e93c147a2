"""Curves of a pretraining and histograms of its corpus, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from slimbrain_app.model.masking import KINDS
from slimbrain_app.model.monitors import Reading
from slimbrain_app.report.story import Story, mean_displacement
from slimbrain_app.report.svg import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    VERMILLION,
    Chart,
    new_figure,
    write_svg,
)
from slimbrain_app.training.log import Alarm, Extract, Probe, Step, Validation, pick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A chart is as wide as a phone and half as wide as the page.
_WIDTH, _HEIGHT = 4.6, 2.3
# More points can't be told apart; of the marks, so many are enough.
_POINTS, _MARKS = 300, 12
# Told apart by colour, by dashes and by marks.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "marker": "o"},
    {"color": ORANGE, "marker": "s", "linestyle": (0, (5, 2))},
    {"color": VERMILLION, "marker": "^", "linestyle": (0, (1, 1.2))},
)
_FAINT: dict[str, Any] = {"color": GREY, "linewidth": 0.6, "alpha": 0.8}

Group = Literal["learning", "collapse", "probes", "pace", "extractor", "corpus"]
Points = Sequence[tuple[float, float]]
Timed = TypeVar("Timed", Step, Reading)


@dataclass(frozen=True, slots=True)
class Line:
    """Points of (pass, value) and how they are drawn; ``spans`` are intervals around them."""

    label: str
    points: Points
    style: dict[str, Any]
    spans: Points = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Lines over the same axes, and levels to compare them with."""

    label: str
    lines: Sequence[Line]
    levels: Sequence[tuple[float, str]] = ()
    scale: Literal["zero", "free", "log"] = "zero"
    alarms: Points = field(default=())


def draw_training(story: Story) -> list[Chart]:
    """Draw every curve for which the log has numbers."""
    draws = (
        _draw_loss,
        _draw_kinds,
        _draw_guesses,
        _draw_spread,
        _draw_rank,
        _draw_distance,
        _draw_optimiser,
        _draw_pace,
        _draw_extractor,
    )
    charts = [draw(story) for draw in draws]
    return [chart for chart in (*charts, *_draw_probes(story)) if chart is not None]


def draw_corpus(story: Story) -> list[Chart]:
    """Draw how coverage and motion are distributed over runs."""
    coverage = [100 * run.prepared.coverage for run in story.recordings]
    motion = [mean_displacement(run) for run in story.recordings]
    known = [value for value in motion if value is not None]
    unknown = len(motion) - len(known)
    return (
        [
            _draw_histogram(
                "Coverage",
                "template's brain inside the mask (%)",
                coverage,
                "Share of the template's brain that a run's mask covers.",
            ),
            _draw_histogram(
                "Motion",
                "mean framewise displacement (mm)",
                known,
                "Mean framewise displacement of each run"
                + (f"; unknown for {unknown} of {len(motion)} runs." if unknown else "."),
            ),
        ]
        if coverage
        else []
    )


def thin(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leave out what isn't finite, and average many points into as many as can be seen."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if len(finite) <= _POINTS:
        return finite
    parts = np.array_split(np.array(finite), _POINTS)
    return [(float(x), float(y)) for x, y in (part.mean(axis=0) for part in parts)]


def _draw_loss(story: Story) -> Chart | None:
    steps, validations = pick(story.events, Step), pick(story.events, Validation)
    lines = [
        Line("each step", _follow(story, steps, lambda step: step.loss), _FAINT),
        Line("training", _average(steps, lambda step: step.loss), _STYLES[0]),
        Line("validation", [(event.pass_, event.loss) for event in validations], _STYLES[1]),
    ]
    return _draw(
        Panel(label="loss", lines=lines),
        group="learning",
        title="Loss",
        caption="Mean over the steps of a pass, and on people kept out. A falling loss alone "
        "proves little: look at the two guesses and at the rank as well.",
    )


def _draw_kinds(story: Story) -> Chart | None:
    steps, validations = pick(story.events, Step), pick(story.events, Validation)
    learnt = [_average(steps, lambda step, place=place: step.kinds[place]) for place in range(3)]  # type: ignore[misc]
    held_out = [[(event.pass_, event.kinds[place]) for event in validations] for place in range(3)]
    return _draw(
        Panel(label="training", lines=_name(KINDS, learnt)),
        Panel(label="validation", lines=_name(KINDS, held_out)),
        group="learning",
        title="Loss of each kind of target",
        caption="Cross-time: a visible place at a hidden time. Cross-location: a hidden place at a "
        "visible time. Double-cross: neither is visible.",
    )


def _draw_guesses(story: Story) -> Chart | None:
    readings, validations = pick(story.events, Reading), pick(story.events, Validation)
    names = ("constant", "place")
    learnt = [
        _follow(story, readings, lambda reading: reading.over_constant),
        _follow(story, readings, lambda reading: reading.over_position),
    ]
    held_out = [
        [(event.pass_, event.over_constant) for event in validations],
        [(event.pass_, event.over_position) for event in validations],
    ]
    level = [(1.0, "no better")]
    return _draw(
        Panel(
            label="training",
            lines=_name(names, learnt),
            levels=level,
            alarms=_list_alarms(story),
        ),
        Panel(label="validation", lines=_name(names, held_out), levels=level),
        group="learning",
        title="Loss over that of guesses",
        caption="Two guesses that read no signal: one constant for all targets, and the mean "
        "target of each place. Below 1 the prediction is better.",
    )


def _draw_spread(story: Story) -> Chart | None:
    readings = pick(story.events, Reading)
    lines = [
        Line("median", _follow(story, readings, lambda reading: reading.median_spread), _STYLES[0]),
        Line(
            "smallest", _follow(story, readings, lambda reading: reading.least_spread), _STYLES[1]
        ),
    ]
    return _draw(
        Panel(label="deviation", lines=lines, scale="log", alarms=_list_alarms(story)),
        group="collapse",
        title="Spread of features",
        caption="Deviation of the target encoder's features over cells and windows: median and "
        "smallest over dimensions. A fall to nothing is a collapse.",
    )


def _draw_rank(story: Story) -> Chart | None:
    readings = pick(story.events, Reading)
    lines = [
        Line("cells", _follow(story, readings, lambda reading: reading.cell_rank), _STYLES[0]),
        Line("windows", _follow(story, readings, lambda reading: reading.view_rank), _STYLES[1]),
    ]
    width = story.start.width if story.start else 0
    return _draw(
        Panel(
            label="effective rank",
            lines=lines,
            levels=[(width / 4, "quarter of width")],
            alarms=_list_alarms(story),
        ),
        group="collapse",
        title="Effective rank",
        caption=f"In how many of {width} directions features lie. That of windows is at most the "
        "number of windows in a step.",
    )


def _draw_distance(story: Story) -> Chart | None:
    readings = pick(story.events, Reading)
    lines = [Line("", _follow(story, readings, lambda reading: reading.distance), _STYLES[0])]
    return _draw(
        Panel(label="distance", lines=lines),
        group="collapse",
        title="Distance between encoders",
        caption="Norm of the difference between the weights of the encoder that learns and of its "
        "moving average, which makes the targets.",
    )


def _draw_optimiser(story: Story) -> Chart | None:
    steps = pick(story.events, Step)
    rate = _follow(story, steps, lambda step: step.rate)
    norm = _follow(story, steps, lambda step: step.gradient_norm)
    return _draw(
        Panel(label="learning rate", lines=[Line("", rate, _STYLES[0])]),
        Panel(
            label="gradient norm",
            lines=[Line("", norm, _STYLES[0])],
            levels=[(story.settings.train.clip, "clipped above")],
            scale="log",
        ),
        group="pace",
        title="Learning rate and gradient",
        caption="Each step's learning rate, and the norm of its gradient before clipping.",
    )


def _draw_pace(story: Story) -> Chart | None:
    steps = pick(story.events, Step)
    pace = _follow(story, steps, lambda step: step.windows_per_second)
    waits = _follow(
        story, steps, lambda step: 100 * step.loader_seconds / (step.seconds or math.inf)
    )
    return _draw(
        Panel(label="windows per s", lines=[Line("", pace, _STYLES[0])]),
        Panel(label="waiting (%)", lines=[Line("", waits, _STYLES[0])]),
        group="pace",
        title="Throughput",
        caption="Windows per second over all processes, and the share of a step's time that it "
        "waited for the loader.",
    )


def _draw_extractor(story: Story) -> Chart | None:
    passes = pick(story.events, Extract)
    lines = [
        Line("training", [(event.pass_, event.loss) for event in passes], _STYLES[0]),
        Line("validation", [(event.pass_, event.validation) for event in passes], _STYLES[1]),
    ]
    return _draw(
        Panel(label="loss", lines=lines),
        group="extractor",
        title="Temporal extractor",
        caption="Its loss on whole runs, before the encoder's first step. It ranks the windows to "
        "learn from.",
    )


def _draw_probes(story: Story) -> Iterator[Chart | None]:
    probes = pick(story.events, Probe)
    for name in dict.fromkeys(probe.name for probe in probes):
        several = [probe for probe in probes if probe.name == name]
        line = Line(
            "",
            [(probe.pass_, probe.score) for probe in several],
            _STYLES[0],
            [(probe.lower, probe.upper) for probe in several],
        )
        levels = [(several[-1].chance, "chance")] if math.isfinite(several[-1].chance) else []
        yield _draw(
            Panel(label=several[-1].metric, lines=[line], levels=levels, scale="free"),
            group="probes",
            title=f"Probe: {name}",
            caption=f"How well a linear model reads {name} from embeddings, with 95 % intervals.",
        )


def _draw(*panels: Panel, group: Group, title: str, caption: str) -> Chart | None:
    """Draw those panels below one another that have a point, over passes."""
    filled = [panel for panel in panels if any(thin(line.points) for line in panel.lines)]
    if not filled:
        return None
    with new_figure(_WIDTH, _HEIGHT if len(filled) == 1 else 1.5 * _HEIGHT) as figure:
        stacked = list(figure.subplots(len(filled), 1, sharex=True, squeeze=False)[:, 0])
        for axes, panel in zip(stacked, filled, strict=True):
            _draw_panel(axes, panel)
        _explain_lines(stacked)
        figure.align_ylabels()
        stacked[-1].set_xlabel("pass")
        _scale_passes(stacked[-1])
        description = f"{title} over passes. " + " ".join(map(_describe_panel, filled))
        svg = write_svg(figure, f"group_{title}", description)
    return Chart(group=group, title=title, caption=caption, svg=svg)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        _draw_line(axes, line)
    for level, text in panel.levels:
        axes.axhline(level, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label=text)
    if panel.alarms:
        axes.plot(
            *zip(*panel.alarms, strict=True),
            "x",
            color=VERMILLION,
            markersize=4,
            transform=axes.get_xaxis_transform(),
            label="alarm",
        )
    _scale_values(axes, panel)
    axes.set_ylabel(panel.label)
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.5)


def _explain_lines(stacked: Sequence[Axes]) -> None:
    """Put a legend above each panel that doesn't look like the one above it."""
    known: list[str] = []
    for axes in stacked:
        handles, labels = axes.get_legend_handles_labels()
        if labels and not set(labels) <= set(known):
            axes.legend(
                handles,
                labels,
                loc="lower left",
                bbox_to_anchor=(0, 1),
                ncols=len(labels),
                frameon=False,
                borderaxespad=0.2,
                borderpad=0,
                columnspacing=1.2,
                handlelength=2,
            )
        known = labels


def _draw_line(axes: Axes, line: Line) -> None:
    points = thin(line.points)
    if not points:
        return
    every = math.ceil(len(points) / _MARKS)
    style = {"linewidth": 1.2, "markersize": 3.5, "markevery": every, **line.style}
    if every > 1 and not line.label:
        style["marker"] = ""
    axes.plot(*zip(*points, strict=True), label=line.label or None, **style)
    spans = [(x, *span) for (x, _), span in zip(line.points, line.spans, strict=False)]
    for x, lower, upper in spans:
        axes.plot([x, x], [lower, upper], "_-", color=style["color"], linewidth=1, markersize=5)


def _scale_values(axes: Axes, panel: Panel) -> None:
    values = [y for line in panel.lines for _, y in thin(line.points)]
    values += [level for level, _ in panel.levels]
    if panel.scale == "log" and min(values) > 0:
        _scale_by_decades(axes, min(values), max(values))
    elif panel.scale == "zero":
        axes.set_ylim(0, 1.08 * max(values) or 1)


def _scale_by_decades(axes: Axes, low: float, high: float) -> None:
    """Scale by the logarithm, from one labelled tick to another."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    below = [tick for tick in ticks if tick <= low] or ticks[:1]
    above = [tick for tick in ticks if tick >= max(high, 1.001 * below[-1])]
    kept = [tick for tick in ticks if below[-1] <= tick <= above[0]]
    axes.set_yscale("log")
    axes.set_ylim(kept[0], kept[-1])
    axes.set_yticks(kept[:: math.ceil(len(kept) / 6)])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_yticks([], minor=True)


def _scale_passes(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    last = max(1.0, axes.dataLim.x1)
    axes.set_xlim(-0.015 * last, 1.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _describe_panel(panel: Panel) -> str:
    parts = []
    for line in panel.lines:
        points = thin(line.points)
        if points and line.style is not _FAINT:
            name = f"{panel.label}, {line.label}" if line.label else panel.label
            parts.append(f"{name}: {points[0][1]:.3g} at first, {points[-1][1]:.3g} at last.")
    return " ".join(parts)


def _draw_histogram(title: str, label: str, values: Sequence[float], caption: str) -> Chart:
    from matplotlib.ticker import MaxNLocator

    with new_figure(_WIDTH, 0.85 * _HEIGHT) as figure:
        axes = figure.subplots()
        counts, edges = np.histogram(values, bins=20)
        axes.stairs(counts, edges, fill=True, color=BLUE)
        axes.set(xlabel=label, ylabel="runs")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        description = f"{title} of {len(values)} runs. " + _describe_values(values)
        svg = write_svg(figure, f"group_{title}", description)
    return Chart(group="corpus", title=title, caption=caption, svg=svg)


def _describe_values(values: Sequence[float]) -> str:
    if not values:
        return "None is known."
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"From {low:.3g} to {high:.3g}, with a median of {middle:.3g}."


def _average(steps: Sequence[Step], value: Callable[[Step], float]) -> list[tuple[float, float]]:
    """Return the mean over the finite values of each pass."""
    passes: dict[int, list[float]] = {}
    for step in steps:
        passes.setdefault(step.pass_, []).append(value(step))
    finite = {number: [v for v in values if math.isfinite(v)] for number, values in passes.items()}
    return [(number, math.fsum(v) / len(v)) for number, v in finite.items() if v]


def _follow(
    story: Story, events: Sequence[Timed], value: Callable[[Timed], float]
) -> list[tuple[float, float]]:
    return list(zip(story.place(event.step for event in events), map(value, events), strict=True))


def _name(labels: Sequence[str], several: Sequence[Points]) -> list[Line]:
    return [Line(*parts) for parts in zip(labels, several, _STYLES, strict=False)]


def _list_alarms(story: Story) -> list[tuple[float, float]]:
    # At the foot of the axes; rounded, for thousands would lie upon one another.
    places = story.place(alarm.step for alarm in pick(story.events, Alarm))
    return [(place, 0.05) for place in dict.fromkeys(float(f"{place:.2g}") for place in places)]
