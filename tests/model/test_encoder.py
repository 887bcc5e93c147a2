"""The encoder against a plain one, and what its output may and may not depend on."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.presets import PRESETS, EncoderSizes
from slimbrain_app.model.tokens import build_table, gather_patches, keep_brain

# The presets on grids of one to four mask units, with fewer of the blocks that are alike.
REDUCED = {
    "tiny": replace(PRESETS["tiny"], shape=(16, 32, 64, 32)),
    "base": replace(PRESETS["base"], shape=(16, 32, 32, 32), depths=(2, 2, 2, 1)),
    "official": replace(PRESETS["official"], shape=(8, 32, 32, 32), depths=(1, 2, 2, 1)),
}
GFLOP = {"tiny": 19.1, "base": 604, "official": 1631}


def group_rows(keys):
    groups = defaultdict(list)
    for row, key in enumerate(keys):
        groups[key].append(row)
    return dict(sorted(groups.items()))


def embed_plainly(encoder: Encoder, patches, kept):
    """The network with a dictionary instead of an order: tokens lie in the grid's C order.

    ``patches`` are those of the kept tokens of one view, in that order.
    """
    sizes, weights = encoder.sizes, dict(encoder.named_parameters())
    places = [tuple(place) for place in kept.nonzero().tolist()]
    flat = torch.tensor([(x * kept.shape[2] + y) * kept.shape[3] + z for _, x, y, z in places])
    times = torch.tensor([place[0] for place in places])
    tokens = patches @ weights["patch_embed.proj.weight"].flatten(1).T
    tokens = tokens + weights["patch_embed.proj.bias"]
    tokens = (
        tokens + weights["pos_embed_spatial"][0][flat] + weights["pos_embed_temporal"][0][times]
    )
    unit, number, in_units = sizes.mask_unit, 0, sizes.unit_attention[0]
    for stage, depth in enumerate(sizes.depths):
        for block in range(depth):
            pool = block == 0 and 0 < stage <= len(sizes.strides)
            stride = sizes.strides[stage - 1] if pool else (1, 1, 1, 1)
            named = {
                name.removeprefix(f"blocks.{number}."): weight
                for name, weight in weights.items()
                if name.startswith(f"blocks.{number}.")
            }
            tokens, places = run_block(
                tokens, places, named, stride, unit if in_units else None, sizes.heads << stage
            )
            unit = tuple(size // step for size, step in zip(unit, stride, strict=True))
            in_units = sizes.unit_attention[stage]
            number += 1
    width = tokens.shape[1]
    norm = weights["encoder_norm.weight"], weights["encoder_norm.bias"]
    return functional.layer_norm(tokens.mean(0), (width,), *norm, eps=1e-6)


def run_block(tokens, places, named, stride, unit, heads):
    def map_with(name, rows):
        return functional.linear(rows, named[f"{name}.weight"], named[f"{name}.bias"])

    def norm_with(name, rows):
        weight, bias = named[f"{name}.weight"], named[f"{name}.bias"]
        return functional.layer_norm(rows, (rows.shape[1],), weight, bias, eps=1e-6)

    def coarse(place, size):
        return tuple(at // step for at, step in zip(place, size, strict=True))

    children = group_rows(coarse(place, stride) for place in places)
    parents = list(children)
    normed = norm_with("norm1", tokens)
    shortcut = map_with("proj", normed) if "proj.weight" in named else tokens
    queries, keys, values = map_with("attn.qkv", normed).chunk(3, 1)

    def pool(rows):
        in_runs = rows[list(itertools.chain(*children.values()))]
        return torch.stack(
            [run.amax(0) for run in in_runs.split(list(map(len, children.values())))]
        )

    if stride != (1, 1, 1, 1):
        shortcut, queries = pool(shortcut), pool(queries)
    unit_of_parent = unit and coarse(unit, stride)
    key_groups = group_rows(coarse(place, unit) if unit else () for place in places)
    query_groups = group_rows(coarse(place, unit_of_parent) if unit else () for place in parents)
    attended = torch.empty_like(queries)
    width = queries.shape[1] // heads
    for key, rows in query_groups.items():
        members = key_groups[key]
        for head in range(heads):
            columns = slice(head * width, (head + 1) * width)
            q, k, v = queries[rows, columns], keys[members, columns], values[members, columns]
            attended[rows, columns] = functional.softmax(q @ k.T * width**-0.5, 1) @ v
    tokens = shortcut + map_with("attn.proj", attended)
    hidden = functional.gelu(map_with("mlp.fc1", norm_with("norm2", tokens)))
    return tokens + map_with("mlp.fc2", hidden), parents


def draw_patches(table, generator):
    return torch.randn(len(table.tokens), table.sizes.patch_values, generator=generator)


def in_grid_order(patches, table, kept):
    """Bring one view's patches from the table's order into the grid's."""
    grid = patches.new_zeros(kept.numel(), patches.shape[1])
    grid[table.tokens] = patches
    return grid[kept.flatten()]


