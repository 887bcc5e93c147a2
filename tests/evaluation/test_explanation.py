"""What maps and shares say of a prediction, against plain loops and planted signals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from threadpoolctl import threadpool_limits

from slimbrain_app.embedding import View, embed_run, encode_views, list_views
from slimbrain_app.evaluation.atlas import SHIPPED, load_atlas
from slimbrain_app.evaluation.comovement import measure_comovement
from slimbrain_app.evaluation.explanation import (
    attribute_together,
    attribute_view,
    attribute_views,
    average_views,
    explain_run,
    list_read_outs,
    measure_dependence,
    read_baseline,
    sum_parcels,
)
from slimbrain_app.evaluation.linear import fit_linear
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.package_heads import ATTENTION_WIDTH, Attention, Heads, Reference
from slimbrain_app.model.packages import Config, Package, load_heads, save_package
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.model.readout import Readout, pool_covariance
from slimbrain_app.model.tokens import build_table, gather_patches, keep_brain
from slimbrain_app.prediction import predict_by_package
from slimbrain_app.prepare.grid import model_grid, points_of
from slimbrain_app.prepare.store import mask_image, read_frames
from slimbrain_app.records import Contract, Head, PreparedRun, RankedRun, Window
from slimbrain_app.settings import Encode

# Few and large patches: as quick as it is blunt. Without pooling, whose maxima of few cells have
# many kinks on the path; in an encoder of full size so many average out.
COARSE = EncoderSizes(
    patch=(8, 16, 16, 16),
    width=8,
    heads=1,
    depths=(1, 1),
    strides=(),
    mask_unit=(5, 2, 2, 2),
    unit_attention=(True, False),
    deletion="token",
)
# Eight places in the ball of `prepare`.
MIDDLE = replace(COARSE, patch=(8, 8, 8, 8))
FINE = EncoderSizes(
    shape=(8, 16, 16, 16),
    patch=(2, 4, 4, 4),
    width=8,
    heads=1,
    depths=(1, 2),
    strides=(),
    mask_unit=(2, 2, 2, 2),
    unit_attention=(True, False),
    deletion="token",
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def view():
    """Waves that travel through a ball, and its tokens, of which one place lacks."""
    x, y, z = np.ogrid[:16, :16, :16]
    mask = torch.from_numpy((x - 7) ** 2 + (y - 8) ** 2 + (z - 8) ** 2 < 60)
    kept = keep_brain(mask, FINE).clone()
    kept[:, 1, 1, 1] = False
    voxels = mask.flatten().nonzero()[:, 0]
    place = np.stack(np.unravel_index(voxels.numpy(), (16, 16, 16)))
    phase = np.array([0.3, 0.2, 0.5]) @ place
    frames = np.sin(phase + np.arange(8)[:, None] / 3)[None] + place[0] / 8
    return torch.from_numpy(frames.astype(np.float32)), voxels, build_table(kept, FINE)


def make_encoder(sizes: EncoderSizes = FINE, seed: int = 0) -> Encoder:
    return Encoder(sizes, seed).requires_grad_(False)


def draw_weights(outputs: int, width: int = 16) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((outputs, width))


def explain(view, encoder, weights, baseline=None, **options):
    frames, voxels, table = view
    baseline = torch.zeros_like(frames[:, :1]) if baseline is None else baseline
    return attribute_view(encoder, frames, baseline, voxels, table, weights, **options)


class Linear:
    """In the place of an encoder: an embedding that is a product with all patches."""

    def __init__(self, table, values: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(len(table.tokens), values, 3, generator=generator) / 100

    def __call__(self, patches, table):
        return torch.einsum("tv,tvw->w", patches, self.weight)[None]


def test_voxels_sum_to_what_the_output_owes_to_change(view):
    weights = draw_weights(3)
    attribution = explain(view, make_encoder(), weights)
    difference = attribution.output - attribution.baseline
    assert np.abs(difference).min() > 0.01
    np.testing.assert_allclose(attribution.values.sum(axis=1), difference, rtol=0.01)
    np.testing.assert_allclose(attribution.gap, attribution.values.sum(axis=1) - difference)


def test_a_finer_tolerance_is_met_by_more_points(view):
    coarse = explain(view, make_encoder(), draw_weights(1), tolerance=1.0)
    fine = explain(view, make_encoder(), draw_weights(1), tolerance=1e-3)
    assert coarse.points == 16 < fine.points
    assert abs(fine.gap[0]) < 1e-3 * abs(fine.output[0] - fine.baseline[0])


def test_what_the_most_points_miss_is_told(view):
    """Maxima of few cells: more kinks than can be cut at."""
    frames, voxels, _ = view
    pooled = replace(FINE, strides=((2, 2, 2, 2),))
    mask = torch.zeros(4096, dtype=torch.bool)
    mask[voxels] = True
    table = build_table(keep_brain(mask.reshape(16, 16, 16), pooled), pooled)
    told = explain((frames, voxels, table), make_encoder(pooled), draw_weights(1), tolerance=1e-6)
    assert told.points == 160
    missed = told.values.sum() - (told.output[0] - told.baseline[0])
    assert told.gap[0] == pytest.approx(missed) != 0


def test_it_is_the_sum_of_gradients_along_the_path_taken_one_by_one(view):
    """Riemann's sum over plain tensors, each frame and voxel told from its own patch."""
    frames, voxels, table = view
    encoder, weight = make_encoder(), draw_weights(1)
    plain = torch.zeros(len(voxels), dtype=torch.float64)
    # Squared, since most happens near the baseline.
    edges = torch.linspace(0, 1, 301, dtype=torch.float64) ** 2
    row = torch.from_numpy(weight[0])
    places = voxels // 256, voxels // 16 % 16, voxels % 16
    for low, high in pairwise(edges):
        image = torch.zeros(8, 16, 16, 16)
        image[:, *places] = frames[0] * float((low + high) / 2)
        image.requires_grad_()
        cut = image.reshape(4, 2, 4, 4, 4, 4, 4, 4).permute(0, 2, 4, 6, 1, 3, 5, 7)
        patches = cut.reshape(-1, 128)[table.tokens]
        (encoder(patches, table)[0].double() @ row).backward()
        plain += ((high - low) * (image.grad[:, *places] * frames[0]).sum(0)).double()
    values = explain(view, encoder, weight, tolerance=1e-9).values[0]
    assert np.corrcoef(values, plain)[0, 1] > 0.999
    np.testing.assert_allclose(values, plain, rtol=0, atol=0.02 * np.abs(values).max())


