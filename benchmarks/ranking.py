"""How good the ranking's shortcuts are, on simulated runs.

Two questions. Does the fast form of the extractor's judgement, which tries a window's message on a
few probe tokens, order windows as the exact one does, which tries it on all? And which way of
joining the two directions of judgement puts a planted artefact last?

Runs are those of the simulation's people, as means over the ranking's cells: networks that come
and go, drifts, noise. The extractor is trained on some of them and tried on others.

::

    python benchmarks/ranking.py                        # both, some minutes on two free cores
    python benchmarks/ranking.py --skip extractor       # the artefacts only
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from slimbrain_app.model.extractor import (
    PROBES,
    ExtractorSizes,
    TemporalExtractor,
    cut_tokens,
    hide_cells,
    score_windows,
)
from slimbrain_app.prepare.grid import template_brain
from slimbrain_app.ranking import combine_shares, list_starts, standardise, subspace_shares
from slimbrain_app.simulation.networks import load_regions
from slimbrain_app.simulation.noise import draw_wandering
from slimbrain_app.simulation.people import draw_person
from slimbrain_app.simulation.timecourses import draw_time_courses

Floats = NDArray[np.float64]

TR, WINDOW = 0.72, 40
# Of a cell's signal: what its regions give, its own noise, its drift. Memories in s.
NOISE, NOISE_MEMORY, DRIFT, DRIFT_MEMORY = 0.7, 3.0, 0.5, 60.0
# How strongly a network's activity waxes and wanes, and over what time (s).
WAXING, WAXING_MEMORY = 0.5, 40.0
REACH = 12.0  # mm
ARTEFACTS: Mapping[str, Callable[[np.random.Generator], Floats]] = {
    "wandering": lambda draw: draw.standard_normal(WINDOW).cumsum() / 4,
    "jump": lambda draw: np.repeat(draw.standard_normal(2), WINDOW // 2),
    "noise": lambda draw: draw.standard_normal(WINDOW),
}
STRENGTHS = (3.0, 10.0, 30.0)
LENGTHS = (300, 600, 1200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip", choices=("extractor", "artefacts"))
    parser.add_argument("--frames", type=int, default=2400, help="of the runs without artefacts")
    parser.add_argument("--training", type=int, default=12, help="runs to train the extractor on")
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--trials", type=int, default=8, help="runs tried, of each kind")
    options = parser.parse_args()
    if options.skip != "extractor":
        extractor = train_extractor(options.training, options.passes)
        compare_probes(extractor, options.trials, options.frames)
    if options.skip != "artefacts":
        compare_combinations(options.trials)


def simulate_cells(seed: int, frames: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return a person's run as (frames, cells), and the cells' places on their lattice."""
    draw = np.random.default_rng(seed)
    regions = load_regions()
    person = draw_person(seed, regions, draw)
    courses = draw_time_courses(regions, person.mixing, frames, TR, draw)
    waxing = draw_wandering(frames, len(regions.names), TR, WAXING_MEMORY, draw)
    courses = courses * person.gains * np.exp(WAXING * waxing)[:, regions.network]
    index, centres = locate_cells()
    distances = np.linalg.norm(person.coordinates[:, None] - centres, axis=2)
    cells = courses @ np.exp(-0.5 * (distances / REACH) ** 2)
    cells += NOISE * draw_wandering(frames, len(index), TR, NOISE_MEMORY, draw)
    cells += DRIFT * draw_wandering(frames, len(index), TR, DRIFT_MEMORY, draw)
    return cells, index


def locate_cells() -> tuple[NDArray[np.int64], Floats]:
    """Return the cells that hold brain, and their centres (mm)."""
    cubes = template_brain().reshape(12, 8, 12, 8, 12, 8).any(axis=(1, 3, 5))
    centres = np.argwhere(cubes) * 16.0 + np.array([-87.5, -105.5, -71.5])
    return np.flatnonzero(cubes), centres