def assert_same_gradients(encoder, outputs, slopes):
    """Hold the parameters' gradients of two outputs against each other."""
    parameters = dict(encoder.named_parameters())
    first, second = (
        torch.autograd.grad((output * slopes).sum(), list(parameters.values()))
        for output in outputs
    )
    for name, one, other in zip(parameters, first, second, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm(), name


@pytest.mark.parametrize("preset", REDUCED)
def test_a_table_of_all_tokens_equals_the_dense_network(preset, generator):
    sizes = REDUCED[preset]
    encoder, kept = Encoder(sizes, seed=1), torch.ones(sizes.grid, dtype=torch.bool)
    table = build_table(kept, sizes)
    patches = draw_patches(table, generator)
    embedding = encoder(patches, table)[0]
    plain = embed_plainly(encoder, in_grid_order(patches, table, kept), kept)
    assert_close(embedding, plain, rtol=0, atol=1e-5)
    assert_same_gradients(
        encoder, (embedding, plain), torch.randn(embedding.shape, generator=generator)
    )


def test_deleted_tokens_are_absent_from_the_plain_network_too(small, some, generator):
    encoder, table = Encoder(small, seed=1), build_table(some, small)
    patches = draw_patches(table, generator)
    embedding = encoder(patches, table)[0]
    plain = embed_plainly(encoder, in_grid_order(patches, table, some), some)
    assert_close(embedding, plain, rtol=0, atol=1e-5)
    assert_same_gradients(
        encoder, (embedding, plain), torch.randn(embedding.shape, generator=generator)
    )


def test_three_dimensions_equal_the_plain_network(generator):
    sizes = EncoderSizes(
        shape=(1, 8, 16, 24),
        patch=(1, 2, 2, 2),
        width=8,
        heads=2,
        depths=(1, 2, 1),
        strides=((1, 2, 2, 2), (1, 1, 2, 1)),
        mask_unit=(1, 4, 4, 4),
        unit_attention=(True, False, True),
        deletion="token",
    )
    kept = torch.rand(sizes.grid, generator=generator) < 0.7
    encoder, table = Encoder(sizes), build_table(kept, sizes)
    patches = draw_patches(table, generator)
    plain = embed_plainly(encoder, in_grid_order(patches, table, kept), kept)
    assert_close(encoder(patches, table)[0], plain, rtol=0, atol=1e-5)


def test_one_stage_in_one_unit_equals_multi_head_attention(generator):
    sizes = EncoderSizes(
        shape=(2, 4, 4, 4),
        patch=(1, 2, 2, 2),
        width=12,
        heads=3,
        depths=(1,),
        strides=(),
        mask_unit=(2, 2, 2, 2),
        unit_attention=(True,),
        deletion="none",
    )
    encoder = Encoder(sizes)
    block = encoder.blocks[0]
    reference = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": block.attn.qkv.weight,
            "in_proj_bias": block.attn.qkv.bias,
            "out_proj.weight": block.attn.proj.weight,
            "out_proj.bias": block.attn.proj.bias,
        }
    )
    table = build_table(torch.ones(sizes.grid, dtype=torch.bool), sizes)
    tokens = torch.randn(len(table.tokens), 12, generator=generator)
    normed = block.norm1(tokens)[None]
    attended = block.attn(normed[0], None, table.stages[0].within)
    assert_close(attended, reference(normed, normed, normed)[0][0], rtol=0, atol=1e-5)


