"""Where in the brain, and when, what a head says of a run comes from.

Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365): the derivative of an
output along the straight path from a baseline to a view, times how far each value goes. The
baseline is the same brain standing still, each voxel at its own mean over the run: 0 in the voxel
channel. A map's voxels sum to what the output owes to change, up to the error of the integral.

Of heads that read views, each view has a path of its own. Heads that read which places move
together see all views at once: these have one path in common.
"""

from __future__ import annotations

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimbrain_app.device import memory_refused
from slimbrain_app.embedding import (
    View,
    encode_views,
    list_views,
    read_view,
    single_threads,
)
from slimbrain_app.evaluation.atlas import SHIPPED, Atlas, load_atlas
from slimbrain_app.evaluation.comovement import Comovement, measure_comovement
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.package_heads import Heads
from slimbrain_app.model.packages import Package, load_encoder, load_heads, load_readout
from slimbrain_app.model.tokens import (
    TokenTable,
    build_table,
    gather_patches,
    keep_brain,
    patch_columns,
)
from slimbrain_app.prepare.parallel import map_in_order
from slimbrain_app.prepare.store import LIMIT, count_frames, find_units, mask_image
from slimbrain_app.records import (
    Contract,
    Embedding,
    Explanation,
    HeadPooling,
    ParcelShare,
    PreparedRun,
    RankedRun,
    WindowShare,
)
from slimbrain_app.settings import Encode

Floats = NDArray[np.float64]

# By which share of the output's difference the parts of a path may miss it, all in all.
TOLERANCE = 0.01
# A difference below this share of all absolute attributions is as good as none: sums of parts that
# cancel so far are not asked to be exact to a hundredth of what is left.
_CANCELLED = 0.01
# The parts of a path to begin with. Norms in the encoder make an output change most where the
# signal outgrows positions and biases, in the first hundredths.
_EDGES = (0.0, 0.001, 0.01, 0.1, 1.0)
# Gradients for one part, and for all of a path.
_POINTS, _MOST_POINTS = 4, 160
# Values of tokens: above, blocks are computed again on the way back rather than kept.
_KEPT = 1_000_000

_NETWORK = re.compile(r"7Networks_[LR]H_([^_]+)")


@dataclass(frozen=True, slots=True, eq=False)
class ReadOut:
    """One output of a head. ``weight`` is (width,) of what the head reads, by ``pooling``."""

    outcome: str
    level: str | None
    units: str
    pooling: HeadPooling
    weight: Floats
    bias: float


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """What the voxels of a view, or of several on average, add to outputs.

    Attributes
    ----------
    values : ndarray, shape (outputs, voxels)
        Sums over frames and channels.
    views : ndarray, shape (outputs, views)
        What of their sum comes of each view.
    baseline, output : ndarray, shape (outputs,)
        At both ends of the path, without the heads' biases.
    points : int
        Gradients that were taken.
    """

    values: Floats
    views: Floats
    baseline: Floats
    output: Floats
    points: int

    @property
    def gap(self) -> Floats:
        """By how much the values miss the difference, (outputs,)."""
        return np.asarray(self.values.sum(axis=1) - (self.output - self.baseline))


@dataclass(frozen=True, slots=True)
class Dependence:
    """Rank correlations of a map with others, over voxels (Adebayo et al. 2018, arXiv 1810.03292).

    Attributes
    ----------
    halves : float
        Between maps of every other view and of those between: how far the map can be repeated.
    weights : float
        With the map of an encoder of random weights.
    labels : float
        With the map of a head fitted to shuffled labels.
    """

    halves: float
    weights: float
    labels: float