def test_of_a_linear_encoder_it_is_the_product_of_weight_and_value(view):
    frames, voxels, table = view
    encoder, weights = Linear(table, 128), draw_weights(2, 3)
    encoder.sizes = FINE
    baseline = torch.full_like(frames[:, :1], 0.5)
    attribution = explain(view, encoder, weights, baseline)
    slopes = np.zeros((2, 8, 16, 16, 16))
    for token, own in zip(table.tokens.tolist(), encoder.weight.double().numpy(), strict=True):
        t, x, y, z = np.unravel_index(token, FINE.grid)
        block = (own @ weights.T).T.reshape(2, 2, 4, 4, 4)
        spot = (slice(4 * x, 4 * x + 4), slice(4 * y, 4 * y + 4), slice(4 * z, 4 * z + 4))
        slopes[:, 2 * t : 2 * t + 2, *spot] = block
    flat = slopes.reshape(2, 8, -1)[:, :, voxels.numpy()]
    expected = (flat * (frames.double().numpy() - 0.5)).sum(axis=1)
    np.testing.assert_allclose(attribution.values, expected, rtol=0, atol=1e-5)
    assert np.abs(attribution.gap).max() < 1e-4


def test_voxels_of_deleted_tokens_get_exactly_nothing(view):
    _, voxels, _ = view
    place = np.stack(np.unravel_index(voxels.numpy(), (16, 16, 16)))
    deleted = (place // 4 == 1).all(axis=0)
    values = explain(view, make_encoder(), draw_weights(1)).values[0]
    assert deleted.sum() == 64
    assert np.array_equal(values == 0, deleted)


def test_recomputing_blocks_changes_nothing(view):
    encoder = make_encoder()
    kept = explain(view, encoder, draw_weights(2)).values
    encoder.checkpointing = True
    np.testing.assert_allclose(explain(view, encoder, draw_weights(2)).values, kept, atol=1e-7)


def prepare(folder: Path, seed: int = 0, beats: Sequence[float] = (1, 1, 1, 1)) -> PreparedRun:
    """Waves through a ball, in each quarter of it of another strength, 70 volumes of 0.72 s."""
    folder.mkdir()
    x, y, z = np.ogrid[:96, :96, :96]
    voxels = np.flatnonzero((x - 47.5) ** 2 + (y - 56) ** 2 + (z - 56) ** 2 < 7.5**2)
    place = np.stack(np.unravel_index(voxels, (96, 96, 96)))
    quarter = 2 * (place[0] > 47) + (place[1] > 55)
    phase = np.array([0.3, 0.2, 0.1]) @ place + quarter
    draw = np.random.default_rng(seed)
    signal = np.asarray(beats)[quarter] * np.sin(np.arange(70)[:, None] / 19 * 2 * np.pi + phase)
    signal += 0.1 * draw.standard_normal(signal.shape)
    np.save(folder / "signal.npy", np.clip(signal * 127 / 4, -127, 127).astype(np.int8))
    np.save(folder / "voxels.npy", voxels.astype(np.int32))
    np.save(folder / "scale.npy", np.full(len(voxels), 0.1, np.float32))
    np.save(folder / "mean.npy", draw.uniform(90, 110, len(voxels)).astype(np.float32))
    return PreparedRun(
        folder=folder,
        volumes=70,
        voxels=len(voxels),
        tr=0.72,
        dummy_scans=0,
        coverage=1.0,
        mean=100.0,
        deviation=7.0,
        constant_voxels=0,
        clipped_values=0,
        replaced_values=0,
        displacement=None,
        checksums=(),
        fingerprint="",
        notices=(),
    )


def rank(starts) -> RankedRun:
    windows = tuple(
        Window(
            start=start,
            onset=start * 0.72,
            duration=28.8,
            saliency=0.0,
            rank=place,
            selected=True,
            censored_frames=0,
        )
        for place, start in enumerate(starts, start=1)
    )
    return RankedRun(windows=windows, method="by hand", notices=())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> PreparedRun:
    return prepare(tmp_path_factory.mktemp("prepared") / "run")


@pytest.fixture(scope="module")
def make_package(tmp_path_factory) -> Callable[..., Package]:
    """Make a package with heads: a number, two classes, three classes."""

    def make(channels=("voxel",)) -> Package:
        heads = (
            Head(outcome="age", kind="number", people=9, units="years"),
            Head(outcome="sex", kind="class", people=9, classes=("F", "M")),
            Head(outcome="site", kind="class", people=9, classes=("a", "b", "c")),
        )
        draw = np.random.default_rng(2)
        sizes = replace(COARSE, channels=len(channels))
        weights = {head.outcome: draw.standard_normal((head.outputs, 16)) for head in heads}
        return save_package(
            tmp_path_factory.mktemp("packages") / "made",
            Config(
                preset="tiny",
                trained=False,
                seed=0,
                contract=replace(Contract(), channels=channels),
                encoder=sizes,
            ),
            Encoder(sizes),
            heads=Heads(
                heads=heads,
                weights=weights,
                biases={name: draw.standard_normal(len(rows)) for name, rows in weights.items()},
                reference=Reference(np.zeros(16), np.eye(16), 1e6),
            ),
            card="# made",
        )

    return make


@pytest.fixture(scope="module")
def package(make_package) -> Package:
    return make_package()


@pytest.fixture(scope="module")
def told(prepared, package):
    """Embedding and explanations of a run with two windows of two views each."""
    ranked = rank([5, 25])
    embedding = embed_run(prepared, ranked, package, Encode(views=2), "cpu")
    return embedding, explain_run(prepared, ranked, embedding, package, Encode(views=2), "cpu")


def test_each_output_is_the_prediction_before_calibration(package, told):
    embedding, explanations = told
    rows = predict_by_package(package, embedding.mean, ())
    values = {(row.outcome, row.level): row.value for row in rows}
    outputs = {(one.outcome, one.level): one.output for one in explanations}
    assert outputs["age", None] == pytest.approx(values["age", None])
    odds = np.log(values["sex", "M"] / values["sex", "F"])
    assert outputs["sex", "M"] == pytest.approx(odds, rel=1e-5)
    logs = np.log([values["site", level] for level in "abc"])
    sites = [outputs["site", level] for level in "abc"]
    np.testing.assert_allclose(sites, logs - logs.mean(), rtol=1e-5)
    assert [one.units for one in explanations] == ["years", *["log odds"] * 4]


def test_windows_and_bias_sum_to_the_output_and_to_its_difference(package, told):
    read_outs = list_read_outs(load_heads(package))
    for one, read_out in zip(told[1], read_outs, strict=True):
        assert [window.onset for window in one.windows] == [5 * 0.72, 25 * 0.72]
        whole = sum(window.contribution for window in one.windows) + read_out.bias
        assert whole == pytest.approx(one.output, abs=1e-6)
        over = sum(window.over_baseline for window in one.windows)
        assert over == pytest.approx(one.output - one.baseline, abs=1e-6)


def test_map_and_parcels_sum_to_the_difference_within_the_gap(told):
    for one in told[1]:
        difference = one.output - one.baseline
        assert float(one.values.sum(dtype=float)) == pytest.approx(difference + one.gap, abs=1e-5)
        assert abs(one.gap) <= 0.01 * max(abs(difference), 0.01 * np.abs(one.values).sum())
        parts = sum(parcel.attribution for parcel in one.parcels)
        assert parts == pytest.approx(difference + one.gap, abs=1e-5)
        assert sum(parcel.share for parcel in one.parcels) == pytest.approx(1)


def test_parcels_are_sums_over_the_voxels_that_bear_their_number(prepared):
    atlas, voxels = load_atlas(SHIPPED), np.load(prepared.folder / "voxels.npy")
    values = np.random.default_rng(1).standard_normal(len(voxels))
    image = np.zeros(96**3)
    image[voxels] = values
    rows = list(sum_parcels(values, voxels, atlas))
    assert [row.parcel for row in rows] == [*range(1, 201), 0]
    inside = np.zeros(96**3, bool)
    inside[voxels] = True
    for row in (rows[0], rows[77], rows[-1]):
        own = (atlas.numbers.ravel() == row.parcel) & inside
        assert row.voxels == own.sum()
        assert row.attribution == pytest.approx(image[own].sum())
        assert row.share == pytest.approx(np.abs(image[own]).sum() / np.abs(values).sum())
    assert (rows[0].network, rows[-1].network) == ("Vis", None)


def test_what_happens_on_the_left_is_shown_on_the_left(tmp_path, package):
    """Half of the ball stands still; the number of its voxels that are told is none."""
    run = prepare(tmp_path / "run")
    voxels, signal = np.load(run.folder / "voxels.npy"), np.load(run.folder / "signal.npy")
    millimetres = points_of(model_grid())[voxels, 0]
    signal[:, millimetres > 0] = 0
    np.save(run.folder / "signal.npy", signal)
    ranked = rank([5])
    embedding = embed_run(run, ranked, package, Encode(), "cpu")
    (one, *_) = explain_run(run, ranked, embedding, package, Encode(), "cpu")
    assert (one.values[millimetres > 0] == 0).all()
    assert (one.values[millimetres < 0] != 0).mean() > 0.99
    moved = [parcel.name for parcel in one.parcels if parcel.attribution and parcel.parcel]
    left = [name for name in moved if "_LH_" in name]
    assert left
    # A parcel's edge may reach over the middle by a voxel.
    shares = {
        side: sum(parcel.share for parcel in one.parcels if side in parcel.name)
        for side in ("_LH_", "_RH_")
    }
    assert shares["_RH_"] < 0.01 * shares["_LH_"]


def test_the_baseline_is_each_voxels_mean_in_every_channel(prepared, make_package):
    contract = replace(Contract(), channels=("voxel", "global"))
    baseline = read_baseline(prepared, contract)
    assert (baseline[0] == 0).all()
    still = (np.load(prepared.folder / "mean.npy") - 100.0) / 7.0
    np.testing.assert_allclose(baseline[1, 0], still, atol=1e-5)
    frames = read_frames(prepared, 5, 40, 0.72, "global")
    waves = read_frames(prepared, 5, 40, 0.72, "voxel")
    np.testing.assert_allclose((frames - baseline[1]) * 7 / 0.1, waves * 127 / 4, atol=1e-2)


def test_two_calls_agree_to_the_bit_whatever_the_threads(prepared, package):
    views = list_views(rank([0, 20]), 2, 70, Contract())
    weights = draw_weights(2)
    maps = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        parts = attribute_views(
            prepared, Contract(), Encoder(COARSE), views, weights, "cpu", tolerance=1.0
        )
        maps.append(average_views(parts, np.full((len(views), 2), 1 / len(views))).values)
    assert np.array_equal(*maps)


def test_a_map_depends_on_weights_and_labels_but_not_on_which_views(
    tmp_path, prepared, make_outcome
):
    """Of a head for the wave of one quarter; beside it one fitted to the people shuffled."""
    encoder, draw = make_encoder(replace(COARSE, width=32)), np.random.default_rng(0)
    beats = draw.uniform(0, 2, (24, 4))
    embeddings = []
    for number, own in enumerate(beats):
        run = prepare(tmp_path / str(number), number, own)
        embeddings.append(embed_frames(encoder, run))
    heads = [
        fit_linear(np.array(embeddings), make_outcome(values, "number"), 0, 3, 0).weight[0]
        for values in (beats[:, 0], draw.permutation(beats[:, 0]))
    ]
    views = [View(place, start, 0.0) for place, start in enumerate((0.0, 19.0, 5.0, 24.0))]
    found = measure_dependence(prepared, Contract(), encoder, views, *heads, seed=9)
    assert found.halves > 0.8
    assert abs(found.weights) < 0.5 * found.halves
    # People differ in four strengths only, so two heads share some of that by chance.
    assert abs(found.labels) < 0.7 * found.halves


def embed_frames(encoder, run):
    from slimbrain_app.embedding import embed_views

    views = (View(0, 5.0, 0.0),)
    (rows,) = embed_views(run, Contract(), encoder, views, "cpu")
    return rows[0]


def make_readout(places: int, whiten: bool = True) -> Readout:
    """Of signals in ``places`` of ten places, at three times."""
    draw = np.random.default_rng(8)
    half = draw.standard_normal((places, places)) / 4
    return Readout(
        direction=np.ones(1, np.float32),
        mean=draw.standard_normal((3, 10)).astype(np.float32),
        places=np.arange(10)[-places:],
        whitening=(np.eye(places) + whiten * (half + half.T)).astype(np.float32),
    )


def draw_signals(readout: Readout, views: int = 12) -> np.ndarray:
    """Signals that move together; none where nothing is compared."""
    draw = np.random.default_rng(4)
    mixing = np.eye(10) + draw.uniform(-0.6, 0.6, (10, 10))
    signals = 3 + readout.mean + draw.standard_normal((views, 3, 10)) @ mixing
    signals[..., : readout.places[0]] = np.nan
    return signals


def draw_slopes(readout: Readout, outputs: int = 2) -> np.ndarray:
    return np.random.default_rng(6).standard_normal((outputs, readout.width))


def test_of_a_runs_own_signals_outputs_are_those_of_its_readout():
    readout = make_readout(6)
    signals, weights = draw_signals(readout), draw_slopes(readout)
    told = measure_comovement(readout, weights, signals).tell(signals)
    np.testing.assert_allclose(told, weights @ pool_covariance(readout, signals), rtol=1e-5)


def test_of_a_brain_that_stands_still_no_places_move_together():
    """Not that all do, nor that they do in any way by chance: of the identity."""
    from scipy.linalg import logm

    readout = make_readout(6)
    signals, weights = draw_signals(readout), draw_slopes(readout)
    still = np.broadcast_to(signals.mean((0, 1)) + readout.mean, signals.shape)
    whitened = logm(readout.whitening.astype(float) @ readout.whitening)
    rows, columns = np.triu_indices(6)
    expected = weights @ (whitened[rows, columns] * np.where(rows == columns, 1, 2**0.5))
    told = measure_comovement(readout, weights, signals).tell(still)
    np.testing.assert_allclose(told, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 0.7, 1.3])
