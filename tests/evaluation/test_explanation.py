"""What maps and shares say of a prediction, against plain loops and planted signals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from slimbrain_app.embedding import View, embed_run, list_views
from slimbrain_app.evaluation.atlas import SHIPPED, load_atlas
from slimbrain_app.evaluation.explanation import (
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
from slimbrain_app.model.package_heads import Heads, Reference
from slimbrain_app.model.packages import Config, Package, save_package
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.model.tokens import build_table, keep_brain
from slimbrain_app.prediction import predict_by_package
from slimbrain_app.prepare.grid import model_grid, points_of
from slimbrain_app.prepare.store import read_frames
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
    from slimbrain_app.model.packages import load_heads

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