def explain_run(
    prepared: PreparedRun,
    ranked: RankedRun,
    embedding: Embedding,
    package: Package,
    settings: Encode,
    device: str,
) -> tuple[Explanation, ...]:
    """Explain every output of a package's heads for a run; none if it has no heads.

    Heads that read covariance are left out where the run has none.

    Parameters
    ----------
    embedding : Embedding
        Of the same run, by the same settings.
    device : str
        As `choose_device` returns it.

    Raises
    ------
    RunRefused
        ``out-of-memory`` on a GPU that is too small or too full.
    """
    heads = load_heads(package)
    if heads is None:
        return ()
    contract = package.contract
    frames = count_frames(prepared, contract.frame_time)
    views = list_views(ranked, settings.views, frames, contract)
    encoder = load_encoder(package, device)
    alone, together = _part_read_outs(heads)
    explanations: dict[tuple[str, str | None], Explanation] = {}
    if alone:
        weights = np.stack([one.weight for one in alone])
        shares = weigh_views(heads, alone, embedding)
        attribution = average_views(
            attribute_views(prepared, contract, encoder, views, weights, device), shares
        )
        parts = shares.T * (weights @ embedding.views.T)
        told = _Told(attribution, parts.sum(axis=1), parts, shares.T)
        explanations |= _describe(alone, told, prepared, ranked, embedding)
    if together and embedding.covariance is not None:
        weights = np.stack([one.weight for one in together])
        comovement = _measure_run(prepared, package, encoder, views, weights, device)
        attribution = attribute_together(prepared, contract, encoder, views, comovement, device)
        even = np.full_like(attribution.views, 1 / len(views))
        parts = attribution.views + attribution.baseline[:, None] * even
        told = _Told(attribution, weights @ embedding.covariance, parts, even)
        explanations |= _describe(together, told, prepared, ranked, embedding)
    order = [(one.outcome, one.level) for one in list_read_outs(heads)]
    return tuple(explanations[key] for key in order if key in explanations)


def list_read_outs(heads: Heads) -> tuple[ReadOut, ...]:
    """Return every output of heads: a number, or log odds of the second of two classes.

    Of several classes each is told against their mean: only differences of their outputs have a
    meaning. Log odds are those before calibration.
    """
    read_outs = []
    for head in heads.heads:
        weight = heads.weights[head.outcome].astype(np.float64)
        bias = heads.biases[head.outcome].astype(np.float64)
        levels: Sequence[str | None] = head.classes[-1:] or [None]
        if head.outputs > 1:
            levels, weight, bias = head.classes, weight - weight.mean(axis=0), bias - bias.mean()
        units = "log odds" if head.kind == "class" else head.units or "unknown"
        read_outs += [
            ReadOut(head.outcome, level, units, head.pooling, row, float(one))
            for level, row, one in zip(levels, weight, bias, strict=True)
        ]
    return tuple(read_outs)


def weigh_views(heads: Heads, read_outs: Sequence[ReadOut], embedding: Embedding) -> Floats:
    """Return each view's share in what each output reads, (views, outputs).

    Shares that a head gives by attention are taken as they are for the run: what is explained is
    what the head reads in views, not why it looks at them.
    """
    even = np.full(len(embedding.views), 1 / len(embedding.views))
    columns = (heads.attention.get(one.outcome) for one in read_outs)
    return np.column_stack([one.weigh(embedding.views) if one else even for one in columns])


def attribute_views(
    prepared: PreparedRun,
    contract: Contract,
    encoder: Encoder,
    views: Sequence[View],
    weights: Floats,
    device: str,
    tolerance: float = TOLERANCE,
) -> Iterator[Attribution]:
    """Yield what each voxel of each view adds to linear outputs of the view's embedding.

    On a CPU the result depends on nothing else, to the bit.

    Parameters
    ----------
    weights : ndarray, shape (outputs, width)
    device : str
        Where the encoder is.
    tolerance : float
        See `attribute_view`.
    """
    table, voxels, baseline = _lay_out(prepared, contract, encoder, device)

    def attribute(view: View) -> Attribution:
        frames = torch.from_numpy(read_view(prepared, contract, view)).to(device)
        with memory_refused(device):
            return attribute_view(encoder, frames, baseline, voxels, table, weights, tolerance)

    with single_threads() as threads:
        alone = encoder.checkpointing or device != "cpu"
        yield from map_in_order(attribute, views, 1 if alone else threads)


