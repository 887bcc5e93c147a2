"""The loss of a fine-tuning, against scikit-learn's and in parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, mean_squared_error

from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.heads import Head, HeadedEncoder
from slimbrain_app.model.tuning import LabelledViews, Tuning

OUTCOMES, CLASSES = ("age", "sex", "site"), (0, 2, 3)
LENGTHS = (2, 1, 3, 2)


@pytest.fixture
def tuning(small) -> Tuning:
    encoder = Encoder(small).requires_grad_(False)
    heads = [Head(small.embedding_width, outputs) for outputs in (1, 1, 3)]
    return Tuning(HeadedEncoder(encoder, heads), OUTCOMES, CLASSES)


@pytest.fixture
def batch(small, generator) -> LabelledViews:
    return LabelledViews(
        patches=torch.randn(sum(LENGTHS), small.embedding_width, generator=generator),
        table=None,
        lengths=LENGTHS,
        targets=torch.tensor([[0.5, 1, 2], [-1, 0, 0], [2, 1, 1], [0.1, 0, 2]]),
        weights=torch.tensor([[1.0, 2, 1], [1, 0.5, 1], [0, 1, 3], [1, 1, 0]]),
    )


def test_errors_are_squares_and_logarithms(tuning, batch):
    age, sex, site = (one.detach().numpy().astype(float) for one in tuning.tell(batch))
    targets, weights = batch.targets.numpy(), batch.weights.numpy().astype(float)
    shares = np.exp(site) / np.exp(site).sum(1, keepdims=True)
    expected = [
        mean_squared_error(targets[:, 0], age[:, 0], sample_weight=weights[:, 0]),
        log_loss(targets[:, 1], 1 / (1 + np.exp(-sex[:, 0])), sample_weight=weights[:, 1]),
        log_loss(targets[:, 2], shares, sample_weight=weights[:, 2]),
    ] * weights.sum(0)
    loss = tuning(batch)
    np.testing.assert_allclose(loss.kinds.numpy(), expected, rtol=1e-5)
    assert loss.total.item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert loss.views == len(LENGTHS)


def test_an_unknown_outcome_has_no_part(tuning, batch):
    other = batch.targets.clone()
    other[2, 0], other[3, 2] = 99.0, 1
    assert torch.equal(tuning(batch).total, tuning(replace(batch, targets=other)).total)


def test_parts_of_a_batch_add_up(tuning, batch):
    ends = np.cumsum((0, *LENGTHS))
    parts = [
        replace(
            batch,
            patches=batch.patches[ends[first] : ends[last]],
            lengths=LENGTHS[first:last],
            targets=batch.targets[first:last],
            weights=batch.weights[first:last],
        )
        for first, last in ((0, 1), (1, 4))
    ]
    total = sum(tuning(part).total.item() for part in parts)
    assert total == pytest.approx(tuning(batch).total.item(), rel=1e-6)


def test_every_head_has_a_gradient_even_where_nobody_has_the_outcome(tuning, batch):
    weights = batch.weights.clone()
    weights[:, 1] = 0
    tuning(replace(batch, weights=weights)).total.backward()
    gradients = [head.linear.weight.grad for head in tuning.network.heads]
    assert [bool(gradient.any()) for gradient in gradients] == [True, False, True]
