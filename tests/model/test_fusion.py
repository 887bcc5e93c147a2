"""Fused stages against a plain sum over the children of each final cell."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.fusion import Fusion
from slimbrain_app.model.presets import PRESETS, divide
from slimbrain_app.model.tokens import build_table, reroll


def fuse_plainly(fusion, stages, table):
    """Put each stage on its grid, cut it into final cells, and map those."""
    sizes, final = fusion.sizes, table.levels[-1]
    fused = reroll(stages[-1], table, len(table.levels) - 1).flatten(1, 4)
    for level, mapping in enumerate(fusion.maps):
        grid = reroll(stages[level], table, level)
        for axis, size in enumerate(divide(sizes.cells[-1], sizes.cells[level])):
            grid = grid.unflatten(2 * axis + 1, (-1, size))
        cut = grid.permute(0, 1, 3, 5, 7, 2, 4, 6, 8, 9)
        fused = fused + mapping(cut.flatten(5).flatten(1, 4))
    return fused[final.views, final.cells]


def test_fused_stages_equal_a_map_of_each_final_cells_tokens(small, some, generator):
    table = build_table(torch.stack([some, some.flip(1)]), small)
    patches = torch.randn(len(table.tokens), small.patch_values, generator=generator)
    stages = Encoder(small).encode_stages(patches, table)
    fusion = Fusion(small, seed=3)
    assert_close(fusion(stages, table), fuse_plainly(fusion, stages, table), rtol=0, atol=1e-5)


def test_every_parameter_of_the_fusion_gets_a_gradient(small, some, generator):
    table = build_table(some, small)
    patches = torch.randn(len(table.tokens), small.patch_values, generator=generator)
    fusion = Fusion(small)
    fused = fusion(Encoder(small).encode_stages(patches, table), table)
    (fused * torch.randn(fused.shape, generator=generator)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in fusion.parameters())


def test_the_maps_have_the_shapes_of_hieras_fusion():
    with torch.device("meta"):
        maps = Fusion(PRESETS["official"]).maps
    assert [tuple(one.weight.shape) for one in maps] == [
        (512, 64 * 4 * 4 * 4 * 4),
        (512, 128 * 2 * 2 * 2 * 2),
    ]
