"""Simple Gradient and SmoothGrad's conventions against the libraries themselves, fed the very same noise."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tests.peers.case import FLOAT32_SUM, Case, answer, chw, difference, hwc, one_hot, real_case, small_case
from torch import Tensor, nn

import pellucid as pl
from pellucid.core.random import Key, normal

pytestmark = pytest.mark.peers

SEED = 3
DIFFERENT = 1e-3  # in maps that are equal to 1e-12 if nothing differs


def noise(case: Case, index: int) -> Tensor:
    """The standard normal noise of pellucid's copy `index`."""
    return torch.from_numpy(normal(Key.of(case.x[0]).stream(SEED), index, tuple(case.x.shape[1:])))


def sigma(case: Case, explain: pl.SmoothGrad) -> float:
    return float(explain.noise.spread(case.x))


@dataclass(eq=False)
class Run:
    """What a peer computed, and what it asked of its random call."""

    map: Tensor
    sigmas: list[float] = field(default_factory=list)
    calls: int = 0
    copies: list[Tensor] = field(default_factory=list)


@pytest.fixture(scope="module", params=["small", "real"])
def case(request: pytest.FixtureRequest) -> Case:
    if request.param == "small":
        return small_case()
    return real_case(request.getfixturevalue("lite0").net, request.getfixturevalue("chelsea"))


@pytest.fixture(scope="module")
def captum(case, captum_attr) -> Run:
    run = Run(torch.empty(0))

    def fed(mean: float, std: Tensor) -> Tensor:
        run.calls += 1
        run.sigmas += std.unique().tolist()
        return mean + std * torch.stack([noise(case, i) for i in range(len(std))])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "normal", fed)
        tunnel = captum_attr.NoiseTunnel(captum_attr.Saliency(case.net))
        run.map = tunnel.attribute(case.x.clone(), target=case.target).detach()
    return run


@pytest.fixture(scope="module")
def pair(case, saliency_core) -> Run:
    run = Run(torch.empty(0))

    def fed(mean: float, std: float, shape: tuple[int, ...]) -> np.ndarray:
        unit = hwc(noise(case, run.calls)[None])
        assert unit.shape == shape
        run.calls += 1
        run.sigmas.append(float(std))
        return mean + std * unit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "normal", fed)
        explain = saliency_core.GradientSaliency()
        run.map = chw(explain.GetSmoothedMask(hwc(case.x), answer(case, saliency_core)))
    return run


@pytest.fixture(scope="module")
def zennit(case, zennit_attribution) -> Run:
    run = Run(torch.empty(0))

    def fed(like: Tensor) -> Tensor:
        run.calls += 1
        return noise(case, run.calls - 1)[None].to(like)

    def see(net: nn.Module, inputs: tuple[Tensor]) -> None:
        run.copies.append(inputs[0].detach().clone())

    hook = case.net.register_forward_pre_hook(see)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", fed)
        run.map = zennit_attribution.SmoothGrad(case.net)(case.x.clone(), one_hot(case))[1].detach()
    hook.remove()
    # Its random call knows no sigma: it is the slope of what was added over the noise that was handed out.
    for i, seen in enumerate(run.copies[: run.calls]):
        unit = noise(case, i).double()
        run.sigmas.append(float(((seen - case.x)[0] * unit).sum() / unit.square().sum()))
    return run


def test_simple_gradient_is_captums_saliency_without_abs(case, captum_attr):
    x = case.x.clone().requires_grad_()
    expected = captum_attr.Saliency(case.net).attribute(x, target=case.target, abs=False).detach()
    assert difference(case.map(pl.SimpleGradient()), expected) <= case.tolerance


def test_simple_gradient_is_pairs_gradient_saliency(case, saliency_core):
    expected = chw(saliency_core.GradientSaliency().GetMask(hwc(case.x), answer(case, saliency_core)))
    assert difference(case.map(pl.SimpleGradient()), expected) <= case.tolerance


def test_simple_gradient_is_zennits_gradient(case, zennit_attribution):
    _, expected = zennit_attribution.Gradient(case.net)(case.x.clone(), one_hot(case))
    assert difference(case.map(pl.SimpleGradient()), expected) <= case.tolerance


def test_captum_convention_is_captums_map(case, captum):
    assert difference(case.map(pl.SmoothGrad.captum(seed=SEED)), captum.map) <= case.tolerance


def test_pair_convention_is_pairs_map(case, pair):
    tolerance = max(case.tolerance, FLOAT32_SUM)
    assert difference(case.map(pl.SmoothGrad.pair(seed=SEED)), pair.map) <= tolerance


def test_zennit_convention_is_zennits_map(case, zennit):
    assert difference(case.map(pl.SmoothGrad.zennit(seed=SEED)), zennit.map) <= case.tolerance


def test_captum_draws_all_its_noise_in_one_call(captum):
    assert captum.calls == 1


def test_pair_draws_noise_for_each_of_our_copies(pair):
    assert pair.calls == pl.SmoothGrad.pair().n_samples


def test_zennit_draws_noise_for_all_our_copies_but_one(zennit):
    assert zennit.calls == pl.SmoothGrad.zennit().n_samples - 1


def test_captum_asks_for_our_sigma(case, captum):
    assert captum.sigmas == [sigma(case, pl.SmoothGrad.captum())]


def test_pair_asks_for_our_sigma_each_time(case, pair):
    assert pair.sigmas == pytest.approx([sigma(case, pl.SmoothGrad.pair())] * 25, rel=1e-12)


def test_zennit_adds_our_sigma_each_time(case, zennit):
    assert zennit.sigmas == pytest.approx([sigma(case, pl.SmoothGrad.zennit())] * 19, rel=1e-12)


def test_zennits_last_copy_is_the_input(case, zennit):
    assert torch.equal(zennit.copies[-1], case.x)


on_small = pytest.mark.parametrize("case", ["small"], indirect=True)


@on_small
@pytest.mark.parametrize("peer", ["captum", "pair", "zennit"])
def test_peers_map_is_not_the_papers(case, peer, request):
    assert difference(case.map(pl.SmoothGrad(seed=SEED)), request.getfixturevalue(peer).map) > DIFFERENT


@on_small
def test_captums_map_is_not_the_signed_mean_of_its_copies(case, captum):
    signed = pl.SmoothGrad(noise_level=pl.NoiseLevel.absolute(1.0), n_samples=5, seed=SEED)
    assert difference(case.map(signed), captum.map) > DIFFERENT


@on_small
def test_pairs_map_is_not_the_signed_mean_of_its_copies(case, pair):
    assert difference(case.map(pl.SmoothGrad(noise_level=0.15, n_samples=25, seed=SEED)), pair.map) > DIFFERENT


@on_small
def test_zennits_map_is_not_the_mean_of_20_noisy_copies(case, zennit):
    assert difference(case.map(pl.SmoothGrad(noise_level=0.1, n_samples=20, seed=SEED)), zennit.map) > DIFFERENT
