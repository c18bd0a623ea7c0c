"""Two-level searches give the results of plain ones."""

import pytest
import torch

from server.model.sampling.vocab_search import BLOCK_IDS, first_max, inverse_cdf, top_values

VOCABS = (BLOCK_IDS * 600, 30_001, 1000, 7)


def noise(vocab: int, lines: int = 5) -> torch.Tensor:
    return torch.randn(lines, vocab, generator=torch.Generator().manual_seed(vocab))


@pytest.mark.parametrize("vocab", VOCABS)
def test_first_max_is_the_lowest_id_with_the_greatest_value(vocab: int) -> None:
    lines = noise(vocab)
    lines[1, vocab // 2 :] = 9.0
    maxima, ids = first_max(lines)
    assert torch.equal(maxima, lines.amax(-1))
    assert ids.tolist() == [int((line == line.max()).nonzero()[0]) for line in lines]


def test_a_nan_is_the_maximum() -> None:
    lines = noise(1000)
    lines[2, 500] = torch.nan
    assert first_max(lines)[0].isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("count", [1, 5, 256])
def test_top_values_are_those_of_a_full_sort(vocab: int, count: int) -> None:
    lines, count = noise(vocab), min(count, vocab)
    values, ids = top_values(lines, count)
    assert torch.equal(values, lines.sort(-1, descending=True).values[:, :count])
    assert torch.equal(lines.gather(1, ids), values)


@pytest.mark.parametrize("vocab", VOCABS)
def test_the_inverse_cdf_is_that_of_a_plain_cumulative_sum(vocab: int) -> None:
    weights = noise(vocab, 1).abs()
    weights[0, ::3] = 0.0
    numbers = torch.linspace(0, 1 - 1e-9, 500, dtype=torch.float64)
    found = inverse_cdf(weights.expand(500, -1).contiguous(), numbers)
    cumulative = weights.double().cumsum(-1)[0] / weights.double().sum()
    slack = 1e-6
    assert bool((weights[0, found] > 0).all())
    assert bool((cumulative[found] >= numbers - slack).all())
    before = torch.where(found > 0, cumulative[(found - 1).clamp(min=0)], 0.0)
    assert bool((before <= numbers + slack).all())