def test_patch_embedding_equals_a_convolution_of_each_frame(generator):
    sizes = REDUCED["official"]
    table = build_table(torch.ones(sizes.grid, dtype=torch.bool), sizes)
    volume = torch.randn(sizes.shape, generator=generator)
    embed = Encoder(sizes).patch_embed
    torch.nn.init.normal_(embed.proj["bias"], generator=generator)
    patches = gather_patches(volume.flatten(1), torch.arange(math.prod(sizes.shape[1:])), table)
    weight, bias = embed.proj["weight"][:, :, 0], embed.proj["bias"]
    dense = functional.conv3d(volume[:, None], weight, bias, stride=4)
    in_order = dense.permute(0, 2, 3, 4, 1).flatten(0, 3)[table.tokens]
    assert_close(embed(patches), in_order, rtol=0, atol=1e-5)


def test_patch_embedding_is_a_dot_product_with_each_patch(small, some, generator):
    sizes = replace(small, patch=(2, 2, 4, 2), mask_unit=(4, 4, 4, 8), channels=2)
    kept = some[::2, :, ::2]
    table = build_table(kept, sizes)
    frames = torch.randn(2, *sizes.shape, generator=generator)
    patches = gather_patches(frames.flatten(2), torch.arange(math.prod(sizes.shape[1:])), table)
    embed = Encoder(sizes).patch_embed
    embedded = embed(patches)
    for row, token in list(enumerate(table.tokens))[::37]:
        place = [int(at) for at in torch.unravel_index(token, sizes.grid)]
        total = torch.zeros(sizes.width)
        for channel, *step in itertools.product(range(2), *map(range, sizes.patch)):
            t, x, y, z = (
                at * size + one for at, size, one in zip(place, sizes.patch, step, strict=True)
            )
            total += (
                frames[channel, t, x, y, z] * embed.proj["weight"][(slice(None), channel, *step)]
            )
        assert_close(embedded[row], total, rtol=0, atol=1e-5)


def test_a_pooled_cell_never_sees_a_missing_child(small, some, generator):
    table = build_table(some, small)
    pooling = table.stages[1].pooling
    children = -1 - torch.rand(len(table.tokens), 4, generator=generator)
    assert (table.levels[1].children < math.prod(small.strides[0])).any()
    assert (pooling.pool(children) <= -1).all()


def embed_frames(encoder, frames, table):
    voxels = torch.arange(math.prod(table.sizes.shape[1:]))
    return encoder(gather_patches(frames.flatten(1), voxels, table), table)


def voxels_of(kept, sizes):
    for axis, size in enumerate(sizes.patch):
        kept = kept.repeat_interleave(size, axis)
    return kept


@pytest.mark.parametrize("value", [0.0, -1e30, math.inf, math.nan])
def test_a_deleted_voxel_may_have_any_value(small, some, generator, value):
    encoder, table = Encoder(small), build_table(some, small)
    frames = torch.randn(small.shape, generator=generator)
    changed = frames.masked_fill(~voxels_of(some, small), value)
    assert torch.equal(embed_frames(encoder, frames, table), embed_frames(encoder, changed, table))


def test_gradients_reach_existing_voxels_and_no_deleted_one(small, some, generator):
    encoder, table = Encoder(small), build_table(some, small)
    frames = torch.randn(small.shape, generator=generator, requires_grad=True)
    embedding = embed_frames(encoder, frames, table)
    (embedding * torch.randn(embedding.shape, generator=generator)).sum().backward()
    assert torch.equal(frames.grad != 0, voxels_of(some, small))


def test_every_parameter_gets_a_gradient(small, some, generator):
    encoder, table = Encoder(small), build_table(torch.ones_like(some), small)
    embedding = encoder(draw_patches(table, generator), table)
    (embedding * torch.randn(embedding.shape, generator=generator)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_a_view_alone_equals_the_view_in_a_batch_of_others(small, some, generator):
    encoder = Encoder(small)
    views = [some, torch.ones_like(some), some.flip(0), some & some.flip(1) | some.flip(2)]
    tables = [build_table(view, small) for view in views]
    patches = [draw_patches(table, generator) for table in tables]
    alone = torch.cat([encoder(*one) for one in zip(patches, tables, strict=True)])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 0]):
        together = build_table(torch.stack([views[one] for one in order]), small)
        embeddings = encoder(torch.cat([patches[one] for one in order]), together)
        assert_close(embeddings, alone[order], rtol=0, atol=1e-5)


