import numpy as np
import pytest
import torch
from tests.oracles import uniform

from pellucid.core.moments import Moments, per_input, power_error


def of(draws: torch.Tensor, order: int = 2) -> Moments:
    """The moments of draws (inputs, count, *features)."""
    moments = Moments(draws[:, 0], order)
    for draw in draws.unbind(1):
        moments.add(draw)
    return moments


def test_central_moments_are_those_of_numpy():
    draws = uniform(2, 30, 4, dtype=torch.float64) ** 2
    found = of(draws, 4).central
    apart = draws - draws.mean(1, keepdim=True)
    torch.testing.assert_close(found[0], draws.mean(1), rtol=1e-12, atol=0)
    for power, sums in zip((2, 3, 4), found[1:], strict=True):
        torch.testing.assert_close(sums, (apart**power).sum(1), rtol=1e-10, atol=1e-15)


def test_the_noise_of_a_mean_is_the_variance_over_the_count():
    draws = uniform(2, 30, 4, dtype=torch.float64)
    torch.testing.assert_close(of(draws).noise, draws.var(1) / 30, rtol=1e-12, atol=0)


def test_some_inputs_can_be_taken_out():
    draws = uniform(5, 20, 3)
    rows, alone = of(draws).rows([3, 1]), of(draws[[3, 1]])
    assert torch.equal(rows.mean, alone.mean)
    assert torch.equal(rows.sums, alone.sums)
    assert rows.count == 20


def test_what_was_kept_goes_on_as_if_nothing_had_been():
    draws = uniform(3, 40, 3)
    kept = of(draws[:, :25]).state()
    again = Moments.of(kept, [2, 0], draws[[2, 0], 0], 2)
    for draw in draws[[2, 0], 25:].unbind(1):
        again.add(draw)
    whole = of(draws).rows([2, 0])
    assert torch.equal(again.mean, whole.mean)
    assert torch.equal(again.noise, whole.noise)
    assert torch.equal(again.sums, whole.sums)
    assert kept["draws"].tolist() == [25] * 3


def test_going_on_leaves_what_was_kept_as_it_was():
    kept = of(uniform(1, 20, 3)).state()
    before = {name: part.clone() for name, part in kept.items()}
    Moments.of(kept, [0], uniform(1, 3), 2).add(uniform(1, 3))
    assert all(torch.equal(kept[name], part) for name, part in before.items())


def test_the_gap_sums_the_plain_map_minus_the_draw():
    draws, plain = uniform(1, 3, 4, dtype=torch.float64), uniform(1, 3, 4, seed=1, dtype=torch.float64)
    moments = Moments(draws[:, 0], 2)
    for i in (0, 1, 2):
        moments.add(draws[:, i], plain[:, i] if i != 1 else None)
    gaps = (plain - draws)[:, [0, 2]]
    torch.testing.assert_close(moments.gap, gaps.sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.gap_power, gaps.square().sum((1, 2)), rtol=1e-12, atol=0)
    torch.testing.assert_close(moments.plain_power, plain[:, [0, 2]].square().sum((1, 2)), rtol=1e-12, atol=0)
    assert moments.gaps == 2


def test_the_error_of_a_power_is_the_jackknife_over_batches():
    """Leave out each batch in turn and compute the mean product of the others again."""
    draws = uniform(1, 20, 6, dtype=torch.float64) - 0.3
    moments = of(draws)
    batches = [draws[0, b::16] for b in range(16)]
    each = []
    for out in range(16):
        left = [b.sum(0).numpy() for i, b in enumerate(batches) if i != out]
        sizes = np.array([len(b) for i, b in enumerate(batches) if i != out])
        products = sum(float(a @ b) for i, a in enumerate(left) for j, b in enumerate(left) if i != j)
        each.append(products / 6 / (sizes.sum() ** 2 - (sizes**2).sum()))
    expected = np.sqrt(15 / 16 * ((np.array(each) - np.mean(each)) ** 2).sum())
    torch.testing.assert_close(power_error(moments.sums, 20), torch.tensor([expected]), rtol=1e-9, atol=0)


def test_the_error_of_a_power_is_its_spread_over_runs():
    """The jackknife of a quadratic errs on the safe side: of noise alone by (K - 1) / (K - 2) times in the square."""
    rng = np.random.default_rng(0)
    values = torch.from_numpy(0.2 + rng.standard_normal((2000, 32, 50)))
    moments = of(values)
    power = per_input(moments.mean.square() - moments.noise)
    ratio = float(power_error(moments.sums, 32).square().mean().sqrt() / power.std())
    assert 0.95 < ratio < 1.25


def test_two_draws_show_no_spread_of_a_power():
    assert power_error(of(uniform(2, 2, 4)).sums, 2).tolist() == [torch.inf] * 2


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_the_error_of_the_power_is_as_certain_of_tiny_and_of_huge_maps(scale):
    """Squares of single precision end at 1e-45 and 1e38."""
    sums = of(uniform(2, 20, 50) - 0.5).sums
    expected = power_error(sums, 20) * scale**2
    torch.testing.assert_close(power_error(sums * scale, 20), expected, rtol=1e-4, atol=0)
