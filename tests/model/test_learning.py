"""Whether the objectives teach an encoder anything, on signal with planted networks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from slimbrain_app.model.batches import MaskedView, collate_views
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.jepa import JEPA, Jepa, JepaSettings
from slimbrain_app.model.mae import Mae, MaeSettings
from slimbrain_app.model.masking import draw_mask
from slimbrain_app.model.monitors import measure, measure_distance, start_means, update_means
from slimbrain_app.model.predictor import PredictorSizes
from slimbrain_app.model.presets import PRESETS, EncoderSizes
from slimbrain_app.model.tokens import build_table, gather_patches
from slimbrain_app.settings import Hide

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# The widths and depths of the preset, on 64 mm instead of 192.
TINY = replace(PRESETS["tiny"], shape=(40, 32, 32, 32))
MINUTE = EncoderSizes(
    shape=(10, 8, 8, 8),
    patch=(1, 2, 2, 2),
    width=24,
    heads=1,
    depths=(1, 1, 2),
    strides=((1, 2, 2, 2),),
    mask_unit=(2, 2, 2, 2),
    unit_attention=(True, True, False),
    deletion="token",
)
NARROW = PredictorSizes(width=64, depth=2, heads=2)
WARM_UP = 0.05


class Networks:
    """Windows in which smooth networks, each with a course of its own, vary in amplitude."""

    def __init__(self, sizes: EncoderSizes, networks: int, noise: float):
        self.sizes, self.noise = sizes, noise
        generator = torch.Generator().manual_seed(1)
        self.kept = torch.ones(sizes.grid, dtype=torch.bool)
        self.table = build_table(self.kept, sizes)
        self.voxels = torch.arange(math.prod(sizes.shape[1:]))
        places = torch.stack(torch.unravel_index(self.voxels, sizes.shape[1:]), 1)
        waves = torch.randn(networks, 3, generator=generator)
        phases = 2 * torch.pi * torch.rand(2, networks, 1, generator=generator)
        cycles = 1 + torch.rand(networks, 1, generator=generator)
        turns = waves @ (places / sizes.shape[1]).T
        frames = torch.arange(sizes.shape[0]) / sizes.shape[0]
        self.maps = torch.cos(2 * torch.pi * turns + phases[0])
        self.courses = torch.cos(2 * torch.pi * cycles * frames + phases[1])

    def draw(self, generator):
        """Return the first network's amplitude and a window's patches."""
        amplitudes = 2 * torch.rand(len(self.maps), generator=generator)
        signal = (self.courses * amplitudes[:, None]).T @ self.maps
        noise = self.noise * torch.randn(signal.shape, generator=generator)
        patches = gather_patches(signal + noise, self.voxels, self.table)
        return float(amplitudes[0]), patches

    def batch(self, windows, epoch):
        fill = torch.ones(self.sizes.grid[1:])
        places = torch.ones(self.sizes.final_grid[1:], dtype=torch.bool)
        times = self.sizes.final_grid[0]
        return collate_views(
            [
                MaskedView(
                    patches,
                    self.kept,
                    fill,
                    draw_mask(places, times, Hide(), (0, epoch, number)),
                )
                for number, patches in enumerate(windows)
            ],
            self.sizes,
        )


def train(objective, draw_batch, steps, rate):
    """Train as a loop would, and yield each step's loss; AdamW, warm-up, cosine."""
    trainable = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(1, steps + 1):
        share = step / steps
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, share / WARM_UP) * (1 + math.cos(math.pi * share)) / 2
        loss = objective(draw_batch(step))
        optimizer.zero_grad()
        (loss.total / loss.views).backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        objective.end_step(share)
        yield step, loss


def watch(jepa, losses):
    """Return a reading every 50 steps."""
    sizes, readings = jepa.context.sizes, []
    means = start_means(math.prod(sizes.final_grid), sizes.embedding_width)
    for step, loss in losses:
        if step % 50 == 0:
            distance = measure_distance(jepa.context, jepa.target)
            readings.append(measure(step, loss.evidence, means, distance))
        means = update_means(means, loss.evidence)
    return readings


def probe(encoder, networks, count=80):
    """Return the R2 of the first network's amplitude, by ridge regression, one left out."""
    generator = torch.Generator().manual_seed(99)
    amplitudes, windows = zip(*(networks.draw(generator) for _ in range(count)), strict=True)
    with torch.inference_mode():
        rows = torch.cat([encoder(patches, networks.table) for patches in windows]).double()
    truth = torch.tensor(amplitudes, dtype=torch.float64)
    rows, truth = rows - rows.mean(0), truth - truth.mean()
    kernel = rows @ rows.T
    scores = []
    for penalty in (1e-3, 1e-2, 0.1, 1, 10, 100):
        hat = kernel @ torch.linalg.inv(kernel + penalty * torch.eye(count))
        left_out = (truth - hat @ truth) / (1 - hat.diag())
        scores.append(1 - left_out.square().sum() / truth.square().sum())
    return float(max(scores))


def test_tiny_overfits_eight_windows():
    networks = Networks(TINY, networks=2, noise=0.2)
    generator = torch.Generator().manual_seed(2)
    windows = [networks.draw(generator)[1] for _ in range(8)]
    jepa = Jepa(Encoder(TINY, seed=0), JEPA["tiny"], seed=1)
    losses = train(jepa, lambda step: networks.batch(windows, step), steps=300, rate=1e-3)
    assert watch(jepa, losses)[-1].over_constant < 0.3


def train_on_fresh_windows(objective, networks, steps):
    generator = torch.Generator().manual_seed(3)

    def draw_batch(step):
        return networks.batch([networks.draw(generator)[1] for _ in range(8)], step)

    return train(objective, draw_batch, steps, rate=1e-3)


def test_joint_embedding_prediction_beats_a_constant_does_not_collapse_and_serves_a_probe():
    networks = Networks(MINUTE, networks=2, noise=2.0)
    encoder = Encoder(MINUTE, seed=0)
    untrained = probe(encoder, networks)
    jepa = Jepa(encoder, JepaSettings(predictor=NARROW), seed=1)
    readings = watch(jepa, train_on_fresh_windows(jepa, networks, 400))
    first, last = readings[0], readings[-1]
    assert last.over_constant < 0.96
    assert last.median_spread > 0.5 * first.median_spread
    assert last.cell_rank > 0.3 * MINUTE.embedding_width
    assert probe(jepa.trained, networks) > untrained + 0.2


def test_masked_autoencoding_beats_a_constant_and_serves_a_probe():
    networks = Networks(MINUTE, networks=2, noise=1.0)
    encoder = Encoder(MINUTE, seed=0)
    untrained = probe(encoder, networks)
    mae = Mae(encoder, MaeSettings(decoder=NARROW), seed=1)
    losses = [float(loss.kinds.sum() / 3) for _, loss in train_on_fresh_windows(mae, networks, 300)]
    # The best constant of standardised signal is 0, which loses 1.
    assert sum(losses[-20:]) / 20 / 8 < 0.95
    assert probe(mae.trained, networks) > untrained + 0.05
