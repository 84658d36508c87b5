"""The choice between float32 and bfloat16. No test waits for a clock: time passes as the networks here say."""

from collections.abc import Callable

import pytest
import torch
from tests.oracles import conv_net, uniform
from torch import Tensor, nn

import pellucid as pl
from pellucid.core.precision import HALF, PrecisionTest, compare

SMOOTH = pl.SmoothGrad(n_samples=12)


class Clocked(nn.Module):
    """A network that takes so many seconds for each row, in either precision."""

    def __init__(self, net: nn.Module, single: float = 2.0, half: float = 1.0) -> None:
        super().__init__()
        self.net = net
        self.seconds = {False: single, True: half}
        self.now = [0.0]  # a list, since a number would be put back after each call

    def forward(self, x: Tensor) -> Tensor:
        self.now[0] += len(x) * self.seconds[torch.is_autocast_enabled("cpu")]
        return self.net(x)


def automatic(net: Clocked) -> pl.TorchModel:
    model = pl.TorchModel(net, precision="auto")
    model.clock = lambda: net.now[0]
    return model


def gates(offset: float = 0.0) -> nn.Module:
    """ReLU gates before weights of +-1, which bfloat16 holds exactly: only inputs near a gate are rounded across it."""
    first, second = nn.utils.skip_init(nn.Linear, 8, 32), nn.utils.skip_init(nn.Linear, 32, 2)
    with torch.no_grad():
        for layer, seed in ((first, 1), (second, 2)):
            layer.weight.copy_(uniform(*layer.weight.shape, seed=seed).sub(0.5).sign())
            layer.bias.zero_()
        first.bias.copy_(-offset * first.weight.sum(1))
    return nn.Sequential(first, nn.ReLU(), second)


class Shrinking(nn.Module):
    """tanh, then 40 factors of 1.0035, each of which bfloat16 rounds to 1: 13 % are missing of every gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, 4, 4, bias=False) for _ in range(40))
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.copy_(torch.eye(4) * 1.0035)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(3 * x)
        for layer in self.layers:
            y = layer(y)
        return y


def test_a_network_that_bfloat16_serves_is_sampled_in_it():
    net = Clocked(gates())
    a = SMOOTH(automatic(net), uniform(2, 8), 0)
    test = a.recipe.run["precision_test"]
    assert a.recipe.run["precision"] == "bfloat16"
    assert test["speed_up"] == 2
    assert 0 <= test["r"] < 0.5
    assert abs(test["systematic"]) < 0.01
    half = SMOOTH(pl.TorchModel(net, precision="bfloat16"), uniform(2, 8), 0)
    assert torch.equal(a.scores, half.scores)


def test_what_is_not_sampled_runs_in_float32():
    net = Clocked(conv_net())
    x = uniform(2, 3, 9, 9)
    a = pl.SimpleGradient()(automatic(net), x, 0)
    assert a.recipe.run["precision"] == "float32"
    assert "precision_test" not in a.recipe.run
    assert torch.equal(a.scores, pl.SimpleGradient()(pl.TorchModel(net), x, 0).scores)


def test_a_network_as_slow_in_bfloat16_stays_in_float32():
    a = SMOOTH(automatic(Clocked(gates(), single=1.0)), uniform(2, 8), 0)
    assert a.recipe.run["precision"] == "float32"
    assert torch.equal(a.scores, SMOOTH(pl.TorchModel(gates()), uniform(2, 8), 0).scores)


def test_noise_of_bfloat16_that_would_take_more_samples_than_it_saves_is_refused():
    """Near 200 bfloat16 has steps of 1, and the inputs a range of 1: most gates are chance."""
    a = SMOOTH(automatic(Clocked(gates(200.5), single=1.3)), uniform(2, 8) + 200, 0)
    test = a.recipe.run["precision_test"]
    assert test["r"] > test["speed_up"] - 1 > 0
    assert a.recipe.run["precision"] == "float32"


def test_an_error_that_more_samples_do_not_lower_is_refused_however_fast():
    """(1.0035^-40 - 1)^2 = 0.017 of the signal's power."""
    a = SMOOTH(automatic(Clocked(Shrinking(), single=100.0)), uniform(1, 4), 0)
    test = a.recipe.run["precision_test"]
    assert test["systematic"] == pytest.approx((1.0035**-40 - 1) ** 2, rel=0.1)
    assert test["r"] < test["speed_up"] - 1
    assert a.recipe.run["precision"] == "float32"


