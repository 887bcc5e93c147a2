"""Figures for the explanations, drawn by SlimBrain's own code from a simulated run."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from slimbrain_app.bids.discover import discover
from slimbrain_app.embedding import embed_run
from slimbrain_app.model.packages import load_package
from slimbrain_app.model.presets import PRESETS, EncoderSizes
from slimbrain_app.model.tokens import keep_brain
from slimbrain_app.prepare import prepare_run
from slimbrain_app.prepare.grid import template_brain
from slimbrain_app.prepare.store import mask_image, mean_image
from slimbrain_app.ranking import rank_run
from slimbrain_app.records import Contract
from slimbrain_app.report.contents import ReportedRun
from slimbrain_app.report.figures import draw_coverage, draw_windows
from slimbrain_app.report.svg import GREY, SKY, VERMILLION, new_figure, write_svg
from slimbrain_app.settings import ParticipantSettings
from slimbrain_app.simulation import SimulationSettings, simulate_dataset

# The axial cut that is shown, in voxels from below.
HEIGHT = 44


def draw_figures(folder: Path) -> None:
    """Write an SVG for each figure that a page may name."""
    folder.mkdir(parents=True, exist_ok=True)
    run, contract = embed_somebody(), Contract()
    drawn = {
        "coverage": draw_coverage(run.name, run.mean_image, run.mask, contract),
        "windows": draw_windows(run, ParticipantSettings().rank.fd_threshold),
        "tokens": draw_tokens(),
    }
    for name, svg in drawn.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")


def embed_somebody() -> ReportedRun:
    """Take a simulated run, that of the tutorial's second person, through the steps."""
    settings, package = ParticipantSettings(), load_package("tiny")
    with TemporaryDirectory() as work:
        dataset = Path(work) / "fmriprep"
        simulate_dataset(dataset, SimulationSettings(participants=2, voxel_size=6.0))
        run = discover(dataset, settings.select, settings.prepare).runs[1]
        seconds = package.contract.span_seconds
        prepared = prepare_run(run, Path(work) / "prepared", settings.prepare, seconds)
        ranked = rank_run(prepared, package.contract, None, settings.rank, 0, run.name)
        embedding = embed_run(prepared, ranked, package, settings.encode, "cpu")
        pictures = {"mean_image": mean_image(prepared), "mask": mask_image(prepared)}
    return ReportedRun.of(run, prepared, ranked, embedding, **pictures)


def draw_tokens() -> str:
    """Draw which tokens of each preset exist, in an axial cut through the template's brain."""
    with new_figure(9, 3.4) as figure:
        panels = figure.subplots(1, len(PRESETS))
        for axes, (name, sizes) in zip(panels, PRESETS.items(), strict=True):
            _draw_grid(axes, name, sizes)
        description = (
            "Axial cuts through the template's brain on the token grids of tiny, base and "
            "official. Tokens that are computed are filled, deleted ones are empty."
        )
        return write_svg(figure, "tokens", description)


def _draw_grid(axes: Axes, name: str, sizes: EncoderSizes) -> None:
    brain, edge = template_brain(), sizes.patch[1]
    kept = keep_brain(torch.from_numpy(brain), sizes).numpy()
    tokens = kept[0, :, :, HEIGHT // edge]
    size, colours = len(brain), ListedColormap(["none", SKY])
    axes.imshow(
        tokens.T,
        cmap=colours,
        vmin=0,
        vmax=1,
        origin="lower",
        extent=(0, size, 0, size),
        interpolation="none",
    )
    for draw in (axes.hlines, axes.vlines):
        draw(np.arange(0, size + 1, edge), 0, size, colors=GREY, linewidth=0.3)
    middles = np.arange(size) + 0.5
    axes.contour(middles, middles, brain[:, :, HEIGHT].T, [0.5], colors=VERMILLION, linewidths=1.2)
    axes.set_title(f"{name}: {kept.sum():,} of {kept.size:,} tokens", size=9)
    axes.axis("off")