def train_extractor(runs: int, passes: int) -> TemporalExtractor:
    """Train on random splits of the tokens into givers and takers, both ways."""
    extractor = TemporalExtractor(ExtractorSizes())
    optimiser = torch.optim.AdamW(extractor.parameters(), lr=1e-3)
    draw = torch.Generator().manual_seed(0)
    cut = [cut_run(*simulate_cells(1000 + run, 600), extractor.sizes) for run in range(runs)]
    start = time.perf_counter()
    for step, (tokens, present) in enumerate(cut * passes):
        hidden = hide_cells(present, len(tokens), extractor.sizes.views, seed=step)
        reading = extractor.read(tokens, hidden, TR)
        share = 0.1 + 0.8 * torch.rand(1, generator=draw)
        gives = torch.rand(len(tokens), generator=draw) < share
        losses = [
            extractor.errors(reading, (~side).nonzero()[:, 0], reading.states[side].sum(0)).mean()
            for side in (gives, ~gives)
        ]
        loss = torch.stack(losses).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    print(f"extractor: {step + 1} steps in {time.perf_counter() - start:.0f} s, loss {loss:.3f}")
    return extractor


def cut_run(
    cells: Floats, index: NDArray[np.int64], sizes: ExtractorSizes
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, present = cut_tokens(standardise(cells), index, sizes)
    return tokens.float(), present


def compare_probes(extractor: TemporalExtractor, trials: int, frames: int) -> None:
    """Print the rank correlation of fast with exact scores, by the number of probes."""
    starts = list_starts(frames)
    counts = (PROBES // 8, PROBES // 4, PROBES // 2, PROBES)
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for trial in range(trials):
        cells, index = simulate_cells(trial, frames)
        series = standardise(cells)

        def score(probes: int) -> tuple[Floats, Floats]:
            shares = score_windows(extractor, series, index, starts, WINDOW, TR, probes)  # noqa: B023
            return shares[1], combine_shares(*shares, "mutual")

        exact = score(frames)
        for count in counts:
            fast = score(count)
            found[count].append(
                tuple(spearmanr(*pair)[0] for pair in zip(fast, exact, strict=True))
            )
    print(f"fast against exact, {trials} runs of {frames} frames: median (least) correlation")
    for count in counts:
        outward, mutual = np.array(found[count]).T
        print(
            f"{count:4d} probes: outward {np.median(outward):.3f} ({outward.min():.3f}), "
            f"mutual {np.median(mutual):.3f} ({mutual.min():.3f})"
        )


def compare_combinations(trials: int) -> None:
    """Print in how many runs each way of joining the shares puts a planted artefact last."""
    last = Counter[str]()
    kinds = list(product(ARTEFACTS, STRENGTHS, LENGTHS, range(trials)))
    for number, (kind, strength, frames, _) in enumerate(kinds):
        starts = list_starts(frames)
        place = int(starts[len(starts) // 3])
        cells = plant_artefact(simulate_cells(number, frames)[0], kind, strength, place, number)
        shares = subspace_shares(standardise(cells), starts, WINDOW)
        for name, scores in combine_all(*shares).items():
            hit = abs(int(starts[np.argmin(scores)]) - place) < WINDOW
            groups = (kind, f"strength {strength:g}", f"{frames} frames")
            last.update({name: hit} | {f"{name}, {group}": hit for group in groups})
    print(f"an artefact, or a window that overlaps it, is last, of {len(kinds)} runs:")
    for name, count in last.items():
        if "," not in name:
            parts = [
                f"{key.split(', ')[1]} {last[key]}" for key in last if key.startswith(name + ",")
            ]
            print(f"{name:28s}{count:4d}   {', '.join(parts)}")


def plant_artefact(cells: Floats, kind: str, strength: float, place: int, seed: int) -> Floats:
    draw = np.random.default_rng([7, seed])
    planted = cells.copy()
    pattern = draw.standard_normal(cells.shape[1]) * cells.std(axis=0)
    planted[place : place + WINDOW] += strength * np.outer(ARTEFACTS[kind](draw), pattern)
    return planted


def combine_all(inward: Floats, outward: Floats) -> dict[str, Floats]:
    def plain(share: Floats) -> Floats:
        return np.asarray((share - share.mean()) / share.std())

    def robust(share: Floats) -> Floats:
        centred = share - np.median(share)
        return np.asarray(centred / (1.4826 * np.median(np.abs(centred))))

    return {
        "inward alone": inward,
        "outward alone": outward,
        "sum of z": plain(inward) + plain(outward),
        "sum of robust z": robust(inward) + robust(outward),
        "least z": np.minimum(plain(inward), plain(outward)),
        "least robust z (mutual)": combine_shares(inward, outward, "mutual"),
    }


if __name__ == "__main__":
    main()
