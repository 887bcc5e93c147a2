"""The predictor: positions, and what a prediction may depend on."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from slimbrain_app.model.predictor import Predictor, PredictorSizes, encode_cells, lay_out

GRID = (10, 6, 6, 6)
CELLS = math.prod(GRID)
SIZES = PredictorSizes(width=32, depth=2, heads=2)


@pytest.fixture
def predictor() -> Predictor:
    predictor = Predictor(SIZES, GRID, width_in=12, width_out=5, seed=3)
    with torch.no_grad():  # Larger than at the start, so that attention matters.
        for parameter in predictor.parameters():
            parameter.mul_(10)
    return predictor


def view(generator, given, asked):
    cells = torch.randperm(CELLS, generator=generator)[: given + asked]
    return torch.randn(given, 12, generator=generator), cells[:given], cells[given:]


def predict(predictor, *views):
    features, given, asked = zip(*views, strict=True)

    def numbered(parts):
        counts = torch.tensor([len(part) for part in parts])
        return torch.cat(parts), torch.arange(len(parts)).repeat_interleave(counts)

    layout = lay_out(numbered(given), numbered(asked))
    predicted = predictor(torch.cat(features), layout)
    return predicted.split([len(part) for part in asked])


@pytest.mark.parametrize("width", [16, 96, 256])
def test_positions_tell_all_cells_apart(width):
    positions = encode_cells(GRID, width)
    distances = torch.cdist(positions, positions) + 9 * torch.eye(CELLS)
    assert positions.shape == (CELLS, width)
    assert distances.min() > 0.1


def test_a_step_along_an_axis_changes_that_axis_part_alone_and_alike_everywhere():
    positions = encode_cells(GRID, 16).reshape(*GRID, 4, 4)
    for axis in range(4):
        steps = positions.narrow(axis, 1, GRID[axis] - 1) - positions.narrow(
            axis, 0, GRID[axis] - 1
        )
        others = [other for other in range(4) if other != axis]
        assert not steps[..., others, :].any()
        lengths = steps[..., axis, :].norm(dim=-1)
        assert_close(lengths, torch.full_like(lengths, float(lengths.flatten()[0])))


def test_a_view_is_predicted_alike_alone_and_among_others(predictor, generator):
    views = [view(generator, 30, 20), view(generator, 7, 41), view(generator, 22, 3)]
    together = predict(predictor, *views)
    for alone, among in zip((predict(predictor, one)[0] for one in views), together, strict=True):
        assert_close(alone, among, rtol=1e-5, atol=1e-5)


def test_the_order_of_cells_does_not_matter(predictor, generator):
    features, given, asked = view(generator, 30, 20)
    order, order_asked = (torch.randperm(n, generator=generator) for n in (30, 20))
    predicted = predict(predictor, (features, given, asked))[0]
    shuffled = predict(predictor, (features[order], given[order], asked[order_asked]))[0]
    assert_close(shuffled, predicted[order_asked], rtol=1e-5, atol=1e-5)


def test_a_prediction_depends_on_features_on_their_places_and_on_its_own(predictor, generator):
    features, given, asked = view(generator, 30, 20)
    predicted = predict(predictor, (features, given, asked))[0]
    assert not torch.isclose(predicted[0], predicted[1]).all()
    for other in ((features + 1, given, asked), (features, given.roll(1), asked)):
        assert not torch.isclose(predict(predictor, other)[0], predicted).all()


def test_a_seed_gives_the_same_weights_and_leaves_other_draws_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, other = (Predictor(SIZES, GRID, 12, 5, seed=4).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(
        one["embed.weight"], Predictor(SIZES, GRID, 12, 5, seed=5).state_dict()["embed.weight"]
    )


def test_at_the_start_a_guess_is_a_hint_from_the_nearest_cells(generator):
    predictor = Predictor(
        PredictorSizes(width=256, depth=2, heads=4), GRID, width_in=192, width_out=192, seed=1
    )
    noise = torch.randn(1, 192, *GRID[1:], generator=generator)
    smooth = functional.avg_pool3d(noise, 3, stride=1, padding=1)[0].flatten(1).T
    features = smooth.repeat(GRID[0], 1) / smooth.std()
    cells = torch.randperm(CELLS, generator=generator)
    with torch.inference_mode():
        guesses = predict(predictor, (features[cells[:400]], cells[:400], cells[400:600]))[0]
    truths = features[cells[400:600]]
    assert torch.cosine_similarity(guesses.flatten(), truths.flatten(), dim=0) > 0.6
    assert (guesses - truths).square().mean() < 0.9 * truths.square().mean()


def test_at_the_start_positions_alone_say_little(generator):
    predictor = Predictor(SIZES, GRID, width_in=12, width_out=12, seed=1)
    features, given, asked = view(generator, 200, 100)
    with torch.inference_mode():
        silent = predict(predictor, (0 * features, given, asked))[0]
        loud = predict(predictor, (features, given, asked))[0]
    assert silent.square().mean() < 0.25 * loud.square().mean()


def test_asked_cells_do_not_change_what_is_said_of_others(predictor, generator):
    features, given, asked = view(generator, 30, 20)
    together = predict(predictor, (features, given, asked))[0]
    alone = predict(predictor, (features, given, asked[:1]))[0]
    assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)