def test_the_position_of_a_token_does_not_depend_on_what_is_deleted(small, some, generator):
    encoder, seen = Encoder(small), {}
    encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.update(tokens=inputs[0]))
    by_mask = []
    for kept in (some, torch.ones_like(some)):
        table = build_table(kept, small)
        encoder(torch.zeros(len(table.tokens), small.patch_values), table)
        placed = torch.zeros(kept.numel(), small.width)
        placed[table.tokens] = seen["tokens"]
        by_mask.append(placed)
    assert torch.equal(by_mask[0][some.flatten()], by_mask[1][some.flatten()])
    assert len(by_mask[1].unique(dim=0)) == some.numel()


@pytest.mark.parametrize(
    "change",
    [
        lambda frames: frames.flip(0),
        lambda frames: frames.flip(1),
        lambda frames: frames.transpose(1, 2),
        lambda frames: frames.permute(0, 3, 1, 2),
    ],
    ids=["time reversed", "left and right", "x and y", "axes cycled"],
)
def test_the_embedding_knows_the_axes_from_each_other(generator, change):
    sizes = replace(PRESETS["tiny"], shape=(16, 64, 64, 64))
    encoder = Encoder(sizes, seed=2)
    table = build_table(torch.ones(sizes.grid, dtype=torch.bool), sizes)
    frames = torch.randn(sizes.shape, generator=generator)
    with torch.inference_mode():
        as_it_is = embed_frames(encoder, frames, table)
        changed = embed_frames(encoder, change(frames), table)
    assert (changed - as_it_is).norm() > 1e-3 * as_it_is.norm()


