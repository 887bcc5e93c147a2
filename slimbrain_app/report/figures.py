"""Figures of one run, as SVG: where it has brain, how it moved, what was selected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.prepare.grid import template_brain
from slimbrain_app.records import Contract, Explanation, Window
from slimbrain_app.report.contents import ReportedRun, join_spans
from slimbrain_app.report.svg import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    new_figure,
    write_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TILES = 7
# One voxel of the mosaic is one point.
POINTS = 72
# Inches above a map.
_TITLE = 0.3
# Rows below each tile for its coordinate.
FOOT = 12
_SHADES = 64
# Highest brightness of the image, so that lines over it stand out.
_WHITE = 0.8
# Axial, coronal, sagittal: the axis that is cut.
_PLANES = (2, 1, 0)

Volume = NDArray[np.float32] | NDArray[np.bool_]
_PIXELS = "image-rendering:crisp-edges;image-rendering:pixelated"


def draw_coverage(
    name: str,
    mean_image: NDArray[np.float32],
    mask: NDArray[np.bool_],
    contract: Contract,
) -> str:
    """Draw a run's mask and the template's edge over its mean image, in three planes.

    Arrays are on the model grid (RAS+), shape (96, 96, 96). Left is drawn on the left. ``name``
    is the run's.
    """
    template = template_brain()
    cuts = {axis: cut_places(template, axis) for axis in _PLANES}
    height, width = mosaic(mask, cuts).shape
    with new_figure(width / POINTS, height / POINTS) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(
            _shaded(mosaic(mean_image, cuts)),
            cmap="gray",
            vmin=0,
            vmax=(_SHADES - 1) / _WHITE,
            interpolation="none",
        )
        _draw_edge(axes, mosaic(mask, cuts), color=ORANGE, linewidth=1)
        _draw_edge(axes, mosaic(template, cuts), color=SKY, linewidth=1, dashes=(3, 4))
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        axes.axis("off")
        _label_tiles(axes, cuts, contract)
        description = (
            "Mean image on the model grid in axial, coronal and sagittal planes, left on the left. "
            "The run's brain mask is a solid orange line, the template's edge a dashed blue one."
        )
        return write_svg(figure, f"{name}_coverage", description).replace(_PIXELS, "")


def draw_attribution(
    name: str,
    explanations: Sequence[Explanation],
    mask: NDArray[np.bool_],
    contract: Contract,
) -> str:
    """Draw the map of each output over the mask's outline, in three planes, one below another.

    Each has a scale of its own, to the 99.5th percentile of its voxels without sign.
    """
    cuts = {axis: cut_places(template_brain(), axis) for axis in _PLANES}
    outline = mosaic(mask, cuts)
    height, width = outline.shape
    count = len(explanations)
    with new_figure(width / POINTS, count * (height / POINTS + _TITLE)) as figure:
        figure.set_layout_engine("none")
        share = height / (height + _TITLE * POINTS) / count
        for place, one in enumerate(explanations, start=1):
            axes = figure.add_axes((0, 1 - place / count, 1, share))
            image = np.zeros(mask.shape, np.float32)
            image[mask] = one.values
            limit = float(np.percentile(np.abs(image[mask]), 99.5)) or 1.0
            axes.imshow(
                np.ma.masked_equal(mosaic(image, cuts), 0),
                cmap="PuOr",
                vmin=-limit,
                vmax=limit,
                interpolation="none",
            )
            _draw_edge(axes, outline, color=GREY, linewidth=0.6)
            axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            axes.axis("off")
            axes.set_title(_title_map(one, limit), size=9, loc="left")
            _label_tiles(axes, cuts, contract, INK)
        description = (
            f"Attributions of {count} outputs on the model grid in axial, coronal and sagittal "
            "planes, left on the left: purple raises the output, orange lowers it."
        )
        return write_svg(figure, f"{name}_attribution", description).replace(_PIXELS, "")


def _title_map(one: Explanation, limit: float) -> str:
    level = f" {one.level}" if one.level else ""
    return f"{one.outcome}{level}: full colour at {limit:.2g} {one.units} in a voxel"


def cut_places(template: NDArray[np.bool_], axis: int) -> list[int]:
    """Return the indices of evenly spaced slices through the template's brain."""
    others = tuple(other for other in range(3) if other != axis)
    inside = np.flatnonzero(template.any(axis=others))
    first, last = inside[0], inside[-1]
    return [round(place) for place in np.linspace(first, last, TILES + 2)[1:-1]]


