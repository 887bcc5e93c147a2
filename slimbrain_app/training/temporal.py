"""Training of the temporal extractor on whole runs.

A run's tokens are split at random into givers and takers; from the givers' state, hidden cells of
the takers are filled in, and the other way round. Splits are of single tokens, as in masked
reconstruction, and of stretches as long as a window, which is what the extractor will judge. It
also learns to fill in cells from no state at all: scores compare with that, so it has to be good.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimbrain_app.files import whole_file
from slimbrain_app.model.extractor import (
    ExtractorSizes,
    TemporalExtractor,
    cut_tokens,
    hide_cells,
    measure_misfit,
)
from slimbrain_app.prepare.store import cell_means, interpolate
from slimbrain_app.ranking import standardise
from slimbrain_app.records import Contract, PreparedRun, Recording
from slimbrain_app.settings import Extract
from slimbrain_app.training.log import Extract as Pass

RUNS_PER_STEP = 4
WARM_UP = 0.05
CLIP = 1.0
GIVERS = (0.1, 0.9)
# Scores are differences of what parts of a run tell of each other; below it they are mostly chance.
LEAST_GAIN = 0.01
# Components with less variance than this share of the first one's are rounding.
_REAL = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """A run as the extractor takes it in.

    Attributes
    ----------
    series : ndarray, float32, shape (frames, cells)
        Standardised means at model time of the cells that the run has.
    index : ndarray of int, shape (cells,)
        Their places among all cells.
    """

    series: NDArray[np.float32]
    index: NDArray[np.int64]


def train_extractor(
    recordings: Sequence[Recording],
    contract: Contract,
    settings: Extract,
    seed: int,
    watch: Callable[[Pass], None],
    *,
    validation: Sequence[Recording] = (),
    sizes: ExtractorSizes | None = None,
    device: str = "cpu",
    work: Path | None = None,
    state: Mapping[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> TemporalExtractor:
    """Train a temporal extractor; the same on a CPU each time, whether or not it was interrupted.

    Parameters
    ----------
    recordings : sequence of Recording
        With at least one window each.
    contract : Contract
        Frame time, and frames per window.
    settings : Extract
    seed : int
        Of the first weights and of all that is drawn.
    watch : callable
        Told of each pass.
    validation : sequence of Recording
        People kept out, to watch it by.
    sizes : ExtractorSizes, optional
    device : str
    work : Path, optional
        A folder to keep the runs' cells in, 2 MB for 10 minutes; a later call finds them there.
        Without one they stay in memory.
    state : mapping, optional
        What ``save`` was given after some pass: go on from there.
    save : callable, optional
        Given all that the training needs to go on, after each pass.
    """
    sizes = sizes or ExtractorSizes()
    runs, held_out = (
        [keep_cells(recording.prepared, contract, work) for recording in part]
        for part in (recordings, validation)
    )
    # Cells that nobody has would only cost time.
    used = np.unique(np.concatenate([run.index for run in (*runs, *held_out)]))
    runs, held_out = (
        [Cells(run.series, np.searchsorted(used, run.index)) for run in part]
        for part in (runs, held_out)
    )
    extractor = TemporalExtractor(replace(sizes, cells=len(used)), seed)
    start_from_components(extractor, runs)
    extractor.to(device)
    training = _Training(extractor, contract, settings, seed, len(runs))
    training.load(state)
    for number in range(training.done, settings.passes):
        loss = training.go_through(runs, number)
        given, alone = training.validate(held_out)
        watch(Pass(pass_=number + 1, loss=loss, validation=given, alone=alone))
        if save is not None:
            save(training.state())
    return _spread(extractor.cpu(), used, sizes).eval()


def is_useful(last: Pass) -> bool:
    """Whether an extractor is worth ranking by, after its last pass.

    That is where, in people kept out of its training, parts of a run take a hundredth at least
    from the error of hidden cells. Where nobody was kept out it isn't known, so it is not.
    """
    return 1 - last.validation / last.alone >= LEAST_GAIN


def keep_cells(prepared: PreparedRun, contract: Contract, work: Path | None) -> Cells:
    """Return a run's cells, from ``work`` if an earlier call has left them there."""
    if work is None:
        return read_cells(prepared, contract)
    kept = work / f"{prepared.fingerprint}_{contract.frame_time:g}.npy"
    places = kept.with_suffix(".cells.npy")
    if not (kept.exists() and places.exists()):
        cells = read_cells(prepared, contract)
        for path, content in ((kept, cells.series), (places, cells.index)):
            with whole_file(path) as temporary:
                np.save(temporary, content)
    return Cells(np.load(kept, mmap_mode="r"), np.load(places))