def test_slopes_of_signals_are_finite_differences(scale):
    """Below the run's own scale, and above, where a place has no movement of its own left."""
    readout = make_readout(6)
    signals = draw_signals(readout)
    comovement = measure_comovement(readout, draw_slopes(readout), signals)
    place = scale * signals
    slopes = comovement.slope(place)
    assert slopes.shape == (2, *signals.shape)
    assert (slopes[..., :4] == 0).all()
    for spot in [(0, 0, 4), (3, 2, 5), (11, 1, 9), (7, 0, 7)]:
        step = np.zeros_like(signals)
        step[spot] = 1e-5
        found = (comovement.tell(place + step) - comovement.tell(place - step)) / 2e-5
        np.testing.assert_allclose(slopes[:, *spot], found, rtol=1e-5, atol=1e-8)


def pair_signals(readout: Readout) -> np.ndarray:
    """Two pairs of places alike: the same in each, and nothing from one to the other."""
    draw = np.random.default_rng(3).standard_normal((36, 4))
    waves = 6 * np.linalg.qr(np.column_stack([np.ones(36), draw]))[0][:, 1:]
    own = np.column_stack([waves[:, 0], waves[:, 0] + waves[:, 1], waves[:, 2]])
    own = np.column_stack([own, waves[:, 2] + waves[:, 3]])
    signals = np.zeros((12, 3, 10)) + readout.mean
    signals[..., 6:] += own.reshape(12, 3, 4)
    return signals