def cut_plane(volume: Volume, axis: int, place: int) -> NDArray[np.float32]:
    """Return a slice as it is drawn: superior or anterior on top, left or posterior on the left."""
    plane: NDArray[np.float32] = np.take(volume, place, axis).astype(np.float32)
    return plane.T[::-1]


def mosaic(volume: Volume, cuts: dict[int, list[int]]) -> NDArray[np.float32]:
    """Join slices: a row per plane, a column per cut, some empty lines below each row."""
    rows = [
        np.pad(
            np.hstack([cut_plane(volume, axis, place) for place in cuts[axis]]),
            ((0, FOOT), (0, 0)),
        )
        for axis in _PLANES
    ]
    return np.vstack(rows)


def draw_windows(run: ReportedRun, threshold: float) -> str:
    """Draw motion, its threshold (mm) and saliency over a run's seconds, and selected windows."""
    known = run.displacement is not None
    with new_figure(9, 2.6 if known else 1.4) as figure:
        panels = figure.subplots(2 if known else 1, 1, sharex=True, squeeze=False)[:, 0]
        for axes in panels:
            _shade_time(axes, run)
        if known:
            _draw_displacement(panels[0], run, threshold)
        _draw_saliency(panels[-1], run.windows)
        panels[-1].set_xlabel("seconds from the first volume")
        panels[-1].set_xlim(0, (run.dummy_scans + run.volumes) * run.tr)
        description = (
            f"Over the time of the run: {'framewise displacement and ' if known else ''}saliency "
            f"of {len(run.windows)} windows, of which {len(run.selected)} are selected and shaded."
        )
        return write_svg(figure, f"{run.name}_windows", description)


def draw_embedding(run: ReportedRun) -> str:
    """Draw a run's embedding and its views as strips, and how alike the views are."""
    mean = run.embedding[None]
    views = mean[:0] if run.views is None else run.views
    several = len(views) > 1
    with new_figure(9, 0.9 + 0.09 * min(len(views), 16)) as figure:
        ratios = [4, 1] if several else [1]
        panels = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0]
        _draw_strips(panels[0], np.vstack([mean, views]))
        if several:
            _draw_similarity(panels[1], cosine_similarity(views))
        likeness = ", and the cosine similarity of each pair of views" if several else ""
        description = f"Values of the run's embedding as a strip of colours{likeness}."
        return write_svg(figure, f"{run.name}_embedding", description)


