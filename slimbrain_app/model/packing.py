"""Segments of unequal length as few rectangles: for pooling and for attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Segments whose lengths differ by less than this share of the longest are packed together: at
# most so many kernels per layer, and little padding.
_BUCKETS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows of an array laid out anew; ``index`` is None where they already lie so."""

    shape: tuple[int, ...]
    index: Tensor | None

    @classmethod
    def at(cls, index: Tensor, rows: int) -> Rows:
        """Lay out an array of so many rows by ``index``."""
        straight = index.numel() == rows and torch.equal(index.flatten(), torch.arange(rows))
        return cls(tuple(index.shape), None if straight else index)

    def take(self, array: Tensor) -> Tensor:
        """Return (rows, width) as (``*shape``, width)."""
        if self.index is None:
            return array.reshape(*self.shape, array.shape[1])
        # An embedding is the lookup that runs in parallel on a CPU, forwards and backwards.
        return functional.embedding(self.index, array)

    def to(self, device: torch.device | str) -> Rows:
        return Rows(self.shape, None if self.index is None else self.index.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class Pooling:
    """Runs of children, grouped by their number; ``unpacked`` brings parents back into order."""

    groups: tuple[Rows, ...]
    unpacked: Rows

    def pool(self, children: Tensor) -> Tensor:
        """Return the maximum over each parent's existing children: (parents, width).

        Where children tie, ``amax`` shares the gradient between them; ``max`` would not.
        """
        maxima = [group.take(children).amax(1) for group in self.groups]
        return self.unpacked.take(torch.cat(maxima))

    def to(self, device: torch.device | str) -> Pooling:
        return Pooling(tuple(group.to(device) for group in self.groups), self.unpacked.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """Segments of similar length, padded to the longest.

    ``exists`` is (segments, 1, 1, keys), False at padding; None where nothing is padded.
    """

    queries: Rows
    keys: Rows
    exists: Tensor | None

    def to(self, device: torch.device | str) -> Bucket:
        exists = None if self.exists is None else self.exists.to(device)
        return Bucket(self.queries.to(device), self.keys.to(device), exists)


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Segments that attend within themselves; ``unpacked`` brings queries back into order.

    ``padding`` is the share of keys that are padding.
    """

    buckets: tuple[Bucket, ...]
    unpacked: Rows
    padding: float

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
        """Attend within each segment: (queries, width) from (queries, width), (keys, width)."""

        def by_head(rows: Rows, array: Tensor) -> Tensor:
            return rows.take(array).reshape(*rows.shape, heads, -1).transpose(1, 2)

        outputs = [
            functional.scaled_dot_product_attention(
                by_head(bucket.queries, queries),
                by_head(bucket.keys, keys),
                by_head(bucket.keys, values),
                attn_mask=bucket.exists,
            )
            .transpose(1, 2)
            .reshape(-1, queries.shape[1])
            for bucket in self.buckets
        ]
        return self.unpacked.take(torch.cat(outputs))

    def to(self, device: torch.device | str) -> Packing:
        buckets = tuple(bucket.to(device) for bucket in self.buckets)
        return Packing(buckets, self.unpacked.to(device), self.padding)


def pack_pooling(lengths: Tensor) -> Pooling:
    """Group runs by their length, of which there are few.

    Parameters
    ----------
    lengths : Tensor, int64, shape (parents,)
        Children of each parent; they lie one parent's after another's.
    """
    starts, total = _starts(lengths), int(lengths.sum())
    chosen = [(lengths == length).nonzero()[:, 0] for length in torch.unique(lengths)]
    groups = [_rectangle(lengths, starts, parents)[0] for parents in chosen]
    return Pooling(
        groups=tuple(Rows.at(index, total) for index in groups),
        unpacked=Rows.at(torch.cat(chosen).argsort(), len(lengths)),
    )


def pack_attention(queries: Tensor, keys: Tensor, *, among_queries: bool = False) -> Packing:
    """Pack segments into buckets of similar length.

    Parameters
    ----------
    queries, keys : Tensor, int64, shape (segments,)
        How many of each a segment holds; they lie one segment's after another's.
    among_queries : bool
        A segment's keys are the first of its queries; else they lie in an array of their own.
    """
    first = queries if among_queries else keys
    step = max(1, -(-int(keys.max()) // _BUCKETS))
    rounded = (keys + step - 1) // step
    chosen = [(rounded == length).nonzero()[:, 0] for length in torch.unique(rounded)]
    query_parts = [_rectangle(queries, _starts(queries), segments) for segments in chosen]
    key_parts = [_rectangle(keys, _starts(first), segments) for segments in chosen]
    total_queries, total_keys = int(queries.sum()), int(keys.sum())
    buckets = [
        Bucket(
            queries=Rows.at(query_index, total_queries),
            keys=Rows.at(key_index, int(first.sum())),
            exists=None if bool(exists.all()) else exists[:, None, None],
        )
        for (query_index, _), (key_index, exists) in zip(query_parts, key_parts, strict=True)
    ]
    return Packing(
        buckets=tuple(buckets),
        unpacked=_unpacked(query_parts, total_queries),
        padding=1 - total_keys / sum(index.numel() for index, _ in key_parts),
    )


def _starts(lengths: Tensor) -> Tensor:
    return lengths.cumsum(0) - lengths


def _rectangle(lengths: Tensor, starts: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows of chosen segments, (segments, longest), and which of them exist.

    Padding repeats a segment's last row.
    """
    length = lengths[chosen, None]
    step = torch.arange(int(length.max()))
    return starts[chosen, None] + step.minimum(length - 1), step < length


def _unpacked(parts: Sequence[tuple[Tensor, Tensor]], total: int) -> Rows:
    """Return where each row lies in the rectangles, one flattened after another."""
    rows = torch.cat([index.flatten() for index, _ in parts])
    exists = torch.cat([exists.flatten() for _, exists in parts])
    place = torch.empty(total, dtype=torch.int64)
    place[rows[exists]] = exists.nonzero()[:, 0]
    return Rows.at(place, len(rows))
