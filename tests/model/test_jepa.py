"""Joint-embedding prediction: no leak, right gradients, fair loss, and that it learns."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from slimbrain_app.model.batches import collate_views, spread_cells
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.jepa import (
    JEPA,
    Jepa,
    JepaSettings,
    correlate,
    follow,
    standardise_changes,
)
from slimbrain_app.model.masking import CONTEXT
from slimbrain_app.model.predictor import PredictorSizes

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = JepaSettings(predictor=PredictorSizes(width=32, depth=2, heads=2), decorrelation=0.0)


@pytest.fixture
def jepa(fine) -> Jepa:
    """Context and target encoder differ, as they do from the first step on."""
    jepa = Jepa(Encoder(fine, seed=1), SETTINGS, seed=2)
    with torch.no_grad():
        for parameter in jepa.context.parameters():
            parameter.add_(0.01)
    return jepa.eval()


@pytest.fixture
def views(view_of, fine):
    return [view_of(fine, sample) for sample in range(3)]


class Answer(nn.Module):
    """A predictor that says what it is told to."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, given, layout):
        return self.answer


def find_truths(jepa, batch):
    return jepa(batch).evidence.truths


def with_hidden(view, sizes, value):
    """Set all voxels of hidden cells to a value."""
    seen = spread_cells((view.mask.labels == CONTEXT)[None], sizes)
    batch = collate_views([view], sizes)
    hidden = ~seen.flatten()[batch.whole.tokens]
    patches = view.patches.clone()
    patches[hidden] = value
    return replace(view, patches=patches)


@pytest.mark.parametrize("value", [3.0, float("nan"), float("inf")])
def test_hidden_voxels_do_not_reach_context_or_predictions(jepa, views, fine, value):
    before, after = (
        collate_views(some, fine)
        for some in (views, [with_hidden(view, fine, value) for view in views])
    )
    assert not torch.equal(before.patches, after.patches)
    contexts = [
        jepa.context.map_cells(batch.patches[batch.seen], batch.context)
        for batch in (before, after)
    ]
    assert torch.equal(*contexts)
    assert torch.equal(*(jepa.predictor(given, before.layout) for given in contexts))


def test_visible_voxels_do_reach_predictions(jepa, views, fine):
    other = replace(views[0], patches=views[0].patches + 1)
    first, second = (jepa(collate_views([view], fine)).evidence for view in (views[0], other))
    assert not torch.isclose(first.guesses, second.guesses).all()


def test_targets_see_the_whole_view(jepa, views, fine):
    hidden = with_hidden(views[0], fine, 3.0)
    first, second = (jepa(collate_views([view], fine)).evidence for view in (views[0], hidden))
    assert not torch.isclose(first.truths, second.truths).all()


def test_all_gets_a_gradient_but_the_target_the_filters_and_what_cancels_out(jepa, views, fine):
    jepa(collate_views(views, fine)).total.backward()
    for name, parameter in jepa.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.any(), name
        else:
            assert parameter.grad is None, name
    frozen = {id(p) for part in (jepa.target, jepa.context.patch_embed) for p in part.parameters()}
    frozen.add(id(jepa.context.encoder_norm.bias))
    assert frozen == {id(p) for p in jepa.parameters() if not p.requires_grad}


def test_an_optimiser_step_leaves_the_target_alone_until_the_step_ends(jepa, views, fine):
    before = copy.deepcopy(jepa.target.state_dict())
    optimizer = torch.optim.AdamW(p for p in jepa.parameters() if p.requires_grad)
    jepa(collate_views(views, fine)).total.backward()
    optimizer.step()
    assert all(torch.equal(before[name], new) for name, new in jepa.target.state_dict().items())
    jepa.end_step(0.5)
    assert not any(torch.equal(before[name], new) for name, new in jepa.target.named_parameters())


@pytest.mark.parametrize("momentum", [0.9, 0.996])
def test_the_target_follows_by_the_formula(jepa, momentum):
    first = copy.deepcopy(jepa.target.state_dict())
    for _ in range(25):
        jepa.update_target(momentum)
    share = momentum**25
    for name, context in jepa.context.state_dict().items():
        expected = share * first[name] + (1 - share) * context
        assert_close(jepa.target.state_dict()[name], expected, rtol=1e-5, atol=1e-6)


