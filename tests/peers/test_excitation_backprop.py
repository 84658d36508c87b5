"""Excitation backpropagation against Zennit, which begins with a one at the target as the paper does."""

from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.oracles import uniform
from tests.peers.case import Case, difference, one_hot
from torch import Tensor, nn

import pellucid as pl

pytestmark = pytest.mark.peers


def small_case(target: int = 2) -> Case:
    """Sums far from zero, where the stabilisers of both (Zennit's is 1e-6 too) hardly count."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(8, 8, 3, 2, groups=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
        )  # fmt: skip
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.weight += 0.05
    return Case(net.double().eval(), 3 * uniform(1, 3, 11, 13, dtype=torch.float64), target=target, tolerance=1e-5)


def zennits(case: Case, attribution: ModuleType, **settings: Any) -> Tensor:
    composite = import_module("zennit.composites").ExcitationBackprop(**settings)
    with attribution.Gradient(case.net, composite) as attributor:
        _, found = attributor(case.x.clone(), one_hot(case))
    return found.detach()


@pytest.mark.parametrize("target", [0, 2, 3])
def test_without_biases_zennits_is_the_same(target, zennit_attribution):
    case = small_case(target)
    expected = zennits(case, zennit_attribution, zero_params="bias")
    assert difference(case.map(pl.ExcitationBackprop()), expected) <= case.tolerance


def test_with_biases_among_the_winners_it_is_another(zennit_attribution):
    """So that the comparison above says something."""
    case = small_case()
    for module in case.net.modules():
        if isinstance(module, nn.Conv2d):
            module.bias.data += 0.5
    own = case.map(pl.ExcitationBackprop())
    assert difference(own, zennits(case, zennit_attribution)) > 1e-2
    assert difference(own, zennits(case, zennit_attribution, zero_params="bias")) <= case.tolerance
