"""The loop and its steps, on a network of the real kind and on one that knows nothing of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from slimbrain_app.errors import CallRefused
from slimbrain_app.model.batches import collate_views
from slimbrain_app.model.objective import Loss, Objective
from slimbrain_app.training.checkpoint import resume, write_checkpoint
from slimbrain_app.training.distributed import Processes, Replica
from slimbrain_app.training.loop import train
from slimbrain_app.training.schedule import make_schedule
from slimbrain_app.training.state import TrainingState
from slimbrain_app.training.step import Learner, Plan, Share

ALONE = Processes()


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class Points:
    """A batch of another task."""

    features: torch.Tensor
    answers: torch.Tensor

    def to(self, device):
        return Points(self.features.to(device), self.answers.to(device))


class Regression(Objective):
    """Another task than the one that this package trains first."""

    def __init__(self, spoil=lambda errors: errors):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 1)
        self.spoil = spoil
        self.shares = []

    @property
    def trained(self):
        raise NotImplementedError

    def forward(self, batch):
        errors = self.spoil((self.layer(batch.features)[:, 0] - batch.answers).square())
        return Loss(total=errors.sum(), views=len(errors), kinds=errors.new_zeros(0))

    def end_step(self, share):
        self.shares.append(share)


def draw_points(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 3, generator=generator)
    return Points(features, features @ torch.tensor([1.0, -2.0, 0.5]) + 1)


def share_of(points, split, pass_=1, ends_pass=False):
    """One step on all points, in micro-batches of the given sizes."""
    parts = zip(points.features.split(split), points.answers.split(split), strict=True)
    return Share(
        pass_=pass_,
        ends_pass=ends_pass,
        views=len(points.answers),
        batches=[Points(*part) for part in parts],
        names=[f"point {number}" for number in range(len(points.answers))],
    )


@pytest.fixture
def make_regression(drill):
    def make(spoil=lambda errors: errors, scaler=None):
        objective = Regression(spoil)
        return TrainingState(
            objective=objective,
            optimiser=torch.optim.SGD(objective.parameters(), lr=0.1),
            scaler=scaler or torch.amp.GradScaler("cpu", enabled=False),
            observer=drill.Counter(),
        )

    return make


PLAN = Plan(
    schedule=make_schedule(10, 0.2, last=0.01),
    clip=1e9,
    precision=torch.float32,
    seed=0,
    checkpoint_minutes=1e9,
)


def learner_of(state, plan=PLAN):
    return Learner(state, plan, ALONE, Replica(state.objective, ALONE))


def weights_of(state):
    return copy.deepcopy(state.objective.state_dict())


def determined(weights):
    """Leave out biases of keys: attention ignores them, so their gradient is but rounding.

    Adam moves by the sign of a gradient, however small.
    """
    return {name: value for name, value in weights.items() if not name.endswith("qkv.bias")}


def run(drill, folder, **varied):
    """Return the state and what was told of a drill in this process."""
    told, state, settings = [], drill.make_state(drill.Drill(**varied)), drill.Drill(**varied)
    train(
        state,
        drill.list_shares(settings, ALONE, 0),
        drill.make_plan(settings, ALONE.device),
        ALONE,
        save=lambda: write_checkpoint(folder / "training.pt", state, drill.IDENTITY),
        watch=told.append,
    )
    return state, told


@pytest.mark.parametrize("at_once", [1, 3])
def test_the_split_into_micro_batches_changes_nothing_but_rounding(drill, tmp_path, at_once):
    whole, told = run(drill, tmp_path, at_once=4)
    parts, told_in_parts = run(drill, tmp_path, at_once=at_once)
    assert len(told) == 12
    for one, other in zip(told, told_in_parts, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.kinds == pytest.approx(other.kinds, rel=1e-4)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)
        assert one.rate == other.rate
    assert_close(*(determined(weights_of(one)) for one in (whole, parts)), rtol=1e-3, atol=1e-5)


def test_steps_are_those_of_a_plain_loop_over_whole_batches(drill, tmp_path):
    state, told = run(drill, tmp_path, at_once=2, passes=2)
    jepa = drill.make_state(drill.Drill()).objective.train()
    named = [(name, one) for name, one in jepa.named_parameters() if one.requires_grad]
    maps = [one for name, one in named if one.ndim > 1 and name.endswith("weight")]
    rest = [one for _, one in named if not any(one is other for other in maps)]
    optimiser = torch.optim.AdamW(
        [{"params": maps, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    batches = [[0, 1, 2, 3], [4, 5, 6, 7], [8], [9, 10, 11, 12], [13, 14, 15, 16], [17]]
    for step, numbers in enumerate(batches):
        batch = collate_views([drill.draw_view(number) for number in numbers], drill.SIZES)
        for group in optimiser.param_groups:
            group["lr"] = told[step].rate
        optimiser.zero_grad()
        loss = jepa(batch)
        (loss.total / len(numbers)).backward()
        torch.nn.utils.clip_grad_norm_([one for _, one in named], 1.0)
        optimiser.step()
        jepa.end_step((step + 1) / 6)
        assert told[step].loss == pytest.approx((loss.total / len(numbers)).item(), rel=1e-4)
    weights = [determined(weights_of(state)), determined(jepa.state_dict())]
    assert_close(*weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 4])
def test_the_peak_and_the_last_rate_come_at_their_optimiser_steps(drill, tmp_path, at_once):
    _, told = run(drill, tmp_path, at_once=at_once)
    rates = [progress.rate for progress in told]
    assert rates[1] == max(rates) == pytest.approx(3e-3)  # A fifth of 12 steps, rounded: 2.
    assert rates[-1] == pytest.approx(3e-5)
    assert [progress.step for progress in told] == list(range(1, 13))


def test_the_loss_is_the_mean_over_views_and_all_of_them_move_the_weights(make_regression):
    points = draw_points(5)
    state, plain = make_regression(), Regression()
    progress = learner_of(state).make_step(share_of(points, [2, 2, 1]))
    errors = (plain.layer(points.features)[:, 0] - points.answers).square()
    errors.mean().backward()
    rate = 0.1 * PLAN.schedule.share(1)
    assert progress.loss == pytest.approx(errors.mean().item())
    for own, other in zip(state.objective.parameters(), plain.parameters(), strict=True):
        assert_close(own, other - rate * other.grad)


def test_the_gradient_is_clipped_as_a_whole(make_regression):
    state = make_regression()
    before = torch.cat([one.detach().flatten() for one in state.objective.parameters()])
    plan = replace(PLAN, clip=0.5)
    progress = learner_of(state, plan).make_step(share_of(draw_points(6), [1, 5]))
    after = torch.cat([one.detach().flatten() for one in state.objective.parameters()])
    assert progress.gradient_norm > 0.5
    assert (after - before).norm().item() == pytest.approx(0.5 * progress.rate, rel=1e-4)


def test_what_follows_a_step_is_told_how_much_is_done(make_regression):
    state = make_regression()
    learner = learner_of(state)
    for _ in range(3):
        learner.make_step(share_of(draw_points(2), [2]))
    assert state.objective.shares == pytest.approx([0.1, 0.2, 0.3])
    assert state.done == 3


def spoil_point(number, count):
    """Make one of the first points of each batch of a given size lose NaN."""

    def spoil(errors):
        if len(errors) != count:
            return errors
        return errors * torch.where(torch.arange(count) == number, float("nan"), 1.0)

    return spoil


def test_a_loss_that_is_not_finite_names_step_and_samples_and_moves_nothing(make_regression):
    state = make_regression(spoil_point(0, count=2))
    learner = learner_of(state)
    learner.make_step(share_of(draw_points(3), [3]))
    before = weights_of(state)
    with pytest.raises(CallRefused) as caught:
        learner.make_step(share_of(draw_points(6), [3, 2, 1]))
    assert caught.value.reason == "diverged"
    assert "step 2" in caught.value.expected
    assert caught.value.found.endswith("the batch of point 3, point 4")
    assert state.done == 1
    assert_close(weights_of(state), before, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_names_the_whole_step(make_regression):
    state = make_regression(lambda errors: errors + (errors * 0).sqrt())
    before = weights_of(state)
    with pytest.raises(CallRefused) as caught:
        learner_of(state).make_step(share_of(draw_points(2), [1, 1]))
    assert caught.value.reason == "diverged"
    assert caught.value.found.endswith("the batch of point 0, point 1")
    assert_close(weights_of(state), before, rtol=0, atol=0)


def test_the_last_checkpoint_outlives_a_loss_that_is_not_finite(drill, tmp_path):
    with pytest.raises(CallRefused) as caught:
        run(drill, tmp_path, nan_at=8)
    assert caught.value.reason == "diverged"
    assert "step 8" in caught.value.expected
    state = drill.make_state(drill.Drill())
    assert resume(tmp_path / "training.pt", state, drill.IDENTITY)
    assert state.done == 7
    assert all(value.isfinite().all() for value in state.objective.state_dict().values())


def test_a_step_that_the_scaler_skips_is_no_divergence(make_regression):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    state = make_regression(scaler=scaler)
    learner, before = learner_of(state), weights_of(state)
    told = [learner.make_step(share_of(draw_points(3), [2, 1])) for _ in range(8)]
    moved = [not progress.skipped for progress in told]
    assert not moved[0]
    assert moved[-1]
    assert [progress.step for progress in told] == list(range(1, 9))
    assert all(progress.loss < 100 for progress in told)
    assert not torch.equal(weights_of(state)["layer.weight"], before["layer.weight"])


def test_gradients_that_overflow_at_any_scale_end_the_training(make_regression):
    scaler = torch.amp.GradScaler("cpu")
    state = make_regression(lambda errors: errors + (errors * 0).sqrt(), scaler=scaler)
    learner = learner_of(state)
    with pytest.raises(CallRefused, match="diverged"):
        for _ in range(30):
            learner.make_step(share_of(draw_points(2), [2]))
    assert 10 < state.done < 20


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_the_precision_gives_nearly_the_same_loss(drill, tmp_path, precision):
    _, told = run(drill, tmp_path, passes=2)
    _, coarse = run(drill, tmp_path, passes=2, precision=precision)
    assert [one.loss for one in coarse if not one.skipped] == pytest.approx(
        [one.loss for one, other in zip(told, coarse, strict=True) if not other.skipped], rel=0.05
    )


def test_what_a_network_draws_in_a_step_depends_on_nothing_before(drill, tmp_path):
    _, first = run(drill, tmp_path, dropout=True, passes=1)
    torch.manual_seed(99)
    torch.rand(7)
    _, second = run(drill, tmp_path, dropout=True, passes=1)
    _, without = run(drill, tmp_path, passes=1)
    assert [one.loss for one in first] == [one.loss for one in second]
    assert first[0].loss != without[0].loss


def test_an_error_while_reading_comes_out_as_it_is(drill, tmp_path):
    with pytest.raises(OSError, match="the disk is gone"):
        run(drill, tmp_path, fail_at=3)


def test_memory_that_runs_out_is_explained(make_regression):
    def fill(errors):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.")

    with pytest.raises(CallRefused) as caught:
        learner_of(make_regression(fill)).make_step(share_of(draw_points(2), [2]))
    assert caught.value.reason == "out-of-memory"
    assert "pace.at_once" in caught.value.advice


def test_views_that_were_announced_and_do_not_come_are_a_fault(make_regression):
    share = replace(share_of(draw_points(4), [4]), views=5)
    with pytest.raises(ValueError, match="5 views"):
        learner_of(make_regression()).make_step(share)


def test_observers_see_every_view_and_the_end_of_every_pass_before_its_checkpoint(drill, tmp_path):
    run(drill, tmp_path, minutes=1e9, at_once=2)
    state = drill.make_state(drill.Drill())
    assert resume(tmp_path / "training.pt", state, drill.IDENTITY)
    assert state.observer.seen == 4 * drill.PASS
    assert state.observer.passes == [1, 2, 3, 4]


@pytest.mark.parametrize(("minutes", "expected"), [(0.0, [1, 2, 3, 4, 5]), (1e9, [3])])
def test_checkpoints_come_at_their_pace_and_after_each_pass(make_regression, minutes, expected):
    state, saved = make_regression(), []
    ends = [False, False, True, False, False]
    shares = (share_of(draw_points(2), [2], ends_pass=end) for end in ends)
    plan = replace(PLAN, checkpoint_minutes=minutes)
    assert train(state, shares, plan, ALONE, lambda: saved.append(state.done), lambda _: None)
    assert saved == expected


def test_an_observer_ends_a_training_and_it_stays_ended(make_regression):
    state, saved = make_regression(), []
    endless = (share_of(draw_points(2), [2]) for _ in range(10**9))

    def watch(progress):
        state.observer.enough = progress.step == 4

    assert not train(state, endless, PLAN, ALONE, lambda: saved.append(state.done), watch)
    assert saved == [4]
    assert not train(state, endless, PLAN, ALONE, lambda: saved.append(state.done), watch)
    assert state.done == 4


def test_time_spent_waiting_for_batches_is_told(drill, tmp_path):
    _, told = run(drill, tmp_path, passes=1, seconds=0.1, at_once=2)
    waited = [progress.loader_seconds for progress in told]
    assert waited[0] >= 0.2 and waited[2] >= 0.1  # Two micro-batches; one.
    assert all(progress.loader_seconds <= progress.seconds for progress in told)
