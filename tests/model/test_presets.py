"""Sizes of the presets, and what sizes are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.presets import CONTRACTS, PRESETS

PARAMETERS = {"tiny": 1_722_624, "base": 23_339_328, "official": 23_336_512}
TENSORS = {"tiny": 82, "base": 300, "official": 300}


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_counted_to_the_unit(preset):
    with torch.device("meta"):
        encoder = Encoder(PRESETS[preset])
    assert sum(parameter.numel() for parameter in encoder.parameters()) == PARAMETERS[preset]
    assert len(encoder.state_dict()) == TENSORS[preset]


def test_official_has_the_names_and_shapes_of_the_released_layout():
    with torch.device("meta"):
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in Encoder(PRESETS["official"]).state_dict().items()
        }
    widths = [64] * 2 + [128] * 3 + [256] * 16 + [512] * 3
    wanted = {
        "pos_embed_spatial": (1, 13_824, 64),
        "pos_embed_temporal": (1, 40, 64),
        "patch_embed.proj.weight": (64, 1, 1, 4, 4, 4),
        "patch_embed.proj.bias": (64,),
        "encoder_norm.weight": (512,),
        "encoder_norm.bias": (512,),
    }
    for number, (before, width) in enumerate(zip([64, *widths], widths, strict=False)):
        maps = {
            "attn.qkv": (3 * width, before),
            "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width),
            "mlp.fc2": (width, 4 * width),
        } | ({"proj": (width, before)} if number in (2, 5, 21) else {})
        for name, (rows, columns) in maps.items():
            wanted[f"blocks.{number}.{name}.weight"] = (rows, columns)
            wanted[f"blocks.{number}.{name}.bias"] = (rows,)
        for name, size in {"norm1": before, "norm2": width}.items():
            wanted[f"blocks.{number}.{name}.weight"] = (size,)
            wanted[f"blocks.{number}.{name}.bias"] = (size,)
    assert shapes == wanted


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_fit_their_contracts_and_end_on_the_same_grid(preset):
    sizes, contract = PRESETS[preset], CONTRACTS[preset]
    assert sizes.shape == (contract.frames, *contract.shape)
    assert sizes.channels == len(contract.channels)
    assert sizes.final_grid == (10, 6, 6, 6)


@pytest.mark.parametrize(
    "fault",
    [
        {"unit_attention": (True, True)},
        {"strides": ((1, 2, 2, 2),) * 3},
        {"heads": 5},
        {"heads": 0},
        {"depths": (1, 2, -3)},
        {"patch": (4, 8, 8, 7)},
        {"mask_unit": (2, 4, 4, 5)},
        {"strides": ((1, 2, 2, 8),)},
    ],
)
def test_sizes_that_do_not_fit_are_refused(fault):
    with pytest.raises(ValueError, match=r"\w"):
        replace(PRESETS["tiny"], **fault)
