import json
import math
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.explainers.paths import (
    Detector,
    Segmenter,
    Several,
    exactly,
    integrated,
    near,
    picture_net,
    seeded,
    several,
    tanh_net,
)
from tests.explainers.paths import X as PICTURES
from tests.oracles import Linear, Power, conv_net, uniform
from torch import Tensor, nn

import pellucid as pl
from pellucid.core.random import Key, normal

X = torch.linspace(-1, 1.4, 9, dtype=torch.float64)[None]
START = pl.Constant(0.3)
PREPARE = pl.ImagePreprocess(size=8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
MIB = 2**20


def of_power(p: int, x: Tensor = X, target: int = 0, **settings: object) -> pl.Attribution:
    return pl.IntegratedGradients(**settings)(pl.TorchModel(Power(p, 1.0, 2.0)), x, target=target)


def test_of_a_linear_network_it_is_the_weight_times_the_way():
    weight, x = uniform(2, 9, dtype=torch.float64), torch.cat([X, 2 * X])
    a = pl.IntegratedGradients(baseline=START)(pl.TorchModel(Linear(weight)), x, target=[1, 0])
    torch.testing.assert_close(a.scores, weight[[1, 0]] * (x - 0.3), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("p", [1, 2, 3, 6, 11])
def test_of_a_power_it_is_the_difference_of_the_powers(p):
    a = of_power(p, target=1, baseline=START)
    torch.testing.assert_close(a.scores, 2 * (X**p - 0.3**p), rtol=1e-12, atol=1e-14)


def test_features_that_act_together_share_their_product():
    """f = x' A x / 2 with a symmetric A: (x - x')_i (A (x + x') / 2)_i."""
    half = uniform(9, 9, dtype=torch.float64)
    matrix = half + half.T

    class Form(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(matrix)

        def forward(self, x: Tensor) -> Tensor:
            return ((x @ self.matrix) * x).sum(1, keepdim=True) / 2

    a = pl.IntegratedGradients(baseline=START, n_steps=1)(pl.TorchModel(Form()), X, target=0)
    torch.testing.assert_close(a.scores, (X - 0.3) * ((X + 0.3) / 2 @ matrix), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_n_gauss_legendre_nodes_are_exact_up_to_degree_2n_minus_1_and_no_further(n):
    """The gradient of x^p has degree p - 1. At degree 2n the rule's own error remains, x^p (n!)^4 / ((2n)!)^2."""
    for p in range(1, 2 * n + 1):
        torch.testing.assert_close(of_power(p, n_steps=n).scores, X**p, rtol=1e-12, atol=1e-15)
    missing = math.factorial(n) ** 4 / math.factorial(2 * n) ** 2
    p = 2 * n + 1
    torch.testing.assert_close(of_power(p, n_steps=n).scores, X**p * (1 - missing), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_other_rules_are_their_sums(n):
    """The means of a^2 at 1/n … 1, and at 0, 1/(n - 1) … 1, times 3 x^3."""
    right, ends = (n + 1) * (2 * n + 1) / (6 * n**2), (2 * n - 1) / (6 * (n - 1))
    for rule, mean in (("right", right), ("ends", ends)):
        a = of_power(3, n_steps=n, rule=rule)
        torch.testing.assert_close(a.scores, 3 * X**3 * mean, rtol=1e-12, atol=1e-15)


def test_one_step_to_the_right_is_the_gradient_at_the_input_times_the_way():
    a = of_power(3, n_steps=1, rule="right", baseline=START)
    torch.testing.assert_close(a.scores, 3 * X**2 * (X - 0.3), rtol=1e-12, atol=0)


def test_the_residual_is_what_the_scores_leave_of_the_change():
    net = conv_net(dtype=torch.float64).eval()
    x = uniform(4, 3, 9, 9, dtype=torch.float64)
    a = pl.IntegratedGradients(n_steps=7, baseline=START)(pl.TorchModel(net), x, target=[0, 1, 2, 1])
    with torch.no_grad():
        whole = (net(x) - net(torch.full_like(x, 0.3)))[torch.arange(4), [0, 1, 2, 1]]
    assert float((a.residual.abs() / whole.abs()).min()) > 1e-5, "seven steps over kinks leave something"
    torch.testing.assert_close(a.residual, a.scores.flatten(1).sum(1) - whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.tensor(a.recipe.notes["change"], dtype=torch.float64), whole, rtol=1e-10, atol=0)


def test_smooth_networks_leave_almost_no_residual():
    for net, x in ((tanh_net(9), X), (picture_net(), PICTURES)):
        a = pl.IntegratedGradients()(pl.TorchModel(net), x, target=1)
        assert float((a.residual / torch.tensor(a.recipe.notes["change"])).abs().max()) < 1e-4


@pytest.mark.parametrize("rule", ["gauss-legendre", "right", "ends"])
def test_over_kinks_the_residual_falls_with_the_steps(rule):
    model, x = pl.TorchModel(conv_net(dtype=torch.float64)), uniform(12, 3, 9, 9, dtype=torch.float64)
    left = [
        float(pl.IntegratedGradients(n_steps=n, rule=rule)(model, x, target=0).residual.square().mean().sqrt())
        for n in (20, 80, 320)
    ]
    assert left[1] < left[0] / 2
    assert left[2] < left[1] / 2


def test_what_equals_the_baseline_gets_nothing():
    x = X.clone()
    x[0, [2, 5]] = 0.3
    a = pl.IntegratedGradients(baseline=START)(pl.TorchModel(tanh_net(9)), x, target=0)
    assert (a.scores == 0).tolist() == [[i in (2, 5) for i in range(9)]]
    nowhere = pl.IntegratedGradients(baseline=START)(pl.TorchModel(tanh_net(9)), torch.full_like(x, 0.3), target=0)
    assert not nowhere.scores.any()
    assert nowhere.residual.tolist() == [0.0]


BASELINES = [pl.Zeros(), pl.Constant(-0.4), pl.Pixel(1.0), pl.BlackOrZero(), pl.FeatureMean(), pl.Blur(2.0)]


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
def test_the_way_begins_at_the_baseline(baseline):
    weight, x = uniform(2, 192, dtype=torch.float64), 2 * uniform(2, 3, 8, 8, dtype=torch.float64)
    model = pl.TorchModel(Linear(weight), preprocess=PREPARE)
    a = pl.IntegratedGradients(baseline=baseline, n_steps=2)(model, x, target=1)
    start = baseline.values(x, PREPARE)
    torch.testing.assert_close(a.scores, weight[1].view(3, 8, 8) * (x - start), rtol=1e-11, atol=1e-14)
    assert float((a.scores.abs() > 1e-3).double().mean()) > 0.9


def test_black_is_black_in_the_models_units_and_the_default_where_it_is_known():
    weight, x = uniform(1, 192, dtype=torch.float64), uniform(1, 3, 8, 8, dtype=torch.float64)
    black = torch.tensor([-0.5 / 0.2, -0.4 / 0.25, -0.3 / 0.3], dtype=torch.float64).view(3, 1, 1)
    for explain in (pl.IntegratedGradients(), pl.IntegratedGradients(baseline=pl.Pixel(0.0))):
        a = explain(pl.TorchModel(Linear(weight), preprocess=PREPARE), x, target=0)
        torch.testing.assert_close(a.scores, weight.view(3, 8, 8) * (x - black), rtol=1e-6, atol=1e-6)
    a = pl.IntegratedGradients()(pl.TorchModel(Linear(weight)), x, target=0)
    torch.testing.assert_close(a.scores, weight.view(1, 3, 8, 8) * x, rtol=1e-12, atol=0)


@pytest.mark.doors
def test_a_pixel_needs_to_know_what_inputs_are_made_of():
    with pytest.raises(pl.ArgumentError, match=r"preprocess=\.\.\., or give the value in the model's units"):
        pl.IntegratedGradients(baseline=pl.Pixel(0.0))(pl.TorchModel(tanh_net(9)), X, target=0)


@pytest.mark.parametrize("rows", [1, 2, 7, 50, 64])
def test_neither_the_micro_batch_nor_the_company_changes_a_map(rows):
    whole = pl.IntegratedGradients()(pl.TorchModel(picture_net()), PICTURES, target=[0, 1, 2])
    for i in range(3):
        alone = pl.IntegratedGradients()(pl.TorchModel(picture_net(), micro_batch=rows), PICTURES[i : i + 1], target=i)
        assert near(alone.scores[0], whole.scores[i], 1e-12)


@pytest.mark.parametrize("by_name", [True, False])
def test_several_inputs_share_the_change_among_those_that_are_not_held(by_name):
    net, given = seeded(Several), several()
    x = given if by_name else tuple(given.values())
    a = pl.IntegratedGradients(baseline=pl.Constant(0.2))(pl.TorchModel(net), x, target=1)
    names = ["vector", "picture"] if by_name else ["0", "1"]
    assert list(a.parts) == names
    assert a.parts[names[0]].shape == (2, 3)
    assert a.parts[names[1]].shape == (2, 1, 4, 5)
    assert not a.scores[:, -2:].any(), "the groups are held"

    def score(rows: Tensor) -> Tensor:
        vector, picture = rows[:, :3], rows[:, 3:].reshape(-1, 1, 4, 5)
        return net(vector, picture, given["group"])[:, 1]

    rows = torch.cat([given["vector"], given["picture"].flatten(1)], 1)
    start = torch.full_like(rows, 0.2)
    assert near(a.scores[:, :-2], exactly(score, rows, start), 1e-9)
    shares = sum(part.flatten(1).sum(1) for part in a.parts.values())
    torch.testing.assert_close(shares, (score(rows) - score(start)).detach(), rtol=1e-9, atol=0)


def test_a_margin_is_the_difference_of_two_maps():
    model, explain = pl.TorchModel(picture_net()), pl.IntegratedGradients()
    one, two, both = (explain(model, PICTURES, target=t).scores for t in (0, 2, pl.Margin(0, 2)))
    assert near(both, one - two)


@pytest.mark.parametrize(
    ("index", "read"), [((3,), lambda u: u[:, 3].mean((1, 2))), ((1, 2, 0), lambda u: u[:, 1, 2, 0])]
)
def test_a_neuron_is_explained_by_what_its_layer_gives(index, read):
    net = picture_net()
    a = pl.IntegratedGradients()(pl.TorchModel(net), PICTURES, target=pl.Neuron("1", index))
    assert near(a.scores, exactly(lambda x: read(net[:2](x)), PICTURES, torch.zeros_like(PICTURES)), 1e-9)
    assert float(a.residual.abs().max()) < 1e-9


def test_a_region_is_that_of_the_clean_input_all_along_the_way():
    net = seeded(Segmenter)
    x = PICTURES[:1]
    region = net(x)[0].argmax(0) == 1
    assert 0 < int(region.sum()) < region.numel()
    a = pl.IntegratedGradients()(pl.TorchModel(net), x, target=pl.RegionMean(1))
    expected = exactly(lambda z: net(z)[:, 1, region].mean(1), x, torch.zeros_like(x))
    assert near(a.scores, expected, 1e-9)
    assert float(a.residual.abs()) < 1e-9


def detected(x: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """The largest overlap times score of class 1, for a box that each of the three overlaps, and which it is."""
    left, top, right, bottom, _, score = seeded(Detector)(x).unbind(2)
    high = torch.minimum(bottom, box[3]) - torch.maximum(top, box[1])
    wide = torch.minimum(right, box[2]) - torch.maximum(left, box[0])
    both = (bottom - top) * (right - left) + (box[3] - box[1]) * (box[2] - box[0])
    best = (score * high * wide / (both - high * wide)).max(1)
    return best.values, best.indices


def test_a_box_is_followed_by_how_well_it_is_detected():
    model, x = pl.TorchModel(seeded(Detector), output="detection"), uniform(2, 4, dtype=torch.float64) + 1
    box = torch.tensor([0.0, 0.0, 4.0, 4.0], dtype=torch.float64)
    start = torch.ones_like(x)
    a = pl.IntegratedGradients(baseline=pl.Constant(1.0))(model, x, target=pl.BoxScore(1, tuple(box.tolist())))
    which = torch.stack([detected(start + alpha * (x - start), box)[1] for alpha in np.linspace(0, 1, 50)])
    assert (which == which[0]).all(), "the same candidate all along, so that there is no kink"
    assert near(a.scores, exactly(lambda z: detected(z, box)[0], x, start), 1e-9)
    assert float(a.residual.abs().max()) < 1e-9


def test_the_box_is_that_of_the_clean_input_all_along_the_way():
    net, x = seeded(Detector), uniform(1, 4, dtype=torch.float64) + 1
    found = net(x)[0].detach()
    box = found[found[:, 5].argmax(), :4]
    a = pl.IntegratedGradients(n_steps=9)(pl.TorchModel(net, output="detection"), x, target=1)
    assert a.target == pl.BoxScore(1, tuple(box.tolist()))
    at, weights = np.polynomial.legendre.leggauss(9)
    expected = integrated(lambda z: detected(z, box)[0], x, torch.zeros_like(x), (at + 1) / 2, weights / 2)
    assert near(a.scores, expected)


def test_over_noisy_copies_it_is_the_mean_of_its_maps():
    model, base = pl.TorchModel(tanh_net(9)), pl.IntegratedGradients(n_steps=3, baseline=START)
    a = pl.SmoothGrad(base=base, n_samples=4, seed=2, noise_level=0.1)(model, X, target=1)
    stream = Key.of(X[0]).stream(2)
    copies = [X + 0.1 * 2.4 * torch.from_numpy(normal(stream, i, (9,))).double() for i in range(4)]
    maps = torch.stack([base(model, copy, target=1).scores for copy in copies])
    assert near(a.scores, maps.mean(0), 1e-12)
    assert near(a.standard_error, maps.std(0) / 2, 1e-9)


def test_its_progress_counts_points():
    seen: list[pl.Progress] = []
    model = pl.TorchModel(picture_net(), micro_batch=4)
    pl.IntegratedGradients(n_steps=5)(model, PICTURES, target=0, progress=seen.append)
    assert [(p.done, p.total) for p in seen] == [(4, 15), (8, 15), (12, 15), (15, 15)]


def test_a_stored_result_keeps_its_residual_and_runs_again(tmp_path):
    model = pl.TorchModel(picture_net())
    explain = pl.IntegratedGradients(n_steps=3, baseline=pl.Blur(1.5), rule="right")
    a = explain(model, PICTURES, target=[0, 1, 2])
    loaded = pl.Attribution.load(a.save(tmp_path / "a.safetensors"))
    again = loaded.reproduce(model, PICTURES)
    assert torch.equal(loaded.residual, a.residual)
    assert torch.equal(again.scores, a.scores)
    assert torch.equal(again.residual, a.residual)


@pytest.mark.parametrize(
    ("explain", "steps", "rule"),
    [(pl.IntegratedGradients.captum(), 50, "gauss-legendre"), (pl.IntegratedGradients.pair(), 25, "ends"),
     (pl.IntegratedGradients.zennit(), 20, "right")],
    ids=["captum", "pair", "zennit"],
)  # fmt: skip
def test_conventions_begin_at_the_models_zero_even_where_black_is_known(explain, steps, rule):
    assert explain == pl.IntegratedGradients(baseline=pl.Zeros(), n_steps=steps, rule=rule)
    weight, x = uniform(1, 192, dtype=torch.float64), uniform(1, 3, 8, 8, dtype=torch.float64)
    a = explain(pl.TorchModel(Linear(weight), preprocess=PREPARE), x, target=0)
    torch.testing.assert_close(a.scores, weight.view(1, 3, 8, 8) * x, rtol=1e-12, atol=0)


@pytest.mark.doors
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"baseline": 0.0}, r"`baseline` is one such as pl.Pixel\(0.0\), pl.Blur\(\) or pl.Constant\(0.5\). Got 0.0"),
        ({"baseline": pl.Zeros}, "`baseline` is one such as"),
        ({"baseline": (pl.Zeros(), pl.Blur())}, "For a set of baselines take ExpectedGradients"),
        ({"n_steps": 0}, "`n_steps` is a whole number, 1 or more"),
        ({"n_steps": 1, "rule": "ends"}, "`n_steps` is a whole number, 2 or more"),
        ({"n_steps": 2.0}, "Got 2.0"),
        ({"rule": "trapezoid"}, "gauss-legendre"),
    ],
)
def test_wrong_settings_say_what_to_write(settings, words):
    with pytest.raises(pl.ArgumentError, match=words):
        pl.IntegratedGradients(**settings)


LIMITED = """
import json
import psutil, torch
from torch import nn
import pellucid as pl

net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
x = torch.linspace(-1, 1, 2 * 3 * 128 * 128).view(2, 3, 128, 128).sin()

found, maps = [], []
for limit in (150, 400):
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    start = psutil.Process().memory_info().rss
    a = pl.IntegratedGradients(n_steps=24)(pl.TorchModel(net.eval(), memory_limit=f"{limit}MiB"), x, 0)
    lines = open("/proc/self/status").read().splitlines()
    peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) - start
    maps.append(a.scores)
    off = float((maps[-1] - maps[0]).abs().max() / maps[0].abs().max())
    found.append([limit, peak, a.memory.measured, a.memory.predicted, a.recipe.run["micro_batch"], off])
print(json.dumps(found))
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="reads the peak of the process from /proc")
def test_the_real_peak_of_a_process_stays_under_the_limit():
    output = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True).stdout
    found = json.loads(output)
    for limit, peak, measured, predicted, _, off in found:
        assert 0 < peak <= limit * MIB
        assert measured <= limit * MIB
        assert predicted <= limit * MIB
        assert off <= 1e-5
    assert found[0][4] < found[1][4], "fewer points at once"
