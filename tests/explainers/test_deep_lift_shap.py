from typing import Any

import pytest
import torch
from tests.explainers.paths import near, tanh_net
from tests.oracles import Linear, uniform
from torch import Tensor, nn

import pellucid as pl
from pellucid.core.random import Key
from pellucid.core.random import uniform as stream_values

X = torch.linspace(-1, 1, 8, dtype=torch.float64)[None]
ROWS = 2 * uniform(6, 8, seed=9, dtype=torch.float64) - 1
BACKGROUND = pl.Background.of(ROWS)


def map_of(net: nn.Module, x: Any = X, target: Any = 1, **settings: Any) -> pl.Attribution:
    return pl.DeepLIFTSHAP(**{"baselines": BACKGROUND} | settings)(pl.TorchModel(net), x, target=target)


def chosen(x: Tensor, n: int, seed: int = 0) -> list[int]:
    """The rows that one input draws: equal parts of [0, 1) for each."""
    stream = Key.of(x[0]).stream(seed)
    return [int(stream_values(stream, i, 1)[0] * len(ROWS)) for i in range(n)]


def rescaled(net: nn.Module, x: Tensor, start: Tensor, target: int = 1) -> Tensor:
    """DeepLIFT of a network of one hidden layer of tanh: the slope of each unit between both values, unit by unit."""
    weight, bias, second = net[0].weight.detach(), net[0].bias.detach(), net[2].weight.detach()
    found = torch.zeros_like(x)
    for j in range(len(bias)):
        here, there = (float((weight[j] * t[0]).sum() + bias[j]) for t in (x, start))
        a, b = torch.tensor([here, there], dtype=torch.float64).tanh()
        found += (float(a - b) / (here - there)) * second[target, j] * weight[j]
    return found * (x - start)


def test_of_a_linear_network_it_is_the_weight_times_the_way_from_the_mean_of_what_was_drawn():
    weight = uniform(2, 8, seed=2, dtype=torch.float64)
    a = map_of(Linear(weight), n_samples=9, seed=3)
    starts = ROWS[chosen(X, 9, 3)]
    assert len(set(chosen(X, 9, 3))) > 2
    assert near(a.scores, weight[1] * (X - starts.mean(0)), 1e-12)
    # A difference of numbers of about one, of which the spread is a part.
    assert near(a.standard_error, weight[1] * starts.std(0)[None] / 9**0.5, 1e-10)


def test_it_is_the_mean_of_deep_lift_over_the_very_baselines_of_the_stream():
    net = tanh_net(8)
    a = map_of(net, n_samples=7, seed=1)
    maps = torch.cat([rescaled(net, X, ROWS[row][None]) for row in chosen(X, 7, 1)])
    assert near(a.scores, maps.mean(0, keepdim=True), 1e-11)
    assert near(a.standard_error, maps.std(0, keepdim=True) / 7**0.5, 1e-9)
    assert a.samples_used == 7


def test_it_is_the_expectation_over_the_background():
    net = tanh_net(8)
    a = map_of(net, n_samples=900)
    every = torch.cat([rescaled(net, X, row[None]) for row in ROWS])
    assert ((a.scores - every.mean(0)).abs() <= 5 * a.standard_error).all()
    true_error = every.std(0, unbiased=False) / 900**0.5
    # The error of a standard deviation of 900 is some 2 %, of rows so few a little more.
    torch.testing.assert_close(a.standard_error[0], true_error, rtol=0.15, atol=0)
    assert (every - every.mean(0)).abs().max() > 20 * a.standard_error.max(), "one baseline alone would not do"


def test_of_one_baseline_it_is_deep_lift():
    net = tanh_net(8)
    expected = rescaled(net, X, torch.full_like(X, 0.4))
    alone = pl.DeepLIFT(baseline=pl.Constant(0.4))(pl.TorchModel(net), X, target=1)
    for baselines in ((pl.Constant(0.4),), pl.Background.of(torch.full_like(X, 0.4))):
        a = map_of(net, baselines=baselines, n_samples=5)
        assert near(a.scores, expected, 1e-11)
        assert near(a.scores, alone.scores, 1e-14)
        assert float(a.standard_error.abs().max()) < 1e-15


def test_its_sum_is_the_change_from_the_mean_score_of_what_was_drawn():
    net = tanh_net(8)
    a = map_of(net, n_samples=11)
    with torch.no_grad():
        change = net(X)[0, 1] - net(ROWS[chosen(X, 11)])[:, 1].mean()
    torch.testing.assert_close(a.scores.sum(), change, rtol=1e-11, atol=1e-13)


