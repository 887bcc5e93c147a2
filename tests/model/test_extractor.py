"""Tests of the temporal extractor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimbrain_app.model.extractor import (
    PRIOR,
    ExtractorSizes,
    Reading,
    TemporalExtractor,
    cut_tokens,
    encode_seconds,
    hide_cells,
    judge_exactly,
    judge_fast,
    measure_misfit,
    score_windows,
    spread_probes,
)

SMALL = ExtractorSizes(cells=40, width=16, heads=2, blocks=1)
PRESENT = np.array([0, 1, 2, 3, 5, 8, 13, 14, 15, 21, 22, 30, 31, 34, 39])
FRAMES = 143
STARTS = np.array([0, 20, 40, 60, 80, 100])


def make_series(seed: int = 0, frames: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, len(PRESENT)))


def read(extractor: TemporalExtractor, series: np.ndarray) -> Reading:
    tokens, present = cut_tokens(series, PRESENT, extractor.sizes)
    hidden = hide_cells(present, len(tokens), extractor.sizes.views)
    return extractor.read(tokens.to(extractor.join.weight.dtype), hidden, 0.72)


def score(extractor: TemporalExtractor, series: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.array(score_windows(extractor, series, PRESENT, starts, 40, 0.72))


def test_full_size_has_about_a_million_parameters() -> None:
    extractor = TemporalExtractor(ExtractorSizes())
    assert sum(weights.numel() for weights in extractor.parameters()) == 1_071_040


def test_seed_decides_the_first_weights_and_nothing_else() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same = TemporalExtractor(SMALL, seed=1), TemporalExtractor(SMALL, seed=1)
    other = TemporalExtractor(SMALL, seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(one.join.weight, same.join.weight)
    assert not torch.equal(one.join.weight, other.join.weight)


def test_cells_are_laid_out_by_index_and_odd_frames_dropped() -> None:
    series = make_series()
    tokens, present = cut_tokens(series, PRESENT, SMALL)
    assert tokens.shape == (FRAMES // 5, 5, 40)
    assert present.nonzero().squeeze(1).tolist() == PRESENT.tolist()
    assert tokens[3, 2, 13] == series[17, 6]
    assert torch.all(tokens[:, :, ~present] == 0)


@given(cells=st.integers(4, 60), views=st.integers(2, 5), seed=st.integers(0, 99))
def test_each_existing_cell_is_shown_once_in_a_round_of_views(
    cells: int, views: int, seed: int
) -> None:
    present = torch.zeros(64, dtype=torch.bool)
    present[torch.randperm(64, generator=torch.Generator().manual_seed(seed))[:cells]] = True
    hidden = hide_cells(present, 3 * views, views, seed)
    assert not hidden[:, ~present].any()
    for first in range(2 * views):
        shown = ~hidden[first : first + views] & present
        assert torch.equal(shown.sum(0), present.long())


def test_query_does_not_see_hidden_cells() -> None:
    extractor, series = TemporalExtractor(SMALL), make_series()
    before = read(extractor, series)
    series = series.copy()
    places = before.hidden[4, PRESENT].nonzero().squeeze(1).numpy()
    series[20:25, places] += 100
    after = read(extractor, series)
    assert torch.equal(before.queries[4], after.queries[4])
    assert not torch.equal(before.states[4], after.states[4])


def test_tokens_do_not_mix_before_the_state() -> None:
    extractor, series = TemporalExtractor(SMALL), make_series()
    before = read(extractor, series)
    series = series.copy()
    series[20:25] += 1
    after = read(extractor, series)
    others = torch.arange(len(before.tokens)) != 4
    assert torch.equal(before.queries[others], after.queries[others])
    assert torch.equal(before.states[others], after.states[others])


def test_state_equals_attention_by_a_plain_loop() -> None:
    extractor = TemporalExtractor(SMALL).double()
    reading = read(extractor, make_series())
    with torch.no_grad():
        tokens, _ = cut_tokens(make_series(), PRESENT, SMALL)
        centres = (torch.arange(len(tokens), dtype=torch.float64) * 5 + 2) * 0.72
        embedded = extractor.blocks(extractor.join(extractor.frame_map(tokens).flatten(1)))
        embedded = extractor.norm(embedded + encode_seconds(centres, 16))
        keys, values = extractor.key_value(embedded).chunk(2, dim=1)
        query = extractor.query(extractor.norm(reading.queries[7]))
        givers = [0, 3, 4, 20]
        attended = torch.zeros(16, dtype=torch.float64)
        for head in (slice(0, 8), slice(8, 16)):
            likenesses = [plain_feature(query[head]) @ plain_feature(keys[g, head]) for g in givers]
            for giver, likeness in zip(givers, likenesses, strict=True):
                attended[head] += likeness / (sum(likenesses) + PRIOR * 8) * values[giver, head]
        decoded = extractor.decoder(reading.queries[7] + extractor.project(attended))
        expected = torch.stack(
            [extractor.cell_map(part) for part in extractor.part(decoded).split(16)]
        )
        actual = extractor.predict(reading.queries[7], reading.states[givers].sum(0))
    torch.testing.assert_close(actual, expected)


def plain_feature(values: torch.Tensor) -> torch.Tensor:
    return torch.tensor([v + 1 if v > 0 else math.exp(v) for v in values.tolist()]).double()


def test_error_counts_hidden_existing_cells_only() -> None:
    extractor = TemporalExtractor(SMALL)
    reading = read(extractor, make_series())
    nobody = torch.zeros_like(reading.states[0])
    takers = torch.tensor([2, 9])
    with torch.no_grad():
        errors = extractor.errors(reading, takers, nobody)
        for place, error in zip(takers.tolist(), errors, strict=True):
            guess = extractor.predict(reading.queries[place], nobody)
            misses = [
                (float(guess[frame, cell]) - float(reading.tokens[place, frame, cell])) ** 2
                for frame in range(5)
                for cell in range(40)
                if reading.hidden[place, cell]
            ]
            assert float(error) == pytest.approx(np.mean(misses), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fast_form_with_all_probes_equals_the_exact_one(dtype: torch.dtype) -> None:
    extractor = TemporalExtractor(SMALL).to(dtype)
    firsts = torch.from_numpy(STARTS // 5)
    with torch.inference_mode():
        reading = read(extractor, make_series())
        fast = judge_fast(extractor, reading, firsts, 8, probes=1000)
        exact = judge_exactly(extractor, reading, firsts, 8)
    np.testing.assert_allclose(fast, exact, atol=1e-5)
    assert np.ptp(exact) > 1e-3


@given(
    tokens=st.integers(9, 400),
    count=st.integers(1, 64),
    data=st.data(),
)
def test_probes_are_distinct_evenly_spaced_and_outside(
    tokens: int, count: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, tokens - 8))
    probes = spread_probes(torch.tensor([first]), 8, tokens, count)[0].tolist()
    rest = [token for token in range(tokens) if not first <= token < first + 8]
    assert set(probes) <= set(rest)
    assert len(set(probes)) == len(probes) == min(count, len(rest))
    gaps = np.diff([rest.index(probe) for probe in probes])
    assert len(gaps) == 0 or np.ptp(gaps) <= 1


@settings(max_examples=10)
@given(order=st.permutations(range(len(STARTS))))
def test_order_of_windows_does_not_matter(order: list[int]) -> None:
    extractor, series = TemporalExtractor(SMALL), make_series()
    expected = score(extractor, series, STARTS)[:, order]
    np.testing.assert_allclose(score(extractor, series, STARTS[order]), expected, atol=1e-12)


def test_a_window_alone_gets_the_score_it_has_among_others() -> None:
    extractor, series = TemporalExtractor(SMALL), make_series()
    together = score(extractor, series, STARTS)
    alone = [score(extractor, series, STARTS[[place]])[:, 0] for place in range(len(STARTS))]
    np.testing.assert_allclose(np.transpose(alone), together, atol=1e-12)


def test_threads_do_not_change_scores() -> None:
    extractor, series = TemporalExtractor(SMALL), make_series()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = score(extractor, series, STARTS)
        torch.set_num_threads(2)
        two = score(extractor, series, STARTS)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(one, two, atol=1e-12)


def test_scoring_leaves_the_extractor_as_it_is() -> None:
    extractor = TemporalExtractor(SMALL)
    before = {name: weights.clone() for name, weights in extractor.state_dict().items()}
    score(extractor, make_series(), STARTS)
    after = extractor.state_dict()
    assert extractor.training
    assert all(after[name].dtype == torch.float32 for name in before)
    assert all(torch.equal(after[name], weights) for name, weights in before.items())


def test_windows_of_broken_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="whole numbers of 5 frames"):
        score(TemporalExtractor(SMALL), make_series(), np.array([0, 42]))


@settings(max_examples=20)
@given(shift=st.floats(0, 600))
def test_positions_of_two_times_are_as_alike_as_their_distance_says(shift: float) -> None:
    seconds = torch.tensor([10.0, 13.6, 71.2], dtype=torch.float64)
    here, later = encode_seconds(seconds, 32), encode_seconds(seconds + shift, 32)
    torch.testing.assert_close(here @ here.T, later @ later.T)
    assert (here @ here.T)[0, 1] > (here @ here.T)[0, 2]


def test_every_parameter_learns_from_one_step() -> None:
    extractor = TemporalExtractor(SMALL)
    reading = read(extractor, make_series())
    takers = torch.arange(0, len(reading.tokens), 2)
    extractor.errors(reading, takers, reading.states[1::2].sum(0)).mean().backward()
    assert all(weights.grad.abs().sum() > 0 for weights in extractor.parameters())


def test_errors_are_told_without_filling_cells_in() -> None:
    extractor = TemporalExtractor(SMALL, seed=1).double()
    torch.nn.init.normal_(extractor.cell_map.bias)
    reading = read(extractor, make_series())
    takers, state = torch.tensor([[3, 4, 5], [0, 27, 3]]), reading.states[:2].sum(0)
    decoded = extractor.decode(reading.queries[takers], state)
    told = measure_misfit(extractor, reading).errors(decoded, takers)
    torch.testing.assert_close(told, extractor.errors(reading, takers, state))