def attribute_together(
    prepared: PreparedRun,
    contract: Contract,
    encoder: Encoder,
    views: Sequence[View],
    comovement: Comovement,
    device: str,
    tolerance: float = TOLERANCE,
) -> Attribution:
    """Find what each voxel adds to outputs that read which places move together.

    All views come out of standing still together. Their patches are held in memory.

    Parameters
    ----------
    comovement : Comovement
        Of the run's signals in these views.
    device : str
        Where the encoder is.
    tolerance : float
        See `attribute_view`.

    Raises
    ------
    RunRefused
        ``out-of-memory`` on a GPU that is too small or too full.
    """
    table, voxels, baseline = _lay_out(prepared, contract, encoder, device)
    still = baseline.expand(-1, contract.frames, -1).contiguous()

    def read(view: View) -> Tensor:
        frames = torch.from_numpy(read_view(prepared, contract, view)).to(device)
        return gather_patches(frames, voxels, table)

    with single_threads() as threads, memory_refused(device):
        start = gather_patches(still, voxels, table)
        path = _JointPath(
            encoder=encoder,
            table=table,
            start=start,
            changes=tuple(read(view) - start for view in views),
            columns=_list_columns(voxels, table),
            voxels=len(voxels),
            comovement=comovement,
            direction=torch.from_numpy(comovement.readout.direction).to(device),
            threads=1 if encoder.checkpointing or device != "cpu" else threads,
        )
        return _integrate(path, tolerance)


def read_baseline(prepared: PreparedRun, contract: Contract) -> NDArray[np.float32]:
    """Return a frame of the brain standing still, each voxel at its mean, (channels, 1, voxels)."""
    rows = []
    for channel in contract.channels:
        _, offset = find_units(prepared, channel)
        rows.append(np.broadcast_to(np.clip(offset, -LIMIT, LIMIT), prepared.voxels))
    return np.stack(rows)[:, None]


def attribute_view(
    encoder: Encoder,
    frames: Tensor,
    baseline: Tensor,
    voxels: Tensor,
    table: TokenTable,
    weights: Floats,
    tolerance: float = TOLERANCE,
) -> Attribution:
    """Integrate the gradients of linear outputs along the straight path from a baseline to a view.

    By Gauss and Legendre's rule part by part. What a part must sum to is known from the outputs at
    its ends; the one that misses it most is halved, until together they miss no more than
    ``tolerance`` of each output's difference, or so many gradients were taken as may be. What is
    missed is told by ``gap``.

    Parameters
    ----------
    encoder : Encoder
        Its weights want no gradient.
    frames : Tensor, shape (channels, frames, voxels)
    baseline : Tensor, shape (channels, frames or 1, voxels)
    voxels : Tensor, int, shape (voxels,)
        As for `gather_patches`.
    table : TokenTable
        Of this one view.
    weights : ndarray, shape (outputs, width)
    """
    start = gather_patches(baseline.expand_as(frames).contiguous(), voxels, table)
    path = _ViewPath(
        encoder=encoder,
        table=table,
        start=start,
        changes=(gather_patches(frames, voxels, table) - start,),
        columns=_list_columns(voxels, table),
        voxels=len(voxels),
        weights=weights,
    )
    return _integrate(path, tolerance)


def average_views(attributions: Iterable[Attribution], shares: Floats) -> Attribution:
    """Return the mean over views by their shares (views, outputs), without holding them all."""
    values: Any = 0.0
    ends: Any = 0.0
    views, points = [], 0
    for share, one in zip(shares, attributions, strict=True):
        values = values + share[:, None] * one.values
        ends = ends + share * np.stack([one.baseline, one.output])
        views.append(share[:, None] * one.views)
        points = max(points, one.points)
    return Attribution(values, np.hstack(views), ends[0], ends[1], points)


