"""Where a fine-tuning takes people's views from: windows on disk, or embeddings at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.tuning import LabelledViews
from slimbrain_app.training.lesson import Bag, BagReader, Labels, label_views
from slimbrain_app.training.loader import make_loader


class Views(Protocol):
    """The views of people."""

    def read(self, batches: Iterable[Sequence[Bag]]) -> Iterator[LabelledViews]:
        """Yield each batch of bags, some read ahead of time."""

    def embed(self, encoder: Encoder, bags: Sequence[Bag]) -> Tensor:
        """Return the embeddings of all windows of bags, (windows, width), without gradient."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredWindows:
    """Windows of prepared runs, read by ``workers`` and passed through an encoder.

    To embed, no more than ``at_once`` are held at a time; products are in ``precision``.
    """

    reader: BagReader
    workers: int
    device: torch.device
    at_once: int
    precision: torch.dtype

    def read(self, batches: Iterable[Sequence[Bag]]) -> Iterator[LabelledViews]:
        return make_loader(self.reader, batches, self.workers, self.device)

    @torch.no_grad()
    def embed(self, encoder: Encoder, bags: Sequence[Bag]) -> Tensor:
        parts = [
            [Bag(bag.person, bag.windows[first : first + self.at_once])]
            for bag in bags
            for first in range(0, len(bag.windows), self.at_once)
        ]
        batches = make_loader(self.reader, parts, 0, self.device)
        with torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            rows = [encoder(batch.patches, batch.table) for batch in batches]
        return torch.cat(rows)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KeptEmbeddings:
    """Embeddings (views, width) of each item, whose windows are their rows."""

    items: Sequence[NDArray[np.float32]]
    labels: Labels
    device: torch.device

    def read(self, batches: Iterable[Sequence[Bag]]) -> Iterator[LabelledViews]:
        for bags in batches:
            yield label_views(self._take(bags), bags, self.labels).to(self.device)

    def embed(self, encoder: Encoder, bags: Sequence[Bag]) -> Tensor:  # noqa: ARG002
        return self._take(bags).to(self.device)

    def _take(self, bags: Sequence[Bag]) -> Tensor:
        rows = [self.items[item][row] for bag in bags for item, row in bag.windows]
        return torch.from_numpy(np.stack(rows))