def cosine_similarity(views: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of the angle between each pair of rows; 0 for a row of zeros."""
    rows = views.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    units = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    similarity: NDArray[np.float64] = units @ units.T
    return similarity


def _shaded(image: NDArray[np.float32]) -> NDArray[np.float32]:
    # Sixty-four shades look as smooth and compress to half the size.
    bright = image[image > 0]
    if bright.size == 0:
        return np.zeros_like(image)
    low, high = np.percentile(bright, [1, 99.5])
    scaled = ((image - 0.7 * low) / (high - 0.7 * low)).clip(0, 1)
    shades: NDArray[np.float32] = np.round(scaled * (_SHADES - 1)).astype(np.float32)
    return shades


def _draw_edge(axes: Axes, image: NDArray[np.float32], **style: Any) -> None:
    from contourpy import contour_generator

    gap = np.full((1, 2), np.nan)
    lines = contour_generator(z=image).lines(0.5)
    pieces = [piece for line in lines for piece in (np.asarray(line), gap)] or [gap]
    axes.plot(*np.vstack(pieces).T, **style)


def _label_tiles(
    axes: Axes, cuts: dict[int, list[int]], contract: Contract, color: str = "white"
) -> None:
    size = contract.shape[0]
    for row, axis in enumerate(_PLANES):
        top = row * (size + FOOT)
        for column, place in enumerate(cuts[axis]):
            text = _name_cut(axis, contract.origin[axis] + contract.voxel_size * place)
            centre = (column + 0.5) * size
            axes.text(centre, top + size + 3, text, color=color, size=7, ha="center", va="center")
        left, right = ("P", "A") if axis == 0 else ("L", "R")
        for side, x, align in ((left, 4, "left"), (right, TILES * size - 4, "right")):
            axes.text(
                x,
                top + size / 2,
                side,
                color=color,
                size=10,
                weight="bold",
                ha=align,
                va="center",
            )


def _name_cut(axis: int, millimetres: float) -> str:
    side = "" if axis else " L" if millimetres < 0 else " R"
    return f"{'xyz'[axis]} = {millimetres:+.1f}{side}".replace("-", "\N{MINUS SIGN}")


def _shade_time(axes: Axes, run: ReportedRun) -> None:
    for onset, end in join_spans(run.windows):
        axes.axvspan(onset, end, color=BLUE, alpha=0.14, linewidth=0)
    if run.dummy_scans:
        axes.axvspan(0, run.dummy_scans * run.tr, color=GREY, alpha=0.4, linewidth=0)


def _draw_displacement(axes: Axes, run: ReportedRun, threshold: float) -> None:
    values = np.array(run.displacement)
    onsets = (run.dummy_scans + np.arange(len(values))) * run.tr
    axes.plot(onsets, values, color=INK, linewidth=0.7)
    if threshold:
        above = values > threshold
        axes.axhline(threshold, color=VERMILLION, linewidth=0.8, linestyle="dashed")
        axes.plot(onsets[above], values[above], "x", color=VERMILLION, markersize=4)
    axes.set_ylim(0, max(1.1 * values.max(), 1.6 * threshold, 0.1))
    axes.set_ylabel("displacement\n(mm)")


def _draw_saliency(axes: Axes, windows: Sequence[Window]) -> None:
    centres = [window.onset + window.duration / 2 for window in windows]
    axes.plot(centres, [window.saliency for window in windows], "o-", color=GREY, markersize=2.5)
    for centre, window in zip(centres, windows, strict=True):
        if not window.selected:
            continue
        end = window.onset + window.duration
        axes.plot([window.onset, end], [window.saliency] * 2, color=BLUE, linewidth=1.5)
        axes.plot(centre, window.saliency, "o", color=BLUE, markersize=9)
        axes.annotate(
            str(window.rank),
            (centre, window.saliency),
            color="white",
            size=6.5,
            ha="center",
            va="center_baseline",
        )
    axes.margins(y=0.2)
    axes.set_ylabel("saliency")


def _draw_strips(axes: Axes, rows: NDArray[np.float32]) -> None:
    limit = float(np.abs(rows).max()) or 1.0
    image = axes.imshow(
        rows, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto", interpolation="none"
    )
    axes.set_yticks([0], ["run"])
    if len(rows) > 1:
        axes.axhline(0.5, color="white", linewidth=2)
        axes.set_yticks([0, len(rows) / 2], ["run", "views"])
    axes.set_xlabel("dimension of the embedding")
    axes.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)


def _draw_similarity(axes: Axes, similarity: NDArray[np.float64]) -> None:
    # Views that hardly differ are to look alike.
    low = min(0.9, similarity.min())
    image = axes.imshow(similarity, cmap="cividis", vmin=low, vmax=1, interpolation="none")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("cosine similarity of views")
    axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03)