def test_equal_eigenvalues_do_not_disturb_slopes():
    readout = make_readout(4, whiten=False)
    signals = pair_signals(readout)
    comovement = measure_comovement(readout, draw_slopes(readout), signals)
    place = readout.mean + 0.8 * (signals - readout.mean)
    slopes = comovement.slope(place)
    for spot in [(0, 0, 6), (5, 1, 7), (9, 2, 9)]:
        step = np.zeros_like(signals)
        step[spot] = 1e-4
        found = (comovement.tell(place + step) - comovement.tell(place - step)) / 2e-4
        np.testing.assert_allclose(slopes[:, *spot], found, rtol=1e-5, atol=1e-7)


def test_a_place_that_moves_with_none_that_is_read_has_no_slope():
    """Of two pairs only the first is read; when the second is scrambled, it hears of it."""
    readout = make_readout(4, whiten=False)
    signals = pair_signals(readout)
    weights = np.zeros((1, readout.width))
    weights[0, [0, 1, 4]] = 1, -2, 3
    slopes = measure_comovement(readout, weights, signals).slope(signals)
    assert np.abs(slopes[..., 6:8]).min() > 0
    assert np.abs(slopes[..., 8:]).max() < 1e-6 * np.abs(slopes[..., 6:8]).max()
    signals[..., 9] = signals[..., 6]
    slopes = measure_comovement(readout, weights, signals).slope(signals)
    assert np.abs(slopes[..., 9]).max() > 0.01 * np.abs(slopes[..., 6:8]).max()


