"""Heads on the encoder, what learns below them, and rates that fall with depth."""

from __future__ import annotations

import pytest
import torch

from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.heads import (
    AttentivePooling,
    Head,
    HeadedEncoder,
    LowRank,
    add_low_rank,
    group_parameters,
    merge_low_rank,
)
from slimbrain_app.model.package_heads import Attention
from slimbrain_app.model.presets import PRESETS
from slimbrain_app.model.tokens import build_table


@pytest.fixture(scope="module")
def official() -> HeadedEncoder:
    with torch.device("meta"):
        return HeadedEncoder(Encoder(PRESETS["official"]), [Head(512, 2)])


def rates(model, **settings):
    """Return rate and weight decay of each parameter by name, from an optimiser's own groups."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    optimiser = torch.optim.AdamW(group_parameters(model, **settings))
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimiser.param_groups
        for parameter in group["params"]
    }


def test_every_parameter_is_in_exactly_one_group(official):
    grouped = [one for group in group_parameters(official) for one in group["params"]]
    assert len(grouped) == 302
    assert {id(one) for one in grouped} == {id(one) for one in official.parameters()}


# Written out from the end of the network: 1, 0.75, 0.75 squared, ...
@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("heads.0.linear.weight", 5e-4),
        ("encoder.encoder_norm.weight", 1e-4),
        ("encoder.blocks.23.mlp.fc2.weight", 1e-4),
        ("encoder.blocks.22.norm1.bias", 0.75e-4),
        ("encoder.blocks.21.proj.weight", 0.5625e-4),
        ("encoder.blocks.0.attn.qkv.weight", 1e-4 * 0.75**23),
        ("encoder.patch_embed.proj.weight", 1e-4 * 0.75**24),
        ("encoder.pos_embed_spatial", 1e-4 * 0.75**24),
        ("encoder.pos_embed_temporal", 1e-4 * 0.75**24),
    ],
)
def test_rates_fall_by_a_quarter_from_block_to_block(official, name, rate):
    assert rates(official)[name][0] == pytest.approx(rate, rel=1e-12)


def test_weight_decay_is_on_maps_only(official):
    decays = {name: decay for name, (_, decay) in rates(official).items()}
    assert set(decays.values()) == {0.0, 0.05}
    for name, decay in decays.items():
        is_map = name.endswith("weight") and "norm" not in name
        assert (decay == 0.05) == is_map, name


def test_frozen_parameters_are_left_out():
    model = HeadedEncoder(Encoder(PRESETS["tiny"]), [Head(192, 2)])
    model.encoder.requires_grad_(False)
    assert set(rates(model, head_rate=1e-2)) == {"heads.0.linear.weight", "heads.0.linear.bias"}


def embed(encoder, some, generator):
    table = build_table(some, encoder.sizes)
    patches = torch.randn(len(table.tokens), encoder.sizes.patch_values, generator=generator)
    return encoder(patches, table), patches, table


def test_a_head_maps_the_mean_of_each_person_s_views(small, some, generator):
    head = Head(small.embedding_width, 3)
    views = torch.randn(5, small.embedding_width, generator=generator)
    weight, bias = head.linear.weight, head.linear.bias
    means = torch.stack([views[:2].sum(0) / 2, views[2:].sum(0) / 3])
    torch.testing.assert_close(head(views, (2, 3)), means @ weight.T + bias)


def test_attention_begins_with_the_mean(generator):
    pooling = AttentivePooling(16)
    views = torch.randn(4, 16, generator=generator)
    torch.testing.assert_close(pooling(views), views.mean(0))


def test_attention_is_that_of_a_plain_loop_and_of_numpy(generator):
    pooling = AttentivePooling(16)
    torch.nn.init.normal_(pooling.query, generator=generator)
    views = torch.randn(4, 16, generator=generator)
    scores = [
        torch.tanh(pooling.map.weight @ view + pooling.map.bias) @ pooling.query for view in views
    ]
    total = sum(score.exp() for score in scores)
    expected = sum(score.exp() / total * view for score, view in zip(scores, views, strict=True))
    torch.testing.assert_close(pooling(views), expected)
    parts = (pooling.map.weight, pooling.map.bias, pooling.query)
    shares = Attention(*(part.detach().numpy() for part in parts)).weigh(views.numpy())
    assert shares.sum() == pytest.approx(1)
    torch.testing.assert_close(torch.from_numpy(shares @ views.numpy()).float(), expected)


def test_the_order_of_views_changes_nothing(generator):
    head = Head(16, 2, attentive=True)
    torch.nn.init.normal_(head.pooling.query, generator=generator)
    views = torch.randn(4, 16, generator=generator)
    torch.testing.assert_close(head(views, (4,)), head(views.flip(0), (4,)))


def test_a_change_of_low_rank_begins_with_none(small, some, generator):
    encoder = Encoder(small, seed=3)
    before, patches, table = embed(encoder, some, generator)
    add_low_rank(encoder, 2, seed=0)
    assert torch.equal(encoder(patches, table), before)


def test_nothing_but_the_change_learns_and_all_of_it_does(small, some, generator):
    encoder = Encoder(small, seed=3)
    add_low_rank(encoder, 2, seed=0)
    learning = {name for name, one in encoder.named_parameters() if one.requires_grad}
    assert learning and all(name.rsplit(".", 1)[1] in ("down", "up") for name in learning)
    optimiser = torch.optim.SGD([one for one in encoder.parameters() if one.requires_grad], lr=0.1)

    def step() -> set[str]:
        optimiser.zero_grad()
        embed(encoder, some, generator)[0].square()[:, 0].sum().backward()
        optimiser.step()
        return {
            name
            for name, one in encoder.named_parameters()
            if one.grad is not None and one.grad.any()
        }

    # The first factor's gradient goes through the second, which is 0 to begin with.
    assert step() == {name for name in learning if name.endswith("up")}
    assert step() == learning


def test_the_merged_map_does_what_both_did(small, some, generator):
    encoder = Encoder(small, seed=3)
    names = set(encoder.state_dict())
    add_low_rank(encoder, 2, seed=0)
    for module in encoder.modules():
        if isinstance(module, LowRank):
            torch.nn.init.normal_(module.up, std=0.1, generator=generator)
    changed, patches, table = embed(encoder, some, generator)
    merge_low_rank(encoder)
    assert set(encoder.state_dict()) == names
    torch.testing.assert_close(encoder(patches, table), changed)
    assert not torch.allclose(Encoder(small, seed=3)(patches, table), changed, atol=1e-3)