def test_a_momentum_of_one_changes_nothing_and_of_zero_copies(jepa):
    first = copy.deepcopy(jepa.target.state_dict())
    jepa.update_target(1.0)
    assert all(torch.equal(first[name], new) for name, new in jepa.target.state_dict().items())
    jepa.update_target(0.0)
    context = jepa.context.state_dict()
    assert all(torch.equal(context[name], new) for name, new in jepa.target.state_dict().items())


def test_buffers_are_copied_whatever_the_momentum():
    follower, leader = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    leader(torch.arange(12.0).reshape(4, 3))
    follow(follower, leader, 0.9)
    assert torch.equal(follower.running_mean, leader.running_mean)
    assert torch.equal(follower.num_batches_tracked, leader.num_batches_tracked)


def test_momentum_rises_as_a_cosine():
    momenta = [SETTINGS.momentum(share) for share in (0, 0.25, 0.5, 1)]
    assert momenta == pytest.approx([0.996, 0.996 + 0.004 * 0.1464466, 0.998, 1], abs=1e-8)


def test_a_perfect_prediction_has_no_loss(jepa, views, fine):
    batch = collate_views(views, fine)
    jepa.predictor = Answer(find_truths(jepa, batch))
    assert jepa(batch).total == 0


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_kinds_weigh_equally_whatever_their_size(jepa, views, fine, kind):
    batch = collate_views(views, fine)
    sizes = batch.targets.kinds.bincount()
    assert len(sizes.unique()) > 1
    wrong = (batch.targets.kinds == kind).float()[:, None]
    jepa.predictor = Answer(find_truths(jepa, batch) + 2 * wrong)
    loss = jepa(batch)
    # Smooth L1 of 2 is 1.5.
    assert_close(loss.total / loss.views, torch.tensor(1.5 / 3))
    assert_close(loss.kinds / loss.views, 1.5 * torch.eye(3)[kind])


def test_one_kind_alone_can_be_trained(jepa, views, fine):
    jepa.settings = replace(SETTINGS, weights=(0.0, 1.0, 0.0))
    loss = jepa(collate_views(views, fine))
    assert_close(loss.total.detach(), loss.kinds[1])


def test_the_loss_is_smooth_l1_against_the_target_encoder(jepa, views, fine):
    loss = jepa(collate_views(views[:1], fine))
    guesses, truths = loss.evidence.guesses, loss.evidence.truths
    gap = (guesses - truths).abs()
    errors = torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean(1)
    means = [errors[loss.evidence.targets.kinds == kind].mean() for kind in range(3)]
    assert_close(loss.total.detach(), sum(means) / 3)


def test_a_batch_loses_the_sum_of_its_views_in_any_order(jepa, views, fine):
    total = jepa(collate_views(views, fine)).total
    reverse = jepa(collate_views(views[::-1], fine)).total
    alone = sum(jepa(collate_views([view], fine)).total for view in views)
    assert_close(total, alone, rtol=1e-5, atol=1e-5)
    assert_close(total, reverse, rtol=1e-5, atol=1e-5)


def test_a_seed_gives_the_same_loss_to_the_bit(views, fine):
    batch = collate_views(views, fine)
    one, other = (Jepa(Encoder(fine, seed=1), SETTINGS, seed=2)(batch).total for _ in range(2))
    assert torch.equal(one, other)


def test_the_target_encoder_stays_in_evaluation_mode_and_is_what_is_kept(jepa):
    jepa.train()
    assert jepa.context.training and not any(part.training for part in jepa.target.modules())
    assert jepa.trained is jepa.target


def test_context_and_target_share_no_memory(jepa):
    addresses = [
        {parameter.data_ptr() for parameter in encoder.parameters()}
        for encoder in (jepa.context, jepa.target)
    ]
    assert not addresses[0] & addresses[1]


@pytest.mark.parametrize(("preset", "sizes"), [("tiny", (128, 2)), ("base", (256, 6))])
def test_presets_have_their_predictors(preset, sizes):
    assert (JEPA[preset].predictor.width, JEPA[preset].predictor.depth) == sizes
    assert JEPA["official"] == JEPA["base"]


