"""Heads on the encoder, and rates that fall with depth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.heads import HeadedEncoder, group_parameters
from slimbrain_app.model.presets import PRESETS
from slimbrain_app.model.tokens import build_table


@pytest.fixture(scope="module")
def official() -> HeadedEncoder:
    with torch.device("meta"):
        return HeadedEncoder(Encoder(PRESETS["official"]), nn.Linear(512, 2))


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
        ("head.weight", 5e-4),
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
    model = HeadedEncoder(Encoder(PRESETS["tiny"]), nn.Linear(192, 2))
    model.encoder.requires_grad_(False)
    assert set(rates(model, head_rate=1e-2)) == {"head.weight", "head.bias"}


def test_a_head_is_swapped_and_the_embedding_stays(small, some, generator):
    encoder, table = Encoder(small), build_table(some, small)
    patches = torch.randn(len(table.tokens), small.patch_values, generator=generator)
    model = HeadedEncoder(encoder, nn.Identity())
    embedding = model(patches, table)
    assert torch.equal(embedding, encoder(patches, table))
    model.head = nn.Linear(small.embedding_width, 3)
    assert torch.equal(model(patches, table), model.head(embedding))