@pytest.fixture(scope="module")
def readout(prepared) -> Readout:
    """Of the eight places in which there is brain."""
    kept = keep_brain(torch.from_numpy(mask_image(prepared)), MIDDLE)
    places = kept.any(0).flatten().nonzero()[:, 0].numpy()
    assert len(places) == 8
    direction = np.random.default_rng(1).standard_normal(16)
    return Readout(
        direction=(direction / np.linalg.norm(direction)).astype(np.float32),
        mean=np.zeros((5, 12**3), np.float32),
        places=places,
        whitening=np.eye(8, dtype=np.float32),
    )


VIEWS = tuple(View(place, start, 0.0) for place, start in enumerate((0.0, 10.0, 20.0, 30.0)))


@pytest.fixture(scope="module")
def comovement(prepared, readout):
    encoder = make_encoder(MIDDLE)
    batches = encode_views(prepared, Contract(), encoder, VIEWS, "cpu", readout.direction)
    signals = np.concatenate([own for _, own in batches])
    return measure_comovement(readout, draw_slopes(readout), signals)


@pytest.fixture(scope="module")
def common(prepared, comovement):
    encoder = make_encoder(MIDDLE)
    return attribute_together(prepared, Contract(), encoder, VIEWS, comovement, "cpu")


def test_views_on_a_common_path_give_the_gradients_of_their_covariance(prepared, readout, common):
    """Riemann's sum over all views in one graph, the covariance by torch."""
    encoder = make_encoder(MIDDLE)
    table = build_table(keep_brain(torch.from_numpy(mask_image(prepared)), MIDDLE), MIDDLE)
    voxels = torch.from_numpy(np.load(prepared.folder / "voxels.npy"))
    frames = torch.stack(
        [
            torch.from_numpy(read_frames(prepared, int(view.start), 40, 0.72, "voxel"))
            for view in VIEWS
        ]
    )
    rows, columns = np.triu_indices(8)
    entries = torch.from_numpy(draw_slopes(readout)[0] * np.where(rows == columns, 1, 2**0.5))
    order = np.searchsorted(readout.places, table.tokens.numpy() % 12**3)

    def take(moved):
        signals = torch.zeros(4, 5, 8, dtype=torch.float64)
        for number, view in enumerate(moved):
            cells = encoder.encode_cells(gather_patches(view[None], voxels, table), table)
            times = table.tokens.numpy() // 12**3
            signals[number, times, order] = (cells @ torch.from_numpy(readout.direction)).double()
        series = signals.reshape(-1, 8)
        return series - series.mean(0)

    with torch.no_grad():
        run = take(frames)
    deviations = run.std(0, correction=0)
    shrinkage = LedoitWolf(assume_centered=True).fit((run / deviations).numpy()).shrinkage_

    def tell(moved):
        series = take(moved)
        shares = series.var(0, correction=0) / deviations**2
        moving = torch.where(shares < 1, shares * (2 - shares), 1.0).sqrt()
        covariance = (1 - shrinkage) * torch.corrcoef(series.T) * torch.outer(moving, moving)
        covariance = covariance + torch.diag(1 - covariance.diagonal())
        values, vectors = torch.linalg.eigh(covariance)
        return (((vectors * values.log()) @ vectors.T)[rows, columns] * entries).sum()

    plain = torch.zeros(len(voxels), dtype=torch.float64)
    edges = torch.linspace(0, 1, 101, dtype=torch.float64) ** 2
    for low, high in pairwise(edges):
        moved = (frames * float((low + high) / 2)).requires_grad_()
        tell(moved).backward()
        plain += ((high - low) * (moved.grad * frames).sum((0, 1))).double()
    assert common.output[0] == pytest.approx(float(tell(frames)), abs=1e-4)
    assert common.baseline[0] == pytest.approx(float(tell(0 * frames)), abs=1e-4)
    values = common.values[0]
    np.testing.assert_allclose(values, plain, rtol=0, atol=0.02 * np.abs(values).max())


