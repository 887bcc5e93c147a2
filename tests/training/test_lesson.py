"""What a fine-tuning draws and reads, against the way in which runs are embedded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from slimbrain_app.embedding import View, embed_views
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.presets import PRESETS
from slimbrain_app.records import Contract
from slimbrain_app.training.corpus import Corpus, Item
from slimbrain_app.training.lesson import (
    Bag,
    BagReader,
    Labels,
    Lesson,
    draw_windows,
    read_labels,
    write_labels,
)
from slimbrain_app.training.views import KeptEmbeddings, StoredWindows

PEOPLE = [Bag(row, tuple((row, start) for start in range(0, 70, 10))) for row in range(9)]


@pytest.fixture
def labels() -> Labels:
    return Labels(
        people=("01", "02", "03"),
        outcomes=("age", "sex"),
        classes=(0, 2),
        targets=np.array([[0.5, 1], [-1, 0], [0.25, 1]], np.float32),
        weights=np.array([[1, 1], [0, 2], [1, 0.5]], np.float32),
        starts=((np.zeros((1, 192), np.float32), np.ones(1, np.float32)),) * 2,
    )


@pytest.fixture
def lesson(labels, prepared_runs, tmp_path) -> Lesson:
    items = [Item(one, (40, 0, 20)) for one in prepared_runs(tmp_path, 3, runs_each=2)]
    # In another order than the labels': people are known by their names.
    return Lesson(
        corpus=Corpus((*items[2:4], *items[:2]), tuple(items[4:]), Contract()), labels=labels
    )


def test_each_person_is_drawn_once_a_pass_with_windows_of_their_own():
    drawn = draw_windows(PEOPLE, 3, seed=1, pass_=2)
    assert sorted(bag.person for bag in drawn) == list(range(9))
    for bag in drawn:
        assert len(set(bag.windows)) == 3
        assert set(bag.windows) <= set(PEOPLE[bag.person].windows)


def test_a_pass_can_be_drawn_again_and_passes_differ():
    assert draw_windows(PEOPLE, 3, 1, 2) == draw_windows(PEOPLE, 3, 1, 2)
    assert draw_windows(PEOPLE, 3, 1, 2) != draw_windows(PEOPLE, 3, 1, 3)
    assert draw_windows(PEOPLE, 3, 1, 2) != draw_windows(PEOPLE, 3, 2, 2)


def test_whoever_has_fewer_windows_gives_all():
    (bag,) = draw_windows(PEOPLE[:1], 100, 0, 1)
    assert bag == PEOPLE[0]


def test_people_have_all_their_runs_on_one_side(lesson):
    assert [bag.person for bag in lesson.train] == [0, 1]
    assert [bag.person for bag in lesson.validation] == [2]
    for bag in (*lesson.train, *lesson.validation):
        owners = {lesson.items[item].recording.participant for item, _ in bag.windows}
        assert owners == {lesson.labels.people[bag.person]}
        assert len(bag.windows) == 6


def test_another_label_or_window_is_another_lesson(lesson):
    labels, corpus = lesson.labels, lesson.corpus
    other = replace(labels, targets=labels.targets + 1)
    fewer = replace(corpus, train=(replace(corpus.train[0], starts=(0,)), *corpus.train[1:]))
    prints = {
        lesson.fingerprint,
        replace(lesson, labels=other).fingerprint,
        replace(lesson, corpus=fewer).fingerprint,
    }
    assert len(prints) == 3


def test_labels_are_the_same_after_a_round_trip(labels, tmp_path):
    write_labels(tmp_path / "labels.npz", labels)
    back = read_labels(tmp_path / "labels.npz")
    assert (back.people, back.outcomes, back.classes) == (
        labels.people,
        labels.outcomes,
        labels.classes,
    )
    assert np.array_equal(back.targets, labels.targets)
    assert np.array_equal(back.weights, labels.weights)
    for own, other in zip(back.starts, labels.starts, strict=True):
        assert all(np.array_equal(one, two) for one, two in zip(own, other, strict=True))


@pytest.mark.parametrize("at_once", [1, 4])
def test_windows_are_embedded_as_the_participant_level_does(lesson, at_once):
    encoder = Encoder(PRESETS["tiny"], seed=1).eval()
    views = StoredWindows(
        reader=BagReader(lesson, Contract(), encoder.sizes),
        workers=0,
        device=torch.device("cpu"),
        at_once=at_once,
        precision=torch.float32,
    )
    (bag,) = lesson.validation
    expected = [
        np.concatenate(
            list(
                embed_views(
                    item.recording.prepared,
                    Contract(),
                    encoder,
                    tuple(View(0, float(start), 0.0) for start in item.starts),
                    "cpu",
                )
            )
        )
        for item in lesson.corpus.validation
    ]
    found = views.embed(encoder, [bag]).numpy()
    np.testing.assert_allclose(found, np.concatenate(expected), atol=2e-5)


def test_batches_carry_the_labels_of_their_people(lesson):
    items = [np.full((3, 192), number, np.float32) for number in range(6)]
    views = KeptEmbeddings(items=items, labels=lesson.labels, device=torch.device("cpu"))
    bags = [Bag(2, ((4, 0), (5, 1))), Bag(0, ((2, 2),))]
    (batch,) = views.read([bags])
    assert batch.lengths == (2, 1)
    assert batch.patches[:, 0].tolist() == [4, 5, 2]
    assert np.array_equal(batch.targets, lesson.labels.targets[[2, 0]])
    assert np.array_equal(batch.weights, lesson.labels.weights[[2, 0]])