def sum_parcels(values: Floats, voxels: NDArray[np.integer], atlas: Atlas) -> Iterator[ParcelShare]:
    """Yield each parcel's sum, and at last that of all voxels outside parcels.

    Parameters
    ----------
    values : ndarray, shape (voxels,)
    voxels : ndarray of int, shape (voxels,)
        Flat index of each on the model grid.
    """
    numbers, most = atlas.numbers.ravel()[voxels], len(atlas.labels) + 1
    counts = np.bincount(numbers, minlength=most)
    sums = np.bincount(numbers, values, minlength=most)
    sizes = np.bincount(numbers, np.abs(values), minlength=most)
    whole = sizes.sum() or 1.0
    for number in (*range(1, most), 0):
        name = atlas.names[number - 1] if number else "outside parcels"
        network = _NETWORK.match(name)
        yield ParcelShare(
            parcel=int(atlas.labels[number - 1]) if number else 0,
            name=name,
            network=network[1] if network else None,
            voxels=int(counts[number]),
            attribution=float(sums[number]),
            share=float(sizes[number] / whole),
        )


def sum_windows(
    parts: Floats, baselines: Floats, ranked: RankedRun, embedding: Embedding
) -> Iterator[WindowShare]:
    """Yield each selected window's part of an output, best window first.

    Parameters
    ----------
    parts : ndarray, shape (views,)
        What each view gives to the output, without the head's bias.
    baselines : ndarray, shape (views,)
        What of that it would give where nothing changes.
    """
    places = np.array(embedding.windows)
    for place in dict.fromkeys(embedding.windows):
        own = places == place
        window = ranked.windows[place]
        yield WindowShare(
            window=place,
            onset=window.onset,
            duration=window.duration,
            contribution=float(parts[own].sum()),
            over_baseline=float((parts - baselines)[own].sum()),
        )


def measure_dependence(
    prepared: PreparedRun,
    contract: Contract,
    encoder: Encoder,
    views: Sequence[View],
    weight: Floats,
    shuffled: Floats,
    seed: int,
) -> Dependence:
    """Measure, on a CPU, whether a map depends on the encoder's weights and on the labels.

    A map that doesn't would be as good a picture of the input alone, and explain nothing.

    Parameters
    ----------
    views : sequence of View
        Two or more.
    weight, shuffled : ndarray, shape (width,)
        Of a head, and of one fitted to the same people with their labels shuffled.
    seed : int
        Of the random weights.
    """
    both = np.stack([weight, shuffled])

    def map_views(by: Encoder, some: Sequence[View]) -> Floats:
        even = np.full((len(some), 2), 1 / len(some))
        return average_views(
            attribute_views(prepared, contract, by, some, both, "cpu"), even
        ).values

    first, second = map_views(encoder, views[::2]), map_views(encoder, views[1::2])
    share = len(views[::2]) / len(views)
    whole = share * first + (1 - share) * second
    random = map_views(Encoder(encoder.sizes, seed), views)
    return Dependence(
        halves=_correlate(first[0], second[0]),
        weights=_correlate(whole[0], random[0]),
        labels=_correlate(whole[0], whole[1]),
    )


def _correlate(one: Floats, other: Floats) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


@dataclass(frozen=True, slots=True, eq=False)
class _Told:
    """What is found of some outputs: of each the whole, and each view's part and share."""

    attribution: Attribution
    outputs: Floats
    parts: Floats
    shares: Floats


def _part_read_outs(heads: Heads) -> tuple[list[ReadOut], list[ReadOut]]:
    """Return the outputs that read views, and those that read which places move together."""
    read_outs = list_read_outs(heads)
    together = [one for one in read_outs if one.pooling == "covariance"]
    return [one for one in read_outs if one not in together], together


def _describe(
    read_outs: Sequence[ReadOut],
    told: _Told,
    prepared: PreparedRun,
    ranked: RankedRun,
    embedding: Embedding,
) -> dict[tuple[str, str | None], Explanation]:
    voxels, atlas = np.load(prepared.folder / "voxels.npy"), load_atlas(SHIPPED)
    attribution = told.attribution
    explanations = {}
    for place, one in enumerate(read_outs):
        values, baseline = attribution.values[place], attribution.baseline[place]
        windows = sum_windows(told.parts[place], baseline * told.shares[place], ranked, embedding)
        explanations[one.outcome, one.level] = Explanation(
            outcome=one.outcome,
            level=one.level,
            units=one.units,
            output=float(told.outputs[place] + one.bias),
            baseline=float(baseline + one.bias),
            gap=float(attribution.gap[place]),
            points=attribution.points,
            pooling=one.pooling,
            parcels=tuple(sum_parcels(values, voxels, atlas)),
            windows=tuple(windows),
            values=values.astype(np.float32),
        )
    return explanations