def read_cells(prepared: PreparedRun, contract: Contract) -> Cells:
    """Read a run's cells as they are read for its ranking."""
    means, index = cell_means(prepared)
    series = standardise(interpolate(means, prepared.tr, contract.frame_time))
    return Cells(series.astype(np.float32), index)


def start_from_components(extractor: TemporalExtractor, runs: Sequence[Cells]) -> None:
    """Let the extractor begin as a principal component analysis of the runs.

    Frames are mapped to the leading components over space, tokens to those over space and time,
    each with variance 1, and back; the blocks between change nothing yet. From random weights the
    many cells take far longer than a training lasts to be told apart.
    """
    sizes, width = extractor.sizes, extractor.sizes.width
    tokens = [_cut(extractor, run)[0] for run in runs]
    _, space = _find_components([run.flatten(0, 1) for run in tokens], width)
    scores = [(run @ space).flatten(1) for run in tokens]
    variances, both = _find_components(scores, width)
    there = both.reshape(sizes.frames, -1, len(variances))
    deviations = variances.sqrt()
    places, kept = space.shape[1], len(variances)
    with torch.no_grad():
        for layer in (extractor.frame_map, extractor.join, extractor.part, extractor.cell_map):
            layer.weight.zero_()
            layer.bias.zero_()
        for block in (*extractor.blocks, extractor.decoder):
            block.down.weight.zero_()
            block.down.bias.zero_()
        extractor.frame_map.weight[:places] = space.T
        extractor.cell_map.weight[:, :places] = space
        join = extractor.join.weight.view(width, sizes.frames, width)
        join[:kept, :, :places] = (there / deviations).permute(2, 0, 1)
        part = extractor.part.weight.view(sizes.frames, width, width)
        part[:, :places, :kept] = there * deviations


def draw_givers(tokens: int, stretch: int, draw: np.random.Generator) -> NDArray[np.bool_]:
    """Split tokens at random: single ones, or stretches with a random beginning.

    Parameters
    ----------
    tokens : int
        At least 2.
    stretch : int
        Tokens of a stretch.
    draw : Generator

    Returns
    -------
    ndarray of bool, shape (tokens,)
        A tenth to nine tenths of them, at least one, and not all.
    """
    length = stretch if draw.random() < 0.5 else 1
    parts = (np.arange(tokens) + draw.integers(length)) // length
    if parts[-1] == 0:
        parts = np.arange(tokens)
    count = parts[-1] + 1
    giving = int(np.clip(round(draw.uniform(*GIVERS) * count), 1, count - 1))
    return np.isin(parts, draw.permutation(count)[:giving])