def test_weights_depend_on_the_seed_and_on_nothing_else():
    sizes = REDUCED["tiny"]
    state = torch.random.get_rng_state()
    first, again, other = (Encoder(sizes, seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pos_embed_spatial"], other["pos_embed_spatial"])


def test_maps_are_drawn_to_keep_variance_positions_small_and_biases_zero():
    for name, parameter in Encoder(PRESETS["tiny"]).named_parameters():
        if parameter.ndim > 1:
            inputs = 2500 if name.startswith("pos_embed") else parameter[0].numel()
            assert parameter.std().item() == pytest.approx(inputs**-0.5, rel=0.05), name
        else:
            assert (parameter == float("norm" in name and name.endswith("weight"))).all(), name


@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_filters_of_patches_start_smooth_in_space_and_not_in_time(preset):
    filters = Encoder(PRESETS[preset]).patch_embed.proj["weight"].detach()
    for axis in range(2, 6):
        here, there = filters.unfold(axis, 2, 1).unbind(-1)
        correlation = torch.corrcoef(torch.stack([here.flatten(), there.flatten()]))[0, 1]
        assert correlation > 0.7 if axis > 2 else abs(correlation) < 0.3, axis


def count_gflop(sizes, kept):
    """Count products of the forward pass, without running it."""
    table = build_table(kept, sizes).to("meta")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        Encoder(sizes)(torch.zeros(len(table.tokens), sizes.patch_values), table)
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("preset", GFLOP)
def test_the_dense_cost_is_as_documented(preset):
    sizes = PRESETS[preset]
    dense = count_gflop(sizes, torch.ones(sizes.grid, dtype=torch.bool))
    assert dense == pytest.approx(GFLOP[preset], rel=0.02)


def test_base_costs_an_eighth_of_official(template_brain):
    brain_only = count_gflop(PRESETS["base"], keep_brain(template_brain, PRESETS["base"]))
    assert brain_only < GFLOP["official"] / 8


def test_stages_end_on_their_own_level_and_the_last_with_the_final_cells(small, some, generator):
    encoder, table = Encoder(small), build_table(some, small)
    patches = draw_patches(table, generator)
    stages = encoder.encode_stages(patches, table)
    shapes = [tuple(stage.shape) for stage in stages]
    cells = [len(level.cells) for level in table.levels]
    assert shapes == [(cells[0], 8), (cells[1], 16), (cells[2], 32), (cells[2], 64)]
    assert torch.equal(stages[-1], encoder.encode_cells(patches, table))


def test_a_stage_is_what_its_blocks_make_of_the_one_before(small, some, generator):
    encoder, table = Encoder(small), build_table(some, small)
    _, second, third, _ = encoder.encode_stages(draw_patches(table, generator), table)
    stage = table.stages[2]
    again = encoder.blocks[3](second, stage.pooling, stage.entry)
    assert torch.equal(encoder.blocks[4](again, None, stage.within), third)


def test_mapped_cells_are_normed_one_by_one(small, some, generator):
    encoder, table = Encoder(small), build_table(some, small)
    mapped = encoder.map_cells(draw_patches(table, generator), table)
    assert_close(mapped.mean(1), torch.zeros(len(mapped)), rtol=0, atol=1e-5)
    assert_close(mapped.var(1, correction=0), torch.ones(len(mapped)), rtol=1e-3, atol=0)


def measure_step(encoder, patches, table, slopes):
    """Return the embedding, the gradients, and the bytes that autograd kept between."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        embedding = encoder(patches, table)
    gradients = torch.autograd.grad((embedding * slopes).sum(), list(encoder.parameters()))
    return embedding, gradients, sum(kept.values())


def assert_close_in_norm(one, other, share):
    assert (one - other).norm() <= share * other.norm()


def test_checkpointing_changes_what_is_kept_and_nothing_else(small, some, generator):
    encoder, table = Encoder(small), build_table(some, small)
    patches = draw_patches(table, generator)
    slopes = torch.randn(1, small.embedding_width, generator=generator)
    embedding, gradients, kept = measure_step(encoder, patches, table, slopes)
    encoder.checkpointing = True
    again, gradients_again, kept_again = measure_step(encoder, patches, table, slopes)
    assert torch.equal(embedding, again)
    assert all(map(torch.equal, gradients, gradients_again))
    assert kept_again < 0.5 * kept


# Torch's own compiler looks at every attribute of what it is given.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_maps_change_the_rounding_only(small, some, generator):
    encoder, table = Encoder(small), build_table(some, small)
    patches = draw_patches(table, generator)
    slopes = torch.randn(1, small.embedding_width, generator=generator)
    embedding, gradients, _ = measure_step(encoder, patches, table, slopes)
    encoder.compile_maps("aot_eager")
    again, gradients_again, _ = measure_step(encoder, patches, table, slopes)
    assert encoder.blocks[0].mlp._compiled_call_impl is not None
    assert_close(again, embedding, rtol=0, atol=1e-5)
    for one, other in zip(gradients_again, gradients, strict=True):
        assert_close_in_norm(one, other, 1e-5)


@pytest.mark.parametrize("preset", REDUCED)
def test_bfloat16_stays_within_a_fiftieth_and_the_embedding_in_float32(preset, generator):
    sizes = REDUCED[preset]
    encoder, kept = Encoder(sizes, seed=1), torch.ones(sizes.grid, dtype=torch.bool)
    table = build_table(kept, sizes)
    patches = draw_patches(table, generator)
    with torch.inference_mode():
        embedding = encoder(patches, table)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = encoder(patches, table)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, embedding)
    assert_close_in_norm(rounded, embedding, 2e-2)


# GiB that autograd keeps of one view's forward pass in float32.
SAVED = {"tiny": 0.0963, "base": 1.617, "official": 7.564}


def count_saved(sizes, kept):
    """Add up what autograd keeps, in GiB: without a run, but with the CPU's own kernels."""
    table, shares = build_table(kept, sizes), {}
    with torch.device("meta"):
        encoder = Encoder(sizes)
    with FakeTensorMode(allow_non_fake_inputs=True):
        encoder.to_empty(device="cpu")
        patches = torch.zeros(len(table.tokens), sizes.patch_values)
        there = {tensor.untyped_storage()._cdata for tensor in (patches, *encoder.parameters())}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if tensor.is_floating_point() and storage._cdata not in there:
                shares[storage._cdata] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            embedding = encoder(patches, table)
    assert embedding.requires_grad
    return sum(shares.values()) / 2**30


@pytest.mark.parametrize("preset", SAVED)
def test_what_autograd_keeps_is_as_documented(preset, template_brain):
    sizes = PRESETS[preset]
    assert count_saved(sizes, keep_brain(template_brain, sizes)) == pytest.approx(
        SAVED[preset], rel=0.02
    )


def test_base_keeps_less_than_half_of_official(template_brain):
    base, official = PRESETS["base"], PRESETS["official"]
    dense = torch.ones(official.grid, dtype=torch.bool)
    assert count_saved(base, keep_brain(template_brain, base)) < 0.45 * count_saved(official, dense)