def _measure_run(
    prepared: PreparedRun,
    package: Package,
    encoder: Encoder,
    views: tuple[View, ...],
    weights: Floats,
    device: str,
) -> Comovement:
    """Take the scale of a run in these views."""
    readout = load_readout(package)
    assert readout is not None, "a head that reads covariance, and no readout"
    batches = encode_views(prepared, package.contract, encoder, views, device, readout.direction)
    signals = np.concatenate([own for _, own in batches])
    return measure_comovement(readout, weights, signals)


def _lay_out(
    prepared: PreparedRun, contract: Contract, encoder: Encoder, device: str
) -> tuple[TokenTable, Tensor, Tensor]:
    """Return the tokens of a view, the voxels and the baseline; make the encoder ready."""
    kept = keep_brain(torch.from_numpy(mask_image(prepared)), encoder.sizes)
    table = build_table(kept, encoder.sizes).to(device)
    voxels = torch.from_numpy(np.load(prepared.folder / "voxels.npy")).to(device)
    baseline = torch.from_numpy(read_baseline(prepared, contract)).to(device)
    encoder.requires_grad_(False)
    encoder.checkpointing = len(table.tokens) * encoder.sizes.width > _KEPT
    return table, voxels, baseline


def _list_columns(voxels: Tensor, table: TokenTable) -> Tensor:
    """Return 1 + the voxel of each value, 0 for background, (tokens, voxels of a patch)."""
    return patch_columns(voxels, table.sizes)[table.tokens % math.prod(table.sizes.grid[1:])]