def test_on_a_common_path_voxels_and_views_sum_to_the_difference(common):
    difference = common.output - common.baseline
    assert np.abs(difference).min() > 0.01
    np.testing.assert_allclose(common.values.sum(axis=1), difference, rtol=0.01)
    assert common.views.shape == (2, 4)
    np.testing.assert_allclose(common.views.sum(axis=1), common.values.sum(axis=1), rtol=1e-5)


def test_a_common_path_has_the_same_bits_whatever_the_threads(prepared, comovement):
    maps = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            maps.append(
                attribute_together(
                    prepared,
                    Contract(),
                    make_encoder(MIDDLE),
                    VIEWS,
                    comovement,
                    "cpu",
                    tolerance=1.0,
                ).values
            )
    assert np.array_equal(*maps)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, readout) -> Package:
    """A package whose heads read in three ways, those of covariance first and last."""
    heads = (
        Head(outcome="age", kind="number", people=9, units="years", pooling="covariance"),
        Head(outcome="sex", kind="class", people=9, classes=("F", "M")),
        Head(outcome="iq", kind="number", people=9, pooling="attention"),
        Head(outcome="site", kind="class", people=9, classes=("a", "b", "c"), pooling="covariance"),
    )
    draw = np.random.default_rng(2)
    widths = {"mean": 16, "attention": 16, "covariance": readout.width}
    weights = {
        head.outcome: draw.standard_normal((head.outputs, widths[head.pooling])) for head in heads
    }
    attention = Attention(
        draw.standard_normal((ATTENTION_WIDTH, 16)), *draw.standard_normal((2, ATTENTION_WIDTH))
    )
    return save_package(
        tmp_path_factory.mktemp("packages") / "mixed",
        Config(preset="tiny", trained=False, seed=0, contract=Contract(), encoder=MIDDLE),
        Encoder(MIDDLE),
        readout=readout,
        heads=Heads(
            heads=heads,
            weights=weights,
            biases={name: draw.standard_normal(len(rows)) for name, rows in weights.items()},
            reference=Reference(np.zeros(16), np.eye(16), 1e6),
            attention={"iq": attention},
        ),
        card="# mixed",
    )