class _Training:
    """An extractor on its way, with its optimiser."""

    def __init__(
        self,
        extractor: TemporalExtractor,
        contract: Contract,
        settings: Extract,
        seed: int,
        runs: int,
    ) -> None:
        self.extractor = extractor
        self.contract = contract
        self.rate = settings.rate
        self.seed = seed
        self.steps = settings.passes * math.ceil(runs / RUNS_PER_STEP)
        self.optimiser = torch.optim.AdamW(extractor.parameters(), lr=settings.rate)
        self.done = 0
        self.step = 0

    def state(self) -> dict[str, Any]:
        return {
            "done": self.done,
            "step": self.step,
            "extractor": self.extractor.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load(self, state: Mapping[str, Any] | None) -> None:
        if state is not None:
            self.done, self.step = state["done"], state["step"]
            self.extractor.load_state_dict(state["extractor"])
            self.optimiser.load_state_dict(state["optimiser"])

    def go_through(self, runs: Sequence[Cells], number: int) -> float:
        """Train on all runs once and return the mean error with givers."""
        draw = np.random.default_rng([self.seed, number])
        order = draw.permutation(len(runs))
        given = []
        for first in range(0, len(order), RUNS_PER_STEP):
            some = order[first : first + RUNS_PER_STEP]
            for place in some:
                errors = self.fill_in(runs[place], draw)
                torch.autograd.backward(errors.mean() / len(some))
                given.append(float(errors[:2].detach().mean()))
            self._end_step()
        self.done = number + 1
        return float(np.mean(given))

    def validate(self, runs: Sequence[Cells]) -> tuple[float, float]:
        """Return mean errors with givers and without, always with the same splits."""
        with torch.inference_mode():
            errors = [
                self.fill_in(run, np.random.default_rng([self.seed, place])).double().cpu()
                for place, run in enumerate(runs)
            ]
        if not errors:
            return math.nan, math.nan
        one, other, alone = torch.stack(errors).mean(0).tolist()
        return (one + other) / 2, alone

    def fill_in(self, run: Cells, draw: np.random.Generator) -> Tensor:
        """Return mean errors: of each part of a split given the other, and of all given none."""
        extractor, device = self.extractor, self.extractor.join.weight.device
        tokens, present = _cut(extractor, run)
        hides = hide_cells(present, len(tokens), extractor.sizes.views, int(draw.integers(2**31)))
        reading = extractor.read(tokens.to(device), hides.to(device), self.contract.frame_time)
        misfit = measure_misfit(extractor, reading)
        stretch = self.contract.frames // extractor.sizes.frames
        gives = torch.from_numpy(draw_givers(len(tokens), stretch, draw)).to(device)

        def error(takers: Tensor, state: Tensor) -> Tensor:
            places = takers.nonzero().squeeze(1)
            return misfit.errors(extractor.decode(reading.queries[places], state), places).mean()

        return torch.stack(
            [
                error(~gives, reading.states[gives].sum(0)),
                error(gives, reading.states[~gives].sum(0)),
                error(torch.ones_like(gives), torch.zeros_like(reading.states[0])),
            ]
        )

    def _end_step(self) -> None:
        self.step += 1
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * _share_of_rate(self.step, self.steps)
        torch.nn.utils.clip_grad_norm_(self.extractor.parameters(), CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad()


def _share_of_rate(step: int, steps: int) -> float:
    """Return warm-up times cosine, at a step counted from 1."""
    warm_up = min(1.0, step / max(1.0, WARM_UP * steps))
    return warm_up * (1 + math.cos(math.pi * (step - 1) / steps)) / 2


def _cut(extractor: TemporalExtractor, run: Cells) -> tuple[Tensor, Tensor]:
    tokens, present = cut_tokens(run.series.astype(np.float64), run.index, extractor.sizes)
    return tokens.float(), present


def _find_components(rows: Sequence[Tensor], most: int) -> tuple[Tensor, Tensor]:
    """Return variances and axes (columns) of leading components, the strongest first."""
    products = torch.zeros(rows[0].shape[1], rows[0].shape[1], dtype=torch.float64)
    for some in rows:
        products += (some.T @ some).double() / len(some)
    variances, axes = torch.linalg.eigh(products / len(rows))
    variances, axes = variances.flip(0)[:most], axes.flip(1)[:, :most]
    is_real = variances > _REAL * variances[0]
    return variances[is_real].float(), axes[:, is_real].float()


def _spread(
    small: TemporalExtractor, used: NDArray[np.int64], sizes: ExtractorSizes
) -> TemporalExtractor:
    """Return an extractor of all cells that heeds and fills in those used."""
    weights = small.state_dict()
    places = torch.from_numpy(used)
    columns = torch.zeros(sizes.width, sizes.cells)
    rows, biases = torch.zeros(sizes.cells, sizes.width), torch.zeros(sizes.cells)
    columns[:, places] = weights["frame_map.weight"]
    rows[places] = weights["cell_map.weight"]
    biases[places] = weights["cell_map.bias"]
    whole = TemporalExtractor(sizes)
    whole.load_state_dict(
        {
            **weights,
            "frame_map.weight": columns,
            "cell_map.weight": rows,
            "cell_map.bias": biases,
        }
    )
    return whole