def _integrate(path: _Path, tolerance: float) -> Attribution:
    """Integrate over parts of a path, as `attribute_view` says."""
    tell = cache(path.tell)

    def cross(low: float, high: float) -> _Part:
        values, views = path.cross(low, high)
        missed = values.sum(axis=1) - (tell(high) - tell(low))
        return _Part(low, high, values.astype(np.float32), views, missed)

    parts = [cross(low, high) for low, high in itertools.pairwise(_EDGES)]
    points = _POINTS * len(parts)
    before, after = tell(0.0), tell(1.0)
    sizes = np.abs(sum(part.values for part in parts)).sum(axis=1, dtype=np.float64)
    allowed = tolerance * np.maximum(np.abs(after - before), _CANCELLED * sizes)
    while points < _MOST_POINTS and (sum(np.abs(part.missed) for part in parts) > allowed).any():
        worst = max(parts, key=lambda part: float((np.abs(part.missed) / allowed).max()))
        parts.remove(worst)
        middle = (worst.low + worst.high) / 2
        parts += [cross(worst.low, middle), cross(middle, worst.high)]
        points += 2 * _POINTS
    values = np.stack([part.values for part in parts]).sum(axis=0, dtype=np.float64)
    views = np.stack([part.views for part in parts]).sum(axis=0)
    return Attribution(values, views, before, after, points)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A part of a path.

    Attributions of voxels (outputs, voxels) and views (outputs, views), and by how much their sums
    miss.
    """

    low: float
    high: float
    values: NDArray[np.float32]
    views: Floats
    missed: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Path(ABC):
    """The straight way from one input of the encoder to one or more others at once.

    Attributes
    ----------
    start : Tensor, shape (tokens, values)
        Where it begins, for each view.
    changes : tuple of Tensor
        How far it goes in each view.
    columns : Tensor, int, shape (tokens, voxels of a patch)
        1 + the voxel of each value, 0 for background.
    threads : int
        How many views are computed at once.
    """

    encoder: Encoder
    table: TokenTable
    start: Tensor
    changes: tuple[Tensor, ...]
    columns: Tensor
    voxels: int
    threads: int = 1

    @abstractmethod
    def tell(self, place: float) -> Floats:
        """Return the outputs at a place from 0 to 1."""

    @abstractmethod
    def take(self, patches: Tensor) -> Tensor:
        """Return what the outputs read of a view."""

    @abstractmethod
    def weigh(self, place: float) -> Sequence[Floats]:
        """Return the outputs' derivatives by what is read, view by view, (outputs, ...)."""

    def cross(self, low: float, high: float) -> tuple[Floats, Floats]:
        """Integrate from one place to another: by voxels, and by views."""
        nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
        values: Any = 0.0
        views: Any = 0.0
        for node, weight in zip(nodes, weights, strict=True):
            place = low + (high - low) * float(node + 1) / 2
            length = float(weight) * (high - low) / 2
            sums = []
            for slopes in self._differentiate(place):
                values = values + length * slopes
                sums.append(slopes.sum(axis=1))
            views = views + length * np.column_stack(sums)
        return values, views

    def read(self, place: float) -> list[Floats]:
        """Return what the outputs read of each view at a place."""

        def take(change: Tensor) -> Floats:
            with torch.no_grad():
                taken = self.take(self.start + place * change)
            return np.asarray(taken.cpu().numpy(), np.float64)

        return list(self._map(take, self.changes))

    def _differentiate(self, place: float) -> Iterator[Floats]:
        """Yield, view by view, gradients times the change, (outputs, voxels)."""
        columns = self.columns.flatten().cpu()

        def differentiate(own: tuple[Tensor, Floats]) -> Floats:
            change, weights = own
            patches = (self.start + place * change).requires_grad_()
            taken = self.take(patches)
            rows = torch.from_numpy(weights).to(taken)
            total = torch.zeros(len(rows), 1 + self.voxels, dtype=torch.float64)
            for number, row in enumerate(rows):
                (slope,) = torch.autograd.grad(
                    taken, patches, row, retain_graph=number + 1 < len(rows)
                )
                gained = (slope * change).reshape(len(slope), -1, self.columns.shape[1]).sum(1)
                total[number].index_add_(0, columns, gained.flatten().double().cpu())
            return np.asarray(total[:, 1:].numpy())

        return self._map(differentiate, zip(self.changes, self.weigh(place), strict=True))

    def _map(self, function: Callable[[Any], Floats], items: Iterable[Any]) -> Iterator[Floats]:
        if self.threads == 1:
            return map(function, items)
        return map_in_order(function, items, self.threads)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _ViewPath(_Path):
    """Of one view, whose embedding is read by ``weights`` (outputs, width)."""

    weights: Floats

    def tell(self, place: float) -> Floats:
        (embedding,) = self.read(place)
        return np.asarray(self.weights @ embedding)

    def take(self, patches: Tensor) -> Tensor:
        embedding: Tensor = self.encoder(patches, self.table)[0]
        return embedding

    def weigh(self, place: float) -> Sequence[Floats]:  # noqa: ARG002
        return [self.weights]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _JointPath(_Path):
    """Of all views of a run, whose signals are read along ``direction`` (width,)."""

    comovement: Comovement
    direction: Tensor

    def tell(self, place: float) -> Floats:
        return self.comovement.tell(self._place(self.read(place)))

    def take(self, patches: Tensor) -> Tensor:
        return self.encoder.encode_cells(patches, self.table) @ self.direction

    def weigh(self, place: float) -> Sequence[Floats]:
        slopes = self.comovement.slope(self._place(self.read(place)))
        own = slopes.reshape(*slopes.shape[:2], -1)[..., self._cells]
        return list(own.swapaxes(0, 1))

    @property
    def _cells(self) -> NDArray[np.int64]:
        return self.table.levels[-1].cells.cpu().numpy()

    def _place(self, taken: Sequence[Floats]) -> Floats:
        """Put signals of cells into their places, (views, times, places)."""
        times, *space = self.table.sizes.final_grid
        signals = np.full((len(taken), times * math.prod(space)), np.nan)
        signals[:, self._cells] = taken
        return signals.reshape(len(taken), times, -1)