def test_changes_are_those_of_a_plain_loop(jepa, views, fine):
    batch = collate_views(views, fine)
    level = batch.whole.levels[-1]
    features = torch.randn(len(level.cells), 5, generator=torch.Generator().manual_seed(3))
    expected = torch.zeros_like(features)
    for view in range(len(views)):
        for place in range(math.prod(fine.final_grid[1:])):
            rows = (level.views == view) & (level.cells % math.prod(fine.final_grid[1:]) == place)
            if rows.any():
                expected[rows] = features[rows] - features[rows].mean(0)
        rows = level.views == view
        expected[rows] /= expected[rows].square().mean(0).sqrt()
    assert_close(standardise_changes(features, level, fine), expected, rtol=1e-3, atol=1e-4)


def test_what_does_not_change_is_not_predicted(views, fine):
    level = collate_views(views, fine).whole.levels[-1]
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(len(level.cells), 5, generator=generator)
    places = math.prod(fine.final_grid[1:])
    anatomy = torch.randn(len(views) * places, 5, generator=generator)
    shifted = 3 * features + anatomy[level.views * places + level.cells % places]
    before = standardise_changes(features, level, fine)
    assert_close(standardise_changes(shifted, level, fine), before, rtol=1e-3, atol=1e-3)


def test_targets_of_a_view_hang_on_no_other_view(jepa, views, fine):
    together = find_truths(jepa, collate_views(views, fine))
    alone = [find_truths(jepa, collate_views([view], fine)) for view in views]
    assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_cells_that_never_change_have_targets_of_zero(views, fine):
    level = collate_views(views, fine).whole.levels[-1]
    features = torch.ones(len(level.cells), 5)
    assert not standardise_changes(features, level, fine).any()


def test_correlations_are_those_of_numpy():
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(5)).cumsum(1)
    squares = np.corrcoef(features.numpy().T) ** 2
    expected = (squares.sum() - np.trace(squares)) / len(squares)
    assert float(correlate(features)) == pytest.approx(expected, rel=1e-4)
    assert float(correlate(1e-3 * features + 7)) == pytest.approx(expected, rel=1e-2)


def test_correlations_weigh_in_beside_the_kinds_view_by_view(jepa, views, fine):
    batch = collate_views(views, fine)
    plain = jepa(batch)
    jepa.settings = replace(SETTINGS, decorrelation=0.5)
    context = jepa.context.map_cells(batch.patches[batch.seen], batch.context)
    parts = torch.split(context, list(batch.context.lengths))
    expected = plain.total + 0.5 * sum(correlate(part) for part in parts)
    loss = jepa(batch)
    assert_close(loss.total, expected)
    assert torch.equal(loss.kinds, plain.kinds)


def test_no_view_loses_nothing_and_gives_every_trainable_parameter_a_gradient_of_zero(jepa):
    loss = jepa.lose_nothing()
    loss.total.backward()
    assert (loss.total.item(), loss.views, loss.kinds.tolist()) == (0.0, 0, [0.0, 0.0, 0.0])
    for parameter in jepa.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        assert parameter.grad is None or not parameter.grad.any()


def test_recomputing_changes_neither_loss_nor_gradients_and_keeps_less(jepa, views, fine):
    batch = collate_views(views, fine)
    found = []
    for wanted in (False, True):
        jepa.recompute(wanted)
        jepa.zero_grad()
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            total = jepa(batch).total
        total.backward()
        gradients = [p.grad.clone() for p in jepa.parameters() if p.requires_grad]
        found.append((total.detach(), gradients, sum(kept)))
    assert_close(found[0][:2], found[1][:2])
    assert found[1][2] < found[0][2] / 2


def test_a_checkpoint_holds_all_that_a_later_step_needs(jepa, views, fine):
    batch = collate_views(views, fine)
    jepa.train()(batch)
    jepa.end_step(0.5)
    other = Jepa(Encoder(fine, seed=8), SETTINGS, seed=9)
    other.load_state_dict(jepa.state_dict())
    assert torch.equal(other(batch).total, jepa(batch).total)


def test_the_loss_is_taken_in_float32_whatever_the_network_computes_in(jepa, views, fine):
    batch = collate_views(views, fine)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = jepa(batch)
    assert loss.evidence.cells.dtype == torch.bfloat16
    assert loss.total.dtype == torch.float32
    assert_close(loss.total, jepa(batch).total, rtol=2e-2, atol=0)