def test_the_baselines_of_a_tuple_are_taken_alike_often():
    weight = uniform(2, 8, seed=2, dtype=torch.float64) + 0.5
    a = map_of(Linear(weight), baselines=(pl.Zeros(), pl.Constant(1.0)), n_samples=900)
    assert ((a.scores - weight[1] * (X - 0.5)).abs() <= 5 * a.standard_error).all()
    torch.testing.assert_close(a.standard_error[0], weight[1] * 0.5 / 30, rtol=0.02, atol=0)


def test_by_default_it_starts_from_black_and_from_the_mean():
    assert pl.DeepLIFTSHAP().baselines == (pl.BlackOrZero(), pl.FeatureMean())
    assert pl.DeepLIFTSHAP().n_samples == 50


@pytest.mark.parametrize("baselines", [BACKGROUND, (pl.Zeros(), pl.FeatureMean())], ids=["rows", "tuple"])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_neither_the_micro_batch_nor_the_company_changes_a_map(baselines, rows):
    explain, x = pl.DeepLIFTSHAP(baselines=baselines, n_samples=9, seed=5), torch.cat([X, X + 1, 2 * X + 1])
    whole = explain(pl.TorchModel(tanh_net(8)), x, target=[0, 1, 1])
    for i, target in enumerate([0, 1, 1]):
        alone = explain(pl.TorchModel(tanh_net(8), micro_batch=rows), x[i : i + 1], target=target)
        assert near(alone.scores[0], whole.scores[i], 1e-12)


def test_each_input_of_a_batch_has_its_own_baseline():
    """The mean of each input is another for each."""
    weight = uniform(2, 8, seed=2, dtype=torch.float64)
    x = torch.cat([X, X + 1, X * 3])
    a = map_of(Linear(weight), x, [0, 1, 1], baselines=(pl.FeatureMean(),), n_samples=3)
    assert near(a.scores, weight[[0, 1, 1]] * (x - x.mean(1, keepdim=True)), 1e-12)


def test_another_seed_draws_others_and_the_same_seed_the_same():
    one, same, other = (map_of(tanh_net(8), n_samples=9, seed=seed).scores for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not near(other, one, 1e-3)


def test_more_samples_go_on_where_it_stopped(tmp_path):
    net = tanh_net(8)
    model = pl.TorchModel(net)
    first, whole = (map_of(net, n_samples=n) for n in (20, 53))
    loaded = pl.Attribution.load(first.save(tmp_path / "a.safetensors"))
    for longer in (first.extend(model, X, 33), loaded.extend(model, X, 13).extend(model, X, 20)):
        assert torch.equal(longer.scores, whole.scores)
        assert torch.equal(longer.standard_error, whole.standard_error)
        assert longer.recipe.explainer == whole.recipe.explainer


def test_it_samples_until_the_map_is_as_certain_as_was_asked_for():
    net, x = tanh_net(8), torch.cat([X, X + 3])
    a = map_of(net, x, n_samples=pl.Until(error=0.1, at_most=5000))
    assert (a.estimated_error <= 0.1).all()
    assert max(a.estimate.samples) < 5000
    for i in range(2):
        alone = map_of(net, x[i : i + 1], n_samples=a.estimate.samples[i])
        assert near(alone.scores[0], a.scores[i], 1e-12)


def test_a_single_sample_is_a_map_without_an_error():
    net = tanh_net(8)
    a = map_of(net, n_samples=1)
    assert a.standard_error is None
    assert near(a.scores, rescaled(net, X, ROWS[chosen(X, 1)]), 1e-11)


def test_each_sample_costs_two_passes_and_one_back():
    a = map_of(tanh_net(8), n_samples=9)
    assert (pl.DeepLIFTSHAP(n_samples=9).card.cost.forward, pl.DeepLIFTSHAP(n_samples=9).card.cost.backward) == (18, 9)
    assert (a.cost.forward - 1, a.cost.backward) == (18, 9), "and one for the prediction"


def test_a_stored_result_runs_again_where_the_background_is(tmp_path):
    model = pl.TorchModel(tanh_net(8))
    a = pl.DeepLIFTSHAP(baselines=BACKGROUND, n_samples=6)(model, X, target=1)
    loaded = pl.Attribution.load(a.save(tmp_path / "a.safetensors"))
    assert torch.equal(loaded.reproduce(model, X).scores, a.scores)


@pytest.mark.doors
def test_what_has_no_rule_is_refused_by_name():
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x).real

    with pytest.raises(pl.RuleError, match="'_fft_r2c'"):
        map_of(Spectrum())


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"baselines": ()}, r"`baselines` is pl.Background.of\(rows\), or a tuple such as"),
        ({"baselines": pl.Zeros()}, "or a tuple such as"),
        ({"n_samples": 0}, r"`n_samples` is a whole number, 1 or more, or pl.Until"),
        ({"seed": -1}, "`seed` is a whole number from 0"),
    ],
)
def test_wrong_settings_say_what_to_write(settings, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.DeepLIFTSHAP(**settings)