def test_a_network_that_fails_in_bfloat16_stays_in_float32_and_the_recipe_says_why():
    class Picky(Clocked):
        def forward(self, x: Tensor) -> Tensor:
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError("no kernel for bfloat16")
            return super().forward(x)

    a = SMOOTH(automatic(Picky(gates())), uniform(1, 8), 0)
    assert a.recipe.run["precision"] == "float32"
    assert "no kernel for bfloat16" in a.recipe.run["precision_test"]["failed"]


@pytest.mark.parametrize("net", [Clocked(gates()), Clocked(Shrinking())], ids=["bfloat16", "float32"])
def test_a_recipe_is_run_again_as_recorded_and_nothing_is_tested(net, tmp_path):
    x = uniform(2, 4 if isinstance(net.net, Shrinking) else 8)
    a = SMOOTH(automatic(net), x, 0)
    loaded = pl.Attribution.load(a.save(tmp_path / "a.safetensors"))
    for precision in ("auto", None, "bfloat16"):
        other = pl.TorchModel(net, precision=precision)
        other.clock = lambda: pytest.fail("nothing is timed")
        again = loaded.reproduce(other, x)
        assert torch.equal(again.scores, a.scores)
        assert torch.equal(again.outputs, a.outputs)
        assert again.recipe == a.recipe
        assert again.diagnosis_cost == pl.Cost(2, 2), "the gradient's probe alone"


def test_more_samples_are_taken_in_the_same_precision():
    net, x = Clocked(gates()), uniform(1, 8)
    short, long = SMOOTH(automatic(net), x, 0), pl.SmoothGrad(n_samples=20)(automatic(net), x, 0)
    assert torch.equal(short.extend(pl.TorchModel(net), x, 8).scores, long.scores)


def test_the_choice_is_made_once_for_each_shape():
    model = automatic(Clocked(nn.Sequential(nn.Flatten(), gates())))
    inputs = [uniform(1, 8), uniform(1, 8, seed=1), uniform(1, 2, 4)]
    found = [SMOOTH(model, x, 0) for x in inputs]
    test = pl.Cost(2 * 2 * HALF, 2 * 2 * HALF)
    assert [a.diagnosis_cost for a in found] == [pl.Cost(1, 1) + test, pl.Cost(), pl.Cost(1, 1) + test]
    assert found[0].recipe.run["precision_test"] == found[1].recipe.run["precision_test"]
    assert len(model.tested) == 2


def test_other_weights_noise_and_methods_are_tested_anew():
    net = Clocked(gates())
    model, x = automatic(net), uniform(1, 8)
    SMOOTH(model, x, 0)
    pl.SmoothGrad(n_samples=12, noise_level=0.3)(model, x, 0)
    pl.SmoothGrad(n_samples=12, base=pl.Absolute())(model, x, 0)
    pl.VarGrad(n_samples=12)(model, x, 0)
    assert len(model.tested) == 4
    with torch.no_grad():
        net.net[0].weight.mul_(2)
    SMOOTH(model, x, 0)
    assert len(model.tested) == 5
    pl.SmoothGrad(n_samples=30)(model, uniform(1, 8, seed=1), 1)
    assert len(model.tested) == 5


def test_rounding_that_only_asks_for_more_samples_is_a_bias_of_a_variance():
    """r is a tenth of the variance: little to a mean, too much for VarGrad."""
    net, x = Clocked(gates(8.5), single=100.0), uniform(2, 8) + 8
    mean, variance = (explain(automatic(net), x, 0) for explain in (SMOOTH, pl.VarGrad(n_samples=12)))
    assert 0.01 < mean.recipe.run["precision_test"]["r"] == variance.recipe.run["precision_test"]["r"]
    assert (mean.recipe.run["precision"], variance.recipe.run["precision"]) == ("bfloat16", "float32")


def test_the_test_is_not_part_of_the_explanations_cost():
    a = SMOOTH(automatic(Clocked(gates())), uniform(2, 8), 0)
    assert a.cost == SMOOTH.card.cost * 2 + pl.Cost(forward=2)


