"""What a fine-tuning learns: whose windows, which outcomes of theirs, and by whom it is watched."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimbrain_app.files import whole_file
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.model.tokens import TokenTable, build_table
from slimbrain_app.model.tuning import LabelledViews
from slimbrain_app.records import Contract
from slimbrain_app.training.corpus import Corpus, Item
from slimbrain_app.training.windows import RawWindow, Reader

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Labels:
    """Outcomes of people, as heads are to tell them.

    Attributes
    ----------
    people : tuple of str
    outcomes : tuple of str
    classes : tuple of int
        Of each outcome; 0 for a number.
    targets : array, float32, (people, outcomes)
        Numbers, standardised, or classes counted from 0; 0 where unknown.
    weights : array, float32, (people, outcomes)
        0 where unknown; of people trained on, their mean is 1, and classes weigh the same.
    starts : tuple of (array, array)
        The weight (outputs, width) and bias (outputs,) from which each head goes on.
    """

    people: tuple[str, ...]
    outcomes: tuple[str, ...]
    classes: tuple[int, ...]
    targets: Floats
    weights: Floats
    starts: tuple[tuple[Floats, Floats], ...]


@dataclass(frozen=True, slots=True)
class Bag:
    """Windows of a person, by row of `Labels`: the item and the first frame of each."""

    person: int
    windows: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lesson:
    """A corpus of people with labels; those to validate on are not trained on."""

    corpus: Corpus
    labels: Labels

    @property
    def items(self) -> tuple[Item, ...]:
        return (*self.corpus.train, *self.corpus.validation)

    @property
    def train(self) -> tuple[Bag, ...]:
        """All windows of each person trained on."""
        return self._gather(range(len(self.corpus.train)))

    @property
    def validation(self) -> tuple[Bag, ...]:
        return self._gather(range(len(self.corpus.train), len(self.items)))

    @property
    def fingerprint(self) -> str:
        labels = self.labels
        told = [labels.people, labels.outcomes, labels.classes, labels.targets.tolist()]
        return hashlib.sha256(json.dumps([self.corpus.fingerprint, told]).encode()).hexdigest()

    def _gather(self, numbers: Sequence[int]) -> tuple[Bag, ...]:
        rows = {label: row for row, label in enumerate(self.labels.people)}
        windows: dict[int, list[tuple[int, int]]] = {}
        for number in numbers:
            item = self.items[number]
            own = windows.setdefault(rows[item.recording.participant], [])
            own += [(number, start) for start in item.starts]
        return tuple(Bag(row, tuple(own)) for row, own in sorted(windows.items()))


def draw_windows(people: Sequence[Bag], count: int, seed: int, pass_: int) -> list[Bag]:
    """Draw so many windows of each person, or all there are, and shuffle the people.

    Nothing but people, seed and pass plays a part.
    """
    draw = np.random.default_rng((seed, pass_))
    drawn = [
        Bag(bag.person, tuple(bag.windows[place] for place in sorted(places)))
        for bag in people
        for places in [draw.choice(len(bag.windows), min(count, len(bag.windows)), replace=False)]
    ]
    return [drawn[place] for place in draw.permutation(len(drawn))]


class BagReader:
    """Reads bags of windows with their labels."""

    def __init__(self, lesson: Lesson, contract: Contract, sizes: EncoderSizes) -> None:
        self.reader = Reader(lesson.items, contract, sizes)
        self.labels = lesson.labels
        self.sizes = sizes

    def gather(self, bags: Sequence[Bag]) -> tuple[LabelledViews, tuple[RawWindow, ...]]:
        sources, windows = zip(
            *(self.reader.read(item, start) for bag in bags for item, start in bag.windows),
            strict=True,
        )
        table = build_table(torch.stack([source.kept for source in sources]), self.sizes)
        return label_views(torch.empty(0), bags, self.labels, table), windows


def label_views(
    patches: Tensor, bags: Sequence[Bag], labels: Labels, table: TokenTable | None = None
) -> LabelledViews:
    """Put the labels of their people beside the views of bags."""
    rows = [bag.person for bag in bags]
    return LabelledViews(
        patches=patches,
        table=table,
        lengths=tuple(len(bag.windows) for bag in bags),
        targets=torch.from_numpy(labels.targets[rows]),
        weights=torch.from_numpy(labels.weights[rows]),
    )


def write_labels(path: Path, labels: Labels) -> None:
    """Write labels for the other processes of a training, whole or not at all."""
    arrays = {
        "people": np.array(labels.people, str),
        "outcomes": np.array(labels.outcomes, str),
        "classes": np.array(labels.classes),
        "targets": labels.targets,
        "weights": labels.weights,
    }
    for number, (weight, bias) in enumerate(labels.starts):
        arrays |= {f"weight{number}": weight, f"bias{number}": bias}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    with whole_file(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_labels(path: Path) -> Labels:
    """Return what `write_labels` wrote."""
    with np.load(path) as arrays:
        outcomes = tuple(map(str, arrays["outcomes"]))
        return Labels(
            people=tuple(map(str, arrays["people"])),
            outcomes=outcomes,
            classes=tuple(map(int, arrays["classes"])),
            targets=arrays["targets"],
            weights=arrays["weights"],
            starts=tuple(
                (arrays[f"weight{number}"], arrays[f"bias{number}"])
                for number in range(len(outcomes))
            ),
        )
