"""Masked autoencoding: the signal to predict, and the same rules as for its rival."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from slimbrain_app.model.batches import collate_views
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.mae import Mae, MaeSettings, find_signal
from slimbrain_app.model.masking import CONTEXT
from slimbrain_app.model.predictor import PredictorSizes
from slimbrain_app.model.presets import PRESETS

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = MaeSettings(decoder=PredictorSizes(width=32, depth=1, heads=2))


@pytest.fixture
def mae(fine) -> Mae:
    return Mae(Encoder(fine, seed=1), SETTINGS, seed=2)


@pytest.fixture
def views(view_of, fine):
    return [view_of(fine, sample) for sample in range(3)]


class Answer(nn.Module):
    """A decoder that says what it is told to."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, given, layout):
        return self.answer


def find_signal_plainly(image, brain, cell, sizes):
    """Standardised means over brain voxels of a cell's patches, None where there is no brain.

    ``image`` is (t, x, y, z) of voxels.
    """
    edges = [c * p for c, p in zip(sizes.cells[-1], sizes.patch, strict=True)]
    means = []
    for slot in range(16):
        within = [int(i) for i in torch.unravel_index(torch.tensor(slot), sizes.cells[-1])]
        where = tuple(
            slice(c * e + w * p, c * e + (w + 1) * p)
            for c, e, w, p in zip(cell, edges, within, sizes.patch, strict=True)
        )
        inside = brain[where[1:]]
        means.append(image[where][:, inside].mean() if inside.any() else None)
    exist = torch.stack([mean for mean in means if mean is not None])
    deviation = (exist.var(correction=0) + 1e-6).sqrt()
    return [None if mean is None else (mean - exist.mean()) / deviation for mean in means]


def test_the_signal_is_that_of_a_plain_loop_over_patches(view_of, fine, brain, generator):
    frames = torch.randn(8, int(brain.sum()), generator=generator) + 5
    batch = collate_views([view_of(fine, frames=frames)], fine)
    signal, exist = find_signal(batch, fine)
    image = torch.zeros(8, 16, 16, 16)
    image[:, brain] = frames
    assert not exist.all()
    for row in range(0, len(signal), 7):
        cell = torch.unravel_index(batch.targets.cells[row], fine.final_grid)
        expected = find_signal_plainly(image, brain, [int(at) for at in cell], fine)
        assert exist[row, 0].tolist() == [value is not None for value in expected]
        plain = torch.tensor([0.0 if value is None else float(value) for value in expected])
        assert_close(signal[row, 0], plain, rtol=1e-4, atol=1e-4)


def test_channels_are_standardised_apart(view_of, fine, brain, generator):
    first, second = torch.randn(2, 8, int(brain.sum()), generator=generator)
    signals = [
        find_signal(collate_views([view_of(sizes, frames=frames)], sizes), sizes)[0]
        for sizes, frames in [
            (replace(fine, channels=2), torch.stack([first, 100 * second + 7])),
            (fine, first),
            (fine, second),
        ]
    ]
    assert_close(signals[0], torch.cat(signals[1:], 1), rtol=1e-3, atol=1e-3)


def test_a_perfect_prediction_has_no_loss_and_zeros_lose_the_variance(mae, views, fine):
    batch = collate_views(views, fine)
    signal, exist = find_signal(batch, fine)
    mae.decoder = Answer(signal)
    assert mae(batch).total == 0
    mae.decoder = Answer(torch.zeros_like(signal))
    loss = mae(batch)
    # Single patches in a cell have no variance to lose.
    alone = batch.targets.average((exist.sum((1, 2)) == 1).float(), 3).mean()
    assert_close(loss.total / loss.views, 1 - alone, rtol=1e-4, atol=1e-4)


def test_patches_without_brain_are_not_judged(mae, views, fine):
    batch = collate_views(views, fine)
    signal, exist = find_signal(batch, fine)
    mae.decoder = Answer(signal + 100 * ~exist)
    assert mae(batch).total == 0


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_kinds_weigh_equally_whatever_their_size(mae, views, fine, kind):
    batch = collate_views(views, fine)
    wrong = (batch.targets.kinds == kind)[:, None, None]
    mae.decoder = Answer(find_signal(batch, fine)[0] + 2 * wrong)
    loss = mae(batch)
    assert_close(loss.total / loss.views, torch.tensor(4 / 3))


def test_hidden_voxels_do_not_reach_predictions(mae, views, fine):
    predictions = []
    mae.decoder.register_forward_hook(lambda module, given, answer: predictions.append(answer))
    for value in (1.0, float("nan")):
        batch = collate_views(views, fine)
        hidden = torch.ones(len(batch.patches), dtype=torch.bool)
        hidden[batch.seen] = False
        mae(replace(batch, patches=batch.patches.masked_fill(hidden[:, None], value)))
    assert torch.equal(*predictions)


def test_every_parameter_gets_a_gradient(mae, views, fine):
    mae(collate_views(views, fine)).total.backward()
    for name, parameter in mae.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_a_batch_loses_the_sum_of_its_views_in_any_order(mae, views, fine):
    total = mae(collate_views(views, fine)).total
    reverse = mae(collate_views(views[::-1], fine)).total
    alone = sum(mae(collate_views([view], fine)).total for view in views)
    assert_close(total, alone, rtol=1e-5, atol=1e-5)
    assert_close(total, reverse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("preset", "values"), [("tiny", 8), ("base", 128), ("official", 256)])
def test_as_many_values_are_predicted_as_a_cell_has_tokens(preset, values):
    with torch.device("meta"):
        mae = Mae(
            Encoder(replace(PRESETS[preset], depths=(1,) * len(PRESETS[preset].depths))), SETTINGS
        )
    assert mae.decoder.project.out_features == values


def test_a_seed_gives_the_same_loss_to_the_bit(views, fine):
    batch = collate_views(views, fine)
    one, other = (Mae(Encoder(fine, seed=1), SETTINGS, seed=2)(batch).total for _ in range(2))
    assert torch.equal(one, other)


def test_the_encoder_is_what_is_kept_and_context_cells_are_what_it_reads(mae, views, fine):
    assert mae.trained is mae.encoder
    batch = collate_views(views, fine)
    context = batch.context.levels[-1]
    labels = torch.stack([view.mask.labels.flatten() for view in views])
    assert (labels[context.views, context.cells] == CONTEXT).all()


def test_the_loss_is_taken_in_float32_whatever_the_network_computes_in(mae, views, fine):
    batch = collate_views(views, fine)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mae(batch)
    assert loss.total.dtype == torch.float32
    assert_close(loss.total, mae(batch).total, rtol=2e-2, atol=0)
