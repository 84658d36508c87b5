"""The methods that integrate gradients against Captum, PAIR saliency and Zennit."""

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tests.oracles import uniform
from tests.peers.case import FLOAT32_SUM, Case, answer, chw, difference, hwc, one_hot, real_case, small_case
from torch import Tensor, nn

import pellucid as pl

pytestmark = pytest.mark.peers

DIFFERENT = 1e-4  # in maps that are equal to 1e-6 if nothing differs

FLOAT32_RULE = 2e-7
"""Captum keeps the weights of its steps in float32, Zennit their places on the way, whatever the type of the input."""


@pytest.fixture(scope="module", params=["small", "real"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "small":
        return replace(small_case(), tolerance=1e-10)
    return real_case(request.getfixturevalue("lite0").net, request.getfixturevalue("chelsea"))


on_small = pytest.mark.parametrize("case", ["small"], indirect=True)


@pytest.fixture(scope="module")
def captum(case: Case, captum_attr: ModuleType) -> Tensor:
    explain = captum_attr.IntegratedGradients(case.net)
    return explain.attribute(case.x.clone(), target=case.target, internal_batch_size=10).detach()


@pytest.fixture(scope="module")
def pair(case: Case, saliency_core: ModuleType) -> Tensor:
    return chw(saliency_core.IntegratedGradients().GetMask(hwc(case.x), answer(case, saliency_core)))


@pytest.fixture(scope="module")
def zennit(case: Case, zennit_attribution: ModuleType) -> Tensor:
    return zennit_attribution.IntegratedGradients(case.net)(case.x.clone(), one_hot(case))[1].detach()


def test_captum_convention_is_captums_map(case, captum):
    tolerance = max(case.tolerance, FLOAT32_RULE)
    assert difference(case.map(pl.IntegratedGradients.captum()), captum) <= tolerance


def test_pair_convention_is_pairs_map(case, pair):
    assert difference(case.map(pl.IntegratedGradients.pair()), pair) <= max(case.tolerance, FLOAT32_SUM)


def test_zennit_convention_is_zennits_map(case, zennit):
    tolerance = max(case.tolerance, FLOAT32_RULE)
    assert difference(case.map(pl.IntegratedGradients.zennit()), zennit) <= tolerance


@pytest.fixture
def all_in_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors made of numbers are in float64, as the input is, and stay so."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    yield
    torch.set_default_dtype(torch.float32)


@on_small
@pytest.mark.usefixtures("all_in_double")
def test_where_nothing_is_rounded_to_float32_the_conventions_are_theirs_to_rounding(
    case, captum_attr, zennit_attribution
):
    captum = captum_attr.IntegratedGradients(case.net).attribute(case.x.clone(), target=case.target).detach()
    _, zennit = zennit_attribution.IntegratedGradients(case.net)(case.x.clone(), one_hot(case))
    assert difference(case.map(pl.IntegratedGradients.captum()), captum) <= case.tolerance
    assert difference(case.map(pl.IntegratedGradients.zennit()), zennit.detach()) <= case.tolerance


@on_small
@pytest.mark.parametrize("peer", ["pair", "zennit"])
def test_their_sums_are_not_the_integral(case, peer, request):
    assert difference(case.map(pl.IntegratedGradients()), request.getfixturevalue(peer)) > DIFFERENT


@pytest.mark.parametrize("rule", ["gauss-legendre", "right"])
def test_its_residual_is_captums_convergence_delta(case, rule, captum_attr):
    """From another baseline and with fewer steps."""
    methods = {"gauss-legendre": "gausslegendre", "right": "riemann_right"}
    start = torch.full_like(case.x, -0.4)
    expected, delta = captum_attr.IntegratedGradients(case.net).attribute(
        case.x.clone(), start, target=case.target, n_steps=8, method=methods[rule], return_convergence_delta=True
    )
    explain = pl.IntegratedGradients(baseline=pl.Constant(-0.4), n_steps=8, rule=rule)
    a = explain(case.model, case.x, target=case.target)
    assert difference(a.scores, expected.detach()) <= max(case.tolerance, FLOAT32_RULE)
    slack = max(case.tolerance, FLOAT32_RULE) * float(expected.abs().sum())
    assert float(a.residual) == pytest.approx(float(delta), abs=slack)
    assert abs(float(delta)) > 10 * slack or rule == "gauss-legendre"


def test_input_x_gradient_is_captums_and_zennits(case, captum_attr):
    expected = captum_attr.InputXGradient(case.net).attribute(case.x.clone().requires_grad_(), target=case.target)
    assert difference(case.map(pl.InputXGradient()), expected.detach()) <= case.tolerance


@pytest.fixture
def numpy_of_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """PAIR saliency 0.2.1 calls np.quantile with a keyword that NumPy 2.4 no longer has."""
    quantile: Any = np.quantile
    monkeypatch.setattr(np, "quantile", lambda a, q, interpolation: quantile(a, q, method=interpolation))


SETTINGS = [
    {"n_steps": 12},
    {"n_steps": 12, "fraction": 0.6, "max_distance": 0.3},
    {"n_steps": 7, "fraction": 0.05, "max_distance": 1.0},
    {"n_steps": 60, "fraction": 1.0, "max_distance": 0.1},
]


def guided_of_pair(case: Case, saliency_core: ModuleType, *, n_steps: int, fraction=0.25, max_distance=0.02) -> Tensor:
    explain, settings = saliency_core.GuidedIG(), {"fraction": fraction, "max_dist": max_distance}
    return chw(explain.GetMask(hwc(case.x), answer(case, saliency_core), x_steps=n_steps, **settings))


@pytest.mark.usefixtures("numpy_of_then")
@on_small
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_guided_integrated_gradients_are_pairs(case, settings, saliency_core):
    expected = guided_of_pair(case, saliency_core, **settings)
    assert difference(case.map(pl.GuidedIntegratedGradients(**settings)), expected) <= case.tolerance


@pytest.mark.usefixtures("numpy_of_then")
@pytest.mark.parametrize("case", ["real"], indirect=True)
def test_guided_integrated_gradients_of_a_deep_network_are_pairs_with_their_residual(case, saliency_core):
    """Which is large: a feature moves while its gradient is small, and kinks make it large on the way."""
    expected = guided_of_pair(case, saliency_core, n_steps=15)
    a = pl.GuidedIntegratedGradients(n_steps=15)(case.model, case.x, target=case.target)
    assert difference(a.scores, expected) <= case.tolerance
    change = a.recipe.notes["change"][0]
    assert float(a.residual) == pytest.approx(float(expected.sum()) - change, rel=1e-6)


@on_small
def test_expected_gradients_over_noise_are_captums_gradient_shap(case, captum_attr):
    """Both are means of independent samples: their difference within five of its standard errors, everywhere."""
    rows, n, sigma = 3 * uniform(5, *case.x.shape[1:], seed=1, dtype=torch.float64) - 1, 1500, 0.3
    maps = []
    with torch.random.fork_rng([]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        generator = np.random.default_rng(0)
        patch.setattr(np.random, "uniform", generator.uniform)
        patch.setattr(np.random, "choice", generator.choice)
        for _ in range(30):
            explain = captum_attr.GradientShap(case.net)
            part = explain.attribute(case.x.clone(), rows, n_samples=n // 30, stdevs=sigma, target=case.target)
            maps.append(part.detach())
    theirs, their_error = torch.stack(maps).mean(0), torch.stack(maps).std(0) / 30**0.5
    base = pl.ExpectedGradients(baselines=pl.Background.of(rows), n_samples=1)
    explain = pl.SmoothGrad(base=base, n_samples=n, noise_level=pl.NoiseLevel.absolute(sigma))
    a = explain(case.model, case.x, target=case.target)
    error = (a.standard_error.square() + their_error.square()).sqrt()
    assert ((a.scores - theirs).abs() <= 5 * error).all()
    assert float(error.mean()) < 0.1 * float(theirs.abs().max())
    without = pl.ExpectedGradients(baselines=(pl.Zeros(),), n_samples=n)(case.model, case.x, target=case.target)
    assert ((without.scores - theirs).abs() > 5 * error).any(), "so that the baselines are seen to count"


LAYERS = {"small": "1", "real": "stages.4"}


@pytest.fixture(scope="module")
def layer(request: pytest.FixtureRequest, case: Case) -> str:
    return LAYERS["small" if isinstance(case.net, nn.Sequential) else "real"]


def test_input_x_gradient_at_a_layer_is_captums_layer_gradient_x_activation(case, layer, captum_attr):
    explain = captum_attr.LayerGradientXActivation(case.net, case.net.get_submodule(layer))
    expected = explain.attribute(case.x.clone(), target=case.target).detach()
    assert difference(case.map(pl.AtLayer(base=pl.InputXGradient(), layer=layer)), expected) <= case.tolerance


def test_the_gradient_at_a_layer_is_captums_without_activation(case, layer, captum_attr):
    module = case.net.get_submodule(layer)
    explain = captum_attr.LayerGradientXActivation(case.net, module, multiply_by_inputs=False)
    expected = explain.attribute(case.x.clone(), target=case.target).detach()
    assert difference(case.map(pl.AtLayer(layer=layer)), expected) <= case.tolerance


def without_first_bias(case: Case) -> Case:
    """Where the layer gives zero for a zero input, as tanh without bias does, Captum's baseline, the layer's activation
    at a zero input, is ours, zero.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        first = nn.Conv2d(3, 8, 3, bias=False).double()
    return replace(case, net=nn.Sequential(first, nn.Tanh(), *case.net[2:]))


@on_small
def test_integrated_gradients_at_a_layer_are_captums_where_the_layer_gives_zero_for_zero(case, captum_attr):
    case = without_first_bias(case)
    explain = captum_attr.LayerIntegratedGradients(case.net, case.net[1])
    expected = explain.attribute(case.x.clone(), target=case.target).detach()
    found = case.map(pl.AtLayer(base=pl.IntegratedGradients(), layer="1"))
    assert difference(found, expected) <= max(case.tolerance, FLOAT32_RULE)


@on_small
def test_elsewhere_captums_way_begins_at_what_the_layer_gives_for_zero(case, captum_attr):
    explain = captum_attr.LayerIntegratedGradients(case.net, case.net[1])
    expected = explain.attribute(case.x.clone(), target=case.target).detach()
    assert difference(case.map(pl.AtLayer(base=pl.IntegratedGradients(), layer="1")), expected) > DIFFERENT


def conductance_of_captum(case: Case, layer: str, captum_attr: ModuleType, n: int, *, back: bool = False) -> Tensor:
    """Their sum takes the slope at the near end of each part of the way, of points at equal distances."""
    explain = captum_attr.LayerConductance(case.net, case.net.get_submodule(layer))
    ends = (case.x.clone(), torch.zeros_like(case.x))
    x, start = reversed(ends) if back else ends
    settings = {"target": case.target, "n_steps": n, "method": "riemann_trapezoid", "internal_batch_size": 10}
    return explain.attribute(x, start, **settings).detach()


def test_conductance_is_the_mean_of_captums_there_and_back(case, layer, captum_attr):
    """Slopes at the near and at the far end of each part: the trapezoid rule."""
    there, back = (conductance_of_captum(case, layer, captum_attr, 10, back=b) for b in (False, True))
    found = case.map(pl.Conductance(layer=layer, n_steps=10))
    assert difference(found, (there - back) / 2) <= max(case.tolerance, FLOAT32_RULE)


@on_small
def test_captums_conductance_comes_to_ours_with_its_steps(case, layer, captum_attr):
    ours = case.map(pl.Conductance(layer=layer, n_steps=400))
    off = [difference(ours, conductance_of_captum(case, layer, captum_attr, n)) for n in (25, 100, 400)]
    assert off[1] == pytest.approx(off[0] / 4, rel=0.2)
    assert off[2] == pytest.approx(off[1] / 4, rel=0.2)
    assert off[2] < 0.01
