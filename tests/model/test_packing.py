"""Packing does not change what is computed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import softmax
from torch.testing import assert_close

from slimbrain_app.model import packing
from slimbrain_app.model.packing import pack_attention, pack_pooling

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def attend_one_by_one(queries, keys, values, query_lengths, key_lengths, heads):
    """Attention written out: segment by segment, head by head."""
    outputs = []
    for q, k, v in zip(
        queries.split(query_lengths),
        keys.split(key_lengths),
        values.split(key_lengths),
        strict=True,
    ):
        by_head = []
        for qh, kh, vh in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
            by_head.append(softmax(qh @ kh.T / qh.shape[1] ** 0.5, dim=1) @ vh)
        outputs.append(torch.cat(by_head, dim=1))
    return torch.cat(outputs)


@given(lengths=LENGTHS, seed=st.integers(0, 2**31), pooled=st.booleans())
@settings(max_examples=30)
def test_packed_attention_equals_segments_one_by_one(lengths, seed, pooled):
    generator = torch.Generator().manual_seed(seed)
    query_lengths = [(length + 3) // 4 for length in lengths] if pooled else lengths
    queries = torch.randn(sum(query_lengths), 12, generator=generator)
    keys, values = torch.randn(2, sum(lengths), 12, generator=generator)
    packed = pack_attention(torch.tensor(query_lengths), torch.tensor(lengths))
    assert_close(
        packed.attend(queries, keys, values, heads=3),
        attend_one_by_one(queries, keys, values, query_lengths, lengths, heads=3),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("buckets", [1, 3, 1000])
def test_the_number_of_buckets_does_not_matter(monkeypatch, generator, buckets):
    lengths = torch.randint(1, 200, (40,), generator=generator)
    queries, keys, values = torch.randn(3, int(lengths.sum()), 16, generator=generator)
    usual = pack_attention(lengths, lengths).attend(queries, keys, values, heads=2)
    monkeypatch.setattr(packing, "_BUCKETS", buckets)
    packed = pack_attention(lengths, lengths)
    assert len(packed.buckets) <= buckets
    assert_close(packed.attend(queries, keys, values, heads=2), usual, rtol=0, atol=1e-5)


def test_the_order_of_segments_does_not_matter(generator):
    lengths = torch.randint(1, 60, (20,), generator=generator)
    array = torch.randn(3, int(lengths.sum()), 16, generator=generator)
    order = torch.randperm(20, generator=generator)
    parts = array.split(lengths.tolist(), dim=1)
    shuffled = torch.cat([parts[one] for one in order], dim=1)
    usual = pack_attention(lengths, lengths).attend(*array, heads=1).split(lengths.tolist())
    assert_close(
        pack_attention(lengths[order], lengths[order]).attend(*shuffled, heads=1),
        torch.cat([usual[one] for one in order]),
        rtol=0,
        atol=1e-5,
    )


def test_equal_segments_are_packed_without_copies_or_padding():
    packed = pack_attention(torch.full((6,), 4), torch.full((6,), 16))
    assert packed.padding == 0
    assert [bucket.exists for bucket in packed.buckets] == [None]
    assert packed.buckets[0].keys.index is packed.buckets[0].queries.index is None
    assert packed.unpacked.index is None


@given(lengths=LENGTHS, seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_pooling_is_the_maximum_over_each_run_with_shared_ties(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that ties are common.
    values = torch.randint(-3, 0, (sum(lengths), 5), generator=generator).float()
    slopes = torch.randn(len(lengths), 5, generator=generator)
    pooled_from, listed_from = values.clone().requires_grad_(), values.clone().requires_grad_()

    pooled = pack_pooling(torch.tensor(lengths)).pool(pooled_from)
    listed = torch.stack([run.amax(0) for run in listed_from.split(lengths)])

    assert torch.equal(pooled, listed)
    (pooled * slopes).sum().backward()
    (listed * slopes).sum().backward()
    assert_close(pooled_from.grad, listed_from.grad)