def test_the_samples_of_the_test_are_the_first_of_the_run():
    """The base is asked for eight maps twice, and then for the same inputs once more."""
    inputs = []
    net = Clocked(gates())
    net.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach().clone()))
    SMOOTH(automatic(net), uniform(1, 8), 0)
    single_a, half_a, half_b, single_b, run = inputs[-5:]
    assert torch.equal(single_a, half_a)
    assert torch.equal(single_b, half_b)
    assert torch.equal(torch.cat([single_a, single_b]), run[: 2 * HALF])


def test_networks_in_another_type_are_left_in_it():
    net = Clocked(gates().double())
    a = SMOOTH(automatic(net), uniform(1, 8).double(), 0)
    assert a.recipe.run["precision"] == "float64"
    assert "precision_test" not in a.recipe.run


def parts(maps: Tensor) -> list[Callable[[], Tensor]]:
    return [lambda: maps[:HALF], lambda: maps[HALF:]]


def ticking(*steps: float) -> Callable[[], float]:
    """A clock that shows 0 and then advances by these steps, one for each look."""
    now, left = [0.0], [0.0, *steps]

    def clock() -> float:
        now[0] += left.pop(0)
        return now[0]

    return clock


STEPS = (8.0, 0.0, 1.0, 0.0, 2.0, 0.0, 4.0)  # single A, half A, half B, single B


def test_the_numbers_are_those_of_the_formulas():
    """A shift of c in every map: r = c^2 / s^2, and the systematic part c^2 over the product of the halves' means."""
    single, c = uniform(2 * HALF, 3, 5), 0.01
    test = compare(parts(single), parts(single + c), ticking(*STEPS))
    mean_a, mean_b = single[:HALF].mean(0), single[HALF:].mean(0)
    assert test.r == pytest.approx(c**2 / float(single.var(0).mean()), rel=1e-4)
    assert test.systematic == pytest.approx(c**2 / float((mean_a * mean_b).mean()), rel=1e-3)
    assert test.speed_up == 4, "the least of both halves: 4 and 1"
    assert test.bfloat16


def test_errors_that_differ_between_the_halves_are_not_systematic():
    single = uniform(2 * HALF, 3, 5)
    apart = torch.cat([torch.full((HALF, 3, 5), 0.01), torch.full((HALF, 3, 5), -0.01)])
    test = compare(parts(single), parts(single + 10 * apart), ticking(*STEPS))
    assert test.systematic < -0.01
    assert test.bfloat16, "a power below zero is noise of its estimate"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_maps_that_overflow_are_refused(bad):
    single = uniform(2 * HALF, 3)
    half = single.clone()
    half[5, 1] = bad
    test = compare(parts(single), parts(half), ticking(*STEPS))
    assert (test.precision, test.r) == ("float32", None)


def test_where_nothing_varies_and_nothing_is_lost_bfloat16_is_as_good():
    """A linear network whose weights bfloat16 holds: no variance, no error, 0 / 0."""
    single = torch.ones(2 * HALF, 3)
    assert compare(parts(single), parts(single), ticking(*STEPS)) == PrecisionTest("bfloat16", 0.0, 0.0, 4.0)
    lost = compare(parts(single), parts(single * 1.001), ticking(*STEPS))
    assert (lost.precision, lost.r) == ("float32", None)


def test_without_a_signal_to_compare_with_the_systematic_part_is_unknown():
    signs = torch.tensor([1.0] * HALF + [-1.0] * HALF)[:, None].expand(-1, 3) + uniform(2 * HALF, 3) / 10
    test = compare(parts(signs), parts(signs + 0.001), ticking(*STEPS))
    assert (test.precision, test.systematic) == ("float32", None)


@pytest.mark.doors
def test_a_recipe_with_a_precision_that_does_not_exist_is_refused():
    x = uniform(1, 8)
    a = SMOOTH(automatic(Clocked(gates())), x, 0)
    a.recipe.run["precision"] = "int4"
    with pytest.raises(pl.PellucidError, match="`precision` is one of 'float32', 'bfloat16'"):
        a.reproduce(pl.TorchModel(Clocked(gates())), x)


def test_autocast_leaves_a_float64_network_alone_and_the_recipe_says_so():
    net, x = gates().double(), uniform(1, 8).double()
    a = SMOOTH(pl.TorchModel(net, precision="bfloat16"), x, 0)
    assert a.recipe.run["precision"] == "float64"
    assert torch.equal(a.scores, SMOOTH(pl.TorchModel(net), x, 0).scores)