@pytest.fixture(scope="module")
def mixture(prepared, mixed):
    ranked = rank([20, 0, 30, 10])
    embedding = embed_run(prepared, ranked, mixed, Encode(), "cpu")
    return embedding, explain_run(prepared, ranked, embedding, mixed, Encode(), "cpu")


def test_heads_of_each_kind_are_explained_in_their_order(mixed, mixture):
    embedding, explanations = mixture
    assert [(one.outcome, one.level, one.units) for one in explanations] == [
        ("age", None, "years"),
        ("sex", "M", "log odds"),
        ("iq", None, "unknown"),
        *(("site", level, "log odds") for level in "abc"),
    ]
    rows = predict_by_package(mixed, embedding.mean, (), embedding.views, embedding.covariance)
    values = {(row.outcome, row.level): row.value for row in rows}
    for one in explanations[0], explanations[2]:
        assert one.output == pytest.approx(values[one.outcome, None], rel=1e-5)
    logs = np.log([values["site", level] for level in "abc"])
    sites = [one.output for one in explanations[3:]]
    np.testing.assert_allclose(sites, logs - logs.mean(), rtol=1e-4)


def test_windows_of_a_common_path_sum_to_its_map_and_all_but_the_gap_of_the_output(mixed, mixture):
    read_outs = list_read_outs(load_heads(mixed))
    for one, read_out in zip(mixture[1], read_outs, strict=True):
        difference = one.output - one.baseline
        assert abs(one.gap) <= 0.01 * max(abs(difference), 0.01 * np.abs(one.values).sum())
        assert one.values.sum(dtype=float) == pytest.approx(difference + one.gap, abs=1e-4)
        assert [window.onset for window in one.windows] == [20 * 0.72, 0, 30 * 0.72, 10 * 0.72]
        gap = one.gap if read_out.pooling == "covariance" else 0
        over = sum(window.over_baseline for window in one.windows)
        assert over == pytest.approx(difference + gap, abs=1e-4)
        whole = sum(window.contribution for window in one.windows) + read_out.bias
        assert whole == pytest.approx(one.output + gap, abs=1e-4)


def test_heads_that_read_covariance_say_nothing_of_too_few_windows(prepared, mixed):
    ranked = rank([20, 0])
    embedding = embed_run(prepared, ranked, mixed, Encode(), "cpu")
    explanations = explain_run(prepared, ranked, embedding, mixed, Encode(), "cpu")
    assert [one.outcome for one in explanations] == ["sex", "iq"]
