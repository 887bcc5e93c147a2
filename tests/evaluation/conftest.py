from __future__ import annotations

import numpy as np
import pytest

from slimbrain_app.evaluation.outcomes import Outcome


@pytest.fixture
def make_outcome():
    def make(values, kind="class", sites=None):
        values = np.asarray(values)
        people = [f"{number:04d}" for number in range(len(values))]
        return Outcome("outcome", kind, values, people, sites)

    return make


@pytest.fixture
def draw_people(make_outcome):
    def draw(seed, people, width=4, strength=1.0, kind="class", sites=None):
        """Return features and an outcome that the first of them tells, as far as strength says."""
        draw = np.random.default_rng(seed)
        features = draw.standard_normal((people, width))
        values = strength * features[:, 0] + draw.standard_normal(people)
        if kind == "class":
            values = np.where(values > 0, "F", "M")
        labels = sites and [f"s{i % sites}" for i in range(people)]
        return features, make_outcome(values, kind, labels)

    return draw


@pytest.fixture
def one_penalty(monkeypatch):
    """Choose among a single penalty, where the choice isn't what is tested."""
    monkeypatch.setattr("slimbrain_app.evaluation.linear.PENALTIES", (1.0,))
